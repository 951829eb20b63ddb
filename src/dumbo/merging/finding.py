"""Finds the adapters that a merge is asked for: those of a run, a checkpoint or a folder, by name or as folders."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dumbo.errors import Problem, RunError
from dumbo.local_paths import near_paths
from dumbo.merging.adapters import SETTINGS
from dumbo.run_folder import models_of

OWN = "default"
"""The name of an adapter that has none: it lies in the folder itself."""


def find_adapters(path: Path, asked: Sequence[str] = ()) -> list[tuple[Path, float]]:
    """The folders of the adapters to merge, with the weight of each. `asked`: NAME, NAME=WEIGHT, FOLDER or
    FOLDER=WEIGHT; without any, the only one that `path` has.

    Raises:
        RunError: there is none, or several and nothing says which; a weight is no number.
    """
    home = find_home(path)
    named = adapters_in(home)
    if not asked:
        if len(named) > 1:
            names = ", ".join(named)
            hint = (
                f"write which: --adapter {next(iter(named))}, or several with weights: --adapter A=0.5 --adapter B=0.5"
            )
            raise _error(f"'{home}' has {len(named)} adapters: {names}", hint)
        return [(folder, 1.0) for folder in named.values()]
    found = [_find(word, named, home) for word in asked]
    twice = [folder for index, (folder, _) in enumerate(found) if folder in [other for other, _ in found[:index]]]
    if twice:
        raise _error(f"the adapter '{twice[0]}' is asked for twice", "write its whole weight once")
    return found


def find_home(path: Path) -> Path:
    """The folder that holds adapters: the run's `model/`, else its best or newest checkpoint, else `path` itself.

    Raises:
        RunError: there is no adapter; a whole model is named as what it is.
    """
    if not path.exists():
        raise _error(f"there is no folder '{path}'", *near_paths(path, folders=True))
    if not path.is_dir():
        raise _error(f"'{path}' is a file; name the folder of a run or of an adapter")
    of_run = [path / "model", path / "checkpoints" / "best", *reversed(models_of(path))]
    # A run's folder has none of its own: what lies in `model/` must not be taken for one of the name `model`.
    places = [path, *of_run] if (path / SETTINGS).is_file() else [*of_run, path]
    for folder in places:
        if adapters_in(folder):
            return folder
    whole = next((folder for folder in places if (folder / "config.json").is_file()), None)
    if whole is not None:
        raise _error(f"there is nothing to merge: '{whole}' is a whole model, without an adapter ({SETTINGS})")
    if (path / "run.yaml").is_file():
        hint = f"start it again: dumbo {path / 'run.yaml'}"
        raise _error(f"the run in '{path}' has left no adapter: it ended before one was written", hint)
    raise _error(f"'{path}' holds neither a run nor an adapter ({SETTINGS})")


def adapters_in(folder: Path) -> dict[str, Path]:
    """Name -> folder of the adapters in `folder`: its own, and those in folders of their names, as PEFT saves them."""
    if not folder.is_dir():
        return {}
    found = {OWN: folder} if (folder / SETTINGS).is_file() else {}
    return found | {child.parent.name: child.parent for child in sorted(folder.glob(f"*/{SETTINGS}"))}


def _find(word: str, named: dict[str, Path], home: Path) -> tuple[Path, float]:
    text, equals, number = word.rpartition("=")
    name, weight = (text, _weight(word, number)) if equals and not Path(word).is_dir() else (word, 1.0)
    if name in named:
        return named[name], weight
    folder = Path(name)
    if folder.is_dir():
        own = adapters_in(folder)
        if OWN in own:
            return own[OWN], weight
        home_of = find_home(folder)
        if OWN in adapters_in(home_of):
            return home_of, weight
    near = difflib.get_close_matches(name, [*named], n=1, cutoff=0.5)
    hints = [f"did you mean '{near[0]}'?"] if near else [f"'{home}' has: {', '.join(named)}"]
    raise _error(f"--adapter {word}: there is no adapter and no folder '{name}'", *hints)


def _weight(word: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = float("nan")
    if not abs(weight) < float("inf") or weight == 0:
        raise _error(f"--adapter {word}: '{text}' is no weight", "write a number other than 0, such as 0.5")
    return weight


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or that an adapter in it belongs to; None where there is none."""
    place = folder.resolve()
    candidates = [place, *place.parents[:3]]
    begun = ("summary.json", "metrics.jsonl")
    found = (run for run in candidates if (run / "run.yaml").is_file() and any((run / n).is_file() for n in begun))
    return next(found, None)


def overrides_of(run: Path | None) -> dict[str, Any]:
    """What the run changed in the configuration of its base model, which the adapter does not tell."""
    if run is None:
        return {}
    from dumbo.config.source import load_source

    section = load_source(run / "run.yaml").tree.get("model")
    written = section.get("config_overrides") if isinstance(section, dict) else None
    return written if isinstance(written, dict) else {}


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
