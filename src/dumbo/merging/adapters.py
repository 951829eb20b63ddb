"""Reads the folder of an adapter: its settings, and its tensors by the module that each changes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from dumbo.errors import Problem, RunError
from dumbo.merging.tensor_files import StoredTensor, read_header

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
QUANTIZATION = "base_quantization.json"
"""What an adapter that was trained on a quantized base model says about it."""

_ROLES = (
    *("lora_A", "lora_B", "lora_E", "ranknum", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    *("trainable_tokens_delta", "ia3_l", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
KEY = re.compile(rf"(?P<module>.+)\.(?P<role>{'|'.join(_ROLES)})(?:\.[^.]+?)??(?P<kind>\.weight|\.bias)?")
_OUTER = ("base_model.model.", "base_model.")


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies on disk."""

    folder: Path
    settings: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, StoredTensor]]
    """Module -> role (`lora_A`, `lora_B.bias`) -> tensor; the names are those in memory, without PEFT's prefix."""
    whole: Mapping[str, StoredTensor]
    """Tensors of the model that the adapter brings as a whole, by their names in memory."""
    weight: float = 1.0
    """What its change is multiplied by."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """How the base model was quantized in training; empty where it was not."""

    @property
    def kind(self) -> str:
        """PEFT's name of the method: LORA, IA3 ..."""
        return str(self.settings.get("peft_type", "LORA")).upper()

    @property
    def base(self) -> str:
        """The folder or hub name of its base model.

        Raises:
            RunError: it names none.
        """
        name = self.settings.get("base_model_name_or_path")
        if not name:
            hint = "write the folder or the hub name of the model that it was trained on there"
            raise _error(f"{self.folder / SETTINGS} names no base model (base_model_name_or_path)", hint)
        return str(name)

    def scaling(self, module: str, rank: int | None) -> float:
        """What the product of the matrices of `module`, which have `rank` inside, is multiplied by.

        As PEFT does: alpha over the rank, or over its square root (rsLoRA), both as the patterns for the name say.

        Raises:
            RunError: the settings give it another rank.
        """
        patterns = self.settings.get("rank_pattern") or {}
        r = float(patterns.get(_matching(patterns, module), self.settings.get("r", rank)))
        alphas = self.settings.get("alpha_pattern") or {}
        usual = self.settings.get("lora_alpha", self.settings.get("alpha", r))
        alpha = float(alphas.get(_matching(alphas, module), usual))
        if rank is not None and int(r) != rank:
            message = f"{self.folder / SETTINGS} gives {module} rank {int(r)}, and its matrices have {rank}"
            raise _error(message, "the two files are not of one training")
        return alpha / sqrt(r) if self.settings.get("use_rslora") else alpha / r


def _matching(patterns: Mapping[str, Any], name: str) -> str:
    """The first of `patterns` that means `name`, as PEFT's `get_pattern_key` finds it."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), name)


def read_adapter(folder: Path, weight: float = 1.0) -> Adapter:
    """The adapter in `folder`.

    Raises:
        RunError: there is none, it is damaged, or nothing was trained in it.
    """
    settings = _read_object(folder / SETTINGS)
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = (
            "load it with PEFT where you trust it, and save it again" if pickled else "copy it from where it was made"
        )
        what = "only as a pickle (adapter_model.bin), which is not opened" if pickled else f"not there ({WEIGHTS})"
        raise _error(f"the weights of the adapter in '{folder}' are {what}", hint)
    tensors, _ = read_header(file)
    parts: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        name = key
        for prefix in _OUTER:
            name = name.removeprefix(prefix)
        match = KEY.fullmatch(name)
        if match is not None:
            role = match["role"] + (".bias" if match["kind"] == ".bias" else "")
            parts.setdefault(match["module"].removesuffix(".token_adapter"), {})[role] = tensor
        else:
            whole[_plain(name)] = tensor
    quantized = folder / QUANTIZATION
    adapter = Adapter(folder, settings, parts, whole, weight, _read_object(quantized) if quantized.is_file() else {})
    if not tensors:
        raise _error(f"the adapter in '{folder}' is empty: {file} has no tensors", "there is nothing to merge")
    return adapter


def untrained(adapter: Adapter) -> bool:
    """Whether the adapter changes nothing: the matrix that begins as zeros is zeros still, everywhere."""
    import numpy as np

    if adapter.whole or adapter.kind not in ("LORA", "ADALORA"):
        return False
    for roles in adapter.parts.values():
        last = [roles[name] for name in ("lora_B", "lora_embedding_A", "lora_B.bias") if name in roles]
        if "lora_magnitude_vector" in roles or "trainable_tokens_delta" in roles or not last:
            return False
        # Which of the two begins as zeros is another one for embeddings.
        pair = [*last, roles["lora_embedding_B"]] if "lora_embedding_B" in roles else last
        zero = [not tensor.read(np.float32).any() for tensor in pair]
        if not (any(zero) if "lora_embedding_B" in roles else all(zero)):
            return False
    return True


def _plain(name: str) -> str:
    """The model's own name of a tensor that PEFT has wrapped."""
    for inner in (".base_layer", ".original_module", ".modules_to_save.default", ".modules_to_save"):
        name = name.replace(f"{inner}.", ".")
    return name


def _read_object(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _error(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(tree, dict):
        raise _error(f"{file} is no JSON object")
    return tree


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
