"""Puts Liger's kernels into a model, one kind at a time, and looks at the model for what each has changed."""

from __future__ import annotations

import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

from dumbo.bridge.head import HeadError, head_shape
from dumbo.errors import ConfigError, Problem
from dumbo.plugins.liger.plugin import KERNELS, LigerOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

THEIR_NAMES = MappingProxyType(
    {
        "rope": ("rope",),
        "rms_norm": ("rms_norm",),
        "layer_norm": ("layer_norm",),
        "glu_activation": ("swiglu", "geglu"),
    }
)
LOSSES = "fused_linear_cross_entropy: true and cross_entropy: true work with every model"


@dataclass(frozen=True)
class Effect:
    """What one kernel changed in a model: modules, by the class that computes in them now, and functions."""

    modules: MappingProxyType[str, int]
    functions: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.modules or self.functions)

    def __str__(self) -> str:
        return ", ".join([*(f"{name} {count}" for name, count in self.modules.items()), *self.functions])


def apply_kernels(model: Any, options: LigerOptions, say: Callable[[str], None]) -> PreTrainedModel:
    """Return `model` with the kernels of `options` in it, having said which.

    Raises:
        ConfigError: a kernel that was asked for by name is not there for this model, or changed nothing in it; a loss
            that does not fit its head.
    """
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it lists backends that are not installed
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # below PEFT's wrapper
    if options.fused_linear_cross_entropy:
        try:
            if head_shape(model).has_update:
                raise HeadError("the output head has an adapter of its own")
        except HeadError as error:
            key = "model.liger.fused_linear_cross_entropy"
            raise ConfigError.at(key, str(error), "set cross_entropy: true instead") from error
    has_loss = options.cross_entropy or options.fused_linear_cross_entropy
    effects = _apply_all(base, options, has_loss)
    for name, effect in effects.items():
        say(f"liger: {name}: {effect}")
    if has_loss:
        scaled = ", scaled by each token's probability" if options.use_token_scaling else ""
        say(f"liger: {'cross_entropy' if options.cross_entropy else 'fused_linear_cross_entropy'}: the loss{scaled}")
    patched: PreTrainedModel = model
    return patched


def _apply_all(base: Any, options: LigerOptions, has_loss: bool) -> dict[str, Effect]:
    kind = base.config.model_type
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    wanted = [name for name in KERNELS if getattr(options, name) is not False]
    asked = [name for name in KERNELS if getattr(options, name) is True]
    if apply is None:
        if asked or not has_loss:
            path = ("model", "liger", asked[0]) if asked else ("plugins",)
            hints = ("remove 'liger' from plugins, or leave its kernels out", LOSSES)
            raise ConfigError([Problem(f"Liger has no kernels for models of the type '{kind}'", path, hints=hints)])
        return {}
    problems: list[Problem] = []
    effects: dict[str, Effect] = {}
    for name in wanted:
        effect, why = _apply_one(base, apply, name, asked=name in asked)
        if effect:
            effects[name] = effect
        elif name in asked:
            problems.append(Problem(why, ("model", "liger", name), hints=("leave it out",)))
    if not effects and not has_loss and not problems:
        message = f"none of Liger's kernels changes anything in this model ('{kind}')"
        problems.append(Problem(message, ("plugins",), hints=("remove 'liger' from plugins", LOSSES)))
    if problems:
        raise ConfigError(problems)
    return effects


def _apply_one(base: Any, apply: Callable[..., None], name: str, *, asked: bool) -> tuple[Effect | None, str]:
    """What the kernel called `name` changed in `base`; nothing, and why, where it does not fit."""
    kind, parameters = base.config.model_type, inspect.signature(apply).parameters
    flags = [flag for flag in THEIR_NAMES[name] if flag in parameters]
    if not flags:
        return None, f"Liger has no such kernel for models of the type '{kind}'"
    if not asked and not any(parameters[flag].default for flag in flags):
        return None, "Liger leaves it out of this model by default"
    others = {flag: False for flag, parameter in parameters.items() if isinstance(parameter.default, bool)}
    forwards = {id(module): module.__dict__.get("forward") for module in base.modules()}
    before = dict(_globals(base))
    try:
        apply(model=base, **(others | dict.fromkeys(flags, True)))
    except Exception as error:
        return None, f"Liger refuses it for models of the type '{kind}': {str(error).strip() or type(error).__name__}"
    finally:
        replaced = _restore(before)
    # An earlier model of this process may have brought the function along already.
    functions = tuple(dict.fromkeys([*replaced, *(_liger_functions(base) if name == "rope" else ())]))
    changed = [module for module in base.modules() if module.__dict__.get("forward") is not forwards[id(module)]]
    counts = Counter(module._get_name() for module in changed)
    return Effect(MappingProxyType(counts), functions), f"has no effect: nothing in this model ('{kind}') changed"


def _globals(base: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    """Classes and functions by the modules that define the model's parts, and of PyTorch, which Liger replaces too."""
    homes = {type(module).__module__ for module in base.modules()} | {"torch.nn", "torch.nn.functional"}
    for home in sorted(homes):
        for name, value in vars(sys.modules[home]).items():
            if callable(value) and not isinstance(value, ModuleType):
                yield (home, name), value


def _liger_functions(base: Any) -> list[str]:
    found = ((name, value) for (_, name), value in _globals(base) if not isinstance(value, type))
    return [name for name, value in found if (getattr(value, "__module__", None) or "").startswith("liger_kernel")]


def _restore(before: dict[tuple[str, str], Any]) -> tuple[str, ...]:
    """Give replaced classes back, as this model has the kernels by now and others should not; functions must stay.

    Returns:
        The names of the functions.
    """
    functions: list[str] = []
    for (home, name), old in before.items():
        new = vars(sys.modules[home])[name]
        if new is old:
            continue
        if isinstance(old, type) or home.startswith("torch."):
            setattr(sys.modules[home], name, old)
        else:
            functions.append(name)
    return tuple(functions)
