"""The options of sparse fine-tuning, and the plugin that keeps zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.config.schema import RunConfig, Words
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import BasePlugin, Phase
from dumbo.plugins.llm_compressor.recipe import SECTION, Pruning, read_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from dumbo.plugins.llm_compressor.zeros import Zeros

IN_BACKWARD = ("lomo", "adalomo")
"""Optimizers that change weights in the backward pass, and those of one layer at a time, whose names end so:"""
LAYERWISE = "_layerwise"


class LlmCompressorOptions(Section):
    """Fine-tuning of a sparse model whose zeros stay zeros."""

    targets: Words = ()
    """Weights whose zeros stay: names of weights or layers or ends of them (`q_proj`), classes of layers (`Linear`), or
    regular expressions that begin with `re:` and match from the beginning. By default all matrices of layers, without
    embeddings and output head, of which one value in a hundred is zero."""
    recipe: dict[str, Any] | None = None
    """The same as a recipe of llmcompressor: stages with a ConstantPruningModifier, of `targets`, `start` and `end`."""
    save_compressed: bool = False
    """Refused: no format for sparse weights is left that Transformers could load. The model is saved as it is, its
    zeros among its weights."""


class LlmCompressorPlugin(BasePlugin):
    """Remembers where a model's weights are zero, and makes them zero again after every step."""

    name = "llm_compressor"
    section = "model.llm_compressor"
    options_type = LlmCompressorOptions
    phase = Phase.KERNELS

    options: LlmCompressorOptions
    _zeros: Zeros

    def check(self, config: RunConfig) -> None:
        """Refuse what would fill zeros in, and recipes that ask for more."""
        problems = [*_option_problems(self.options), *_run_problems(config)]
        if self.options.recipe is not None:
            try:
                read_recipe(self.options.recipe)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model as it is, having found its zeros. Raises ConfigError for targets without any."""
        from dumbo.plugins.llm_compressor.zeros import Zeros

        pruning = Pruning(tuple(self.options.targets), (*SECTION, "targets"))
        if self.options.recipe is not None:
            pruning = read_recipe(self.options.recipe)
        self._zeros = Zeros.of_model(model, pruning)
        self._zeros.tell(self.services.say)
        return model

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return what makes the weights zero again, and notes at the end how many are."""
        from dumbo.plugins.llm_compressor.keeping import KeepZeros

        return [KeepZeros(self._zeros, self.services)]


def _option_problems(options: LlmCompressorOptions) -> Iterator[Problem]:
    if options.recipe is not None and options.targets:
        yield Problem("a recipe names targets too", (*SECTION, "targets"), hints=("keep one of them",))
    if options.save_compressed:
        message = (
            "no format is left: compressed-tensors writes no sparse weights since 0.15, and Transformers reads none"
        )
        hint = "remove it; the model is saved in full, and packs well as an archive"
        yield Problem(message, (*SECTION, "save_compressed"), hints=(hint,))


def _run_problems(config: RunConfig) -> Iterator[Problem]:
    if "peft" in config.plugins:
        message = "an adapter changes every weight where it is merged, so that no zero stays"
        hint = "leave one of 'peft' and 'llm_compressor' out of plugins"
        yield Problem(message, SECTION, hints=(hint,))
    for name in ("bitsandbytes", "torchao"):
        if name in config.plugins:
            message = f"'{name}' freezes the weights whose zeros are to stay"
            yield Problem(message, SECTION, hints=(f"leave one of '{name}' and 'llm_compressor' out of plugins",))
    optim = config.trainer.arguments.optim
    path = ("trainer", "arguments", "optim")
    if optim in IN_BACKWARD or optim.endswith(LAYERWISE):
        message = f"'{optim}' changes weights in the backward pass, before their zeros could be kept"
        yield Problem(message, path, hints=("write another one, such as adamw_torch_fused",))
    if optim.startswith("schedule_free"):
        message = f"'{optim}' saves an average of weights that are not zero"
        yield Problem(message, path, hints=("write another one, such as adamw_torch_fused",))
