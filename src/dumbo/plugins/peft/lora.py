"""Puts LoRA on a model: weights that are new and trained, on weights that stay as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper

from dumbo.bridge.quantized_base import value_count
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugins.peft.matching import counted, name_problems
from dumbo.plugins.peft.new_rows import NewRows, embeddings_of, find_new_rows
from dumbo.plugins.peft.plugin import ALL_LINEAR, PeftOptions

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ADAPTER = "default"
_INIT: tuple[tuple[str, Any], ...] = (("default", True), ("gaussian", "gaussian"), ("orthogonal", "orthogonal"))


class SavedAlone(PeftModelForCausalLM):
    """PEFT's model, saved without the base model's embeddings.

    By itself PEFT asks the hub whether they have grown, and saves all of them if so; here their new rows are trained as
    a part of the adapter.
    """

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """Write the adapter; `options` are PEFT's."""
        super().save_pretrained(str(save_directory), **{"save_embedding_layers": False, **options})


def add_lora(
    model: PreTrainedModel, options: PeftOptions, config: RunConfig, say: Callable[[str], None]
) -> PreTrainedModel:
    """Return `model` wrapped, with nothing to train but the adapter and what is to be saved with it.

    Raises:
        ConfigError: names that match nothing; a base model that could not be loaded again; options without effect.
    """
    problems = list(name_problems(model, options))
    if problems:
        raise ConfigError(problems)
    if not model.name_or_path:
        message = "an adapter needs a base model that can be loaded again, and this one came from no folder or hub name"
        raise ConfigError.at("plugins", message, "remove 'peft'")
    if options.bias != "none" and not any(name.endswith("bias") for name, _ in model.named_parameters()):
        raise ConfigError.at("model.peft.bias", "has no effect: the model has no biases", "leave it out")
    if options.use_dora and getattr(model, "is_loaded_in_8bit", False):
        message = "does not work on the 8-bit layers of bitsandbytes, whose scales get lost"
        raise ConfigError.at("model.peft.use_dora", message, "take bits: 4, or torchao")
    rows = find_new_rows(model, options, config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses what Transformers renames
            warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)  # its own, for experts
            adapted: Any = SavedAlone(model, lora_config(model, options, rows, config.model.revision), ADAPTER)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError.at("model.peft", f"PEFT refuses: {str(error).strip().splitlines()[0]}") from error
    for line in what_took_effect(adapted, options, rows):
        say(line)
    wrapped: PreTrainedModel = adapted
    return wrapped


def lora_config(
    model: PreTrainedModel, options: PeftOptions, rows: NewRows | None, revision: str | None = None
) -> LoraConfig:
    """PEFT's own configuration for `options`, with where the base model is: a folder by its full path."""
    targets = options.target_modules
    base = Path(str(model.name_or_path))
    return LoraConfig(
        base_model_name_or_path=str(base.resolve()) if base.exists() else str(base),
        revision=revision,
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=scale(options),  # type: ignore[arg-type]  # it is divided by the rank, nothing else
        lora_dropout=options.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(options.modules_to_save) or None,
        bias=options.bias,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=dict(_INIT)[options.init],
        trainable_token_indices=dict(rows.layers) if rows else None,
        ensure_weight_tying=bool(options.modules_to_save) and is_tied(model),
    )


def is_tied(model: Any) -> bool:
    """Whether the output head is the input embeddings."""
    head, embeddings = model.get_output_embeddings(), embeddings_of(model)
    return head is not None and embeddings is not None and head.weight is embeddings.weight


def scale(options: PeftOptions) -> float:
    """Alpha, twice the rank where it is left out; a whole number where it is one."""
    alpha = 2 * options.rank if options.alpha is None else options.alpha
    return int(alpha) if alpha == int(alpha) else alpha


def what_took_effect(adapted: PeftModelForCausalLM, options: PeftOptions, rows: NewRows | None) -> Iterator[str]:
    """Lines about the wrapped model, read off the model itself."""
    layers = [
        # A weight that is a parameter of a layer (experts) is named by itself.
        name if getattr(module, "parameter_name", "weight") == "weight" else str(getattr(module, "parameter_name", ""))
        for name, module in adapted.named_modules()
        if isinstance(module, BaseTunerLayer) and "token_adapter" not in name
    ]
    extras = f"rank {options.rank}, alpha {scale(options):g}"
    yield f"peft: LoRA ({extras}) on {len(layers)} layers: {counted(layers)}"
    saved = [name for name, module in adapted.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    if saved:
        yield f"peft: trained as a whole: {counted(saved)}"
    if rows:
        yield (
            f"peft: trained too are the rows of {rows.count} new tokens; to load the adapter elsewhere, first call "
            f"resize_token_embeddings({rows.total}) on the base model"
        )
    apart = [name for name in _experts(adapted) if name not in layers]
    if apart and options.target_modules == ALL_LINEAR:
        yield f"peft: without adapter, as they are no linear layers: {', '.join(apart)}"
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    total = sum(value_count(parameter) for parameter in adapted.parameters())
    yield f"peft: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})"


def _experts(adapted: nn.Module) -> list[str]:
    """The names of weights with a matrix per expert, which many models hold as one parameter."""
    names = [name for name, parameter in adapted.named_parameters() if parameter.ndim == 3 and "lora_" not in name]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))
