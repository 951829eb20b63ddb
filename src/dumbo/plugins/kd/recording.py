"""What a teacher said of a training set, in files that lie beside it: written shard by shard, mapped to be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.data.columns import Columns, ColumnType
from dumbo.data.fingerprints import digest
from dumbo.errors import ConfigError
from dumbo.redact import redact_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from dumbo.data.dataset import TokenDataset
    from dumbo.plugins.kd.options import KdOptions

IDS, LOGPROBS = "teacher_ids", "teacher_logprobs"
COLUMNS = frozenset({IDS, LOGPROBS})
"""Columns beside the tokens: row i has the teacher's likeliest tokens at the place of token i + 1."""

_KEY = "trainer.kd.recorded.folder"
_FACTS = "recording.json"
_FORMAT = 1
_AGAIN = "record it again: dumbo teacher-logprobs CONFIG"
SHARD_TOKENS = 1 << 20
"""Tokens of a shard, about: what a stopped recording loses at most."""


def column_types(top_k: int, dtype: str) -> dict[str, ColumnType]:
    """The columns of `top_k` tokens at each place, with log-probabilities of this type."""
    import numpy as np

    logs = ColumnType(np.dtype(dtype).str, (top_k,), -float("inf"))
    return {IDS: ColumnType(np.dtype(np.int32).str, (top_k,)), LOGPROBS: logs}


def tokens_digest(dataset: TokenDataset) -> str:
    """Stands for the tokens and labels of all rows, in their order, whatever is beside them."""
    return replace(dataset, columns=()).digest()


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Stands for what each token id is; which one pads does not matter."""
    return digest(sorted((name, index) for name, index in tokenizer.get_vocab().items() if name != tokenizer.pad_token))


def teacher_name(options: KdOptions) -> str | None:
    """Who is recorded by these options: a folder in full, a hub name, or an address, and its model if that is named."""
    if options.teacher is not None:
        folder = Path(options.teacher.path).expanduser()
        return redact_text(str(folder.resolve()) if folder.exists() else options.teacher.path)
    if options.server is not None:
        address = options.server.url.rstrip("/").removesuffix("/v1")
        return redact_text(address if options.server.model is None else f"{address} ({options.server.model})")
    return None


def is_same_teacher(one: str, other: str) -> bool:
    """Whether two names are of one teacher; a folder may be there no more."""
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


@dataclass(frozen=True)
class RecordingFacts:
    """What decides on the contents of a recording."""

    tokens: str
    """Digest of the training set's tokens and labels."""
    vocabulary: str
    """Digest of the tokenizer's vocabulary."""
    teacher: str
    """As `teacher_name` says it."""
    top_k: int
    dtype: str
    temperature: float
    shard_tokens: int

    def difference(self, other: RecordingFacts) -> str:
        """What is not the same, in words; empty where all is."""
        names = {
            "tokens": "other rows, or rows of other tokens",
            "vocabulary": "another tokenizer",
            "teacher": f"another teacher ({other.teacher})",
            "top_k": f"another top_k ({other.top_k})",
            "dtype": f"another dtype ({other.dtype})",
            "temperature": f"another temperature ({other.temperature:g})",
            "shard_tokens": "files of another size",
        }
        changed = [name for name in names if getattr(self, name) != getattr(other, name)]
        if is_same_teacher(self.teacher, other.teacher):
            changed = [name for name in changed if name != "teacher"]
        return names[changed[0]] if changed else ""


@dataclass(frozen=True)
class Recording:
    """The files of a recording in `folder`."""

    folder: Path
    facts: RecordingFacts
    types: Mapping[str, ColumnType]
    is_checked: bool = False
    """Whether it is whole, and the teacher said the same when it was asked again."""

    @classmethod
    def begin(cls, folder: Path, facts: RecordingFacts) -> Recording:
        """Begin a recording, or go on with one of the same facts.

        Raises:
            ConfigError: there is another one in the folder, or it cannot be written to.
        """
        types = column_types(facts.top_k, facts.dtype)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / _FACTS).exists():
                found = cls.open(folder)
                other = facts.difference(found.facts)
                if other:
                    hint = f"name another folder, or remove {folder}"
                    raise ConfigError.at(_KEY, f"there is a recording in {folder} already, of {other}", hint)
                return found
            return cls(folder, facts, types).marked(is_checked=False)
        except OSError as error:
            raise ConfigError.at(_KEY, f"{folder} cannot be written to: {error.strerror or error}") from error

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """The recording in a folder.

        Raises:
            ConfigError: there is none.
        """
        try:
            found = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if found.pop("format") != _FORMAT:
                raise ConfigError.at(_KEY, f"{folder} was recorded by another version of dumbo", _AGAIN)
            is_checked = bool(found.pop("is_checked", False))
            facts = RecordingFacts(**found)
        except OSError as error:
            raise ConfigError.at(_KEY, f"there is no recording in {folder}", _AGAIN) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError.at(_KEY, f"{folder / _FACTS} cannot be read", _AGAIN) from error
        return cls(folder, facts, column_types(facts.top_k, facts.dtype), is_checked)

    def marked(self, *, is_checked: bool) -> Recording:
        """The same recording, of which is written down whether it was checked."""
        text = json.dumps({"format": _FORMAT, **self.facts.__dict__, "is_checked": is_checked}, indent=1)
        _write(self.folder / _FACTS, text.encode())
        return replace(self, is_checked=is_checked)

    def shards(self, dataset: TokenDataset) -> Iterator[tuple[int, slice, int]]:
        """(number, rows, tokens) of each shard: as many whole rows as have about `shard_tokens`."""
        import numpy as np

        ends = np.cumsum(dataset.length, dtype=np.int64)
        number, row, before = 0, 0, 0
        while row < len(ends):
            last = max(int(np.searchsorted(ends, before + self.facts.shard_tokens, "right")), row + 1)
            tokens = int(ends[last - 1]) - before
            yield number, slice(row, last), tokens
            number, row, before = number + 1, last, before + tokens

    def is_whole(self, number: int, tokens: int) -> bool:
        """Whether a shard is there, with as much in it as there should be."""
        try:
            sizes = [self._file(number, name).stat().st_size for name in self.types]
        except OSError:
            return False
        return sizes == [_bytes(kind, tokens) for kind in self.types.values()]

    def write(self, number: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Write a shard."""
        for name in self.types:
            _write(self._file(number, name), values[name].tobytes())

    def read(self, number: int, tokens: int) -> dict[str, NDArray[Any]]:
        """A shard, mapped from its files."""
        import numpy as np

        return {
            name: np.memmap(self._file(number, name), kind.dtype, "r", shape=(tokens, *kind.shape))
            for name, kind in self.types.items()
        }

    def beside(self, dataset: TokenDataset) -> Columns:
        """The columns of the rows of `dataset`.

        Raises:
            ConfigError: other rows were recorded, or the recording is not whole.
        """
        import numpy as np

        if tokens_digest(dataset) != self.facts.tokens:
            message = f"in {self.folder} is what a teacher said of other rows, or of rows of other tokens"
            hint = "rows, their order, val_set_size, seed, template and sequence_length decide on it"
            raise ConfigError.at(_KEY, message, hint, _AGAIN)
        shards = list(self.shards(dataset))
        missing = [number for number, _, tokens in shards if not self.is_whole(number, tokens)]
        if missing:
            message = f"the recording in {self.folder} is not whole: {len(missing)} of {len(shards)} files are missing"
            raise ConfigError.at(_KEY, message, "go on with it: dumbo teacher-logprobs CONFIG")
        rows = [np.full(place.stop - place.start, number, np.int32) for number, place, _ in shards]
        starts = [_starts(dataset.length[place]) for _, place, _ in shards]
        blocks = tuple(self.read(number, tokens) for number, _, tokens in shards)
        return Columns(self.types, blocks, np.concatenate(rows), np.concatenate(starts))

    def _file(self, number: int, name: str) -> Path:
        return self.folder / f"{number:05}.{name}"


def _starts(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    import numpy as np

    starts: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts


def _bytes(kind: ColumnType, tokens: int) -> int:
    import numpy as np

    return int(np.dtype(kind.dtype).itemsize * np.prod(kind.shape, dtype=np.int64) * tokens)


def _write(file: Path, content: bytes) -> None:
    """Under another name until it is whole."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
