"""The options of Trackio, and the plugin that brings its collector."""

from __future__ import annotations

from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import LoggingPlugin
from dumbo.trackers.options import Name, ProjectOptions


class TrackioOptions(ProjectOptions):
    """Trackio, on this machine."""

    dir: Name | None = None
    """Folder of Trackio's databases; by default what `TRACKIO_DIR` says, or Trackio's own in the hub's cache."""


class TrackioPlugin(LoggingPlugin):
    """Keeps metrics and configuration in Trackio's database on this machine."""

    name = "trackio"
    section = "trainer.trackio"
    options_type = TrackioOptions
    packages = ("trackio",)

    def get_metrics_collector(self) -> MetricsCollector:
        """The collector; Trackio is imported when it opens."""
        from dumbo.plugins.trackio.tracking import TrackioTracker

        return TrackioTracker(self.options, self.services.say)
