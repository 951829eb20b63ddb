"""What a plugin raised, in one line: the error, and where in the plugin's own file it came from."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dumbo.errors import Place
from dumbo.redact import redact_text

if TYPE_CHECKING:
    from dumbo.plugin_finder import FoundPlugin

_PACKAGE = Path(__file__).parent


def describe(error: BaseException, plugin: type | None = None) -> str:
    """An error in one line: type, text, and where it came from: in the file of `plugin` if it passed through there."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    place = _raised_at(error, plugin)
    return _in_words(error) + (f" ({place})" if place else "")


def describe_exit(error: SystemExit, plugin: type) -> str:
    """As `describe`, for a plugin that ended the program."""
    call = f"sys.exit({'' if error.code is None else redact_text(repr(error.code))})"
    return ", ".join(part for part in (call, _raised_at(error, plugin)) if part)


def passed_through(error: BaseException, plugins: Sequence[FoundPlugin]) -> list[FoundPlugin]:
    """Those of `plugins` in whose file the error was last; one where the call can be told to be its class's own."""
    by_file: dict[str | None, list[FoundPlugin]] = {}
    for plugin in plugins:
        by_file.setdefault(_file_of(plugin.type), []).append(plugin)
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    codes = [code for code in reversed(codes) if code.co_filename in by_file]
    for code in codes:
        for plugin in by_file[code.co_filename]:
            if code.co_qualname.split(".")[0] == plugin.type.__name__:
                return [plugin]
    return by_file[codes[0].co_filename] if codes else []


def _raised_at(error: BaseException, plugin: type | None) -> str:
    """The last place that is not dumbo's own; in a file of `plugin` or its bases, if it passed through there."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    frames = [(file, line) for file, line in frames if "importlib" not in file and not file.startswith("<")]
    bases = plugin.__mro__ if plugin else ()
    own = {file for base in bases if (file := _file_of(base)) and (base is plugin or not _is_ours(file))}
    places = [frame for frame in frames if frame[0] in own] or [frame for frame in frames if not _is_ours(frame[0])]
    return str(Place(*places[-1])) if places else ""


def _in_words(error: BaseException) -> str:
    """Type and text of an error; pydantic's without its address on the web."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("frozen_instance", "frozen_field"):
            return f"the configuration cannot be changed (it set '{where}')"
        return f"{error.title}: {where}: {first['msg']}" if where else f"{error.title}: {first['msg']}"
    return f"{type(error).__name__}: {text_in_one_line(error) or 'no message'}"


def text_in_one_line(error: BaseException) -> str:
    """The text of an error on one line, without secrets: a caller may cut it, and half a secret is not recognised."""
    return " ".join(redact_text(str(error)).split())


def _file_of(plugin: type) -> str | None:
    return getattr(sys.modules.get(plugin.__module__), "__file__", None)


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(_PACKAGE)
