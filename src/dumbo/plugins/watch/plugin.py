"""The options of the watch over metrics, and the plugin that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig, Words
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem, key_path
from dumbo.plugin_loader import CallbackPlugin, StatePlugin
from dumbo.plugins.watch.ranges import WATCHED

if TYPE_CHECKING:
    from transformers import TrainerCallback


class WatchOptions(Section):
    """What happens when a metric is not as it should be."""

    on_alarm: Literal["warn", "stop"] = "warn"
    """Say it once and go on, or end the run with an error and keep the model as it was under `checkpoints/`."""
    after: Annotated[int, Field(ge=0)] = 10
    """Steps at the start in which values may be far off; a loss that is not a number is an alarm at once."""
    ignore: Words = ()
    """Metrics, by their paths, that are not watched."""


class WatchPlugin(CallbackPlugin, StatePlugin):
    """Compares metrics with their healthy ranges, and says in plain words what is wrong and what to try."""

    name = "watch"
    section = "trainer.watch"
    options_type = WatchOptions

    def check(self, config: RunConfig) -> None:
        """Refuse metrics to ignore that are not watched anyway."""
        problems: list[Problem] = []
        for index, metric in enumerate(self.options.ignore):
            if metric not in WATCHED:
                near = get_close_matches(metric, WATCHED, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"watched are {', '.join(sorted(WATCHED))}"
                message = f"'{metric}' is not watched"
                problems.append(Problem(message, (*key_path("trainer.watch.ignore"), index), hints=(hint,)))
        if problems:
            raise ConfigError(problems)

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return the callback, which sees every logged value on every rank."""
        from dumbo.plugins.watch.judging import Judge
        from dumbo.plugins.watch.watching import Watch

        pretrained = config.model.base_model is not None
        self._judge = Judge(self.options.after, frozenset(self.options.ignore), pretrained)
        return [Watch(self._judge, self.options.on_alarm == "stop", self.services)]

    def state_dict(self) -> Mapping[str, Any]:
        """What was seen and found so far."""
        return self._judge.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: what was found is not told again."""
        self._judge.load(state)
