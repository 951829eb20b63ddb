"""The options of early stopping, and the plugin that brings its callback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import EvaluationMetric, Section
from dumbo.errors import ConfigError, Problem, key_path
from dumbo.metrics import evaluation_path, higher_is_better
from dumbo.plugin_loader import CallbackPlugin, StatePlugin

if TYPE_CHECKING:
    from transformers import TrainerCallback

SECTION = "trainer.early_stopping"


class EarlyStoppingOptions(Section):
    """When the training ends before its last step."""

    metric: Annotated[str, Field(min_length=1), EvaluationMetric()] = "eval/loss"
    """The metric of the evaluations that must go on getting better."""
    patience: Annotated[int, Field(ge=1)] = 3
    """End after so many evaluations in a row without a new best value."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A value counts as better only if it is so by more than this."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower (`min`) or higher (`max`) is better; `auto` knows the usual names (`loss`, `exact_match`, ...)."""


class EarlyStoppingPlugin(CallbackPlugin, StatePlugin):
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
        if self.options.mode == "auto" and higher_is_better(evaluation_path(self.options.metric)) is None:
            message = f"whether more or less of '{self.options.metric}' is better is not known"
            problems.append(Problem(message, key_path(f"{SECTION}.metric"), hints=("write mode: max, or mode: min",)))
        if problems:
            raise ConfigError(problems)

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return the callback, which says what it does and keeps it for the report."""
        from dumbo.plugins.early_stopping.stopping import StopWhenNoBetter

        self._stopper = StopWhenNoBetter(self.options, self.services.say, self.services.note)
        return [self._stopper]

    def state_dict(self) -> Mapping[str, Any]:
        """The best value so far, and how many evaluations it was not reached in."""
        return self._stopper.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self._stopper.load(state)
