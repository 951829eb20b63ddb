"""Tokens of a text with the characters that each of them stands for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from dumbo.data.cuts import find_cuts
from dumbo.data.masking import Span
from dumbo.data.word_cache import FlatTokens, WordCache, flatten
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


_LONGEST_CHARACTER = 8
"""Tokens that may be one character before each is shown as it is."""
_FIRST_CHECKED = 32
_CHECKED_EVERY = 512
"""Texts that are encoded as a whole, too: cutting them is proven, and this would show an error in the proof."""


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
        cuts = find_cuts(backend)
        self._words = WordCache(backend, cuts) if cuts is not None else None
        self._num_seen = 0

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Return token ids and, for each token, its characters in `text`."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """As `encode`, for many texts at once, on all cores."""
        return [(encoding.ids, encoding.offsets) for encoding in self._encode(texts)]

    def encode_flat(self, texts: Sequence[str]) -> FlatTokens:
        """As `encode_batch`, as arrays: with each word of the texts encoded once, where texts can be cut into words."""
        import numpy as np

        if self._words is None or not texts:
            return flatten(self._encode(texts), texts)
        tokens = self._words.encode(texts)
        due = [place for place in range(len(texts)) if self._is_due(self._num_seen + place)]
        self._num_seen += len(texts)
        for place, encoding in zip(due, self._encode([texts[place] for place in due]), strict=True):
            ours = slice(*tokens.rows[place : place + 2])
            expected = flatten([encoding], [texts[place]])
            start = tokens.places[place]
            found = np.stack([tokens.ids[ours], tokens.starts[ours] - start, tokens.ends[ours] - start])
            if not np.array_equal(found, np.stack([expected.ids, expected.starts, expected.ends])):
                self._words = None
                warnings.warn("texts are tokenised whole, as their words give other tokens than they do", stacklevel=2)
                return flatten(self._encode(texts), texts)
        return tokens

    def _is_due(self, number: int) -> bool:
        """Whether a text is encoded as a whole too, to see that the tokens are the same."""
        return number < _FIRST_CHECKED or number % _CHECKED_EVERY == 0

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        encodings: list[Encoding] = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return encodings


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: tokenizers fail on halves of characters, for all texts of a batch."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
