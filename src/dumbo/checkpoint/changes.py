"""Compares the configuration of a run that goes on with the one of its checkpoint, key by key."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from dumbo.errors import ConfigError, KeyPath, Place, Problem, dotted
from dumbo.redact import REDACTED


class Change(Enum):
    """What another value of a key means for a run that goes on."""

    HARMLESS = "the weights come out the same"
    ALLOWED = "the run goes on, and is another one from here on"
    IMPOSSIBLE = "what the checkpoint holds does not fit"


_RULES: tuple[tuple[str, Change], ...] = (
    ("model.trust_remote_code", Change.HARMLESS),
    ("model.attention", Change.ALLOWED),
    # The weights are in the checkpoint; those under an adapter are compared.
    ("model.revision", Change.HARMLESS),
    ("model", Change.IMPOSSIBLE),
    # Whether the rows are the same is seen in the rows: a file may have moved.
    ("datasets", Change.HARMLESS),
    ("trainer.data.cache", Change.HARMLESS),
    ("trainer.data.prepared", Change.HARMLESS),
    ("trainer.data", Change.IMPOSSIBLE),
    ("trainer.seed", Change.IMPOSSIBLE),
    ("trainer.output_dir", Change.HARMLESS),
    ("trainer.checkpoints", Change.HARMLESS),
    ("trainer.faults.on_spike", Change.ALLOWED),
    ("trainer.faults.spike_factor", Change.ALLOWED),
    ("trainer.faults", Change.HARMLESS),
    ("trainer.arguments.batch_size", Change.IMPOSSIBLE),
    ("trainer.arguments.optim", Change.IMPOSSIBLE),
    ("trainer.arguments.learning_rate_factors", Change.IMPOSSIBLE),
    ("trainer.arguments.logging_", Change.HARMLESS),
    ("trainer.arguments.save_", Change.HARMLESS),
    ("trainer.arguments.dataloader_", Change.HARMLESS),
    ("trainer.arguments.ddp_", Change.HARMLESS),
    ("trainer", Change.ALLOWED),
    ("evaluation", Change.ALLOWED),
    ("plugins", Change.ALLOWED),
)
"""The first whose text a key begins with decides."""

_ROWS = "datasets"


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[KeyPath, tuple[Any, Any]]:
    """The keys whose values differ, with both values; None stands for a key that is not there."""
    return dict(_differences(_plain(before), _plain(now), ()))


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its plugins as a mapping, as their order never matters."""
    return {**tree, "plugins": {str(name): True for name in tree.get("plugins", ())}}


def _differences(before: Any, now: Any, path: KeyPath) -> Iterator[tuple[KeyPath, tuple[Any, Any]]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), (*path, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, (*path, place))
    elif before != now and REDACTED not in f"{before}{now}":  # which secret it was, nobody knows
        yield path, (before, now)


def check_changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    allowed: Sequence[str],
    harmless: Sequence[str] = (),
    checkpoint: Path = Path("the checkpoint"),
) -> tuple[KeyPath, ...]:
    """The changed keys that the user allowed; `harmless` are sections whose plugins only watch, `checkpoint` is named
    in what is said.

    Raises:
        ConfigError: a key was changed and not allowed, or one is allowed that is in neither configuration.
    """
    changes = changed_keys(before, now)
    # A key that is the same is no mistake: a job that is started again by itself says what it said before.
    keys = {*_keys(_plain(before)), *_keys(_plain(now)), *map(dotted, changes)}
    unknown = [_unknown(key, keys, changes) for key in allowed if key not in keys]
    problems = [*_refused(changes, allowed, harmless, checkpoint), *unknown]
    if problems:
        raise ConfigError(problems)
    known = [path for path in changes if any(begins(dotted(path), key) for key in allowed)]
    return (*known, *([(_ROWS,)] if _ROWS in allowed else []))


def _refused(
    changes: Mapping[KeyPath, tuple[Any, Any]], allowed: Sequence[str], harmless: Sequence[str], checkpoint: Path
) -> Iterator[Problem]:
    for path, (old, new) in changes.items():
        key = dotted(path)
        kind = Change.HARMLESS if any(begins(key, section) for section in harmless) else _kind(key)
        message = f"was {_shown(old)} in the checkpoint, and is {_shown(new)} now"
        if path[0] == "plugins":
            message = f"'{path[1]}' was {'not listed' if old is None else 'listed'} when the checkpoint was written"
            path = ("plugins",)
        if kind is Change.IMPOSSIBLE:
            new_run = f"start a new run from its weights instead, with model.base_model: {checkpoint}"
            yield Problem(f"{message}: {kind.value}", path, hints=("write the old value", new_run))
        elif kind is Change.ALLOWED and not any(begins(key, name) for name in allowed):
            hint = f"to go on with it, add --allow-change {dotted(path)}"
            yield Problem(f"{message}: {kind.value}", path, hints=(hint,))


def _kind(key: str) -> Change:
    return next((kind for begin, kind in _RULES if key.startswith(begin)), Change.ALLOWED)


def begins(key: str, section: str) -> bool:
    """Whether `key` is `section`, or stands in it."""
    return key == section or key.startswith(f"{section}.")


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(tree: Any, path: KeyPath = ()) -> Iterator[str]:
    """The dotted names of all sections and keys."""
    if path:
        yield dotted(path)
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield from _keys(value, (*path, key))


def _unknown(name: str, keys: Collection[str], changes: Mapping[KeyPath, Any]) -> Problem:
    # The whole key, or its last word alone, as people shorten it.
    last = {key.rpartition(".")[2]: key for key in sorted(keys, reverse=True)}
    near = difflib.get_close_matches(name, keys, n=1)
    near = near or [last[word] for word in difflib.get_close_matches(name, last, n=1, cutoff=0.8)]
    hints = [f"did you mean '{near[0]}'?"] if near else []
    if changes:
        hints.append(f"changed are {', '.join(map(dotted, changes))}")
    place = Place("command line")
    return Problem(f"--allow-change {name}: there is no such key", place=place, hints=tuple(hints))
