"""What a first configuration is made from, and what is taken where nothing was said."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dumbo.plugin_finder import FoundPlugin, find_installed, find_plugin, install_hint, missing_packages
from dumbo.plugin_interfaces import INTERFACES
from dumbo.plugin_loader import LoggingPlugin
from dumbo.plugin_rules import claims
from dumbo.starting.models import FoundModel
from dumbo.starting.rows import FoundData

RANDOM, NO_TRACKER = "random", "none"
HELD_OUT_SHARE = 0.1
_LORA_FROM = 2_000_000_000
"""Bytes of weights from which LoRA is the default: gradients and two moments in float32 are six times as much."""
_FEW_ROWS = 10


@dataclass(frozen=True)
class Answers:
    """Everything that the configuration depends on."""

    model: FoundModel | None
    """None for random weights."""
    data: FoundData
    lora: bool
    held_out: int | float
    """A share below 1, or a number of rows."""
    tracker: str | None
    has_gpu: bool


@dataclass(frozen=True)
class FoundTracker:
    """A plugin that sends metrics somewhere."""

    name: str
    about: str
    install: str
    """The pip command, where its package is missing; otherwise empty."""


def lora_by_default(model: FoundModel | None) -> bool:
    """Whether the model is so large that its gradients had better be few."""
    return model is not None and model.num_bytes >= _LORA_FROM


def held_out_by_default(data: FoundData) -> float:
    """A tenth, or nothing of very few rows."""
    return 0 if data.num_rows is not None and data.num_rows < _FEW_ROWS else HELD_OUT_SHARE


def read_share(text: str, data: FoundData) -> int | float | str:
    """`10%`, `0.1`, `200` or `0` as a share or a number of rows; a text says what is wrong with it."""
    text = text.strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return f"'{text}' is neither a share (10% or 0.1) nor a number of rows"
    if number == 0:
        return 0
    if not 0 < number < math.inf or (number >= 1 and (text.endswith("%") or number != int(number))):
        return f"'{text}' is neither a share below 1 (10% or 0.1) nor a whole number of rows"
    if data.num_rows is not None and max(1, round(number if number >= 1 else number * data.num_rows)) >= data.num_rows:
        return f"there are only {data.num_rows} rows, and some must be left to train on"
    return int(number) if number >= 1 else round(number, 6)


def lora_install() -> str:
    """The pip command of the package behind LoRA; empty if it is installed."""
    return _install(find_plugin("peft", Path()))


def trackers() -> list[FoundTracker]:
    """The installed plugins that collect metrics for a service and need nothing said, ready ones first."""
    spec = next(spec for spec in INTERFACES if spec.type is LoggingPlugin)
    found = [plugin for plugin in find_installed()[0] if plugin.type.packages and claims(plugin.type, spec)]
    listed = [
        FoundTracker(plugin.name, (plugin.type.__doc__ or "").strip().split("\n")[0].rstrip("."), _install(plugin))
        for plugin in found
        if _needs_nothing(plugin)
    ]
    return sorted(listed, key=lambda tracker: bool(tracker.install))


def tracker_options(name: str) -> Iterator[tuple[str, str, str]]:
    """What is written into the section of a tracker: key, value, and what it means."""
    if name in ("wandb", "trackio"):
        yield "project", Path.cwd().name or "dumbo", "runs are sorted into projects"
    if name == "mlflow":
        yield "experiment", Path.cwd().name or "dumbo", "runs are sorted into experiments"
    if name == "wandb" and not _has_wandb_key():
        yield "mode", "offline", "keeps the run on disk; after 'wandb login', remove this line to send it"


def _install(plugin: FoundPlugin) -> str:
    missing = missing_packages(plugin.type)
    return install_hint(plugin.name, missing[0]) if missing else ""


def _needs_nothing(plugin: FoundPlugin) -> bool:
    try:
        plugin.type.options_type()
    except ValueError:
        return False
    return True


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return "wandb" in (Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
