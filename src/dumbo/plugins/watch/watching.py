"""Listens to what the trainer logs, tells of findings, and ends the run where that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.errors import ConfigError
from dumbo.metrics import logged_path
from dumbo.plugin_loader import Services
from dumbo.plugins.watch.judging import Judge


class Watch(TrainerCallback):
    """On every rank; where it stops, all ranks stop after the same step, with the weights of that step kept."""

    def __init__(self, judge: Judge, stops: bool, services: Services) -> None:
        """`services` tell the user, and keep the findings for the run's report."""
        self._judge, self._stops, self._services = judge, stops, services
        self._findings: list[str] = []
        self._alarm: str | None = None
        self._saved_step = 0

    def on_log(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Judge what is logged."""
        metrics = dict(_paths(more["logs"]))
        new = list(self._judge.findings(metrics, state.global_step, _vocab_size(more["model"])))
        if self._stops:
            if _any_rank(bool(new), arguments):
                self._alarm = self._alarm or (
                    new[0] if new else f"step {state.global_step}: another process has an alarm"
                )
                self._end(state, control)
        else:
            for finding in new:
                self._services.say(f"watch: {finding}")
        if new:
            self._findings += new
            self._services.note("watch", list(self._findings))

    def on_step_end(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """An alarm before the first step, in an evaluation, ends the run after it: now."""
        if self._alarm is not None:
            self._end(state, control)

    def on_save(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """The weights are kept: end the run."""
        self._saved_step = state.global_step
        if self._alarm is not None:
            self._end(state, control)

    def _end(self, state: TrainerState, control: TrainerControl) -> None:
        """Have the weights of this step written; once they are, end the run."""
        if state.global_step and self._saved_step == state.global_step:
            folder = self._services.output_dir / "checkpoints" / f"step-{state.global_step:06}"
            # The first rank alone reports errors of this kind.
            message = f"the run was stopped at {self._alarm}"
            raise ConfigError.at("trainer.watch.on_alarm", message, f"the model as it was is in {folder}")
        control.should_save = control.should_training_stop = True
        control.should_evaluate = False


def _any_rank(found: bool, arguments: TrainingArguments) -> bool:
    """Whether a rank has found something: values that are not averaged over ranks may differ between them."""
    if arguments.world_size <= 1:
        return found
    flag = torch.tensor(int(found), device=arguments.device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def _paths(logs: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a log under dumbo's names; nothing of the summary after the last step."""
    if "train_runtime" in logs:
        return
    for name, value in logs.items():
        if isinstance(value, int | float):
            yield logged_path(name), float(value)


def _vocab_size(model: Any) -> int | None:
    config: Any = getattr(getattr(model, "module", model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", None)
