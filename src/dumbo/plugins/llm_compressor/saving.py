"""Writes the files of a model without their zeros, or with them again, under another name until they are whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dumbo.bridge.zero_bitmasks import Found, is_smaller, opened, packed, whole_tensors
from dumbo.checkpoint.folder import put_in_place
from dumbo.errors import Problem, RunError
from dumbo.left_out_zeros import PARTS, SECTION, without_section
from dumbo.memory import size
from dumbo.merging.bases import INDEX_FILE, SINGLE_FILE, stored_tensors

_CONFIG = "config.json"


@dataclass
class Written:
    """What became of a model's files."""

    layers: list[str]
    """Those whose weights are without their zeros on one side."""
    tensors: int = 0
    zeros: int = 0
    values: int = 0
    """Of all tensors, with the zeros."""
    before: int = 0
    """Bytes of the weights."""
    after: int = 0

    @property
    def share(self) -> float:
        """How much of the model is zero."""
        return self.zeros / max(self.values, 1)


def leave_zeros_out(folder: Path) -> Written:
    """Replace the model in `folder` by itself without the zeros of its matrices, wherever that is smaller. What is
    read back of it has every bit of the model before the one takes the place of the other.

    Raises:
        RunError: it cannot be written, or nothing of it would be smaller. The model stays as it was.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    with _removed_on_failure(partial, lambda why: _not_left_out(folder, why)):
        written = _write(folder, partial, whole_tensors(folder), _without)
        if not written.layers:
            raise _not_left_out(folder, "no matrix is smaller without them")
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        _write_json(partial / _CONFIG, {**config, SECTION: _section(written)})
        _check_equal(folder, partial)
        put_in_place(partial)
    return written


def put_zeros_in(folder: Path, output: Path) -> Written:
    """Write the model in `folder`, whose zeros are left out, to `output` as any other.

    Raises:
        RunError: it is damaged, or cannot be written; there is no `output` then.
    """
    partial = output.with_name(f"{output.name}.partial")
    with _removed_on_failure(partial, lambda why: RunError(f"'{output}' could not be written: {why}")):
        written = _write(folder, partial, whole_tensors(folder), lambda found, _: {found.name: found.value})
        _write_json(partial / _CONFIG, without_section(json.loads((folder / _CONFIG).read_text(encoding="utf-8"))))
        put_in_place(partial)
    return written


def told(written: Written) -> str:
    """How much smaller the files are, in a line."""
    sizes = f"{size(written.after)} of weights instead of {size(written.before)}"
    return f"{sizes}: the zeros of {len(written.layers)} of {written.tensors} are left out of the files"


def _without(found: Found, taken: frozenset[str]) -> dict[str, Tensor]:
    """The tensor, or what stands for it without its zeros. `taken`: names that other tensors have."""
    layer, _, last = found.name.rpartition(".")
    names = {part: f"{layer}.{part}" for part in PARTS}
    if not layer or last != "weight" or taken & set(names.values()) or not is_smaller(found.value):
        return {found.name: found.value}
    return {names[part]: value for part, value in packed(found.value).items()}


def _write(
    folder: Path, partial: Path, tensors: Iterable[Found], form: Callable[[Found, frozenset[str]], dict[str, Tensor]]
) -> Written:
    """Write every file of `folder` but its configuration into `partial`, one file of weights in memory at a time."""
    stored, notes = stored_tensors(folder)
    names = frozenset(stored)
    written = Written(layers=[], before=sum(tensor.size for tensor in stored.values()))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for file, of_file in _files(tensors):
        held: dict[str, Tensor] = {}
        for found in of_file:
            formed = form(found, names)
            if set(formed) != {found.name} or found.name not in names:
                written.layers.append(found.name.removesuffix(".weight"))
            written.tensors += 1
            written.values += found.value.numel()
            written.zeros += int((found.value == 0).sum())
            held |= formed
        save_file(held, partial / file, metadata=notes)
        weight_map |= dict.fromkeys(held, file)
        written.after += sum(value.numel() * value.element_size() for value in held.values())
    if (folder / INDEX_FILE).is_file() and not (folder / SINGLE_FILE).is_file():
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        index |= {"metadata": {**index.get("metadata", {}), "total_size": written.after}, "weight_map": weight_map}
        _write_json(partial / INDEX_FILE, index)
    _copy_others(folder, partial, {_CONFIG, INDEX_FILE, *(tensor.file.name for tensor in stored.values())})
    return written


def _files(tensors: Iterable[Found]) -> Iterator[tuple[str, Iterable[Found]]]:
    """The tensors of one file after the other, which is the order that they come in."""
    return groupby(tensors, key=lambda found: found.file)


def _copy_others(folder: Path, partial: Path, done: set[str]) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, partial / path.name)
        elif path.name not in done:
            shutil.copy2(path, partial / path.name)


def _section(written: Written) -> dict[str, Any]:
    """What compressed-tensors 0.14 and before it wrote into a configuration, but for sections of later versions."""
    from compressed_tensors.config import BitmaskConfig

    sparsity = BitmaskConfig(targets=sorted(written.layers), ignore=[], global_sparsity=round(written.share, 6))
    return {
        "quant_method": "compressed-tensors",
        "version": version("compressed-tensors"),
        "sparsity_config": sparsity.model_dump(),
    }


def _write_json(file: Path, tree: Any) -> None:
    file.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_equal(folder: Path, partial: Path) -> None:
    """Raise RunError where the models differ in a bit. One weight of each is in memory at a time."""
    with opened(folder) as mine, opened(partial) as other:
        for name in sorted(mine.files.keys() | other.files.keys()):
            is_in_both = name in mine.files and name in other.files
            if not is_in_both or not _same(mine.read(name), other.read(name)):
                raise _not_left_out(folder, f"{name} is another one when it is read back")


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    # Bytes, not values: NaN is not equal to itself, and -0 is to 0.
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


@contextmanager
def _removed_on_failure(partial: Path, refused: Callable[[str], RunError]) -> Iterator[None]:
    """Leave nothing of `partial` where something fails; what the disk refuses is told as `refused`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise refused(getattr(error, "strerror", None) or str(error)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _not_left_out(folder: Path, why: str) -> RunError:
    message = f"the zeros of the model could not be left out: {why}"
    return RunError(str(Problem(message, hints=(f"'{folder}' holds all of it, with its zeros",))))
