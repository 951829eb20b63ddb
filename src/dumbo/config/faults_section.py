"""`trainer.faults`: what becomes of a run when a step goes wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dumbo.config.section import Section


class FaultsSection(Section):
    """What to do when a step goes wrong."""

    bad_steps: Annotated[int, Field(ge=1)] | None = 3
    """A step whose loss or gradient is not finite is skipped. So many in a row end the run, with the rows of the last
    one in `bad-step-<number>.jsonl`: 1 ends it at the first; null skips them for ever."""
    on_spike: Literal["ignore", "rollback"] = "ignore"
    """When the loss of a step leaps: `rollback` gives the model and its optimizer what the last checkpoint has, leaves
    the step out and goes on with the next rows; the rows since that checkpoint do not come again. None of the first 20
    steps leaps, as there is too little to compare it with: a run must have more."""
    spike_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0
    """A loss leaps (`on_spike`) that is more than so many times the mean of the last 50 steps, and further above it
    than so many times their usual change: `loss > factor * mean and loss - mean > factor * change`. Nine of ten changes
    from one step to the next are no larger than the usual one. For losses around zero or below it, that alone
    counts."""
    step_timeout: Annotated[float, Field(gt=0)] | None = 1800.0
    """Seconds that an optimizer step may take, from the reading of its rows to the update, with what callbacks do on
    the way. One that takes longer is taken to hang: what every thread was doing is written to
    `stalled-step-<number>.txt`, and the run ends. null waits for ever."""
    on_oom: Literal["fail", "halve"] = "fail"
    """When memory is not enough: `fail` ends the run and says what was in it; `halve` repeats the step with forward
    passes of half as many sequences, and stays with them. `batch_size` and the result are the same. A plugin that makes
    the batches must declare that their rows can be trained apart."""
