"""The run's tokenizer without its model, and what its tokens are to a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumbo.data.encoding import decode_each
from dumbo.data.train_format import Explanation
from dumbo.errors import DataError
from dumbo.tokenizers.loading import load_run_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.config.schema import RunConfig
    from dumbo.data.records import Record
    from dumbo.data.source_encoder import SourceEncoder
    from dumbo.plugin_manager import PluginManager


def load_tokenizer(config: RunConfig, plugins: PluginManager) -> PreTrainedTokenizerBase:
    """The run's tokenizer, without its model.

    Raises:
        DumboError: it cannot be loaded.
    """
    from dumbo.bridge.quiet import quieten_libraries

    quieten_libraries()
    return load_run_tokenizer(plugins, config, None)


def explain_record(record: Record, encoder: SourceEncoder, tokenizer: PreTrainedTokenizerBase) -> Explanation:
    """The record's example, explained by its train format; of one that explains nothing, the tokens alone.

    Raises:
        DataError: the record cannot be used.
    """
    explanation = encoder.explain(record)
    if explanation is not None:
        return explanation
    [(_, example)] = encoder.encode([record])
    if isinstance(example, DataError):
        raise example
    return Explanation(example, decode_each(example.input_ids, tokenizer))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of all special tokens: those with a name, and those that are only added as such."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset([*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)])
