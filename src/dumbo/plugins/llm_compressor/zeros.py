"""Finds the zeros of a model's weights, and makes them zero again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dumbo.bridge.parameters import folded, near_names
from dumbo.bridge.zero_bitmasks import is_smaller
from dumbo.errors import ConfigError, Problem, RunError
from dumbo.plugins.llm_compressor.recipe import Pruning

_LEAST = 0.01
"""Without targets, a weight with a smaller share of zeros has them by chance."""
_EXPRESSION = "re:"
_SHOWN = 12


@dataclass
class Zeros:
    """Where weights are zero and stay so."""

    weights: dict[str, nn.Parameter]
    masks: dict[str, Tensor]
    """Of each weight: bool, true where it is zero."""
    end: float | None = None
    """The epoch from which they may be trained again."""

    @classmethod
    def of_model(cls, model: Any, pruning: Pruning) -> Zeros:
        """The zeros of the weights that `pruning` means.

        Raises:
            ConfigError: a target that means no weight, or none with zeros; without targets, no sparse weight at all.
        """
        layers = dict(_matrices(model))
        if pruning.targets:
            chosen = _chosen(model, layers, pruning)
        else:
            others = _vocabulary(model)
            chosen = {
                name: weight for name, weight in layers.items() if id(weight) not in others and _share(weight) >= _LEAST
            }
            if not chosen:
                message = f"{type(model).__name__} is not sparse: no matrix of a layer has one zero in a hundred values"
                hint = "start from a pruned model, or name weights with zeros as targets"
                raise ConfigError.at("model.llm_compressor", message, hint)
        with torch.no_grad():
            masks = {name: weight == 0 for name, weight in chosen.items()}
        return cls(chosen, masks, pruning.end)

    @torch.no_grad()
    def restore(self) -> None:
        """Make all of them zero again."""
        for name, weight in self.weights.items():
            mask = self.masks[name]
            if mask.device != weight.device:
                mask = self.masks[name] = mask.to(weight.device)
            weight.masked_fill_(mask, 0)

    def shares(self) -> dict[str, float]:
        """How much of each weight is zero now, 0 to 1."""
        return {name: _share(weight) for name, weight in self.weights.items()}

    def check_kept(self) -> None:
        """Raise RunError where a weight is no longer zero that was to stay so."""
        for name, weight in self.weights.items():
            filled = int(weight.detach()[self.masks[name].to(weight.device)].count_nonzero())
            if filled:
                message = f"llm_compressor: {filled:,} zeros of {name} are none any more: something changed the weights"
                raise RunError(f"{message} after the optimizer")

    def check_worth(self) -> None:
        """Raise ConfigError where no weight would be smaller without its zeros at the end of the training."""
        # As they will be: pruning by a product leaves zeros with a minus, and training ones without.
        kept = (self.weights[name].detach().masked_fill(mask, 0) for name, mask in self.masks.items())
        if not any(is_smaller(weight.flatten(0, -2)) for weight in kept):
            message = "no weight has enough zeros: a bit for each value takes more room than they do"
            raise ConfigError.at("model.llm_compressor.save_compressed", message, "remove it")

    def tell(self, say: Callable[[str], None]) -> None:
        """Say how many of which weights are zero."""
        zeros = sum(int(mask.sum()) for mask in self.masks.values())
        total = sum(weight.numel() for weight in self.weights.values())
        until = "" if self.end is None else f" until epoch {self.end:g}"
        say(
            f"llm_compressor: {zeros:,} of {total:,} values ({zeros / total:.2%}) in {len(self.weights)} weights are "
            f"zero and stay so{until}"
        )
        for line in sparsity_lines(self.shares()):
            say(f"llm_compressor: {line}")


def sparsity_lines(shares: Mapping[str, float]) -> Iterator[str]:
    """A line for each kind of weight, with the share of zeros in it: `layers.{0-3}.up_proj.weight: 50.00%`."""
    kinds = folded(shares)
    for number, (kind, names) in enumerate(kinds.items()):
        if number == _SHOWN:
            yield f"and {len(kinds) - _SHOWN} more kinds; summary.json has every weight"
            return
        found = sorted(shares[name] for name in names)
        yield f"{kind}: {found[0]:.2%}" + (f" to {found[-1]:.2%}" if found[-1] - found[0] > 1e-4 else "") + " zero"


def _share(weight: Tensor) -> float:
    return float((weight.detach() == 0).float().mean())


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights of two dimensions and more, by their names."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and weight.is_floating_point():
            yield name, weight


def _vocabulary(model: Any) -> frozenset[int]:
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return frozenset(id(module.weight) for module in (*modules, *embeddings) if module is not None)


def _chosen(model: nn.Module, matrices: Mapping[str, nn.Parameter], pruning: Pruning) -> dict[str, nn.Parameter]:
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    chosen: set[str] = set()
    problems: list[Problem] = []
    for place, target in enumerate(pruning.targets):
        where = (*pruning.where, place)
        try:
            found = [name for name in matrices if _means(target, name, kinds)]
        except re.error as error:
            problems.append(Problem(f"'{target}' is not a regular expression: {error}", where))
            continue
        sparse = [name for name in found if _share(matrices[name]) > 0]
        if not found:
            hints = near_names(target.removeprefix(_EXPRESSION), [*matrices, *dict.fromkeys(kinds.values())])
            problems.append(Problem(f"'{target}' means no weight", where, hints=hints))
        elif not sparse:
            message = f"'{target}' means {len(found)} weight{'s' if len(found) > 1 else ''}, and none has zeros"
            problems.append(Problem(message, where, hints=("this keeps zeros; it makes none: prune the model first",)))
        chosen |= set(sparse)
    if problems:
        raise ConfigError(problems)
    return {name: weight for name, weight in matrices.items() if name in chosen}


def _means(target: str, name: str, kinds: Mapping[str, str]) -> bool:
    """Whether `target` means the weight `name`, by its name, that of its layer, or the class of that."""
    layer = name.rpartition(".")[0]
    if target.startswith(_EXPRESSION):
        expression = re.compile(target.removeprefix(_EXPRESSION))
        return bool(expression.match(name) or expression.match(layer))
    ends = (name == target, layer == target, name.endswith(f".{target}"), layer.endswith(f".{target}"))
    return any(ends) or kinds.get(layer) == target
