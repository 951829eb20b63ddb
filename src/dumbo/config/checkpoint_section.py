"""`trainer.checkpoints`: when a run writes what it needs to go on, beyond `trainer.arguments.save_strategy`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dumbo.config.section import Section


class CheckpointSection(Section):
    """Checkpoints to go on from with `--resume`."""

    every_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 30.0
    """Write one after so many minutes without one, whatever `save_strategy` says; the two newest of these are kept, and
    none when the run ends well. null writes none."""
    background: bool = True
    """Make files durable and count their bytes while the training goes on; false waits for it."""
