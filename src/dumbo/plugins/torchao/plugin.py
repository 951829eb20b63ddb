"""The options of a base model in the 8-bit formats of PyTorch, and the plugin that loads one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from dumbo.config.quantized import adapter_problems
from dumbo.config.schema import RunConfig, Words
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import BasePlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFUSED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "int4": (
            "PEFT puts no adapter on torchao's 4-bit weights",
            "write bitsandbytes under plugins, whose weights have 4 bits",
        ),
        "int8_dynamic": ("rounded activations have no gradient", "write int8, which rounds the weights alone"),
        "float8_dynamic": ("rounded activations have no gradient", "write float8, which rounds the weights alone"),
    }
)
"""Formats of torchao that people know, and that no adapter can be trained on: why, and what can."""


class TorchAoOptions(Section):
    """The base model's linear layers in 8 bits, frozen, under an adapter that is trained."""

    format: Literal["int8", "float8", "int4", "int8_dynamic", "float8_dynamic"] = "int8"
    """What weights are rounded to: `int8`, 255 even steps, or `float8`, floating point numbers of 8 bits (e4m3). Layers
    compute in the type of their inputs. torchao's other formats cannot be trained on, and are refused."""
    group_size: Annotated[int, Field(ge=1)] | None = None
    """So many neighbouring weights share a scale; by default a whole row does. It must divide the width of every
    layer."""
    skip_modules: Words = ()
    """Linear layers to leave as they are, beside the output head: names or ends of names (`[down_proj]`), names of what
    they are in (`[model.layers.0]`), or regular expressions."""
    quantize_head: bool = False
    """Quantize the output head, too. Not with a head that is tied to the embeddings."""


class TorchaoPlugin(BasePlugin):
    """Loads the base model's linear layers quantized by torchao and makes the model ready for an adapter."""

    name = "torchao"
    section = "model.torchao"
    options_type = TorchAoOptions
    packages = ("torchao",)
    conflicts: ClassVar[frozenset[str]] = frozenset({"bitsandbytes"})
    phase = Phase.STRUCTURE

    options: TorchAoOptions

    def check(self, config: RunConfig) -> None:
        """Refuse what cannot be trained."""
        problems = [*adapter_problems(config), *_refused(self.options)]
        if problems:
            raise ConfigError(problems)

    def load_kwargs(self, config: RunConfig) -> Mapping[str, Any]:
        """Return what makes Transformers quantize while it loads."""
        from dumbo.plugins.torchao.quantizing import load_options

        return load_options(self.options, config)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model frozen. Raises ConfigError where it is not quantized as was asked."""
        from dumbo.bridge.quantized_loading import check_quantized, describe_quantized

        check_quantized(model, "model.torchao", self.options.skip_modules, self.options.quantize_head)
        self.services.say(f"torchao: {self.options.format}: {describe_quantized(model)}")
        return model


def _refused(options: TorchAoOptions) -> Iterator[Problem]:
    if options.format in REFUSED:
        reason, hint = REFUSED[options.format]
        yield Problem(f"'{options.format}' cannot be trained on: {reason}", _path("format"), hints=(hint,))
    if "" in options.skip_modules:
        yield Problem("a name cannot be empty", _path("skip_modules"))


def _path(option: str) -> tuple[str, ...]:
    return "model", "torchao", option
