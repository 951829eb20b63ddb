"""Computes logits of a model with the adapters that were merged into it, and how far roundings move them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dumbo.bridge.stored_model import Rounding


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits of the model, [batch, tokens, vocabulary], in float32."""
    with torch.inference_mode():
        made: Tensor = model(input_ids=ids, use_cache=False).logits
    return made.float()


def with_adapters(
    model: PreTrainedModel, adapters: Sequence[Mapping[str, Any]]
) -> tuple[nn.Module, Callable[[str], nn.Module]]:
    """`model` wrapped by PEFT with the adapters, whose own weights are in memory, each times its `weight`; and what
    finds the outermost module of a name."""
    import warnings

    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped: Any = model
    names = [f"adapter{number}" for number in range(len(adapters))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, adapter in zip(names, adapters, strict=True):
            options = PeftConfig.from_pretrained(adapter["folder"])
            options.inference_mode = True
            if isinstance(wrapped, PeftModel):
                wrapped.load_adapter(adapter["folder"], name, torch_device="cpu")
            else:
                wrapped = PeftModel.from_pretrained(model, adapter["folder"], name, config=options, torch_device="cpu")
        wrapped.base_model.set_adapter(names)
    for module in wrapped.modules():
        scaling = getattr(module, "scaling", None) if isinstance(module, BaseTunerLayer) else None
        for name, adapter in zip(names, adapters, strict=True):
            if isinstance(scaling, dict) and name in scaling:
                scaling[name] *= adapter["weight"]
    wrapped.train(False)
    for parameter in wrapped.parameters():
        if parameter.dtype != torch.float32 and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    inner: nn.Module = wrapped.get_base_model()
    return wrapped, lambda name: inner.get_submodule(name)


def noise_of(size: float, changed: frozenset[str]) -> Rounding:
    """Changes the weights of the names in `changed` by a random share of up to `size`, as another rounding would.

    The shares are drawn for each column, not for each number, which takes most of the time: a sum over the columns, as
    an output is one, is off by as much.
    """
    generator = torch.Generator().manual_seed(20)

    def change(name: str, value: Tensor) -> Tensor:
        if name not in changed or not value.is_floating_point():
            return value
        value = value.float()
        return value.mul_(1 + _shares(value.shape[-1], size, generator))

    return change


def twice_with_noise(
    model: nn.Module, ids: Tensor, size: float, changed: frozenset[str]
) -> tuple[Tensor, Tensor] | None:
    """The logits of `ids` [batch, tokens], and those with weights as `noise_of` changes them, in one pass.

    The columns of a linear layer's weight belong to its inputs: these are changed, of the second half of a batch that
    has everything twice. None where another kind of module has a weight in `changed`, or gets its inputs otherwise.
    """
    generator = torch.Generator().manual_seed(20)
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in sorted(changed)}
    if not all(type(owner) is nn.Linear and name.endswith(".weight") for name, owner in owners.items()):
        return None
    handles = []
    for name, owner in owners.items():
        factors = 1 + _shares(model.get_parameter(name).shape[-1], size, generator)
        handles.append(owner.register_forward_pre_hook(_second_half_times(factors, 2 * len(ids))))
    try:
        first, second = logits_of(model, ids.repeat(2, 1)).chunk(2)
    except _NotByRows:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return first, second


class _NotByRows(Exception):
    """A layer is not given the rows of the batch."""


def _second_half_times(factors: Tensor, batch: int) -> Callable[..., Any]:
    def change(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values, *rest = inputs
        if values.dim() < 3 or len(values) != batch:
            raise _NotByRows
        plain, noisy = values.chunk(2)
        return torch.cat([plain, noisy * factors]), *rest

    return change


def _shares(count: int, size: float, generator: torch.Generator) -> Tensor:
    return torch.empty(count).uniform_(-size, size, generator=generator)


def few_threads() -> None:
    """As many threads as the machine has cores, where nothing else is asked for."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, os.cpu_count() or 1))
