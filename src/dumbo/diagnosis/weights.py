"""The tensors of a model's safetensors files, by their headers alone, and what training them takes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dumbo.left_out_zeros import PARTS, SHAPE, layers_of

_LONGEST_HEADER = 100_000_000
_NO_ADAPTER = re.compile(r"(^|\.)(lm_head|embed_tokens|wte|wpe|embed_out|embeddings?)\.")


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in `folder`, with the zeros that its files may leave out; empty where a header
    cannot be read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                shapes |= _shapes_in(opened)
        except (OSError, ValueError):
            return {}
    return shapes


def _shapes_in(opened: BinaryIO) -> dict[str, tuple[int, ...]]:
    length = int.from_bytes(opened.read(8), "little")
    header = json.loads(opened.read(length)) if length < _LONGEST_HEADER else {}
    header.pop("__metadata__", None)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    for layer, parts in layers_of(header).items():
        if parts == set(PARTS):
            begin, end = header[f"{layer}.{SHAPE}"]["data_offsets"]
            opened.seek(8 + length + begin)
            shapes = {
                name: shape for name, shape in shapes.items() if name not in {f"{layer}.{part}" for part in PARTS}
            }
            shapes[f"{layer}.weight"] = tuple(memoryview(opened.read(end - begin)).cast("q"))
    return shapes


def parameter_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def linear_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Weights of linear layers but the head: what is quantized of a base model."""
    layers = [shape for name, shape in shapes.items() if len(shape) == 2 and not _NO_ADAPTER.search(name)]
    return sum(math.prod(shape) for shape in layers)


def adapter_count(shapes: Mapping[str, tuple[int, ...]], rank: int, targets: Any) -> int:
    """Weights of LoRA matrices on the layers that `targets` means, read as PEFT does; `all-linear` spares the ends."""
    total = 0
    for name, shape in shapes.items():
        if len(shape) == 2 and _is_target(name.removesuffix(".weight"), targets):
            total += rank * sum(shape)
    return total


def _is_target(layer: str, targets: Any) -> bool:
    if targets == "all-linear":
        return not _NO_ADAPTER.search(f"{layer}.")
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in targets)
