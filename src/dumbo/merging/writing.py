"""Writes the files of the merged model, tensor by tensor: what changes is computed, all else is copied as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dumbo.errors import Problem, RunError
from dumbo.merging.changes import Change
from dumbo.merging.numbers import ROUNDOFF, is_finite, rounded, torch_name, wide_type
from dumbo.merging.plan import Plan
from dumbo.merging.tensor_files import Planned, StoredTensor, aligned, header_of, read_at

_PIECE = 2**24
"""Bytes that are copied between two looks at the progress."""
_THREADS = 4
_CHECKED = 8
"""Rows of each changed tensor that are read back and computed once more."""


@dataclass(frozen=True)
class _Job:
    """A tensor, and where in which file it goes."""

    target: Planned
    source: StoredTensor
    change: Change | None
    file: Path
    start: int


def total_bytes(plan: Plan) -> int:
    """How many bytes the weights of the merged model will have."""
    return sum(tensor.size for tensors in _layout(plan).values() for tensor in tensors)


def write_weights(plan: Plan, folder: Path) -> Iterator[int]:
    """Write every file of weights into `folder`, giving the bytes that were written since the last time.

    Raises:
        RunError: a sum is not finite in its type, or what was written is not what was computed.
    """
    for file, tensors in _layout(plan).items():
        header, starts = header_of(tensors, {"format": "pt", **plan.base.notes})
        path = folder / file
        with path.open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + sum(tensor.size for tensor in tensors))
        yield from _in_threads([_job(plan, tensor, path, starts[tensor.name]) for tensor in tensors])


def index_of(plan: Plan) -> dict[str, Any] | None:
    """What the index says: total size, and the file of each tensor. None where there is one file."""
    layout = _layout(plan)
    if list(layout) == ["model.safetensors"]:
        return None
    weight_map = {tensor.name: file for file, tensors in layout.items() for tensor in tensors}
    return {"metadata": {"total_size": total_bytes(plan)}, "weight_map": dict(sorted(weight_map.items()))}


def _layout(plan: Plan) -> Mapping[str, Sequence[Planned]]:
    """File -> its tensors, in the files and the order of the base model."""
    files: dict[str, list[Planned]] = {}
    for name, stored in plan.base.tensors.items():
        change = plan.changes.get(name)
        target = change.target if change is not None else Planned(name, stored.dtype, stored.shape)
        files.setdefault(stored.file.name, []).append(target)
    for name, beside in plan.added.items():
        files[plan.base.tensors[beside].file.name].append(plan.changes[name].target)
    return {file: aligned(tensors) for file, tensors in files.items()}


def _job(plan: Plan, target: Planned, file: Path, start: int) -> _Job:
    change = plan.changes.get(target.name)
    source = change.source if change is not None else plan.base.tensors[target.name]
    return _Job(target, source, change, file, start)


def _in_threads(jobs: Sequence[_Job]) -> Iterator[int]:
    """Tensors are independent of each other, and NumPy computes without Python's lock."""
    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        waiting = iter(jobs)
        running: set[Future[int]] = set()
        try:
            for job in waiting:
                running.add(pool.submit(_write, job))
                if len(running) > threads:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            for future in running:
                yield future.result()
        except BaseException:
            for future in running:
                future.cancel()
            raise


def _write(job: _Job) -> int:
    with job.file.open("r+b", buffering=0) as stream:
        if job.change is None:
            _copy(job.source, stream.fileno(), job.start)
        else:
            _compute(job.change, stream.fileno(), job.start)
            _check(job.change, stream.fileno(), job.start, job.file)
    return job.target.size


def _copy(source: StoredTensor, target: int, start: int) -> None:
    """The bytes of a tensor, by the system where it can: they do not go through this process then."""
    with source.file.open("rb", buffering=0) as stream:
        done, by_system = 0, hasattr(os, "copy_file_range")
        while done < source.size:
            count = min(_PIECE, source.size - done)
            if by_system:
                try:
                    copied = os.copy_file_range(stream.fileno(), target, count, source.start + done, start + done)
                except OSError as error:
                    if error.errno in _NOT_POSSIBLE:
                        by_system = False
                        continue
                    raise
                if copied:
                    done += copied
                    continue
                by_system = False
            _write_at(target, read_at(stream.fileno(), source.start + done, count, source.file), start + done)
            done += count


def _not_possible() -> frozenset[int]:
    import errno

    return frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


_NOT_POSSIBLE = _not_possible()
"""What systems say that cannot copy between these two files themselves."""


def _compute(change: Change, target: int, start: int) -> None:
    dtype = change.target.dtype
    block = change.open(wide_type(dtype))
    at = start
    for begin, end in change.blocks():
        stored = rounded(block(begin, end), dtype)
        if not is_finite(stored, dtype):
            raise _not_finite(change)
        raw = stored.data.cast("B")
        _write_at(target, raw, at)
        at += len(raw)


def _write_at(target: int, raw: bytes | memoryview, start: int) -> None:
    written = os.pwrite(target, raw, start)
    while written < len(raw):  # A disk that gets full takes a part of what it is given.
        written += os.pwrite(target, raw[written:], start + written)


def _check(change: Change, target: int, start: int, file: Path) -> None:
    """Read some rows back and compute them once more, in float64: what was written is off by one rounding at most.

    The sum in float32 is off itself by a few roundings of it, relative to the largest of its terms.
    """
    import numpy as np

    block, columns = change.open(np.float64), change.columns
    rows = np.unique(np.linspace(0, change.rows - 1, min(_CHECKED, change.rows)).astype(int))
    written = StoredTensor(
        change.target.name, change.target.dtype, change.target.shape, file, start, change.target.size
    )
    for row in map(int, rows):
        wanted = block(row, row + 1)
        found = written.read_rows(row, row + 1, np.float64, columns)
        scale = np.abs(wanted).max(initial=0) if wanted.size else 0
        tolerance = ROUNDOFF[change.target.dtype] * np.abs(wanted) + _sum_error(change) * scale + _SMALLEST
        if not (np.abs(found - wanted) <= tolerance).all():
            worst = float(np.abs(found - wanted).max())
            message = f"{change.target.name} was written wrong: row {row} is off by {worst:.3g}"
            raise RunError(str(Problem(message, hints=("the disk or the memory of this machine may be damaged",))))


_SMALLEST = 2.0**-24
"""The spacing of float16 near zero, where relative errors mean nothing."""


def _sum_error(change: Change) -> float:
    """Of sums in float32, relative to the largest number in a row: dozens of roundings, and hundreds in a length."""
    if change.target.dtype == "F64":
        return 2.0**-40
    return (2048 if change.magnitude is not None else 256) * ROUNDOFF["F32"]


def _not_finite(change: Change) -> RunError:
    name = torch_name(change.target.dtype)
    message = f"{change.target.name} has numbers that are not finite in {name} once the adapter is added"
    hint = "write --dtype bfloat16 or float32" if name == "float16" else "the adapter, or the base model, is broken"
    return RunError(str(Problem(message, hints=(hint,))))
