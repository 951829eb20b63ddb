"""Recognises models whose zeros are left out of their files, in the format `sparse-bitmask` of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dumbo.errors import Problem, RunError

FORMAT = "sparse-bitmask"
SECTION = "quantization_config"
"""Where `config.json` says so, under `sparsity_config`."""
VALUES, PLACES, OFFSETS, SHAPE = "compressed", "bitmask", "row_offsets", "shape"
PARTS = (SHAPE, VALUES, PLACES, OFFSETS)
"""What there is of a weight `LAYER.weight`: `LAYER.shape` and so on."""
DECOMPRESS = "write it out with its zeros first: dumbo decompress"
_SECTIONS = (SECTION, "compression_config")
"""The second is an older name of the first."""


def leaves_zeros_out(folder: Path) -> bool:
    """Whether the weights of the model in `folder` are to be put together from their parts.

    Raises:
        RunError: they are stored sparse in another format.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # Whoever loads it says what is wrong.
    found = [section for section in map(config.get, _SECTIONS) if section] if isinstance(config, dict) else []
    sparsity = found[0].get("sparsity_config") if found and isinstance(found[0], dict) else None
    named = sparsity.get("format", "dense") if isinstance(sparsity, dict) else "dense"
    if named == "dense":
        return False
    if named != FORMAT or found[0].get("config_groups"):
        how = f"'{named}'" + (", and quantized" if found[0].get("config_groups") else "")
        message = f"the weights in '{folder}' are stored sparse as {how}, which is not read here"
        raise RunError(str(Problem(message, hints=("take the model as it was before it was compressed",))))
    return True


def refuse_left_out(folder: Path, what: str) -> None:
    """Raise a `RunError` where the zeros of the model in `folder` are left out; `what` is it that needs whole files."""
    if leaves_zeros_out(folder):
        message = f"{what} reads weights from the files, and those of '{folder}' leave the zeros out"
        raise RunError(str(Problem(message, hints=(f"{DECOMPRESS} {folder} NEW_FOLDER",))))


def without_section(config: Any) -> Any:
    """A configuration, as mapping or object, without what says that zeros are left out."""
    if isinstance(config, Mapping):
        return {key: value for key, value in config.items() if key not in _SECTIONS}
    for name in _SECTIONS:
        if hasattr(config, name):
            delattr(config, name)
    return config


def layers_of(names: Iterable[str]) -> dict[str, set[str]]:
    """Layer -> the parts of its weight that are among `names`. A shape alone is none: it may be anything."""
    found: dict[str, set[str]] = {}
    for name in names:
        layer, _, part = name.rpartition(".")
        if layer and part in PARTS:
            found.setdefault(layer, set()).add(part)
    return {layer: parts for layer, parts in found.items() if parts != {SHAPE}}
