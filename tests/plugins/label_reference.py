"""Labels worked out the slow way: templates written again in Python as segments, a decision for every character, and
tokens laid over the text by their bytes. Nothing here renders Jinja or follows where a text came from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from transformers.convert_slow_tokenizer import bytes_to_unicode

from dumbo.data.records import IGNORED, Conversation, Message, MessageTraining
from tests.plugins.chat_labels import SPECIAL


class Segment(NamedTuple):
    """A piece of a conversation's text."""

    text: str
    message: int | None = None
    """Whose it is; None: the template's own, between messages."""
    kind: str = "header"
    """`header`; `text`, a message's own; `body`, the template's within an answer; `eot`; `between`; `eos`."""
    name: str = ""
    """Of a `text`: `content`, `reasoning` or `call`."""
    start: int = 0
    """Of a `text`: the number of its first character in the message."""
    generated: bool = False


@dataclass(frozen=True)
class Choice:
    """What a train format is told."""

    whole_text: bool = False
    roles: tuple[str, ...] = ("assistant",)
    eos: str | None = None
    eot: str | None = None
    hidden: str = "mask"
    marked: bool = False
    appends_eos: str = ""
    """The end token that `jinja_messages` puts after the text; a chat template has none."""


class Labels(NamedTuple):
    """What is to come out."""

    labels: list[int]
    straddling: int
    says_nothing: bool
    """No message is trained: the row is refused."""


Writer = Callable[[Conversation], list[Segment]]


def own(message: Message, index: int, name: str, strip: str = "", generated: bool = False) -> Segment:
    """A text of a message; `strip` as `lr` for both ends, with `\\n` for line breaks alone."""
    key = "reasoning_content" if name == "reasoning" else name
    text = message[key]
    chars = "\n" if "\n" in strip else None
    kept = text.lstrip(chars) if "l" in strip else text
    start = len(text) - len(kept)
    return Segment(kept.rstrip(chars) if "r" in strip else kept, index, "text", name, start, generated)


def hides_thought(segments: list[Segment], conversation: Conversation, index: int) -> bool:
    thought = conversation.messages[index].get("reasoning_content", "")
    return bool(thought.strip()) and not any(part.message == index and part.name == "reasoning" for part in segments)


class _Decision:
    """What is trained of one conversation."""

    def __init__(self, segments: list[Segment], conversation: Conversation, choice: Choice) -> None:
        self.choice = choice
        count = len(conversation.messages)
        self.roles = [message["role"] for message in conversation.messages]
        self.training = conversation.training or (MessageTraining(),) * count
        self.flags = [self._flag(index) for index in range(count)]
        hidden = [not choice.whole_text and hides_thought(segments, conversation, index) for index in range(count)]
        self.trained = [
            index for index in range(count) if self._trains(index) and not (hidden[index] and choice.hidden == "mask")
        ]
        self.refused = choice.hidden == "error" and any(hidden[index] and self._trains(index) for index in range(count))

    def _flag(self, index: int) -> bool:
        told = self.training[index].train
        return (self.choice.whole_text or self.roles[index] in self.choice.roles) if told is None else told

    def _trains(self, index: int) -> bool:
        told, flag = self.training[index], self.flags[index]
        if told.train is False:
            return False
        ranges = [*told.content, *told.reasoning]
        return any(flag if extent.train is None else extent.train for extent in ranges) or (flag and not told.content)

    def character(self, segment: Segment, place: int) -> bool:
        """Whether the character number `place` of a segment is trained."""
        index = segment.message
        if index is None:
            return self.choice.whole_text
        if segment.kind == "between":
            return self.choice.whole_text or (self._ends(segment, "eot") and self._ends(segment, "eos"))
        if segment.kind in ("eot", "eos"):
            return self._ends(segment, segment.kind)
        if index not in self.trained:
            return False
        told = self.training[index]
        if not told.content and not told.reasoning:
            marks_decide = self.choice.marked and self.roles[index] == "assistant" and not self.choice.whole_text
            return segment.generated if marks_decide else True
        if segment.kind == "body":
            return False
        ranges = {"content": told.content, "reasoning": told.reasoning}.get(segment.name, ())
        if not ranges:
            return self.flags[index]
        return any(
            (self.flags[index] if extent.train is None else extent.train)
            for extent in ranges
            if extent.start <= segment.start + place < extent.end
        )

    def _ends(self, segment: Segment, kind: str) -> bool:
        index, choice = segment.message, self.choice
        mode = (choice.eot or choice.eos) if kind == "eot" else choice.eos
        if kind == "eot" and segment.text == "</s>":  # turns end in the tokenizer's end token
            mode = choice.eos or choice.eot
        if mode is None and choice.marked and self.roles[index] == "assistant":
            return index in self.trained and (segment.generated or choice.whole_text)
        chosen = {"turn": self.trained, "all": [index], "last": self.trained[-1:], "none": []}
        return index in chosen[mode or "turn"]


def reference_labels(
    tokenizer, segments: list[Segment], conversation: Conversation, choice: Choice, input_ids: list[int]
) -> Labels:
    """The labels of `input_ids`, which must be the tokens of the segments' text."""
    decision = _Decision(segments, conversation, choice)
    says_nothing = decision.refused or not (decision.trained or choice.whole_text)
    flags = [decision.character(part, place) for part in segments for place in range(len(part.text))]
    text = "".join(part.text for part in segments)
    tail: list[bool] = []
    if choice.appends_eos and not text.rstrip().endswith(choice.appends_eos):
        last = max((place + 1 for place, flag in enumerate(flags) if flag), default=0)
        follows = bool(last) and not text[last:].strip() and choice.eos != "none"
        if follows:
            flags[last:] = [True] * (len(text) - last)
        tail = [follows or choice.eos == "all"]
    ids = input_ids[: len(input_ids) - len(tail)]
    decided = list(_token_flags(tokenizer, text, flags, ids))
    labels = [token if all(own) else IGNORED for token, own in zip(ids, decided, strict=True)]
    labels += [tokenizer.eos_token_id if flag else IGNORED for flag in tail]
    return Labels(labels, sum(any(own) and not all(own) for own in decided), says_nothing)


def _token_flags(tokenizer, text: str, flags: list[bool], input_ids: list[int]) -> Iterator[list[bool]]:
    """For each token what is decided of each of its bytes; never nothing."""
    written = text.encode()
    of_bytes = [flag for character, flag in zip(text, flags, strict=True) for _ in character.encode()]
    position = 0
    for token in input_ids:
        mine = token_bytes(tokenizer, token)
        # A tokenizer may write a space of its own before the first word, or after a special token.
        length = len(mine) if written.startswith(mine, position) else len(mine) - 1
        assert written.startswith(mine[len(mine) - length :], position)
        # A token of that space alone has no character: it goes with what follows.
        yield of_bytes[position : position + length] or [of_bytes[position] if position < len(of_bytes) else False]
        position += length
    assert position == len(written)


@cache
def token_bytes(tokenizer, token: int) -> bytes:
    """The bytes of the text that a token stands for, from its name alone."""
    name = tokenizer.convert_ids_to_tokens(token)
    is_byte = name.startswith("<0x") and len(name) == 6
    if name in SPECIAL or (name in tokenizer.get_added_vocab() and not is_byte):
        return name.encode()
    if "▁" in tokenizer.get_vocab():
        return bytes([int(name[3:5], 16)]) if is_byte else name.replace("▁", " ").encode()
    back = {char: byte for byte, char in bytes_to_unicode().items()}
    return bytes(back[char] for char in name)
