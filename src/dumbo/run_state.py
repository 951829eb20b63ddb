"""How a run stands, read from its folder alone: running, finished, stopped, failed or killed, and how far it came."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dumbo.redact import redact
from dumbo.run_folder import checkpoints_of, is_run
from dumbo.run_lock import FolderInUse, Owner, owner_of

_DEPTH = 3
"""How many folders deep runs are looked for."""
_TAIL = 1 << 18
"""Bytes at the end of `metrics.jsonl` in which the last losses are looked for."""
_STATES = (("finished", "finished"), ("interrupted", "stopped"), ("failed", "failed"), ("running", "killed"))
"""What `summary.json` says of a run that nobody holds, and what that means: one that ended has said how."""


@dataclass(frozen=True)
class RunState:
    """A run as `dumbo runs` lists it. What nobody knows is None."""

    folder: Path
    state: str
    """`running`, `finished`, `stopped` (by its user or a scheduler), `failed`, `killed` (it ended without a word), or
    `unknown`: its `summary.json` cannot be read."""
    steps: int | None
    """Optimizer steps done."""
    total_steps: int | None
    """Optimizer steps planned."""
    loss: float | None
    """The last training loss that was logged; may be NaN."""
    eval_loss: float | None
    checkpoints: tuple[int, ...]
    """Steps of the whole checkpoints, ascending."""
    size: int
    """Bytes of everything in the folder."""
    started: str | None
    """UTC, as in `2026-11-21T05:30:00Z`."""
    ended: str | None
    seconds: float | None
    """How long it has run."""
    error: str | None
    """What it failed with."""
    owner: Owner | None
    """The process that runs it, where that is known."""

    @property
    def words(self) -> str:
        """The state in words: `stopped at step 80`, `running on gpu7`."""
        if self.state == "stopped" and self.steps is not None:
            return f"stopped at step {self.steps}"
        if self.state == "running" and self.owner is not None and not self.owner.is_here:
            return f"running on {self.owner.host}"
        return self.state


def read_state(folder: Path) -> RunState:
    """How the run in `folder` stands. Files that are missing or broken give less, and no error."""
    # In this order: a run that ends in between has said how before it let its folder go.
    lives, owner = _owner(folder)
    summary = _summary(folder)
    last_step, losses = _logged(folder / "metrics.jsonl")
    noted = summary.get("last")
    losses = {**(noted if isinstance(noted, dict) else {}), **losses}
    steps = [step for step in (_whole(summary.get("steps")), last_step) if step is not None]
    outcome = summary.get("outcome")
    is_over = not lives and outcome in ("finished", "interrupted", "failed")
    return RunState(
        folder=folder,
        state="running" if lives else next((state for said, state in _STATES if said == outcome), "unknown"),
        steps=max(steps, default=None),
        total_steps=_whole(summary.get("total_steps")),
        loss=_number(losses.get("train/loss")),
        eval_loss=_number(losses.get("eval/loss")),
        checkpoints=tuple(_checkpoint_steps(folder)),
        size=_size(folder),
        started=_moment(summary.get("started")),
        ended=_moment(summary.get("ended")) if is_over else None,
        seconds=_seconds(summary.get("seconds"), owner),
        error=_text(summary.get("error")) if is_over and outcome == "failed" else None,
        owner=owner,
    )


def find_runs(folder: Path) -> Iterator[Path]:
    """The run that `folder` is, or those in it and in the folders below; what cannot be read is passed over."""
    yield from _find(folder, _DEPTH, set())


def newest_first(states: Iterable[RunState]) -> list[RunState]:
    """Sorted by when they started; those that do not tell, by when something was last put into their folder."""

    def began(state: RunState) -> datetime:
        if state.started is not None:
            return datetime.fromisoformat(state.started)
        try:
            return datetime.fromtimestamp(state.folder.stat().st_mtime, UTC)
        except (OSError, OverflowError):
            return datetime.fromtimestamp(0, UTC)

    return sorted(states, key=lambda state: (began(state), str(state.folder)), reverse=True)


def _find(folder: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    try:
        real = folder.resolve()
        if real in seen:  # Links may lead in a circle, or to the same run twice.
            return
        seen.add(real)
        if is_run(folder):
            yield folder
            return
        below = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_dir()]
    except (OSError, RuntimeError):  # RuntimeError: a link to itself
        return
    if depth > 0:
        for path in below:
            yield from _find(path, depth - 1, seen)


def _owner(folder: Path) -> tuple[bool, Owner | None]:
    """Whether a process holds the folder, and which one."""
    try:
        owner = owner_of(folder)
    except FolderInUse:
        return True, None
    return owner is not None, owner


def _summary(folder: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads((folder / "summary.json").read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return redact(facts) if isinstance(facts, dict) else {}


def _logged(file: Path) -> tuple[int | None, dict[str, Any]]:
    """The last step in `metrics.jsonl`, and the last values of the losses, as far as the end of the file tells."""
    try:
        with file.open("rb") as lines:
            length = lines.seek(0, os.SEEK_END)
            lines.seek(max(0, length - _TAIL))
            tail = lines.read().splitlines()[1 if length > _TAIL else 0 :]
    except OSError:
        return None, {}
    step: int | None = None
    losses: dict[str, Any] = {}
    for line in tail:  # A run that is killed may leave its last line cut off.
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            said = _whole(row.get("step"))
            step = step if said is None else max(said, step or 0)
            losses |= {path: row[path] for path in ("train/loss", "eval/loss") if path in row}
    return step, losses


def _checkpoint_steps(folder: Path) -> list[int]:
    try:
        return [int(path.name.removeprefix("step-")) for path in checkpoints_of(folder)]
    except (OSError, ValueError):
        return []


def _size(folder: Path) -> int:
    """Bytes of the files in `folder` and below; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for above, _, names in os.walk(folder):
        for name in names:
            try:
                facts = os.lstat(f"{above}/{name}")
            except OSError:  # It has just gone.
                continue
            seen[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(seen.values())


def _seconds(said: Any, owner: Owner | None) -> float | None:
    """How long a run took; one that still prepares its data has written nothing since it began."""
    seconds = _number(said)
    seconds = seconds if seconds is not None and 0 <= seconds < math.inf else None
    since = _moment(owner.since) if owner is not None else None
    if since is None:
        return seconds
    return max(seconds or 0.0, (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())


def _moment(value: Any) -> str | None:
    """A time as the summary writes it; None for what is none."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return value if moment.tzinfo is not None else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and math.isfinite(number) and number >= 0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
