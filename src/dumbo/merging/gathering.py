"""Gathers an adapter from a sharded checkpoint (`torch.distributed.checkpoint`, as FSDP writes), tensor by tensor."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dumbo.errors import Problem, RunError
from dumbo.merging.adapters import KEY, SETTINGS, WEIGHTS
from dumbo.merging.tensor_files import Planned, aligned, header_of

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

METADATA = ".metadata"
_SAFE = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_NAMES = frozenset(
    {("torch", "Size"), ("torch._utils", "_rebuild_tensor_v2"), ("torch.serialization", "_get_layout")}
    | {("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("pathlib._local", "PosixPath")}
    | {("collections", "OrderedDict"), ("builtins", "set"), ("builtins", "frozenset")}
)
"""What the list of tensors in such a checkpoint consists of, apart from the classes of the modules above."""


def sharded_in(folder: Path) -> Path | None:
    """The sharded checkpoint in `folder`, or in a folder of it; None where there is none."""
    places = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    return next((place for place in places if (place / METADATA).is_file()), None)


@contextlib.contextmanager
def gathered(folder: Path) -> Iterator[Path]:
    """A folder with the adapter of `folder` as PEFT would have saved it: `folder` itself where it is so, else one of
    the same name that is made of its sharded checkpoint and goes at the end.

    Raises:
        RunError: the checkpoint is damaged, or has no adapter in it.
    """
    sharded = None if (folder / WEIGHTS).is_file() else sharded_in(folder)
    if sharded is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dumbo-merge-") as name:
        made = Path(name) / folder.name
        made.mkdir()
        shutil.copyfile(folder / SETTINGS, made / SETTINGS)
        for file in folder.iterdir():
            if file.is_file() and file.name != SETTINGS and file.suffix in (".json", ".jinja", ".model", ".txt"):
                shutil.copyfile(file, made / file.name)
        _gather(sharded, made / WEIGHTS)
        yield made


def _gather(sharded: Path, file: Path) -> None:
    """Write the adapter's tensors in the checkpoint as a safetensors file; one of them is in memory at a time."""
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = _reader(sharded)
    try:
        found = reader.read_metadata().state_dict_metadata
    except (pickle.UnpicklingError, EOFError, OSError, AttributeError) as error:
        raise _error(f"{sharded / METADATA} cannot be read: {error}", "copy the checkpoint again") from error
    names = {key: _plain(key) for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)}
    wanted = {key: name for key, name in names.items() if name is not None}
    if not wanted:
        raise _error(f"the sharded checkpoint '{sharded}' has no adapter in it, only whole weights")
    entries: dict[str, Any] = {key: found[key] for key in wanted}
    planned = {
        name: Planned(name, _code(entries[key].properties.dtype), tuple(entries[key].size))
        for key, name in wanted.items()
    }
    header, starts = header_of(aligned(list(planned.values())), {"format": "pt"})
    with file.open("wb") as stream:
        stream.write(header)
        for key, name in wanted.items():
            state = {key: torch.empty(entries[key].size, dtype=entries[key].properties.dtype)}
            try:
                load(state, storage_reader=_reader(sharded), no_dist=True)
            except CheckpointException as error:  # It wraps whatever went wrong.
                reason = next(iter(error.failures.values()))[0]
                message = f"{key} cannot be read from '{sharded}': {reason}"
                raise _error(message, "copy the checkpoint again") from error
            stream.seek(starts[name])
            stream.write(state[key].contiguous().view(torch.uint8).numpy().tobytes())


def _reader(sharded: Path) -> FileSystemReader:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    class Reader(FileSystemReader):
        """Its list of tensors is a pickle, which could run any code: only what such a list consists of is made."""

        def read_metadata(self, *args_: Any, **options: Any) -> Metadata:
            with (sharded / METADATA).open("rb") as stream:
                metadata: Metadata = _Safe(stream).load()
            if getattr(metadata, "storage_meta", None) is None:
                metadata.storage_meta = StorageMeta()
            metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
            return metadata

    return Reader(sharded)


class _Safe(pickle.Unpickler):
    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name, if it is one of those that a list of tensors has."""
        import torch

        is_number = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.layout)
        if module in _SAFE or (module, name) in _NAMES or is_number:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no list of tensors needs")


def _plain(key: str) -> str | None:
    """The name that PEFT gives this tensor of an adapter in its file; None for one of the base model."""
    name = key.removeprefix("model.") if key.startswith("model.base_model.") else key
    match = KEY.fullmatch(name)
    if match is not None:
        # A magnitude is saved without the last part of its name.
        ending = "" if match["role"] == "lora_magnitude_vector" else match["kind"] or ""
        return f"{match['module']}.{match['role']}{ending}"
    if ".modules_to_save." in name:
        outer, _, inner = name.partition(".modules_to_save.")
        return f"{outer}.{inner.partition('.')[2]}"
    return None


def _code(dtype: Any) -> str:
    from dumbo.merging.numbers import NAMES

    return NAMES[str(dtype).removeprefix("torch.")]


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
