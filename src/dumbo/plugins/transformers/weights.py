"""Looks at weight files before they are loaded, and at what Transformers reports afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from dumbo.errors import RunError
from dumbo.plugins.transformers.folders import read_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHOWN = 4


def shard_names(folder: Path) -> list[str]:
    """The files that the index in `folder` lists; empty where one file holds all weights. RunError for a bad index."""
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file() or not index.is_file():
        return []
    try:
        names = sorted(set(read_object(index)["weight_map"].values()))
    except ValueError as error:
        raise RunError(str(error)) from error
    except (KeyError, AttributeError) as error:
        raise RunError(f"{index} has no 'weight_map' from weights to files") from error
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise RunError(f"{index} names a file outside of its folder: {outside[0]}")
    return names


def missing_weights(folder: Path) -> tuple[str, tuple[str, ...]] | None:
    """Why `folder` has no safetensors weights at all, with hints; None if it has."""
    if (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file():
        return None
    others = sorted(file.name for pattern in ("*.gguf", "*.safetensors") for file in folder.glob(pattern))
    if others:
        message = f"has no {SINGLE_FILE} or {INDEX_FILE}, only {listed(others)}"
        return message, ("it takes the layout that Transformers' save_pretrained writes",)
    return f"has no weights ({SINGLE_FILE})", ()


def check_files(folder: Path) -> None:
    """Make sure that every weight file is there and whole; RunError names the first that is not."""
    names = shard_names(folder) or [SINGLE_FILE]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RunError(f"{folder}: {len(missing)} of {len(names)} weight files are missing: {listed(missing)}")
    for name in names:
        check_file(folder / name)


def check_file(file: Path) -> None:
    """Make sure that `file` is a whole safetensors file: its header fits its size."""
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            raise RunError(f"{file} is a Git LFS pointer, not the weights; run 'git lfs pull' in its folder")
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        again = "copy or download it again"
        raise RunError(f"{file} is damaged or incomplete ({error}); {again}") from error


def loading_problem(info: Mapping[str, Any], overridden: bool) -> tuple[str, tuple[str, ...]] | None:
    """What is wrong with a model that was loaded with report `info`: weights that are random now, and hints."""
    if info["mismatched_keys"]:
        shapes = [f"{name} is {_shape(has)}, not {_shape(needs)}" for name, has, needs in info["mismatched_keys"]]
        hint = (
            "the overrides must keep the shapes of the weights"
            if overridden
            else "config.json does not fit the weights"
        )
        return f"{len(shapes)} weights have other shapes than the model: {listed(sorted(shapes))}", (hint,)
    missing = sorted(info["missing_keys"])
    if missing:
        message = f"the checkpoint lacks {len(missing)} weights, which would stay random: {listed(missing)}"
        return message, tuple(_missing_hints(missing, overridden))
    if info.get("error_msgs"):
        return f"weights cannot be loaded: {listed([str(text) for text in info['error_msgs']])}", ()
    return None


def say_unexpected(info: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Tell which weights of the checkpoint the model has no place for."""
    unused = sorted(info["unexpected_keys"])
    if unused:
        say(f"model: {len(unused)} weights of the checkpoint are not used: {listed(unused)}")


def _missing_hints(missing: Collection[str], overridden: bool) -> Iterable[str]:
    if any("head" in name or "embed_out" in name for name in missing):
        yield "it was saved without a language-modelling head; start from the whole model"
    if overridden:
        yield "model.config_overrides may ask for more weights than the checkpoint has"


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(str(size) for size in sizes)


def listed(names: Collection[str]) -> str:
    """The first few of `names`, and how many more there are."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
