"""Rows that are longer than the model or the configuration allows, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.data.dataset import TokenDataset
from dumbo.data.encoded import EncodedRows
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from dumbo.config.schema import RunConfig

WAYS_OUT = (
    "write trainer.data.too_long: drop, truncate or split, or raise trainer.data.sequence_length",
    "'drop' leaves such rows out, 'truncate' cuts their ends off, 'split' cuts them into several",
)
"""What to do where rows are too long."""


@dataclass(frozen=True)
class Fitted:
    """Rows that fit, and what was done for it."""

    dataset: TokenDataset
    origin: NDArray[np.int64]
    """Of each row, the number of the one that it is, or is a piece of."""
    too_long: int = 0
    """Rows that were too long, of those that were looked at."""
    emptied: int = 0
    """Pieces that were left out because cutting left nothing to train in them."""


def fit_lengths(
    rows: EncodedRows,
    kept: NDArray[np.bool_] | None,
    limit: int | None,
    policy: str,
    exempt: NDArray[np.bool_] | None = None,
) -> Fitted:
    """The `kept` rows (None for all), none longer than `limit` tokens (None for any), by `trainer.data.too_long`;
    those that are `exempt` may be of any length.

    Raises:
        DataError: there are longer ones, and the policy is `error`; it names the first.
    """
    import numpy as np

    dataset = rows.dataset
    chosen = np.arange(len(dataset)) if kept is None else np.flatnonzero(kept)
    if limit is None:
        return Fitted(dataset.select(chosen), chosen)
    over = int((dataset.length[chosen] > limit).sum())
    most = np.full(len(dataset), limit) if exempt is None else np.where(exempt, dataset.length, limit)
    too_long = chosen[dataset.length[chosen] > most[chosen]]
    if not len(too_long):
        return Fitted(dataset.select(chosen), chosen, over)
    if policy == "error":
        count = "1 row is" if len(too_long) == 1 else f"{len(too_long)} rows are"
        longest = dataset.length[too_long].max()
        message = f"{count} longer than {limit} tokens (the longest has {longest}); this is the first"
        raise rows.origin(int(too_long[0])).error(message, *WAYS_OUT)
    pieces = np.ones(len(dataset), np.int64)
    needed = -(-dataset.length[too_long] // limit)
    pieces[too_long] = needed if policy == "split" else 1 if policy == "truncate" else 0
    pieces = pieces[chosen]
    origin = np.repeat(chosen, pieces)
    first = (np.arange(len(origin)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * limit
    length = np.minimum(dataset.length[origin] - first, most[origin]).astype(np.int32)
    cut = dataset.select(origin).cut(first, length)
    # What is left of a row may have nothing to train; rows that were not cut always have something.
    was_cut = np.flatnonzero(dataset.length[origin] > most[origin])
    empty = was_cut[cut.select(was_cut).supervised == 0]
    kept = np.delete(np.arange(len(origin)), empty)
    return Fitted(cut.select(kept), origin[kept], over, len(empty))


def sequence_length(config: RunConfig, model: PreTrainedModel) -> int | None:
    """The longest sequence in tokens: the one that the user wants, else the model's limit, if it has one.

    Raises:
        ConfigError: the user wants more than the model has positions for.
    """
    return longest_sequence(config, model_limit(model))


def longest_sequence(config: RunConfig, possible: int | None) -> int | None:
    """As `sequence_length`, for a model that takes `possible` tokens (None: any number, or nobody knows)."""
    wanted = config.trainer.data.sequence_length
    if wanted is not None and possible is not None and wanted > possible:
        hint = "write less, or stretch the model by model.config_overrides: {max_position_embeddings: ...}"
        raise ConfigError.at("trainer.data.sequence_length", f"the model takes at most {possible} tokens", hint)
    return wanted if wanted is not None else possible


def model_limit(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for, by its configuration; None where it names no limit."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
