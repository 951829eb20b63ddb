"""`trainer.arguments`: batch sizes, and the words of Transformers' `TrainingArguments`, typed and closed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dumbo.config.section import EvaluationMetric, Section

PositiveInt = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class TrainerArguments(Section):
    """How the optimizer walks. A trainer plugin says which of these it uses; another one is an error."""

    # Amount of work
    batch_size: PositiveInt = 8
    """Sequences per optimizer step, over all devices."""
    physical_batch_size: PositiveInt = 1
    """Sequences per device per forward pass; what it cannot hold at once is accumulated."""
    per_device_eval_batch_size: PositiveInt | None = None
    """Sequences per device per forward pass in evaluation; by default `physical_batch_size`."""
    num_train_epochs: PositiveFloat = 3.0
    """Passes over the training rows; `max_steps` goes before it."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, whatever `num_train_epochs` says."""

    # Optimizer
    optim: str = "adamw_torch_fused"
    """Optimizer by its name in Transformers (`adamw_torch`, `sgd`, `adafactor`, ...)."""
    optim_args: str | None = None
    """Further arguments of the optimizer, as Transformers takes them: `name=value,name=value`."""
    learning_rate: NotNegativeFloat = 5e-5
    """Highest learning rate of the schedule."""
    learning_rate_factors: dict[str, NotNegativeFloat] = Field(default_factory=dict)
    """Some weights learn at so many times this rate: `{embed_tokens: 0.1, 'layers\\.[01]\\.': 0.5}`. Each key is a
    regular expression that is searched in the full name; of several that are found the factors are multiplied."""
    weight_decay: NotNegativeFloat = 0.0
    """Decoupled weight decay; biases and norms have none."""
    adam_beta1: Fraction = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: Fraction = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Adam's term against division by zero."""
    max_grad_norm: NotNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""

    # Schedule
    lr_scheduler_type: str = "linear"
    """Schedule by its name in Transformers (`linear`, `cosine`, `constant_with_warmup`, ...)."""
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the schedule, e.g. `{num_cycles: 2}`."""
    warmup_steps: NotNegativeFloat = 0.0
    """Steps in which the learning rate rises from 0: a number of steps, or below 1 a share of all."""

    # Loss
    label_smoothing_factor: Fraction = 0.0
    """Share of each label that is spread over the vocabulary; evaluation is never smoothed."""
    neftune_noise_alpha: NotNegativeFloat | None = None
    """Strength of the noise on input embeddings in training (NEFTune, arXiv 2310.05914)."""

    # Precision and memory
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16 over weights in `model.dtype`; `auto` does so on a GPU that has it."""
    fp16: bool = False
    """Compute in float16 with loss scaling, for GPUs without bfloat16."""
    tf32: bool | None = None
    """Let float32 products use TF32 on Ampere and later; by default PyTorch's own setting."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Keep fewer activations and recompute them in the backward pass; `auto` does so where they would not fit."""
    gradient_checkpointing_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `torch.utils.checkpoint`, e.g. `{use_reentrant: false}`."""
    torch_compile: bool = False
    """Compile the model with `torch.compile`."""
    torch_compile_backend: str | None = None
    """Backend of `torch.compile`; naming one turns compiling on."""
    torch_compile_mode: str | None = None
    """Mode of `torch.compile`; naming one turns compiling on."""
    torch_empty_cache_steps: PositiveInt | None = None
    """Give cached device memory back every so many steps."""
    use_cpu: bool = False
    """Train on the CPU although there is a GPU."""

    # Logging, evaluation, checkpoints
    logging_steps: PositiveInt = 10
    """Log every so many optimizer steps; the first and the last step are always logged."""
    eval_strategy: Literal["no", "steps", "epoch"] | None = None
    """When to evaluate; by default each epoch where rows are held out."""
    eval_steps: PositiveInt | None = None
    """Evaluate every so many optimizer steps (`eval_strategy: steps`)."""
    eval_delay: NotNegativeFloat = 0.0
    """Steps or epochs, as in `eval_strategy`, before the first evaluation."""
    eval_on_start: bool = False
    """Evaluate once before the first step."""
    load_best_model_at_end: bool = False
    """Keep the weights of the best evaluation in `checkpoints/best`, and end with them."""
    metric_for_best_model: Annotated[str, EvaluationMetric()] = "eval/loss"
    """Metric of the evaluations that says which is best (`load_best_model_at_end`)."""
    greater_is_better: bool | None = None
    """Whether a higher value is better; the usual names (`eval/loss`, `eval/exact_match`, ...) tell by themselves."""
    save_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to write the model as it is then into `checkpoints/step-N`; the model at the end is always written."""
    save_steps: PositiveInt = 500
    """Write a checkpoint every so many optimizer steps (`save_strategy: steps`)."""
    save_total_limit: PositiveInt | None = None
    """Keep this many checkpoints and remove older ones."""

    # Feeding the device
    dataloader_num_workers: NotNegativeInt = 0
    """Processes that prepare batches; 0 prepares them in the training process."""
    dataloader_pin_memory: bool = True
    """Put batches into pinned memory where there is a GPU."""
    dataloader_persistent_workers: bool = False
    """Keep the workers from one epoch to the next."""
    dataloader_prefetch_factor: PositiveInt | None = None
    """Batches that each worker prepares ahead."""

    # Many processes
    ddp_find_unused_parameters: bool | None = None
    """Let DistributedDataParallel look for parameters without gradients in each step."""
    ddp_bucket_cap_mb: PositiveInt | None = None
    """Size of the buckets in which gradients are exchanged, in MiB."""
    ddp_broadcast_buffers: bool | None = None
    """Copy buffers from the first rank before each forward pass."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl"] | None = None
    """Backend of torch.distributed; by default the one that fits the device."""
    ddp_timeout: PositiveInt = 1800
    """Seconds that a rank waits for the others."""
    full_determinism: bool = False
    """Use deterministic kernels only; slower."""


OPTIMIZER_KEYS = (
    *("optim", "optim_args", "learning_rate", "learning_rate_factors", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
)
"""What an optimizer plugin answers for in place of the trainer."""
SCHEDULE_KEYS = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
"""What a scheduler plugin answers for in place of the trainer."""
