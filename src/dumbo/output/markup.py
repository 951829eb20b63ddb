"""Small pieces of HTML: text made harmless, tables, definition lists, code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NewType

from dumbo.output.numerals import count
from dumbo.redact import redact_text
from dumbo.visible import made_visible

Html = NewType("Html", str)
"""Text that is markup; everything else passes `text` before it enters a page."""


def text(value: Any, limit: int = 4000) -> Html:
    """`value` as text of a page: without secrets, with control characters made visible, cut after `limit`."""
    words = redact_text(str(value))
    rest = f" … ({count(len(words) - limit)} more characters)" if len(words) > limit else ""
    words = words[:limit].replace("\r\n", "\n")
    return Html(escape(made_visible(words) + rest))


def built(part: Callable[..., Html], *about: Any) -> Html:
    """A part of a page; where a plugin or another program wrote into a run's folder what nobody expects there, a line
    about it."""
    try:
        return part(*about)
    except Exception as error:
        return Html(f'<p class="note">A part of the report could not be made: {text(repr(error))}</p>')


def prose(value: str) -> Html:
    """Text in which words between backticks are code."""
    return Html(re.sub(r"`([^`]+)`", r"<code>\1</code>", text(value)))


def joined(parts: Iterable[str]) -> Html:
    """Pieces one after the other."""
    return Html("\n".join(part for part in parts if part))


def code(value: Any) -> Html:
    """A word of code in a line."""
    return Html(f"<code>{text(value)}</code>")


def code_block(lines: str, label: str) -> Html:
    """Lines to copy; they scroll where the page is narrow."""
    role = f'tabindex="0" role="region" aria-label="{text(label)}"'
    return Html(f'<pre class="code" {role}><code>{text(lines, 200_000)}</code></pre>')


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Html]],
    numeric: Iterable[int] = (),
    total: bool = False,
) -> Html:
    """A table that scrolls inside; columns in `numeric` stand to the right, and with `total` the last row is one."""
    right = frozenset(numeric)
    mark = [' class="number"' if index in right else "" for index in range(len(header))]
    head = "".join(f'<th scope="col"{mark[i]}>{text(name)}</th>' for i, name in enumerate(header))
    body = []
    for number, row in enumerate(rows, start=1):
        cells = "".join(f"<td{mark[i]}>{cell}</td>" for i, cell in enumerate(row) if i)
        kind = ' class="total"' if total and number == len(rows) else ""
        body.append(f'<tr{kind}><th scope="row"{mark[0]}>{row[0]}</th>{cells}</tr>')
    label, short = text(caption), " short" if len(rows) <= 12 else ""
    return Html(
        f'<div class="scroll{short}" tabindex="0" role="region" aria-label="{label}"><table>'
        f'<caption class="hidden">{label}</caption><thead><tr>{head}</tr></thead>\n<tbody>{joined(body)}</tbody>'
        "</table></div>"
    )


def facts(pairs: Mapping[str, Any]) -> Html:
    """Names and values, one below the other."""
    rows = "".join(f"<div><dt>{text(name)}</dt><dd>{any_value(value)}</dd></div>" for name, value in pairs.items())
    return Html(f'<dl class="facts">{rows}</dl>')


def any_value(value: Any, depth: int = 0) -> Html:
    """Any value that JSON knows, as well as it can be shown."""
    if value is None or value == "" or value == [] or value == {}:
        return Html('<span class="soft">none</span>')
    if isinstance(value, bool):
        return Html("yes" if value else "no")
    if isinstance(value, int | float):
        return text(count(value))
    if isinstance(value, dict) and depth < 2:
        rows = "".join(f"<li>{text(key)}: {any_value(item, depth + 1)}</li>" for key, item in value.items())
        return Html(f'<ul class="plain">{rows}</ul>')
    if isinstance(value, list) and depth < 2:
        if all(isinstance(item, str | int | float) for item in value):
            return text(", ".join(count(item) for item in value))
        return Html(
            '<ul class="plain">' + "".join(f"<li>{any_value(item, depth + 1)}</li>" for item in value) + "</ul>"
        )
    return text(value)


def section(anchor: str, title: str, body: Iterable[str], lead: str = "") -> Html:
    """A part of a page under its heading; nothing where its body is empty."""
    inside = joined(body)
    if not inside:
        return Html("")
    words = f'<p class="lead">{lead}</p>' if lead else ""
    return Html(f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
                f'<h2 id="{anchor}-title">{text(title)}</h2>{words}\n{inside}</section>')  # fmt: skip
