"""The options of Weights & Biases, and the plugin that brings its collector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import LoggingPlugin
from dumbo.trackers.options import Name, ProjectOptions


class WandbOptions(ProjectOptions):
    """Weights & Biases. What is not written here comes from its own variables, such as `WANDB_ENTITY`."""

    entity: Name | None = None
    """Team or user that the project belongs to; by default the one of the API key."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """Words to find the run by."""
    notes: Name | None = None
    """What to remember about the run."""
    mode: Literal["online", "offline"] | None = None
    """Send while training, or keep the run on disk for `wandb sync`; by default what `WANDB_MODE` says, or `online`."""
    dir: Name | None = None
    """Folder in which wandb makes its folder `wandb`; by default what `WANDB_DIR` says, or the run's folder."""


class WandbPlugin(LoggingPlugin):
    """Sends metrics and configuration to Weights & Biases."""

    name = "wandb"
    section = "trainer.wandb"
    options_type = WandbOptions
    packages = ("wandb",)

    def get_metrics_collector(self) -> MetricsCollector:
        """The collector; wandb is imported when it opens."""
        from dumbo.plugins.wandb.tracking import WandbTracker

        return WandbTracker(self.options, self.services.say)
