"""What is shown of a row: each token with its text made visible and what becomes of it in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from dumbo.data.records import IGNORED, Origin
from dumbo.data.train_format import Explanation
from dumbo.errors import Place, Problem
from dumbo.inspection.tally import num_trained
from dumbo.output.numerals import count, percent
from dumbo.visible import made_visible

TRAINED, MASKED, STRADDLING = "trained", "masked", "straddling"
SPECIAL = "special"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a row."""

    position: int
    """From 0."""
    id: int
    label: int
    text: str
    state: str
    """`TRAINED`, `MASKED` or `STRADDLING`."""
    special: bool

    @property
    def visible(self) -> str:
        """Its text, harmless to a terminal. Of what is trained or special, white space that is easily overlooked has a
        sign: the end of a line, and a token that is nothing but white space."""
        text = made_visible(self.text)
        if self.state == MASKED and not self.special:
            return text
        if not text.strip():
            text = text.replace(" ", "·").replace("\t", "→\t")
        return text.replace("\n", "⏎\n")

    @property
    def title(self) -> str:
        """Position, id and label in words."""
        label = "label is its id" if self.label == self.id else f"label {self.label}"
        special = " special," if self.special else ""
        return f"token {self.position}, id {self.id},{special} {self.state}, {label}"


@dataclass(frozen=True, slots=True)
class MessageLine:
    """A line of the table of messages."""

    number: int
    """From 1."""
    role: str
    positions: str
    """The first and the last token."""
    tokens: int
    trained: int


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row to show: its tokens, or what is wrong with it."""

    place: str
    tokens: tuple[Token, ...] = ()
    messages: tuple[MessageLine, ...] = ()
    remarks: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def heading(self) -> str:
        """How many tokens, and how many of them are trained."""
        if self.problems:
            return "cannot be used"
        trained = sum(token.state == TRAINED for token in self.tokens)
        total, s = len(self.tokens), "" if len(self.tokens) == 1 else "s"
        return f"{count(total)} token{s}, {count(trained)} trained ({percent(trained / max(total, 1))})"

    def runs(self) -> Iterator[tuple[str, list[Token]]]:
        """Neighbouring tokens of the same state together."""
        for state, tokens in groupby(self.tokens, key=lambda token: token.state):
            yield state, list(tokens)


def show_row(origin: Origin, explanation: Explanation, special: frozenset[int]) -> ShownRow:
    """What is shown of a row that was explained."""
    example, tokens = explanation.example, []
    pairs = zip(example.input_ids, example.labels, explanation.texts, strict=True)
    for position, (token, label, text) in enumerate(pairs):
        masked = STRADDLING if position in explanation.straddling else MASKED
        state = masked if label == IGNORED else TRAINED
        tokens.append(Token(position, int(token), int(label), text, state, token in special))
    lines = []
    for message in explanation.messages:
        labels = example.labels[message.start : message.end]
        positions = f"{message.start}–{message.end - 1}" if message.end > message.start else "none"
        role = made_visible(message.role)
        lines.append(MessageLine(message.index + 1, role, positions, len(labels), num_trained(labels)))
    return ShownRow(f"{origin.source}:{origin.row}", tuple(tokens), tuple(lines), explanation.remarks)


def show_bad_rows(problems: Sequence[Problem]) -> list[ShownRow]:
    """What is shown of rows that cannot be used, in the order of the files."""
    in_order = sorted(problems, key=lambda problem: problem.place or Place(""))
    return [ShownRow(str(problem.place or "a row"), problems=(problem,)) for problem in in_order]
