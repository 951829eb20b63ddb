"""What is wrong with options of adapters that can be told without the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dumbo.config.explain import unknown_name_hints
from dumbo.config.schema import RunConfig
from dumbo.errors import Problem
from dumbo.plugins.peft.methods import ALL_LINEAR, INITS, LORA, LORA_ONLY, METHODS, REFUSED, REFUSED_INITS
from dumbo.plugins.peft.options import PeftOptions

_PISSA = re.compile(r"pissa(_niter_\d+)?")
_RULES = (
    ("lora_plus_embedding_rate", "lora_plus_ratio", "it needs lora_plus_ratio"),
    ("layers_pattern", "layers_to_transform", "it needs layers_to_transform"),
)
_OF_THE_ADAPTER = ("rank_pattern", "alpha_pattern", "init", "eva_rho", "settings")
"""Options that shape a new adapter, and say nothing about one that is there."""


def option_problems(options: PeftOptions, config: RunConfig) -> Iterator[Problem]:
    """All problems of the options by themselves, and with the rest of the configuration."""
    if options.method not in METHODS:
        yield _unknown("method", options.method, METHODS, REFUSED, "no method of adapters")
        return
    yield from _name_problems(options)
    yield from _lora_problems(options) if options.method == LORA else _other_problems(options)
    yield from _previous_problems(options)
    if config.model.architecture:
        message = "random weights are saved nowhere, so an adapter on them could not be used"
        hint = "remove 'peft' from plugins, or write model.base_model"
        yield Problem(message, ("model", "architecture"), hints=(hint,))
    if config.model.unfrozen_parameters:
        message = "has no effect with 'peft' listed: all weights but those of the adapter stay as they are"
        hints = ("write model.peft.modules_to_save for modules to train as a whole", "or remove 'peft' from plugins")
        yield Problem(message, ("model", "unfrozen_parameters"), hints=hints)


def _unknown(option: str, name: str, known: Mapping[str, object], refused: Mapping[str, str], what: str) -> Problem:
    if name in refused:
        return problem(option, f"'{name}' is not available: {refused[name]}")
    return problem(option, f"{what} is called '{name}'", *unknown_name_hints(name, known))


def _name_problems(options: PeftOptions) -> Iterator[Problem]:
    if not options.target_modules and not options.target_parameters:
        yield problem("target_modules", "is empty", "leave it out for every linear layer")
    for name, pattern in _expressions(options):
        try:
            re.compile(pattern)
        except re.error as error:
            yield problem(name, f"'{pattern}' is not a regular expression: {error}")
    for name in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters", "merge_first"):
        listed = getattr(options, name)
        if isinstance(listed, tuple) and "" in listed:
            yield problem(name, "a name cannot be empty")
    for name, needed, hint in _RULES:
        if name in options.written and not getattr(options, needed):
            yield problem(name, "has no effect here", hint)
    if options.layers_to_transform and isinstance(options.target_modules, str) and options.target_modules != ALL_LINEAR:
        message = "has no effect where target_modules is a regular expression"
        yield problem("layers_to_transform", message, "write the numbers into it, or list names")


def _expressions(options: PeftOptions) -> Iterator[tuple[str, str]]:
    """The regular expressions among the options, with the names of these."""
    for name in ("target_modules", "exclude_modules"):
        value = getattr(options, name)
        if isinstance(value, str) and value != ALL_LINEAR:
            yield name, value
    for name in ("rank_pattern", "alpha_pattern"):
        yield from ((name, pattern) for pattern in getattr(options, name))


def _lora_problems(options: PeftOptions) -> Iterator[Problem]:
    init = options.init
    if init not in INITS and not _PISSA.fullmatch(init):
        yield _unknown("init", init, dict.fromkeys([*INITS, "pissa_niter_16"]), REFUSED_INITS, "no beginning of LoRA")
    if init == "orthogonal" and options.width % 2:
        yield problem("init", "'orthogonal' needs an even rank", f"rank: {options.width + 1}")
    if "eva_rho" in options.written and init != "eva":
        yield problem("eva_rho", "has no effect here", "it needs init: eva")
    if init == "loftq" and options.use_dora:
        yield problem(
            "use_dora", "does not go with init: loftq: lengths are taken before it begins", "remove one of them"
        )
    if init == "eva" and (options.beside or options.use_dora):
        which = "beside" if options.beside else "use_dora"
        yield problem(which, "does not go with init: eva, which may leave layers without adapter", "remove one of them")
    if options.settings:
        yield problem("settings", "has no effect with lora, whose settings are options of model.peft", "remove it")
    if options.target_parameters:
        for name, value in (
            ("dropout", options.dropout),
            ("use_dora", options.use_dora),
            ("bias", options.bias != "none"),
        ):
            if value:
                message = "PEFT has none for weights that are listed in target_parameters"
                yield problem(name, message, "remove one of the two")


def _other_problems(options: PeftOptions) -> Iterator[Problem]:
    """Options of LoRA beside another method: asked for, and nothing that could be applied."""
    method = METHODS[options.method]
    for name in LORA_ONLY:
        if name in options.written:
            hint = "write the setting of the method's own under model.peft.settings, or method: lora"
            yield problem(name, f"is an option of lora, and the method is '{options.method}'", hint)
    for name in ("rank", "alpha", "dropout"):
        if name in options.written and name not in method.names:
            hint = "its own settings go under model.peft.settings"
            yield problem(name, f"'{options.method}' has nothing that is called so", hint)
    for name, own in method.names.items():
        if own in options.settings:
            yield problem("settings", f"'{own}' is an option of model.peft", f"write model.peft.{name}")
    for name, reason in method.refused.items():
        if name in options.settings:
            yield problem("settings", f"'{name}' is not available: {reason}")
    if options.bias == "lora_only":
        yield problem("bias", f"'lora_only' is for lora, and the method is '{options.method}'", "write all, or none")


def _previous_problems(options: PeftOptions) -> Iterator[Problem]:
    if options.start_from is not None:
        for name in (*_OF_THE_ADAPTER, "merge_first"):
            if name in options.written:
                yield problem(name, "has no effect with start_from: the adapter is there already", "remove one of them")
    for name in options.beside:
        if name == "default" or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield problem(
                "beside", f"'{name}' cannot be the name of an adapter", "letters, digits, _ and -; not default"
            )
    if options.merge_first and len(set(options.merge_first)) < len(options.merge_first):
        yield problem("merge_first", "names a folder twice", "an adapter can be merged once")


def problem(option: str, message: str, *hints: str) -> Problem:
    """A problem of an option of `model.peft`."""
    return Problem(message, ("model", "peft", option), hints=hints)
