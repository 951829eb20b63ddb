"""Loads what a run left, whole weights or an adapter on its base model, to generate text with."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer

from dumbo.bridge.causal_models import from_pretrained
from dumbo.bridge.config_overrides import override
from dumbo.bridge.embeddings import fit_embeddings
from dumbo.bridge.hub_errors import Repository, explain
from dumbo.bridge.pickles import ADAPTER, MODEL, SAFETENSORS, Permission, PickleRefused, pickles_to_read
from dumbo.bridge.quantized_base import (
    BaseQuantization,
    compute_as_trained,
    finish_loading,
    quantized_load_options,
    quantized_modules,
    read_base_quantization,
)
from dumbo.errors import DumboError, Problem, RunError
from dumbo.local_paths import is_hub_name, near_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_OF_WEIGHTS = frozenset({"dtype", "use_safetensors", "quantization_config", "device_map"})
"""Arguments of `from_pretrained` that a configuration is loaded without."""


def load_for_inference(
    folder: Path,
    *,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    allow_pickle: tuple[str, ...] = (),
    config_overrides: Mapping[str, Any] | None = None,
    unquantized: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of `folder`, which holds whole weights or an adapter, ready to generate.

    The model is in evaluation mode on `device`, by default the accelerator where there is one, in bfloat16 on a GPU
    that has it and in float32 elsewhere. An adapter's base model is loaded from where its configuration says, given the
    rows for added tokens, and wrapped; `config_overrides` are what its run changed in the base model's configuration
    (whole weights have theirs beside them). A base that was quantized in training is again, or with `unquantized` as
    its files have it. Weights are read from safetensors only, and from pickles that are named by
    `allow_pickle`, of these only the tensors.

    Raises:
        RunError: something of it is missing, damaged, or cannot be fetched; the message says what and what to do.
    """
    device = device or _best_device()
    kind = {"dtype": _dtype(device), "trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    if not folder.is_dir():
        raise _error(f"there is no folder '{folder}'", *near_paths(folder, folders=True))
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise _error(f"'{folder}' holds neither a model (config.json) nor an adapter ({ADAPTER_CONFIG})")
    tokenizer = _load_tokenizer(folder, trust_remote_code)
    found = _quantization_of(folder, is_adapter, unquantized)
    if is_adapter:
        model = _load_adapted(folder, tokenizer, kind, config_overrides or {}, _Base(found, device, unquantized))
    else:
        model = _load_whole(folder, kind)
    compute_as_trained(model)
    if found is None:
        model.to(device)  # type: ignore[arg-type]
    model.train(False)
    return model, tokenizer


def _load_tokenizer(folder: Path, trusted: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trusted, local_files_only=not trusted
        )
    except Exception as error:
        raise _unloadable(f"the tokenizer in '{folder}'", error) from error
    return tokenizer


@dataclass(frozen=True)
class _Base:
    """How a base model is to be had."""

    quantization: BaseQuantization | None
    device: torch.device
    unquantized: bool

    def options(self, kind: dict[str, Any]) -> dict[str, Any]:
        """Arguments for `from_pretrained`."""
        if self.quantization is None:
            return kind
        return {**kind, **quantized_load_options(self.quantization, self.device, kind["dtype"])}

    def finish(self, model: PreTrainedModel, name: str, dtype: torch.dtype) -> None:
        """Make sure that the model is what was asked for."""
        if self.unquantized and quantized_modules(model):
            raise _error(f"--unquantized: the base model '{name}' is stored quantized", "leave it out")
        if self.quantization is not None:
            try:
                finish_loading(model, self.quantization, dtype)
            except ValueError as error:
                raise _error(f"the base model '{name}' is not that of the training: {error}") from error


def _quantization_of(folder: Path, is_adapter: bool, unquantized: bool) -> BaseQuantization | None:
    found = read_base_quantization(folder) if is_adapter else None
    if unquantized and found is None:
        raise _error(
            f"--unquantized has no effect: '{folder}' was not trained on a quantized base model", "leave it out"
        )
    return None if unquantized else found


def _load_whole(folder: Path, kind: dict[str, Any]) -> PreTrainedModel:
    return _from_folder(folder, kind, {})


def _load_adapted(
    folder: Path, tokenizer: PreTrainedTokenizerBase, kind: dict[str, Any], overrides: Mapping[str, Any], how: _Base
) -> PreTrainedModel:
    """The base model that the adapter in `folder` names, with the adapter on it."""
    pickles = _find_weights(folder, kind["allow_pickle"], ADAPTER)
    if importlib.util.find_spec("peft") is None:
        hint = "pip install 'dumbo-trainer[peft]'"
        raise _error(f"'{folder}' holds an adapter, and the package 'peft' is not installed", hint)
    base, revision = _base_of(folder)
    model = _load_base(folder, base, revision, how.options(kind), overrides)
    how.finish(model, base, kind["dtype"])
    # What training did to the model before it was wrapped; rows that were trained lie in the adapter.
    model = fit_embeddings(model, tokenizer, lambda _: None)
    return _put_on(model, folder, bool(pickles), kind["allow_pickle"])


def put_adapter_on(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`model`, wrapped, with the adapter in `folder`, and with those that act beside it.

    Raises:
        RunError: its weights are missing, or do not fit.
    """
    _find_weights(folder, (), ADAPTER)
    return _put_on(model, folder, False, ())


def read_adapter_weights(folder: Path) -> dict[str, Any]:
    """The tensors of the adapter in `folder`, as PEFT names them in files.

    Raises:
        RunError: there are none, or they are a pickle.
    """
    from safetensors.torch import load_file

    _find_weights(folder, (), ADAPTER)
    weights: dict[str, Any] = load_file(folder / ADAPTER_WEIGHTS)
    return weights


def _base_of(folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base model of the adapter in `folder`."""
    file = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise _error(f"{file} cannot be read: {_first_line(error)}") from error
    if not base:
        hint = "write the folder or the hub name of the model that it was trained on there"
        raise _error(f"{file} names no base model (base_model_name_or_path)", hint)
    return _moved_with(folder, str(base)), None if revision is None else str(revision)


def _moved_with(folder: Path, base: str) -> str:
    """The base model's place; where a run's folder was moved that has made one, the one in it."""
    if Path(base).is_absolute() and Path(base).name == "base" and not Path(base).exists():
        near = [above / "base" for above in list(folder.resolve().parents)[:2]]
        return next((str(place) for place in near if (place / "config.json").is_file()), base)
    return base


def _load_base(
    folder: Path, base: str, revision: str | None, kind: dict[str, Any], overrides: Mapping[str, Any]
) -> PreTrainedModel:
    if Path(base).is_dir():
        if (Path(base) / ADAPTER_CONFIG).is_file():
            raise _error(f"the base model of '{folder}', '{base}', is an adapter itself", "merge that one first")
        return _from_folder(Path(base), kind, overrides)
    if not is_hub_name(base):
        hint = f"copy it back, or write where it is into base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        raise _error(f"the base model of '{folder}' is missing: there is no folder '{base}'", hint)
    try:
        options = {key: value for key, value in kind.items() if key != "allow_pickle"}
        return _from_pretrained(base, {**options, "revision": revision, "use_safetensors": True}, overrides)
    except DumboError:
        raise
    except Exception as error:
        if _wants_code(error):
            raise _unloadable(f"the base model '{base}'", error) from error
        raise explain(error, Repository("model", base, revision)) from error


def _put_on(model: PreTrainedModel, folder: Path, pickled: bool, allowed: tuple[str, ...]) -> PreTrainedModel:
    """`model` with the adapter of `folder`: every weight of either finds its place, or it is an error."""
    from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        options = PeftConfig.from_pretrained(str(folder))
        options.inference_mode = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses what Transformers renames
            warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)  # its own, for experts
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            adapted = get_peft_model(model, options, autocast_adapter_dtype=False)
        assert isinstance(adapted, PeftModel)
        weights = (
            torch.load(folder / ADAPTER, map_location="cpu", weights_only=True)
            if pickled
            else load_file(folder / ADAPTER_WEIGHTS)
        )
        report: Any = set_peft_model_state_dict(adapted, weights)
    except Exception as error:
        message = f"the adapter in '{folder}' does not fit its base model: {_first_line(error)}"
        raise _error(message, "was the base model exchanged, or its tokenizer changed?") from error
    missing = weights_not_loaded(adapted, report.missing_keys)
    if missing or report.unexpected_keys:
        name = next(iter([*missing, *report.unexpected_keys]))
        count = len(missing) + len(report.unexpected_keys)
        raise _error(f"the adapter in '{folder}' does not fit its base model: {count} weights, the first is {name}")
    _put_beside(adapted, folder, allowed)
    return adapted  # type: ignore[return-value]


def _put_beside(adapted: Any, folder: Path, allowed: tuple[str, ...]) -> None:
    """Load the adapters in folders of `folder`, which acted while the one in it was trained."""
    found = [place for place in sorted(folder.iterdir()) if (place / ADAPTER_CONFIG).is_file()]
    for place in found:
        _find_weights(place, allowed, ADAPTER)
        try:
            adapted.load_adapter(str(place), adapter_name=place.name, is_trainable=False, torch_device="cpu")
        except Exception as error:
            raise _error(f"the adapter in '{place}' does not fit its base model: {_first_line(error)}") from error
    if found:
        adapted.base_model.set_adapter([*adapted.active_adapters, *(place.name for place in found)], True)


def weights_not_loaded(adapted: Any, missing: list[str]) -> list[str]:
    """The adapter's own weights among those `missing` from its file, but for those that are another one's (tied)."""
    state = adapted.state_dict(keep_vars=True)
    loaded = {id(value) for name, value in state.items() if name not in set(missing)}
    # Base weights are always missing; the adapter's own carry its name.
    own = [name for name in missing if ".default" in name and id(state[name]) not in loaded]
    return [name for name in own if ".ranknum." not in name]  # AdaLoRA's follows from its configuration


def _from_folder(folder: Path, kind: dict[str, Any], overrides: Mapping[str, Any]) -> PreTrainedModel:
    pickles = _find_weights(folder, kind["allow_pickle"], MODEL)
    options = {key: value for key, value in kind.items() if key != "allow_pickle"}
    options |= {"local_files_only": not kind["trust_remote_code"], "use_safetensors": not pickles}
    try:
        return _from_pretrained(str(folder), options, overrides)
    except DumboError:
        raise
    except Exception as error:
        raise _unloadable(f"the model in '{folder}'", error) from error


def _from_pretrained(name: str, options: dict[str, Any], overrides: Mapping[str, Any]) -> PreTrainedModel:
    if overrides:
        where = {key: value for key, value in options.items() if key not in _OF_WEIGHTS}
        options = {**options, "config": override(AutoConfig.from_pretrained(name, **where), overrides)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)  # the base is stored so
        folder = Path(name) if Path(name).is_dir() else None
        loaded = from_pretrained(name, folder, weights_only=True, output_loading_info=True, **options)
    model: PreTrainedModel
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    return model


def _find_weights(folder: Path, allowed: tuple[str, ...], kind: str) -> tuple[str, ...]:
    """The pickles that the weights are read from; none where they are safetensors."""
    try:
        pickles = pickles_to_read(folder, Permission(allowed, "--allow-pickle NAMES"), kind)
    except PickleRefused as error:
        message, *hints = error.args
        raise _error(f"'{folder}' {message}", *hints) from error
    if not pickles and not any((folder / name).is_file() for name in SAFETENSORS[kind]):
        raise _error(f"'{folder}' has no weights ({SAFETENSORS[kind][0]})")
    return pickles


def _best_device() -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def _dtype(device: torch.device) -> torch.dtype:
    backend = getattr(torch, device.type, None)
    has_bf16 = device.type in ("cuda", "xpu") and backend is not None and backend.is_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))


def _unloadable(what: str, error: BaseException) -> RunError:
    if _wants_code(error):
        hint = "read the .py files that come with it; if you trust them, write --trust-remote-code"
        return _error(f"{what} needs Python code of its own, which would run with all your rights", hint)
    return _error(f"{what} cannot be loaded: {_first_line(error)}")


def _wants_code(error: BaseException) -> bool:
    return "trust_remote_code" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
