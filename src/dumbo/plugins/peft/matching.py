"""Which modules the names in `target_modules` and `modules_to_save` mean; one that means none is an error."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from dumbo.bridge.quantized_base import is_quantized
from dumbo.errors import Problem
from dumbo.plugins.peft.plugin import ALL_LINEAR, PeftOptions

WRAPPED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
SHOWN = 12


def name_problems(model: nn.Module, options: PeftOptions) -> Iterator[Problem]:
    """The problems of all names that match no module of `model`, or one that cannot be what they ask for."""
    modules = {name: module for name, module in model.named_modules() if name}
    # PEFT takes the ends of names here, without regard to the dots between their parts.
    for entry in options.modules_to_save:
        named = [name for name in modules if name.endswith(entry)]
        if not named:
            yield _unmatched("modules_to_save", f"'{entry}' matches no module", _near(entry, modules))
        elif any(_holds_codes(modules[name]) for name in named):
            hints = ("put an adapter on it (target_modules), or name it in skip_modules of what quantizes the model",)
            yield _unmatched("modules_to_save", f"'{entry}' is quantized, and cannot be trained as a whole", hints)
    targets = options.target_modules
    if targets == ALL_LINEAR:
        return
    entries = [targets] if isinstance(targets, str) else list(targets)
    for entry in entries:
        found = [name for name in modules if matches(entry, name, regex=isinstance(targets, str))]
        left = [name for name in found if not is_saved(name, options.modules_to_save)]
        if not found:
            yield _no_target(entry, modules, regex=isinstance(targets, str))
        elif not left:
            message = f"'{entry}' has no effect: its modules are trained as a whole by modules_to_save"
            yield _unmatched("target_modules", message, ("keep one of them",))
        else:
            yield from _wrong_types(entry, {name: modules[name] for name in left})


def matches(entry: str, name: str, *, regex: bool) -> bool:
    """Whether `entry` of target_modules means the module `name`, as PEFT reads it."""
    if regex:
        return re.fullmatch(entry, name) is not None
    return name == entry or name.endswith(f".{entry}")


def is_saved(name: str, modules_to_save: Sequence[str]) -> bool:
    """Whether the module `name`, or one that it is part of, is among those to train as a whole."""
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(part.endswith(entry) for part in above for entry in modules_to_save)


def counted(names: Sequence[str]) -> str:
    """`q_proj 2, v_proj 2`: the last parts of module names, with how many there are of each."""
    return ", ".join(f"{name} {count}" for name, count in Counter(name.rpartition(".")[2] for name in names).items())


def can_be_wrapped(module: nn.Module) -> bool:
    """Whether LoRA has a layer for it. Quantized linear layers have classes of their own, named after what they are."""
    return isinstance(module, WRAPPED) or ("linear" in type(module).__name__.lower() and not any(module.children()))


def _holds_codes(module: nn.Module) -> bool:
    return any(is_quantized(weight) for weight in module.parameters())


def _wrong_types(entry: str, found: dict[str, nn.Module]) -> Iterator[Problem]:
    for name, module in found.items():
        if can_be_wrapped(module):
            continue
        inner = dict.fromkeys(
            n.rpartition(".")[2] for n, child in module.named_modules() if n and can_be_wrapped(child)
        )
        hint = f"it holds: {', '.join(list(inner)[:SHOWN])}" if inner else "LoRA is for linear layers and embeddings"
        message = f"'{entry}' matches {name}, a {type(module).__name__}, which LoRA cannot adapt"
        yield _unmatched("target_modules", message, (hint,))
        return


def _no_target(entry: str, modules: dict[str, nn.Module], *, regex: bool) -> Problem:
    suitable = {name: module for name, module in modules.items() if can_be_wrapped(module)}
    if not regex:
        return _unmatched("target_modules", f"'{entry}' matches no module", _near(entry, suitable))
    hints = [f"a text is a regular expression for the whole name, such as {next(iter(suitable), 'model.layer')}"]
    if any(matches(entry, name, regex=False) for name in modules):
        hints.append(f"write the list [{entry}], or '.*\\.{entry}'")
    else:
        hints += _names(suitable)
    return _unmatched("target_modules", f"'{entry}' matches no module", hints)


def _near(entry: str, modules: dict[str, nn.Module]) -> list[str]:
    """The names that the model has, those most like `entry` first."""
    last = {name.rpartition(".")[2] for name in modules}
    near = difflib.get_close_matches(entry.rpartition(".")[2], last, n=3, cutoff=0.5)
    guess = [f"did you mean {' or '.join(repr(name) for name in near)}?"] if near else []
    return [*guess, *_names(modules)]


def _names(modules: dict[str, nn.Module]) -> list[str]:
    last = [name for name in dict.fromkeys(name.rpartition(".")[2] for name in modules) if not name.isdecimal()]
    more = f" and {len(last) - SHOWN} more" if len(last) > SHOWN else ""
    return [f"the model has: {', '.join(last[:SHOWN])}{more}"]


def _unmatched(option: str, message: str, hints: Sequence[str]) -> Problem:
    return Problem(message, ("model", "peft", option), hints=tuple(hints))
