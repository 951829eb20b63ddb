"""The catalogue of what a plugin can be: who may hold each seat, which method claims it, which keys it answers for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dumbo.config.arguments import OPTIMIZER_KEYS, SCHEDULE_KEYS
from dumbo.plugin_loader import (
    BasePlugin,
    CallbackPlugin,
    CollatorPlugin,
    CommandPlugin,
    DataFormatPlugin,
    DatasetPlugin,
    EvaluatorPlugin,
    GeneratorPlugin,
    LearningRatePlugin,
    LoadOptionsPlugin,
    LoggingPlugin,
    LossPlugin,
    ModelLoaderPlugin,
    ModelPatcherPlugin,
    OptimizerPlugin,
    OutputPlugin,
    ReaderPlugin,
    SchedulerPlugin,
    StatePlugin,
    TokenizerLoaderPlugin,
    TokenizerPatcherPlugin,
    TokenWeightPlugin,
    TrainerPlugin,
    TrainFormatPlugin,
)


class Claim(Enum):
    """How many plugins of a run may implement an interface."""

    EXACTLY_ONE = "exactly one"
    AT_MOST_ONE = "at most one"
    ANY_NUMBER = "any number"


@dataclass(frozen=True)
class Interface:
    """An interface: its class, the method that claims it, how many may, and which core keys its one holder answers
    for."""

    type: type[BasePlugin]
    hook: str
    returns: str
    """What the method must return, for messages."""
    claim: Claim
    charge: str = ""
    """Section of the configuration whose keys the holder must consume; a key that it does not is an error."""
    keys: tuple[str, ...] = ()
    """Those of them that a holder of this seat takes over from another seat with the same charge; none: all the
    others."""


INTERFACES: tuple[Interface, ...] = (
    Interface(ModelLoaderPlugin, "load_model", "the model", Claim.EXACTLY_ONE, "model"),
    Interface(TokenizerLoaderPlugin, "load_tokenizer", "the tokenizer", Claim.EXACTLY_ONE, "model.tokenizer"),
    Interface(TokenizerPatcherPlugin, "patch_tokenizer", "the tokenizer", Claim.ANY_NUMBER),
    Interface(TrainerPlugin, "build_trainer", "a trainer", Claim.EXACTLY_ONE, "trainer.arguments"),
    Interface(
        LossPlugin, "build_loss", "a function", Claim.AT_MOST_ONE, "trainer.arguments", ("label_smoothing_factor",)
    ),
    Interface(TokenWeightPlugin, "build_token_weights", "a function", Claim.AT_MOST_ONE),
    Interface(GeneratorPlugin, "build_generator", "a TextGenerator", Claim.AT_MOST_ONE),
    Interface(CollatorPlugin, "build_collator", "a function from rows to a batch", Claim.AT_MOST_ONE),
    Interface(
        OptimizerPlugin, "build_optimizer", "an optimizer", Claim.AT_MOST_ONE, "trainer.arguments", OPTIMIZER_KEYS
    ),
    Interface(SchedulerPlugin, "build_scheduler", "a schedule", Claim.AT_MOST_ONE, "trainer.arguments", SCHEDULE_KEYS),
    Interface(
        LearningRatePlugin,
        "learning_rate_factors",
        "a mapping from regular expressions to positive numbers",
        Claim.ANY_NUMBER,
    ),
    Interface(LoadOptionsPlugin, "load_kwargs", "a mapping of arguments for from_pretrained", Claim.ANY_NUMBER),
    Interface(ModelPatcherPlugin, "patch_model", "the model", Claim.ANY_NUMBER),
    Interface(ReaderPlugin, "read", "rows", Claim.ANY_NUMBER),
    Interface(DataFormatPlugin, "build_data_format", "a function from Row to a record", Claim.ANY_NUMBER),
    Interface(TrainFormatPlugin, "build_train_format", "a function from a record to Example", Claim.ANY_NUMBER),
    Interface(DatasetPlugin, "transform_dataset", "the training set", Claim.ANY_NUMBER),
    Interface(
        EvaluatorPlugin, "build_evaluator", "a function without arguments that returns metrics", Claim.ANY_NUMBER
    ),
    Interface(CallbackPlugin, "get_callbacks", "a list of TrainerCallbacks", Claim.ANY_NUMBER),
    Interface(StatePlugin, "state_dict", "a mapping of what a checkpoint is to keep", Claim.ANY_NUMBER),
    Interface(LoggingPlugin, "get_metrics_collector", "a MetricsCollector", Claim.ANY_NUMBER),
    Interface(OutputPlugin, "after_train", "the artifact", Claim.ANY_NUMBER),
    Interface(CommandPlugin, "run_command", "the exit code: return 0", Claim.ANY_NUMBER),
)
"""The catalogue. `dumbo plugins` prints it, and the plugin manager knows no other."""
