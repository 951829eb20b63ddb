"""A run in Trackio's local database: nothing is uploaded, no server and no browser is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dumbo.errors import RunError
from dumbo.metrics import RunInfo
from dumbo.redact import redact_text
from dumbo.trackers.flatten import flatten
from dumbo.trackers.surroundings import KeptFile, quiet, variables, writable_folder
from dumbo.trackers.tracker import End, Tracker

if TYPE_CHECKING:
    from dumbo.plugins.trackio.plugin import TrackioOptions

LEVELS: Mapping[str, str] = MappingProxyType({"finished": "INFO", "interrupted": "WARN", "failed": "ERROR"})
"""Trackio has no end states; how a run ended is an alert of this level."""

_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioTracker(Tracker):
    """Logs into one Trackio run."""

    name = "trackio"
    advice = "write another folder into trainer.trackio.dir"

    def __init__(self, options: TrackioOptions, say: Callable[[str], None]) -> None:
        """Nothing is imported yet."""
        super().__init__(say)
        self._options = options
        self._run: Any = None
        self._database: KeptFile | None = None

    def start(self, run: RunInfo) -> None:
        """Make the database and the run."""
        remote = [name for name in _REMOTE if os.environ.get(name)]
        if remote:
            message = f"trackio: {remote[0]} is set, and dumbo keeps Trackio's runs on this machine only"
            raise RunError(f"{message}; unset it ('trackio sync' uploads a project)")
        folder = writable_folder(_import_with_folder(self._options.dir), "trainer.trackio.dir")
        project = redact_text(self._options.project or "dumbo")
        name = run.resumed["name"] if run.resumed else redact_text(self._options.name or run.name)
        with quiet():
            from trackio.sqlite_storage import SQLiteStorage
            from trackio.utils import get_storage_mode

            SQLiteStorage.validate_project_name(project)
            if get_storage_mode() == "sqlite":  # on network filesystems it appends to text files instead
                self._database = KeptFile(SQLiteStorage.init_db(project))
            group = None if self._options.group is None else redact_text(self._options.group)
            self._run = _local_run(project, name, group, {**flatten(run.config)})
        shown = f"TRACKIO_DIR={folder} " if self._options.dir else ""
        self.tell(f"run '{name}' in {folder}; '{shown}trackio show --project {project}' shows it")

    def state(self) -> Mapping[str, Any]:
        """The name by which Trackio knows the run."""
        return {"name": self._run.name}

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Hand a step to Trackio's thread; what it could not write of earlier ones is raised here."""
        self._look()
        self._run.log(metrics, step=step)

    def finish(self, end: End) -> None:
        """Keep how the run ended, and wait for what is still to be written; Trackio gives up after 30 seconds."""
        import trackio

        with quiet():
            title = f"{end.outcome} after {end.steps or 0} steps"
            self._run.alert(title, level=trackio.AlertLevel[LEVELS[end.outcome]], step=end.steps or 0)
            self._run.finish()
        self._look()
        self._stop_watching()

    def abandon(self) -> None:
        """End Trackio's thread."""
        if self._run is not None:
            with quiet():
                self._run.finish()
        self._stop_watching()

    def _look(self) -> None:
        if self._run.failures:
            raise RuntimeError(self._run.failures[0])
        if self._database is not None:
            self._database.check()

    def _stop_watching(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _import_with_folder(wanted: str | None) -> Path:
    """Import Trackio, which reads the folder of its databases then and never again; return that folder."""
    folder = None if wanted is None else Path(wanted).expanduser().absolute()
    asked = {} if folder is None else {"TRACKIO_DIR": str(folder)}
    with variables(replace=True, **asked):
        from trackio.utils import TRACKIO_DIR
    used = Path(TRACKIO_DIR).absolute()
    if folder is not None and used != folder:
        message = f"trackio: this process uses Trackio with the folder {used} already"
        raise RunError(f"{message}, and cannot change to {folder}")
    return used


def _local_run(project: str, name: str, group: str | None, config: dict[str, Any]) -> Any:
    """A run of Trackio's that keeps to this machine. `trackio.init` would also print, and finish others' runs."""
    from trackio.run import Run

    class LocalRun(Run):
        """Remembers what it could not write, which Trackio only warns of, and does not ask the hub who the user is."""

        failures: list[str]

        def _get_username(self) -> None:
            return None

        def _warn_once(self, key: str, message: str) -> None:
            self.failures.append(message)

    LocalRun.failures = []
    return LocalRun(url=None, project=project, client=None, name=name, group=group, config=config)
