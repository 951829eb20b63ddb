"""`summary.json`: the facts of a run beside its metrics, for its report and for whoever reads the folder later."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dumbo import __version__
from dumbo.disk import written_whole
from dumbo.errors import PluginError
from dumbo.metrics import MetricsCollector
from dumbo.redact import redact
from dumbo.stdio import complain

FILE_NAME = "summary.json"
_PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes", "torchao"),
    *("datasets", "tokenizers", "safetensors", "numpy"),
)
"""Packages whose version may change a result."""
_OFTEN = 10.0
"""Seconds between two times that progress is written."""
_SHOWN = ("train/loss", "eval/loss")
"""Metrics whose last values are kept."""


class Summary(MetricsCollector):
    """Facts by name, written to the run's folder whenever one is added; silent on other ranks than the first.

    It tells at any time how far the run has come: `outcome` is `running` until `end`; `steps`, `total_steps` and the
    `last` losses are written every few seconds.
    """

    def __init__(self, folder: Path, config_file: Path, plugins: list[str], enabled: bool) -> None:
        """Nothing is written before the first `write`. A run that goes on keeps when it began, how long it took and
        what was noted."""
        self._folder, self._enabled = folder, enabled
        self._began = self._written = time.monotonic()
        self._told = False
        before = _facts_of(folder) if enabled else {}
        seconds = before.get("seconds")
        self._seconds_before = float(seconds) if isinstance(seconds, int | float) else 0.0
        self._facts: dict[str, Any] = {
            **{name: value for name, value in before.items() if name not in ("ended", "error")},
            "name": folder.name,
            "outcome": "running",
            "config_file": str(config_file),
            "started": before.get("started") or _now(),
            "plugins": plugins,
            "versions": installed_versions(),
            "machine": {"system": f"{platform.system()} {platform.machine()}", "cpu_cores": os.cpu_count()},
        }
        if before:
            resumed = before.get("resumed")
            self._facts["resumed"] = (resumed if isinstance(resumed, int) else 0) + 1

    def note(self, name: str, value: Any) -> None:
        """Keep a fact; a mapping is merged into the one of that name.

        Raises:
            PluginError: it cannot be written as JSON.
        """
        self.note_all({name: value})

    def note_all(self, facts: Mapping[str, Any]) -> None:
        """Keep several facts."""
        self._keep(facts)
        self.write()

    def progress(self, facts: Mapping[str, Any]) -> None:
        """Keep facts that change with every step; they are written at first, every few seconds, and at the end."""
        is_new = not facts.keys() <= self._facts.keys()
        self._keep(facts)
        if is_new or time.monotonic() - self._written >= _OFTEN:
            self.write()

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Keep the last losses."""
        last = {path: value if math.isfinite(value) else None for path, value in metrics.items() if path in _SHOWN}
        self.progress({"steps": step, "last": last})

    def end(self, outcome: str) -> None:
        """The run is over; this stays on the disk though the machine should lose its power."""
        self._keep({"outcome": outcome, "ended": _now()})
        self.write(flushed=True)

    def _keep(self, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            plain = _plain(name, value)
            before = self._facts.get(name)
            self._facts[name] = {**before, **plain} if isinstance(before, dict) and isinstance(plain, dict) else plain

    def write(self, *, flushed: bool = False) -> None:
        """Write all facts, under a temporary name until they are whole; secrets are left out.

        A disk that refuses is told of once, and tried again with the next facts: no run ends for want of its summary.
        """
        if not self._enabled or not self._folder.is_dir():
            return
        self._written = time.monotonic()
        facts = {**self._facts, "seconds": round(self._seconds_before + self._written - self._began, 1)}
        # What cannot be encoded, as in the name of a file, stays readable: JSON has the same escapes.
        text = json.dumps(redact(facts), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            with written_whole(self._folder / FILE_NAME) as partial, partial.open("wb") as file:
                file.write(text + b"\n")
                if flushed:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            if not self._told:
                self._told = True
                complain(f"dumbo: {FILE_NAME} cannot be written: {error}")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _facts_of(folder: Path) -> dict[str, Any]:
    """What the part of the run before this one has written; nothing where there was none."""
    try:
        facts = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def outcome_of(folder: Path) -> str | None:
    """How the run in `folder` ended: `finished`, `interrupted`, `failed`; `running` also of one that was killed; None
    where nothing says so."""
    outcome = _facts_of(folder).get("outcome")
    return outcome if isinstance(outcome, str) else None


def config_file_of(folder: Path) -> Path | None:
    """The configuration of the run in `folder`, as it was written on the command line."""
    file = _facts_of(folder).get("config_file")
    return Path(file) if isinstance(file, str) else None


def _plain(name: str, value: Any) -> Any:
    """The value as JSON reads it back; numbers of NumPy and PyTorch become Python's.

    Raises:
        PluginError: it is none that JSON can write.
    """

    def number(other: Any) -> Any:
        if hasattr(other, "item"):
            return other.item()
        raise TypeError(f"holds {type(other).__name__}")

    try:
        return json.loads(json.dumps(value, default=number))
    except (TypeError, ValueError) as error:
        message = f"the fact '{name}' {error}; give text, numbers, lists or mappings to services.note"
        raise PluginError(message) from error


def installed_versions() -> dict[str, str]:
    """Of dumbo, Python and the packages that decide on what comes out."""
    found = ((package, _installed_version(package)) for package in _PACKAGES)
    versions = {"dumbo": __version__, "python": platform.python_version()}
    return versions | {package: version for package, version in found if version is not None}


@cache  # It is that of the code that this process has imported, whatever is installed later.
def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
