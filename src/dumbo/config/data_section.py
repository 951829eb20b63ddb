"""`trainer.data`: what becomes of the rows of all sources together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dumbo.config.section import Section


class DataSection(Section):
    """Options of all datasets together."""

    sequence_length: Annotated[int, Field(ge=2)] | None = None
    """Longest sequence in tokens; by default the model's own limit."""
    too_long: Literal["error", "drop", "truncate", "split"] = "error"
    """Sequences over the limit: stop with their count, leave them out, cut their end off, or cut them into several."""
    val_set_size: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0
    """Rows held out for evaluation: a share below 1, or a number of rows. Chosen by the seed, before training rows
    are shuffled."""
    mix: Literal["passes", "rows", "tokens"] = "passes"
    """What the sources' `weight` counts: `passes` over a source in an epoch, or its share of the epoch's `rows` or
    `tokens`, of which there are as many as in all sources together."""
    deduplicate: bool = False
    """Leave out rows whose tokens and labels an earlier row has, and training rows that a held-out source has."""
    packing: bool | Literal["joined"] = False
    """Put several rows into each sequence of up to `sequence_length` tokens, none of which sees another: no padding. A
    sequence of `batch_size` is then a packed one. `joined` cuts rows of any length where a sequence is full."""
    streaming: bool = False
    """Read and tokenise rows while training goes on, of any number; needs `sequence_length` and `max_steps`."""
    shuffle_buffer: Annotated[int, Field(ge=1)] = 1000
    """With `streaming`: so many rows are in memory, to be shuffled and packed together; then the next ones."""
    group_by_length: bool = False
    """Make steps of rows of similar lengths, 50 steps at a time: less padding, and less chance in the order of rows."""
    cache: bool | Annotated[str, Field(min_length=1)] = True
    """Keep tokens and labels of each source, so that they are made once: in `$DUMBO_CACHE`, by default
    `~/.cache/dumbo`, or in the folder that is named here; false keeps nothing."""
    prepared: Annotated[str, Field(min_length=1)] | None = None
    """A folder that `dumbo preprocess CONFIG --output FOLDER` has written: tokens and labels are taken from it, and the
    sources are not read."""
    on_bad_row: Literal["error", "drop"] = "error"
    """Rows that cannot be used: stop and name them, or leave them out and count them."""
    shuffle: bool = True
    """Go through the training rows in a new random order each epoch, given by the seed; false keeps the files'
    order."""

    @field_validator("cache")
    @classmethod
    def _refuse_words(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
            raise ValueError(f"'{value}' is a text here: write true, false or a folder")
        return value
