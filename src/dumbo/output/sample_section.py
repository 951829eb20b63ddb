"""What the model wrote before the training and after it, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dumbo.output.markup import Html, joined, section, table, text
from dumbo.output.numerals import count
from dumbo.output.run_reading import Sample

_MOST_PROMPTS = 24
_MOST_BETWEEN = 20
_LONGEST = 2000
"""Characters of a text."""


def sample_section(samples: Sequence[Sample]) -> Html:
    """The first and the last text for every prompt side by side, those between them folded away."""
    prompts = by_prompt(samples)
    if not prompts:
        return Html("")
    shown = [_prompt(texts) for texts in prompts[:_MOST_PROMPTS]]
    more = len(prompts) - len(shown)
    rest = f'<p class="note">{count(more)} more prompts are in samples.jsonl.</p>' if more else ""
    return section(
        "samples", "What the model writes", [f'<div class="samples">{joined(shown)}</div>', rest], _lead(prompts)
    )


def by_prompt(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of every prompt by step; a prompt that stands twice in a step is two."""
    groups: dict[tuple[str, str | None, int], list[Sample]] = {}
    seen: dict[tuple[int, str, str | None], int] = {}
    for sample in samples:
        occurrence = seen.get((sample.step, sample.prompt, sample.reference), 0)
        seen[sample.step, sample.prompt, sample.reference] = occurrence + 1
        groups.setdefault((sample.prompt, sample.reference, occurrence), []).append(sample)
    return [sorted(group, key=lambda sample: sample.step) for group in groups.values()]


def _lead(prompts: Sequence[Sequence[Sample]]) -> Html:
    """How many texts equal their references."""
    known = [texts for texts in prompts if texts[-1].reference is not None]
    if not known:
        return text("Texts that the model wrote for the same prompts.")
    right = sum(bool(texts[-1].is_right) for texts in known)
    words = f"Equal to their references at the end: {right} of {len(known)}"
    if any(len(texts) > 1 for texts in known):
        words += f"; at first: {sum(bool(texts[0].is_right) for texts in known if len(texts) > 1)}"
    words += "."
    return text(words)


def _prompt(texts: Sequence[Sample]) -> Html:
    first, last = texts[0], texts[-1]
    sides = [_side("Before" if first.step == 0 else "First", first), _side("After", last)]
    if len(texts) == 1:
        sides = [_side("Written", last)]
    if last.reference is not None:
        sides.append(_box("Reference", Html(""), last.reference))
    return Html(
        '<article class="sample"><p class="label"><span>Prompt</span></p>'
        f'<div class="words prompt" dir="auto">{text(last.prompt, _LONGEST)}</div>'
        f'<div class="sides">{joined(sides)}</div>{_between(texts[1:-1])}</article>'
    )


def _side(title: str, sample: Sample) -> Html:
    return _box(f"{title}, step {count(sample.step)}", _mark(sample), sample.output)


def _box(label: str, mark: Html, words: str) -> Html:
    shown = text(words.strip(), _LONGEST) if words.strip() else Html('<span class="soft">(nothing)</span>')
    return Html(
        f'<div class="side"><p class="label"><span>{text(label)}</span>{mark}</p>'
        f'<div class="words" dir="auto" tabindex="0" role="region" aria-label="{text(label)}">{shown}</div></div>'
    )


def _mark(sample: Sample) -> Html:
    if sample.is_right is None:
        return Html("")
    right = sample.is_right
    kind, words = ("right", "✓ equals the reference") if right else ("wrong", "✗ differs")
    return Html(f'<span class="mark-{kind}">{words}</span>')


def _between(texts: Sequence[Sample]) -> Html:
    if not texts:
        return Html("")
    chosen = [texts[i] for i in np.unique(np.linspace(0, len(texts) - 1, _MOST_BETWEEN).astype(int))]
    rows = [
        [text(count(s.step)), Html(f'<div class="words" dir="auto">{text(s.output, 600)}</div>'), _mark(s)]
        for s in chosen
    ]
    header = ["Step", "Text", "Compared with the reference"]
    what = f"{count(len(texts))} text{'s' if len(texts) != 1 else ''} between"
    inside = table(f"Texts between the first and the last for one prompt ({what})", header, rows)
    return Html(f'<details class="more"><summary>{what}</summary>{inside}</details>')
