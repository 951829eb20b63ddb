"""What the formats of texts have in common: texts with spans to train on, made into tokens and labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dumbo.data.encoding import OffsetEncoder, cut_texts, leading_special_tokens
from dumbo.data.masking import Span, label_tokens
from dumbo.data.records import IGNORED, Example, Message, Origin, Record
from dumbo.data.train_format import Explanation, TrainFormatter
from dumbo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WITHOUT_END = "without end token"
WITHOUT_START = "without start token"
CUT = "cut solutions"
STRADDLING = "straddling tokens"
"""Names of counts."""
_MEANING = MappingProxyType(
    {
        WITHOUT_END: "the end token is not trained, so this row does not teach to stop",
        WITHOUT_START: "it does not begin with the start token that this tokenizer puts before texts",
        CUT: "the solution is longer than 'max_completion_length'; its end is cut off",
    }
)
"""What a count says of a single row."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that is tokenised by itself, and what of it is trained."""

    text: str
    trained: Sequence[Span]
    """In order and apart from each other."""
    marks: tuple[Span, ...] | None = None
    """Where special tokens may be written in it; None: anywhere."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A record's texts, and what comes before and after them."""

    pieces: tuple[Piece, ...]
    origin: Origin
    starts: bool = False
    """Put the tokenizer's start token before them."""
    ends: bool | None = None
    """Put its end token after them: trained or not; None: put none."""
    answer: int = 0
    """The character of the first piece at which what the model writes begins."""
    remarks: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a piece, and the characters of each."""

    ids: list[int]
    offsets: list[Span]


class DraftFormatter(TrainFormatter):
    """Makes examples of drafts, in batches; a format says how it drafts a record."""

    nothing_trained = "no token to train on"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.encoder = OffsetEncoder(tokenizer)
        # At inference the tokenizer puts them before a prompt, so they are there in training too.
        self.start_ids = leading_special_tokens(tokenizer)
        self.end_id: int | None = tokenizer.eos_token_id
        self.names = {token: str(added.content) for token, added in tokenizer.added_tokens_decoder.items()}
        special = set(tokenizer.all_special_ids)
        special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self.special = {token: self.names[token] for token in special if token in self.names}

    @abstractmethod
    def draft(self, record: Record) -> Draft:
        """What the record's text is, and what of it is trained. Raises `DataError` for a record that has none."""

    @abstractmethod
    def draft_prompt(self, text: str, origin: Origin) -> Draft:
        """How a row begins that asks `text`. Raises `DataError` for what no row begins with."""

    def encode_batch(self, records: Sequence[Record]) -> list[Example | DataError]:
        """An example for each record, or what makes it unusable."""
        drafts = [self._draft(record) for record in records]
        encoded = iter(self._encode([draft for draft in drafts if isinstance(draft, Draft)]))
        return [draft if isinstance(draft, DataError) else self._finish(draft, next(encoded)) for draft in drafts]

    def explain(self, record: Record) -> Explanation:
        """The record's example, with the text of each token."""
        draft = self.draft(record)
        [encoded] = self._encode([draft])
        example = self.build(draft, encoded)
        ids = example.input_ids
        added = self.missing_start(draft, encoded)
        texts = [self._name(token) for token in added]
        straddling: list[int] = []
        for piece, tokens in zip(draft.pieces, encoded, strict=True):
            _, over_edge = label_tokens(tokens.ids, tokens.offsets, piece.trained)
            straddling += [len(texts) + int(position) for position in over_edge]
            texts += cut_texts(piece.text, tokens.offsets)
        texts += [self._name(token) for token in ids[len(texts) :]]
        kept = frozenset(position for position in straddling if position < len(ids))
        remarks = (*draft.remarks, *self._own_marks(draft, encoded), *count_remarks(example.counts))
        return Explanation(example, tuple(texts[: len(ids)]), (), kept, remarks)

    def write_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int] | None:
        """The ids of a row that begins with the text of the one message.

        Raises:
            DataError: there are several messages, or tools, which a text has no place for.
        """
        origin = Origin("the prompt", 0)
        if len(messages) != 1 or tools:
            what = "tools" if tools else f"{len(messages)} messages"
            raise origin.error(f"there are {what}, and the model was trained on plain texts", "give it one text")
        text = messages[0].get("content")
        if not isinstance(text, str) or not text:
            raise origin.error("the message has no text")
        draft = self.draft_prompt(text, origin)
        [encoded] = self._encode([draft])
        self._check_marks(draft, encoded)
        return [*self.missing_start(draft, encoded), *(token for tokens in encoded for token in tokens.ids)]

    def build(self, draft: Draft, encoded: Sequence[Encoded]) -> Example:
        """The example. Raises `DataError` where no token is trained; the first never is, as nothing predicts it."""
        self._check_marks(draft, encoded)
        if not any(tokens.ids for tokens in encoded):
            raise draft.origin.error("the tokenizer makes no tokens of the text")
        ids = list(self.missing_start(draft, encoded))
        labels = [IGNORED] * len(ids)
        over_edges = 0
        for piece, tokens in zip(draft.pieces, encoded, strict=True):
            ids += tokens.ids
            piece_labels, straddling = label_tokens(tokens.ids, tokens.offsets, piece.trained)
            labels += piece_labels
            over_edges += len(straddling)
        if draft.ends is not None and self.end_id is not None and ids[-1] != self.end_id:
            ids.append(self.end_id)
            labels.append(self.end_id if draft.ends else IGNORED)
        if all(label == IGNORED for label in labels[1:]):
            raise draft.origin.error(self.nothing_trained)
        counts = {**draft.counts, STRADDLING: over_edges} if over_edges else draft.counts
        return Example(ids, labels, draft.origin, counts)

    def missing_start(self, draft: Draft, encoded: Sequence[Encoded]) -> list[int]:
        """The start tokens, where the row is to have them and its text does not begin with them."""
        first = encoded[0].ids[: len(self.start_ids)] if encoded else []
        return self.start_ids if draft.starts and first != self.start_ids else []

    def _draft(self, record: Record) -> Draft | DataError:
        try:
            return self.draft(record)
        except DataError as error:
            return error

    def _finish(self, draft: Draft, encoded: Sequence[Encoded]) -> Example | DataError:
        try:
            return self.build(draft, encoded)
        except DataError as error:
            return error

    def _encode(self, drafts: Sequence[Draft]) -> list[list[Encoded]]:
        """The pieces of all drafts in one call, which uses all cores."""
        encodings = iter(self.encoder.encode_batch([piece.text for draft in drafts for piece in draft.pieces]))
        return [[Encoded(*next(encodings)) for _ in draft.pieces] for draft in drafts]

    def _check_marks(self, draft: Draft, encoded: Sequence[Encoded]) -> None:
        for piece, tokens in zip(draft.pieces, encoded, strict=True):
            if piece.marks is None or self.special.keys().isdisjoint(tokens.ids):
                continue
            for token, (start, end) in zip(tokens.ids, tokens.offsets, strict=True):
                name = self.special.get(token)
                place = piece.text.find(name, start, end) if name else -1
                # What the vocabulary cannot write becomes the unknown token, which is special and not in the text.
                if name is None or place < 0:
                    continue
                if not any(first <= place and place + len(name) <= last for first, last in piece.marks):
                    message = f"the tokenizer turns '{name}' into a special token, which a text should not have"
                    hint = "write `allow_special_tokens: true` into train_format if that token is meant"
                    raise draft.origin.error(message, hint)

    def _own_marks(self, draft: Draft, encoded: Sequence[Encoded]) -> list[str]:
        """Remarks on a text that begins or ends with the tokens that would else be added."""
        remarks = []
        if draft.starts and self.start_ids and not self.missing_start(draft, encoded):
            remarks.append("the text begins with the start token; no second one is put before it")
        if draft.ends is not None and encoded[-1].ids[-1:] == [self.end_id]:
            remarks.append("the text ends in the end token; no second one is put after it")
        return remarks

    def _name(self, token: int) -> str:
        return self.names.get(token, f"<{token}>")


def require_end_token(tokenizer: PreTrainedTokenizerBase, name: str, *hints: str) -> None:
    """Raise `ConfigError` for a tokenizer without the end token that the format `name` puts after each text."""
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        message = f"the tokenizer has no end token, which '{name}' puts after each text"
        raise ConfigError.at("model.tokenizer.eos_token", message, *hints)


def wrong_record(record: Record, name: str, takes: str, data_format: str) -> DataError:
    """The error for a record that the format `name` does not take."""
    return record.origin.error(
        f"'{name}' takes {takes}, and the data format makes a record of the kind {type(record).__name__}",
        f"choose a data format that makes {takes}, such as '{data_format}'",
    )


def count_missing(ids: Sequence[int], labels: Sequence[int], start: Sequence[int], end: int | None) -> dict[str, int]:
    """What rows written by the user lack, as counts: the end token among what is trained, the start token."""
    counts = {}
    if end is not None and end not in labels:
        counts[WITHOUT_END] = 1
    if start and list(ids[: len(start)]) != list(start):
        counts[WITHOUT_START] = 1
    return counts


def count_remarks(counts: Mapping[str, int]) -> list[str]:
    """The counts of one row in sentences, as far as they are not said otherwise."""
    return [_MEANING[name] for name in counts if name in _MEANING]
