"""Asks the model the held-out questions at every evaluation, and counts the answers that are right to the letter."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import RunError
from dumbo.inference.generate import TextGenerator
from dumbo.inference.prompting import RowPrompt, row_prompts
from dumbo.job import Evaluator
from dumbo.plugin_loader import EvaluatorPlugin

SLACK = 8
"""Tokens beyond the longest right answer, so that an answer which goes on too long is told from a right one."""


class ExactMatchOptions(Section):
    """Exact match on the held-out rows, by generating."""

    max_rows: Annotated[int, Field(ge=1)] | None = 200
    """Ask at most so many of the held-out rows, chosen at random, always the same; null asks all."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that an answer may take; by default a few more than the longest right one."""
    ignore_case: bool = False
    """Take `Paris` and `paris` for the same."""


class ExactMatchPlugin(EvaluatorPlugin):
    """Reports `eval/exact_match`, the share of held-out answers that the model writes exactly."""

    name = "exact_match"
    metrics = ("exact_match",)
    section = "evaluation.exact_match"
    options_type = ExactMatchOptions

    def build_evaluator(self, config: RunConfig) -> Evaluator:
        """Return the evaluator; its questions are chosen once."""
        held_out, generator = self.services.held_out(), self.services.generator()
        assert held_out is not None and generator is not None  # the run made sure of rows before it loaded anything
        prompts = row_prompts(held_out, self.options.max_rows)
        if not prompts:
            raise RunError(
                "exact_match: no held-out row has a question before its answer: they are trained as a whole\n"
                "    write train_on_inputs: false into train_format, or remove 'exact_match' under plugins:"
            )
        longest = max(len(prompt.reference) for prompt in prompts)
        limit = self.options.max_new_tokens or longest + SLACK
        return lambda: {"exact_match": exact_match(generator, prompts, limit, self.options.ignore_case)}


def exact_match(generator: TextGenerator, prompts: list[RowPrompt], max_new_tokens: int, ignore_case: bool) -> float:
    """The share of `prompts` after which the likeliest text is the reference, but for whitespace around it."""
    answers = generator.answers([prompt.input_ids for prompt in prompts], max_new_tokens)
    right = 0
    for prompt, ids in zip(prompts, answers, strict=True):
        answer, reference = generator.text(ids).strip(), generator.text(prompt.reference).strip()
        if ignore_case:
            answer, reference = answer.casefold(), reference.casefold()
        right += answer == reference
    return right / len(prompts)
