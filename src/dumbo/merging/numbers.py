"""The number types of safetensors files in NumPy: widened to compute with them, and rounded once to be written."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SIZES: Mapping[str, int] = MappingProxyType(
    {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
    | {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1}
)
"""Bytes of a number, by its name in a safetensors header."""

ROUNDOFF: Mapping[str, float] = MappingProxyType({"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8})
"""The types that can be merged into, with their unit roundoff: the largest relative error of rounding to nearest.
bfloat16 has 8 significant bits: 2^-8 where its spacing is 2^-7."""

NAMES: Mapping[str, str] = MappingProxyType({"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"})
"""The types by the names that PyTorch, and a user, gives them."""


def torch_name(dtype: str) -> str:
    """`bfloat16` for `BF16`."""
    return next((name for name, code in NAMES.items() if code == dtype), dtype)


def wide_type(dtype: str) -> Any:
    """The type to compute in: float32, and float64 for what has it."""
    return np.float64 if dtype == "F64" else np.float32


def widened(raw: bytes | bytearray | memoryview, dtype: str, wide: Any) -> Array:
    """The numbers in `raw`, of `dtype`, as a new flat array of `wide`."""
    if dtype == "BF16":
        bits = np.left_shift(np.frombuffer(raw, np.uint16), 16, dtype=np.uint32)
        return bits.view(np.float32).astype(wide, copy=False)
    stored = np.dtype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    return np.frombuffer(raw, stored).astype(wide)


def rounded(values: Array, dtype: str) -> Array:
    """`values` rounded to nearest, ties to even, as an array of the bytes of `dtype`; `values` may be overwritten."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        odd = bits >> 16
        odd &= 1
        odd += 0x7FFF
        bits += odd
        return (bits >> 16).astype(np.uint16)
    stored = np.dtype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values).astype(stored, copy=False)


def is_finite(stored: Array, dtype: str) -> bool:
    """Whether all numbers that `rounded` made are finite."""
    if dtype == "BF16":
        return not bool(((stored & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(stored).all())
