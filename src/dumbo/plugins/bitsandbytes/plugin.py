"""The options of a base model in 4 or 8 bits, and the plugin that loads one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from dumbo.config.quantized import adapter_problems
from dumbo.config.schema import RunConfig, Words
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import BasePlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OF_FOUR_BITS = ("quant_type", "double_quant", "compute_dtype", "storage_dtype")
OF_EIGHT_BITS = ("threshold",)


class BitsAndBytesOptions(Section):
    """The base model's linear layers in 4 or 8 bits, frozen, under an adapter that is trained."""

    bits: Literal[4, 8] = 4
    """Bits of a weight. 4 is QLoRA (arXiv 2305.14314): a quarter of the memory of bfloat16. 8 is LLM.int8() (arXiv
    2208.07339): half of it, closer to the model as it was, and slower."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values of 4 bits: `nf4`, made for weights that are normally distributed, or `fp4`, small floating point
    numbers. `nf4` is closer to the weights of nearly all models."""
    double_quant: bool = True
    """Store the scales of 4-bit blocks in 8 bits, too: 0.13 instead of 0.5 bits per weight, at next to no loss."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What 4-bit layers compute in. `auto`: what the run computes in (`trainer.arguments.bf16`, `fp16`), else the type
    of the other weights."""
    storage_dtype: Literal["uint8", "bfloat16", "float16", "float32"] = "uint8"
    """The type of the tensors that 4-bit codes are packed in. It changes nothing but what sharding engines see: they
    ask for one type for all weights."""
    threshold: Annotated[float, Field(ge=0)] = 6.0
    """With `bits: 8`, on a GPU: columns of activations with a value beyond this are computed in 16 bits; 0 for none."""
    skip_modules: Words = ()
    """Linear layers to leave as they are, beside the output head: names or ends of names (`[down_proj]`), names of what
    they are in (`[model.layers.0]`), or regular expressions."""
    quantize_head: bool = False
    """Quantize the output head, too. Saves memory where the vocabulary is large, and costs quality; the loss then holds
    all logits. Not with a head that is tied to the embeddings."""


class BitsAndBytesPlugin(BasePlugin):
    """Loads the base model's linear layers quantized by bitsandbytes and makes the model ready for an adapter."""

    name = "bitsandbytes"
    section = "model.bitsandbytes"
    options_type = BitsAndBytesOptions
    packages = ("bitsandbytes",)
    conflicts: ClassVar[frozenset[str]] = frozenset({"torchao"})
    phase = Phase.STRUCTURE

    options: BitsAndBytesOptions

    def check(self, config: RunConfig) -> None:
        """Refuse what cannot be trained, and options that would have no effect."""
        problems = [*adapter_problems(config), *_useless(self.options)]
        if problems:
            raise ConfigError(problems)

    def load_kwargs(self, config: RunConfig) -> Mapping[str, Any]:
        """Return what makes Transformers quantize while it loads."""
        from dumbo.plugins.bitsandbytes.quantizing import load_options

        return load_options(self.options, config)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model frozen. Raises ConfigError where it is not quantized as was asked."""
        from dumbo.plugins.bitsandbytes.quantizing import check_quantized, describe

        check_quantized(model, self.options)
        self.services.say(describe(model, self.options))
        return model


def _useless(options: BitsAndBytesOptions) -> Iterator[Problem]:
    others, bits = (OF_EIGHT_BITS, 8) if options.bits == 4 else (OF_FOUR_BITS, 4)
    for name in others:
        if name in options.model_fields_set:
            message = f"has no effect with bits: {options.bits}"
            yield _problem(name, message, f"leave it out, or write bits: {bits}")
    if "" in options.skip_modules:
        yield _problem("skip_modules", "a name cannot be empty")


def _problem(option: str, message: str, *hints: str) -> Problem:
    return Problem(message, ("model", "bitsandbytes", option), hints=hints)
