"""The clock of `sft.py` as a plugin of dumbo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dumbo.config.schema import RunConfig
from dumbo.plugin_loader import CallbackPlugin

if TYPE_CHECKING:
    from transformers import TrainerCallback


class StepClockPlugin(CallbackPlugin):
    """Clocks the steps of the run."""

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return the clock."""
        from sft_clock import StepClock

        return [StepClock()]
