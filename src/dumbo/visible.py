"""Text that other people or models wrote, harmless to a terminal: its control characters become signs."""

from __future__ import annotations

import re

# Of what is left out, C1 has another way to write ESC [, and the directions of Unicode can show a line backwards.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def made_visible(text: str) -> str:
    """`text` with a sign for each control character but tabs and ends of lines: none reaches the terminal."""
    return _CONTROL.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else ("␡" if code == 0x7F else "\ufffd")
