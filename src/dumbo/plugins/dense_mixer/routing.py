"""Finds out which function of its scores a router gives to experts as weights, from what it gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

_LEAST = 1e-5
"""Relative difference of weights that is rounding whatever their type."""
_CLOSE = 4.0
"""An explanation that is off by so many times more than the best is none."""


def _softmax(scores_TE: Tensor) -> Tensor:
    return scores_TE.softmax(dim=-1)


def _as_is(scores_TE: Tensor) -> Tensor:
    return scores_TE


def _sqrt_softplus(scores_TE: Tensor) -> Tensor:
    return torch.nn.functional.softplus(scores_TE).sqrt()


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"softmax": _softmax, "sigmoid": torch.sigmoid, "ready scores": _as_is, "sqrt(softplus)": _sqrt_softplus}
)
"""What routers make of their scores before they choose; the third one is for routers that show what they made."""


class UnknownRouter(Exception):
    """No function, or more than one, gives these weights."""


@dataclass(frozen=True)
class Routing:
    """How the weights of experts follow from what a module gave: `function(scores) * factor`, times anything that is
    the same for all experts of a token, such as one over the sum of those that were chosen."""

    module: str
    """Whose output the scores are."""
    function: str
    factor: str | None = None
    """Name of the parameter with a factor for each expert."""

    def values(self, scores_TE: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """The function of the scores for all experts, [T, E], in float32 or wider."""
        wide = scores_TE if scores_TE.dtype == torch.float64 else scores_TE.float()
        values = FUNCTIONS[self.function](wide)
        return values if self.factor is None else values * factors[self.factor]

    def weights_of_others(
        self, scores_TE: Tensor, factors: Mapping[str, Tensor], chosen_TK: Tensor, weights_TK: Tensor
    ) -> Tensor:
        """Weights that experts would have had, had they been chosen beside those that were: [T, E], 0 for the chosen.

        What makes weights of values, a scale or the sum over the chosen, is taken as it is: no gradient goes through
        it, as in the package `densemixer`.
        """
        values = self.values(scores_TE, factors)
        total = values.gather(-1, chosen_TK).sum(dim=-1, keepdim=True)
        scale = (weights_TK.sum(dim=-1, keepdim=True) / total).detach()
        return (values * scale).scatter(-1, chosen_TK, 0.0)


def recognise(
    outputs: Mapping[str, Tensor], factors: Mapping[str, Tensor], chosen_TK: Tensor, weights_TK: Tensor
) -> Routing:
    """The routing by which `weights_TK` follow from one of `outputs`, each [T, E].

    Raises:
        UnknownRouter: none does, or several that differ in their gradients.
    """
    tolerance = max(_LEAST, 4 * torch.finfo(weights_TK.dtype).eps)
    with torch.no_grad():
        tried = [
            (_error(routing, outputs[routing.module], factors, chosen_TK, weights_TK), routing)
            for routing in _routings(outputs, factors)
        ]
    known = [(error, routing) for error, routing in tried if error <= tolerance]
    if not known:
        raise UnknownRouter("the weights that its router gives are no function of its scores that is known here")
    least = min(error for error, _ in known)
    close = [routing for error, routing in known if error <= _CLOSE * least + _LEAST / 10]
    first = close[0]
    for other in close[1:]:
        if other.module == first.module and other.function != first.function:
            found = f"{first.function} or {other.function}"
            raise UnknownRouter(f"the weights that its router gives may be {found}: they are too much alike to tell")
    return first


def _routings(outputs: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> Iterator[Routing]:
    for module in outputs:
        for function in FUNCTIONS:
            for factor in (*factors, None):  # a factor of ones explains no more than none, until it is trained
                yield Routing(module, function, factor)


def _error(
    routing: Routing, scores_TE: Tensor, factors: Mapping[str, Tensor], chosen_TK: Tensor, weights_TK: Tensor
) -> float:
    """The largest relative difference between the weights and what explains them; infinite where they do not compare.

    With one expert a token any function explains weights up to a scale of the token's own: the scale must then be the
    same for all tokens.
    """
    picked = routing.values(scores_TE, factors).gather(-1, chosen_TK)
    weights = weights_TK.to(picked.dtype)
    scale = weights.sum(dim=-1, keepdim=True) / picked.sum(dim=-1, keepdim=True)
    if chosen_TK.shape[-1] == 1:
        scale = weights.sum() / picked.sum()
    error = ((weights - picked * scale).abs() / weights.abs().clamp(min=weights.abs().mean() / 100)).max()
    return float(error) if bool(error.isfinite()) else float("inf")
