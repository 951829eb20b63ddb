"""`python -m tests.architectures.mixers`: which architectures `dense_mixer` serves, as its page has it."""

import copy
import textwrap
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

from dumbo.errors import ConfigError
from dumbo.plugins.dense_mixer.attaching import add_dense_mixer, is_experts
from dumbo.plugins.dense_mixer.experts import NAME, mixer_of, register
from tests.architectures import tiny
from tests.architectures.compare import first_line, gradients
from tests.architectures.special import WITH_EXPERTS

PAGE = Path(__file__).parents[2] / "src" / "dumbo" / "plugins" / "dense_mixer" / "README.md"
_WIDTH = 126
_PREFIX, _DECORATOR = "modeling_", "use_experts_implementation"


SERVED, REFUSED, LEFT = "served", "refused", "not looked at"


@dataclass(frozen=True)
class Finding:
    """What came out for one architecture."""

    name: str
    verdict: str
    """`served`, `refused`, `not looked at`; MISMATCH is a fault."""
    reason: str = ""
    functions: str = ""
    files: frozenset[str] = frozenset()
    """Those of Transformers that its experts are from."""


def files() -> frozenset[str]:
    """The modeling files of Transformers with experts that others may compute, without `modeling_`."""
    folder = Path(transformers.__file__).parent / "models"
    found = [file for file in folder.glob("*/modeling_*.py") if f"\n@{_DECORATOR}" in file.read_text(encoding="utf-8")]
    return frozenset(file.stem.removeprefix(_PREFIX) for file in found)


def examine_all() -> list[Finding]:
    """Of every name whose model has experts that Transformers lets others compute, and of every file without a name."""
    found: dict[str, Finding] = {}
    for kind in tiny.MAPPINGS:
        for name in tiny.MAPPINGS[kind]:
            finding = None if name in found and found[name].verdict != LEFT else examine(name, kind)
            if finding is not None:
                found[name] = finding
    for file in files() - {file for finding in found.values() for file in finding.files}:
        found[file] = Finding(file, LEFT, _why_without_a_name(file), files=frozenset({file}))
    return [found[name] for name in sorted(found)]


def examine(name: str, kind: str) -> Finding | None:
    """Compare a tiny model with and without the plugin; None where it has no such experts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plain, batch = tiny.build(name, kind, WITH_EXPERTS), tiny.batch(name)
        except Exception as error:  # noqa: BLE001 - a configuration of another kind
            file = _file(_class_of(kind, name))
            return Finding(name, LEFT, _why(error), files=frozenset({file})) if file in files() else None
        own = frozenset(_file(type(module)) for module in plain.modules() if is_experts(module))
        if not own:
            return None
        try:
            expected, without = _trained(plain, batch)
        except Exception as error:  # noqa: BLE001 - whatever a model needs beside tokens
            return Finding(name, LEFT, _why(error), files=own)
        mixed = copy.deepcopy(plain)
        register()
        mixed.set_experts_implementation(NAME)
        try:
            add_dense_mixer(mixed, 64, lambda line: None)
        except ConfigError as error:
            return Finding(name, REFUSED, str(error).splitlines()[0], files=own)
        loss, within = _trained(mixed, batch)
    return replace(_compared(name, mixed, torch.equal(loss, expected), without, within), files=own)


def _why(error: Exception) -> str:
    kind, _, words = first_line(error).partition(": ")
    return words or kind


def _class_of(kind: str, name: str) -> type:
    classes = tiny.MAPPINGS[kind][name]
    found: type = getattr(transformers, classes if isinstance(classes, str) else classes[0])
    return found


def _file(of: type) -> str:
    return of.__module__.rpartition(".")[2].removeprefix(_PREFIX)


def _why_without_a_name(file: str) -> str:
    named = [name for kind in tiny.MAPPINGS for name in tiny.MAPPINGS[kind] if _file(_class_of(kind, name)) == file]
    return f"the tiny model of {named[0]} has no experts" if named else "no model of it goes on with a text"


def _trained(model, batch):
    torch.manual_seed(0)
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError("it computes no loss of tokens")
    return loss.detach(), gradients(loss, model)


def _compared(name, mixed, same, without, within) -> Finding:
    experts = {path: module for path, module in mixed.named_modules() if is_experts(module)}
    last = list(experts)[-1]
    own = [parameter for parameter in without if parameter.startswith(f"{last}.")]
    equal = all(torch.equal(without[parameter], within[parameter]) for parameter in own)
    around = last.rpartition(".")[0]
    others = [parameter for parameter in without if parameter.startswith(f"{around}.") and parameter not in own]
    differs = any(not torch.equal(without[parameter], within[parameter]) for parameter in others)
    if not (same and own and equal and differs):
        return Finding(name, "MISMATCH", f"loss {same}, experts {equal}, router {differs}")
    routings = {mixer_of(module).routing.function for module in experts.values() if hasattr(module, "dense_mixer")}
    return Finding(name, SERVED, functions=" and ".join(sorted(routings)))


def table(found: list[Finding]) -> str:
    """The lines of the page."""
    paragraphs = []
    for verdict in (SERVED, REFUSED, LEFT):
        of_it = [finding for finding in found if finding.verdict == verdict]
        named = ", ".join(f"{one.name} ({one.reason})" if verdict == LEFT else one.name for one in of_it)
        paragraphs.append(
            textwrap.fill(f"{verdict.capitalize()}, {len(of_it)}: {named}.", _WIDTH, break_on_hyphens=False)
        )
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    findings = examine_all()
    for finding in findings:
        print(finding)
    print(table(findings))
