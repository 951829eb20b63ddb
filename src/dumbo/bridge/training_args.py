"""`trainer.arguments` as Transformers' `TrainingArguments`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.config.arguments import TrainerArguments
from dumbo.config.batching import accumulation_steps

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from dumbo.config.schema import RunConfig

_TRANSLATED = frozenset(
    {
        "batch_size",
        "physical_batch_size",
        "label_smoothing_factor",
        "learning_rate_factors",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
    }
)
"""Words that Transformers has under other names, or that our own loss takes; the others go on as they are."""


def training_arguments(
    config: RunConfig, output_dir: Path, world_size: int, evaluates: bool, checkpointing: bool = False
) -> TrainingArguments:
    """The arguments of a run of `world_size` processes; checkpoints go to `output_dir`/checkpoints.

    Logging, trackers and progress bars of Transformers are off: dumbo has its own. `evaluates`: rows are held out.
    `checkpointing`: what `gradient_checkpointing: auto` means in this run.
    """
    from transformers import TrainingArguments

    ours = config.trainer.arguments
    values: dict[str, Any] = {
        name: getattr(ours, name) for name in TrainerArguments.model_fields if name not in _TRANSLATED
    }
    accelerator = _has_accelerator()
    values |= {
        "output_dir": str(output_dir / "checkpoints"),
        "seed": config.trainer.seed,
        "per_device_train_batch_size": ours.physical_batch_size,
        "per_device_eval_batch_size": ours.per_device_eval_batch_size or ours.physical_batch_size,
        "gradient_accumulation_steps": accumulation_steps(ours.batch_size, ours.physical_batch_size, world_size),
        "max_steps": ours.max_steps if ours.max_steps is not None else -1,
        "bf16": uses_bf16(ours),
        "use_cpu": ours.use_cpu or not accelerator,
        "lr_scheduler_kwargs": dict(ours.lr_scheduler_kwargs),
        "eval_strategy": (ours.eval_strategy or "epoch") if evaluates else "no",
        "dataloader_pin_memory": ours.dataloader_pin_memory and accelerator and not ours.use_cpu,
        # One process has no group, and Transformers would ask the backend for its rank.
        "ddp_backend": ours.ddp_backend if world_size > 1 else None,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "average_tokens_across_devices": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "log_level": "error",
    }
    # Transformers 5.20 renamed these two; the old names warn there and the new ones are unknown before.
    word = "activation" if "activation_checkpointing" in TrainingArguments.__dataclass_fields__ else "gradient"
    asked = ours.gradient_checkpointing
    values[f"{word}_checkpointing"] = checkpointing if asked == "auto" else asked
    values[f"{word}_checkpointing_kwargs"] = dict(ours.gradient_checkpointing_kwargs) or None
    arguments = TrainingArguments(**values)
    # One process trains on one device; DataParallel would split batches behind the plan's back.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def uses_bf16(arguments: TrainerArguments) -> bool:
    """Whether to compute in bfloat16; `auto` does where the GPU has it and float16 was not asked for."""
    if arguments.bf16 != "auto":
        return arguments.bf16
    import torch

    return not (arguments.fp16 or arguments.use_cpu) and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()
