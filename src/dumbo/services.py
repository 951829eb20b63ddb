"""What a plugin may ask the run for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dumbo.data.dataset import TokenDataset
    from dumbo.data.records import Record
    from dumbo.inference.generate import TextGenerator


@dataclass(frozen=True)
class Services:
    """The doors through which a plugin may ask the run for something."""

    output_dir: Path
    """The run's folder. Write on the first rank only."""
    say: Callable[[str], None]
    """Tell the user something, in a line; silent on other ranks than the first."""
    records: Callable[[], Iterable[Record]]
    """The records of all sources but those that are held out whole, in the order of the configuration."""
    load_model: Callable[[str], PreTrainedModel]
    """Another model (a teacher, a reference), by folder or hub name, loaded as the run's own is."""
    held_out: Callable[[], TokenDataset | None] = lambda: None
    """The held-out rows as tokens, once the datasets are built; None where there are none."""
    train_set: Callable[[], TokenDataset | None] = lambda: None
    """The training set as tokens, once the datasets are built; None before, and for a stream."""
    generator: Callable[[], TextGenerator | None] = lambda: None
    """What writes text with the run's model as it is at that moment; None before the datasets are built."""
    note: Callable[[str, Any], None] = lambda name, value: None
    """Keep a fact (text, numbers, lists or mappings of them) for the run's `summary.json` and its report."""
    rank: int = 0
    world_size: int = 1
