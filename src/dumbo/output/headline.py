"""The head of a report: how the run ended, what it did in a sentence, and the numbers that matter most."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np

from dumbo.output.markup import Html, joined, text
from dumbo.output.numerals import count, duration, measured, short
from dumbo.output.run_reading import RunRecord, is_number

_OUTCOMES = (
    ("finished", "✓", "finished"),
    ("interrupted", "■", "stopped early"),
    ("failed", "✕", "failed"),
    ("running", "…", "still running, or killed"),
)
_NAVIGATION = (
    ("curves", "Curves"),
    ("samples", "Samples"),
    ("use", "Use the result"),
    ("settings", "Settings"),
    ("data", "Data"),
    ("parameters", "Parameters"),
    ("repeat", "Repeat the run"),
)


def headline(run: RunRecord, body: Html) -> Html:
    """The header of the page; its links lead to those parts that `body` has."""
    links = [f'<a href="#{key}">{title}</a>' for key, title in _NAVIGATION if f'<section id="{key}"' in body]
    started = _started(run.summary.get("started"))
    when = f"<span>{text(started)}</span>" if started else ""
    error = run.summary.get("error")
    message = f'<p class="error">{text(error)}</p>' if error else ""
    tiles = "".join(_tile(*numbers) for numbers in key_numbers(run))
    return joined(
        [
            f'<header><p class="eyebrow">{_badge(run.outcome)}{when}</p>',
            f"<h1>{text(run.name)}</h1>",
            f'<p class="story">{_story(run)}</p>{message}',
            f'<dl class="tiles">{tiles}</dl>' if tiles else "",
            f'<nav aria-label="On this page">{"".join(links)}</nav>' if len(links) > 1 else "",
            "</header>",
        ]
    )


def _tile(name: str, value: str, remark: str) -> str:
    small = f"<small>{text(remark)}</small>" if remark else ""
    return f'<div class="tile"><dt>{text(name)}</dt><dd>{text(value)}{small}</dd></div>'


def outcome_words(outcome: str) -> str:
    """An outcome as people say it."""
    return next((words for key, _, words in _OUTCOMES if key == outcome), outcome or "outcome unknown")


def _badge(outcome: str) -> Html:
    sign = next((sign for key, sign, _ in _OUTCOMES if key == outcome), "?")
    kind = outcome if any(key == outcome for key, *_ in _OUTCOMES) else "unknown"
    words = outcome_words(outcome)
    return Html(f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span>{text(words.capitalize())}</span>')


def _started(value: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return ""
    return f"Started {moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".rstrip()


def _story(run: RunRecord) -> Html:
    """One sentence: which model, how many rows, how many steps."""
    model, rows = base_model(run), _rows(run)
    parts = [f"<b>{text(model)}</b>" if model else "A model"]
    parts.append("was trained" if run.metrics else "was to be trained")
    if rows:
        parts.append(f"on <b>{text(count(rows))} rows</b>")
    if run.metrics:
        parts.append(f"for <b>{text(steps_words(run))}</b>")
    return Html(" ".join(parts) + ".")


def base_model(run: RunRecord) -> str:
    """What the run started from, in words; empty where nobody knows."""
    section = run.config.get("model")
    section = section if isinstance(section, dict) else {}
    base, architecture = section.get("base_model"), section.get("architecture")
    if isinstance(base, str):
        return base
    if isinstance(architecture, dict):
        return f"A new {architecture.get('model_type', 'model')}"
    return ""


def _rows(run: RunRecord) -> int:
    """Those that were trained on."""
    data = run.summary.get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    rows = sum(int(entry["rows"]) for entry in entries if is_number(entry.get("rows")))
    return rows - sum(int(entry["held_out"]) for entry in entries if is_number(entry.get("held_out")))


def steps_words(run: RunRecord) -> str:
    """`900 steps`, or `120 of 900 steps`."""
    total, done = run.summary.get("total_steps"), run.last_step
    if is_number(total) and int(total) > done:
        return f"{count(done)} of {count(int(total))} steps"
    return f"{count(done)} step{'s' if done != 1 else ''}"


def key_numbers(run: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Name, value and a remark of the numbers that matter most, as far as there are any."""
    metrics = run.metrics
    loss, held_out, right = (metrics.get(name) for name in ("train/loss", "eval/loss", "eval/exact_match"))
    if loss is not None and loss.last is not None:
        several = len(loss.finite.values) >= 40
        yield "Final training loss", short(loss.at_the_end or 0.0), "mean of the last 5%" if several else "at the end"
    if held_out is not None and (best := held_out.best()) is not None:
        remark = f"at step {count(best[1])}"
        if held_out.last is not None and held_out.last != best[0]:
            remark += f"; {short(held_out.last)} at the end"
        yield "Best evaluation loss", short(best[0]), remark
    if right is not None and right.last is not None:
        best = right.best(highest=True)
        remark = (
            f"best {measured('eval/exact_match', best[0])}" if best and best[0] != right.last else "of held-out rows"
        )
        yield "Exact match", measured("eval/exact_match", right.last), remark
    rate = metrics.get("perf/tokens_per_second")
    if rate is not None and rate.last is not None:
        yield "Tokens per second", short(float(np.median(rate.finite.values)), 3), "median"
    seconds = run.summary.get("seconds")
    if is_number(seconds) and seconds >= 0:
        yield "Duration", duration(seconds), ""
    if metrics:
        done, _, unit = steps_words(run).partition(" ")
        yield "Steps", done, "" if unit.startswith("step") else unit
