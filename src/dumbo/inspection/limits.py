"""How long a row may be, as far as that is known without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.data.lengths import longest_sequence

if TYPE_CHECKING:
    from dumbo.config.schema import RunConfig

_LIMIT = "max_position_embeddings"


def likely_limit(config: RunConfig) -> int | None:
    """The longest row in tokens: what the configuration says, or the model by its own; None where nothing is known
    before the model is there: of models on the hub, and of types whose default it is.

    Raises:
        ConfigError: the configuration says more than the model has positions for.
    """
    return longest_sequence(config, _positions(config))


def known_limit(config: RunConfig) -> int | None:
    """The longest row in tokens that is no error; None where longer rows are cut or dropped, or nothing is known."""
    data = config.trainer.data
    return likely_limit(config) if data.too_long == "error" and data.packing != "joined" else None


def _positions(config: RunConfig) -> int | None:
    model = config.model
    values = {**_own_values(model.base_model), **model.architecture, **model.config_overrides}
    limit = values.get(_LIMIT)
    return limit if isinstance(limit, int) and limit > 0 else None


def _own_values(base_model: str | None) -> dict[str, Any]:
    """The configuration in a model's folder."""
    try:
        values = json.loads((Path(base_model or "") / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    text = values.get("text_config") if isinstance(values, dict) else None
    return {**values, **text} if isinstance(text, dict) else values if isinstance(values, dict) else {}
