"""The errors that a user can cause, each carrying the place to look at and what to write instead.

DumboError            anything that ends a run with a message instead of a traceback
├── ConfigError       one or more problems in the configuration; all are shown at once, in file order
├── DataError         rows that cannot be used; each problem names file and row
├── PluginError       a plugin failed in one of its hooks
├── RunError          the machine, the hub or the folder said no
│   ├── OutOfMemory       memory is not enough, outside of a step's forward and backward passes
│   ├── TrainingStopped   training cannot go on; the steps that were made are worth keeping
│   └── RunFinished       there is nothing to go on with, and nothing wrong
└── Interrupted       the user stopped the run; what there was is saved
    └── Terminated    the system did, with SIGTERM
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

KeyPath = tuple[str | int, ...]
"""The way from the root of the configuration to a value: `("datasets", 0, "path")`."""


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written. Line and column count from 1; 0 means that the file has no such thing."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, which key, what, and what to write instead (`hints`, a line each)."""

    message: str
    path: KeyPath = ()
    place: Place | None = None
    hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = [str(self.place)] if self.place else []
        if self.path:
            where.append(dotted(self.path))
        first = ": ".join([*where, self.message])
        return "\n".join([first, *(f"    {hint}" for hint in self.hints)])

    def at(self, place: Place | None) -> Problem:
        """The same problem at `place`, unless it has a place already."""
        return self if self.place else replace(self, place=place)

    def cleaned(self, clean: Callable[[str], str]) -> Problem:
        """The same problem with each of its texts as `clean` leaves it, apart from the others: a key that ends in
        `password` and the words behind it are no password."""
        path = tuple(clean(part) if isinstance(part, str) else part for part in self.path)
        place = self.place and replace(self.place, file=clean(self.place.file))
        return Problem(clean(self.message), path, place, tuple(clean(hint) for hint in self.hints))


def dotted(path: KeyPath) -> str:
    """`("datasets", 0, "path")` as users write it: `datasets.0.path`."""
    return ".".join(str(part) for part in path)


def key_path(key: str) -> KeyPath:
    """The inverse of `dotted`: whole numbers are positions in a list."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


class DumboError(Exception):
    """Ends the run with `str(error)` on the error stream and `exit_code`; `--debug` adds the traceback."""

    exit_code = 2


class ConfigError(DumboError):
    """Problems of the configuration. A plugin's `check` raises it through `ConfigError.at`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    @classmethod
    def at(cls, key: str, message: str, *hints: str) -> ConfigError:
        """A single problem of the value at the dotted `key`; its line is filled in when it is shown.

        A reader or format writes `.option` for a key of its own options: it cannot know which entry they belong to.
        """
        return cls([Problem(message, key_path(key), hints=hints)])

    def below(self, path: KeyPath) -> ConfigError:
        """The same error with keys that begin with a dot taken to stand below `path`."""
        below = [
            replace(problem, path=path + problem.path[1:]) if problem.path[:1] == ("",) else problem
            for problem in self.problems
        ]
        return ConfigError(below)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DataError(DumboError):
    """Rows that cannot be used: the first few of them in full, the others counted."""

    shown = 5

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[: self.shown]]
        if len(self.problems) > self.shown:
            lines.append(f"... and {len(self.problems) - self.shown} more rows like these")
        return "\n".join(lines)


class PluginError(DumboError):
    """A plugin raised in one of its hooks; the message names plugin, hook, file and line."""


class RunError(DumboError):
    """Something outside of the configuration is in the way: a folder, a download, a device, a missing package."""


class OutOfMemory(RunError):
    """Memory is not enough outside of the passes of a step: a plugin's own code may be what needed it."""

    def __init__(self, message: str, reason: BaseException) -> None:
        """`reason` is what PyTorch or Python said."""
        self.reason = reason
        super().__init__(message)

    def within(self, plugins: str) -> OutOfMemory:
        """The same error, with the names of the `plugins` in whose code it was."""
        return OutOfMemory(f"{self}\n    this was in the plugin {plugins}", self.reason)


class TrainingStopped(RunError):
    """A step that cannot be made, between two of which the weights are whole: those of the last one can be saved."""


class RunFinished(RunError):
    """A run that is to go on has come to its end already: a job script may ask for that again and again."""

    exit_code = 0


class Interrupted(DumboError):
    """The user stopped the run. Its message says what was kept and where."""

    exit_code = 130


class Terminated(Interrupted):
    """The system asked the run to end (SIGTERM), as schedulers do before they kill it; starting it again goes on."""

    exit_code = 75
    """`EX_TEMPFAIL`: try again."""
