"""`summary.json`: the facts of a run beside its metrics, for its report and for whoever reads the folder later."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dumbo import __version__
from dumbo.disk import written_whole
from dumbo.errors import PluginError
from dumbo.redact import redact

FILE_NAME = "summary.json"
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "tokenizers", "safetensors", "numpy")
"""Packages whose version may change a result."""


class Summary:
    """Facts by name, written to the run's folder whenever one is added; silent on other ranks than the first."""

    def __init__(self, folder: Path, config_file: Path, plugins: list[str], enabled: bool) -> None:
        """Nothing is written before the first `write`."""
        self._folder, self._enabled = folder, enabled
        self._began = time.monotonic()
        self._was_refused = False
        self._facts: dict[str, Any] = {
            "name": folder.name,
            "outcome": "running",
            "config_file": str(config_file),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "plugins": plugins,
            "versions": _versions(),
            "machine": {"system": f"{platform.system()} {platform.machine()}", "cpu_cores": os.cpu_count()},
        }

    def note(self, name: str, value: Any) -> None:
        """Keep a fact; a mapping is merged into the one of that name.

        Raises:
            PluginError: it cannot be written as JSON.
        """
        self.note_all({name: value})

    def note_all(self, facts: Mapping[str, Any]) -> None:
        """Keep several facts."""
        for name, value in facts.items():
            plain = _plain(name, value)
            before = self._facts.get(name)
            self._facts[name] = {**before, **plain} if isinstance(before, dict) and isinstance(plain, dict) else plain
        self.write()

    def write(self) -> None:
        """Write all facts, under a temporary name until they are whole; secrets are left out.

        A disk that refuses is told of once, and tried again with the next fact: no run ends for want of its summary.
        """
        if not self._enabled or not self._folder.is_dir():
            return
        facts = {**self._facts, "seconds": round(time.monotonic() - self._began, 1)}
        try:
            with written_whole(self._folder / FILE_NAME) as partial:
                text = json.dumps(redact(facts), indent=1, ensure_ascii=False) + "\n"
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            if not self._was_refused:
                self._was_refused = True
                print(f"dumbo: {FILE_NAME} cannot be written: {error}", file=sys.stderr)


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


def _versions() -> dict[str, str]:
    versions = {"dumbo": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
