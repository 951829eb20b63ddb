"""The tables of an inspection: the messages of a row, and what the rows of all sources add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.inspection.shown import ShownRow
from dumbo.inspection.tally import Tally
from dumbo.output.numerals import count, percent
from dumbo.visible import made_visible

if TYPE_CHECKING:
    from dumbo.data.sources import Source


@dataclass(frozen=True, slots=True)
class Table:
    """Lines under a header; a column of whole numbers stands to the right."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[Any, ...], ...]

    def numeric(self) -> list[int]:
        """The columns that are numbers, or shares."""
        first = self.lines[0]
        return [i for i, cell in enumerate(first) if isinstance(cell, int) or str(cell).endswith("%")]


def message_table(row: ShownRow) -> Table:
    """The messages of a row."""
    lines = tuple((line.number, line.role, line.positions, line.tokens, line.trained) for line in row.messages)
    return Table(f"Messages of {row.place}", ("message", "role", "positions", "tokens", "trained"), lines)


def sum_tables(tallies: Sequence[tuple[Source, Tally]]) -> list[Table]:
    """The sums of each source: rows and tokens, what its train format counted, and its messages by role."""
    header = ("source", "rows", "bad rows", "tokens", "trained", "longest")
    lines = tuple((s.label, t.rows, s.bad.count, t.tokens, percent(t.share), t.longest) for s, t in tallies)
    tables = [Table("Sources", header, lines)]
    counted = tuple(line for source, tally in tallies for line in _count_lines(source, tally))
    if counted:
        tables.append(Table("Counted on the way", ("source", "what", "how many"), counted))
    roles = tuple(line for source, tally in tallies for line in _role_lines(source, tally))
    if roles:
        some = [t.explained for _, t in tallies if t.roles and t.explained < t.rows]
        of = f" of up to {count(max(some))} rows of a source" if some else ""
        header = ("source", "role", "messages", "tokens", "trained", "untrained messages")
        tables.append(Table(f"Messages{of} by role", header, roles))
    return tables


def _count_lines(source: Source, tally: Tally) -> Iterator[tuple[Any, ...]]:
    for name, number in sorted(tally.counts.items()):
        if number:
            yield source.label, made_visible(name.replace("_", " ")), number
    if tally.untrained.count:
        yield source.label, "rows without a trained token", tally.untrained.count


def _role_lines(source: Source, tally: Tally) -> Iterator[tuple[Any, ...]]:
    for role, sums in tally.roles.items():
        trained, without = percent(sums.trained / max(sums.tokens, 1)), percent(sums.without / sums.messages)
        yield source.label, made_visible(role), sums.messages, sums.tokens, trained, without
