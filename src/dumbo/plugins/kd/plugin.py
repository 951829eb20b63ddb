"""The plugin that trains a student on what a teacher says of every token, and the verb that records it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.config.schema import FormatOptions, RunConfig
from dumbo.errors import ConfigError
from dumbo.plugin_loader import CommandPlugin, DataFormatPlugin, DatasetPlugin, LossPlugin
from dumbo.plugins.kd.checks import option_problems
from dumbo.plugins.kd.options import KdOptions, TaughtMessages, TaughtTokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

    from dumbo.data.dataset import TokenDataset
    from dumbo.data.records import DataFormat
    from dumbo.job import Loss
    from dumbo.plugins.kd.recording import Recording


class KdPlugin(LossPlugin, DatasetPlugin, DataFormatPlugin, CommandPlugin):
    """Trains on what a teacher says of every token, beside the token itself."""

    name = "kd"
    section = "trainer.kd"
    options_type = KdOptions
    columns = frozenset({"teacher_ids", "teacher_logprobs"})
    data_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {
        "kd_messages": TaughtMessages,
        "kd_tokens": TaughtTokens,
    }
    commands: ClassVar[Mapping[str, str]] = {"teacher-logprobs": "record what the teacher of a run says of its rows"}
    consumes: frozenset[str] | None = frozenset()  # type: ignore[misc]

    options: KdOptions
    record: Callable[[TokenDataset], None] | None = None
    """What is to be done with the training set where it is to be recorded, and not trained on."""
    _recording: Recording | None = None

    def check(self, config: RunConfig) -> None:
        """Refuse options that exclude each other or have no effect."""
        problems = list(option_problems(self.options, config))
        if problems:
            raise ConfigError(problems)

    def build_data_format(self, options: Any) -> DataFormat:
        """Return the function that makes a record of a row, with what a teacher said of it."""
        from dumbo.plugins.kd.rows import taught_format

        return taught_format(options)

    def transform_dataset(self, dataset: TokenDataset, config: RunConfig) -> TokenDataset:
        """Return the training set with what was recorded of it. Raises ConfigError where that is of other rows."""
        from dumbo.plugins.kd.running import recorded_beside

        if self.record is not None:
            self.record(dataset)
        elif self.options.recorded is not None:
            self._recording, dataset = recorded_beside(dataset, self.options, self.services.say)
        return dataset

    def build_loss(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Loss:
        """Return the loss, with its teacher. Raises ConfigError for one with other tokens."""
        from dumbo.plugins.kd.running import build_loss

        return build_loss(self.options, config, tokenizer, self._recording, self.services)

    def run_command(self, verb: str, arguments: Sequence[str]) -> int:
        """Record what a teacher says."""
        from dumbo.plugins.kd.command import record_logprobs

        return record_logprobs(arguments)
