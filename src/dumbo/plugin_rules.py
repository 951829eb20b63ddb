"""Who sits where and in which order: seats, requirements, conflicts and the order of a run's plugins."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from dumbo.config.compose import ROOTS, is_free_section
from dumbo.config.schema import RunConfig
from dumbo.config.section import EvaluationMetric
from dumbo.errors import Problem, key_path
from dumbo.metrics import evaluation_path
from dumbo.plugin_checks import claims as claims
from dumbo.plugin_finder import FoundPlugin, find_installed
from dumbo.plugin_interfaces import INTERFACES, Claim, Interface
from dumbo.plugin_loader import BasePlugin, CollatorPlugin, EvaluatorPlugin, Phase, StatePlugin, TrainerPlugin


def serving(interface: Interface, found: Sequence[FoundPlugin]) -> list[FoundPlugin]:
    """The plugins that serve `interface`, in order: all that claim it, but for one seat those that do not yield it."""
    claimants = [plugin for plugin in found if claims(plugin.type, interface)]
    if interface.claim is not Claim.ANY_NUMBER and len(claimants) > 1:
        claimants = [plugin for plugin in claimants if interface.type not in plugin.type.yields] or claimants
    return in_order(claimants)


def in_order(found: Sequence[FoundPlugin]) -> list[FoundPlugin]:
    """Sorted by phase, then `after`, then name, whatever the order of the list.

    Raises:
        CycleError: when they want to go after each other.
    """
    by_name = {plugin.name: plugin for plugin in found}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for plugin in found:
        earlier = {other.name for other in found if _phase(other) < _phase(plugin)}
        sorter.add(plugin.name, *earlier, *(plugin.type.after & by_name.keys()))
    sorter.prepare()
    result: list[FoundPlugin] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=lambda name: (_phase(by_name[name]), name))
        first = ready.pop(0)
        result.append(by_name[first])
        sorter.done(first)
    return result


def _phase(found: FoundPlugin) -> Phase:
    return getattr(found.type, "phase", Phase.STRUCTURE)


def check_plugins(found: Sequence[FoundPlugin]) -> list[Problem]:
    """Everything that is wrong with this set of plugins as such, before any of them is made."""
    problems: list[Problem] = []
    for plugin in found:
        problems += [*_check_class(plugin, found), *_check_section(plugin, found)]
    for interface in INTERFACES:
        problems += _check_seat(interface, found)
    for table, what in (("readers", "reader"), ("data_formats", "data format"), ("train_formats", "train format")):
        owners: dict[str, str] = {}
        for plugin in found:
            for name in getattr(plugin.type, table, {}):
                if owners.setdefault(name, plugin.name) != plugin.name:
                    message = f"the plugins '{owners[name]}' and '{plugin.name}' both bring a {what} called '{name}'"
                    problems.append(Problem(message, ("plugins", plugin.position), hints=("list one of them",)))
    return problems


def _check_section(plugin: FoundPlugin, found: Sequence[FoundPlugin]) -> Iterator[Problem]:
    """A plugin's section must be a new key of one of the sections that are open to plugins, and its own."""
    section, path = plugin.type.section, ("plugins", plugin.position)
    if section is None:
        return
    if not is_free_section(section):
        hint = f"a section is {', '.join(f'{root}.NAME' for root, _ in ROOTS)}, with a NAME that dumbo does not use"
        yield Problem(f"plugin '{plugin.name}' cannot have the section '{section}'", path, hints=(hint,))
    for other in found:
        if other.type.section == section and other.position < plugin.position:
            message = f"the plugins '{other.name}' and '{plugin.name}' both have the section '{section}'"
            yield Problem(message, path, hints=("list one of them",))


def _check_class(plugin: FoundPlugin, found: Sequence[FoundPlugin]) -> Iterator[Problem]:
    path, names = ("plugins", plugin.position), {other.name for other in found}
    hooks = [interface.hook for interface in INTERFACES]
    for interface in INTERFACES:
        if issubclass(plugin.type, interface.type) and not claims(plugin.type, interface):
            yield Problem(f"plugin '{plugin.name}' is a {interface.type.__name__} without '{interface.hook}'", path)
    served = [interface for interface in INTERFACES if plugin in _serving_or_all(interface, found)]
    if not any(claims(plugin.type, interface) for interface in INTERFACES) and plugin.type.check is BasePlugin.check:
        own = [name for name in vars(plugin.type) if not name.startswith("_")]
        near = [f"did you mean '{m[0]}' by '{n}'?" for n in own if (m := difflib.get_close_matches(n, hooks, n=1))]
        hints = (*near, "a plugin has one or more of: " + ", ".join(hooks))
        yield Problem(f"plugin '{plugin.name}' has none of the methods of a plugin", path, hints=hints)
    elif plugin.type.yields and not served:
        yield Problem(
            f"plugin '{plugin.name}' has nothing left to do: other plugins took its seats", path, hints=("remove it",)
        )
    for name in sorted(plugin.type.requires - names):
        yield Problem(f"plugin '{plugin.name}' needs '{name}'", path, hints=(f"add '{name}' under plugins:",))
    for name in sorted(plugin.type.conflicts & names):
        yield Problem(f"plugin '{plugin.name}' cannot be combined with '{name}'", path, hints=("remove one of them",))


def _serving_or_all(interface: Interface, found: Sequence[FoundPlugin]) -> list[FoundPlugin]:
    """As `serving`, but nobody where the order has a cycle (which is reported elsewhere)."""
    try:
        return serving(interface, found)
    except CycleError:
        return list(found)


def _check_seat(interface: Interface, found: Sequence[FoundPlugin]) -> Iterator[Problem]:
    try:
        holders = serving(interface, found)
    except CycleError as error:
        names = " -> ".join(error.args[1])
        yield Problem(f"these plugins want to go after each other in {interface.hook}: {names}", ("plugins",))
        return
    if interface.claim is Claim.ANY_NUMBER:
        return
    if len(holders) > 1:
        names = ", ".join(f"'{plugin.name}'" for plugin in holders)
        last = max(holders, key=lambda plugin: plugin.position)
        message = f"{names} all want to be the one plugin with '{interface.hook}'"
        yield Problem(message, ("plugins", last.position), hints=(f"list {interface.claim.value} of them",))
    elif not holders and interface.claim is Claim.EXACTLY_ONE:
        able = [plugin.name for plugin in find_installed()[0] if claims(plugin.type, interface)]
        hint = f"add {' or '.join(repr(name) for name in able)} under plugins:"
        what = (interface.type.__doc__ or "").split(".")[0]
        yield Problem(f"no listed plugin has '{interface.hook}' ({what.lower()})", ("plugins",), hints=(hint,))


def check_consumers(config: RunConfig, found: Sequence[FoundPlugin]) -> Iterator[Problem]:
    """A problem for every key that the user wrote and whose seat's holder has declared not to use it."""
    for interface in INTERFACES:
        holders = serving(interface, found) if interface.charge else []
        if not holders or holders[0].type.consumes is None:
            continue
        written = section_at(config, interface.charge).__pydantic_fields_set__
        for name in sorted(keys_in_charge(interface, config, found) & written):
            if f"{interface.charge}.{name}" not in holders[0].type.consumes:
                yield unused(interface, holders[0], name)


def check_evaluators(config: RunConfig, found: Sequence[FoundPlugin]) -> Iterator[Problem]:
    """A problem for every plugin that measures, where there are no rows to measure on, and for every option that names
    a metric which none of the plugins measures."""
    spec = next(spec for spec in INTERFACES if spec.type is EvaluatorPlugin)
    evaluators = serving(spec, found)
    if not config.holds_rows_out:
        hint = "set trainer.data.val_set_size, or held_out: true for a source"
        for plugin in evaluators:
            message = f"'{plugin.name}' measures the model on held-out rows, and there are none"
            yield Problem(message, ("plugins", plugin.position), hints=(hint,))
        return
    declared = [getattr(plugin.type, "metrics", ()) for plugin in evaluators]
    if not all(declared):
        return  # a plugin that does not say what it measures may measure anything
    known = {"eval/loss", *(f"eval/{name}" for names in declared for name in names)}
    sections = ["trainer.arguments"] if config.trainer.arguments.load_best_model_at_end else []
    for key in [*sections, *(plugin.type.section for plugin in found if plugin.type.section)]:
        section = section_at(config, key)
        for name, field in type(section).model_fields.items():
            is_metric = any(isinstance(mark, EvaluationMetric) for mark in field.metadata)
            if is_metric and evaluation_path(getattr(section, name)) not in known:
                yield _not_measured(f"{key}.{name}", evaluation_path(getattr(section, name)), known)


def check_states(config: RunConfig, found: Sequence[FoundPlugin]) -> Iterator[Problem]:
    """A problem for what is written about checkpoints and faults where the trainer has neither, and for half a
    `StatePlugin`."""
    trainers = serving(next(spec for spec in INTERFACES if spec.type is TrainerPlugin), found)
    for section in ("checkpoints", "faults") if not getattr(trainers[0].type, "resumes", False) else ():
        if section in config.trainer.model_fields_set:
            message = f"nothing uses this: the plugin '{trainers[0].name}', which trains, does not read it"
            yield Problem(message, ("trainer", section), hints=(f"remove 'trainer.{section}'",))
    for plugin in serving(next(spec for spec in INTERFACES if spec.type is StatePlugin), found):
        if not callable(getattr(plugin.type, "load_state_dict", None)):
            message = f"'{plugin.name}' has 'state_dict' and no 'load_state_dict': a run of it could not go on"
            yield Problem(message, ("plugins", plugin.position))


def check_batches(config: RunConfig, found: Sequence[FoundPlugin]) -> Iterator[Problem]:
    """A problem where batches are to be cut of which nobody says that they can be."""
    if config.trainer.faults.on_oom == "halve" and not rows_are_separate(found):
        maker = _collators(found)[0]
        message = f"the plugin '{maker.name}' makes the batches, and does not say that their rows can be trained apart"
        hints = (
            "write fail, and a smaller trainer.arguments.physical_batch_size",
            f"where no row of a batch needs another, write rows_are_separate = True in its class {maker.type.__name__}",
        )
        yield Problem(message, ("trainer", "faults", "on_oom"), hints=hints)


def rows_are_separate(found: Sequence[FoundPlugin]) -> bool:
    """Whether batches can be cut between their rows: those of the core can, those of a plugin where it says so."""
    return all(getattr(maker.type, "rows_are_separate", False) for maker in _collators(found))


def _collators(found: Sequence[FoundPlugin]) -> list[FoundPlugin]:
    return serving(next(spec for spec in INTERFACES if spec.type is CollatorPlugin), found)


def _not_measured(key: str, metric: str, known: set[str]) -> Problem:
    if metric.startswith(("eval/train/", "eval/perf/")):
        message = f"'{metric.removeprefix('eval/')}' is not a metric of evaluations"
        return Problem(message, key_path(key), hints=("these begin with 'eval/', such as eval/loss",))
    hints = [f"measured are {', '.join(sorted(known))}"]
    bare = metric.removeprefix("eval/")
    owners = [plugin.name for plugin in find_installed()[0] if bare in getattr(plugin.type, "metrics", ())]
    hints += [f"add '{name}' under plugins:" for name in owners[:1]]
    return Problem(f"no plugin of this run measures '{metric}'", key_path(key), hints=tuple(hints))


_OF_THE_RUN = frozenset({"model.unfrozen_parameters"})
"""Keys in a seat's charge that the run itself reads."""


def keys_in_charge(interface: Interface, config: RunConfig, found: Sequence[FoundPlugin]) -> set[str]:
    """The keys of its section that the holder of a seat answers for: not plugins' own sections, nor what others
    took over."""
    if interface.keys:
        return set(interface.keys)
    others = [spec for spec in INTERFACES if spec.charge and spec is not interface]
    taken = {key for spec in others if spec.charge == interface.charge and serving(spec, found) for key in spec.keys}
    owned = [plugin.type.section for plugin in found if plugin.type.section] + [spec.charge for spec in others]
    below = {key.removeprefix(f"{interface.charge}.") for key in owned}
    own = {key.removeprefix(f"{interface.charge}.") for key in _OF_THE_RUN}
    return set(type(section_at(config, interface.charge)).model_fields) - taken - below - own


def section_at(config: RunConfig, key: str) -> Any:
    """The section at a dotted key such as `model.tokenizer`."""
    section: Any = config
    for part in key.split("."):
        section = getattr(section, part)
    return section


def unused(interface: Interface, holder: FoundPlugin, name: str) -> Problem:
    """The problem of a key in a seat's charge that the seat's holder does not use."""
    key = f"{interface.charge}.{name}"
    message = f"nothing uses this: the plugin '{holder.name}', which has '{interface.hook}', does not read it"
    return Problem(message, key_path(key), hints=(f"remove '{key}', or use a plugin that reads it",))
