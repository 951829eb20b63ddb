"""AdaLoRA's budget of ranks: what it adds to the loss, and what it takes from layers after each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.errors import ConfigError

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankBudget(TrainerCallback):
    """Moves ranks among the layers of an AdaLoRA model, and keeps its matrices near to orthogonal.

    What PEFT knows of the importance of ranks is in `state`. Which ranks are left is kept here, and not in PEFT's
    configuration: the file of an adapter then has all ranks, those that are gone with the value 0, and fits again.
    """

    def __init__(self, adapted: Any, name: str) -> None:
        """`adapted` is the wrapped model, `name` that of its adapter."""
        self._tuner: Any = adapted.base_model
        self._name = name
        self._settings: Any = adapted.peft_config[name]
        self._pattern: dict[str, list[bool]] | None = None
        adapted.register_forward_hook(self._add_penalty)

    def on_train_begin(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Take the number of steps, which nobody knew before."""
        total, first, last = state.max_steps, self._settings.tinit, self._settings.tfinal
        if first >= total - last:
            message = f"tinit {first} and tfinal {last} leave none of the {total} steps of the run to move ranks in"
            raise ConfigError.at("model.peft.settings", message, "make them smaller, or train for longer")
        self._tuner.rankallocator.set_total_step(total)

    def on_optimizer_step(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """After the update, while its gradient is there; a step that was left out has none."""
        parameters = [p for n, p in self._tuner.model.named_parameters() if "lora_" in n and self._name in n]
        if any(parameter.grad is None for parameter in parameters if parameter.requires_grad):
            return
        allocator = self._tuner.rankallocator
        for name in _AVERAGES:
            values = getattr(allocator, name)
            values.update({key: value.to(parameters[0].device) for key, value in values.items()})
        self._settings.rank_pattern = self._pattern
        try:
            self._tuner.update_and_allocate(state.global_step + 1)
        finally:
            self._pattern, self._settings.rank_pattern = self._settings.rank_pattern, None

    def state(self) -> dict[str, Any]:
        """What a run that goes on needs of it."""
        allocator = self._tuner.rankallocator
        return {"pattern": self._pattern, **{name: dict(getattr(allocator, name)) for name in _AVERAGES}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` said."""
        self._pattern = state["pattern"]
        for name in _AVERAGES:
            setattr(self._tuner.rankallocator, name, dict(state[name]))

    def _add_penalty(self, module: Any, inputs: Any, output: Any) -> None:
        """PEFT adds its penalty to a loss of the model's own, and ours is another one: it goes with the auxiliary
        loss, which the trainer adds with the model's coefficient."""
        if not torch.is_grad_enabled() or getattr(output, "loss", None) is not None:
            return
        coefficient = getattr(module.config, "router_aux_loss_coef", 1.0)
        penalty = self._settings.orth_reg_weight * self._distance() / coefficient
        before = getattr(output, "aux_loss", None)
        output.aux_loss = penalty if before is None else before + penalty

    def _distance(self) -> Tensor:
        """The mean over all matrices of how far their rows (columns) are from orthonormal, in Frobenius norm (arXiv
        2303.10512, equation 4)."""
        distances = []
        for name, matrix in self._tuner.model.named_parameters():
            if self._name in name and ("lora_A" in name or "lora_B" in name):
                gram = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
                distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
        return torch.stack(distances).mean()
