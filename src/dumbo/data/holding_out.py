"""Which rows are evaluated on, and which come a second time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dumbo.data.encoded import EncodedRows
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dumbo.config.schema import DatasetEntry, RunConfig


def choose_held_out(
    encoded: Sequence[EncodedRows], kept: Sequence[NDArray[np.bool_] | None], config: RunConfig
) -> list[NDArray[np.bool_]]:
    """Of each source, the rows to hold out: whole sources, and of the others' `kept` rows (None for all) a choice that
    depends on the seed and the number of rows alone.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    import numpy as np

    pairs = zip(encoded, config.datasets, strict=True)
    held_out = [np.full(len(rows.dataset), entry.held_out) for rows, entry in pairs]
    size = config.trainer.data.val_set_size
    if not size:
        return held_out
    others = [source for source, entry in enumerate(config.datasets) if not entry.held_out]
    known = [kept[source] for source in others]
    rows = [
        np.arange(len(held_out[source])) if is_kept is None else np.flatnonzero(is_kept)
        for source, is_kept in zip(others, known, strict=True)
    ]
    total = sum(map(len, rows))
    count = size if isinstance(size, int) else max(1, round(size * total))
    if count >= total:
        message = f"there are only {total} rows, and some must be left to train on"
        raise ConfigError.at("trainer.data.val_set_size", message)
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng([config.trainer.seed, 2**31]).permutation(total)[:count]] = True
    for source, of_source, is_chosen in zip(
        others, rows, np.split(chosen, np.cumsum([*map(len, rows)])[:-1]), strict=True
    ):
        held_out[source][of_source[is_chosen]] = True
    return held_out


def first_of_each(encoded: Sequence[EncodedRows], entries: Sequence[DatasetEntry]) -> list[NDArray[np.bool_]]:
    """Of each source, the rows whose tokens and labels no earlier row has. Sources that are held out go first, so that
    no row is trained on that is evaluated on."""
    import numpy as np

    sources = sorted(range(len(encoded)), key=lambda source: not entries[source].held_out)
    digests = np.concatenate([encoded[source].rows["digest"] for source in sources])
    starts = np.cumsum([0, *(len(encoded[source].dataset) for source in sources)])
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    kept = [np.ones(len(rows.dataset), bool) for rows in encoded]

    def place(number: int) -> tuple[int, int]:
        before = int(np.searchsorted(starts, number, "right")) - 1
        return sources[before], number - int(starts[before])

    for number in np.flatnonzero(first[inverse] != np.arange(len(digests))).tolist():
        (source, row), (other, same) = place(number), place(int(first[inverse[number]]))
        # Two rows may have one digest, if it is a chance of one in many millions.
        kept[source][row] = not encoded[source].is_same(row, encoded[other], same)
    return kept
