"""The options of the profile, and the plugin that takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError
from dumbo.plugin_loader import CallbackPlugin

if TYPE_CHECKING:
    from transformers import TrainerCallback


class ProfileOptions(Section):
    """Which steps are measured, and how closely."""

    start_step: Annotated[int, Field(ge=1)] = 3
    """First optimizer step that is measured; the first ones of a run are slower than the others."""
    num_steps: Annotated[int, Field(ge=1)] = 3
    """Number of steps; each adds to the size of the trace."""
    memory: bool = False
    """Measure the memory that operators allocate too, and on a GPU write a snapshot of it."""
    record_shapes: bool = False
    """Tell operators apart by the shapes of what they are given."""
    with_stack: bool = False
    """Record the Python functions that are running, which slows the steps down."""


def steps_problem(options: ProfileOptions, total_steps: int) -> ConfigError | None:
    """The error for steps that a training of `total_steps` does not have."""
    last = options.start_step + options.num_steps - 1
    if last <= total_steps:
        return None
    key = "start_step" if options.start_step > total_steps else "num_steps"
    count = f"{total_steps} step{'s' if total_steps != 1 else ''}"
    return ConfigError.at(f"trainer.profile.{key}", f"step {last} is to be measured, and the training has {count}")


class ProfilePlugin(CallbackPlugin):
    """Writes a trace of some steps to `profile/` in the run's folder, and says which operators take the time."""

    name = "profile"
    section = "trainer.profile"
    options_type = ProfileOptions

    def check(self, config: RunConfig) -> None:
        """Refuse steps after the last one, where their number is written."""
        total = config.trainer.arguments.max_steps
        problem = steps_problem(self.options, total) if total is not None else None
        if problem is not None:
            raise problem

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return the callback; only that of the first rank measures."""
        from dumbo.plugins.profile.measuring import Measure

        return [Measure(self.options, self.services)]
