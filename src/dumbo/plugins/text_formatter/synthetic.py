"""Rows of random token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dumbo.data.records import Origin, Row

if TYPE_CHECKING:
    from dumbo.plugins.text_formatter.plugin import SyntheticOptions


def draw_rows(options: SyntheticOptions) -> Iterator[Row]:
    """Yield `options.num_rows` rows with a column `input_ids`, all ids equally likely."""
    generator = random.Random(options.seed)
    ids = range(options.min_input_id, options.max_input_id + 1)
    for number in range(1, options.num_rows + 1):
        yield Row({"input_ids": generator.choices(ids, k=options.sequence_length)}, Origin("synthetic", number))
