"""Examples from rows that are tokenised already: the train format `tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dumbo.data.encoding import decode_each, leading_special_tokens
from dumbo.data.records import IGNORED, Example, Record, Tokens
from dumbo.data.train_format import Explanation, TrainFormatter
from dumbo.errors import DataError
from dumbo.plugins.text_formatter.drafts import count_missing, count_remarks, wrong_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokensFormat(TrainFormatter):
    """Passes token ids and labels on, if this tokenizer knows them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # Some vocabularies have gaps, so that their ids reach beyond their number.
        self.highest = max(tokenizer.get_vocab().values())
        self.start_ids = leading_special_tokens(tokenizer)

    def encode_batch(self, records: Sequence[Record]) -> list[Example | DataError]:
        """An example for each record, or what makes it unusable."""
        return [self._attempt(record) for record in records]

    def explain(self, record: Record) -> Explanation:
        """The record's example, with the text of each token as the tokenizer decodes it."""
        example = self._example(record)
        texts = decode_each(example.input_ids, self.tokenizer)
        return Explanation(example, texts, remarks=tuple(count_remarks(example.counts)))

    def _attempt(self, record: Record) -> Example | DataError:
        try:
            return self._example(record)
        except DataError as error:
            return error

    def _example(self, record: Record) -> Example:
        if not isinstance(record, Tokens):
            raise wrong_record(record, "tokens", "rows of token ids", "tokens")
        highest = max(record.input_ids, default=0)
        if highest > self.highest:
            message = f"there is the token id {highest}, and the tokenizer's ids are 0 to {self.highest}"
            raise record.origin.error(message, "were these rows made with the tokenizer of this model?")
        if all(label == IGNORED for label in record.labels[1:]):
            raise record.origin.error("no token to train on", "every label is -100, or there is only one token")
        counts = count_missing(record.input_ids, record.labels, self.start_ids, self.tokenizer.eos_token_id)
        return Example(list(record.input_ids), list(record.labels), record.origin, counts)
