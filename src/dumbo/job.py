"""What a trainer is given (`Job`), what it must be able to do (`Trainer`), and what a run leaves (`Artifact`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from dumbo.checkpoint.resume import Resumption
    from dumbo.config.schema import RunConfig
    from dumbo.console import Console
    from dumbo.data.dataset import TokenDataset
    from dumbo.data.records import Origin
    from dumbo.data.sequences import Sequences
    from dumbo.data.streaming import Stream
    from dumbo.errors import DumboError
    from dumbo.metrics import Metrics

Batch = Mapping[str, "Tensor"]
"""What a collator returns: `input_ids`, `attention_mask` and `labels`, each [sequences, tokens], and what a loss of
one's own needs."""

Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]
"""Dataset items to a batch. An item of which nothing is trained may be there only to keep the ranks in step."""

Loss = Callable[["Module", Batch, "Tensor"], "Tensor"]
"""(model, batch, num_items) -> scalar: the SUM over the batch's supervised tokens divided by `num_items`, the number of
supervised tokens in the whole global batch, so that no split into micro-batches or ranks changes the result. The
auxiliary loss of a model's experts is not its business: the trainer adds it."""

TokenWeights = Callable[["Tensor", "Tensor"], "Tensor"]
"""(logits [tokens, vocabulary], log-probability of each target [tokens]) -> how much each token counts, [tokens]; for
some of the trained tokens at a time. Both are in at least float32, and not to be changed; nothing is differentiated."""

Evaluator = Callable[[], Mapping[str, float]]
"""Measures the model as it is: name -> number, equal on all ranks; `{"exact_match": 0.9}` becomes
`eval/exact_match`."""


@dataclass(frozen=True)
class RateFactor:
    """Some weights learn at so many times the learning rate."""

    pattern: str
    """A regular expression, searched in the full names of what is trained."""
    factor: float
    owner: str = ""
    """The plugin that wants it; empty where the configuration says so."""


@dataclass(frozen=True)
class RunState:
    """What of the run, besides the training itself, goes into its checkpoints and comes back from them."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole configuration, without secrets."""
    versions: Mapping[str, str] = field(default_factory=dict)
    plugin_states: Callable[[], Mapping[str, Any]] = dict
    """The states of plugins, by their names."""
    load_plugin_states: Callable[[Mapping[str, Any]], None] = lambda states: None
    tracker_states: Callable[[], Mapping[str, Any]] = dict
    """What metrics collectors need to go on, by their names; for JSON."""
    resumption: Resumption | None = None
    """The checkpoint to go on from."""


@dataclass(frozen=True)
class Job:
    """Everything that a trainer needs, made by the stages before it. `None` means: no plugin claims it, use your
    own."""

    config: RunConfig
    model: Module
    tokenizer: PreTrainedTokenizerBase
    train_dataset: TokenDataset | None
    """None where there is a `stream`."""
    eval_dataset: TokenDataset | None
    sequences: Sequences | None
    """What of `train_dataset` is trained together in each epoch, and in which order: a `BatchPlan` shares it out."""
    collator: Collator
    """Makes batches of the rows of a forward pass of training."""
    eval_collator: Collator
    loss: Loss | None
    build_optimizer: Callable[[Module], Optimizer] | None
    build_scheduler: Callable[[Optimizer, int], LRScheduler] | None
    callbacks: Sequence[TrainerCallback]
    metrics: Metrics
    """Log here: `metrics.log({"train/loss": 1.2}, step)`; it does nothing on other ranks than the first."""
    console: Console
    """Report progress here; silent on other ranks than the first."""
    output_dir: Path
    evaluators: Sequence[Evaluator] = ()
    """To be called with every evaluation, after the loss on `eval_dataset`."""
    stream: Stream | None = None
    """The sequences to train on, without end: `arguments.max_steps` says when to stop. Every rank takes all of them,
    and `rank_batches` shares them out."""
    run_state: RunState = field(default_factory=RunState)
    find_origin: Callable[[TokenDataset, int], Origin | None] = lambda dataset, row: None
    """Where a row of `train_dataset` came from, if that is known."""
    rows_are_separate: bool = True
    """Whether batches may be cut between their rows or packed documents; a `CollatorPlugin` says so of its own."""
    learning_rate_factors: Sequence[RateFactor] = ()
    """Of those who want some; nothing where a plugin makes the optimizer, as it answers for them."""
    leave_word: Callable[[str], None] = lambda message: None
    """Where the process has to end without an error that is raised: keep this message as what ended the run."""


@dataclass(frozen=True)
class TrainResult:
    """How far a trainer came."""

    steps: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps planned. A callback may have ended the training earlier, and well."""
    interrupted: bool = False
    """Whether the user stopped it."""
    terminated: bool = False
    """Whether the system asked it to end (SIGTERM)."""
    checkpoint: Path | None = None
    """What it can go on from, where it was stopped and this was written."""
    failure: DumboError | None = None
    """What stopped it before its time: rows of a stream that cannot be used."""
    skipped: int = 0
    """Of the steps done, those whose update was left out, as their loss or gradient was not finite."""

    @property
    def stopped_early(self) -> bool:
        """Whether it was stopped by somebody or something that nobody planned."""
        return self.interrupted or self.terminated or self.failure is not None

    @property
    def words(self) -> str:
        """How far it came, where nobody stopped it: `12 of 18 steps (a callback ended it), 3 of them skipped,`."""
        words = f"{self.steps} step{'s' if self.steps != 1 else ''}"
        if self.steps < self.total_steps:
            words = f"{self.steps} of {self.total_steps} steps (a callback ended it)"
        return f"{words}, {self.skipped} of them skipped," if self.skipped else words


class Trainer(Protocol):
    """What `TrainerPlugin.build_trainer` returns."""

    def train(self) -> TrainResult:
        """Train to the end, or until the user interrupts; log to the job's metrics on the way."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write model and tokenizer so that Transformers loads them from `folder`. Called on every rank; one writes."""
        ...


@dataclass(frozen=True)
class Artifact:
    """What a run leaves: output plugins take it and may return another one."""

    folder: Path
    """Model and tokenizer, loadable with `from_pretrained`."""
    steps: int
    """Optimizer steps that it was trained for."""
