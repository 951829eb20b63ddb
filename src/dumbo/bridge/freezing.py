"""Leaves all weights of a model as they are but those that were asked for by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from torch.nn import Module

from dumbo.bridge.parameters import folded, near_names
from dumbo.errors import ConfigError, Problem

_KEY = ("model", "unfrozen_parameters")
_ROWS = re.compile(r"\[\d*:\d*\]$")
_SHOWN = 8


def train_only(model: Module, patterns: Sequence[str], say: Callable[[str], None]) -> None:
    """Let only those parameters of `model` be trained in whose full names one of `patterns` is found (`re.search`). One
    that is tied goes by any of its names.

    Raises:
        ConfigError: a pattern that is none, or is found in no name; weights that cannot be trained, as they are no
            floating-point numbers.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    chosen: set[int] = set()
    problems: list[Problem] = []
    for place, pattern in enumerate(patterns):
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            problems.append(Problem(f"'{pattern}' is not a regular expression: {error}", (*_KEY, place)))
            continue
        fixed = [name for name in found if not names[name].is_floating_point()]
        if fixed:
            message = f"'{pattern}' means {fixed[0]}, which is {names[fixed[0]].dtype} and cannot be trained"
            problems.append(Problem(message, (*_KEY, place)))
        elif not found:
            problems.append(
                Problem(f"'{pattern}' is in the name of no weight", (*_KEY, place), hints=_hints(pattern, list(names)))
            )
        chosen |= {id(names[name]) for name in found}
    if problems:
        raise ConfigError(problems)
    _train(model, chosen, say, "unfrozen_parameters")


def train_named(model: Module, names: Collection[str], say: Callable[[str], None], owner: str) -> int:
    """Let only the parameters of `model` with these full names be trained, and say as `owner` how many that are; return
    the number of their values."""
    by_name = dict(model.named_parameters(remove_duplicate=False))
    return _train(model, {id(by_name[name]) for name in names}, say, owner)


def _train(model: Module, chosen: Collection[int], say: Callable[[str], None], owner: str) -> int:
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return _tell(model, say, owner)


def _hints(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    if _ROWS.search(pattern):
        return ("a range of rows cannot be trained by itself; with the plugin peft, model.peft.train_tokens does that",)
    return near_names(pattern, names)


def _tell(model: Module, say: Callable[[str], None], owner: str) -> int:
    every = list(model.named_parameters())
    trained = [(name, parameter) for name, parameter in every if parameter.requires_grad]
    numbers = sum(parameter.numel() for _, parameter in trained)
    total = sum(parameter.numel() for _, parameter in every)
    shown = list(folded(name for name, _ in trained))
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    say(
        f"{owner}: {numbers:,} of {total:,} parameters ({numbers / total:.2%}) in {len(trained)} of "
        f"{len(every)} weights are trained: {', '.join(shown[:_SHOWN])}{more}"
    )
    return numbers
