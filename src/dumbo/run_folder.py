"""The folder of a run: chosen and claimed before anything is loaded; `run.yaml` and `metrics.jsonl` in it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dumbo.config.source import Source
from dumbo.config.yaml_tree import plain_scalar
from dumbo.disk import LineFile
from dumbo.errors import ConfigError, KeyPath, RunError
from dumbo.metrics import MetricsCollector, RunInfo
from dumbo.redact import redact

_MARKS = ("metrics.jsonl", "model", "checkpoints")
"""What a run that began to train has in its folder."""
_WRITTEN = (*_MARKS, "run.yaml", "summary.json", "samples.jsonl", "report.html", "loss.png")
"""What a run writes: in a folder that has such a file already, a file of somebody's would be lost."""
_RARE_LINE_ENDS = frozenset("\x85\u2028\u2029")


def run_name(config_file: Path) -> str:
    """The default name of a run that starts now: `<config>-<time>`, in UTC."""
    return f"{config_file.stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def claim_folder(wanted: str | None, config_file: Path) -> Path:
    """Make the run's folder. A default one gets a number if it exists; one that is asked for must not hold a run.

    Raises:
        ConfigError: the folder holds a run already, or cannot be made or written to.
    """
    folder = Path(wanted) if wanted is not None else _free_folder(Path("runs") / run_name(config_file))
    refuse_held_folder(folder)
    probe = folder / ".write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a null character
        message = f"the run's folder {folder} cannot be written to: {getattr(error, 'strerror', error)}"
        raise ConfigError.at("trainer.output_dir", message, "name a folder that you may write to") from error
    return folder


def refuse_held_folder(folder: Path) -> None:
    """Raise a `ConfigError` if the folder holds a run already."""
    held = [name for name in _WRITTEN if (folder / name).exists()]
    if held:
        hint = "name another folder, or leave output_dir out: every run then gets a folder of its own"
        raise ConfigError.at("trainer.output_dir", f"{folder} already holds a run (it has '{held[0]}')", hint)


def _free_folder(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def checkpoints_of(folder: Path) -> list[Path]:
    """The whole checkpoints of the run in `folder`, oldest first: `checkpoints/step-<digits>`."""
    found = (folder / "checkpoints").glob("step-*")
    whole = [path for path in found if path.name.removeprefix("step-").isdecimal()]
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")))


def resolved_tree(source: Source) -> dict[str, Any]:
    """The configuration as it runs, with everything merged, environment values by their names and secrets left out."""

    def build(value: Any, path: KeyPath) -> Any:
        if path in source.templates:
            return source.templates[path]
        if isinstance(value, dict):
            return {key: build(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [build(item, (*path, index)) for index, item in enumerate(value)]
        return value

    tree: dict[str, Any] = redact(build(source.tree, ()))
    return tree


def write_run_file(folder: Path, tree: Mapping[str, Any], config_folder: Path) -> None:
    """Write `run.yaml`: the run can be repeated from it. Plugins in files beside the configuration are found from
    there too.

    Raises:
        RunError: the disk refuses.
    """
    plugins = [_from_folder(name, config_folder, folder) for name in tree.get("plugins", ())]
    try:
        (folder / "run.yaml").write_text(yaml_text({**tree, "plugins": plugins}), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder / 'run.yaml'} cannot be written: {error.strerror or error}") from error


def _from_folder(plugin: str, config_folder: Path, folder: Path) -> str:
    """The address of a plugin in a file, which starts at `config_folder`, as it is written in `folder`."""
    file, colon, class_name = plugin.rpartition(":")
    if not colon or not file.endswith(".py") or file.startswith(("/", "~")):
        return plugin
    path = os.path.relpath((config_folder / file).resolve(), folder.resolve())
    return f"{path if path.startswith('..') else f'./{path}'}:{class_name}"


def yaml_text(tree: Mapping[str, Any]) -> str:
    """Plain values as a YAML document, keys in their order."""
    import yaml

    return yaml.dump(dict(tree), Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=120)


def _dumper() -> Any:
    """PyYAML writes YAML 1.1, where `1e-05` is a text: values are written so that 1.2 and 1.1 agree."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            """A list that stands in two places is written twice."""
            return True

    def represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
        text = repr(value)
        if not math.isfinite(value):
            text = text.replace("inf", ".inf").replace("nan", ".nan")
        if "e" in text and "." not in text.partition("e")[0]:
            text = text.replace("e", ".0e")
        return dumper.represent_scalar("tag:yaml.org,2002:float", text)

    def represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # PyYAML puts quotes around what is a number in 1.1; a revision such as 12e4567 is one in 1.2 only.
        style = None if isinstance(plain_scalar(value), str) else "'"
        if _RARE_LINE_ENDS.intersection(value):
            style = '"'  # in the others PyYAML writes these as they are, and reads them as a line end
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(float, represent_float)
    Dumper.add_representer(str, represent_text)
    return Dumper


def discard_folder(folder: Path) -> None:
    """Remove what a run that ended before its first step has left; a folder with anything to keep stays as it is."""
    metrics = folder / "metrics.jsonl"
    if (metrics.exists() and metrics.stat().st_size) or any(folder.glob("*-step-*")):
        return  # The rows of a bad step, or the stacks of one that hung, are there to be looked at.
    if not any((folder / name).exists() for name in _MARKS if name != metrics.name):
        for name in _WRITTEN:
            if name not in _MARKS or name == metrics.name:
                (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            if folder.parent == Path("runs") and not any(folder.parent.iterdir()):
                folder.parent.rmdir()


class MetricsFile(MetricsCollector):
    """`metrics.jsonl`: a line per call, `{"step": 10, "train/loss": 1.2}`, written through at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """The file is opened with the run; `say` is told of a disk that is full."""
        self._say = say
        self._file: LineFile | None = None

    def open(self, run: RunInfo) -> None:
        """Create the file."""
        self._file = LineFile(run.output_dir / "metrics.jsonl", self._say)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Write a line."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}))

    def close(self, outcome: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
