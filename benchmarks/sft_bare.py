"""A training loop without a framework: what `sft.py` holds dumbo against.

`PYTHON benchmarks/sft_bare.py RUN.json`. The same class of model with the same attention, the same batches in the same
order, ready made, the same optimizer, schedule and clipping, and the same kernels for packed attention and the loss.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from sft_clock import StepClock
from torch import Tensor
from transformers import AutoModelForCausalLM

from dumbo.bridge.token_loss import TokenLoss
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.losses.token import count_supervised


def main() -> None:
    """Train on all batches."""
    run = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    clock, dtype = StepClock(), getattr(torch, run["dtype"])
    device = "cuda" if run["gpu"] else "cpu"
    model = prepared(AutoModelForCausalLM.from_pretrained(run["model"], dtype=dtype), run, dtype, device)
    batches = torch.load(run["batches"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=run["learning_rate"], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    compute = TokenLoss(LossOptions(), lambda line: None)
    model.train()
    clock.watch(model)
    for batch in batches:
        clock.count(batch)
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = compute(model, batch, count_supervised(batch["labels"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.step_ends()
        clock.on_log(None, None, None, logs={"loss": loss.item()})
    clock.finish()


def prepared(model: Any, run: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    """With LoRA, and with dumbo's attention for packed rows, where the case has them."""
    if run["lora"]:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    model.to(device)
    if run["packed"]:
        from dumbo.bridge.packing import prepare_for_packing

        prepare_for_packing(model, None, None if dtype == torch.float32 else dtype)
    return model


if __name__ == "__main__":
    main()
