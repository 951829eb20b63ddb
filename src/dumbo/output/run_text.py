"""A run in a few lines, for the terminal."""

from __future__ import annotations

from dumbo.metrics import higher_is_better
from dumbo.output.curve_section import grouped
from dumbo.output.headline import outcome_words, steps_words
from dumbo.output.numerals import count, duration, measured
from dumbo.output.run_reading import RunRecord, is_number


def run_text(run: RunRecord) -> list[str]:
    """How it ended, then the last and the best value of every metric, a line each."""
    seconds = run.summary.get("seconds")
    took = f" in {duration(seconds)}" if is_number(seconds) else ""
    lines = [f"{run.folder}: {outcome_words(run.outcome)}, {steps_words(run)}{took}"]
    names = [name for group in grouped([run.metrics]).values() for name in group]
    width = max((len(name) for name in names), default=0)
    for name in names:
        series = run.metrics[name]
        if series.last is None:
            lines.append(f"  {name.ljust(width)}  no value is a number")
            continue
        direction = higher_is_better(name)
        best = series.best(highest=direction) if direction is not None else None
        words = (
            f"   {'highest' if direction else 'lowest'} {measured(name, best[0])} at step {count(best[1])}"
            if best
            else ""
        )
        lines.append(f"  {name.ljust(width)}  {measured(name, series.last)}{words}")
    return lines
