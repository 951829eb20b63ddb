"""`make architectures`: compares the loss without logits in every architecture, and writes `docs/architectures.md`."""

import os
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
TITLES = {"causal": "Models of text", "image": "Models of text and images, given text only"}
_REASON = 84


@dataclass(frozen=True)
class Row:
    """What the page says of one architecture."""

    kind: str
    name: str
    verdict: str
    steps: str
    reason: str


def run() -> int:
    """Examine all of them, print what was found and write the page."""
    from tests.architectures import compare, tiny

    found = {}
    for kind in TITLES:
        found[kind] = []
        for name in tiny.MAPPINGS[kind]:
            finding = compare.examine(name, kind, with_trl=True)
            found[kind].append(finding)
            print(f"{kind} {name}: {finding.verdict} {finding.steps} {finding.reason} [{finding.trl}]", flush=True)
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"written to {PAGE}")
    return 1 if any(finding.verdict == "MISMATCH" for findings in found.values() for finding in findings) else 0


def page(found) -> str:
    """The page of all findings."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    every = [finding for findings in found.values() for finding in findings]
    loss, gradient = max(finding.loss for finding in every), max(finding.gradient for finding in every)
    head = f"""# Architectures

Training with `cut_cross_entropy` leaves the logits to the loss, which makes them a tile at a time. There is no list of
models for that: what a model does to its logits is noted while it does so. `make architectures` compares this with the
loss of whole logits, in a tiny random model of every name in Transformers' mappings, in float32 on a CPU, with
{versions}.

Compared are the loss of tokens that a run uses and, where the model computes a loss of its own, that one too, with
the auxiliary loss of its experts. Equal means: the loss within 1e-5 of itself, and the gradients of all parameters
within 1e-4 of the largest of them.

- **fused**: equal, and no logits were held.
- **held**: equal, and the logits were held, for the reason that is given.
- **no linear head**: the logits are not the product of one matrix. They are held.
- **not built here**: the tiny model could not be made, or takes more than text; nothing is known of it.

No other result is accepted: a difference fails `make architectures` and `make test-full`, which compares all of them
with this page. The largest differences were {loss:.1e} of a loss, and {gradient:.1e} of gradients.
"""
    return "\n".join([head, *(_section(TITLES[kind], findings) for kind, findings in found.items())])


def _section(title, findings) -> str:
    counts = Counter(finding.verdict for finding in findings)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    classes = len({finding.model_class for finding in findings if finding.verdict == "fused"})
    rows = "\n".join(
        f"| {f.name} | {f.verdict} | {f.steps or f.reason[:_REASON].replace('|', '/')} |" for f in findings
    )
    return f"""## {title}

{len(findings)} names: {told}. The fused ones are {classes} classes.

{_wrapped(_own(findings))}

{_wrapped(_trl(findings))}

| Model type | Verdict | Noted steps, or why not |
|---|---|---|
{rows}
"""


def _wrapped(text) -> str:
    return "\n".join(textwrap.wrap(text, 118, break_on_hyphens=False, break_long_words=False))


def _own(findings) -> str:
    fused = [finding for finding in findings if finding.verdict == "fused"]
    others = [f"{finding.name}: {finding.own}" for finding in fused if finding.own != "fused"]
    told = f"The model's own loss needs no logits either in {len(fused) - len(others)} of them"
    return f"{told} (not so: {'; '.join(others)})." if others else f"{told}."


def _trl(findings) -> str:
    words = [finding.trl if finding.trl in ("equal", "different") else "error" for finding in findings if finding.trl]
    counts = Counter(words)
    return (
        f"Beside it, TRL's `add_fused_lm_head` on {len(words)} models that were built and take tokens alone, without "
        f"auxiliary losses: {counts['equal']} equal, {counts['different']} different, {counts['error']} errors."
    )


def rows() -> list[Row]:
    """What the page says."""
    kinds = {title: kind for kind, title in TITLES.items()}
    found, kind = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = kinds[line.removeprefix("## ")]
        elif line.startswith("| ") and not line.startswith("| Model type"):
            name, verdict, why = (cell.strip() for cell in line.strip("|").split("|"))
            is_fused = verdict == "fused"
            found.append(Row(kind, name, verdict, why if is_fused else "", "" if is_fused else why))
    return found


if __name__ == "__main__":
    sys.exit(run())
