"""A dataset entry of type `huggingface_polars`, as the configuration would hand it to the plugin."""

from pathlib import Path

from dumbo.config.schema import RunConfig
from dumbo.data.records import Row
from dumbo.plugins.polars.plugin import PolarsOptions, PolarsPlugin


class Entry(PolarsOptions):
    """What the core composes: the reader's options and the entry's own keys."""

    type: str = "huggingface_polars"


def read(path: Path | str | list[str], **options: str) -> list[Row]:
    """All rows of `path`."""
    written = path if isinstance(path, list) else str(path)
    return list(PolarsPlugin().read(Entry(path=written, **options)))


def read_values(path: Path | str, **options: str) -> list[dict]:
    """The values of all rows of `path`."""
    return [dict(row.values) for row in read(path, **options)]


def check(*entries: PolarsOptions) -> None:
    """Check a run with these datasets."""
    PolarsPlugin().check(RunConfig.model_construct(datasets=entries))
