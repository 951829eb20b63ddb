"""Records from rows: the formats `completion`, `input_output`, `tokens` and `stepwise`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.data.records import IGNORED, Origin, Row, Segments, Steps, Text, Tokens
from dumbo.data.row_values import is_present, kind_of
from dumbo.plugins.text_formatter.columns import take_list, take_text

if TYPE_CHECKING:
    from dumbo.plugins.text_formatter.plugin import CompletionData, InputOutputData, StepwiseData, TokensData


class Completion:
    """Makes a text of a row that has one."""

    def __init__(self, options: CompletionData) -> None:
        self.field = options.field

    def __call__(self, row: Row) -> Text:
        """Return the text. Raises `DataError` where it is missing, not text, or has nothing but whitespace."""
        return Text(take_text(row, self.field), row.origin)


class InputOutput:
    """Makes segments of a row with a list of `{label, text}`."""

    def __init__(self, options: InputOutputData) -> None:
        self.field = options.field

    def __call__(self, row: Row) -> Segments:
        """Return the segments. Raises `DataError` where the list or a part of a segment is missing or of a wrong
        kind."""
        listed = take_list(row, self.field, "segments")
        return Segments(tuple(_segment(item, number, row.origin) for number, item in enumerate(listed, 1)), row.origin)


class ReadyTokens:
    """Takes token ids and labels as a row has them, without its padding."""

    def __init__(self, options: TokensData) -> None:
        self.input_ids = options.field_input_ids
        self.labels = options.field_labels
        self.attention_mask = options.field_attention_mask
        self.labels_are_named = "field_labels" in options.model_fields_set
        self.mask_is_named = "field_attention_mask" in options.model_fields_set

    def __call__(self, row: Row) -> Tokens:
        """Return the tokens.

        Raises `DataError` for ids that are none, labels that are not those of their tokens, and a mask with a hole.
        """
        ids = _whole_numbers(row, self.input_ids, lowest=0)
        labels = ids
        if is_present(row, self.labels, required=self.labels_are_named):
            labels = _whole_numbers(row, self.labels, lowest=IGNORED)
            self._check_length(row, self.labels, labels, ids)
        first, end = 0, len(ids)
        if is_present(row, self.attention_mask, required=self.mask_is_named):
            first, end = self._unpadded(row, ids)
        ids, kept = ids[first:end], labels[first:end]
        if kept != ids:
            self._check_labels(row, ids, kept, first)
        return Tokens(ids, kept, row.origin)

    def _check_length(self, row: Row, name: str, values: Sequence[int], ids: Sequence[int]) -> None:
        if len(values) != len(ids):
            message = f"the length of '{name}' is {len(values)}, that of '{self.input_ids}' is {len(ids)}"
            raise row.origin.error(message, "there must be one for each token")

    def _unpadded(self, row: Row, ids: Sequence[int]) -> tuple[int, int]:
        """The tokens that the mask keeps: from the first up to the second of these."""
        name = self.attention_mask
        mask = _whole_numbers(row, name, lowest=0)
        self._check_length(row, name, mask, ids)
        other = next((index for index, value in enumerate(mask) if value > 1), None)
        if other is not None:
            raise row.origin.error(f"{name}[{other}] is {mask[other]}", "it must be 1 for a token, 0 for padding")
        if 1 not in mask:
            raise row.origin.error(f"'{name}' hides every token")
        first, end = mask.index(1), len(mask) - mask[::-1].index(1)
        if 0 in mask[first:end]:
            hint = "only padding at the start and at the end can be hidden; set labels to -100 for what is not trained"
            raise row.origin.error(f"{name}[{mask.index(0, first)}] is 0, with tokens on both sides", hint)
        return first, end

    def _check_labels(self, row: Row, ids: Sequence[int], labels: Sequence[int], first: int) -> None:
        pairs = enumerate(zip(labels, ids, strict=True))
        wrong = next((index for index, (label, token) in pairs if label not in (token, IGNORED)), None)
        if wrong is None:
            return
        place = first + wrong
        hint = f"a label is the id of its own token, or {IGNORED} where it is not trained"
        if all(label in (token, IGNORED) for label, token in zip(labels[:-1], ids[1:], strict=True)):
            hint = "the labels are those of the next tokens; do not shift them, the loss does"
        ours, theirs = f"{self.labels}[{place}] is {labels[wrong]}", f"{self.input_ids}[{place}] is {ids[wrong]}"
        raise row.origin.error(f"{ours}, and {theirs}", hint)


class Stepwise:
    """Makes a prompt with judged steps of a row that has them."""

    def __init__(self, options: StepwiseData) -> None:
        self.prompt = options.field_prompt
        self.completions = options.field_completions
        self.labels = options.field_labels

    def __call__(self, row: Row) -> Steps:
        """Return prompt, steps and labels. Raises `DataError` where one is missing or of a wrong kind, and where a step
        has no label."""
        prompt = take_text(row, self.prompt)
        steps = take_list(row, self.completions, "texts")
        for number, step in enumerate(steps, 1):
            if not isinstance(step, str):
                raise row.origin.error(f"step {number} of '{self.completions}' is {kind_of(step)}", "it must be text")
            if not step.strip():
                raise row.origin.error(f"step {number} of '{self.completions}' is empty", "it must have some text")
        labels = take_list(row, self.labels, "true and false")
        if len(labels) != len(steps):
            message = f"the length of '{self.labels}' is {len(labels)}, that of '{self.completions}' is {len(steps)}"
            raise row.origin.error(message, "there must be one for each step")
        for number, label in enumerate(labels, 1):
            if not isinstance(label, bool | int) or label not in (0, 1):
                hint = "it must be true or 1 for a right step, false or 0 for a wrong one"
                raise row.origin.error(f"label {number} of '{self.labels}' is {kind_of(label)}", hint)
        return Steps(prompt, tuple(steps), tuple(int(label) for label in labels), row.origin)


def _segment(value: Any, number: int, origin: Origin) -> tuple[str, bool]:
    if not isinstance(value, Mapping):
        raise origin.error(
            f"segment {number} is {kind_of(value)}", "every segment is a mapping with 'label' and 'text'"
        )
    for key, wanted, words in (("label", bool, "true or false"), ("text", str, "text")):
        if key not in value:
            has = ", ".join(f"'{name}'" for name in value) or "nothing"
            hint = f"every segment needs 'label' and 'text'; this one has {has}"
            raise origin.error(f"segment {number} has no '{key}'", hint)
        if not isinstance(value[key], wanted):
            raise origin.error(f"'{key}' of segment {number} is {kind_of(value[key])}", f"it must be {words}")
    return value["text"], value["label"]


def _whole_numbers(row: Row, name: str, lowest: int) -> tuple[int, ...]:
    """The numbers in a list of them. Raises `DataError` for the first that is none, or below `lowest`."""
    values = take_list(row, name, "whole numbers")
    for index, value in enumerate(values):
        if type(value) is not int or value < lowest:
            hint = f"it must be a whole number, {lowest} or more"
            raise row.origin.error(f"{name}[{index}] is {kind_of(value)}", hint)
    return tuple(values)
