"""Rows that are longer than the model or the configuration allows, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.data.records import IGNORED, Example
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dumbo.config.schema import RunConfig

_WAYS_OUT = (
    "write trainer.data.too_long: drop, truncate or split, or raise trainer.data.sequence_length",
    "'drop' leaves these rows out, 'truncate' cuts their ends off, 'split' cuts them into several",
)


@dataclass
class LengthPolicy:
    """Applies `trainer.data.too_long`, and counts what it met."""

    limit: int | None
    """Longest sequence in tokens; None for any."""
    policy: str
    too_long: int = 0
    longest: int = 0
    emptied: int = 0
    """Pieces that were left out because cutting left nothing to train in them."""
    first: Example | None = None

    def fit(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples, none longer than the limit."""
        for example in examples:
            length = len(example.input_ids)
            if self.limit is None or length <= self.limit:
                yield example
                continue
            self.too_long += 1
            self.longest, self.first = max(self.longest, length), self.first or example
            for piece in self._pieces(example, self.limit):
                if any(label != IGNORED for label in piece.labels[1:]):
                    yield piece
                else:
                    self.emptied += 1

    def settle(self) -> None:
        """Raise a DataError that names the first too long row, where the policy is `error` and there was one."""
        if self.first is None or self.policy != "error":
            return
        count = "1 row is" if self.too_long == 1 else f"{self.too_long} rows are"
        message = f"{count} longer than {self.limit} tokens (the longest has {self.longest}); this is the first"
        raise self.first.origin.error(message, *_WAYS_OUT)

    def _pieces(self, example: Example, limit: int) -> Iterator[Example]:
        ids, labels = example.input_ids, example.labels
        starts = {"truncate": range(1), "split": range(0, len(ids), limit)}.get(self.policy, range(0))
        for start in starts:
            yield Example(ids[start : start + limit], labels[start : start + limit], example.origin)


def sequence_length(config: RunConfig, model: PreTrainedModel) -> int | None:
    """The longest sequence in tokens: the one that the user wants, else the model's limit, if it has one.

    Raises:
        ConfigError: the user wants more than the model has positions for.
    """
    wanted, possible = config.trainer.data.sequence_length, model_limit(model)
    if wanted is not None and possible is not None and wanted > possible:
        hint = "write less, or stretch the model by model.config_overrides: {max_position_embeddings: ...}"
        raise ConfigError.at("trainer.data.sequence_length", f"the model takes at most {possible} tokens", hint)
    return wanted if wanted is not None else possible


def model_limit(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for, by its configuration; None where it names no limit."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
