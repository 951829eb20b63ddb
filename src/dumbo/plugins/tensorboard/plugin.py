"""The options of TensorBoard, and the plugin that brings its collector."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError
from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import LoggingPlugin
from dumbo.trackers.options import Name


class TensorboardOptions(Section):
    """TensorBoard's event files."""

    log_dir: Name | None = None
    """Folder in which the run gets a folder of its name; by default the event file is in `tensorboard/` of the run's
    folder."""
    flush_secs: Annotated[float, Field(ge=0)] = 10.0
    """Seconds between writes to disk; 0 writes every step at once."""


class TensorboardPlugin(LoggingPlugin):
    """Writes metrics and configuration into an event file for TensorBoard."""

    name = "tensorboard"
    section = "trainer.tensorboard"
    options_type = TensorboardOptions
    packages = ("tensorboard",)

    def check(self, config: RunConfig) -> None:
        """Report an address in place of a folder."""
        if "://" in (self.options.log_dir or ""):
            message = "event files are written into a folder on this machine, not to an address"
            raise ConfigError.at("trainer.tensorboard.log_dir", message, "name a folder")

    def get_metrics_collector(self) -> MetricsCollector:
        """The collector; TensorBoard is imported when it opens."""
        from dumbo.plugins.tensorboard.tracking import TensorboardTracker

        return TensorboardTracker(self.options, self.services.say)
