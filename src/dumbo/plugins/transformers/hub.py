"""Brings the files of a model or tokenizer onto this machine, all from one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError

from dumbo.bridge.hub_errors import Repository, explain
from dumbo.errors import DumboError
from dumbo.plugins.transformers.folders import as_folder, near_folders
from dumbo.plugins.transformers.weights import INDEX_FILE, SINGLE_FILE, shard_names

DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
ELSEWHERE = ("*/*.json", "*/*.model", "*/*.txt")
"""Files of other tools in subfolders (ONNX, checkpoints); chat templates of a subfolder are wanted."""


@dataclass(frozen=True)
class Source:
    """Files on this machine, and how Transformers is told to find them."""

    name: str
    folder: Path
    commit: str | None = None
    """Commit of a hub repository; None for a local folder."""
    pickles: tuple[str, ...] = ()
    """The files that its weights are read from, where they are no safetensors."""

    def load_kwargs(self, trusted: bool) -> dict[str, Any]:
        """Arguments for `from_pretrained` and its like: what was fetched, and nothing newer.

        The hub's name is kept rather than the cache folder: Transformers has exceptions for some repositories by name.
        """
        if self.commit is None:
            return {}
        # Trusted code may lie in yet another repository, which is fetched when it is imported.
        return {"revision": self.commit, "local_files_only": not trusted}


def fetch(
    name: str, revision: str | None, key: str, *, weights: bool, trusted: bool, pickles: tuple[str, ...] = ()
) -> Source:
    """Return the files of `name`, a folder or hub name; `weights` with its safetensors, and with the `pickles` that are
    named, `trusted` with its code.

    Raises RunError, for the option `key`, where the hub says no or cannot be reached.
    """
    folder = as_folder(name)
    if folder is not None:
        return Source(str(folder), folder)
    wanted = [*DESCRIPTION, *(["*.py"] if trusted else []), *([SINGLE_FILE, *pickles] if weights else [])]
    try:
        folder = _snapshot(name, revision, wanted, weights)
        shards = shard_names(folder) if weights else []
        if shards:
            snapshot_download(name, revision=folder.name, allow_patterns=shards)
    except DumboError:
        raise
    except Exception as error:
        raise explain(error, Repository("model", name, revision), key, near=near_folders(Path(name))) from error
    return Source(name, folder, folder.name)


def _snapshot(name: str, revision: str | None, wanted: list[str], weights: bool) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=list(ELSEWHERE)))
    except IncompleteSnapshotError as error:
        # Without a network: other programs cache the files that they need, not all that we would like to have.
        folder = Path(error.snapshot_path)
        described = any(
            (folder / file).is_file() for file in ("config.json", "tokenizer.json", "tokenizer_config.json")
        )
        weighty = (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()
        if described and (weighty or not weights):
            return folder
        raise
