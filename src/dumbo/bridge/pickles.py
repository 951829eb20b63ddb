"""Weights in pickles: which files of a folder hold them, and whether the user has named them to be read."""

from __future__ import annotations

import fnmatch
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dumbo.errors import Problem, RunError

MODEL, ADAPTER = "pytorch_model.bin", "adapter_model.bin"
"""The names that Transformers and PEFT give to pickles."""
_INDEX = "model.safetensors.index.json"
SAFETENSORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {MODEL: ("model.safetensors", _INDEX), ADAPTER: ("adapter_model.safetensors",)}
)
"""What goes before them."""
_GLOBAL = re.compile(r"nsupported (?:global: )?GLOBAL (?P<name>\S+)(?P<blocked> whose module \S+ is blocked)?")
"""PyTorch's words for what a pickle asks Python for; it blocks modules that could run any program."""
_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DANGER = "which can run any code when they are opened"
_CONVERT = "convert them where that does no harm: load the model there, then save_pretrained(NEW_FOLDER)"
_SHOWN = 4


@dataclass(frozen=True)
class Permission:
    """The pickles that may be read, and where that is written: an option or a flag."""

    names: tuple[str, ...]
    written: str
    """`model.allow_pickle: [NAMES]`, with the word NAMES."""

    def covers(self, name: str) -> bool:
        """Whether a file of this name may be read; `pytorch_model-*.bin` names several."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.names)

    def covers_any(self, names: Collection[str]) -> bool:
        """Whether one of `names` may be read."""
        return any(self.covers(name) for name in names)

    def to_write(self, names: Collection[str]) -> str:
        """What to write to have `names` read."""
        return self.written.replace("NAMES", ", ".join(names))


def pickles_to_read(folder: Path, permission: Permission, kind: str = MODEL) -> tuple[str, ...]:
    """The pickles that the weights in `folder` are read from; none where there are safetensors, or no weights at all.

    Raises:
        PickleRefused: there is a pickle that is not permitted.
        RunError: the index of the files cannot be read or calls pickles safetensors, or a file holds more than tensors.
    """
    if any((folder / name).is_file() for name in SAFETENSORS[kind]):
        if kind == MODEL:
            _check_index(folder, permission)
        return ()
    needed = _needed(folder, kind)
    refused = [name for name in needed or _others(folder, kind) if not permission.covers(name)]
    if refused:
        message = f"has weights only as pickles ({_listed(refused)}), {_DANGER}"
        hints = [_CONVERT]
        if needed:
            names = refused if len(refused) == 1 else [f"'{kind.removesuffix('.bin')}-*.bin'"]
            hints.append(f"or have their tensors read and nothing else: {permission.to_write(names)}")
        raise PickleRefused(message, *hints)
    for name in needed:
        check_pickle(folder / name)
    return needed


class PickleRefused(ValueError):
    """The arguments are a message, which goes on behind the name of the folder, and hints."""


def _others(folder: Path, kind: str) -> list[str]:
    """Pickles under names that nothing here would read."""
    return sorted(file.name for pattern in _PATTERNS for file in folder.glob(pattern)) if kind == MODEL else []


def check_pickle(file: Path) -> None:
    """Make sure that `file` holds tensors and nothing that would run: it is read without running anything.

    Raises:
        RunError: it is not there, no pickle of tensors, or it asks for code.
    """
    from pickle import UnpicklingError

    import torch

    if not file.is_file():
        raise RunError(f"the weight file {file} is missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other protocols than PyTorch's own
            torch.load(file, map_location="meta", weights_only=True)
    except UnpicklingError as error:
        wanted = "; ".join(dict.fromkeys(_wanted(error)))
        what = f"holds more than tensors: {wanted}" if wanted else "is no file of tensors"
        hint = "such a file can run any code, and is never read: get the weights as safetensors"
        raise RunError(str(Problem(f"{file} {what}", hints=(hint,)))) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{file} is damaged or incomplete ({first}); copy or download it again") from error


def _wanted(error: Exception) -> Iterator[str]:
    """What the file asks Python for, in PyTorch's words."""
    for found in _GLOBAL.finditer(str(error)):
        yield f"it wants to run {found['name']}" if found["blocked"] else f"it asks for {found['name']}"


def _check_index(folder: Path, permission: Permission) -> None:
    """Make sure that an index of safetensors names no pickles; what else is wrong with it is for whoever reads it."""
    index = folder / _INDEX
    if (folder / "model.safetensors").is_file():
        return
    try:
        named = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    pickles = [name for name in named if any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS)]
    if not pickles:
        return
    hints = [_CONVERT]
    if pickles == named:
        names = pickles if len(pickles) == 1 else [f"'*{Path(pickles[0]).suffix}'"]
        to_write = permission.to_write(names)
        hints.append(f"or name it {MODEL}.index.json, and have their tensors read and nothing else: {to_write}")
    message = f"{index} is an index of safetensors and names pickles ({_listed(pickles)}), {_DANGER}"
    raise RunError(str(Problem(message, hints=tuple(hints))))


def _needed(folder: Path, kind: str) -> tuple[str, ...]:
    """The files that would be read: one, or those of its index."""
    if (folder / kind).is_file():
        return (kind,)
    index = folder / f"{kind}.index.json"
    if not index.is_file():
        return ()
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{index} cannot be read: it must map weights to files under 'weight_map'") from error
    outside = [name for name in names if Path(str(name)).name != name]
    if outside:
        raise RunError(f"{index} names a file outside of its folder: {outside[0]}")
    return tuple(names)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
