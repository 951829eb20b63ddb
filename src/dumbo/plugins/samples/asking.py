"""The questions, and the callback of Transformers' Trainer that asks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.disk import written_whole
from dumbo.errors import ConfigError, RunError
from dumbo.inference.infilling import Infiller, Infilling
from dumbo.inference.prompting import row_prompts
from dumbo.plugin_loader import Services
from dumbo.plugins.samples.masking import MaskedText, masked_texts

if TYPE_CHECKING:
    from dumbo.plugins.samples.plugin import SamplesOptions

SHOWN = 100
"""Characters of a text that a line on the screen has."""


@dataclass(frozen=True)
class Question:
    """What is asked, as the model reads it, and the right answer where one is known."""

    input_ids: list[int]
    text: str
    reference: str | None = None


def choose_masked(options: SamplesOptions, services: Services) -> list[MaskedText]:
    """Held-out texts to fill in; none for a model that writes in another way.

    Raises:
        ConfigError: that was asked for.
    """
    generator, held_out = services.generator(), services.held_out()
    assert generator is not None  # callbacks are made after the datasets
    if isinstance(generator, Infiller):
        special = {*generator.tokenizer.all_special_ids, *generator.tokenizer.added_tokens_decoder}
        share = options.mask_ratio
        return masked_texts(held_out, options.count, share, special) if share and held_out is not None else []
    if options.mask_ratio and "mask_ratio" in options.model_fields_set:
        message = f"has no effect: this model writes {generator.way}"
        raise ConfigError.at("evaluation.samples.mask_ratio", message, "remove it")
    return []


def choose_questions(options: SamplesOptions, services: Services, needed: bool) -> list[Question]:
    """The user's own prompts, or held-out questions.

    Raises:
        RunError: no held-out row has a question before its answer, and one is needed.
        DataError: the train format cannot write a prompt.
    """
    generator = services.generator()
    assert generator is not None  # callbacks are made after the datasets
    if options.prompts:
        texts = options.prompts
        return [Question(generator.prompt([{"role": "user", "content": text}]), text) for text in texts]
    held_out = services.held_out()
    prompts = row_prompts(held_out, options.count) if held_out is not None else []
    if needed and not prompts:
        raise RunError(
            "samples: no held-out row has a question before its answer: they are trained as a whole\n"
            "    write evaluation.samples.prompts: [...], or train_on_inputs: false into train_format"
        )
    return [Question(p.input_ids, generator.text(p.input_ids), generator.text(p.reference)) for p in prompts]


class AskingCallback(TrainerCallback):
    """Asks all questions at a step, once."""

    def __init__(
        self, questions: list[Question], masked: list[MaskedText], options: SamplesOptions, services: Services
    ) -> None:
        """Answers, and the `masked` texts filled in, go to `samples.jsonl` in the run's folder, and on the screen."""
        self._questions, self._masked, self._options, self._services = questions, masked, options, services
        self._asked_at = -1
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def state(self) -> dict[str, Any]:
        """All samples so far."""
        return {"asked_at": self._asked_at, "rows": self._rows}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        # After a way back within a run there are later ones, too.
        self._asked_at, self._rows = state["asked_at"], self._rows | state["rows"]

    def on_train_begin(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Before the first step; a run that goes on has done so."""
        if not state.global_step:
            self._ask(0, show=True)

    def on_evaluate(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """With every evaluation; on the screen come those of the start and the end."""
        self._ask(state.global_step, show=False)

    def on_step_end(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Every so many steps, where that was asked for."""
        if self._options.every is not None and state.global_step % self._options.every == 0:
            self._ask(state.global_step, show=True)

    def on_train_end(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """With the weights that the run ends with, which may be those of its best evaluation."""
        self._asked_at = -1
        self._ask(state.global_step, show=True, final=True)

    def _ask(self, step: int, show: bool, final: bool = False) -> None:
        """On every rank, as a sharded model needs all of them; the first one writes."""
        if step == self._asked_at:
            return
        self._asked_at = step
        generator = self._services.generator()
        assert generator is not None
        answers = generator.answers([question.input_ids for question in self._questions], self._options.max_new_tokens)
        texts = [generator.text(answer) for answer in answers]
        infillings: list[Infilling] = []
        if isinstance(generator, Infiller) and self._masked:
            infillings = generator.infillings([m.input_ids for m in self._masked], [m.places for m in self._masked])
        if self._services.rank == 0:
            self._write(step, texts, infillings)
        if show:
            self._services.say("samples after the training:" if final else f"samples at step {step}:")
            for question, text in zip(self._questions, texts, strict=True):
                self._services.say(f"  {_line(question, text)}")
            if infillings:
                right = sum(found.generated == found.original for found in infillings)
                self._services.say(f"  of {len(infillings)} texts with masked tokens, {right} filled in as they were")

    def _write(self, step: int, texts: list[str], infillings: list[Infilling]) -> None:
        """Write all samples; those of the final weights replace what the last step's weights wrote."""
        self._rows[step] = [
            {"step": step, "prompt": question.text, "reference": question.reference, "output": text}
            for question, text in zip(self._questions, texts, strict=True)
        ]
        self._rows[step] += [
            {"step": step, **asdict(found), "mask_ratio": found.masked_tokens / found.total_tokens}
            for found in infillings
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for rows in self._rows.values() for row in rows]
        file = self._services.output_dir / "samples.jsonl"
        try:
            with written_whole(file) as partial:
                partial.write_text("".join(lines), encoding="utf-8")
        except OSError as error:  # no training ends for want of its samples
            self._services.say(f"samples.jsonl cannot be written: {error}")


def _line(question: Question, text: str) -> str:
    line = f"{_short(question.text)} -> {_short(text) or '(nothing)'}"
    if question.reference is None:
        return line
    right = text.strip() == question.reference.strip()
    return f"{line}  (right)" if right else f"{line}  (expected: {_short(question.reference)})"


def _short(text: str) -> str:
    """One line of a text."""
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else flat[: SHOWN - 1] + "…"
