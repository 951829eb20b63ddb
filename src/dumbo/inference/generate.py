"""Generates text from a model as it is at that moment, in batches, without changing its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dumbo.errors import DumboError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS_AT_ONCE = 16_384
"""Prompt and answer tokens of one batch: about 1 GiB of keys and values in a model of 1B parameters."""


class Writer(Protocol):
    """Writes messages as token ids (`dumbo.inference.prompting`)."""

    def write(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids up to the place where the answer begins."""
        ...

    def end_ids(self) -> list[int]:
        """Tokens that end an answer beside the tokenizer's own."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the likeliest at temperature 0, else drawn. A generator says which of it has no effect."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    steps: int | None = None
    """Forward passes, of generators that write several tokens in one; None for what the model's files say."""
    block_length: int | None = None
    """Tokens that such a generator finishes before it goes on to the next; None for what the model's files say."""

    def options(self) -> dict[str, Any]:
        """As values of Transformers' `GenerationConfig`."""
        penalty = {"repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **penalty}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return drawn | penalty


GREEDY = Sampling()


@dataclass(frozen=True)
class Reply:
    """What came of a user's words."""

    text: str
    asked: str | None
    """What the model was asked, as a conversation is to remember it; None where this was no turn of one."""
    note: str = ""
    """To be told before the text."""
    pieces: tuple[tuple[str, bool | None], ...] = ()
    """The text, where nothing of it was streamed, in pieces: each right, wrong, or (None) not the model's own."""


class TextGenerator:
    """Writes with a model and its tokenizer, from left to right; plugins derive generators of their own from it."""

    way: ClassVar[str] = "from left to right, a token at a time"
    ignores: ClassVar[frozenset[str]] = frozenset({"steps", "block_length"})
    """What of a `Sampling` it can do nothing with."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, writer: Writer) -> None:
        """`model` has Transformers' `generate`."""
        self.model, self.tokenizer, self._writer = model, tokenizer, writer

    def draws(self, text: str | None = None) -> bool:
        """Whether a user's words, or any that could be, ask for something to be drawn beside the tokens."""
        return False

    def is_literal(self, text: str) -> bool:
        """Whether the whitespace around a user's words, and around what answers them, says something."""
        return False

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of messages, as the model knows them from its training, up to where the answer begins.

        Raises:
            DataError: the format cannot write these messages.
        """
        return self._writer.write(messages)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text for people, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def answers(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling = GREEDY
    ) -> list[list[int]]:
        """The ids that the model writes after each prompt, up to an end token (left out) or `max_new_tokens`.

        An answer ends where the model's context does; after a prompt that fills it there is none.
        """
        rooms = [self._room(prompt, max_new_tokens) for prompt in prompts]
        order = sorted((index for index, room in enumerate(rooms) if room), key=lambda index: len(prompts[index]))
        answers: list[list[int]] = [[] for _ in prompts]
        with self.evaluating():
            for batch in token_batches(order, [len(prompt) for prompt in prompts], rooms):
                written = self._generate([prompts[index] for index in batch], rooms[batch[0]], sampling)
                for index, ids in zip(batch, written, strict=True):
                    answers[index] = ids
        return answers

    def stream(self, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling, streamer: Any) -> list[int]:
        """The answer to one prompt; `streamer` (of Transformers) is given every token as soon as it is there.

        Raises:
            DumboError: the prompt is empty, or the model has no room for an answer behind it.
        """
        if not prompt:
            raise DumboError("the prompt is empty: there is nothing to go on from")
        room = self._room(prompt, max_new_tokens)
        if not room:
            limit = self.context_length
            raise DumboError(f"the prompt has {len(prompt)} tokens, and the model takes {limit} with its answer")
        with self.evaluating():
            return self._generate([prompt], room, sampling, streamer=streamer)[0]

    def reply(
        self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int, sampling: Sampling, streamer: Any
    ) -> Reply:
        """Answer what a user wrote last, which may hold commands that a generator knows; as `stream` otherwise."""
        ids = self.stream(self.prompt(messages), max_new_tokens, sampling, streamer)
        return Reply(self.text(ids).strip(), messages[-1]["content"])

    @property
    def context_length(self) -> int | None:
        """The most tokens that the model was made for, where its configuration says so."""
        config = getattr(self.model, "config", None)
        text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
        found = getattr(text, "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def _room(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """The tokens that the answer to `prompt` may take."""
        limit = self.context_length
        return max_new_tokens if limit is None else max(0, min(max_new_tokens, limit - len(prompt)))

    def reads_system(self, text: str) -> bool:
        """Whether `text` reaches the model as a system message; a template may leave those out.

        Raises:
            DataError: the format cannot write one.
        """

        def prompt(system: str) -> list[int]:
            return self.prompt([*_system(system), {"role": "user", "content": "?"}])

        written = prompt(text)
        try:
            return any(prompt(other) != written for other in ("A", "7"))
        except Exception:  # it reads the other text, and does not like it
            return True

    def keeps_turns(self, system: str | None = None) -> bool:
        """Whether prompts have all messages of a conversation in them; a template may know only the first."""
        turns = [*_system(system), {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        try:
            first, second = (self.prompt([*turns, {"role": "user", "content": text}]) for text in ("A", "7"))
        except Exception:  # templates run arbitrary expressions, and refuse in any way they like
            return False
        return first != second

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model without dropout and gradients for a while."""
        import torch

        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def end_ids(self) -> list[int]:
        """The tokens that end an answer."""
        own = [getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)]
        nested = [*own, self.tokenizer.eos_token_id, self._format_ends]
        flat = [token for ids in nested for token in (ids if isinstance(ids, list) else [ids])]
        return list(dict.fromkeys(int(token) for token in flat if token is not None))

    @cached_property
    def _format_ends(self) -> list[int]:
        """The format's own, for which rows are written."""
        return self._writer.end_ids()

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling, **more: Any
    ) -> list[list[int]]:
        import torch

        from dumbo.bridge.generation import generate

        ends = self.end_ids()
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else (ends[0] if ends else 0)
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = next(self.model.parameters()).device
        ending = {"max_new_tokens": max_new_tokens, "pad_token_id": pad, "eos_token_id": ends or None}
        options = sampling.options() | ending | {"use_cache": True}
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        written = generate(self.model, options, **inputs, **more)
        stops = set(ends)
        return [_until(row[width:].tolist(), stops) for row in written]


def _until(ids: list[int], stops: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stops:
            return ids[:position]
    return ids


def _system(text: str | None) -> list[dict[str, str]]:
    return [] if text is None else [{"role": "system", "content": text}]


def token_batches(order: Sequence[int], lengths: Sequence[int], rooms: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches whose longest row, with its answer, times their number stays under the limit.

    `order` is by length. Answers of a batch have the same room, so that none is cut for the sake of a longer prompt.
    """
    batch: list[int] = []
    for index in order:
        tokens = (lengths[index] + rooms[index]) * (len(batch) + 1)
        if batch and (tokens > _TOKENS_AT_ONCE or rooms[index] != rooms[batch[0]]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
