"""What a run that goes on needs before it has a model: where its stream and its trackers were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATE = "training"
"""The folder, within a checkpoint, of what is not the model."""
_FILE = "opening.json"


def write_opening(checkpoint: Path, stream: Mapping[str, Any] | None, trackers: Mapping[str, Any]) -> None:
    """Write both; they hold what JSON can."""
    text = json.dumps({"stream": stream, "trackers": dict(trackers)})
    (checkpoint / STATE / _FILE).write_text(text, encoding="utf-8")


def read_opening(checkpoint: Path | None) -> Mapping[str, Any]:
    """`{"stream": ..., "trackers": {...}}`; nothing of both without a checkpoint."""
    if checkpoint is None:
        return {"stream": None, "trackers": {}}
    opening: Mapping[str, Any] = json.loads((checkpoint / STATE / _FILE).read_text(encoding="utf-8"))
    return opening
