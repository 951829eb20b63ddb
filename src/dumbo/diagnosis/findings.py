"""What was found, in lines under headings, and what of it has to be mended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MEND_FIRST = "mend what is said above first"


@dataclass(frozen=True)
class Finding:
    """A line: what was looked at, what was found, and if it is in the way of a run, what to do."""

    name: str
    text: str
    mend: str = ""
    """What to do; a finding that has it is a trouble."""
    note: str = ""
    """What may be done where nothing is wrong."""


@dataclass(frozen=True)
class Section:
    """Findings of one kind."""

    title: str
    findings: Sequence[Finding]


def as_text(sections: Iterable[Section]) -> list[str]:
    """Lines in two columns; troubles are marked with `!`, and what to do stands below."""
    listed = [section for section in sections if section.findings]
    width = min(24, max((len(finding.name) for section in listed for finding in section.findings), default=0))
    lines: list[str] = []
    for section in listed:
        lines += ["", section.title] if lines else [section.title]
        for finding in section.findings:
            mark = "!" if finding.mend else " "
            first, *more = finding.text.split("\n")
            lines.append(f"{mark} {finding.name.ljust(width)}  {first}".rstrip())
            below = [*more, *(text for text in (finding.mend, finding.note) if text)]
            lines += [f"  {' ' * width}    {line}" for text in below for line in text.split("\n")]
    return lines


def troubles(sections: Iterable[Section]) -> int:
    """How many findings have to be mended."""
    return sum(bool(finding.mend) for section in sections for finding in section.findings)
