"""Experts whose output is the ordinary one, and whose gradient tells the router what all of them would have given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dumbo.errors import ConfigError, RunError
from dumbo.plugins.dense_mixer.routing import Routing, UnknownRouter, recognise

NAME = "dumbo_dense_mixer"
"""The name in Transformers' table of implementations of experts."""
_ATTRIBUTE = "dense_mixer"
Forward = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(experts, hidden states [T, H], chosen experts [T, K], their weights [T, K]) -> [T, H], as the table has them."""


@dataclass(eq=False)
class Mixer:
    """What a layer of experts keeps between its router and itself."""

    name: str
    """Of the layer, for messages."""
    kind: str
    """The class of the model, for messages."""
    base: Forward
    """What computes the experts that were chosen."""
    parameters: tuple[str, ...]
    """Names of the experts' weights."""
    count: int
    pairs: int
    """Pairs of token and expert that are computed at a time."""
    factors: dict[str, nn.Parameter] = field(default_factory=dict)
    """What may multiply the weights: parameters with a value for each expert, by name."""
    seen: dict[str, Tensor] = field(default_factory=dict)
    """Outputs of modules near the experts, [T, E], of this forward pass."""
    watches: dict[str, Any] = field(default_factory=dict)
    """Handles of the hooks that fill `seen`."""
    routing: Routing | None = None
    tries: bool = False
    """Whether this pass is only for the routing to be recognised, so that experts need not be computed."""
    again: bool = False
    """Whether this is the backward pass, which computes experts like any other implementation."""

    def take_scores(self, chosen_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The router's scores of this pass, [T, E]; the first time they are looked for."""
        seen, self.seen = self.seen, {}
        fitting = {name: scores for name, scores in seen.items() if len(scores) == len(chosen_TK)}
        if self.routing is None:
            self.routing = self._recognise(fitting, chosen_TK, weights_TK)
            for name in [name for name in self.watches if name != self.routing.module]:
                self.watches.pop(name).remove()
        if self.routing.module not in fitting:
            raise RunError(f"dense_mixer: {self.name} got tokens without its router '{self.routing.module}'")
        return fitting[self.routing.module]

    def _recognise(self, seen: Mapping[str, Tensor], chosen_TK: Tensor, weights_TK: Tensor) -> Routing:
        try:
            return recognise(seen, self.factors, chosen_TK, weights_TK)
        except UnknownRouter as error:
            message = f"cannot be used with {self.kind}: in {self.name}, {error}"
            raise ConfigError.at("model.dense_mixer", message, "remove 'dense_mixer' from plugins") from None

    def weights_of_others(self, chosen_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The weights that experts which were not chosen would have had, [T, E]; 0 for those that were."""
        scores = self.take_scores(chosen_TK, weights_TK)
        assert self.routing is not None
        return self.routing.weights_of_others(scores, self.factors, chosen_TK, weights_TK)


class _StraightThrough(torch.autograd.Function):
    """The experts' output, unchanged; the gradient of an expert's weight is what its output would have changed.

    The outputs of experts that were not chosen are computed in the backward pass alone, some pairs at a time, and no
    gradient goes through them.
    """

    @staticmethod
    def forward(
        context: Any,
        experts: nn.Module,
        output_TH: Tensor,
        weights_TE: Tensor,
        hidden_TH: Tensor,
        chosen_TK: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        kind = hidden_TH.device.type
        context.experts = experts
        context.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        context.weights_dtype, context.shape = weights_TE.dtype, weights_TE.shape
        context.save_for_backward(hidden_TH, chosen_TK, *parameters)
        return output_TH.view_as(output_TH)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient_TH: Tensor) -> tuple[Tensor | None, ...]:
        hidden, chosen, *parameters = context.saved_tensors
        device, dtype, enabled = context.autocast
        weights = torch.zeros(context.shape, dtype=context.weights_dtype, device=hidden.device)
        experts = context.experts
        values = dict(zip(mixer_of(experts).parameters, parameters, strict=True))
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            for token, expert in _other_pairs(chosen, context.shape, mixer_of(experts).pairs):
                output = _outputs(experts, values, hidden[token], expert)
                wide = torch.promote_types(output.dtype, torch.float32)
                weights[token, expert] = (output.to(wide) * gradient_TH[token].to(wide)).sum(dim=-1).to(weights.dtype)
        return (None, gradient_TH, weights, None, None, *(None for _ in parameters))


def _other_pairs(chosen_TK: Tensor, shape: torch.Size, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and experts that were not chosen for them, by expert, at most `size` at a time."""
    others_ET = torch.ones(shape, dtype=torch.bool, device=chosen_TK.device).scatter(-1, chosen_TK, False).T
    expert, token = others_ET.nonzero(as_tuple=True)
    yield from zip(torch.split(token, size), torch.split(expert, size), strict=True)


def _outputs(experts: nn.Module, values: dict[str, Tensor], hidden_PH: Tensor, expert_P: Tensor) -> Tensor:
    """What each pair's expert gives for its token, [P, H]; `values` are the experts' weights, with adapters in them."""
    mixer = mixer_of(experts)
    ones = torch.ones((len(expert_P), 1), dtype=hidden_PH.dtype, device=hidden_PH.device)
    mixer.again = True
    try:
        output: Tensor = torch.func.functional_call(experts, values, (hidden_PH, expert_P[:, None], ones))
    finally:
        mixer.again = False
    return output


def mixer_of(experts: nn.Module) -> Mixer:
    """What `attach` gave to these experts."""
    mixer: Mixer = getattr(experts, _ATTRIBUTE)
    return mixer


def attach(experts: nn.Module, mixer: Mixer) -> None:
    """Let these experts work with `mixer`."""
    setattr(experts, _ATTRIBUTE, mixer)


def register() -> str:
    """Make `NAME` known to Transformers, which may be done any number of times; return it."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    return NAME


def base_forward(experts: nn.Module, implementation: str) -> Forward:
    """The function by which `experts` compute with this implementation; `eager` is the model's own code."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    own: Forward = type(experts).forward.__wrapped__  # type: ignore[attr-defined]
    chosen: Forward = ALL_EXPERTS_FUNCTIONS.get_interface(implementation, own)
    return chosen


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The output of the chosen experts, [T, H], exactly as without this; in training with gradients for all weights.

    `y = sum_chosen w_e f_e(x)`, and `dL/dw_e = <dL/dy, f_e(x)>` for every expert, where without this it is so for the
    chosen ones alone (straight-through: DenseMixer, Yao et al. 2025).
    """
    mixer: Mixer | None = getattr(self, _ATTRIBUTE, None)
    if mixer is None:  # another model than the one that is trained, such as a teacher
        return base_forward(self, "grouped_mm")(self, hidden_states, top_k_index, top_k_weights)
    if mixer.again or not (self.training or mixer.tries):
        mixer.seen.clear()
        return mixer.base(self, hidden_states, top_k_index, top_k_weights)
    others = mixer.weights_of_others(top_k_index, top_k_weights)
    if mixer.tries:
        return torch.zeros_like(hidden_states)
    output = mixer.base(self, hidden_states, top_k_index, top_k_weights)
    if not others.requires_grad:
        return output
    values = [attrgetter(name)(self).detach() for name in mixer.parameters]
    mixed: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
        self, output, others, hidden_states.detach(), top_k_index, *values
    )
    return mixed
