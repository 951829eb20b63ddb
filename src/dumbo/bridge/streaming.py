"""Prints tokens as words while they are generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import TextStreamer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class WordStreamer(TextStreamer):
    """Hands text on, word by word, without the prompt and without special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        """`write` is given pieces of text that join to the answer."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pieces that will not change any more; the last one may be empty."""
        self._write(text)
