"""The options of MLflow, and the plugin that brings its collector."""

from __future__ import annotations

from importlib.util import find_spec

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import LoggingPlugin
from dumbo.trackers.options import Name, NamedRunOptions

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class MlflowOptions(NamedRunOptions):
    """MLflow tracking."""

    tracking_uri: Name | None = None
    """Address of a tracking server, or a folder; by default what `MLFLOW_TRACKING_URI` says, or a store on this
    machine in the current folder: `mlflow.db` where SQLAlchemy is installed, otherwise `mlruns`."""
    experiment: Name | None = None
    """Experiment that the run belongs to, made if it is missing; by default what `MLFLOW_EXPERIMENT_NAME` says, or
    `dumbo`."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Names and values to find the run by."""
    notes: Name | None = None
    """Description of the run, in Markdown."""


class MlflowPlugin(LoggingPlugin):
    """Sends metrics and configuration to MLflow."""

    name = "mlflow"
    section = "trainer.mlflow"
    options_type = MlflowOptions
    packages = ("mlflow",)

    def check(self, config: RunConfig) -> None:
        """Report a database that nothing here can open."""
        uri = self.options.tracking_uri or ""
        if is_database(uri) and find_spec("sqlalchemy") is None:
            message = "MLflow opens databases with the package SQLAlchemy, which is not installed"
            hints = ("pip install mlflow", "or name a tracking server (http://...) or a folder")
            raise ConfigError.at("trainer.mlflow.tracking_uri", message, *hints)

    def get_metrics_collector(self) -> MetricsCollector:
        """The collector; MLflow is imported when it opens."""
        from dumbo.plugins.mlflow.tracking import MlflowTracker

        return MlflowTracker(self.options, self.services.say)


def is_database(uri: str) -> bool:
    """Whether `uri` is the address of a database, such as `sqlite:///mlflow.db`."""
    return uri.partition(":")[0].partition("+")[0] in DATABASES
