"""The folder of a run: chosen and claimed before anything is loaded; `run.yaml` and `metrics.jsonl` in it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
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
from dumbo.run_lock import LOCK_NAME, FolderInUse, RunLock, owner_of
from dumbo.summary import config_file_of

_MARKS = ("metrics.jsonl", "model", "checkpoints")
"""What a run that began to train has in its folder."""
_BASE = "base"
"""The base model of an adapter, where the run has made one."""
_WRITTEN = (*_MARKS, _BASE, "run.yaml", "summary.json", "samples.jsonl", "report.html", "loss.png")
"""What a run writes: in a folder that has such a file already, a file of somebody's would be lost."""
_KEY = "trainer.output_dir"
_STOPPED = "stopped-"
_OTHER_FOLDER = "or name another folder, or leave output_dir out: every run then gets a folder of its own"
_RARE_LINE_ENDS = frozenset("\x85\u2028\u2029")


def run_name(config_file: Path) -> str:
    """The default name of a run that starts now: `<config>-<time>`, in UTC."""
    return f"{config_file.stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def default_folders(config_file: Path) -> list[Path]:
    """The folders of the runs of this configuration that `run_name` gave a name."""
    name = re.compile(rf"{re.escape(config_file.stem)}-\d{{8}}-\d{{6}}(-\d+)?")
    found = [folder for folder in Path("runs").glob("*") if name.fullmatch(folder.name)]
    # Two files in different folders may have one name.
    return [folder for folder in found if (config_file_of(folder) or config_file).resolve() == config_file.resolve()]


def claim_folder(wanted: str | None, config_file: Path) -> RunLock:
    """Make the run's folder and hold it. A default one gets a number if it exists; one that is asked for must not hold
    a run, unless that was killed before its first step and left nothing.

    Raises:
        ConfigError: the folder holds a run already, or another process holds it, or it cannot be made or written to.
    """
    folder = Path(wanted) if wanted is not None else _new_folder(Path("runs") / run_name(config_file))
    refuse_held_folder(folder)  # Before anything is written into it.
    lock = hold_folder(folder, config_file)
    try:
        refuse_held_folder(folder, mine=True)  # Somebody may have been quicker, and have ended since.
        if _left_nothing(folder) and config_file.absolute().parent != folder.absolute():
            _remove_traces(folder)
    except BaseException:
        lock.release()
        raise
    return lock


def hold_folder(folder: Path, config_file: Path) -> RunLock:
    """Hold the folder of a run that is to begin or to go on; it is made if it is not there.

    Raises:
        ConfigError: another process holds it, or it cannot be made or written to.
    """
    try:
        return RunLock.take(folder, str(config_file))
    except FolderInUse as error:
        raise ConfigError.at(_KEY, error.message, error.hint) from error
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError | ValueError) -> ConfigError:
    message = f"the run's folder {folder} cannot be written to: {getattr(error, 'strerror', error)}"
    return ConfigError.at(_KEY, message, "name a folder that you may write to")


def refuse_held_folder(folder: Path, *, mine: bool = False) -> None:
    """Raise a `ConfigError` if the folder holds a run already, or, where it is not `mine`, if a process holds it."""
    if not mine:
        try:
            owner = owner_of(folder)
        except FolderInUse as error:
            raise ConfigError.at(_KEY, error.message, error.hint) from error
        if owner is not None:
            in_use = FolderInUse(folder, owner)
            raise ConfigError.at(_KEY, in_use.message, in_use.hint)
    held = [name for name in _WRITTEN if (folder / name).exists()]
    if held and not _left_nothing(folder):
        hints = ("to go on with it: dumbo train CONFIG --resume", _OTHER_FOLDER)
        raise ConfigError.at(_KEY, f"{folder} already holds a run (it has '{held[0]}')", *hints)


def _left_nothing(folder: Path) -> bool:
    """Whether a run began in `folder`, and was killed before it had anything to keep."""
    kept = ("model", "checkpoints", "samples.jsonl", "report.html", "loss.png")
    if _has_metrics(folder) or any((folder / name).exists() for name in kept):
        return False
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(summary, dict) and summary.get("outcome") == "running"


def _has_metrics(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def _new_folder(folder: Path) -> Path:
    """Make `folder`, or one of that name with a number, which no other process has made."""
    number, free = 1, folder
    while True:
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            if not free.exists():
                raise  # One of the folders above is a file.
            number += 1
            free = folder.with_name(f"{folder.name}-{number}")
        except OSError as error:
            raise _not_writable(free, error) from error
        else:
            return free


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run."""
    # A run.yaml alone may be what somebody wrote by hand.
    names = ("metrics.jsonl", "run.yaml", "summary.json", LOCK_NAME)
    has = {name for name in names if (folder / name).is_file()}
    return "metrics.jsonl" in has or len(has) >= 2


def checkpoints_of(folder: Path) -> list[Path]:
    """The whole checkpoints of the run in `folder`, oldest first: `checkpoints/step-<digits>`."""
    return _numbered(folder / "checkpoints", "step-")


def model_folder(folder: Path, stopped_at: int | None) -> Path:
    """Where the model of the run in `folder` goes: not under the name of a checkpoint, in whose place it would be put,
    if it was stopped after a step and has none."""
    return folder / ("model" if stopped_at is None else f"checkpoints/{_STOPPED}{stopped_at:06}")


def models_of(folder: Path) -> list[Path]:
    """The models on the way of the run in `folder`, oldest first: its checkpoints, and what it had when it was stopped
    and could write none."""
    found = [*_numbered(folder / "checkpoints", _STOPPED), *checkpoints_of(folder)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _numbered(folder: Path, begin: str) -> list[Path]:
    found = [path for path in folder.glob(f"{begin}*") if path.name.removeprefix(begin).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(begin)))


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
    if any(folder.glob("*-step-*")):
        return  # The rows of a bad step, or the stacks of one that hung, are there to be looked at.
    if not _has_metrics(folder) and not any((folder / name).exists() for name in _MARKS if name != "metrics.jsonl"):
        _remove_traces(folder)
        remove_if_empty(folder)


def _remove_traces(folder: Path) -> None:
    for name in _WRITTEN:
        if name == _BASE:
            shutil.rmtree(folder / name, ignore_errors=True)
        elif name not in _MARKS or name == "metrics.jsonl":
            (folder / name).unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder with nothing in it, and `runs` above it if that is empty then. While it is held, it is not."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        if folder.parent == Path("runs"):
            folder.parent.rmdir()


class MetricsFile(MetricsCollector):
    """`metrics.jsonl`: a line per call, `{"step": 10, "train/loss": 1.2}`, written through at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """The file is opened with the run; `say` is told of a disk that is full."""
        self._say = say
        self._file: LineFile | None = None

    def open(self, run: RunInfo) -> None:
        """Create the file, or cut it off where the checkpoint was written from which the run goes on."""
        size = 0 if run.resumed is None else int(run.resumed["bytes"])
        self._file = LineFile(run.output_dir / "metrics.jsonl", self._say, keep=size)

    def state(self) -> Mapping[str, Any]:
        """How long the file is."""
        return {"bytes": 0 if self._file is None else self._file.size}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Write a line."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}))

    def close(self, outcome: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
