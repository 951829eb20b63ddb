"""Records of rows that bring what a teacher said of them, in the lists that such data sets have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.data.columns import Column
from dumbo.data.records import IGNORED, Conversation, Origin, Row, Tokens
from dumbo.data.row_values import read_column
from dumbo.plugins.kd.options import TaughtMessages, TaughtOptions, TaughtTokens
from dumbo.plugins.kd.recording import IDS, LOGPROBS

if TYPE_CHECKING:
    from dumbo.data.records import ColumnMaker, DataFormat

_TOKEN = re.compile(r"token_id:(\d+)")

Place = Sequence[tuple[int, float]]
"""Token ids and log-probabilities, the likeliest first."""


def taught_format(options: TaughtMessages | TaughtTokens) -> DataFormat:
    """The function from a row to its record."""
    make: Callable[[Row], Conversation | Tokens]
    if isinstance(options, TaughtMessages):
        make = lambda row: _conversation(row, options)  # noqa: E731
    else:
        make = lambda row: _tokens(row, options)  # noqa: E731
    return make


def _conversation(row: Row, options: TaughtMessages) -> Conversation:
    messages = read_column(row, options.field_messages)
    is_list = isinstance(messages, list) and bool(messages)
    if not is_list or not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise row.origin.error(f"no messages in '{options.field_messages}'", "each message needs role and content")
    return Conversation(tuple(messages), row.origin, columns=_columns(row, options))


def _tokens(row: Row, options: TaughtTokens) -> Tokens:
    ids = read_column(row, options.field_input_ids)
    labels = row.values.get(options.field_labels)
    labels = ids if labels is None else labels
    for name, values in ((options.field_input_ids, ids), (options.field_labels, labels)):
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise row.origin.error(f"'{name}' is no list of token ids")
    if len(labels) != len(ids):
        raise row.origin.error(f"{len(ids)} token ids and {len(labels)} labels")
    if any(label not in (token, IGNORED) for token, label in zip(ids, labels, strict=True)):
        raise row.origin.error("a label is neither the token at its place nor -100")
    return Tokens(tuple(ids), tuple(labels), row.origin, columns=_columns(row, options))


def _columns(row: Row, options: TaughtOptions) -> ColumnMaker:
    places = [
        _likeliest(place, options.top_k)
        for place in _places(
            read_column(row, options.field_logprobs), row.values.get(options.field_token_ids), options, row.origin
        )
    ]
    return lambda input_ids, labels: arrays_of(places, len(input_ids), options.top_k, options.temperature)


def _places(told: Any, ids: Any, options: TaughtOptions, origin: Origin) -> list[Place]:
    name, ids_name = options.field_logprobs, options.field_token_ids
    if not isinstance(told, list) or not all(place is None or isinstance(place, list) for place in told):
        raise origin.error(f"'{name}' is no list with a list for each token")
    if any(isinstance(entry, Mapping) for place in told if place for entry in place):
        return [[_named_entry(entry, name, origin) for entry in place or ()] for place in told]
    if not isinstance(ids, list) or len(ids) != len(told):
        message = f"'{name}' has numbers for {len(told)} tokens, and '{ids_name}' does not have as many lists of ids"
        raise origin.error(message, "name the column with the ids by 'field_token_ids'")
    places: list[Place] = []
    for number, (logs, tokens) in enumerate(zip(told, ids, strict=True)):
        pairs = list(zip(tokens or (), logs or (), strict=False))
        if len(logs or ()) != len(tokens or ()):
            raise origin.error(f"at place {number} there are not as many log-probabilities as token ids")
        places.append([(_id(token, origin), _log(log, origin)) for token, log in pairs])
    return places


def _named_entry(entry: Any, name: str, origin: Origin) -> tuple[int, float]:
    found = _TOKEN.fullmatch(str(entry.get("token", ""))) if isinstance(entry, Mapping) else None
    if found is None:
        raise origin.error(f"an entry of '{name}' has no token such as 'token_id:123'")
    return int(found[1]), _log(entry.get("logprob"), origin)


def _id(token: Any, origin: Origin) -> int:
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise origin.error(f"{token!r} is no token id")
    return token


def _log(value: Any, origin: Origin) -> float:
    if value is None:
        return -math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise origin.error(f"{value!r} is no log-probability", "they are 0 or less; null or -inf where there is none")
    return float(value)


def _likeliest(place: Place, count: int) -> Place:
    return sorted((pair for pair in place if pair[1] > -math.inf), key=lambda pair: -pair[1])[:count]


def arrays_of(places: Sequence[Place], length: int, top_k: int, temperature: float) -> dict[str, Column]:
    """The columns of a row of `length` tokens, of which the last ones have `places`, one for each.

    What is told at the place of a token is how likely it was, which belongs to the row before it. Of more places than
    tokens, the last ones are taken. The numbers are multiplied by the teacher's temperature: but for a constant, they
    are then log-probabilities at 1.
    """
    import numpy as np

    ids = np.zeros((length, top_k), np.int32)
    logs = np.full((length, top_k), -np.inf, np.float32)
    for row, place in zip(range(length - 2, -1, -1), reversed(places), strict=False):
        for column, (token, value) in enumerate(place):
            ids[row, column], logs[row, column] = token, value * temperature
    return {IDS: Column(ids), LOGPROBS: Column(logs, -float("inf"))}
