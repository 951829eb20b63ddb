"""The options of adapters, and the plugin that puts one on the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig, Words
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import ModelPatcherPlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


class PeftOptions(Section):
    """An adapter: a few new weights beside the model's own, which stay as they are."""

    type: Literal["lora"] = "lora"
    """Kind of adapter. `lora`: a product of two narrow matrices is added to a weight (arXiv 2106.09685)."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Inner width of the two matrices, at most the size of the weight. 16 holds what a few thousand rows teach; more
    costs memory in proportion."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The adapter's output is multiplied by alpha / rank. By default twice the rank, so that another rank leaves the
    factor, and with it the learning rate that suits, as they are."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to zero in training. 0 trains fastest; 0.05 to 0.1 helps on few rows."""
    target_modules: Words | str = ALL_LINEAR
    """What gets an adapter: a list of module names or ends of names (`[q_proj, v_proj]`), a regular expression for the
    whole name (`.*self_attn.*_proj`), or `all-linear`: every linear layer but the head, which learns most for its
    size."""
    modules_to_save: Words = ()
    """Modules to train as a whole, by the end of their names, and to save with the adapter: `[embed_tokens, lm_head]`
    where new words are to be learned."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Train biases that the model has, too: all, or those of adapted layers. They change the base model's own
    weights."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which keeps large ranks learning (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train the length of each weight's columns apart from their direction (DoRA, arXiv 2402.09353). Slower."""
    init: Literal["default", "gaussian", "orthogonal"] = "default"
    """How the first matrix begins: uniform as in PyTorch's linear layers, normal with 1 / rank as its deviation, or
    both matrices orthogonal. The adapter does nothing at first with any of them."""


class PeftPlugin(ModelPatcherPlugin):
    """Puts an adapter on the model, trains it alone, and leaves it alone in `model/`."""

    name = "peft"
    section = "model.peft"
    options_type = PeftOptions
    packages = ("peft",)
    phase = Phase.ADAPTER

    options: PeftOptions

    def check(self, config: RunConfig) -> None:
        """Look at what can be told without the model."""
        problems = [*_name_problems(self.options), *_base_problems(config)]
        if self.options.init == "orthogonal" and self.options.rank % 2:
            problems.append(_problem("init", "'orthogonal' needs an even rank", f"rank: {self.options.rank + 1}"))
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model in PEFT's wrapper. Raises ConfigError for names that the model does not have."""
        from dumbo.plugins.peft.lora import add_lora

        return add_lora(model, self.options, config, self.services.say)


def _name_problems(options: PeftOptions) -> Iterator[Problem]:
    targets = options.target_modules
    if not targets:
        yield _problem("target_modules", "is empty", "leave it out for every linear layer")
    elif isinstance(targets, str) and targets != ALL_LINEAR:
        try:
            re.compile(targets)
        except re.error as error:
            yield _problem("target_modules", f"'{targets}' is not a regular expression: {error}")
    for name in ("target_modules", "modules_to_save"):
        listed = getattr(options, name)
        if isinstance(listed, tuple) and "" in listed:
            yield _problem(name, "a name cannot be empty")


def _base_problems(config: RunConfig) -> Iterator[Problem]:
    if config.model.architecture:
        message = "random weights are saved nowhere, so an adapter on them could not be used"
        path = ("model", "architecture")
        yield Problem(message, path, hints=("remove 'peft' from plugins, or write model.base_model",))


def _problem(option: str, message: str, *hints: str) -> Problem:
    return Problem(message, ("model", "peft", option), hints=hints)
