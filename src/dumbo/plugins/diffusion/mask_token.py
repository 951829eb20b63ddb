"""The token to mask with: found in the tokenizer, or added to it."""

from __future__ import annotations

from typing import Any

from dumbo.errors import ConfigError, RunError
from dumbo.plugins.diffusion.plugin import DiffusionOptions

DEFAULT = "<|diffusion_mask|>"


def set_mask_token(tokenizer: Any, options: DiffusionOptions) -> int:
    """Make the token that `options` name the tokenizer's mask token, with which it is saved; return its id.

    A token that is not there yet is added, as a special one; the run then fits the model's embeddings.

    Raises:
        ConfigError: it is an ordinary token, which texts may have, or has another part to play; there is no such id.
    """
    key, token = _wanted(tokenizer, options)
    known = tokenizer.get_vocab()
    if token in known:
        if known[token] not in _special_ids(tokenizer):
            message = f"'{token}' is an ordinary token, which texts may have"
            raise _refusal(key, message, "name a special token, or one that the tokenizer has not")
        for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
            if getattr(tokenizer, role, None) == token:
                raise _refusal(key, f"'{token}' is the tokenizer's {role}", "name another one")
    if tokenizer.mask_token != token:
        tokenizer.add_special_tokens({"mask_token": token})
    number = mask_token_id(tokenizer)
    # Where ids have gaps, the library may count tokens instead of taking the next id.
    others = [other for other, taken in known.items() if taken == number and other != token]
    if others:
        message = f"the tokenizer, whose ids have gaps, gives the new token '{token}' the id {number} of '{others[0]}'"
        raise _refusal(key, message, "name a special token that it has")
    return number


def mask_token_id(tokenizer: Any) -> int:
    """The id of the mask token of a tokenizer that training has left.

    Raises:
        RunError: it has none.
    """
    found = tokenizer.mask_token_id if getattr(tokenizer, "mask_token", None) else None
    if found is None:
        raise RunError("diffusion: the tokenizer has no mask token; its files are not those of the training")
    return int(found)


def _wanted(tokenizer: Any, options: DiffusionOptions) -> tuple[str, str]:
    """The key that names it, and the token."""
    number = options.mask_token_id
    if number is not None:
        # Not vocab_size: tokens that were added, as most special ones are, do not count there.
        tokens = {taken: token for token, taken in tokenizer.get_vocab().items()}
        if number not in tokens:
            gaps = ", with gaps" if len(tokens) <= max(tokens) else ""
            message = f"the tokenizer has no token {number}; its ids are {min(tokens)} to {max(tokens)}{gaps}"
            raise _refusal("mask_token_id", message, f"or write mask_token_str: '{DEFAULT}', which is then added")
        return "mask_token_id", str(tokens[number])
    if options.mask_token_str is not None:
        return "mask_token_str", options.mask_token_str
    return "mask_token_str", str(getattr(tokenizer, "mask_token", None) or DEFAULT)


def _special_ids(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _refusal(option: str, message: str, *hints: str) -> ConfigError:
    return ConfigError.at(f"trainer.diffusion.{option}", message, *hints)
