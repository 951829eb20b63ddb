"""The options of the formats and of the reader `synthetic`, and the plugin that builds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.plugin_loader import DataFormatPlugin, ReaderPlugin, TrainFormatPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.data.records import DataFormat, Row, TrainFormat

Column = Annotated[str, Field(min_length=1)]


class CompletionData(FormatOptions):
    """Rows with a text that is trained on as it is."""

    field: Column = "text"
    """Column with the text."""


class InputOutputData(FormatOptions):
    """Rows with a list of segments, each with `text` and with `label`: true where it is trained."""

    field: Column = "segments"
    """Column with the segments: a list, or a JSON text of one."""


class TokensData(FormatOptions):
    """Rows that are tokenised already."""

    field_input_ids: Column = "input_ids"
    """Column with the token ids."""
    field_labels: Column = "labels"
    """Column with the labels: the token id where it is trained, else -100. It may be null or (unless this option is
    written) absent: then everything is trained."""
    field_attention_mask: Column = "attention_mask"
    """Column with 1 for tokens and 0 for padding at either end, which is cut off; it may be null or (unless this option
    is written) absent."""


class StepwiseData(FormatOptions):
    """Rows with a prompt, the steps of a solution, and whether each is right."""

    field_prompt: Column = "prompt"
    """Column with the prompt."""
    field_completions: Column = "completions"
    """Column with the list of steps."""
    field_labels: Column = "labels"
    """Column with a label for each step: true or 1 where it is right, false or 0 where it is wrong."""


class CompletionTraining(FormatOptions):
    """The text, between the tokenizer's start and end tokens; all of it is trained."""

    end_token: bool = True
    """Put the end token after each text, so that the model learns to stop; false for parts of longer texts."""
    allow_special_tokens: bool = False
    """Let special tokens that are written in a text (`<|endoftext|>`) be these tokens; by default such a row is an
    error."""


class InputOutputTraining(FormatOptions):
    """The segments as they are, each tokenised by itself; nothing is added, special tokens are written in the text."""

    train_on_inputs: bool = False
    """Train on all segments, those with `label: false` included."""


class TokensTraining(FormatOptions):
    """The tokens as the row has them."""


class StepwiseTraining(FormatOptions):
    """The prompt and the steps of its solution as one text; the right steps are trained, wrong ones are only read."""

    step_separator: Annotated[str, Field(min_length=1)] = "\n"
    """What stands between the prompt and the steps."""
    max_completion_length: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a solution, its end token included; what is over is cut off."""
    train_on_last_step_only: bool = False
    """Train on the last step alone; a row where it is wrong is then an error."""
    allow_special_tokens: bool = False
    """Let special tokens that are written in prompts and steps be these tokens; by default such a row is an error."""


class SyntheticOptions(Section):
    """Rows of random token ids in a column `input_ids`: for measuring speed and memory, not for learning."""

    num_rows: Annotated[int, Field(ge=1)] = 1000
    """Number of rows."""
    sequence_length: Annotated[int, Field(ge=2)]
    """Tokens of every row."""
    min_input_id: Annotated[int, Field(ge=0)] = 100
    """Smallest token id; special tokens often have the ids below 100."""
    max_input_id: Annotated[int, Field(ge=0)]
    """Largest token id: below the size of the vocabulary."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of the ids: the same one gives the same rows."""

    @field_validator("max_input_id")
    @classmethod
    def _check_range(cls, largest: int, info: ValidationInfo) -> int:
        """Refuse a range without ids; the default of the smallest is not in `info` where it was itself refused."""
        smallest = info.data.get("min_input_id", 0)
        if largest < smallest:
            raise ValueError(f"must be at least min_input_id, which is {smallest}")
        return largest


class TextFormatterPlugin(ReaderPlugin, DataFormatPlugin, TrainFormatPlugin):
    """Trains on texts, segments, steps and tokens that need no chat template."""

    name = "text_formatter"
    readers: ClassVar[Mapping[str, type[Section]]] = {"synthetic": SyntheticOptions}
    data_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {
        "completion": CompletionData,
        "input_output": InputOutputData,
        "tokens": TokensData,
        "stepwise": StepwiseData,
    }
    train_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {
        "completion": CompletionTraining,
        "input_output": InputOutputTraining,
        "tokens": TokensTraining,
        "stepwise": StepwiseTraining,
    }

    def read(self, options: SyntheticOptions) -> Iterator[Row]:
        """Yield rows of random ids."""
        from dumbo.plugins.text_formatter.synthetic import draw_rows

        return draw_rows(options)

    def build_data_format(self, options: Any) -> DataFormat:
        """Return the function that makes a text, segments, tokens or steps from a row."""
        from dumbo.plugins.text_formatter import data_formats

        if isinstance(options, CompletionData):
            return data_formats.Completion(options)
        if isinstance(options, InputOutputData):
            return data_formats.InputOutput(options)
        if isinstance(options, TokensData):
            return data_formats.ReadyTokens(options)
        return data_formats.Stepwise(options)

    def build_train_format(self, options: Any, tokenizer: PreTrainedTokenizerBase) -> TrainFormat:
        """Return what makes tokens and labels from such a record.

        Raises `ConfigError` for a tokenizer that lacks what the format needs: an end token, offsets.
        """
        from dumbo.plugins.text_formatter import ready_tokens, train_formats

        if isinstance(options, CompletionTraining):
            return train_formats.CompletionFormat(options, tokenizer)
        if isinstance(options, InputOutputTraining):
            return train_formats.InputOutputFormat(options, tokenizer)
        if isinstance(options, TokensTraining):
            return ready_tokens.TokensFormat(tokenizer)
        return train_formats.StepwiseFormat(options, tokenizer)
