"""Puts an adapter on a model: weights that are new and trained, on weights that stay as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper

from dumbo.bridge.quantized_base import is_quantized, value_count
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugins.peft.configs import adapter_config, base_name, scale
from dumbo.plugins.peft.initial import changes_base, convert_to_plain, first_half, forget_beginning, initial_weights
from dumbo.plugins.peft.loftq import begin_with_loftq
from dumbo.plugins.peft.matching import counted, name_problems
from dumbo.plugins.peft.methods import ADALORA, ALL_LINEAR, LORA
from dumbo.plugins.peft.new_rows import NewRows, find_new_rows
from dumbo.plugins.peft.options import PeftOptions
from dumbo.plugins.peft.previous import Start, add_beside, merge_adapters, read_start

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ADAPTER = "default"


@dataclass(frozen=True)
class Place:
    """Where an adapter is made: the run's configuration and folder, and what tells the user."""

    config: RunConfig
    folder: Path
    say: Callable[[str], None] = lambda text: None
    is_first: bool = True
    """Whether this process writes."""


class SavedAlone(PeftModelForCausalLM):
    """PEFT's model, saved without the base model's embeddings, and so that it fits the base model as it was.

    By itself PEFT asks the hub whether the embeddings have grown, and saves all of them if so; here their new rows are
    trained as a part of the adapter.
    """

    initial: Mapping[str, Tensor] | None = None
    """The adapter's matrices at the beginning, where they were taken out of the base weights."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """Write the adapter; `options` are PEFT's."""
        super().save_pretrained(str(save_directory), **{"save_embedding_layers": False, **options})
        if options.get("is_main_process", True):
            forget_beginning(Path(save_directory))
            if self.initial is not None:
                convert_to_plain(Path(save_directory), self.initial)

    def as_trained(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of a file that this model wrote, as they are in training."""
        return weights if self.initial is None else first_half(weights)


def add_adapter(model: PreTrainedModel, options: PeftOptions, place: Place) -> PreTrainedModel:
    """Return `model` wrapped, with nothing to train but the adapter and what is to be saved with it.

    Raises:
        ConfigError: names that match nothing; a base model that could not be loaded again; options without effect; an
            earlier adapter that does not fit.
    """
    problems = list(name_problems(model, options))
    if problems:
        raise ConfigError(problems)
    if not model.name_or_path:
        message = "an adapter needs a base model that can be loaded again, and this one came from no folder or hub name"
        raise ConfigError.at("plugins", message, "remove 'peft'")
    if options.bias != "none" and not any(name.endswith("bias") for name, _ in model.named_parameters()):
        raise ConfigError.at("model.peft.bias", "has no effect: the model has no biases", "leave it out")
    _refuse_on_quantized(model, options)
    revision = place.config.model.revision
    if options.merge_first:
        with quiet():
            model = merge_adapters(model, options.merge_first, place.folder, place.say, place.is_first)
        revision = None
    rows = find_new_rows(model, options, place.config)
    start = read_start(model, options, rows, revision) if options.start_from is not None else None
    with refusals(), quiet():
        config = adapter_config(model, options, rows, revision) if start is None else start.config
        adapted: Any = SavedAlone(model, config, ADAPTER)
    if start is not None:
        start.put_into(adapted)
    if options.method == LORA and start is None and changes_base(options.init):
        adapted.initial = initial_weights(adapted, ADAPTER)
    if options.init == "loftq":
        begin_with_loftq(adapted, ADAPTER, place.config.model.trust_remote_code, place.say)
    if options.beside:
        with refusals("beside"), quiet():
            add_beside(adapted, options.beside, base_name(model))
    for line in what_took_effect(adapted, options, rows, start):
        place.say(line)
    wrapped: PreTrainedModel = adapted
    return wrapped


def _refuse_on_quantized(model: PreTrainedModel, options: PeftOptions) -> None:
    if options.use_dora and getattr(model, "is_loaded_in_8bit", False):
        message = "does not work on the 8-bit layers of bitsandbytes, whose scales get lost"
        raise ConfigError.at("model.peft.use_dora", message, "take bits: 4, or torchao")
    if options.merge_first and any(is_quantized(weight) for weight in model.parameters()):
        message = "adapters cannot be merged into quantized weights without rounding them anew"
        hint = "merge them with 'dumbo merge', and write the folder of the result as model.base_model"
        raise ConfigError.at("model.peft.merge_first", message, hint)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PEFT's warnings from the user: what they are about is checked before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def refusals(option: str = "") -> Iterator[None]:
    """Turn what PEFT raises into an error of the configuration."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, RuntimeError, ImportError, KeyError, AssertionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        key = f"model.peft.{option}" if option else "model.peft"
        raise ConfigError.at(key, f"PEFT refuses: {said}") from error


def what_took_effect(
    adapted: PeftModelForCausalLM, options: PeftOptions, rows: NewRows | None, start: Start | None = None
) -> Iterator[str]:
    """Lines about the wrapped model, read off the model itself."""
    layers = [
        # A weight that is a parameter of a layer (experts) is named by itself.
        name if getattr(module, "parameter_name", "weight") == "weight" else str(getattr(module, "parameter_name", ""))
        for name, module in adapted.named_modules()
        if isinstance(module, BaseTunerLayer) and "token_adapter" not in name
    ]
    yield f"peft: {_described(adapted.peft_config[ADAPTER], options, start)} on {len(layers)} layers: {counted(layers)}"
    if start is not None:
        yield f"peft: training goes on from the adapter in {start.folder}"
    saved = [name for name, module in adapted.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    if saved:
        yield f"peft: trained as a whole: {counted(saved)}"
    if rows and rows.asked:
        yield f"peft: trained too are the rows of {rows.asked} tokens that are listed"
    if rows and rows.count:
        yield (
            f"peft: trained too are the rows of {rows.count} new tokens; to load the adapter elsewhere, first call "
            f"resize_token_embeddings({rows.total}) on the base model"
        )
    if options.beside:
        yield f"peft: beside it act and stay as they are: {', '.join(options.beside)}"
    apart = [name for name in _experts(adapted) if name not in layers]
    if apart and options.target_modules == ALL_LINEAR:
        yield f"peft: without adapter, as they are no linear layers: {', '.join(apart)}"
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    total = sum(value_count(parameter) for parameter in adapted.parameters())
    yield f"peft: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})"


def _described(config: PeftConfig, options: PeftOptions, start: Start | None) -> str:
    if options.method == LORA:
        settings: Any = config
        rank, alpha = (options.width, scale(options)) if start is None else (settings.r, settings.lora_alpha)
        began = "" if start is not None or options.init == "default" else f", beginning with {options.init}"
        return f"{'DoRA' if settings.use_dora else 'LoRA'} (rank {rank}, alpha {alpha:g}{began})"
    if options.method == ADALORA:
        own: Any = config
        return f"adalora (rank {own.init_r}, at the end {own.target_r} on average, alpha {own.lora_alpha:g})"
    rank = getattr(config, "r", None)
    return options.method if not rank else f"{options.method} (rank {rank})"


def _experts(adapted: nn.Module) -> list[str]:
    """The names of weights with a matrix per expert, which many models hold as one parameter."""
    names = [
        name
        for name, parameter in adapted.named_parameters()
        if parameter.ndim == 3 and not parameter.requires_grad and f".{ADAPTER}" not in name
    ]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))
