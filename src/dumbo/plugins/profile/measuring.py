"""Measures some steps with PyTorch's profiler, and writes the trace, a summary and a snapshot of the memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.plugin_loader import Services
from dumbo.plugins.profile.operators import operators_of, table
from dumbo.plugins.profile.plugin import steps_problem

if TYPE_CHECKING:
    from dumbo.plugins.profile.plugin import ProfileOptions

SHOWN = 6
"""Operators that are printed; the file has more."""
MOST_ALLOCATIONS = 1_000_000
"""Allocations that a snapshot of the GPU's memory holds."""


class Measure(TrainerCallback):
    """Looks on from the start of the first step to the end of the last, and changes nothing in them."""

    def __init__(self, options: ProfileOptions, services: Services) -> None:
        """Only the first rank measures."""
        self._options, self._services = options, services
        self._profiler: profile | None = None
        self._done = services.rank != 0

    def on_train_begin(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Refuse steps that the training does not have, on all ranks."""
        problem = steps_problem(self._options, state.max_steps)
        if problem is not None:
            raise problem

    def on_step_begin(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Start before the first step that is measured."""
        if self._done or self._profiler is not None or state.global_step + 1 < self._options.start_step:
            return
        # The profiler's library writes when it starts and stops; nothing of it is about the training.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        on_gpu = arguments.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        if self._options.memory and on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=MOST_ALLOCATIONS)
        self._profiler = profile(
            activities=activities,
            record_shapes=self._options.record_shapes,
            profile_memory=self._options.memory,
            with_stack=self._options.with_stack,
        )
        self._profiler.start()

    def on_step_end(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Stop after the last step that is measured."""
        if state.global_step >= self._options.start_step + self._options.num_steps - 1:
            self._finish(state.global_step, arguments.device)

    def on_train_end(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Where the training ended early, keep what was measured."""
        self._finish(state.global_step, arguments.device)

    def _finish(self, step: int, device: torch.device) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        self._done = True
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        profiler.stop()
        folder = self._services.output_dir / "profile"
        folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        if self._options.memory and device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        self._tell(profiler, folder, step, device.type)

    def _tell(self, profiler: profile, folder: Path, step: int, device: str) -> None:
        first, shapes = self._options.start_step, self._options.record_shapes
        steps = f"step {first}" if step == first else f"steps {first} to {step}"
        operators = operators_of(profiler, device, shapes)
        title = f"profile of {steps}: time in operators themselves, on the {'GPU' if device == 'cuda' else 'CPU'}"
        lines = [title, *table(operators, self._options.memory)]
        (folder / "operators.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for line in (title, *table(operators[:SHOWN], self._options.memory)):
            self._services.say(line)
        self._services.say(f"the trace is in {folder / 'trace.json'}; a browser shows it at ui.perfetto.dev")
        shares = {operator.name: round(operator.share, 4) for operator in reversed(operators[:SHOWN])}
        self._services.note("profile", {"first_step": first, "last_step": step, "share_of_time": shares})
