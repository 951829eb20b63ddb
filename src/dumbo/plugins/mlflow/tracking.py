"""A run in MLflow, through its client alone: no global run, no record of user, command line or git."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from dumbo.errors import RunError
from dumbo.metrics import RunInfo
from dumbo.plugins.mlflow.plugin import is_database
from dumbo.redact import redact_text
from dumbo.trackers.flatten import Flat, as_text, flatten, renamed
from dumbo.trackers.surroundings import variables, writable_folder
from dumbo.trackers.tracker import End, Tracker

if TYPE_CHECKING:
    from dumbo.plugins.mlflow.plugin import MlflowOptions

STATES: Mapping[str, str] = MappingProxyType({"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"})

_LONGEST_PARAMETER = 6000
_STRANGE_CHARACTER = re.compile(r"[^\w\-. :/]")
_LOCAL = "mlruns"


class MlflowTracker(Tracker):
    """Logs into one MLflow run."""

    name = "mlflow"
    advice = "is trainer.mlflow.tracking_uri (or MLFLOW_TRACKING_URI) right?"

    def __init__(self, options: MlflowOptions, say: Callable[[str], None]) -> None:
        """Nothing is imported yet."""
        super().__init__(say)
        self._options = options
        self._client: Any = None
        self._run_id = ""

    def start(self, run: RunInfo) -> None:
        """Open the run in its experiment, and give it the configuration."""
        with _limits(retries=1):
            from mlflow import MlflowClient, get_tracking_uri

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            uri = self._options.tracking_uri or get_tracking_uri()
            if is_database(uri) and find_spec("sqlalchemy") is None:
                if self._options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
                    raise RunError(f"mlflow: {redact_text(uri)} needs the package SQLAlchemy; pip install mlflow")
                uri = _LOCAL
            folder = _folder_of(uri)
            if folder is not None:
                # MLflow makes its default experiment in a folder that is not there yet.
                writable_folder(folder if folder.exists() else folder.parent, "trainer.mlflow.tracking_uri")
                uri = folder.as_uri()
            self._client = MlflowClient(tracking_uri=uri)
            experiment = self._options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dumbo"
            name = redact_text(self._options.name or run.name)
            tags = {key: redact_text(value) for key, value in self._options.tags.items()}
            if self._options.notes:
                tags["mlflow.note.content"] = redact_text(self._options.notes)
            if run.resumed:
                self._run_id = run.resumed["run_id"]
                self._client.update_run(self._run_id, status="RUNNING")
            else:
                opened = self._client.create_run(self._experiment_id(redact_text(experiment)), run_name=name, tags=tags)
                self._run_id = opened.info.run_id
                self._log_parameters(flatten(run.config))
        how = f"'mlflow ui --backend-store-uri {folder}', with MLFLOW_ALLOW_FILE_STORE=true, shows it"
        self.tell(f"run '{name}' in experiment '{experiment}', {how if folder else uri}")

    def state(self) -> Mapping[str, Any]:
        """The id by which MLflow knows the run."""
        return {"run_id": self._run_id}

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Send a step, and wait until it is there."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        values = [Metric(metric_name(path), value, now, step) for path, value in metrics.items()]
        with _limits(retries=3):
            self._client.log_batch(self._run_id, metrics=values)

    def finish(self, end: End) -> None:
        """Keep outcome and steps as tags, and end the run in MLflow's state for them."""
        with _limits(retries=3):
            self._client.set_tag(self._run_id, "outcome", end.outcome)
            self._client.set_tag(self._run_id, "steps", str(end.steps or 0))
            self._client.set_terminated(self._run_id, STATES[end.outcome])

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            made: str = self._client.create_experiment(name)
            return made
        if found.lifecycle_stage != "active":
            message = f"mlflow: the experiment '{name}' was deleted"
            raise RunError(f"{message}; restore it, or name another with trainer.mlflow.experiment")
        known: str = found.experiment_id
        return known

    def _log_parameters(self, config: Mapping[str, Flat]) -> None:
        from mlflow.entities import Param

        named = renamed(config, lambda key: metric_name(key).replace("/", "_"))
        self._client.log_batch(self._run_id, params=[Param(key, _shortened(value)) for key, value in named.items()])


def metric_name(path: str) -> str:
    """`path` with characters that MLflow does not take replaced by `_`; it takes letters, digits and `_-. :/`."""
    return _STRANGE_CHARACTER.sub("_", path)


def _shortened(value: Flat) -> str:
    text = as_text(value)
    if len(text) <= _LONGEST_PARAMETER:
        return text
    mark = f"... ({len(text)} characters)"
    return text[: _LONGEST_PARAMETER - len(mark)] + mark


def _folder_of(uri: str) -> Path | None:
    """The folder of a store of files, absolute; None for a server."""
    scheme = urlparse(uri).scheme
    if scheme == "file":
        return Path(url2pathname(urlparse(uri).path)).absolute()
    return None if scheme or uri == "databricks" else Path(uri).expanduser().absolute()


def _limits(retries: int) -> AbstractContextManager[None]:
    """MLflow waits for minutes by default, and the training with it. What the user has set goes before."""
    return variables(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES=str(retries),
        MLFLOW_HTTP_REQUEST_TIMEOUT="10",
        # MLflow refuses stores of files unless told otherwise, and it is the only store that mlflow-skinny has here.
        MLFLOW_ALLOW_FILE_STORE="true",
        MLFLOW_DISABLE_TELEMETRY="true",
    )
