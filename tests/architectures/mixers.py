"""`python -m tests.architectures.mixers`: which architectures `dense_mixer` serves, as its page has it."""

import copy
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from dumbo.errors import ConfigError
from dumbo.plugins.dense_mixer.attaching import add_dense_mixer, is_experts
from dumbo.plugins.dense_mixer.experts import NAME, mixer_of, register
from tests.architectures import tiny
from tests.architectures.compare import gradients

PAGE = Path(__file__).parents[2] / "src" / "dumbo" / "plugins" / "dense_mixer" / "README.md"
_WIDTH = 126


@dataclass(frozen=True)
class Finding:
    """What came out for one architecture."""

    name: str
    verdict: str
    """`served`, `refused`; MISMATCH is a fault."""
    reason: str = ""
    functions: str = ""


def examine_all() -> list[Finding]:
    """Of every architecture with experts that Transformers lets others compute, and of which a tiny model is made."""
    found = {}
    for kind in tiny.MAPPINGS:
        for name in tiny.MAPPINGS[kind]:
            finding = None if name in found else examine(name, kind)
            if finding is not None:
                found[name] = finding
    return [found[name] for name in sorted(found)]


def examine(name: str, kind: str) -> Finding | None:
    """Compare a tiny model with and without the plugin; None where there is none, or where it has no such experts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plain, batch = tiny.build(name, kind), tiny.batch(name)
            if not any(is_experts(module) for module in plain.modules()):
                return None
            expected, without = _trained(plain, batch)
        except Exception:  # noqa: BLE001 - whatever a model needs beside tokens
            return None
        mixed = copy.deepcopy(plain)
        register()
        mixed.set_experts_implementation(NAME)
        try:
            add_dense_mixer(mixed, 64, lambda line: None)
        except ConfigError as error:
            return Finding(name, "refused", str(error).splitlines()[0])
        loss, within = _trained(mixed, batch)
    return _compared(name, mixed, torch.equal(loss, expected), without, within)


def _trained(model, batch):
    torch.manual_seed(0)
    loss = model(**batch).loss
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
    return Finding(name, "served", functions=" and ".join(sorted(routings)))


def table(found: list[Finding]) -> str:
    """The lines of the page."""
    served = [finding.name for finding in found if finding.verdict == "served"]
    lines = textwrap.wrap(f"Served, {len(served)}: {', '.join(served)}.", _WIDTH, break_on_hyphens=False)
    refused = [finding.name for finding in found if finding.verdict == "refused"]
    lines += ["", *textwrap.wrap(f"Refused, {len(refused)}: {', '.join(refused)}.", _WIDTH, break_on_hyphens=False)]
    return "\n".join(lines)


if __name__ == "__main__":
    findings = examine_all()
    for finding in findings:
        print(finding)
    print(table(findings))
