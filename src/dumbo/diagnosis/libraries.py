"""The libraries that dumbo stands on: their versions, whether these are in range, and whether they can be imported."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dumbo import __version__
from dumbo.diagnosis.findings import Finding
from dumbo.redact import redact_text

DISTRIBUTION = "dumbo-trainer"
_PATIENCE = 300.0
"""Seconds: the first import of torch from a slow disk takes minutes."""
_SHOWN = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "huggingface_hub", "numpy", "pydantic")
_WORK_EXTRAS = ("test", "check", "dev")
"""What they ask for, work on dumbo needs, and runs do not."""
_OPTIONAL = (
    *("polars", "peft", "trl", "bitsandbytes", "torchao", "datasets", "liger-kernel"),
    *("tensorboard", "trackio", "wandb", "mlflow-skinny"),
)


@dataclass(frozen=True)
class Probed:
    """What the process that imports the libraries said."""

    facts: Mapping[str, Mapping[str, Any]]
    """By library: `version`, or `error`; of torch also its devices."""

    def error(self, name: str) -> str:
        """Why the library cannot be imported; empty if it can."""
        return str(self.facts.get(name, {}).get("error", ""))

    @property
    def torch(self) -> Mapping[str, Any]:
        """What torch said; empty if it could not be imported."""
        facts = self.facts.get("torch", {})
        return {} if "error" in facts else facts


def probe_libraries() -> Probed:
    """Import the libraries in another process, which may die without harm."""
    # A file here that is called like a library would be imported there, but perhaps not in this process.
    here = "" in sys.path or str(Path.cwd()) in sys.path
    command = [sys.executable, *([] if here else ["-P"]), "-m", "dumbo.diagnosis.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        output, end = done.stdout, _end_words(done.returncode)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        output, end = said.decode() if isinstance(said, bytes) else said, f"did not end within {_PATIENCE:.0f} s"
    facts: dict[str, Mapping[str, Any]] = {}
    begun = ""
    for line in output.splitlines():
        try:
            said_facts = json.loads(line)
        except ValueError:
            continue  # a library that prints
        begun = said_facts.get("begins", begun)
        if "name" in said_facts:
            facts[said_facts["name"]] = said_facts
    if begun and begun not in facts:
        facts[begun] = {"error": f"its import {end}"}
    return Probed(facts)


def _end_words(code: int) -> str:
    if code < 0:
        return f"ended the process ({signal.Signals(-code).name})"
    return f"ended the process with code {code}"


def library_findings(probed: Probed) -> Iterator[Finding]:
    """dumbo, Python, then every library with its version and range."""
    ranges = _ranges()
    yield Finding("dumbo", f"{__version__}{'' if ranges else ' (not installed as a package: ranges are not known)'}")
    yield _judged("python", platform.python_version(), ranges.get("python", ""), "make an environment with that Python")
    shown = {_normal(name) for name in ("python", *_SHOWN, *_OPTIONAL)}
    required = [*_SHOWN, *(name for name in ranges if name not in shown)]
    for name in required:
        yield _library(name, ranges.get(_normal(name), ""), probed, required=True)
    for name in _OPTIONAL:
        if _version(name) is not None:
            yield _library(name, ranges.get(_normal(name), ""), probed, required=False)


def _library(name: str, wanted: str, probed: Probed, required: bool) -> Finding:
    version = _version(name)
    install = f"pip install '{name}{wanted}'"
    if version is None:
        return Finding(name, f"not installed{_needs(wanted)}", install if required else "")
    finding = _judged(name, version, wanted, install)
    error = probed.error(name)
    if not error or finding.mend:
        return finding
    return Finding(name, f"{version}, but cannot be imported: {redact_text(error)}", _reinstall(name, wanted, probed))


def _reinstall(name: str, wanted: str, probed: Probed) -> str:
    if name != "torch" and probed.error("torch"):
        return "mend torch first: it is probably why"
    return f"install it again: pip install --force-reinstall '{name}{wanted}'"


def _judged(name: str, version: str, wanted: str, mend: str) -> Finding:
    return Finding(name, f"{version}{_needs(wanted)}", "" if _in_range(version, wanted) else mend)


def _needs(wanted: str) -> str:
    return f"  (needs {wanted})" if wanted else ""


def _in_range(version: str, wanted: str) -> bool:
    """Whether the version is in the range; a development version counts by its number. True where nobody can tell."""
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(Version(version).base_version, prereleases=True)


def _ranges() -> dict[str, str]:
    """Library -> range, by what the installed dumbo asks for, extras included; empty where it is not installed."""
    try:
        found = metadata.metadata(DISTRIBUTION)
        from packaging.requirements import Requirement
    except (metadata.PackageNotFoundError, ImportError):
        return {}
    ranges = {"python": ",".join(sorted((found["Requires-Python"] or "").split(","), reverse=True))}
    plugins = {_normal(name) for name in _OPTIONAL}
    for requirement in map(Requirement, found.get_all("Requires-Dist") or []):
        name, marker = _normal(requirement.name), requirement.marker
        is_required = marker is None or marker.evaluate({"extra": ""})
        is_for_work = marker is not None and any(marker.evaluate({"extra": extra}) for extra in _WORK_EXTRAS)
        if is_required or (name in plugins and not is_for_work):
            ranges[name] = ",".join(sorted(str(requirement.specifier).split(","), reverse=True))
    return ranges


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
