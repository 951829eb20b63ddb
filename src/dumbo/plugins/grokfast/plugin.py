"""The options of the gradient filter, and the plugin that puts it before every update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import CallbackPlugin, StatePlugin

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from dumbo.plugins.grokfast.filtering import AmplifySlowGradients

Number = Annotated[float, Field(allow_inf_nan=False)]
LAMB = (("ema", 2.0), ("ma", 5.0))
"""How much of the average is added by default: the paper's choices."""
_OWN = (("ema", ("alpha",)), ("ma", ("window_size", "average", "warmup")))
"""Options that one filter alone has."""


class GrokfastOptions(Section):
    """A low-pass filter on the gradients (Grokfast, arXiv 2405.20233): what they have in common over many steps is
    amplified."""

    filter: Literal["ema", "ma"] = "ema"
    """`ema` keeps an exponential average of each weight's gradients, `ma` the last `window_size` gradients
    themselves."""
    alpha: Number = 0.98
    """Of `ema`: the share of the average that stays in a step, from 0 to below 1; 1 / (1 - alpha) steps count."""
    lamb: Number | None = None
    """The average is added to the gradient so many times; by default 2 with `ema` and 5 with `ma`."""
    window_size: Annotated[int, Field(ge=1)] = 100
    """Of `ma`: the number of steps that are averaged, each of which takes as much memory as the gradient."""
    average: Literal["mean", "sum"] = "mean"
    """Of `ma`: what is added of the window."""
    warmup: bool = True
    """Of `ma`: leave a weight's gradient as it is until its window is full."""

    @property
    def factor(self) -> float:
        """How many times the average is added."""
        return dict(LAMB)[self.filter] if self.lamb is None else self.lamb


class GrokfastPlugin(CallbackPlugin, StatePlugin):
    """Adds the average of the last steps' gradients to each step's gradient, before it is clipped."""

    name = "grokfast"
    section = "trainer.grokfast"
    options_type = GrokfastOptions
    requires = frozenset({"transformers_trainer"})

    options: GrokfastOptions
    _callback: AmplifySlowGradients

    def check(self, config: RunConfig) -> None:
        """Refuse values without sense, swapped ones by name, and options of the other filter."""
        problems = list(_problems(self.options))
        if problems:
            raise ConfigError(problems)

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return the callback that filters each step's gradient."""
        from dumbo.plugins.grokfast.filtering import AmplifySlowGradients

        self._callback = AmplifySlowGradients(self.options, self.services.say)
        return [self._callback]

    def state_dict(self) -> Mapping[str, Any]:
        """The averages, or the windows, by the names of the weights."""
        return self._callback.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        self._callback.load(state)


def _problems(options: GrokfastOptions) -> Iterator[Problem]:
    own = dict(_OWN)
    for other in {"ema", "ma"} - {options.filter}:
        for name in sorted(options.model_fields_set.intersection(own[other])):
            yield _problem(name, f"has no effect with filter: {options.filter}", f"write filter: {other}, or remove it")
    if options.filter == "ema" and not 0 <= options.alpha < 1:
        yield _problem("alpha", "must be at least 0 and below 1", *_swap(options))
    if options.factor < 0:
        yield _problem("lamb", "must not be below 0: the slow part of the gradient is amplified, not taken away")


def _swap(options: GrokfastOptions) -> Iterator[str]:
    alpha, lamb = options.alpha, options.factor
    if options.lamb is not None and alpha >= 1 and 0 <= lamb < 1:
        yield f"alpha and lamb look swapped: write alpha: {lamb:g} and lamb: {alpha:g}"
    elif alpha > 1:
        yield "some texts have alpha and lamb swapped: the paper has alpha: 0.98 and lamb: 2"
    else:
        yield "it is the share of the average that stays in each step; the paper has 0.98"


def _problem(option: str, message: str, *hints: str) -> Problem:
    return Problem(message, ("trainer", "grokfast", option), hints=hints)
