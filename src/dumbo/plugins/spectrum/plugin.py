"""The options of the scan, the plugin that trains what it finds, and the verb that only scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import CommandPlugin, ModelPatcherPlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SpectrumOptions(Section):
    """Train the weights with the most signal alone (Spectrum, arXiv 2406.06623); the model is scanned for them."""

    top_fraction: Annotated[float, Field(allow_inf_nan=False)] = 0.5
    """Of each kind of weight (all `mlp.down_proj`, say) train this share, from 0 to 1, rounded down: those with the
    highest signal-to-noise ratio."""
    train_embeddings: bool = True
    """Train the embeddings and the output head, too, which are not scanned."""


class SpectrumPlugin(ModelPatcherPlugin, CommandPlugin):
    """Scans the model's weights, and leaves all as they are but those with the most signal."""

    name = "spectrum"
    section = "model.spectrum"
    options_type = SpectrumOptions
    phase = Phase.FREEZE
    commands: ClassVar[Mapping[str, str]] = {"spectrum": "show how much signal there is in a model's weights"}

    options: SpectrumOptions

    def check(self, config: RunConfig) -> None:
        """Refuse shares that are none, and what else chooses the weights to train."""
        problems = [*_share_problems(self.options), *_rival_problems(config)]
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model, of whose weights only those are trained that were chosen.

        Raises:
            ConfigError: none would be.
        """
        from dumbo.plugins.spectrum.training import train_signal

        train_signal(model, self.options, config, self.services)
        return model

    def run_command(self, verb: str, arguments: Sequence[str]) -> int:
        """Scan a model and print what was found."""
        from dumbo.plugins.spectrum.command import run

        return run(arguments)


def _share_problems(options: SpectrumOptions) -> Iterator[Problem]:
    share, path = options.top_fraction, ("model", "spectrum", "top_fraction")
    if not 0 <= share <= 1:
        hints = (f"for {share:g} in a hundred write {share / 100:g}",) if 1 < share <= 100 else ()
        yield Problem("is a share: from 0 to 1", path, hints=hints)
    elif share == 0 and not options.train_embeddings:
        yield Problem("nothing would be trained", path, hints=("write more than 0, or train_embeddings: true",))


def _rival_problems(config: RunConfig) -> Iterator[Problem]:
    if config.model.unfrozen_parameters:
        message = "has no effect with 'spectrum' listed, which chooses the weights that are trained"
        hint = "remove one of the two; 'dumbo spectrum MODEL --patterns' prints what it would choose, to be edited"
        yield Problem(message, ("model", "unfrozen_parameters"), hints=(hint,))
    if "peft" in config.plugins:
        message = "'spectrum' trains whole weights of the model, and 'peft' leaves all of them as they are"
        hint = "remove one of them; LoRA on chosen layers is model.peft.layers_to_transform"
        yield Problem(message, ("plugins", config.plugins.index("peft")), hints=(hint,))
