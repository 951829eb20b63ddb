"""`dumbo preprocess CONFIG [KEY=VALUE ...] [--output FOLDER]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.configure import Configured
    from dumbo.console import Console
    from dumbo.data.records import Record
    from dumbo.data.sources import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that go before those of the file")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write a folder to train from on any machine, and no cache"
    )


def run(options: argparse.Namespace) -> int:
    """Prepare the data as a run would, and say what it would train on."""
    from dumbo.configure import configure
    from dumbo.console import Console
    from dumbo.errors import ConfigError
    from dumbo.launch import Launch

    configured = configure(options.config, options.overrides, Launch())
    try:
        _prepare(configured, options, Console(goes_on=True))
    except ConfigError as error:
        raise configured.explain(error) from error
    return 0


def _prepare(configured: Configured, options: argparse.Namespace, console: Console) -> None:
    from dumbo.console import clock
    from dumbo.data.build import build_datasets
    from dumbo.data.plan import describe_plan, plan_run
    from dumbo.data.prepared import TOKENIZER, IntoFolder, preparation_of
    from dumbo.data.preparing import prepare_sources
    from dumbo.data.store import Store
    from dumbo.errors import ConfigError
    from dumbo.inspection.limits import likely_limit
    from dumbo.inspection.reading import bind_services
    from dumbo.inspection.tokens import load_tokenizer

    config, plugins = configured.config, configured.plugins
    if config.trainer.data.prepared is not None:
        raise ConfigError.at("trainer.data.prepared", "the data is prepared already", "remove it, to prepare it again")
    if config.trainer.data.streaming:
        hint = "remove it: prepared tokens lie in files and need no memory"
        raise ConfigError.at("trainer.data.streaming", "of a stream nothing is prepared", hint)
    began, output = time.monotonic(), options.output
    if output is None and config.trainer.data.cache is False:
        hint = "name a folder: dumbo preprocess CONFIG --output FOLDER"
        raise ConfigError.at("trainer.data.cache", "without a cache there is no place for what is prepared", hint)
    preparation = (
        preparation_of(config) if output is None else IntoFolder(Store(output, "name another folder behind --output"))
    )
    sources: list[Source] = []

    def records() -> Iterator[Record]:
        return (record for source in sources if not source.entry.held_out for record in source.records)

    bind_services(plugins, "preprocess", console.say, records)
    sources += preparation.read(config, plugins)
    tokenizer = load_tokenizer(config, plugins)
    encoded = prepare_sources(preparation, sources, plugins, tokenizer, None, console)
    datasets = build_datasets(sources, encoded, config, plugins, likely_limit(config), tokenizer.pad_token_id, console)
    assert datasets.sequences is not None  # It is no stream.
    arguments = config.trainer.arguments
    console.say(describe_plan(plan_run(config, datasets.sequences, arguments.physical_batch_size, 1), arguments))
    took = f"prepared in {clock(time.monotonic() - began)}"
    if isinstance(preparation, IntoFolder):
        tokenizer.save_pretrained(output / TOKENIZER)
        preparation.finish()
        console.say(f"{took}; train from it: dumbo {options.config} trainer.data.prepared={output}")
    else:
        console.say(f"{took}; the next run finds it in the cache (dumbo cache)")
