"""Rows and their sums on a terminal, in colours; where there are none, marks tell what is trained."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console as RichConsole
from rich.text import Text

from dumbo.console import Console
from dumbo.inspection.shown import MASKED, STRADDLING, TRAINED, ShownRow, Token
from dumbo.inspection.tables import Table, message_table
from dumbo.visible import made_visible

if TYPE_CHECKING:
    from dumbo.errors import Problem
    from dumbo.inspection.anomalies import Anomaly

_INDENT = "  "
_COLOURS = MappingProxyType({TRAINED: "green", MASKED: "dim", STRADDLING: "yellow"})
_SPECIAL = MappingProxyType({TRAINED: "bold green", MASKED: "bold blue", STRADDLING: "bold yellow"})
_MARKS = MappingProxyType({TRAINED: ("⟦", "⟧"), MASKED: ("", ""), STRADDLING: ("‹", "›")})
_WORDS = MappingProxyType(
    {TRAINED: "trained", MASKED: "not trained", STRADDLING: "not trained: reaches over the edge of what is"}
)


class Screen:
    """Writes to a stream: in colours on a terminal that has them."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(stream=stream)
        """For single lines."""
        self._rich = RichConsole(file=stream, highlight=False)
        self._coloured = self._rich.is_terminal and not self._rich.no_color and self._rich.color_system is not None

    def legend(self) -> None:
        """What the colours or marks mean."""
        if self._coloured:
            parts = [Text(words, style=_COLOURS[state]) for state, words in _WORDS.items()]
            self._rich.print(Text("   ").join([*parts, Text("special", style=_SPECIAL[MASKED])]))
        else:
            self.console.say(
                "   ".join(f"{_MARKS[state][0]}{words}{_MARKS[state][1]}" for state, words in _WORDS.items())
            )

    def row(self, row: ShownRow) -> None:
        """A row: its place and length, its text, its messages, and remarks; or what is wrong with it."""
        self.console.say("")
        self._title(f"{made_visible(row.place)}  {row.heading}")
        if row.tokens:
            self._text(row)
        for problem in row.problems:
            self.console.say(textwrap.indent(_reason(problem), _INDENT))
        if row.messages:
            self.console.say("")
            self.table(message_table(row))
        for remark in row.remarks:
            self.console.say(f"  note: {made_visible(remark)}")

    def sums(self, tables: Iterable[Table]) -> None:
        """What all rows add up to."""
        for table in tables:
            self.console.say("")
            self._title(table.title)
            self.table(table)

    def table(self, table: Table) -> None:
        """A table, without its title."""
        right, lines = table.numeric(), table.lines
        widths = [max(len(str(line[i])) for line in [table.header, *lines]) for i in range(len(table.header))]
        cells = [
            [cell.rjust(widths[i]) if i in right and isinstance(cell, str) else cell for i, cell in enumerate(line)]
            for line in lines
        ]
        self.console.table(table.header, cells)

    def anomalies(self, anomalies: Sequence[Anomaly], none: str) -> None:
        """What is strange, or the words for nothing."""
        self.console.say("")
        if not anomalies:
            self._title(none)
            return
        self._title(f"{len(anomalies)} thing{'s' if len(anomalies) > 1 else ''} to look into", "bold yellow")
        for anomaly in anomalies:
            self.console.say(f"  {made_visible(str(anomaly))}")
            for detail in anomaly.details:
                self.console.say(f"      {made_visible(detail)}")

    def _title(self, words: str, style: str = "bold") -> None:
        if self._coloured:
            self._rich.print(Text(words, style=style))
        else:
            self.console.say(words)

    def _text(self, row: ShownRow) -> None:
        if self._coloured:
            coloured = Text.assemble(*((token.visible, _style(token)) for token in row.tokens))
            coloured.rstrip()
            for line in coloured.wrap(self._rich, max(self._rich.width - len(_INDENT), 1), tab_size=4):
                self._rich.print(Text(_INDENT).append_text(line), soft_wrap=True)
            return
        text = "".join(_marked("".join(token.visible for token in tokens), state) for state, tokens in row.runs())
        # Not as a line of the run's: what looks like a secret here is what is trained.
        print(textwrap.indent(text.rstrip(), _INDENT), file=self._rich.file)


def _style(token: Token) -> str:
    return (_SPECIAL if token.special else _COLOURS)[token.state]


def _marked(text: str, state: str) -> str:
    opening, closing = _MARKS[state]
    return f"{opening}{text}{closing}"


def _reason(problem: Problem) -> str:
    """What is wrong, and what to write; the place is in the row's title."""
    return made_visible("\n".join([problem.message, *(f"    {hint}" for hint in problem.hints)]))
