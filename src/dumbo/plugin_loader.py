"""Everything that a plugin can be: subclass one or more of these classes and implement their one method.

A plugin is listed under `plugins:`, which switches it on. Method names are what counts: a `BasePlugin` with a method
`get_metrics_collector` collects metrics, whatever it inherits from. `dumbo docs plugins` is the guide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.config.schema import FormatOptions, RunConfig
from dumbo.config.section import Section
from dumbo.metrics import MetricsCollector
from dumbo.services import Services as Services  # a public name of this module, too

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from dumbo.data.dataset import TokenDataset
    from dumbo.data.records import DataFormat, Row, TrainFormat
    from dumbo.inference.generate import TextGenerator, Writer
    from dumbo.job import Artifact, Collator, Evaluator, Job, Loss, TokenWeights, Trainer


class BasePlugin:
    """What all plugins share. Nothing has to be declared."""

    name: ClassVar[str] = ""
    """By default the class name in snake case without `Plugin`."""
    section: ClassVar[str | None] = None
    """Where its options live: `model.NAME`, `trainer.NAME` or `evaluation.NAME`."""
    options_type: ClassVar[type[Section]] = Section
    """The model of its options; given a `section`, the user's values arrive as `self.options`."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that must be importable; a missing one ends the run with the pip command."""
    requires: ClassVar[frozenset[str]] = frozenset()
    """Names of plugins that must be listed too."""
    conflicts: ClassVar[frozenset[str]] = frozenset()
    """Names of plugins that must not be listed with it."""
    after: ClassVar[frozenset[str]] = frozenset()
    """Names of plugins that go first in the same kind of hook, where they are listed."""
    consumes: ClassVar[frozenset[str] | None] = None
    """Keys of the core's sections that its seat reads, e.g. `{"model.dtype"}`; others in the seat's charge are refused.
    None: what the hook reads is watched, and a key that the user wrote and the hook did not read is an error."""
    cache_version: ClassVar[str | None] = None
    """Of a plugin that reads rows or makes records, tokens or labels of them: to be changed whenever it makes others of
    the same. None: nothing that it makes is kept in the cache, as nobody could tell when that is out of date."""
    yields: ClassVar[frozenset[type]] = frozenset()
    """Seats (interface classes) that it leaves to another plugin that claims them."""

    options: Any
    config: RunConfig
    seats: frozenset[type[BasePlugin]]
    """The interfaces that it serves in this run: those it claims, less what it yielded."""
    services: Services
    """Set after `check`, before the first other hook."""

    def check(self, config: RunConfig) -> None:
        """Look for mistakes across sections before anything is loaded; raise `ConfigError.at(key, message, *hints)`."""


class ModelLoaderPlugin(BasePlugin):
    """Loads the model. Exactly one. With `extra_load_kwargs: Mapping[str, Any]`, which is set before `load_model`, it
    takes what `LoadOptionsPlugin`s contribute; with a method `load(name)` it loads other models for who asks."""

    def load_model(self, config: RunConfig) -> PreTrainedModel:
        """Return the model, on the CPU, ready to be changed by patchers."""
        raise NotImplementedError


class TokenizerLoaderPlugin(BasePlugin):
    """Loads the tokenizer. Exactly one."""

    def load_tokenizer(self, config: RunConfig, model: PreTrainedModel | None = None) -> PreTrainedTokenizerBase:
        """Return the tokenizer; the run then fits the model's embeddings to it."""
        raise NotImplementedError


class TokenizerPatcherPlugin(BasePlugin):
    """Changes the tokenizer before the model is fitted to it. Any number, each given what the one before returned."""

    def patch_tokenizer(self, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> PreTrainedTokenizerBase:
        """Return the tokenizer; the model gets a row for every token that it adds."""
        raise NotImplementedError


class Phase(IntEnum):
    """When a patcher gets the model; within a phase `after` and then the name decide."""

    STRUCTURE = 0
    ADAPTER = 1
    FREEZE = 2
    KERNELS = 3


class ModelPatcherPlugin(BasePlugin):
    """Changes the model before training. Any number, each given what the one before returned."""

    phase: ClassVar[Phase] = Phase.STRUCTURE

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model, changed or wrapped. It is on the CPU and not yet sharded or compiled."""
        raise NotImplementedError


class LoadOptionsPlugin(BasePlugin):
    """Adds arguments to the loading of the model (quantization, attention, experts). Two that disagree are an error."""

    def load_kwargs(self, config: RunConfig) -> Mapping[str, Any]:
        """Return arguments for `from_pretrained`."""
        raise NotImplementedError


class ReaderPlugin(BasePlugin):
    """Reads rows. `readers` maps each `type` of a dataset entry to the model of the keys beside it."""

    readers: ClassVar[Mapping[str, type[Section]]] = {}

    def read(self, options: Any) -> Iterator[Row]:
        """Yield the rows of one dataset entry; `options` is an instance of the type's model, with `options.type`."""
        raise NotImplementedError

    def fingerprint(self, options: Any) -> str | None:
        """Return a text that is another one whenever the rows of the entry are, by which they can be cached.

        None, as here, where that cannot be known.
        """
        return None


class DataFormatPlugin(BasePlugin):
    """Makes records of rows. `data_formats` maps each name to the model of its options."""

    data_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {}

    def build_data_format(self, options: Any) -> DataFormat:
        """Return a function from `Row` to `Record`; it raises `row.origin.error(...)` for a row that it cannot use."""
        raise NotImplementedError


class TrainFormatPlugin(BasePlugin):
    """Makes tokens and labels of records. `train_formats` maps each name to the model of its options."""

    train_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {}

    def build_train_format(self, options: Any, tokenizer: PreTrainedTokenizerBase) -> TrainFormat:
        """Return a function from `Record` to `Example`; it raises `record.origin.error(...)` likewise."""
        raise NotImplementedError


class DatasetPlugin(BasePlugin):
    """Changes the tokenised training set. Any number, each given what the one before returned."""

    def transform_dataset(self, dataset: TokenDataset, config: RunConfig) -> TokenDataset:
        """Return the training set to use."""
        raise NotImplementedError


class CollatorPlugin(BasePlugin):
    """Makes batches. At most one."""

    rows_are_separate: ClassVar[bool] = False
    """Whether a batch may be cut between any two rows (`trainer.faults.on_oom: halve`): they are the first dimension of
    all that it has, and none of them needs another, as the halves of a pair do."""

    def build_collator(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Return a function from dataset items to a batch (see `dumbo.job.Collator`)."""
        raise NotImplementedError


class LossPlugin(BasePlugin):
    """Computes the loss. At most one."""

    columns: ClassVar[frozenset[str]] = frozenset()
    """The columns beside tokens that it reads of a batch (`Example.columns`)."""

    def build_loss(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Loss:
        """Return a function from model, batch and number of supervised tokens to a scalar (see `dumbo.job.Loss`)."""
        raise NotImplementedError


class TokenWeightPlugin(BasePlugin):
    """Says how much each token counts in the training, by what the model predicts for it. At most one."""

    def build_token_weights(self, config: RunConfig) -> TokenWeights:
        """Return a function from logits and log-probabilities of targets to weights (`dumbo.job.TokenWeights`)."""
        raise NotImplementedError


class GeneratorPlugin(BasePlugin):
    """Writes text in a way of its own: in the run, and wherever its model is opened later. At most one."""

    def build_generator(self, model: Any, tokenizer: PreTrainedTokenizerBase, writer: Writer) -> TextGenerator:
        """Return what writes; it may count on `self.options`, which the tokenizer keeps, and not on `self.config`."""
        raise NotImplementedError


class OptimizerPlugin(BasePlugin):
    """Makes the optimizer. At most one."""

    def build_optimizer(self, model: Module, config: RunConfig) -> Optimizer:
        """Return the optimizer over the parameters of `model` that require gradients."""
        raise NotImplementedError


class SchedulerPlugin(BasePlugin):
    """Makes the learning rate schedule. At most one."""

    def build_scheduler(self, optimizer: Optimizer, total_steps: int, config: RunConfig) -> LRScheduler:
        """Return the schedule; it is stepped once per optimizer step, `total_steps` times."""
        raise NotImplementedError


class LearningRatePlugin(BasePlugin):
    """Gives some weights a learning rate of their own. Any number; the factors of one weight are multiplied."""

    def learning_rate_factors(self, config: RunConfig) -> Mapping[str, float]:
        """Return regular expression, searched in the names of what is trained -> times of the learning rate."""
        raise NotImplementedError


class EvaluatorPlugin(BasePlugin):
    """Measures the model whenever the trainer evaluates, on every rank. Any number; needs held-out rows."""

    metrics: ClassVar[tuple[str, ...]] = ()
    """The names that its evaluator returns; given, a metric that nobody measures is found before the run."""

    def build_evaluator(self, config: RunConfig) -> Evaluator:
        """Return a function without arguments from which the trainer gets numbers, logged as `eval/<name>`."""
        raise NotImplementedError


class CallbackPlugin(BasePlugin):
    """Watches and steers the training. Any number."""

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return Transformers callbacks, e.g. with `on_pre_optimizer_step` or `on_step_end`."""
        raise NotImplementedError


class StatePlugin(BasePlugin):
    """Has a state that a run which goes on must have again: an average, a counter. Any number."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return it: numbers, texts, tensors, arrays, and lists, tuples and mappings of them. Asked on every rank."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over from a checkpoint, on the same rank, before the first step; its tensors are on the CPU."""
        raise NotImplementedError


class TrainerPlugin(BasePlugin):
    """Trains. Exactly one."""

    resumes: ClassVar[bool] = False
    """Whether its trainer goes by `trainer.checkpoints` and `trainer.faults`, and goes on from `job.run_state`."""

    def build_trainer(self, job: Job) -> Trainer:
        """Return an object with `train` and `save_model` (see `dumbo.job.Trainer`)."""
        raise NotImplementedError


class LoggingPlugin(BasePlugin):
    """Sends metrics somewhere. Any number."""

    def get_metrics_collector(self) -> MetricsCollector:
        """Return the collector; called on the first rank, before the model loads."""
        raise NotImplementedError


class OutputPlugin(BasePlugin):
    """Does something with the result (evaluate, merge, quantize). Any number, each given what the last one returned."""

    def after_train(self, artifact: Artifact, config: RunConfig) -> Artifact:
        """Return the artifact, this one or another; called on the first rank, after the model was saved."""
        raise NotImplementedError


class CommandPlugin(BasePlugin):
    """Adds verbs to the command line. `commands` maps each verb to its line in the help."""

    commands: ClassVar[Mapping[str, str]] = {}

    def run_command(self, verb: str, arguments: Sequence[str]) -> int:
        """Run `dumbo VERB ARGUMENTS...` and return the exit code. There is no `self.config`, as none is loaded."""
        raise NotImplementedError
