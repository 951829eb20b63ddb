"""Whether a model keeps rows apart that are packed into one sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dumbo.data.collate import PackedCollator
from dumbo.errors import ConfigError

_LENGTHS = (5, 9, 4)
_KEY = "trainer.data.packing"


def require_isolation(model: nn.Module) -> None:
    """Give the model three short rows, packed and one by one, and compare what it makes of them.

    Raises:
        ConfigError: the packed rows come out otherwise, so that one sees another, or the model cannot be given them.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    hint = "remove packing; padding then costs least with trainer.data.group_by_length: true"
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            difference, tolerance = _difference(model)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()
        message = f"'{kind}' cannot be given packed rows: {reason[0] if reason else type(error).__name__}"
        raise ConfigError.at(_KEY, message, hint) from error
    finally:
        model.train(was_training)
    if not difference <= tolerance:
        message = f"'{kind}' does not keep packed rows apart: logits are {difference:.2g} from those of a row alone"
        raise ConfigError.at(
            _KEY,
            message,
            "a layer carries something into the next row, or is not told where one begins",
            hint,
        )


def _difference(model: nn.Module) -> tuple[float, float]:
    """The largest difference of a logit, and the largest that rounding may cause."""
    parameter = next(model.parameters())
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    ids = torch.arange(7, 7 + 11 * sum(_LENGTHS), 11).remainder(vocabulary).to(torch.int32).numpy()
    bounds = [sum(_LENGTHS[:number]) for number in range(len(_LENGTHS) + 1)]
    rows = [
        {"input_ids": ids[first:last], "labels": ids[first:last]}
        for first, last in zip(bounds, bounds[1:], strict=False)
    ]
    packed = _logits(model, rows, parameter.device)
    alone = torch.cat([_logits(model, [row], parameter.device) for row in rows], dim=1)
    scale = float(alone.abs().max().clamp(min=1))
    precision = torch.finfo(parameter.dtype).eps if parameter.dtype.is_floating_point else 1e-2
    return float((packed - alone).abs().max()), scale * max(2e-5, 8 * precision)


def _logits(model: nn.Module, rows: list[dict[str, Any]], device: torch.device) -> Tensor:
    batch = PackedCollator()(rows)
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs, use_cache=False).logits.float()
    return logits
