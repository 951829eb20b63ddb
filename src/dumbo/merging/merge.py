"""Merges adapters into their base model: everything is looked at first, then written, proven, and given its name."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.disk import free_space, naming_refusals
from dumbo.errors import Problem, RunError
from dumbo.memory import size
from dumbo.merging.adapters import Adapter, read_adapter, untrained
from dumbo.merging.bases import Base, open_base
from dumbo.merging.companion import Companion
from dumbo.merging.finding import find_adapters, overrides_of, run_of
from dumbo.merging.gathering import gathered
from dumbo.merging.packaging import tokenizer_folder, tokens_of, write_package
from dumbo.merging.places import PLAIN, Places, places_from, plain_places
from dumbo.merging.plan import Plan, plan_merge
from dumbo.merging.proof import Proof, Question
from dumbo.merging.quantized import rounded_weights
from dumbo.merging.writing import total_bytes, write_weights

if TYPE_CHECKING:
    from dumbo.console import Console

_MIB = 2**20
_SPARE = 16 * _MIB
"""Room for what lies beside the weights."""


@dataclass(frozen=True)
class Request:
    """What is to be merged, and how."""

    run: Path
    output: Path | None = None
    adapters: tuple[str, ...] = ()
    dtype: str | None = None
    """A type by safetensors' name; None: each tensor keeps its own."""
    base: str | None = None
    """Another base model than the one that the adapter names."""
    quantized: bool = False
    """Merge onto the base model as training had it, rounded to four or eight bits."""
    proves: bool = True
    trusted: bool = False


@dataclass(frozen=True)
class Merged:
    """What came out."""

    folder: Path
    bytes: int
    changed: int
    tensors: int
    seconds: float
    proof: Proof | None


def merge(request: Request, console: Console) -> Merged:
    """Write the merged model and return where it is.

    Raises:
        RunError: something is missing or does not fit, the disk is full, or the merged model is not what the adapter
            makes of its base model. Nothing is left then.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        return _merge(request, console, stack, began)


def _merge(request: Request, console: Console, stack: contextlib.ExitStack, began: float) -> Merged:
    adapters = _read(request, stack)
    output = _output(request)
    first = adapters[0]
    revision = first.settings.get("revision") if request.base is None else None
    base = open_base(request.base or first.base, revision, first.folder, console.say)
    overrides = overrides_of(run_of(request.run))
    companion: Companion | None = None
    if base.model_type not in PLAIN or overrides or request.trusted:
        companion = stack.enter_context(Companion())
        places = _asked(companion, base, request, overrides, adapters)
    else:
        places = plain_places(base)
    tokenizer = tokenizer_folder([adapter.folder for adapter in adapters], base.folder)
    tokens = tokens_of(tokenizer) if tokenizer != base.folder else None
    simulate = rounded_weights(adapters) if request.quantized else None
    plan = plan_merge(base, adapters, places, dtype=request.dtype, tokens=tokens, simulate=simulate)
    _check_room(plan, output)
    _tell(plan, console)
    if request.proves:
        companion = companion or stack.enter_context(Companion())
    partial = output.with_name(f"{output.name}.partial")
    with naming_refusals(output), _removed_on_failure(partial):
        begin: Callable[[Path], Proof] | None = None
        if companion is not None and request.proves:
            question = Question(plan, places, tokenizer, overrides, request.quantized, request.trusted)
            begin = partial_of(Proof.begin, companion, question)
        proof = _write(plan, partial, console, begin, places, tokenizer)
        partial.rename(output)
    changed = sum(not change.is_only_cast for change in plan.changes.values())
    count = len(plan.base.tensors) + len(plan.added)
    return Merged(output, total_bytes(plan), changed, count, time.monotonic() - began, proof)


def _read(request: Request, stack: contextlib.ExitStack) -> list[Adapter]:
    found = find_adapters(request.run, request.adapters)
    adapters = [read_adapter(stack.enter_context(gathered(folder)), weight) for folder, weight in found]
    for adapter in adapters:
        if untrained(adapter):
            message = f"nothing was trained in '{adapter.folder}': all that it adds is zero"
            raise _error(message, "the merged model would be the base model")
    names = list(dict.fromkeys(adapter.base for adapter in adapters)) if request.base is None else []
    if len(names) > 1:
        message = f"the adapters have different base models: {' and '.join(names)}"
        raise _error(message, "if these are copies of one model, name it with --base FOLDER")
    return adapters


def _output(request: Request) -> Path:
    """The folder to write, which must not exist."""
    output = request.output or (run_of(request.run) or request.run) / "merged"
    if output.exists() or output.is_symlink():
        hint = "remove it, or name another folder with --output DIR"
        raise _error(f"'{output}' exists already, and nothing is overwritten", hint)
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise _error(f"'{output}' cannot be made: '{parent}' is a file")
    return output


def _asked(
    companion: Companion, base: Base, request: Request, overrides: Mapping[str, Any], adapters: Sequence[Adapter]
) -> Places:
    """Ask Transformers where the weights lie: this kind of model may have other names in memory than on disk."""
    answer = companion.ask(
        "names",
        what="Transformers cannot tell the names of the base model's weights",
        folder=str(base.folder),
        shapes={name: tensor.shape for name, tensor in base.tensors.items()},
        overrides=overrides,
        trusted=request.trusted,
    )
    places = places_from(answer)
    for name, reason in answer["reasons"].items():
        for adapter in adapters:
            if any(name.startswith(f"{module}.") for module in adapter.parts) or name in adapter.whole:
                raise _error(f"{name}, which '{adapter.folder}' changes, cannot be merged: {reason}")
    # Names of an older Transformers are those on disk.
    pieces = {**{name: found for name, found in plain_places(base).pieces.items() if name not in places.pieces}}
    shapes = {name: base.tensors[found[0].tensor].shape for name, found in pieces.items()}
    return replace(
        places,
        pieces={**pieces, **places.pieces},
        shapes={**shapes, **places.shapes},
        config=places.config if overrides else None,
    )


def _check_room(plan: Plan, output: Path) -> None:
    needed, free = total_bytes(plan) + _SPARE, free_space(output)
    if free < needed:
        message = f"the merged model needs {size(needed)}, and '{output.parent}' has room for {size(free)}"
        raise _error(message, "make room, or name a folder on another disk with --output DIR")


def _tell(plan: Plan, console: Console) -> None:
    changed = sum(not change.is_only_cast for change in plan.changes.values())
    names = ", ".join(f"'{adapter.folder}'" for adapter in plan.adapters)
    console.say(f"{names} into '{plan.base.folder}': {changed} of {len(plan.base.tensors)} tensors change")
    for line in plan.said:
        console.say(line)


def _write(
    plan: Plan,
    partial: Path,
    console: Console,
    begin: Callable[[Path], Proof] | None,
    places: Places,
    tokenizer: Path,
) -> Proof | None:
    """Write everything into `partial` while the other process computes what must come out; then compare."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    proof = begin(partial) if begin is not None else None
    amounts = _ticks(write_weights(plan, partial))
    for _ in console.track(amounts, "merging, MiB", max(1, total_bytes(plan) // _MIB)):
        pass
    write_package(plan, partial, places.config, tokenizer)
    return proof.finished() if proof is not None else None


def _ticks(amounts: Iterable[int]) -> Iterator[None]:
    """One item for each whole MiB of the amounts."""
    rest = 0
    for amount in amounts:
        rest += amount
        while rest >= _MIB:
            rest -= _MIB
            yield None


@contextlib.contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
