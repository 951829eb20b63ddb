"""What cannot be said together about the datasets."""

from __future__ import annotations

from collections.abc import Iterator

from dumbo.config.schema import RunConfig
from dumbo.errors import KeyPath, Problem

_DATA: KeyPath = ("trainer", "data")


def data_problems(config: RunConfig) -> Iterator[Problem]:
    """A problem for everything under `datasets` and `trainer.data` that would have no effect, or leave nothing."""
    data, entries = config.trainer.data, config.datasets
    if all(entry.held_out for entry in entries):
        yield Problem("all sources are held out: there is nothing to train on", ("datasets",))
    elif all(entry.held_out or not entry.weight for entry in entries):
        yield Problem("all sources have a weight of 0: there is nothing to train on", ("datasets",))
    for index, entry in enumerate(entries):
        if entry.held_out and "weight" in entry.model_fields_set:
            hint = "all of its rows are evaluated on, once each; remove one of the two"
            yield Problem("has no effect on a source that is held out", ("datasets", index, "weight"), hints=(hint,))
    if data.mix != "passes" and sum(not entry.held_out for entry in entries) < 2:
        hint = "there is one source to train on; a 'weight' alone says how often it is gone through"
        yield Problem("has no effect here", (*_DATA, "mix"), hints=(hint,))
    if data.packing and data.sequence_length is None:
        hint = "write trainer.data.sequence_length, such as 2048: it decides the memory that a sequence needs"
        yield Problem("needs to know how long a packed sequence may be", (*_DATA, "packing"), hints=(hint,))
    if data.packing and data.group_by_length:
        hint = "packed sequences have no padding, and are all of about one length; remove one of the two"
        yield Problem("has no effect with packing", (*_DATA, "group_by_length"), hints=(hint,))
