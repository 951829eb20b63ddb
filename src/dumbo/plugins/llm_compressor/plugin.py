"""The options of sparse fine-tuning, and the plugin that keeps zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.config.schema import RunConfig, Words
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import CommandPlugin, OutputPlugin, Phase, StatePlugin
from dumbo.plugins.llm_compressor.recipe import SECTION, Pruning, read_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from dumbo.job import Artifact
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
    recipe: str | dict[str, Any] | None = None
    """The same as a recipe of llmcompressor, or the path of a YAML file with one: stages with a
    ConstantPruningModifier, of `targets`, `start` and `end`."""
    save_compressed: bool = False
    """Leave the zeros out of the files of the finished model, in the format `sparse-bitmask` of compressed-tensors. It
    loads here as any other; for tools that do not read it, `dumbo decompress` writes it with its zeros."""


class LlmCompressorPlugin(OutputPlugin, StatePlugin, CommandPlugin):
    """Remembers where a model's weights are zero, makes them zero again after every step, and may save none of them."""

    name = "llm_compressor"
    section = "model.llm_compressor"
    options_type = LlmCompressorOptions
    phase = Phase.KERNELS
    commands: ClassVar[Mapping[str, str]] = {"decompress": "write a model with the zeros that its files leave out"}

    options: LlmCompressorOptions
    _zeros: Zeros
    _pruning: Pruning

    def check(self, config: RunConfig) -> None:
        """Refuse what would fill zeros in, and recipes that ask for more."""
        problems = [*_option_problems(self.options), *_run_problems(config)]
        if self.options.recipe is not None:
            try:
                pruning = read_recipe(self.options.recipe)
            except ConfigError as error:
                problems += error.problems
            else:
                problems += _end_problems(pruning, self.options)
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model as it is, having found its zeros. Raises ConfigError for targets without any."""
        from dumbo.plugins.llm_compressor.zeros import Zeros

        self._pruning = Pruning(tuple(self.options.targets), (*SECTION, "targets"))
        if self.options.recipe is not None:
            self._pruning = read_recipe(self.options.recipe)
        self._zeros = Zeros.of_model(model, self._pruning)
        if self.options.save_compressed:
            self._zeros.check_worth()
        self._zeros.tell(self.services.say)
        return model

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return what makes the weights zero again, and notes at the end how many are."""
        from dumbo.plugins.llm_compressor.keeping import KeepZeros

        return [KeepZeros(self._zeros, self.services)]

    def after_train(self, artifact: Artifact, config: RunConfig) -> Artifact:
        """Leave the zeros out of the model's files, if that was asked for.

        Raises:
            RunError: they cannot be written so; the model stays as it was saved.
        """
        if self.options.save_compressed:
            from dumbo.plugins.llm_compressor.saving import leave_zeros_out, told

            written = leave_zeros_out(artifact.folder)
            self.services.say(f"llm_compressor: {told(written)}")
            sizes = {"bytes": written.after, "bytes with zeros": written.before, "weights": len(written.layers)}
            self.services.note("saved without zeros", sizes)
        return artifact

    def state_dict(self) -> Mapping[str, Any]:
        """Which zeros are to stay: a recipe in a file may be another one when the run goes on."""
        return {"targets": list(self._pruning.targets), "end": self._pruning.end}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Tell what is otherwise than it was."""
        for name, now in self.state_dict().items():
            if state[name] != now:
                is_now, was = ("not set" if value is None else value for value in (now, state[name]))
                line = f"'{name}' is {is_now} from here on, and was {was} when the run was stopped"
                self.services.say(f"llm_compressor: {line}")

    def run_command(self, verb: str, arguments: Sequence[str]) -> int:
        """Write a model with the zeros that were left out of its files."""
        from dumbo.plugins.llm_compressor.command import run

        return run(arguments)


def _option_problems(options: LlmCompressorOptions) -> Iterator[Problem]:
    if options.recipe is not None and options.targets:
        yield Problem("a recipe names targets too", (*SECTION, "targets"), hints=("keep one of them",))
    if options.save_compressed and find_spec("compressed_tensors") is None:
        message = "needs the package 'compressed-tensors', which is not installed"
        hint = "pip install 'dumbo-trainer[llm_compressor]'"
        yield Problem(message, (*SECTION, "save_compressed"), hints=(hint,))


def _end_problems(pruning: Pruning, options: LlmCompressorOptions) -> Iterator[Problem]:
    if options.save_compressed and pruning.end is not None:
        message = f"from epoch {pruning.end:g} on zeros may be trained again, so that none can be left out"
        yield Problem(message, (*SECTION, "save_compressed"), hints=("remove 'end' from the recipe, or this",))


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
