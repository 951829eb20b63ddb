"""Generates text from a model as it is at that moment, in batches, without changing its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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
    """How the next token is chosen: the likeliest at temperature 0, else drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def options(self) -> dict[str, Any]:
        """As keywords of `generate`; all are written, so that none comes from the model's own files."""
        penalty = {"repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **penalty}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return drawn | penalty


GREEDY = Sampling()


class TextGenerator:
    """Writes with a model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, writer: Writer) -> None:
        """`model` has Transformers' `generate`."""
        self.model, self.tokenizer, self._writer = model, tokenizer, writer

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
        """The ids that the model writes after each prompt, up to an end token (left out) or `max_new_tokens`."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: list[list[int]] = [[] for _ in prompts]
        with _evaluating(self.model):
            for batch in _batches(order, [len(prompt) + max_new_tokens for prompt in prompts]):
                written = self._generate([prompts[index] for index in batch], max_new_tokens, sampling)
                for index, ids in zip(batch, written, strict=True):
                    answers[index] = ids
        return answers

    def stream(self, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling, streamer: Any) -> list[int]:
        """The answer to one prompt; `streamer` (of Transformers) is given every token as soon as it is there.

        Raises:
            DumboError: the model has no room for an answer behind this prompt.
        """
        limit = self.context_length
        if limit is not None and len(prompt) >= limit:
            raise DumboError(f"the prompt has {len(prompt)} tokens, and the model takes {limit} with its answer")
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt))
        with _evaluating(self.model):
            return self._generate([prompt], room, sampling, streamer=streamer)[0]

    @property
    def context_length(self) -> int | None:
        """The most tokens that the model was made for, where its configuration says so."""
        config = getattr(self.model, "config", None)
        text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
        found = getattr(text, "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def keeps_turns(self) -> bool:
        """Whether prompts have all messages of a conversation in them; a template may know only the first."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        try:
            first, second = (self.prompt([*turns, {"role": "user", "content": text}]) for text in ("A", "7"))
        except Exception:  # templates run arbitrary expressions, and refuse in any way they like
            return False
        return first != second

    def end_ids(self) -> list[int]:
        """The tokens that end an answer."""
        own = [getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)]
        nested = [*own, self.tokenizer.eos_token_id, self._writer.end_ids()]
        flat = [token for ids in nested for token in (ids if isinstance(ids, list) else [ids])]
        return list(dict.fromkeys(int(token) for token in flat if token is not None))

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling, **more: Any
    ) -> list[list[int]]:
        import torch

        ends = self.end_ids()
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else (ends[0] if ends else 0)
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = next(self.model.parameters()).device
        written = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends or None,
            use_cache=True,
            **sampling.options(),
            **more,
        )
        stops = set(ends)
        return [_until(row[width:].tolist(), stops) for row in written]


def _until(ids: list[int], stops: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stops:
            return ids[:position]
    return ids


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches whose longest row times their number stays under the limit; `order` is by length."""
    batch: list[int] = []
    for index in order:
        if batch and lengths[index] * (len(batch) + 1) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The model without dropout and gradients for a while."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
