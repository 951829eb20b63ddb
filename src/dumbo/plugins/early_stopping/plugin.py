"""The options of early stopping, and the plugin that brings its callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem, key_path
from dumbo.plugin_loader import CallbackPlugin

if TYPE_CHECKING:
    from transformers import TrainerCallback

SECTION = "trainer.early_stopping"


class EarlyStoppingOptions(Section):
    """When the training ends before its last step."""

    metric: Annotated[str, Field(min_length=1)] = "eval/loss"
    """The metric of the evaluations that must go on getting better."""
    patience: Annotated[int, Field(ge=1)] = 3
    """End after so many evaluations in a row without a new best value."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A value counts as better only if it is so by more than this."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower (`min`) or higher (`max`) is better. `auto`: lower for names with `loss` or `perplexity`."""


class EarlyStoppingPlugin(CallbackPlugin):
    """Ends the training when a metric of the evaluations has stopped getting better."""

    name = "early_stopping"
    section = SECTION
    options_type = EarlyStoppingOptions

    def check(self, config: RunConfig) -> None:
        """Refuse a run without evaluations, and metrics that are not theirs."""
        problems: list[Problem] = []
        if not config.holds_rows_out:
            message = "'early_stopping' watches evaluations, and no rows are held out"
            hints = ("set trainer.data.val_set_size, or held_out: true for a dataset",)
            problems.append(Problem(message, key_path(SECTION), hints=hints))
        root, slash, _ = self.options.metric.partition("/")
        if slash and root != "eval":
            message = f"'{self.options.metric}' is not a metric of evaluations"
            hints = ("these begin with 'eval/', such as eval/loss",)
            problems.append(Problem(message, key_path(f"{SECTION}.metric"), hints=hints))
        if problems:
            raise ConfigError(problems)

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return the callback, which says what it does and keeps it for the report."""
        from dumbo.plugins.early_stopping.stopping import StopWhenNoBetter

        return [StopWhenNoBetter(self.options, self.services.say, self.services.note)]
