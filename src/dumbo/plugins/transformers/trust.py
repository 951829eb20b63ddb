"""Says aloud what becomes of Python code of a model or tokenizer: that it runs, where the user has asked for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dumbo.plugins.transformers.folders import read_object

_GENERATE = "custom_generate/generate.py"


def say_code(folder: Path, settings: str, name: str, trusted: bool, say: Callable[[str], None]) -> None:
    """Tell which code of `folder` runs, if it is `trusted`; `settings` is the file that names it."""
    files = code_files(folder, settings) if trusted else []
    if files:
        say(f"warning: trust_remote_code is on: Python code of '{name}' runs with all your rights ({', '.join(files)})")


def say_unused_code(folder: Path, settings: str, name: str, used: object, say: Callable[[str], None]) -> None:
    """Tell which code of `folder` does not run, as Transformers has what is `used` in its place."""
    files = code_files(folder, settings)
    if files:
        instead = f"Transformers' own {type(used).__name__} is used"
        say(f"note: '{name}' brings Python code ({', '.join(files)}), which is left alone: {instead}")


def code_files(folder: Path, settings: str) -> list[str]:
    """The Python files that the JSON file `settings` of `folder` names as the model's or tokenizer's own."""
    try:
        written = read_object(folder / settings).get("auto_map")
    except ValueError:
        return []
    classes = written.values() if isinstance(written, dict) else [written]
    names = [name for entry in classes for name in (entry if isinstance(entry, list | tuple) else [entry])]
    files = {f"{str(name).rpartition('.')[0].replace('--', ': ')}.py" for name in names if isinstance(name, str)}
    return sorted(files) + ([_GENERATE] if (folder / _GENERATE).is_file() and settings == "config.json" else [])
