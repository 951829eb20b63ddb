"""What cannot be said together about the datasets."""

from __future__ import annotations

from collections.abc import Iterator

from dumbo.config.schema import RunConfig
from dumbo.errors import KeyPath, Problem

_MOST_PASSES = 1000
"""Of a source, in an epoch: more is a mistake, and would take long to plan."""

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
        yield from _loss_weight_problems(config, index)
        if data.mix == "passes" and entry.weight > _MOST_PASSES:
            hint = f"write at most {_MOST_PASSES:,}, and trainer.arguments.num_train_epochs for more"
            yield Problem("is too many passes for one epoch", ("datasets", index, "weight"), hints=(hint,))
    if data.mix != "passes" and sum(not entry.held_out for entry in entries) < 2:
        hint = "there is one source to train on; a 'weight' alone says how often it is gone through"
        yield Problem("has no effect here", (*_DATA, "mix"), hints=(hint,))
    yield from _packing_problems(config)
    yield from _keeping_problems(config)
    if data.streaming:
        yield from _streaming_problems(config)
    elif "shuffle_buffer" in data.model_fields_set:
        hint = "all rows are shuffled together; remove it, or write trainer.data.streaming: true"
        yield Problem("has no effect without streaming", (*_DATA, "shuffle_buffer"), hints=(hint,))


def _packing_problems(config: RunConfig) -> Iterator[Problem]:
    """What does not go with packing."""
    data = config.trainer.data
    if data.packing and data.sequence_length is None and not data.streaming:
        hint = "write trainer.data.sequence_length, such as 2048: it decides the memory that a sequence needs"
        yield Problem("needs to know how long a packed sequence may be", (*_DATA, "packing"), hints=(hint,))
    if data.packing == "joined" and "too_long" in data.model_fields_set:
        hint = "joined rows are cut where a sequence is full, and lose nothing; remove one of the two"
        yield Problem("has no effect with packing: joined", (*_DATA, "too_long"), hints=(hint,))
    if data.group_by_length and not data.shuffle:
        hint = "steps of similar lengths come in a random order; remove one of the two"
        yield Problem(
            "does not keep the order of rows that shuffle: false asks for", (*_DATA, "group_by_length"), hints=(hint,)
        )
    if data.packing and data.group_by_length:
        hint = "packed sequences have no padding, and are all of about one length; remove one of the two"
        yield Problem("has no effect with packing", (*_DATA, "group_by_length"), hints=(hint,))


def _keeping_problems(config: RunConfig) -> Iterator[Problem]:
    """What does not go with prepared data, or with a stream, of which nothing is kept."""
    data = config.trainer.data
    if data.prepared is not None and "cache" in data.model_fields_set:
        hint = "tokens and labels are in that folder; remove one of the two"
        yield Problem("has no effect with trainer.data.prepared", (*_DATA, "cache"), hints=(hint,))
    if data.streaming and "cache" in data.model_fields_set:
        hint = "rows are read and tokenised while training goes on, and nothing is kept; remove one of the two"
        yield Problem("has no effect with streaming", (*_DATA, "cache"), hints=(hint,))
    if data.streaming and data.prepared is not None:
        hint = "prepared tokens lie in files and need no memory: remove streaming"
        yield Problem("has no effect with streaming", (*_DATA, "prepared"), hints=(hint,))


def _streaming_problems(config: RunConfig) -> Iterator[Problem]:
    """What cannot be said, or must be, where nobody knows how many rows there are."""
    data, arguments = config.trainer.data, config.trainer.arguments
    if arguments.max_steps is None:
        hint = "write trainer.arguments.max_steps: a stream has no last row, its sources begin anew where they end"
        yield Problem("needs to know when to stop", (*_DATA, "streaming"), hints=(hint,))
    if data.sequence_length is None:
        hint = "write trainer.data.sequence_length, such as 2048: it decides the memory that a sequence needs"
        yield Problem("needs to know how long a sequence may be", (*_DATA, "streaming"), hints=(hint,))
    if data.val_set_size:
        hint = "write a source with held_out: true under datasets: a file of its own, or a slice (split: 'train[:1%]')"
        yield Problem("cannot be drawn from a stream", (*_DATA, "val_set_size"), hints=(hint,))
    if data.deduplicate:
        hint = "it would have to remember all rows; remove it, or leave such rows out of the files"
        yield Problem("is not possible with streaming", (*_DATA, "deduplicate"), hints=(hint,))
    if data.group_by_length and not data.packing:
        hint = "write trainer.data.packing: true (or joined), which leaves no padding at all"
        yield Problem("is not possible with streaming", (*_DATA, "group_by_length"), hints=(hint,))
    if arguments.dataloader_num_workers:
        hint = "remove it; rows are read and tokenised in the background already"
        path = ("trainer", "arguments", "dataloader_num_workers")
        yield Problem("has no effect with streaming", path, hints=(hint,))
    trained = [index for index, entry in enumerate(config.datasets) if not entry.held_out]
    if len(trained) > 1 and data.mix == "passes":
        hint = "write trainer.data.mix: tokens (or rows): the sources' lengths, in which passes count, are not known"
        yield Problem("needs to know what the sources' weights count", (*_DATA, "streaming"), hints=(hint,))
    if len(trained) == 1 and "weight" in config.datasets[trained[0]].model_fields_set:
        hint = "there is one source to train on, and max_steps says how much of it; remove it"
        yield Problem("has no effect with streaming", ("datasets", trained[0], "weight"), hints=(hint,))


def _loss_weight_problems(config: RunConfig, index: int) -> Iterator[Problem]:
    """Weights that would have no effect, and those of a stream."""
    entry = config.datasets[index]
    beside = [other for other in config.datasets if other.held_out == entry.held_out]
    if "loss_weight" in entry.model_fields_set and len(beside) == 1:
        side = "held out" if entry.held_out else "trained on"
        hint = "it says how much a source counts beside others; loss_weight_field names a column with weights of rows"
        message = f"has no effect: no other source is {side}"
        yield Problem(message, ("datasets", index, "loss_weight"), hints=(hint,))
    if config.trainer.data.streaming and not entry.held_out:
        for name in {"loss_weight", "loss_weight_field"} & entry.model_fields_set:
            hint = "a stream passes on tokens alone; remove one of the two"
            yield Problem("is not possible with streaming", ("datasets", index, name), hints=(hint,))
