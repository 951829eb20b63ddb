"""Chooses the weights of a run's model by their signal, and has them trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dumbo.bridge.freezing import train_named
from dumbo.config.schema import RunConfig
from dumbo.console import Console
from dumbo.errors import ConfigError
from dumbo.launch import Launch
from dumbo.plugin_loader import Services
from dumbo.plugins.spectrum.scanning import RatioCache, Scanned, by_kind, choose, scan
from dumbo.plugins.spectrum.showing import HEADER, table, write_chart, write_numbers
from dumbo.plugins.spectrum.weights import Unit, units_of, weights_of_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dumbo.plugins.spectrum.plugin import SpectrumOptions


def train_signal(model: PreTrainedModel, options: SpectrumOptions, config: RunConfig, services: Services) -> None:
    """Let only the chosen weights of `model` be trained. The first process scans, and the others do as it says.

    Raises:
        ConfigError: the share is so small that no weight is chosen.
        RunError: a weight is quantized, or not finite.
    """
    launch = Launch(services.rank, services.world_size)
    names = launch.decide(lambda: _chosen_names(model, options, config, services))
    numbers = train_named(model, names, services.say, "spectrum")
    facts: dict[str, Any] = {"top_fraction": options.top_fraction, "weights": len(names), "parameters": numbers}
    services.note("spectrum", facts)


def _chosen_names(model: PreTrainedModel, options: SpectrumOptions, config: RunConfig, services: Services) -> list[str]:
    weights = weights_of_model(model)
    units = units_of(weights)
    found = _scan(units, config.model.base_model or f"new-{model.config.model_type}", services)
    chosen = choose(found, options.top_fraction)
    if options.top_fraction > 0 and not chosen:
        most = max((len(alike) for alike in by_kind(found).values()), default=0)
        message = f"is less than one weight of any kind: there are {most} of the most frequent one"
        hint = f"write at least {1 / most:.3g}" if most else "the model has no weights besides embeddings and head"
        raise ConfigError.at("model.spectrum.top_fraction", message, hint)
    _show(found, chosen, config, services)
    ends = [weight.name for weight in weights if weight.is_end and options.train_embeddings]
    return [*ends, *(name for each in chosen for name in each.unit.names)]


def _scan(units: Sequence[Unit], model: str, services: Services) -> list[Scanned]:
    console = Console()
    return scan(units, RatioCache(model), services.say, lambda items: console.track(items, "spectrum", len(units)))


def _show(found: Sequence[Scanned], chosen: Sequence[Scanned], config: RunConfig, services: Services) -> None:
    Console().table(HEADER, table(found, chosen))
    folder = services.output_dir
    write_numbers(folder / "spectrum.json", found, chosen)
    title = f"signal-to-noise ratio of {config.model.base_model or 'random weights'}"
    write_chart(folder / "spectrum.png", found, chosen, title)
