"""Tokens of a text with the characters that each of them stands for."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from dumbo.data.masking import Span
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class OffsetEncoder:
    """Encodes text without special tokens around it, with exact offsets.

    Raises `ConfigError` for a tokenizer that knows no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            message = (
                f"{type(tokenizer).__name__} cannot tell which characters a token stands for, so labels are unsure"
            )
            raise ConfigError.at("model.tokenizer.path", message, "use a tokenizer that has a 'tokenizer.json'")
        backend = deepcopy(tokenizer.backend_tokenizer)
        # It would only cut the whitespace off the offsets (`trim_offsets`, as Llama 3 has it), so that a token which
        # reaches over the edge of a span seems to lie within.
        backend.post_processor = None
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Return token ids and, for each token, its characters in `text`."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets


def leading_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before a text: the id of its start token, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    places = range(len(whole) - len(plain) + 1)
    count = next((place for place in places if whole[place : place + len(plain)] == plain), 0)
    return list(whole[:count])
