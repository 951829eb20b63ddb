"""Tokens and labels of many conversations at once: by their forms where they have one, each by itself where not."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from dumbo.chat.forms import Filled, Form, Forms
from dumbo.data.encoding import is_unicode
from dumbo.data.masking import Span, label_places
from dumbo.data.records import Conversation, Example, Record
from dumbo.data.word_cache import FlatTokens, split_texts
from dumbo.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dumbo.chat.formatter import ConversationFormatter, Prepared

_NOT_FOLLOWED = "the template treats texts in a way that cannot be followed"
_FIRST_CHECKED = 100
_TEXT_CHECKED_EVERY = 32
_WHOLE_CHECKED_EVERY = 512
"""Of the conversations that are made by their form: which are rendered without tracing too, and which are made without
their form too, to see that the result is the same."""


class _Batch(NamedTuple):
    """Tokens and labels of conversations that have a form."""

    tokens: FlatTokens
    labels: NDArray[np.integer]
    straddling: list[int]
    """How many tokens of each straddle."""
    is_sure: list[bool]
    """Whether each has a token that is trained, and no special token in a content."""


class BatchEncoder:
    """Makes examples of conversations in batches, the same as its formatter makes one by one."""

    def __init__(self, formatter: ConversationFormatter) -> None:
        self.formatter = formatter
        self._forms = Forms(formatter.renderer.outline, formatter.prepare)
        # Behind such a token the whitespace of a content belongs to the token.
        self._has_forms = not any(frame.strips_right for frame in formatter.frames)
        self._num_seen = 0
        self._met: WeakSet[Form] = WeakSet()

    def encode(self, records: Sequence[Record]) -> list[Example | DataError]:
        """An example for each record, or what makes it unusable."""
        filled: dict[int, Filled] = {}
        prepared: dict[int, Prepared | DataError] = {}
        checked: list[int] = []
        for place, record in enumerate(records):
            found = self._fill(record)
            if isinstance(found, Filled):
                filled[place] = found
                checked += [place] * self._is_due(found)
            else:
                prepared[place] = found or self.formatter.try_prepare(record)
        results = dict(zip(prepared, self._finish_prepared(list(prepared.values())), strict=True))
        if filled:
            batch = self._label(list(filled.values()))
            for number, (place, item) in enumerate(filled.items()):
                results[place] = self._finish(records[place], item, batch, number)
        results = {place: _packed(result) for place, result in results.items()}
        for place in checked:
            results[place] = self._same(results[place], self.formatter.encode_one(records[place]))
        return [results[place] for place in range(len(records))]

    def _is_due(self, filled: Filled) -> bool:
        """Whether a conversation is made without its form, too: the first of each form is."""
        is_new = filled.form not in self._met
        self._met.add(filled.form)
        return is_new or self._num_seen % _WHOLE_CHECKED_EVERY == 0

    def _same(self, ours: Example | DataError, expected: Example | DataError) -> Example | DataError:
        if isinstance(ours, Example) and isinstance(expected, Example):
            pairs = (ours.input_ids, expected.input_ids), (ours.labels, expected.labels)
            if any(list(found) != list(wanted) for found, wanted in pairs) or ours.counts != expected.counts:
                return ours.origin.error(f"{_NOT_FOLLOWED}; labels would be a guess")
        return _packed(expected)

    def _finish_prepared(self, prepared: Sequence[Prepared | DataError]) -> list[Example | DataError]:
        texts = [item.rendered.text for item in prepared if not isinstance(item, DataError)]
        return self.formatter.finish(prepared, list(split_texts(self.formatter.encoder.encode_flat(texts))))

    def _fill(self, record: Record) -> Filled | DataError | None:
        """The conversation by its form, as far as it has one."""
        filled = self._forms.fill(record) if self._has_forms else None
        if filled is None or not (filled.text.isascii() or is_unicode(filled.text)):
            return None
        self._num_seen += 1
        assert isinstance(record, Conversation)
        if self._num_seen <= _FIRST_CHECKED or self._num_seen % _TEXT_CHECKED_EVERY == 0:
            plain = self.formatter.renderer.render_plain(record.messages)
            if plain != filled.text:
                return record.origin.error(f"{_NOT_FOLLOWED}; labels would be a guess")
        return filled

    def _label(self, filled: Sequence[Filled]) -> _Batch:
        """Tokens and labels of conversations, all at once."""
        import numpy as np

        formatter = self.formatter
        tokens = formatter.encoder.encode_flat([item.text for item in filled])
        spans = _placed([formatter.trained_spans(item.text, item.spans) for item in filled], tokens.places)
        labels, straddles = label_places(tokens.ids, tokens.starts, tokens.ends, spans)
        is_sure = np.ones(len(filled), bool)
        is_sure[self._with_special_tokens(tokens, _placed([item.contents for item in filled], tokens.places))] = False
        is_trained = labels >= 0
        firsts = tokens.rows[:-1]
        is_sure &= firsts < tokens.rows[1:]
        is_trained[firsts[is_sure]] = False  # Nothing predicts them.
        is_sure &= _sums(is_trained, tokens.rows) > 0
        return _Batch(tokens, labels, _sums(straddles, tokens.rows).tolist(), is_sure.tolist())

    def _with_special_tokens(self, tokens: FlatTokens, contents: NDArray[np.int64]) -> NDArray[np.intp]:
        """The conversations that have a special token in a content, or over its edge."""
        import numpy as np

        is_special = self.formatter.is_special[tokens.ids]
        starts, ends = tokens.starts[is_special], tokens.ends[is_special]
        # The last of the contents that begin before the token ends: does it reach over the token's beginning?
        near = np.searchsorted(contents[:, 0], ends) - 1
        found = starts[(near >= 0) & (contents[near, 1] > starts)]
        conversations: NDArray[np.intp] = np.searchsorted(tokens.places, found, side="right") - 1
        return conversations

    def _finish(self, record: Record, filled: Filled, batch: _Batch, number: int) -> Example | DataError:
        """The example, its numbers packed."""
        if not batch.is_sure[number]:
            return self.formatter.encode_one(record)
        start, end = batch.tokens.rows[number : number + 2].tolist()
        input_ids = array("i", batch.tokens.ids[start:end].tobytes())
        labels = array("i", batch.labels[start:end].tobytes())
        additions = self.formatter.additions(filled.text, filled.spans, input_ids)
        if additions is not None:
            input_ids = array("i", additions.lead) + input_ids + array("i", additions.tail)
            labels = array("i", additions.lead_labels) + labels + array("i", additions.tail_labels)
        start_id = self.formatter.start_id
        if start_id is not None and len(input_ids) > 1 and input_ids[0] == input_ids[1] == start_id:
            return self.formatter.encode_one(record)
        counts = filled.counts
        if batch.straddling[number]:
            counts = {**counts, "straddling tokens": batch.straddling[number]}
        return Example(input_ids, labels, record.origin, counts)


def _packed(result: Example | DataError) -> Example | DataError:
    """The example with its numbers in arrays."""
    if isinstance(result, DataError) or isinstance(result.input_ids, array):
        return result
    packed = (array("i", result.input_ids), array("i", result.labels))
    return Example(*packed, result.origin, result.counts, result.columns)


def _sums(values: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of `values` are true in each row."""
    import numpy as np

    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])[rows]
    counts: NDArray[np.int64] = before[1:] - before[:-1]
    return counts


def _placed(spans: Sequence[Sequence[Span]], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The spans of all texts, [spans, 2], each text's moved to its place."""
    import numpy as np

    counts = np.fromiter(map(len, spans), np.int64, len(spans))
    edges = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int64, 2 * int(counts.sum()))
    return edges.reshape(-1, 2) + np.repeat(places, counts)[:, None]
