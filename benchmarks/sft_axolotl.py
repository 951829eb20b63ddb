"""The clock of `sft.py` as a plugin of Axolotl."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from sft_clock import StepClock


class ClockPlugin(BasePlugin):
    """Clocks the steps of the training."""

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        """Return the clock; the names of the parameters are Axolotl's."""
        return [StepClock()]
