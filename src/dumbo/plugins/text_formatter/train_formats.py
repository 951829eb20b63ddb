"""Tokens and labels from texts: the formats `completion`, `input_output` and `stepwise`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dumbo.data.masking import Span, join_spans
from dumbo.data.records import IGNORED, Example, Origin, Record, Segments, Steps, Text
from dumbo.plugins.text_formatter.drafts import (
    CUT,
    Draft,
    DraftFormatter,
    Encoded,
    Piece,
    count_missing,
    require_end_token,
    wrong_record,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.plugins.text_formatter.plugin import CompletionTraining, InputOutputTraining, StepwiseTraining


class CompletionFormat(DraftFormatter):
    """Trains on whole texts."""

    def __init__(self, options: CompletionTraining, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.ends = True if options.end_token else None
        self.marks = None if options.allow_special_tokens else ()
        if options.end_token:
            require_end_token(tokenizer, "completion", "or write `end_token: false` into train_format")

    def draft(self, record: Record) -> Draft:
        """The text, all of it trained."""
        if not isinstance(record, Text):
            raise wrong_record(record, "completion", "texts", "completion")
        if not record.text.strip():
            raise record.origin.error("the text is empty")
        piece = Piece(record.text, _whole(record.text), self.marks)
        return Draft((piece,), record.origin, starts=True, ends=self.ends)

    def draft_prompt(self, text: str, origin: Origin) -> Draft:
        """The text, to be gone on with."""
        return Draft((Piece(text, (), self.marks),), origin, starts=True)


class InputOutputFormat(DraftFormatter):
    """Trains on those segments that are labelled so."""

    nothing_trained = "no token to train on: no segment with text has the label true"

    def __init__(self, options: InputOutputTraining, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.trains_all = options.train_on_inputs

    def draft(self, record: Record) -> Draft:
        """The segments, each a piece of its own, so that its tokens do not depend on its neighbours."""
        if not isinstance(record, Segments):
            raise wrong_record(record, "input_output", "segments", "input_output")
        pieces = (Piece(text, _whole(text) if label or self.trains_all else ()) for text, label in record.segments)
        return Draft(tuple(pieces), record.origin)

    def draft_prompt(self, text: str, origin: Origin) -> Draft:
        """The text as it is: special tokens are written in it."""
        return Draft((Piece(text, ()),), origin)

    def build(self, draft: Draft, encoded: Sequence[Encoded]) -> Example:
        """The example, with a count of what its author may have forgotten."""
        example = super().build(draft, encoded)
        counts = count_missing(example.input_ids, example.labels, self.start_ids, self.end_id)
        return replace(example, counts=counts)


class StepwiseFormat(DraftFormatter):
    """Trains on the right steps of solutions."""

    nothing_trained = "no right step to train on"

    def __init__(self, options: StepwiseTraining, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        require_end_token(tokenizer, "stepwise")
        self.separator = options.step_separator
        self.most_tokens = options.max_completion_length
        self.last_only = options.train_on_last_step_only
        self.allows_marks = options.allow_special_tokens

    def draft(self, record: Record) -> Draft:
        """Prompt and steps as one text; a right step is trained with the separator that leads on from it."""
        if not isinstance(record, Steps):
            raise wrong_record(record, "stepwise", "steps", "stepwise")
        if self.last_only and not record.labels[-1]:
            hint = "'train_on_last_step_only' trains nothing else; trainer.data.on_bad_row: drop leaves such rows out"
            raise record.origin.error("the last step is wrong", hint)
        if not any(record.labels):
            raise record.origin.error(self.nothing_trained, "trainer.data.on_bad_row: drop leaves such rows out")
        text, separators, spans = record.prompt, [], []
        for number, (step, label) in enumerate(zip(record.steps, record.labels, strict=True), 1):
            separators.append((len(text), len(text) + len(self.separator)))
            start, is_last = len(text) + len(self.separator), number == len(record.steps)
            text += self.separator + step
            if label and (is_last or not self.last_only):
                spans.append((start, len(text) if is_last else len(text) + len(self.separator)))
        piece = Piece(text, join_spans(spans), None if self.allows_marks else tuple(separators))
        wrong = [number for number, label in enumerate(record.labels, 1) if not label]
        remarks = (f"not trained, as they are wrong: steps {', '.join(map(str, wrong))}",) if wrong else ()
        counts = {"wrong steps": len(wrong)} if wrong else {}
        ends = bool(record.labels[-1])
        return Draft((piece,), record.origin, True, ends, separators[0][1], remarks, counts)

    def draft_prompt(self, text: str, origin: Origin) -> Draft:
        """The prompt and the separator before the first step."""
        whole = text + self.separator
        marks = None if self.allows_marks else ((len(text), len(whole)),)
        return Draft((Piece(whole, (), marks),), origin, starts=True)

    def build(self, draft: Draft, encoded: Sequence[Encoded]) -> Example:
        """The example, cut where the solution is longer than wanted."""
        example = super().build(draft, encoded)
        if self.most_tokens is None:
            return example
        asked = sum(end <= draft.answer for _, end in encoded[0].offsets)
        most = len(self.missing_start(draft, encoded)) + asked + self.most_tokens
        if len(example.input_ids) <= most:
            return example
        ids, labels = example.input_ids[:most], example.labels[:most]
        if all(label == IGNORED for label in labels):
            hint = "raise 'max_completion_length'"
            raise draft.origin.error(f"no right step within the first {self.most_tokens} tokens of the solution", hint)
        return replace(example, input_ids=ids, labels=labels, counts={**example.counts, CUT: 1})


def _whole(text: str) -> tuple[Span, ...]:
    return ((0, len(text)),) if text else ()
