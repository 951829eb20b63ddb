"""Finds a padding token for a tokenizer that has none: if possible a free one that costs no embedding row."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WELL_KNOWN = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<PAD>",
    "<|padding|>",
    "<|PAD|>",
    "[pad]",
    "<|finetune_right_pad_id|>",
    "<|vision_pad|>",
    "<|endoftext|>",
)
RESERVED = re.compile(
    r"[<\[]\|?(reserved_special_token|reserved_token|reserved|unused|unused_token|placeholder|extra)_?\d+\|?[>\]]"
)
NEW_TOKEN = "<|pad|>"


def set_pad_token(tokenizer: PreTrainedTokenizerBase, rows: int | None, taken: Collection[str]) -> str | None:
    """Give `tokenizer` a padding token and return a line that says which and why; None if there is no candidate.

    `rows` are those of the model's embeddings, if there is a model; the user has other plans for the tokens `taken`.
    Labels are never made from padding ids, so that a token with another meaning does no harm, only no good.
    """
    vocabulary = tokenizer.get_vocab()
    known = free_token(tokenizer, vocabulary, rows, taken)
    if known:
        return _set(tokenizer, known, "it is in the vocabulary and nothing else uses it")
    if rows is not None and NEW_TOKEN not in taken and max(vocabulary.values(), default=-1) + 1 < rows:
        return _set(tokenizer, NEW_TOKEN, "added in a spare row of the embeddings, which stay as they are")
    for name in ("unk_token", "eos_token"):
        token = getattr(tokenizer, name)
        if token is not None:
            return _set(tokenizer, token, f"the {name}, for want of a free one; padding is never trained on")
    return None


def free_token(
    tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int], rows: int | None, taken: Collection[str]
) -> str | None:
    """Return a token of the vocabulary that means padding or nothing; None if there is none."""
    template = str(tokenizer.chat_template or "")  # or several of them, by name
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token, *taken}

    def is_free(token: str) -> bool:
        fits = rows is None or vocabulary[token] < rows
        return fits and token not in used and token not in template

    reserved = sorted((token for token in vocabulary if RESERVED.fullmatch(token)), key=vocabulary.__getitem__)
    candidates = [token for token in WELL_KNOWN if token in vocabulary] + reserved
    return next((token for token in candidates if is_free(token)), None)


def _set(tokenizer: PreTrainedTokenizerBase, token: str, reason: str) -> str:
    tokenizer.add_special_tokens({"pad_token": token})
    return f"tokenizer: pad_token is '{token}' ({tokenizer.pad_token_id}): {reason}"
