"""The table that tells what became of each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.console import Console
from dumbo.data.dataset import TokenDataset
from dumbo.data.encoded import EncodedRows
from dumbo.data.lengths import Fitted
from dumbo.data.mixing import Mixture
from dumbo.data.sources import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dumbo.config.schema import RunConfig

_ALWAYS = ("source", "rows", "tokens", "trained")


def source_row(
    source: Source, rows: EncodedRows, kept: NDArray[np.bool_] | None, fitted: Fitted, held_out: int
) -> dict[str, Any]:
    """What became of a source's rows, by the columns of the table."""
    return {
        "source": source.label,
        "rows": len(fitted.dataset),
        "tokens": fitted.dataset.num_tokens,
        "trained": fitted.dataset.num_supervised,
        "held_out": held_out,
        "bad": source.bad.count,
        "duplicates": 0 if kept is None else int((~kept).sum()),
        "too_long": fitted.too_long,
        "emptied": fitted.emptied,
        **rows.counts,
    }


def add_shares(
    table: Sequence[dict[str, Any]], dataset: TokenDataset, mixture: Mixture, config: RunConfig
) -> list[dict[str, Any]]:
    """The table with the rows of an epoch and their share of its tokens, where sources have weights."""
    import numpy as np

    if config.trainer.data.mix == "passes" and all(entry.weight == 1 for entry in config.datasets):
        return list(table)
    rows = mixture.rows(0)
    tokens = np.bincount(dataset.source[rows], weights=dataset.length[rows], minlength=len(table))
    counts = np.bincount(dataset.source[rows], minlength=len(table))
    shares = tokens / max(tokens.sum(), 1)
    return [
        {**row, "rows_per_epoch": int(count), "share": float(share)}
        for row, count, share in zip(table, counts, shares, strict=True)
    ]


def print_sources(
    table: Sequence[Mapping[str, Any]], limit: int | None, sources: Sequence[Source], console: Console
) -> None:
    """Print it, without columns of which there is nothing to say; but never without a count that is not zero."""
    names = dict.fromkeys(name for row in table for name in row)
    kept = [name for name in names if name in _ALWAYS or any(row.get(name) for row in table)]
    shown = [{**row, "trained": f"{row['trained'] / max(row['tokens'], 1):.0%}"} for row in table]
    shown = [{**row, "share": f"{row['share']:.1%}"} if "share" in row else row for row in shown]
    console.table([name.replace("_", " ") for name in kept], [[row.get(name, 0) for name in kept] for row in shown])
    if limit is not None:
        console.say(f"sequences of up to {limit} tokens")
    dropped = [problem for source in sources for problem in source.bad.problems]
    if dropped:
        total = sum(source.bad.count for source in sources)
        console.say(f"dropped {total} bad row{'s' if total > 1 else ''}; the first: {str(dropped[0]).splitlines()[0]}")
