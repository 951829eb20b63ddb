"""What a YAML parser could not read, in the words of somebody who writes configuration files, at the line to mend."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from dumbo.errors import Place, Problem

_NO_SPACE = re.compile(r"\s*(?:- +)*[A-Za-z_][\w.-]*:(?=[^\s:/])")
"""`learning_rate:1e-3`, up to and with the colon; not the beginning of an address."""
_NEEDS_QUOTES = re.compile(r"(?:^|: |- )\s*(\{\{|\{%|[%@`])")
"""What looks like a template, or begins with a character that YAML keeps for itself."""
_OPENED = re.compile(r"\s*(?:- +)*[\w.-]+: +((['\"])(?:(?!\2).)*)$")
"""A value that begins with a quote which its line does not close."""
_BRACKET = re.compile(r"(?::|-|^)[ ]+([\[{])", re.MULTILINE)
_CLOSING = re.compile(r"[\]}]")


def syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """The parser's complaint as a problem: what is wrong, the place where it can be mended, and how."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Problem(f"not valid YAML: {error.problem}", place=Place(file))
    lines = text.splitlines()
    known = (
        _tab(error, mark, lines, file)
        or _missing_space(error, mark, lines, file)
        or _missing_quotes(error, mark, lines, file)
        or _never_closed(error, mark, text, lines, file)
    )
    if known:
        return known
    line = lines[mark.line] if mark.line < len(lines) else ""
    hints = [f"the line is: {line.strip()}"] if line.strip() else []
    if "mapping values are not allowed" in str(error.problem):
        hints.append("a text that contains ': ' needs quotes, and a key needs the same indentation as its neighbours")
    if "could not find expected ':'" in str(error.problem):
        hints.append("every line of a mapping is written 'key: value'")
    what = str(error.problem)
    if what == "but found another document":
        what, hints = "a second document begins here", ["a run is one document: remove the line '---'"]
    elif what == "second occurrence":
        what = str(error.context).partition(";")[0]
    return Problem(f"not valid YAML: {what}", place=Place(file, mark.line + 1, mark.column + 1), hints=tuple(hints))


def _tab(error: yaml.MarkedYAMLError, mark: yaml.Mark, lines: Sequence[str], file: str) -> Problem | None:
    # The mark may stand behind the line with the tab: the scanner notices at the next token.
    for number in (mark.line, mark.line - 1):
        if 0 <= number < len(lines) and re.match(r" *\t", lines[number]):
            return Problem(
                "indented with a tab", place=Place(file, number + 1, 1), hints=("YAML is indented with spaces",)
            )
    if "'\\t'" in str(error.problem):
        place = Place(file, mark.line + 1, mark.column + 1)
        return Problem("a tab stands where a space belongs", place=place, hints=("write a space",))
    return None


def _missing_space(error: yaml.MarkedYAMLError, mark: yaml.Mark, lines: Sequence[str], file: str) -> Problem | None:
    """A key with its value right behind the colon is a text, and what is odd is the line that follows it."""
    what = str(error.problem)
    if "mapping values are not allowed" not in what and "could not find expected ':'" not in what:
        return None
    before = [n for n in range(min(mark.line, len(lines))) if lines[n].strip() and not lines[n].strip().startswith("#")]
    found = _NO_SPACE.match(lines[before[-1]]) if before else None
    if found is None:
        return None
    number = before[-1] + 1
    place = Place(file, number, found.end())
    return Problem(f"not valid YAML: line {number} has no space after ':'", place=place, hints=("write 'key: value'",))


def _missing_quotes(error: yaml.MarkedYAMLError, mark: yaml.Mark, lines: Sequence[str], file: str) -> Problem | None:
    """`template: {% if x %}`: YAML takes the brace for a mapping, and has no text that begins with a percent sign."""
    for number in dict.fromkeys(m.line for m in (error.context_mark, mark) if m and m.line < len(lines)):
        found = _NEEDS_QUOTES.search(lines[number])
        if found and (number == mark.line or "flow" in str(error.context)):
            place = Place(file, number + 1, found.start(1) + 1)
            message = f"not valid YAML: a text that begins with '{found[1]}' needs quotes"
            return Problem(message, place=place, hints=("put the text in quotes",))
    return None


def _never_closed(
    error: yaml.MarkedYAMLError, mark: yaml.Mark, text: str, lines: Sequence[str], file: str
) -> Problem | None:
    """A quote or bracket without its second half: the parser reads on and stumbles anywhere behind it."""
    start, context = error.context_mark, str(error.context)
    if start and "quoted scalar" in context and "end of stream" in str(error.problem):
        return _opened("quote", start.line, start.column, file)
    brackets = [bracket.start(1) for bracket in _BRACKET.finditer(text, 0, mark.index)] if "flow" in context else []
    for index in brackets:
        if not _is_closed(text[index:]):
            above = text.count("\n", 0, index)
            return _opened("bracket", above, index - text.rfind("\n", 0, index) - 1, file)
    # The next quote of its kind closed it, and what stands behind that is what the parser complains about.
    here = lines[mark.line][: mark.column + 1] if mark.line < len(lines) else ""
    for number, content in enumerate(lines[: mark.line]):
        found = _OPENED.match(content)
        if found and found[2] in here and all(found[2] not in between for between in lines[number + 1 : mark.line]):
            return _opened("quote", number, found.start(1), file)
    return None


def _opened(what: str, line: int, column: int, file: str) -> Problem:
    return Problem(f"not valid YAML: the {what} opened here is never closed", place=Place(file, line + 1, column + 1))


def _is_closed(text: str) -> bool:
    """Whether the bracket at the beginning of `text` has its closing one; quoted texts and comments are skipped."""
    plain = re.sub(r"(?<=[\s,:\[{])(?:\"(?:\\.|[^\"\\])*\"|'[^']*'|#[^\n]*)", "", text)
    depth = 0
    for character in plain:
        depth += (character in "[{") - bool(_CLOSING.match(character))
        if depth == 0:
            return True
    return False
