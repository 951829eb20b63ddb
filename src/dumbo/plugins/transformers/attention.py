"""Knows which attention implementations the installed Transformers has."""

from __future__ import annotations

import difflib
import re

from dumbo.errors import Problem, key_path

KERNEL = re.compile(r"[\w.-]+/[\w.-]+(@[^:/]+)?(:[\w.-]+)?")
"""A kernel on the hub: `owner/name`, `owner/name@revision`, `owner/name:function`."""


def attention_names() -> list[str]:
    """The registered names, also those that plugins registered; not those that only serve generation."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return sorted({"eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("paged|"))})


def attention_problem(name: str) -> Problem | None:
    """What is wrong with `name` as a value of `model.attention`."""
    names = attention_names()
    if name in ("auto", *names) or KERNEL.fullmatch(name):
        return None
    near = difflib.get_close_matches(name, ["auto", *names], n=1)
    hints = [f"did you mean '{near[0]}'?"] if near else []
    hints.append(f"known are auto, {', '.join(names)}, and kernels on the hub as owner/name")
    return Problem(f"there is no attention implementation '{name}'", key_path("model.attention"), hints=tuple(hints))
