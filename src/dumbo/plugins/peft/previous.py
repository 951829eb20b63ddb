"""Earlier adapters: one that is trained further, those that are merged first, and those that act beside."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, set_peft_model_state_dict

from dumbo.bridge.inference_model import ADAPTER_CONFIG, put_adapter_on, read_adapter_weights, weights_not_loaded
from dumbo.checkpoint.folder import put_in_place
from dumbo.errors import ConfigError, Problem, RunError
from dumbo.local_paths import near_paths
from dumbo.plugins.peft.checks import problem
from dumbo.plugins.peft.configs import base_name
from dumbo.plugins.peft.matching import targeted_names
from dumbo.plugins.peft.methods import LORA, METHODS
from dumbo.plugins.peft.new_rows import NewRows
from dumbo.plugins.peft.options import PeftOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = "base"
_LORA_NAMES = MappingProxyType({"rank": "r", "alpha": "lora_alpha"})
_COMPARED = (
    *("rank", "alpha", "use_rslora", "use_dora", "bias", "modules_to_save", "target_parameters"),
    *("exclude_modules", "layers_to_transform", "layers_pattern"),
)


def adapter_folder(written: str, option: str) -> Path:
    """The folder of the adapter that is meant by the folder of its run, or of itself.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(written).expanduser()
    found = next((place for place in (folder, folder / "model") if (place / ADAPTER_CONFIG).is_file()), None)
    if found is not None:
        return found
    if not folder.is_dir():
        raise ConfigError([problem(option, f"there is no folder '{written}'", *near_paths(folder, folders=True))])
    whole = next((place for place in (folder, folder / "model") if (place / "config.json").is_file()), None)
    hint = f"it holds a whole model: write model.base_model: {whole}" if whole else "name a run, or its model/"
    raise ConfigError([problem(option, f"'{written}' holds no adapter ({ADAPTER_CONFIG})", hint)])


def read_config(folder: Path, option: str, base: str) -> PeftConfig:
    """The configuration of the adapter in `folder`, which must belong to the model called `base`.

    Raises:
        ConfigError: it cannot be read, or belongs to another model.
    """
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError([problem(option, f"{folder / ADAPTER_CONFIG} cannot be read: {said}")]) from error
    name = str(config.base_model_name_or_path or "")
    theirs = str(Path(name).resolve()) if name and Path(name).exists() else name
    if theirs != base:
        message = (
            f"the adapter in '{folder}' belongs to the model {name or 'that it does not name'}, and this is {base}"
        )
        hints = [f"write model.base_model: {name}"] if name else []
        hints.append(
            f"the same model at another place: write that into base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        )
        raise ConfigError([problem(option, message, *hints)])
    return config


@dataclass(frozen=True)
class Start:
    """The adapter that is trained further."""

    folder: Path
    config: PeftConfig

    def put_into(self, adapted: Any) -> None:
        """Give the new adapter of `adapted` the weights of this one.

        Raises:
            ConfigError: they do not fit.
        """
        try:
            report: Any = set_peft_model_state_dict(adapted, read_adapter_weights(self.folder))
        except RunError as error:
            raise ConfigError.at("model.peft.start_from", str(error)) from error
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            message = f"the adapter in '{self.folder}' does not fit the model: {said}"
            raise ConfigError.at("model.peft.start_from", message) from error
        missing = [*weights_not_loaded(adapted, report.missing_keys), *report.unexpected_keys]
        if missing:
            message = f"the adapter in '{self.folder}' does not fit: {len(missing)} weights, the first is {missing[0]}"
            raise ConfigError.at("model.peft.start_from", message)


def read_start(model: Any, options: PeftOptions, rows: NewRows | None, revision: str | None) -> Start:
    """The adapter to go on with, where all options that the user wrote say what it is.

    Raises:
        ConfigError: there is none, it belongs to another model, or some options differ.
    """
    assert options.start_from is not None
    folder = adapter_folder(options.start_from, "start_from")
    config: Any = read_config(folder, "start_from", base_name(model))
    method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    if method != options.method:
        message = f"the adapter in '{folder}' is '{method}', and the method is '{options.method}'"
        raise ConfigError([problem("method", message, f"write method: {method}")])
    problems = [*_differences(config, options, folder)]
    if "target_modules" in options.written and not problems:
        ours, theirs = set(targeted_names(model, options)), set(_targets_of(model, options, config))
        if ours != theirs:
            message = f"means {len(ours)} modules, and the adapter in '{folder}' is on {len(theirs)}"
            problems.append(problem("target_modules", message, "leave it out"))
    wanted = dict(rows.layers) if rows else {}
    if method == LORA and wanted and wanted != getattr(config, "trainable_token_indices", None):
        message = f"the adapter in '{folder}' trains other rows of the embeddings than these new or listed tokens"
        problems.append(problem("start_from", message, "use the tokenizer of that run, model.tokenizer.path"))
    if problems:
        raise ConfigError(problems)
    config.inference_mode, config.revision, config.base_model_name_or_path = False, revision, base_name(model)
    if "dropout" in options.written:
        setattr(config, METHODS[method].names.get("dropout", "lora_dropout"), options.dropout)
    return Start(folder, config)


def _differences(config: Any, options: PeftOptions, folder: Path) -> list[Problem]:
    names = (
        {**_LORA_NAMES, **METHODS[options.method].names} if options.method == LORA else METHODS[options.method].names
    )
    found = []
    for option in _COMPARED:
        if option not in options.written:
            continue
        theirs, ours = _plain(getattr(config, names.get(option, option), None)), _plain(getattr(options, option))
        if theirs != ours:
            message = f"is {_shown(ours)}, and {_shown(theirs)} in the adapter in '{folder}'"
            found.append(problem(option, message, f"write {_shown(theirs)}, or leave it out"))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(sorted(value))
    return () if value is None else value


def _shown(value: Any) -> str:
    return (
        f"[{', '.join(map(str, value))}]"
        if isinstance(value, tuple)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _targets_of(model: Any, options: PeftOptions, config: Any) -> list[str]:
    targets = config.target_modules
    targets = targets if isinstance(targets, str) else tuple(targets or ())
    return targeted_names(model, options.model_copy(update={"target_modules": targets}))


def merge_adapters(
    model: PreTrainedModel, folders: Sequence[str], run_folder: Path, say: Callable[[str], None], is_first: bool
) -> PreTrainedModel:
    """Return `model` with earlier adapters merged into its weights, written to `base/` in the run's folder, which it is
    called by from now on.

    Raises:
        ConfigError: a folder without an adapter, of another model, or of a method that cannot be merged.
        RunError: the weights of one do not fit.
    """
    base = base_name(model)
    for written in folders:
        folder = adapter_folder(written, "merge_first")
        read_config(folder, "merge_first", base)
        adapted: Any = put_adapter_on(model, folder)
        try:
            model = adapted.merge_and_unload(safe_merge=True)
        except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            message = f"the adapter in '{folder}' cannot be merged: {said}"
            raise ConfigError.at("model.peft.merge_first", message) from error
        say(f"peft: merged {folder} into the base model")
    target = run_folder / BASE
    if is_first:
        partial = run_folder / f"{BASE}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        put_in_place(partial)
    say(f"peft: the merged model is in {target}, as the base model of the new adapter")
    model.name_or_path = str(target.resolve())
    model.config._name_or_path = model.name_or_path
    return model


def add_beside(adapted: Any, beside: Mapping[str, str], base: str) -> None:
    """Load other adapters, which act too and are not trained.

    Raises:
        ConfigError: a folder without an adapter, or of another model.
        ValueError: PEFT cannot run them together.
    """
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    for name, written in beside.items():
        folder = adapter_folder(written, "beside")
        read_config(folder, "beside", base)
        adapted.load_adapter(str(folder), adapter_name=name, is_trainable=False, torch_device="cpu")
    adapted.base_model.set_adapter([*adapted.active_adapters, *beside])
    chosen = set(trained)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(name in chosen)
    adapted.train()
