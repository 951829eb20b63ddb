"""Prompts as token ids: of rows as they are trained, and of messages, exactly as the run's train format writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from dumbo.blame import describe
from dumbo.data.prompts import STAND_INS, shared_start
from dumbo.data.records import IGNORED, Conversation, Origin, Text, TrainFormat
from dumbo.data.train_format import TrainFormatter
from dumbo.errors import DataError, DumboError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.data.dataset import TokenDataset

_ORIGIN = Origin("the prompt", 1)


@dataclass(frozen=True, slots=True)
class RowPrompt:
    """The last answer of a row and all that stands before it."""

    input_ids: list[int]
    reference: list[int]


def row_prompt(row: Mapping[str, Any]) -> RowPrompt | None:
    """Cut a row of a `TokenDataset` before its last trained span; None where nothing stands before that one.

    The first token of a row is never trained, so a row that is trained as a whole has one token before its span, which
    is no prompt.
    """
    ids, labels = [int(token) for token in row["input_ids"]], row["labels"]
    end = len(ids)
    while end > 0 and labels[end - 1] == IGNORED:
        end -= 1
    start = end
    while start > 0 and labels[start - 1] != IGNORED:
        start -= 1
    return RowPrompt(ids[:start], ids[start:end]) if start > 1 and start < end else None


def row_prompts(dataset: TokenDataset, limit: int | None = None) -> list[RowPrompt]:
    """The prompts of up to `limit` rows, chosen at random and always the same ones; rows without one are left out."""
    chosen: Sequence[int] = range(len(dataset))
    if limit is not None and len(dataset) > limit:
        # Not every so many rows: where sources take turns, those would all be of one kind.
        chosen = sorted(Random(0).sample(chosen, limit))
    return [prompt for index in chosen if (prompt := row_prompt(dataset[index])) is not None]


class PromptWriter:
    """Writes messages as token ids up to the place where the answer begins."""

    def __init__(self, encode: TrainFormat, tokenizer: PreTrainedTokenizerBase) -> None:
        """`encode` is the train format whose rows the model knows."""
        self._encode, self._tokenizer = encode, tokenizer

    def write(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of `messages` with the header of an answer, as a row of training has them.

        Raises:
            DataError: the format cannot write these messages.
        """
        if isinstance(self._encode, TrainFormatter):
            written = self._encode.write_prompt(messages)
            if written is not None:
                return written
        rows = [self._row(messages, answer) for answer in STAND_INS]
        if all(row == rows[0] for row in rows):
            raise _left_out("the answer to these messages")
        if self._leaves_out_last(messages, rows[0]):
            raise _left_out("the last of these messages")
        return shared_start(rows)

    def end_ids(self) -> list[int]:
        """The special token with which the format ends an answer, where it has one."""
        rows = next(self._made_up_rows(), [])
        tail = shared_start(rows)[::-1]
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        return tail[:1] if tail and tail[0] in special else []

    def _made_up_rows(self) -> Iterator[list[list[int]]]:
        """Rows of a question, backwards; the format may want a system message before it."""
        for roles in (["user"], ["system", "user"]):
            messages = [{"role": role, "content": "?"} for role in roles]
            with suppress(DumboError):
                yield [self._row(messages, answer)[::-1] for answer in STAND_INS]

    def _leaves_out_last(self, messages: Sequence[Mapping[str, Any]], row: list[int]) -> bool:
        """Whether the text of the last message makes no difference to its row."""
        *before, last = messages
        try:
            return all(self._row([*before, {**last, "content": text}], STAND_INS[0]) == row for text in STAND_INS)
        except DumboError:  # it reads the text, and does not like it
            return False

    def _row(self, messages: Sequence[Mapping[str, Any]], answer: str) -> list[int]:
        conversation = Conversation((*messages, {"role": "assistant", "content": answer}), _ORIGIN)
        try:
            return list(self._encode(conversation).input_ids)
        except DumboError:
            raise
        except Exception as error:  # a format of a user's own may fail in any way it likes
            message = f"the train format cannot write these messages: {describe(error)}"
            raise _ORIGIN.error(message) from error


def writer_for(encode: TrainFormat, tokenizer: PreTrainedTokenizerBase) -> PromptWriter | PlainPromptWriter:
    """What writes prompts for a model that was trained on `encode`'s rows: of conversations, unless it takes texts.

    A format may refuse a question alone and take one behind a system message: what it refuses is for `write` to say.
    """
    writer = PromptWriter(encode, tokenizer)
    try:
        writer.write([{"role": "user", "content": "?"}])
    except DumboError:
        return PlainPromptWriter(tokenizer) if _takes_text(encode) else writer
    return writer


def _takes_text(encode: TrainFormat) -> bool:
    try:
        return bool(encode(Text("?", _ORIGIN)).input_ids)
    except Exception:  # what takes conversations may fail on a text in any way it likes
        return False


def _left_out(what: str) -> DataError:
    hint = "it was written for other conversations: with a system message, or without, or of one question"
    return _ORIGIN.error(f"the run's train format leaves out {what}", hint)


class PlainPromptWriter:
    """Writes a text as it is, for models whose training knows no conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def write(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of the one message's text, with what the tokenizer puts before a text.

        Raises:
            DataError: there is more than one message.
        """
        if len(messages) != 1:
            message = "this model was trained on plain text: it takes one text, not a conversation"
            raise _ORIGIN.error(message)
        ids = list(self._tokenizer(messages[0]["content"])["input_ids"])
        return ids[:-1] if ids and ids[-1] == self._tokenizer.eos_token_id else ids

    def end_ids(self) -> list[int]:
        """None: the tokenizer's own end token is known without."""
        return []
