"""Beginnings of LoRA that change the base model: what was trained is saved so that it fits the model as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dumbo.bridge.inference_model import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_A, _B = ".lora_A.weight", ".lora_B.weight"


def changes_base(init: str) -> bool:
    """Whether LoRA that begins so takes out of the base weights what it begins with."""
    return init.startswith("pissa") or init == "olora"


def convert_to_plain(folder: Path, initial: Mapping[str, Tensor]) -> None:
    """Rewrite the adapter in `folder` as a LoRA of twice the rank on the unchanged base model.

    With `initial` (its matrices A0, B0 when the training began) the weight in training is W - s B0 A0 + s B A, which is
    W + s [B, -B0] [A; A0]. `s` stays as it was: alpha doubles with the rank, and with rsLoRA grows by the root of 2.
    """
    file = folder / ADAPTER_WEIGHTS
    weights = load_file(file)
    for name in [name for name in weights if name.endswith(_A)]:
        other = name.removesuffix(_A) + _B
        weights[name] = torch.cat([weights[name], initial[name].to(weights[name].dtype)], dim=0).contiguous()
        weights[other] = torch.cat([weights[other], -initial[other].to(weights[other].dtype)], dim=1).contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    settings = _read(folder)
    factor = 2**0.5 if settings["use_rslora"] else 2
    settings["r"] *= 2
    settings["rank_pattern"] = {key: 2 * rank for key, rank in settings["rank_pattern"].items()}
    settings["lora_alpha"] *= factor
    settings["alpha_pattern"] = {key: factor * alpha for key, alpha in settings["alpha_pattern"].items()}
    _write(folder, settings)


def forget_beginning(folder: Path) -> None:
    """Let the adapter in `folder` begin as any does where it is loaded: its weights come from its file, and another
    beginning would only be computed in vain, or change the base model."""
    settings = _read(folder)
    if isinstance(settings.get("init_lora_weights"), str):
        settings["init_lora_weights"], settings["eva_config"] = True, None
        _write(folder, settings)


def initial_weights(adapted: Any, name: str) -> dict[str, Tensor]:
    """A copy of the adapter's matrices as they are, under the names that they have in its file."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    return {key: value.detach().clone() for key, value in state.items() if key.endswith((_A, _B))}


def _read(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return settings


def _write(folder: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def first_half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert_to_plain` for the weights: bit by bit what was saved."""
    result = dict(weights)
    for name, value in weights.items():
        if name.endswith(_A):
            result[name] = value[: value.shape[0] // 2].contiguous()
        elif name.endswith(_B):
            result[name] = value[:, : value.shape[1] // 2].contiguous()
    return result
