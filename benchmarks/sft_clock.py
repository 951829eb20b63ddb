"""Clocks the steps of a training from the inside, in any environment that has Transformers; dumbo need not be there.

A `TrainerCallback`, which dumbo and all of its peers take; a loop without a Trainer calls the same methods itself. It
looks on through public hooks: of the model for the beginning of a forward pass, of the parameters for the end of the
backward pass, of PyTorch's optimizers for their update, and it counts tokens as batches are made. What it finds goes
to the JSON file `$SFT_CLOCK`; the batches go to `$SFT_BATCHES`, where that is set.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from clock import peak_memory
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """Seconds, processor seconds and tokens of each step; memory; the time since the command was given."""

    def __init__(self) -> None:
        self._command_at = float(os.environ["SFT_BEGAN"])
        self._steps: list[dict[str, float]] = []
        self._counts: list[dict[str, int]] = []
        self._batches: list[Mapping[str, Any]] = []
        self._facts: dict[str, float] = {}
        self._forward_at = self._backward_ended_at = self._optimizer_at = self._inside = 0.0
        self._wall = self._processor = 0.0
        self._pad: int | None = None

    def watch(self, model: torch.nn.Module) -> None:
        """From now on, look at `model` and at whichever optimizer is used."""
        model.register_forward_pre_hook(self._forward_begins)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._gradient_is_there)
        register_optimizer_step_pre_hook(self._optimizer_begins)
        register_optimizer_step_post_hook(self._optimizer_ends)
        self._pad = model.config.pad_token_id
        self._facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        self._facts["trained_parameters"] = sum(parameter.numel() for parameter in trained)
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def count(self, batch: Mapping[str, Any]) -> None:
        """Note the tokens of the batch that the next step, or one after it, is made of."""
        labels, ids = batch["labels"], batch["input_ids"]
        mask = batch.get("attention_mask")
        tokens = ids.numel() - count_padding(ids, labels, self._pad) if mask is None else count_attended(mask)
        supervised = int((labels[..., 1:] != -100).sum())
        self._counts.append({"positions": ids.numel(), "tokens": tokens, "supervised": supervised})
        if "SFT_BATCHES" in os.environ:
            self._batches.append(dict(batch))

    def step_ends(self) -> None:
        """The optimizer has made its step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        if not self._steps:
            self._facts["first_step_seconds"] = time.time() - self._command_at
        self._steps.append(
            {
                "wall_seconds": wall - self._wall,
                "cpu_seconds": processor - self._processor,
                "inside_seconds": self._inside,
                **self._counts[len(self._steps)],
            }
        )
        self._wall, self._processor, self._inside = wall, processor, 0.0

    def finish(self) -> None:
        """Write what was found."""
        self._facts["memory_mib"] = peak_memory()
        if torch.cuda.is_available():
            self._facts["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        report = {**self._facts, "steps": self._steps}
        Path(os.environ["SFT_CLOCK"]).write_text(json.dumps(report), encoding="utf-8")
        if self._batches:
            torch.save(self._batches[: len(self._steps)], os.environ["SFT_BATCHES"])

    def on_train_begin(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
        """Hang the hooks up."""
        loader = more["train_dataloader"]
        loader = getattr(loader, "base_dataloader", loader)  # Accelerate's stands around PyTorch's
        loader.collate_fn = self._counted(loader.collate_fn)
        self.watch(more["model"])

    def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
        """Note the step."""
        self.step_ends()

    def on_log(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
        """Keep the first loss."""
        logged = more.get("logs") or {}
        if "loss" in logged:
            self._facts.setdefault("first_logged_loss", float(logged["loss"]))

    def on_train_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
        """Write before the model is saved, which is no part of the training."""
        self.finish()

    def _counted(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def collate_and_count(rows: Any) -> Any:
            batch = collate(rows)
            self.count(batch)
            return batch

        return collate_and_count

    def _forward_begins(self, model: Any, inputs: Any) -> None:
        self._forward_at = time.perf_counter()

    def _gradient_is_there(self, parameter: Any) -> None:
        self._backward_ended_at = time.perf_counter()

    def _optimizer_begins(self, optimizer: Any, positional: Any, named: Any) -> None:
        self._optimizer_at = time.perf_counter()

    def _optimizer_ends(self, optimizer: Any, positional: Any, named: Any) -> None:
        self._inside = self._backward_ended_at - self._forward_at + time.perf_counter() - self._optimizer_at


def count_attended(mask: Tensor) -> int:
    """The positions that are no padding, by a mask of them, by one that numbers documents `[B, T]`, or by one that has
    for each position what it sees `[B, 1, T, T]`."""
    if mask.ndim == 2:
        return int((mask > 0).sum())
    seen = mask[:, 0].diagonal(dim1=-2, dim2=-1)  # whether a token sees itself
    return int((seen if seen.dtype == torch.bool else seen == 0).sum())


def count_padding(ids: Tensor, labels: Tensor, pad: int | None) -> int:
    """The positions of a batch without a mask that are padding, though the same token may end turns: those that nobody
    trains on, beside another one."""
    padding = (ids == pad) & (labels == -100)
    beside = torch.zeros_like(padding)
    beside[..., 1:] |= padding[..., :-1]
    beside[..., :-1] |= padding[..., 1:]
    return int((padding & beside).sum())
