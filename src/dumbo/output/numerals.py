"""Numbers as people read them: short, with thousands marked, durations in words."""

from __future__ import annotations

import math
from typing import Any

_UNITS = (
    ("_seconds", "s"),
    ("_bytes", "B"),
    ("_gib", "GiB"),
    ("_mib", "MiB"),
    ("_gb", "GB"),
    ("_mb", "MB"),
    ("_percent", "%"),
)
"""How the names of metrics end, and the unit that this tells."""
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float, digits: int = 4) -> str:
    """`value` with so many significant digits: `0.1234`, `12.35`, `1.235M`, `2e-5`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        mantissa, _, exponent = f"{size:.{digits - 1}e}".partition("e")
        text = f"{_trimmed(mantissa)}e−{abs(int(exponent))}"
    elif size >= 1e15:
        text = f"{size:.2e}".replace("e+", "e")
    elif size >= 1e4:
        text = _with_prefix(size, digits)
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = _trimmed(f"{size:,.{decimals}f}")
    return f"−{text}" if value < 0 else text


def _with_prefix(size: float, digits: int) -> str:
    scale, prefix = next((scale, prefix) for scale, prefix in _PREFIXES if size >= scale)
    decimals = max(0, digits - 1 - math.floor(math.log10(size / scale)))
    return f"{_trimmed(f'{size / scale:.{decimals}f}')}{prefix}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: Any) -> str:
    """A whole number with its thousands marked; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return short(value)


def percent(share: float) -> str:
    """`0.875` as `87.5%`."""
    return f"{_trimmed(f'{100 * share:.1f}')}%"


def duration(seconds: float) -> str:
    """`9.5s`, `2m 51s`, `3h 20m`, `2d 4h`."""
    if seconds < 59.5:
        return f"{_trimmed(f'{seconds:.1f}') if seconds < 10 else round(seconds)}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours}h {minutes}m"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days}d {hours}h"


def unit_of(metric: str) -> str:
    """The unit that the name of a metric tells; empty where it tells none."""
    if metric.endswith("_per_second"):
        return f"{metric.rpartition('/')[2].removesuffix('_per_second').replace('_', ' ')}/s"
    return next((unit for ending, unit in _UNITS if metric.endswith(ending)), "")


def without_unit(name: str) -> str:
    """The name of a metric without the unit at its end."""
    return next((name.removesuffix(ending) for ending, _ in _UNITS if name.endswith(ending)), name)


def is_share(metric: str) -> bool:
    """Whether a metric is a share between 0 and 1 that is read as a percentage."""
    return metric.rpartition("/")[2] in {"exact_match", "accuracy", "token_accuracy", "mean_token_accuracy"}


def measured(metric: str, value: float) -> str:
    """A value of a metric, in its unit."""
    if is_share(metric) and 0 <= value <= 1:
        return percent(value)
    unit = unit_of(metric)
    return f"{short(value)} {unit}" if unit else short(value)
