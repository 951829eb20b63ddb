"""Finds the experts of a model and their routers, and lets them work together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dumbo.bridge.parameters import folded
from dumbo.errors import ConfigError, DumboError
from dumbo.plugins.dense_mixer.experts import NAME, Mixer, attach, base_forward, mixer_of

_KEY = "model.dense_mixer"
_HINT = "remove 'dense_mixer' from plugins"
_MARKS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
"""What Transformers gives to experts that can be computed by another implementation."""
_BY_TABLE = frozenset({"DeepseekV4HashRouter"})
"""Routers that choose by a table of tokens, which no gradient changes: nothing is to be learned from other experts."""
_TRIED_TOKENS = 16


def add_dense_mixer(model: Any, pairs: int, say: Callable[[str], None]) -> Any:
    """Return `model`, loaded with experts of the name `NAME`, with its routers watched.

    `pairs` of token and expert are computed at a time.

    Raises:
        ConfigError: it has no experts, or experts or routers that are not known.
    """
    base = _transformers_model(model)
    layers = {name: module for name, module in model.named_modules() if is_experts(module)}
    if not layers:
        message = f"{type(base).__name__} has no experts that Transformers lets others compute"
        raise ConfigError.at(_KEY, message, _HINT)
    modules = dict(model.named_modules())
    learning = {}
    for name, experts in layers.items():
        _check(name, experts, base)
        around = {path: module for path, module in _around(modules, name).items() if path}
        if not any(type(module).__name__ in _BY_TABLE for module in around.values()):
            attach(experts, _mixer(name, experts, around, modules, pairs, type(base).__name__))
            learning[name] = experts
    if not learning:
        raise ConfigError.at(_KEY, f"the routers of {type(base).__name__} choose by a table of tokens", _HINT)
    _try(base, learning)
    _check_trained(modules, learning, type(base).__name__)
    say(_description(learning, len(layers) - len(learning)))
    return model


def is_experts(module: nn.Module) -> bool:
    """Whether Transformers lets others compute these experts."""
    return all(hasattr(module, mark) for mark in _MARKS)


def _transformers_model(model: Any) -> Any:
    from transformers import PreTrainedModel

    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def _check(name: str, experts: Any, base: Any) -> None:
    found = experts.config._experts_implementation
    if found != NAME:
        message = f"{name} of {type(base).__name__} is computed by '{found}', which another plugin or option asked for"
        raise ConfigError.at(_KEY, message, "leave one of them out")
    if getattr(experts, "_is_expert_parallel", False):
        message = "cannot be used with experts that are shared out to several devices"
        raise ConfigError.at(_KEY, message, _HINT)


def _mixer(
    name: str, experts: Any, around: dict[str, nn.Module], modules: dict[str, nn.Module], pairs: int, kind: str
) -> Mixer:
    mixer = Mixer(
        name=name,
        kind=kind,
        base=base_forward(experts, _owner(modules, name).get_correct_experts_implementation(None)),
        parameters=tuple(parameter for parameter, _ in experts.named_parameters()),
        count=experts.num_experts,
        pairs=pairs,
    )
    for path, module in around.items():
        mixer.watches[path] = module.register_forward_hook(_Watch(mixer, path))
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.shape == (experts.num_experts,) and parameter.is_floating_point():
                mixer.factors[f"{path}.{leaf}"] = parameter
    return mixer


def _around(modules: dict[str, nn.Module], name: str) -> dict[str, nn.Module]:
    """The modules of the block that has the experts `name` and their router, by their paths in it, without experts.

    What PEFT wrapped around the experts is no such block.
    """
    block = name.rpartition(".")[0]
    while block and hasattr(modules[block], "base_layer"):
        block = block.rpartition(".")[0]
    inside = f"{block}." if block else ""
    own = name.removeprefix(inside).split(".")[0]
    paths = {path.removeprefix(inside): module for path, module in modules.items() if path.startswith(inside)}
    return {path: module for path, module in paths.items() if path.split(".")[0] != own}


def _owner(modules: dict[str, nn.Module], name: str) -> Any:
    """The innermost model of Transformers around `name`: it is what chooses how experts are computed."""
    from transformers import PreTrainedModel

    while not isinstance(modules[name], PreTrainedModel):
        name = name.rpartition(".")[0]
    return modules[name]


@dataclass(eq=False)
class _Watch:
    """A hook that keeps outputs which may be a router's scores: a value for each expert."""

    mixer: Mixer
    path: str

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        found = output if isinstance(output, tuple | list) else (output,)
        for value in found:
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[-1:] == (self.mixer.count,):
                self.mixer.seen[self.path] = value.reshape(-1, self.mixer.count)
                return


def _try(base: Any, layers: dict[str, nn.Module]) -> None:
    """Send some tokens through the model, without its experts, so that routers that are not known are found now.

    What keeps a model from taking tokens alone keeps it here from nothing: its first batch is looked at, then.
    """
    weight = next(iter(base.parameters()))
    if any(parameter.is_meta for parameter in base.parameters()):
        return
    vocabulary = getattr(base.config.get_text_config(), "vocab_size", 2)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, _TRIED_TOKENS), generator=draw).to(weight.device)
    devices = [weight.device] if weight.is_cuda else []
    with _trying(layers), _in_training(base), torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            base(input_ids=tokens, use_cache=False)
        except DumboError:
            raise
        except Exception:  # noqa: BLE001 - a model that takes more than tokens
            return
    missed = [name for name, experts in layers.items() if mixer_of(experts).routing is None]
    if missed:
        message = f"{', '.join(folded(missed))} of {type(base).__name__} took no part when it was tried"
        raise ConfigError.at(_KEY, message, "leave the plugin out that computes these experts, or this one")


def _check_trained(modules: dict[str, nn.Module], layers: dict[str, nn.Module], kind: str) -> None:
    for name, experts in layers.items():
        routing = mixer_of(experts).routing
        if routing is None:  # the first batch will tell
            return
        router = _around(modules, name)[routing.module.split(".")[0]]
        if any(parameter.requires_grad for parameter in router.parameters()):
            return
    hint = "with peft, name them: modules_to_save: [gate], or target_parameters: [gate.weight]"
    raise ConfigError.at(_KEY, f"no router of {kind} is trained, so there is nothing for it to learn", hint, _HINT)


@contextmanager
def _trying(layers: dict[str, nn.Module]) -> Iterator[None]:
    mixers = [mixer_of(experts) for experts in layers.values()]
    for mixer in mixers:
        mixer.tries = True
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.tries = False
            mixer.seen.clear()


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Routers may route otherwise in evaluation."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _description(layers: dict[str, nn.Module], left: int) -> str:
    mixers = [mixer_of(experts) for experts in layers.values()]
    counts = " or ".join(str(count) for count in sorted({mixer.count for mixer in mixers}))
    words = f"{len(mixers)} layer{'s' if len(mixers) != 1 else ''} of {counts} experts"
    kinds = sorted({mixer.routing.function for mixer in mixers if mixer.routing is not None})
    how = f" ({' and '.join(kinds)})" if kinds else ""
    others = f"; {left} more with a router that chooses by a table of tokens {'are' if left > 1 else 'is'} left out"
    return f"dense_mixer: {words}, whose routers{how} learn from all of them{others if left else ''}"
