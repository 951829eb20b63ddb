"""How much memory the activations of a forward pass need, to choose gradient checkpointing where nobody did."""

from __future__ import annotations

import os
from typing import Any

import torch

from dumbo.bridge.head import HeadError, head_shape
from dumbo.bridge.quantized_base import stored_bytes
from dumbo.bridge.token_loss import WORTHWHILE_BYTES
from dumbo.kernels.linear_logits import tile_rows
from dumbo.memory import memory_bytes

_BYTES_PER_VALUE = 34
"""Bytes that a layer of a transformer keeps per token and hidden unit in 16 bit, without the attention weights, which
fused kernels do not keep: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1. In 32 bit it is twice as much."""


def activation_bytes(model: Any, rows: int, tokens: int, bytes_per_value: int) -> int:
    """Bytes that the backward pass of `rows` sequences of `tokens` tokens needs from its forward pass.

    Layers as in the paper, and three copies of the logits in float32 (values, softmax, gradient), of which only a tile
    is there where the loss does without. 0 for a model whose configuration does not name its sizes.
    """
    config = getattr(model, "config", None)
    if config is None:
        return 0
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, layers = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if not hidden or not layers:
        return 0
    size, positions = getattr(text, "vocab_size", 0) or 0, rows * tokens
    of_layers = positions * _BYTES_PER_VALUE * hidden * layers * bytes_per_value // 2
    return int(of_layers + 3 * 4 * size * _rows_of_logits(model, positions, size))


def _rows_of_logits(model: Any, positions: int, size: int) -> int:
    """Of how many positions the logits are there at once."""
    try:
        head_shape(model)
    except HeadError:
        return positions
    parameter = next(model.parameters(), None)
    if parameter is None or 4 * positions * size < WORTHWHILE_BYTES:
        return positions
    return tile_rows(positions, size, parameter.device)


def state_bytes(model: Any) -> int:
    """Bytes that weights on the device, gradients and the two moments of Adam take beside the activations."""
    weights = sum(stored_bytes(p) for p in model.parameters())
    trained = sum(stored_bytes(p) for p in model.parameters() if p.requires_grad)
    return int(weights + 3 * trained)


def saved_bytes(model: Any, checkpoints: int) -> int:
    """Bytes that the model takes on a disk (of one with adapters, these), and beside it so many checkpoints, which have
    the two moments of Adam too."""
    sizes = [(stored_bytes(p), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    weights = trained if hasattr(model, "peft_config") else sum(size for size, _ in sizes)
    return int(weights + checkpoints * (weights + 2 * trained))


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that nobody uses yet; main memory is shared by the processes of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        return memory_bytes()[0] // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0


def choose_checkpointing(
    model: Any, device: torch.device, rows: int, tokens: int, bytes_per_value: int
) -> tuple[bool, str]:
    """Whether to checkpoint, and why: where activations would take more than 80 % of what the state leaves free."""
    needed = activation_bytes(model, rows, tokens, bytes_per_value)
    if not getattr(model, "supports_gradient_checkpointing", False):
        return False, "the model does not support it"
    free = free_bytes(device)
    if not needed or not free:
        return False, "what the activations need cannot be estimated"
    on_device = sum(stored_bytes(p) for p in model.parameters()) if device.type == "cpu" else 0
    left = free - state_bytes(model) + on_device
    enough = needed <= 0.8 * left
    words = f"activations need about {_size(needed)} of {_size(max(left, 0))} free"
    return not enough, words


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
