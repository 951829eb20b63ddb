"""End tokens behind the rows of the training set that end: what padding is in LLaDA's supervised training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dumbo.data.dataset import TokenBlock, TokenDataset
from dumbo.data.records import IGNORED
from dumbo.errors import RunError


def pad_ends(
    dataset: TokenDataset, tokenizer: Any, most: int, longest: int | None, seed: int, say: Callable[[str], None]
) -> TokenDataset:
    """The rows, of which those whose last trained token is a special one have 0 to `most` more of it, all trained.

    What such a row has behind that token (a line break of its template) is left out. None gets longer than `longest`.
    LLaDA (Nie et al. 2025, arXiv 2502.09992), section 2.3, pads answers to the same length with end tokens, which are
    learned; here each row has its own number, so that packed rows learn it, too.
    """
    if not most or not len(dataset):
        return dataset
    if dataset.column_types:
        raise RunError("diffusion: rows with columns beside their tokens (weights, a teacher's) are not known to it")
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    draws = np.random.default_rng([seed, 0xE0D]).integers(0, most + 1, len(dataset))
    tokens, trained, lengths, ended = [], [], np.zeros(len(dataset), np.int32), 0
    for index in range(len(dataset)):
        row = dataset[index]
        ids, labels = row["input_ids"], row["labels"]
        is_trained: NDArray[np.bool_] = labels != IGNORED
        last = int(np.flatnonzero(is_trained)[-1]) if is_trained.any() else -1
        if last >= 0 and int(ids[last]) in special:
            drawn = int(draws[index])
            count = drawn if longest is None else max(0, min(drawn, longest - last - 1))
            end = np.full(count, ids[last], np.int32)
            ids = np.concatenate([ids[: last + 1], end])
            is_trained = np.concatenate([is_trained[: last + 1], np.ones(count, np.bool_)])
            ended += 1
        tokens.append(ids)
        trained.append(is_trained)
        lengths[index] = len(ids)
    if not ended:
        say("diffusion: no row ends in an end token that is trained: the model does not learn where a text ends")
        return dataset
    block = TokenBlock(np.concatenate(tokens), np.concatenate(trained))
    padded = TokenDataset.of_blocks([block], [lengths])
    added = padded.num_tokens - dataset.num_tokens
    say(f"diffusion: {added:,} end tokens more behind {ended:,} rows, by which the model learns to leave room empty")
    return replace(padded, source=dataset.source)
