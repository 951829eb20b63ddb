"""Puts the kernels into a model, and says where they are and where PEFT's own layers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dumbo.bridge.lora_seam import Found, fuse_lora
from dumbo.errors import ConfigError, Problem
from dumbo.plugins.lora_kernels.plugin import LoraKernelsOptions

BLOCKS = "gated feed-forward blocks"


def fuse(model: Any, options: LoraKernelsOptions, say: Callable[[str], None]) -> Any:
    """Return `model` with the kernels of `options` in it, having said where.

    Raises:
        ConfigError: nothing in the model is for the kernels, or nothing for one that was asked for by name.
    """
    found = fuse_lora(model, blocks=options.mlp is not False, layers=options.linear is not False)
    problems = list(_problems(found, options))
    if problems:
        raise ConfigError(problems)
    fused = [f"{len(found.blocks)} {BLOCKS}"] if found.blocks else []
    fused += [f"{len(found.layers)} layers ({counted(found.layers)})"] if found.layers else []
    say(f"lora_kernels: in {' and '.join(fused)}")
    for line in _left(found):
        say(f"lora_kernels: left to PEFT: {line}")
    return model


def counted(names: Iterable[str]) -> str:
    """`q_proj 2, v_proj 2`: the last parts of module names, with how many there are of each."""
    return ", ".join(f"{name} {count}" for name, count in Counter(name.rpartition(".")[2] for name in names).items())


def _problems(found: Found, options: LoraKernelsOptions) -> Iterator[Problem]:
    if options.mlp and not found.blocks:
        left = _grouped(found.left_blocks) or [f"the model has no {BLOCKS} with LoRA"]
        yield Problem(f"has no effect: {left[0]}", ("model", "lora_kernels", "mlp"), hints=("leave it out",))
    if options.linear and not found.layers:
        left = _grouped(found.left_layers) or ["there are no layers with LoRA outside of the blocks"]
        yield Problem(f"has no effect: {left[0]}", ("model", "lora_kernels", "linear"), hints=("leave it out",))
    if not found.blocks and not found.layers and not options.mlp and not options.linear:
        hints = (*_left(found), "remove 'lora_kernels' from plugins")
        yield Problem("'lora_kernels' has no effect: PEFT computes all layers of this model", ("plugins",), hints=hints)


def _left(found: Found) -> list[str]:
    return [*_grouped(found.left_blocks), *_grouped(found.left_layers)]


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason."""
    names = {why: [name for name, its in reasons.items() if its == why] for why in reasons.values()}
    return [f"{counted(those)}: {why}" for why, those in names.items()]
