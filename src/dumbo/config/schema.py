"""What a configuration can say: the sections `model`, `datasets`, `trainer`, `plugins`, before plugins add theirs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from dumbo.config.arguments import TrainerArguments
from dumbo.config.checkpoint_section import CheckpointSection
from dumbo.config.data_section import DataSection
from dumbo.config.dataset_entry import DatasetEntry as DatasetEntry
from dumbo.config.dataset_entry import FormatOptions as FormatOptions
from dumbo.config.faults_section import FaultsSection
from dumbo.config.section import Section
from dumbo.config.section import Words as Words  # a public name of this module, too
from dumbo.config.tokenizer_section import TokenizerSection as TokenizerSection

FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]
"""The name of a file, without a folder."""


class ModelSection(Section):
    """The model and its tokenizer. Plugins that change the model have their sections here."""

    base_model: str | None = None
    """Folder or hub name (`owner/name`) of the model to start from."""
    architecture: dict[str, Any] = Field(default_factory=dict)
    """Start from random weights instead: `{model_type: llama, hidden_size: 256, ...}`, values of the model's own
    configuration; `vocab_size` fits the tokenizer by default."""
    revision: str | None = None
    """Branch, tag or commit of the base model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. `auto` is float32: optimizers lose small updates in 16 bits; `bf16` in the arguments
    speeds up the rest."""
    attention: str = "auto"
    """Attention implementation (`sdpa`, `eager`, `flash_attention_2`, ...); `auto` is Transformers' choice for the
    model."""
    trust_remote_code: bool = False
    """Run the Python code that the model's repository brings. It can do anything that you can; read it first."""
    allow_pickle: Annotated[tuple[FileName, ...], Strict(False)] = ()
    """Weight files that may be read though they are pickles, e.g. `[pytorch_model.bin]`; `pytorch_model-*.bin` means
    several. Only their tensors are read: a file that asks for more is refused."""
    config_overrides: dict[str, Any] = Field(default_factory=dict)
    """Values of the model's own configuration to replace, e.g. `{rope_theta: 500000.0}`; unknown names are errors."""
    unfrozen_parameters: Words = ()
    """Train only weights in whose full names one of these regular expressions is found (`^lm_head`, `layers\\.2[0-9]`),
    and leave all others as they are; by default all are trained."""
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection)
    """The tokenizer."""


class TrainerSection(Section):
    """How to train. Plugins that change the training have their sections here."""

    arguments: TrainerArguments = Field(default_factory=TrainerArguments)
    """Batch sizes, optimizer, schedule, precision, logging: the names of Transformers' `TrainingArguments`."""
    data: DataSection = Field(default_factory=DataSection)
    """Options of all datasets together."""
    checkpoints: CheckpointSection = Field(default_factory=CheckpointSection)
    """When the run writes what it needs to go on after it was stopped."""
    faults: FaultsSection = Field(default_factory=FaultsSection)
    """What to do when a step goes wrong."""
    output_dir: Annotated[str, Field(min_length=1)] | None = None
    """The run's folder; by default `runs/<config>-<time>`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of everything random: held-out rows, order, dropout, new embedding rows."""


class EvaluationSection(Section):
    """Plugins that evaluate have their sections here."""


class RunConfig(Section):
    """A whole run. The composed class of a run also has its plugins' sections; the order of `plugins` never matters."""

    model: ModelSection
    """The model and its tokenizer."""
    datasets: Annotated[tuple[DatasetEntry, ...], Strict(False), Field(min_length=1)]
    """Where the rows come from; several sources are joined."""
    trainer: TrainerSection = Field(default_factory=TrainerSection)
    """How to train."""
    plugins: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    """The plugins of this run: a shipped or installed name, `package.module:Class`, or `./file.py:Class`."""
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    """What to evaluate, by plugins that do."""

    @property
    def holds_rows_out(self) -> bool:
        """Whether there will be rows to evaluate on."""
        return bool(self.trainer.data.val_set_size) or any(entry.held_out for entry in self.datasets)
