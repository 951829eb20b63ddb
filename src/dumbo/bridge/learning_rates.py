"""Gives some of an optimizer's parameters other learning rates than the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.nn import Module

from dumbo.bridge.parameters import near_names
from dumbo.errors import ConfigError, PluginError, Problem
from dumbo.job import RateFactor

_KEY = ("trainer", "arguments", "learning_rate_factors")


def scale_learning_rates(optimizer: Any, model: Module, factors: Sequence[RateFactor]) -> None:
    """Split the groups of `optimizer`, which has made no step yet, so that each has one factor, and multiply its rate.

    A schedule that is made afterwards scales all groups alike. The first group is that of the rate itself, though
    nothing may be left in it: it is the one that is logged.

    Raises:
        ConfigError: a pattern that fits nothing that is trained; an optimizer without a rate that can be multiplied.
        PluginError: the same of a plugin's pattern.
    """
    of_parameter = _factor_of_each(model, factors)
    rates = [group.get("lr") for group in optimizer.param_groups]
    if not isinstance(optimizer.param_groups, list) or not all(isinstance(rate, int | float) for rate in rates):
        message = f"the optimizer {type(optimizer).__name__} has no learning rate that could be multiplied"
        raise ConfigError([Problem(message, _KEY, hints=("use another trainer.arguments.optim",))])
    optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in _split(group, of_parameter)]


def _split(group: Mapping[str, Any], of_parameter: Mapping[int, float]) -> Iterator[dict[str, Any]]:
    parts: dict[float, list[Any]] = {1.0: []}
    for parameter in group["params"]:
        parts.setdefault(of_parameter.get(id(parameter), 1.0), []).append(parameter)
    for factor, parameters in parts.items():
        yield {**group, "params": parameters, "lr": group["lr"] * factor}


def _factor_of_each(model: Module, factors: Sequence[RateFactor]) -> dict[int, float]:
    """Factors by the parameters' identities; one that is tied goes by any of its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
    result: dict[int, list[float]] = {}
    problems: list[Problem] = []
    for factor in factors:
        pattern = _compiled(factor)
        found = [number for number, known in names.items() if any(pattern.search(name) for name in known)]
        for number in found:
            result.setdefault(number, []).append(factor.factor)
        if not found:
            problems.append(_unmatched(factor, [name for known in names.values() for name in known]))
    if problems:
        raise ConfigError(problems)
    return {number: math.prod(values) for number, values in result.items()}


def _compiled(factor: RateFactor) -> re.Pattern[str]:
    try:
        return re.compile(factor.pattern)
    except re.error as error:
        message = f"'{factor.pattern}' is not a regular expression: {error}"
        raise _blamed(factor, Problem(message, _KEY)) from error


def _unmatched(factor: RateFactor, names: Sequence[str]) -> Problem:
    problem = Problem(f"'{factor.pattern}' fits nothing that is trained", _KEY, hints=near_names(factor.pattern, names))
    if factor.owner:
        raise _blamed(factor, problem)
    return problem


def _blamed(factor: RateFactor, problem: Problem) -> ConfigError | PluginError:
    if factor.owner:
        return PluginError(f"plugin '{factor.owner}': learning_rate_factors: {problem.message}")
    return ConfigError([problem])
