"""Several runs on one page: their curves over each other, the settings in which they differ, their final metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dumbo.metrics import higher_is_better
from dumbo.output.curve_section import comparison_section, grouped
from dumbo.output.headline import base_model, outcome_words, steps_words
from dumbo.output.markup import Html, built, code, joined, section, table, text
from dumbo.output.numerals import count, duration, measured
from dumbo.output.page import page, write_text
from dumbo.output.png import write_png
from dumbo.output.run_reading import RunRecord, is_number
from dumbo.output.settings import defaults_of, settings_of

_UNCOMPARED = frozenset({"trainer.output_dir"})
"""Settings that differ between any two runs and say nothing."""


def write_comparison(runs: Sequence[RunRecord], file: Path, picture: Path) -> Path:
    """Write the page to `file` and the loss curves to `picture`.

    Raises:
        OSError: a file cannot be written.
    """
    labels = labels_of(runs)
    write_text(file, comparison_html(runs, labels))
    write_png(runs, labels, picture)
    return file


def labels_of(runs: Sequence[RunRecord]) -> list[str]:
    """The names of the runs; those of the same name by their folders."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def comparison_html(runs: Sequence[RunRecord], labels: Sequence[str]) -> str:
    """The page."""
    title = f"{len(runs)} runs compared"
    body = joined(built(part, runs, labels) for part in (comparison_section, _results, _settings, _folders))
    links = [("curves", "Curves"), ("results", "Results"), ("settings", "Settings"), ("runs", "The runs")]
    navigation = "".join(f'<a href="#{key}">{name}</a>' for key, name in links if f'<section id="{key}"' in body)
    header = Html(
        f'<header><p class="eyebrow">Comparison</p><h1>{text(title)}</h1>'
        f'<p class="story">{", ".join(f"<b>{text(label)}</b>" for label in labels)}</p>'
        f'<nav aria-label="On this page">{navigation}</nav></header>'
    )
    return page(f"{title}: {', '.join(labels)}", header, [body], "the folders of the runs")


def _results(runs: Sequence[RunRecord], labels: Sequence[str]) -> Html:
    """The last and the best value of every metric; the best run of each row has a star."""
    rows = []
    for name in (name for group in grouped([run.metrics for run in runs]).values() for name in group):
        direction = higher_is_better(name)
        is_noisy = name.startswith(("train/", "perf/")) and not name.endswith("learning_rate")
        series = [run.metrics.get(name) for run in runs]
        ends = [(one.at_the_end if is_noisy else one.last) if one else None for one in series]
        rows.append(_row(name, ends, ", mean at the end" if is_noisy else ", last"))
        if direction is not None and not name.startswith("perf/"):
            found = [one.best(highest=direction) if one else None for one in series]
            rows.append(
                _row(name, [best[0] if best else None for best in found], ", highest" if direction else ", lowest")
            )
    seconds = [run.summary.get("seconds") for run in runs]
    rows.append([Html("Duration"), *(text(duration(s) if is_number(s) else "–") for s in seconds)])
    rows.append([Html("Steps"), *(text(steps_words(run)) for run in runs)])
    lead = (
        "Noisy metrics as the mean of their last 5%. ★ marks the best run, where the metric tells which way is better."
    )
    header = ["Metric", *labels]
    return section("results", "Results", [table("Final metrics", header, rows, range(1, len(header)))], lead)


def _row(name: str, values: Sequence[float | None], words: str) -> list[Html]:
    known = [value for value in values if value is not None]
    direction = higher_is_better(name)
    best = None if direction is None or len(set(known)) < 2 else (max(known) if direction else min(known))
    cells = [
        text("–" if value is None else f"{'★ ' if value == best else ''}{measured(name, value)}") for value in values
    ]
    return [Html(code(name) + text(words)), *cells]


def _settings(runs: Sequence[RunRecord], labels: Sequence[str]) -> Html:
    """The keys that the runs do not have in common; one that a run does not set counts with its default."""
    if not all(run.config for run in runs):
        return Html("")
    set_ones = [{setting.key: setting.value for setting in settings_of(run.config)} for run in runs]
    keys = [key for key in dict.fromkeys(key for settings in set_ones for key in settings) if key not in _UNCOMPARED]
    values = [
        defaults_of(run.config, set(keys)) | settings for run, settings in zip(runs, set_ones, strict=True)
    ]  # fmt: skip
    rows = [
        [code(key), *(code(of_run[key]) if key in of_run else Html("–") for of_run in values)]
        for key in keys
        if len({of_run.get(key) for of_run in values}) > 1
    ]
    lists = [", ".join(map(str, run.config.get("plugins") or ())) for run in runs]
    if len({tuple(sorted(names.split(", "))) for names in lists}) > 1:
        rows.append([code("plugins"), *(code(names) for names in lists)])
    inside = table("Settings in which the runs differ", ["Setting", *labels], rows) if rows else Html("")
    lead = "Where the runs differ; everything else is the same." if rows else "All settings are the same."
    return section("settings", "Settings", [inside or Html('<p class="hidden">No difference.</p>')], lead)


def _folders(runs: Sequence[RunRecord], labels: Sequence[str]) -> Html:
    rows = [
        [text(label), text(outcome_words(run.outcome)), text(base_model(run) or "–"), code(run.folder), _rows_of(run)]
        for run, label in zip(runs, labels, strict=True)
    ]
    header = ["Run", "Outcome", "Started from", "Folder", "Sources"]
    return section("runs", "The runs", [table("The runs", header, rows)])


def _rows_of(run: RunRecord) -> Html:
    data = run.summary.get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    words = [f"{entry.get('source', '?')} ({count(entry.get('rows', '?'))} rows)" for entry in entries]
    return text(", ".join(words) or "–")
