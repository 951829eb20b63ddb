"""The parts of a training's state, taken out for a checkpoint and put back bit by bit."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers.trainer_callback import ExportableState

from dumbo.bridge.quantized_base import stored_parts
from dumbo.errors import RunError

_SAMPLE = 4096
"""About so many values of a weight that is not in a checkpoint stand for it."""
RATES = ("lr", "initial_lr")
"""The settings of an optimizer that belong to its schedule."""


def random_states() -> dict[str, Any]:
    """The states of all generators of this process that a training draws from."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """The inverse of `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def load_optimizer(optimizer: Any, saved: Mapping[str, Any], keep: Collection[str] | None = ()) -> None:
    """Put the saved state into `optimizer`, in the types that it was saved in.

    `keep`: settings, such as `lr`, that stay as the optimizer has them; None means all.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    settings = [{name: value for name, value in group.items() if name != "params"} for group in inner.param_groups]
    inner.load_state_dict(saved)
    for group, values in zip(inner.param_groups, settings, strict=True):
        group.update({name: value for name, value in values.items() if keep is None or name in keep})
    parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in saved["state"].get(number, {}).items():
            # PyTorch gives the state the type of the parameter, which need not be the one that it had.
            if isinstance(value, Tensor) and inner.state[parameter][name].dtype != value.dtype:
                inner.state[parameter][name] = value.to(inner.state[parameter][name].device)


def load_schedule(scheduler: Any, saved: Mapping[str, Any], step: int, changed: bool) -> None:
    """Put the saved state into the schedule; one that was `changed` is moved to its own place after `step` steps.

    Raises:
        RunError: it has none, as it goes by the evaluations.
    """
    if changed and isinstance(scheduler, ReduceLROnPlateau):
        message = "a schedule that goes by the evaluations (reduce_lr_on_plateau) cannot be changed on the way"
        raise RunError(f"{message}\n    leave it as it was, or start a new run from the checkpoint's weights")
    if not changed:
        scheduler.load_state_dict(saved)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the optimizer has made no step: it did, before
        for _ in range(step):
            scheduler.step()


def callback_states(callbacks: Sequence[Any]) -> dict[str, Any]:
    """What callbacks of Transformers' kind (`ExportableState`) want to keep, by their class and number."""
    return {key: callback.state().get("attributes", {}) for key, callback in _exportable(callbacks)}


def load_callback_states(callbacks: Sequence[Any], states: Mapping[str, Any]) -> None:
    """Give each of them back what it kept."""
    for key, callback in _exportable(callbacks):
        for name, value in states.get(key, {}).items():
            setattr(callback, name, value)


def _exportable(callbacks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    numbers: dict[str, int] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            name = type(callback).__name__
            numbers[name] = numbers.get(name, 0) + 1
            yield f"{name} {numbers[name]}", callback


def read_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """The weights in `folder`, written by the model's own `save_pretrained`, by their names in `model.state_dict()`."""
    # Through the library's own loader, which knows how names in files differ from those in memory.
    saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True, local_files_only=True)
    weights: dict[str, Tensor] = saved.state_dict()
    return weights


def load_weights(model: Any, folder: Path) -> None:
    """Copy the weights in `folder`, written by the model's own `save_pretrained`, into `model`."""
    while hasattr(model, "module"):
        model = model.module
    if hasattr(model, "peft_config"):
        _load_adapters(model, folder)
        return
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in read_weights(model, folder).items():
            if name in own:
                own[name].copy_(tensor)


def digest_under_adapters(model: Any) -> str | None:
    """Stands for the weights that adapters leave as they are, of which it takes a few of each at even distances: 128
    bits, hexadecimal. None for a model without adapters."""
    if not hasattr(model, "peft_config"):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.named_parameters():
        if not value.requires_grad:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            for part in stored_parts(value):  # of quantized weights: codes and scales
                flat = part.detach().reshape(-1)
                some = flat[:: max(flat.numel() // _SAMPLE, 1)].contiguous().cpu()
                digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_adapters(model: Any, folder: Path) -> set[str]:
    """Load adapters; return the names of everything that they do not have."""
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(folder), device="cpu")
    if hasattr(model, "as_trained"):
        weights = model.as_trained(weights)  # it saves its adapter in another form than it trains it in
    result: Any = set_peft_model_state_dict(model, weights)
    return set(result.missing_keys)


def not_kept(model: Any, folder: Path) -> list[str]:
    """What is trained, or is a buffer of the model's state, and does not come back bit by bit from `folder`, where the
    model as it is was just saved."""
    own = model.state_dict(keep_vars=True)
    if hasattr(model, "peft_config"):
        missing = _load_adapters(model, folder)
        return [name for name, value in own.items() if value.requires_grad and name in missing]
    saved = read_weights(model, folder)
    return [name for name, value in own.items() if name not in saved or not _same(value, saved[name])]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = one.detach().cpu().contiguous(), other.cpu().contiguous()
    if one.numel() == 0:
        return True
    # Bytes, not values: NaN is not equal to itself, and -0 is to 0.
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
