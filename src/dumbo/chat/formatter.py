"""Tokens and labels of conversations: rendered, located, chosen and tokenised, with every doubt an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dumbo.chat.batches import BatchEncoder
from dumbo.chat.end_tokens import AnswerFrame, probe_frame
from dumbo.chat.rendering import Rendered, Renderer, UnprovenRenderingError, describe_refusal
from dumbo.chat.selection import Selection, TrainedParts, select
from dumbo.chat.traced import TOOLS
from dumbo.chat.turns import Turn, UnprovenTurnError, check_complete, find_turns
from dumbo.data.encoding import OffsetEncoder, cut_texts, is_unicode
from dumbo.data.masking import Span, label_tokens, offset_array
from dumbo.data.prompts import STAND_INS, shared_start
from dumbo.data.records import IGNORED, Conversation, Example, Message, Origin, Record
from dumbo.data.train_format import Explanation, MessageTokens, TrainFormatter
from dumbo.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_ONE_PROMPT = Origin("the prompt", 1)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation before it is tokenised."""

    conversation: Conversation
    rendered: Rendered
    turns: list[Turn | None]
    selection: Selection


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation as tokens."""

    input_ids: list[int]
    labels: list[int]
    offsets: NDArray[np.int64]
    straddling: NDArray[np.intp]


class Additions(NamedTuple):
    """Tokens before and after those of a text, and their labels."""

    lead: list[int]
    lead_labels: list[int]
    tail: list[int]
    tail_labels: list[int]


class _Writer(NamedTuple):
    """A template, and what it was found to write around answers."""

    renderer: Renderer
    frame: AnswerFrame


class ConversationFormatter(TrainFormatter):
    """Writes conversations by a template, those with tools perhaps by another one."""

    writes_all: ClassVar[bool] = True
    """Whether the template has to write every message; a user's own may choose."""

    def __init__(
        self,
        name: str,
        renderers: tuple[Renderer, Renderer],
        tokenizer: PreTrainedTokenizerBase,
        parts: TrainedParts,
        eot_tokens: Sequence[str] = (),
        allow_special_tokens: bool = False,
    ) -> None:
        """`name` is the format's, for messages; `renderers` are for conversations without tools and for those with
        them; `eot_tokens` end turns, by default what the template is found to write; with `allow_special_tokens`
        messages may hold texts that the tokenizer takes for special tokens.

        Raises `ConfigError` for a tokenizer without offsets.
        """
        import numpy as np

        self.name, self.tokenizer, self.parts = name, tokenizer, parts
        plain, with_tools = renderers
        self._plain = _Writer(plain, probe_frame(plain, tokenizer, eot_tokens))
        self._with_tools = self._plain
        if with_tools is not plain:
            self._with_tools = _Writer(with_tools, probe_frame(with_tools, tokenizer, eot_tokens))
        self.encoder = OffsetEncoder(tokenizer)
        self.start_id: int | None = tokenizer.bos_token_id
        self._special_tokens = {} if allow_special_tokens else _special_tokens(tokenizer)
        self.is_special = np.zeros(max(tokenizer.get_vocab().values(), default=0) + 1, bool)
        self.is_special[list(self._special_tokens)] = True

    @property
    def renderer(self) -> Renderer:
        """What writes conversations without tools."""
        return self._plain.renderer

    @property
    def frames(self) -> tuple[AnswerFrame, ...]:
        """What stands around answers: in conversations without tools, and in those with tools where that differs."""
        return tuple(dict.fromkeys((self._plain.frame, self._with_tools.frame)))

    def encode_batch(self, records: Sequence[Record]) -> list[Example | DataError]:
        """An example for each record, or what makes it unusable."""
        prepared = [self.try_prepare(record) for record in records]
        return self.finish(prepared, self.encoder.encode_batch(_texts(prepared)))

    def encode_batches(self, batches: Iterable[Sequence[Record]]) -> Iterator[list[Example | DataError]]:
        """The same for each of `batches`, its numbers packed, with what conversations have in common found once."""
        encoder = BatchEncoder(self)
        return (encoder.encode(batch) for batch in batches)

    def encode_one(self, record: Record) -> Example | DataError:
        """The example of one record, or what makes it unusable."""
        return self.encode_batch([record])[0]

    def finish(
        self,
        prepared: Sequence[Prepared | DataError],
        encoded: Iterable[tuple[list[int], Sequence[Span] | NDArray[np.int64]]],
    ) -> list[Example | DataError]:
        """The examples of conversations; `encoded` has the tokens of those that are no error."""
        remaining = iter(encoded)
        results: list[Example | DataError] = []
        for item in prepared:
            if isinstance(item, DataError):
                results.append(item)
                continue
            tokens = next(remaining)
            try:
                results.append(self._example(item, self._label(item, *tokens)))
            except DataError as error:
                results.append(error)
        return results

    def explain(self, record: Record) -> Explanation:
        """The record's example with the text of each token and the place of each message."""
        prepared = self.prepare(record)
        labelled = self._label(prepared, *self.encoder.encode(prepared.rendered.text))
        additions = self.additions(prepared.rendered.text, prepared.selection.spans, labelled.input_ids)
        lead = len(additions.lead) if additions is not None else 0
        return _explain(prepared, labelled, self._example(prepared, labelled), lead, self.tokenizer)

    def write_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int] | None:
        """The ids of `messages` and of the template's generation prompt; None where it has none."""
        generation_prompt = (self._with_tools if tools else self._plain).frame.generation_prompt
        if not generation_prompt or not messages:
            return None
        asked = Conversation(tuple(messages), _ONE_PROMPT, tuple(tools))
        prepared = Prepared(asked, *self._locate(asked, generation_prompt=True), Selection([]))
        if prepared.turns[-1] is None or prepared.turns[-1].left_out:
            raise _ONE_PROMPT.error("the run's train format leaves out the last of these messages")
        input_ids, offsets = self.encoder.encode(prepared.rendered.text)
        self._refuse_special_tokens(prepared, input_ids, offset_array(offsets))
        # What a row has before its answer: a tokenizer may write the end of a text as other tokens than its middle.
        rows = self.encoder.encode_batch([prepared.rendered.text + answer for answer in STAND_INS])
        prompt = shared_start([input_ids for input_ids, _ in rows])
        # The space in which it may end belongs to the answer, even where it is a token of its own here.
        blank = len(generation_prompt) - len(generation_prompt.rstrip(" \t"))
        end = len(prepared.rendered.text) - blank
        kept = sum(stop <= end for _, stop in rows[0][1][: len(prompt)])
        return self._with_start(prompt[:kept])

    def _with_start(self, input_ids: list[int]) -> list[int]:
        """The ids of a prompt with what stands before every text."""
        return input_ids

    def try_prepare(self, record: Record) -> Prepared | DataError:
        """As `prepare`, with the error returned."""
        try:
            return self.prepare(record)
        except DataError as error:
            return error

    def prepare(self, record: Record) -> Prepared:
        """The text of a record, and what of it is trained. Raises `DataError` where something of it is not certain."""
        conversation = _conversation(record, self.name)
        rendered, turns = self._locate(conversation)
        try:
            selection = select(rendered, conversation, turns, self.parts)
        except UnprovenTurnError as error:
            raise _unproven(error, conversation) from None
        if not selection.trained_turns and not self.parts.whole_text:
            raise self._nothing_trained(conversation, selection)
        return Prepared(conversation, rendered, turns, selection)

    def _locate(
        self, conversation: Conversation, generation_prompt: bool = False
    ) -> tuple[Rendered, list[Turn | None]]:
        """The text of a conversation, and where its messages stand in it."""
        renderer, frame = self._with_tools if conversation.tools else self._plain
        try:
            rendered = renderer.render(conversation.messages, conversation.tools, generation_prompt)
        except ConfigError:
            raise
        except UnprovenRenderingError as error:
            hint = "use a template that leaves texts as they are, or a train format without one"
            raise conversation.origin.error(f"{error}; labels would be a guess", hint) from None
        except Exception as error:  # Templates run arbitrary expressions on what they are given.
            message = f"the template refuses the conversation: {describe_refusal(error)}"
            raise conversation.origin.error(message) from None
        if not rendered.text:
            raise conversation.origin.error("the template writes nothing", "check that it loops over 'messages'")
        if not is_unicode(rendered.text):
            raise conversation.origin.error("a text has half of a character (\\ud800 to \\udfff alone)")
        turns = find_turns(rendered, conversation, frame)
        try:
            if self.writes_all:
                check_complete(rendered, conversation, turns)
            return rendered, turns
        except UnprovenTurnError as error:
            raise _unproven(error, conversation) from None

    def _nothing_trained(self, conversation: Conversation, selection: Selection) -> DataError:
        roles = dict.fromkeys(message["role"] for message in conversation.messages)
        if selection.remarks:
            hint = "use a template that writes thoughts; hidden_thinking: train trains such turns without them"
            return conversation.origin.error("no token to train on", *selection.remarks, hint)
        if not self.parts.roles & roles.keys():
            wanted = " or ".join(f"'{role}'" for role in sorted(self.parts.roles))
            hint = f"the roles are {', '.join(map(repr, roles))}; trained is {wanted} (roles_to_train)"
            return conversation.origin.error("no message to train on", hint)
        return conversation.origin.error("no token to train on", "the row says that none of its messages is trained")

    def _label(self, prepared: Prepared, input_ids: list[int], offsets: Sequence[Span] | NDArray[np.int64]) -> Labelled:
        places = offset_array(offsets)
        spans = self.trained_spans(prepared.rendered.text, prepared.selection.spans)
        labels, straddling = label_tokens(input_ids, places, spans)
        self._refuse_special_tokens(prepared, input_ids, places)
        return Labelled(input_ids, labels, places, straddling)

    def trained_spans(self, text: str, spans: list[Span]) -> list[Span]:
        """The characters of `text` of which tokens are trained, where `spans` were chosen."""
        return spans

    def _example(self, prepared: Prepared, labelled: Labelled) -> Example:
        """The example. Raises `DataError` where no token is trained; the first never is, as nothing predicts it."""
        origin = prepared.conversation.origin
        input_ids, labels = labelled.input_ids, labelled.labels
        additions = self.additions(prepared.rendered.text, prepared.selection.spans, input_ids)
        if additions is not None:
            input_ids = [*additions.lead, *input_ids, *additions.tail]
            labels = [*additions.lead_labels, *labels, *additions.tail_labels]
        if all(label == IGNORED for label in labels[1:]):
            message = "no token to train on"
            raise origin.error(message, "what is trained is empty, or shares its tokens with what is not")
        if self.start_id is not None and input_ids[:2] == [self.start_id] * 2:
            start = self.tokenizer.bos_token
            hint = "the template writes it and something else does, too: the message, or the format"
            raise origin.error(f"the text begins with two start tokens '{start}'", hint)
        counts = dict(prepared.selection.counts)
        if len(labelled.straddling):
            counts["straddling tokens"] = len(labelled.straddling)
        return Example(input_ids, labels, origin, counts)

    def additions(self, text: str, spans: Sequence[Span], input_ids: Sequence[int]) -> Additions | None:
        """What stands around every text; chat templates write all of it themselves."""
        return None

    def _refuse_special_tokens(self, prepared: Prepared, input_ids: list[int], offsets: NDArray[np.int64]) -> None:
        """Raise `DataError` where a message has a text that the tokenizer takes for a special token: whoever wrote it
        could end a turn, or begin one."""
        import numpy as np

        special = np.flatnonzero(self.is_special[input_ids])
        rendered = prepared.rendered
        pieces = [piece for piece in (*rendered.pieces, *rendered.headers) if piece.end > piece.start]
        if not len(special) or not pieces:
            return
        pieces.sort(key=lambda piece: piece.start)
        starts, ends = np.array([(piece.start, piece.end) for piece in pieces]).T
        near = np.searchsorted(starts, offsets[special, 1]) - 1
        for place, piece in zip(special, near, strict=True):
            if piece < 0 or ends[piece] <= offsets[place, 0]:
                continue
            # Some tokens take in the whitespace beside them, which may be the message's; some are found in any case;
            # and what stands for characters that the tokenizer does not know is no token's text.
            token = self._special_tokens[input_ids[place]]
            first, last = offsets[place].tolist()
            own = rendered.text[max(first, starts[piece]) : min(last, ends[piece])].strip()
            if own and token.casefold() in rendered.text[first:last].casefold():
                message = pieces[piece].field.message
                whose = "a tool's schema" if message == TOOLS else f"message {message + 1}"
                raise prepared.conversation.origin.error(
                    f"{whose} has the text '{token}', which the tokenizer makes a special token of",
                    "it could end or begin a turn; remove it, or write allow_special_tokens: true for the train format",
                )


def _texts(prepared: Sequence[Prepared | DataError]) -> list[str]:
    return [item.rendered.text for item in prepared if isinstance(item, Prepared)]


def _explain(
    prepared: Prepared, labelled: Labelled, example: Example, lead: int, tokenizer: PreTrainedTokenizerBase
) -> Explanation:
    """Texts and places, by the tokens' characters; `lead` tokens stand before those of the text."""
    offsets = [(start, end) for start, end in labelled.offsets.tolist()]
    texts = cut_texts(prepared.rendered.text, offsets)
    before = [str(tokenizer.decode([token])) for token in example.input_ids[:lead]]
    after = [str(tokenizer.decode([token])) for token in example.input_ids[lead + len(texts) :]]
    places: list[MessageTokens] = []
    for turn in prepared.turns:
        if turn is None:
            continue
        first, last = turn.pieces[0].start, turn.pieces[-1].end
        ours = [place for place, (start, end) in enumerate(offsets) if start < last and end > first]
        if ours:
            places.append(MessageTokens(turn.index, turn.role, lead + ours[0], lead + ours[-1] + 1))
    straddling = frozenset(lead + int(place) for place in labelled.straddling)
    return Explanation(example, (*before, *texts, *after), tuple(places), straddling, prepared.selection.remarks)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens with which templates write, by id: no message may have them in its text."""
    decoder: dict[int, Any] = tokenizer.added_tokens_decoder
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {token: str(added) for token, added in decoder.items() if added.special} | named


def _conversation(record: Record, name: str) -> Conversation:
    """The record as a conversation of texts. Raises `DataError` for any other."""
    if not isinstance(record, Conversation):
        raise record.origin.error(
            f"'{name}' takes conversations, and the data format makes a {type(record).__name__}",
            "choose a data format that makes conversations, such as 'messages' or 'alpaca'",
        )
    for number, message in enumerate(record.messages, start=1):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise record.origin.error(f"message {number} needs 'role' and 'content' as text")
    return record


def _unproven(error: UnprovenTurnError, conversation: Conversation) -> DataError:
    """The error of a row of which something is not certain, with what to do about it."""
    if error.index == TOOLS:
        hint = "a model that never sees the tools learns to call what it does not know; use a template with tools"
    elif "thinks" in error.reason:
        hint = "hidden_thinking: mask leaves such turns untrained, and train trains them as they are written"
    elif conversation.messages[error.index]["role"] == "system":
        hint = "use a template that writes it as it is, or drop_system_message: true in the data format"
    else:
        hint = "its labels would be a guess; use a template that writes it as it is, or on_bad_row: drop"
    return conversation.origin.error(str(error), hint)
