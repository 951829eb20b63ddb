"""EVA: LoRA that begins with the strongest directions of what its layers are given (arXiv 2410.07170)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from peft.tuners.lora.eva import get_eva_state_dict, initialize_lora_eva_weights

from dumbo.config.schema import RunConfig
from dumbo.data.collate import PaddingCollator
from dumbo.data.dataset import TokenDataset
from dumbo.errors import ConfigError
from dumbo.plugins.peft.adapter import ADAPTER, quiet

BATCH_TOKENS = 4096
"""Tokens of a batch, or as many as there are directions where those are more."""
_BATCHES = 32
_MOST_PASSES = 1000
"""PEFT goes over the batches until all directions stand still; so many passes are not needed but by odd rows."""


def begin_with_eva(adapted: Any, rows: TokenDataset | None, config: RunConfig, say: Callable[[str], None]) -> None:
    """Give the adapter of `adapted` its first matrices by forward passes over training rows, and each layer a rank by
    how much of its input that explains, within the sum of all ranks.

    Raises:
        ConfigError: a stream, whose rows are not there yet; rows with too few trained tokens.
    """
    if rows is None:
        message = "'eva' looks at training rows before the first step, and those of a stream are not there yet"
        raise ConfigError.at("model.peft.init", message, "remove trainer.data.streaming, or take another init")
    settings = adapted.peft_config[ADAPTER]
    needed = round(max([settings.r, *settings.rank_pattern.values()]) * settings.eva_config.rho)
    narrow = min(module.in_features for module in adapted.modules() if ADAPTER in getattr(module, "lora_A", {}))
    if needed > narrow:
        message = f"'eva' looks for {needed} directions (rank times eva_rho), and a layer's input is {narrow} wide"
        raise ConfigError.at("model.peft.init", message, "take a lower rank or eva_rho, or another init")
    batches = _batches(rows, config.trainer.seed, needed)
    device = _device(config)
    home = next(adapted.parameters()).device
    passes = 0

    def forward(model: Any, inputs: Mapping[str, Any]) -> Any:
        nonlocal passes
        passes += 1
        if passes > _MOST_PASSES:
            message = f"the directions of 'eva' do not settle in {_MOST_PASSES} passes over rows"
            raise ConfigError.at("model.peft.init", message, "take a lower rank, or another init")
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

    adapted.to(device)
    with quiet():
        state = get_eva_state_dict(
            adapted, batches, forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
        )
        initialize_lora_eva_weights(adapted, eva_state_dict=state)
    adapted.to(home)
    found = [module.r[ADAPTER] for module in adapted.modules() if ADAPTER in getattr(module, "lora_A", {})]
    say(f"peft: eva, after {passes} passes over rows: ranks from {min(found)} to {max(found)} on {len(found)} layers")


def _batches(rows: TokenDataset, seed: int, needed: int) -> list[dict[str, Any]]:
    """Padded batches of rows in random order, each with as many trained tokens as directions are looked for."""
    collate, batch, tokens = PaddingCollator(0), [], 0
    found: list[dict[str, Any]] = []
    for number in np.random.default_rng(seed).permutation(len(rows)).tolist():
        row = rows[number]
        batch.append(row)
        tokens += int((row["labels"] != -100).sum())
        if tokens >= max(needed, BATCH_TOKENS):
            found.append(collate(batch))
            batch, tokens = [], 0
        if len(found) == _BATCHES:
            return found
    if tokens >= needed:
        found.append(collate(batch))
    if not found:
        message = f"'eva' looks for {needed} directions, and the rows have {tokens} trained tokens"
        raise ConfigError.at("model.peft.init", message, "take a lower rank or eva_rho, or another init")
    return found


def _device(config: RunConfig) -> torch.device:
    accelerator = (
        None if config.trainer.arguments.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    )
    return (
        torch.device("cpu")
        if accelerator is None
        else torch.device(accelerator.type, torch.accelerator.current_device_index())
    )
