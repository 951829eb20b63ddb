"""The frame of a page: one file with its style and script in it, which asks for nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from dumbo import __version__
from dumbo.disk import written_whole
from dumbo.output.markup import Html, joined, text

_HERE = Path(__file__).parent


def page(title: str, header: Html, body: Iterable[Html], sources: str) -> str:
    """A whole document. Of all scripts only our own may run, whatever samples and names hold."""
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    parts = [part for part in body if part]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="dumbo {__version__}">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
{header}
<main>
{joined(parts)}
</main>
<footer><p>Written by dumbo {__version__}. The numbers are in <code>metrics.jsonl</code>, the configuration is in
<code>run.yaml</code>, in {text(sources)}.</p></footer>
<script>{script}</script>
</body>
</html>
"""


def write_text(file: Path, content: str) -> None:
    """Write `content` under another name first: nobody finds half a page.

    Raises:
        OSError: the file cannot be written.
    """
    with written_whole(file) as partial:
        partial.write_text(content, encoding="utf-8", errors="replace")
