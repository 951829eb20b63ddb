"""Calls Transformers' `generate` with what is asked of it, and with nothing of what the model's files want."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


def generate(model: Any, options: Mapping[str, Any], **inputs: Any) -> Any:
    """What `model.generate` returns for `inputs` under `options`, which are values of a `GenerationConfig`."""
    chosen = GenerationConfig(**options)  # type: ignore[no-untyped-call]
    with _without_own_options(model):
        return model.generate(generation_config=chosen, **inputs)


@contextmanager
def _without_own_options(model: Any) -> Iterator[None]:
    """The model without its files' wishes (beams, banned tokens): they would fill in what is not written."""
    # An adapter's wrapper hands its own to the model inside.
    holders = [(part, part.generation_config) for part in model.modules() if "generation_config" in vars(part)]
    try:
        for part, _ in holders:
            part.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        yield
    finally:
        for part, own in holders:
            part.generation_config = own
