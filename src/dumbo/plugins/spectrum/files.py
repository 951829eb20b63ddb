"""The weights of a model in a folder, as a run would have them in memory, read one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from dumbo.bridge.stored_model import FromDisk, empty_model
from dumbo.errors import Problem, RunError
from dumbo.merging.numbers import ROUNDOFF, Array
from dumbo.merging.tensor_files import StoredTensor
from dumbo.plugins.spectrum.weights import Weight, quantized, rows_of, weights_of_model


def weights_in(folder: Path, tensors: Iterable[StoredTensor], trusted: bool) -> list[Weight]:
    """All weights of the model in `folder`, whose files have `tensors`; with the names and shapes that they have when
    the model is loaded, as files may hold each expert by itself.

    Raises:
        RunError: Transformers knows no such language model, a weight is missing, or some are quantized.
    """
    for tensor in tensors:
        if tensor.dtype not in ROUNDOFF and tensor.name.endswith("weight"):
            raise quantized(tensor.name, tensor.dtype)
    try:
        model = empty_model(_config_of(folder, trusted), trusted)
        stored = FromDisk(model, folder)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise _unreadable(folder, error) from error
    return weights_of_model(model, lambda name, _: _LastRead(stored, folder, name).rows)


class _LastRead:
    """Reads a weight once for all of its parts, and keeps it until the last of them."""

    def __init__(self, stored: FromDisk, folder: Path, name: str) -> None:
        self._stored, self._folder, self._name = stored, folder, name
        self._whole: Tensor | None = None

    def rows(self, begin: int, end: int) -> Array:
        """See `Weight.read`."""
        if self._whole is None:
            try:
                self._whole = self._stored.weights([self._name])[self._name]
            except ValueError as error:
                raise _unreadable(self._folder, error) from error
        whole = self._whole
        if end >= len(whole):
            self._whole = None
        return rows_of(whole, begin, end)


def _config_of(folder: Path, trusted: bool) -> PreTrainedConfig:
    options = {"trust_remote_code": trusted, "local_files_only": not trusted}
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **options)
    quantization: Any = getattr(config, "quantization_config", None)
    if quantization:
        raise quantized(f"the model in '{folder}'", f"by {quantization.get('quant_method', 'an unknown method')}")
    return config


def _unreadable(folder: Path, error: Exception) -> RunError:
    if "trust_remote_code" in str(error):
        hint = "read the .py files that come with it; if you trust them, write --trust-remote-code"
        message = f"spectrum: '{folder}' needs Python code of its own, which would run with all your rights"
        return RunError(str(Problem(message, hints=(hint,))))
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RunError(f"spectrum: '{folder}' cannot be scanned: {first}")
