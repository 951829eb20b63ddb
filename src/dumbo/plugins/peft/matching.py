"""Which modules the names and patterns of the options mean; one that means none is an error."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from dumbo.bridge.quantized_base import is_quantized
from dumbo.errors import Problem
from dumbo.plugins.peft.checks import problem
from dumbo.plugins.peft.methods import ALL_LINEAR, LORA
from dumbo.plugins.peft.options import PeftOptions

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
    yield from _target_problems(modules, options)
    yield from _exclude_problems(modules, options)
    yield from _parameter_problems(model, options)
    targeted = targeted_names(model, options)
    if targeted:
        yield from _layer_problems(targeted, options)
        for option in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(options, option):
                if not any(fits(pattern, name) for name in targeted):
                    message = f"'{pattern}' matches nothing that gets an adapter"
                    yield problem(option, message, *_near(pattern, dict.fromkeys(targeted)))


def _target_problems(modules: dict[str, nn.Module], options: PeftOptions) -> Iterator[Problem]:
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
        elif options.method == LORA:
            yield from _wrong_types(entry, {name: modules[name] for name in left})


def _exclude_problems(modules: dict[str, nn.Module], options: PeftOptions) -> Iterator[Problem]:
    excluded = options.exclude_modules
    for entry in [excluded] if isinstance(excluded, str) else excluded:
        if not any(matches(entry, name, regex=isinstance(excluded, str)) for name in modules):
            yield problem("exclude_modules", f"'{entry}' matches no module", *_near(entry, modules))


def _parameter_problems(model: nn.Module, options: PeftOptions) -> Iterator[Problem]:
    """Entries of target_parameters that mean no weight, or one of a module that LoRA adapts by itself."""
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    for entry in options.target_parameters:
        found = [name for name in names if matches(entry, name, regex=False)]
        if not found:
            wide = {name: names[name] for name in names if names[name].ndim > 2} or names
            yield problem("target_parameters", f"'{entry}' matches no weight", *_near_weights(entry, wide))


def _near_weights(entry: str, names: Iterable[str]) -> list[str]:
    """Ends of names, without the numbers of layers before them, those most like `entry` first."""
    ends = list(dict.fromkeys(re.split(r"\.\d+\.", name)[-1] for name in names))
    near = difflib.get_close_matches(entry, ends, n=3, cutoff=0.4)
    return [f"the model has: {', '.join([*near, *(end for end in ends if end not in near)][:SHOWN])}"]


def _layer_problems(targeted: Sequence[str], options: PeftOptions) -> Iterator[Problem]:
    """Numbers of layers that there are none of."""
    if not options.layers_to_transform:
        return
    numbers = {layer_number(name, options.layers_pattern) for name in targeted}
    there = sorted(number for number in numbers if number is not None)
    for number in options.layers_to_transform:
        if number not in there:
            known = f"there are 0 to {there[-1]}" if there else "no name of a target has the number of a layer"
            yield problem("layers_to_transform", f"there is no layer {number}", known)


def layer_number(name: str, pattern: str | None) -> int | None:
    """The number of the layer that the module `name` is in, as PEFT reads it; None for one outside of layers."""
    found = re.match(rf"(?:^|.*?\.){pattern or '[^.]+'}\.(\d+)\.", name)
    return int(found[1]) if found else None


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern of ranks means the module `name`, as PEFT reads it."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def targeted_names(model: nn.Module, options: PeftOptions) -> list[str]:
    """The modules that the options mean to get an adapter, of all layers."""
    excluded, targets = options.exclude_modules, options.target_modules
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = []
    for name, module in model.named_modules():
        if targets == ALL_LINEAR:
            is_target = isinstance(module, nn.Linear | Conv1D) and module is not head
        else:
            is_target = bool(name) and means(targets, name)
        if is_target and not means(excluded, name) and not is_saved(name, options.modules_to_save):
            found.append(name)
    parameters = [name for name, _ in model.named_parameters()]
    owners = [name.rpartition(".")[0] for name in parameters if means(options.target_parameters, name)]
    return list(dict.fromkeys([*found, *owners]))


def means(entries: str | Sequence[str], name: str) -> bool:
    """Whether a list of names, or a regular expression, means `name`."""
    if isinstance(entries, str):
        return matches(entries, name, regex=True)
    return any(matches(entry, name, regex=False) for entry in entries)


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


def _near(entry: str, modules: Mapping[str, object]) -> list[str]:
    """The names that the model has, those most like `entry` first."""
    last = {name.rpartition(".")[2] for name in modules}
    near = difflib.get_close_matches(entry.rpartition(".")[2], last, n=3, cutoff=0.5)
    guess = [f"did you mean {' or '.join(repr(name) for name in near)}?"] if near else []
    return [*guess, *_names(modules)]


def _names(modules: Mapping[str, object]) -> list[str]:
    last = [name for name in dict.fromkeys(name.rpartition(".")[2] for name in modules) if not name.isdecimal()]
    more = f" and {len(last) - SHOWN} more" if len(last) > SHOWN else ""
    return [f"the model has: {', '.join(last[:SHOWN])}{more}"]


def _unmatched(option: str, message: str, hints: Sequence[str]) -> Problem:
    return problem(option, message, *hints)
