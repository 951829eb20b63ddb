"""Tokens of a text with the characters that each of them stands for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from dumbo.data.masking import Span
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


_LONGEST_CHARACTER = 8
"""Tokens that may be one character before each is shown as it is."""


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

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """As `encode`, for many texts at once, on all cores."""
        return [(encoding.ids, encoding.offsets) for encoding in self.start_batch(texts)]

    def start_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """What `encode_batch` makes its lists of. While it runs, other threads of Python do."""
        encodings: list[Encoding] = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return encodings


def leading_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before a text: the id of its start token, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    places = range(len(whole) - len(plain) + 1)
    count = next((place for place in places if whole[place : place + len(plain)] == plain), 0)
    return list(whole[:count])


def cut_texts(text: str, offsets: Sequence[Span]) -> list[str]:
    """The text of each token by its characters in `text`; a character of several tokens is the first one's."""
    texts, position = [], 0
    for start, end in offsets:
        texts.append(text[max(start, position) : end])
        position = max(position, end)
    return texts


def decode_each(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text of each token as it stands in its row, where the text that they were made of is not known; a character
    of several tokens is the first one's."""

    def decode(ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)

    texts = [""] * len(input_ids)
    start = 0
    for end in range(1, len(input_ids) + 1):
        # Many decoders leave out the space before a first word: with the token before it, it is not the first.
        before = decode(input_ids[start - 1 : start]) if start else ""
        whole = decode(input_ids[max(start - 1, 0) : end])
        text = whole[len(before) :] if whole.startswith(before) else decode(input_ids[start:end])
        if text.endswith("\ufffd") and end < len(input_ids) and end - start < _LONGEST_CHARACTER:
            continue  # The rest of a character is perhaps in the next token.
        texts[start] = text
        start = end
    return tuple(texts)
