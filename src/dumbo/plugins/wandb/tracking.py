"""A run in Weights & Biases: what is sent is the redacted configuration and the metrics, and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dumbo.errors import RunError
from dumbo.metrics import RunInfo
from dumbo.redact import redact_text
from dumbo.trackers.flatten import flatten
from dumbo.trackers.surroundings import KeptFile, remove_if_within, variables, writable_folder
from dumbo.trackers.tracker import End, Tracker

if TYPE_CHECKING:
    from dumbo.plugins.wandb.plugin import WandbOptions

EXIT_CODES: Mapping[str, int] = MappingProxyType({"finished": 0, "failed": 1, "interrupted": 255})
"""wandb has no other end state; 255 is what it gives to Ctrl-C itself."""

_OLD_MODES: Mapping[str, str] = MappingProxyType({"dryrun": "offline", "run": "online"})
_NO_KEY = "no API key; run 'wandb login', set WANDB_API_KEY, or write trainer.wandb.mode: offline"
_OPEN_SECONDS = 30.0
_FINISH_SECONDS = 300.0
"""For what is still to be sent at the end; wandb itself waits for ever. The folder keeps what was not sent."""


class WandbTracker(Tracker):
    """Logs into one wandb run."""

    name = "wandb"
    advice = "write trainer.wandb.mode: offline to keep the run on disk and send it later"

    def __init__(self, options: WandbOptions, say: Callable[[str], None]) -> None:
        """Nothing is imported yet."""
        super().__init__(say)
        self._options = options
        self._run: Any = None
        self._last_step = 0
        self._file: KeptFile | None = None
        self._home: Path | None = None

    def start(self, run: RunInfo) -> None:
        """Open the run; no key, no network and no folder are errors within seconds, and nothing is asked."""
        written = self._options.dir
        folder = Path(written or os.environ.get("WANDB_DIR") or run.output_dir)
        writable_folder(folder, "trainer.wandb.dir")
        # A folder `wandb` that is there already holds somebody's runs, and stays.
        is_ours = folder == run.output_dir and not (folder / "wandb").exists()
        self._home = run.output_dir if is_ours else None
        # Error reports go to wandb's makers and hold local variables.
        with variables(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false"), _nobody_to_ask(), _own_exit():
            import wandb

            settings = wandb.setup().settings
            mode: Any = self._options.mode or _OLD_MODES.get(settings.mode, settings.mode)
            try:
                self._run = wandb.init(
                    project=_clean(self._options.project or settings.project or "dumbo"),
                    name=_clean(self._options.name or settings.run_name or run.name),
                    entity=self._options.entity,
                    group=_clean(self._options.group),
                    tags=[redact_text(tag) for tag in self._options.tags] or None,
                    notes=_clean(self._options.notes),
                    mode=mode,
                    dir=str(folder),
                    config=flatten(run.config),
                    # The server leaves out steps that it has already: they come again, with the same values.
                    id=run.resumed["id"] if run.resumed else None,
                    resume="allow" if run.resumed else None,
                    settings=_private_settings(wandb),
                )
            except wandb.errors.UsageError as error:
                if "api key" not in str(error).lower():
                    raise
                raise RunError(f"wandb: {_NO_KEY}") from error
        self._say_where(mode)

    def state(self) -> Mapping[str, Any]:
        """The id by which wandb knows the run."""
        return {} if self._run is None or self._run.disabled else {"id": self._run.id}

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Log a step. wandb joins what several calls say about one step into one row, and drops earlier steps."""
        if step < self._last_step:
            raise ValueError(f"wandb takes no metrics of step {step} after those of step {self._last_step}")
        self._last_step = step
        if self._file is not None:
            self._file.check()
        self._run.log(metrics, step=step)

    def finish(self, end: End) -> None:
        """Keep outcome and steps in the summary, and end the run with the exit code that says the same."""
        self._run.summary.update({"outcome": end.outcome, "steps": end.steps or 0})
        if self._file is not None:
            self._file.check()
        try:
            self._run.finish(exit_code=EXIT_CODES[end.outcome])
        except TimeoutError as error:
            folder = self._run.settings.sync_dir
            message = (
                f"the server did not take everything in time (WANDB_FINISH_TIMEOUT); 'wandb sync {folder}' sends it"
            )
            raise RunError(message) from error
        self._stop_watching()
        if end.left_nothing:
            self._leave_nothing()

    def abandon(self) -> None:
        """End wandb's process; otherwise its hook at exit prints a traceback, or waits for a server that is gone."""
        self._stop_watching()
        if (wandb := sys.modules.get("wandb")) is not None:
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code=1)
        if self._run is None:
            self._leave_nothing()

    def _leave_nothing(self) -> None:
        if self._home is not None:
            remove_if_within(self._home / "wandb", self._home)

    def _stop_watching(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _say_where(self, mode: str) -> None:
        if self._run.disabled:
            self.tell("switched off by WANDB_MODE: nothing is kept")
            return
        settings = self._run.settings
        file = Path(settings.sync_file)
        self._file = KeptFile(file) if file.exists() else None  # a server may give the run another id, and path
        folder = Path(settings.sync_dir)
        shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        if mode == "offline":
            self.tell(f"offline run in {shown}; 'wandb sync {shown}' uploads it")
        else:
            self.tell(f"{self._run.url}, kept in {shown}")


def _private_settings(wandb: Any) -> Any:
    """wandb records much about machine and program; what could hold a secret, or names a person or machine, is off."""
    return wandb.Settings(
        silent=True,
        console="off",  # the console's lines: paths, and whatever other libraries print
        disable_code=True,
        save_code=False,
        disable_git=True,  # the address of the remote may hold a password, the diff anything
        x_disable_meta=True,  # command line with its overrides (model.x_token=...), user, host, e-mail
        x_disable_machine_info=True,
        x_save_requirements=False,  # packages may be installed from addresses with passwords
        disable_job_creation=True,  # a job would hold command line, code and packages once more
        host="",
        program="dumbo",
        x_executable="python",
        label_disable=True,
        reinit="create_new",  # a run that somebody has open in this process stays theirs
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", _OPEN_SECONDS)),
        finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)),
        finish_timeout_raises=True,
    )


def _clean(text: str | None) -> str | None:
    return None if text is None else redact_text(text)


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Without a terminal as its input, wandb raises where it would ask for a key."""
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


@contextlib.contextmanager
def _own_exit() -> Iterator[None]:
    """wandb puts itself into `sys.exit` to learn how the program ends, and stays there; a run tells it the outcome."""
    leave, hook = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = leave, hook
