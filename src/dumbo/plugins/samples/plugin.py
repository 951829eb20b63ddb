"""Lets the model write after a few prompts, and shows what it writes: before, during and after the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dumbo.config.schema import RunConfig, Words
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import CallbackPlugin, StatePlugin

if TYPE_CHECKING:
    from transformers import TrainerCallback


class SamplesOptions(Section):
    """Texts that the model writes on the way."""

    count: Annotated[int, Field(ge=1)] = 4
    """How many held-out questions to ask, chosen at random, the same each time."""
    prompts: Words = ()
    """Texts to ask instead; each is written as the user's message, in the first train format."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Ask every so many optimizer steps, beside the start, the evaluations and the end."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens that an answer may take."""
    mask_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of a model that fills in masked tokens: mask this share of the trained tokens of `count` held-out texts, and
    write down what it fills in. 0 for none."""


class SamplesPlugin(CallbackPlugin, StatePlugin):
    """Asks before the first step, at every evaluation and at the end; the answers go to `samples.jsonl`."""

    name = "samples"
    section = "evaluation.samples"
    options_type = SamplesOptions

    def check(self, config: RunConfig) -> None:
        """There must be something to ask."""
        problems = []
        if not self.options.prompts and not config.holds_rows_out:
            hints = (
                "write evaluation.samples.prompts: [...]",
                "or hold rows out: trainer.data.val_set_size, or held_out: true for a source",
            )
            message = "there is nothing to ask: no prompts, and no held-out rows"
            problems.append(Problem(message, ("evaluation", "samples"), hints=hints))
        if self.options.prompts and "count" in self.options.model_fields_set:
            message = "counts held-out questions, and there are prompts to ask instead"
            problems.append(Problem(message, ("evaluation", "samples", "count"), hints=("remove one of the two",)))
        asks_for_masks = self.options.mask_ratio > 0 and "mask_ratio" in self.options.model_fields_set
        if self.options.prompts and asks_for_masks and not config.holds_rows_out:
            message = "masks held-out texts, and there are none"
            path = ("evaluation", "samples", "mask_ratio")
            problems.append(Problem(message, path, hints=("write trainer.data.val_set_size too, or remove it",)))
        if problems:
            raise ConfigError(problems)

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return the callback that asks. Raises ConfigError for masks that the model cannot fill in."""
        from dumbo.plugins.samples.asking import AskingCallback, choose_masked, choose_questions

        masked = choose_masked(self.options, self.services)
        questions = choose_questions(self.options, self.services, needed=not masked)
        self._asking = AskingCallback(questions, masked, self.options, self.services)
        return [self._asking]

    def state_dict(self) -> Mapping[str, Any]:
        """All samples so far."""
        return self._asking.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after them."""
        self._asking.load(state)
