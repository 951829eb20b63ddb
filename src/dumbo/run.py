"""A run that is open: its folder, its metrics, and what its plugins may ask for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.blame import describe, describe_exit, passed_through
from dumbo.checkpoint.opening import read_opening
from dumbo.checkpoint.resume import ResumeRequest, Resumption, claim_run, config_tree, resume_command
from dumbo.configure import Configured
from dumbo.console import Console
from dumbo.data.sources import Source
from dumbo.errors import ConfigError, DumboError, Interrupted, OutOfMemory, PluginError
from dumbo.launch import Launch
from dumbo.metrics import Metrics, RunInfo
from dumbo.plugin_finder import FoundPlugin
from dumbo.plugin_loader import (
    CollatorPlugin,
    EvaluatorPlugin,
    GeneratorPlugin,
    LoadOptionsPlugin,
    LoggingPlugin,
    LossPlugin,
    ModelLoaderPlugin,
    ModelPatcherPlugin,
    Phase,
    Services,
    StatePlugin,
)
from dumbo.plugin_results import checked_collator, checked_evaluator, merge_load_options
from dumbo.run_folder import MetricsFile, discard_folder, remove_if_empty, resolved_tree, write_run_file
from dumbo.run_lock import RunLock
from dumbo.summary import Summary, installed_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.data.build import Datasets
    from dumbo.data.dataset import TokenDataset
    from dumbo.data.preparing import Preparation
    from dumbo.data.records import Record
    from dumbo.inference.generate import TextGenerator
    from dumbo.job import Collator, Evaluator, Loss, RateFactor, RunState, TrainResult


@dataclass
class OpenRun:
    """What the pipeline holds while a run is open."""

    configured: Configured
    folder: Path
    console: Console
    launch: Launch
    summary: Summary
    lock: RunLock | None
    """What holds the folder, on the first rank."""
    metrics: Metrics = field(default_factory=lambda: Metrics(()))
    sources: Sequence[Source] = ()
    """The rows that were read, as records."""
    has_trained: bool = False
    """Whether there may be something in the folder that is worth keeping."""
    train_set: TokenDataset | None = None
    """What is trained on, once the datasets are built; None for a stream."""
    held_out: TokenDataset | None = None
    """The held-out rows, once the datasets are built."""
    resumption: Resumption | None = None
    """The checkpoint that the run goes on from."""
    opening: Mapping[str, Any] = field(default_factory=lambda: read_opening(None))
    """Where the stream and the trackers were then."""
    _trained: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    _generator: TextGenerator | None = None
    _stream_table: Callable[[], Sequence[Mapping[str, Any]]] | None = None

    def start(self, sources: Sequence[Source]) -> None:
        """The rows are fine: open the trackers, and get ready for models.

        Raises:
            DumboError: a tracker cannot be opened.
        """
        from dumbo.bridge.quiet import quieten_libraries

        self.sources = sources
        if self.launch.is_first:
            self._open_trackers()
        quieten_libraries()
        _seed(self.configured.config.trainer.seed)

    def _open_trackers(self) -> None:
        tree = resolved_tree(self.configured.source)
        write_run_file(self.folder, tree, self.configured.source.file.parent)
        file = MetricsFile(self.console.say)
        own = [("console", self.console), ("metrics.jsonl", file), ("summary.json", self.summary)]
        self.metrics = Metrics([*own, *self.configured.plugins.call_each(LoggingPlugin)])
        step = self.resumption.step if self.resumption is not None else 0
        self.metrics.open(RunInfo(self.folder.name, self.folder, tree, step=step), self.opening["trackers"])
        self.console.say(f"run folder {self.folder}")

    def load_model(self) -> PreTrainedModel:
        """The model, by the plugin in that seat, with what other plugins ask for in its loading."""
        plugins, config = self.configured.plugins, self.configured.config
        options = merge_load_options(plugins.call_each(LoadOptionsPlugin, config))
        loader = plugins.holder(ModelLoaderPlugin)
        if options:
            if not hasattr(type(loader), "extra_load_kwargs"):
                message = (
                    f"the plugin '{plugins.names(ModelLoaderPlugin)[0]}', which loads the model, takes no load options"
                )
                raise PluginError(f"{message}, and other plugins have some: {', '.join(options)}")
            loader.extra_load_kwargs = options  # type: ignore[attr-defined]
        model: PreTrainedModel = plugins.call_one(ModelLoaderPlugin, config)
        return model

    def load_another_model(self, name: str) -> PreTrainedModel:
        """Another model than the run's, for a plugin that asks through its services."""
        loader: Any = self.configured.plugins.holder(ModelLoaderPlugin)
        if not hasattr(loader, "load"):
            name = self.configured.plugins.names(ModelLoaderPlugin)[0]
            raise PluginError(f"the plugin '{name}' loads the run's model only: it has no method 'load'")
        model: PreTrainedModel = loader.load(name)
        return model

    def load_tokenizer(self, model: PreTrainedModel) -> PreTrainedTokenizerBase:
        """The tokenizer, by the plugin in that seat, with what others change in it."""
        from dumbo.tokenizers.loading import load_run_tokenizer

        return load_run_tokenizer(self.configured.plugins, self.configured.config, model)

    def patch_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model as all patchers leave it.

        Raises:
            PluginError: there is nothing left in it to train.
        """
        plugins = self.configured.plugins
        config = self.configured.config
        model = plugins.fold(ModelPatcherPlugin, model, config, (Phase.STRUCTURE, Phase.ADAPTER, Phase.FREEZE))
        if config.model.unfrozen_parameters:
            from dumbo.bridge.freezing import train_only

            train_only(model, config.model.unfrozen_parameters, self.console.say)
        model = plugins.fold(ModelPatcherPlugin, model, config, (Phase.KERNELS,))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            names = [f"'{name}'" for name in plugins.names(ModelPatcherPlugin) or plugins.names(ModelLoaderPlugin)]
            which = f"the plugin {names[0]}" if len(names) == 1 else f"the plugins {', '.join(names)}"
            message = "no parameter is trained: none is left with requires_grad"
            raise PluginError(f"{message}; look at {which}")
        self._show_parameters(model)
        return model

    def _show_parameters(self, model: PreTrainedModel) -> None:
        from dumbo.bridge.parameters import count_parameters, trained_names

        self.summary.note("trained_parameters", trained_names(model))
        rows = count_parameters(model)
        self.summary.note("parameters", rows)
        total = {name: sum(row[name] for row in rows) for name in ("trainable", "frozen")}
        kept = ["part", "trainable", *(["frozen"] if total["frozen"] else [])]
        self.console.table(kept, [[row[name] for name in kept] for row in [*rows, {"part": "all", **total}]])

    def build_datasets(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, preparation: Preparation
    ) -> Datasets:
        """What is trained and evaluated on, sets or a stream; from now on plugins may ask for it, and for the model.

        Raises:
            DataError: rows that cannot be used, unless the configuration says what to do with them.
        """
        from dumbo.bridge.embeddings import embedding_rows
        from dumbo.data.build import build_datasets
        from dumbo.data.build_stream import build_stream
        from dumbo.data.lengths import sequence_length
        from dumbo.data.preparing import prepare_sources

        config, plugins, sources = self.configured.config, self.configured.plugins, self.sources
        limit, known = sequence_length(config, model), embedding_rows(model)
        if config.trainer.data.streaming:
            assert limit is not None  # The configuration is refused otherwise.
            state = self.opening["stream"]
            datasets = build_stream(sources, config, plugins, tokenizer, known, limit, self.console, state)
        else:
            encoded = prepare_sources(preparation, sources, plugins, tokenizer, known, self.console)
            pad = tokenizer.pad_token_id
            datasets = build_datasets(sources, encoded, config, plugins, limit, pad, self.console)
        self.summary.note("data", datasets.table)
        self.train_set, self.held_out = datasets.train, datasets.evaluation
        self._trained = (model, tokenizer)
        if plugins.names(GeneratorPlugin):
            self.generator()  # Now, as a plugin that fails should fail before the training.
        self._stream_table = datasets.stream_table
        return datasets

    def tell_stream(self) -> None:
        """Show what was trained on of the sources of a stream, where there is one, and keep it."""
        from dumbo.data.source_table import print_sources

        if self._stream_table is not None:
            table = self._stream_table()
            self.console.say("trained on so far:")
            print_sources(table, None, self.sources, self.console)
            self.summary.note("data", table)

    def records(self) -> Iterator[Record]:
        """The records of all sources but those that are held out whole; those of a stream are read anew."""
        from dumbo.data.lazy_rows import iterate_records

        for source in self.sources:
            if not source.entry.held_out:
                is_streamed = self.configured.config.trainer.data.streaming
                yield from iterate_records(source, self.configured.plugins) if is_streamed else source.records

    def generator(self) -> TextGenerator | None:
        """What writes text with the model."""
        if self._generator is None and self._trained is not None:
            from dumbo.inference.choosing import generator_of_run

            self._generator = generator_of_run(self.configured.plugins, self.configured.config, *self._trained)
        return self._generator

    def build_loss(self, tokenizer: PreTrainedTokenizerBase) -> Loss | None:
        """The loss that plugins want; None where none of them wants another one than every run has."""
        from dumbo.bridge.loss_seat import build_loss

        return build_loss(self.configured, tokenizer, self.console.say)

    def build_collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator | None:
        """What the plugin in that seat makes batches with; it is blamed for what is wrong with them.

        Raises:
            ConfigError: rows are to be packed, of which the plugin knows nothing.
        """
        plugins, config = self.configured.plugins, self.configured.config
        collator: Collator | None = plugins.call_seat(CollatorPlugin, config, tokenizer)
        names = plugins.names(CollatorPlugin)
        if collator is not None and config.trainer.data.packing:
            message = f"the plugin '{names[0]}' makes the batches, and packs no rows"
            raise ConfigError.at("trainer.data.packing", message, "remove one of the two")
        return None if collator is None else checked_collator(names[0], collator, bool(plugins.names(LossPlugin)))

    def learning_rate_factors(self) -> list[RateFactor]:
        """What of the model learns at another rate."""
        from dumbo.rate_factors import collect_rate_factors

        return collect_rate_factors(self.configured)

    def ways_on(self, result: TrainResult) -> str:
        """A line that says how a run which was stopped goes on."""
        return "" if result.checkpoint is None else f"\n    to go on: {resume_command(self.configured, self.folder)}"

    def state(self) -> RunState:
        """What of the run goes into its checkpoints."""
        from dumbo.job import RunState

        plugins = self.configured.plugins
        return RunState(
            config=config_tree(self.configured),
            versions=installed_versions(),
            plugin_states=lambda: dict(plugins.call_each(StatePlugin)),
            load_plugin_states=plugins.load_states,
            tracker_states=self.metrics.states,
            resumption=self.resumption,
        )

    def leave_word(self, error: str) -> None:
        """The process is about to end where it stands: say what ended the run, and give its folder free."""
        self.summary.note("error", error)
        self.summary.end("failed")
        if self.lock is not None:
            self.lock.release()

    def close(self, outcome: str) -> None:
        """End trackers and progress, and leave a report in the folder if there is something to tell."""
        try:
            self.metrics.close(outcome)
            self.console.stop_training()
            if self.launch.is_first:
                discard_folder(self.folder)
                if (self.folder / "metrics.jsonl").exists():
                    self.summary.end(outcome)
                    if self.has_trained:
                        self._report()
        finally:
            if self.lock is not None:
                self.lock.release()
                remove_if_empty(self.folder)
            self.launch.disconnect()

    def _report(self) -> None:
        try:
            from dumbo.output.report import write_report

            said = f"report: {write_report(self.folder)}"
        except Exception as error:  # the run itself is fine, and its files are there
            said = f"the report could not be written: {describe(error, type(self))}"
        self.console.say(said)

    def build_evaluators(self) -> list[Evaluator]:
        """What measures the model; each is blamed for what it returns."""
        plugins = self.configured.plugins
        return [checked_evaluator(*pair) for pair in plugins.call_each(EvaluatorPlugin, self.configured.config)]

    @contextmanager
    def blaming_plugins(self, stage: str) -> Iterator[None]:
        """Turn an error that passed through a plugin's own file, such as its loss or callback, into one that names
        it."""
        try:
            yield
        except OutOfMemory as error:
            blamed = passed_through(error.reason, self.configured.plugins.found)
            raise (error.within(_names(blamed)) if blamed else error) from error.reason
        except DumboError:
            raise
        except (Exception, SystemExit) as error:
            blamed = passed_through(error, self.configured.plugins.found)
            if not blamed:
                raise
            names = _names(blamed)
            if isinstance(error, SystemExit):
                message = f"plugin {names} ended the program during {stage} ({describe_exit(error, blamed[0].type)})"
                raise PluginError(message) from error
            raise PluginError(f"plugin {names} failed during {stage}: {describe(error, blamed[0].type)}") from error

    def fit_embeddings(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model with a row for every token."""
        from dumbo.bridge.embeddings import fit_embeddings

        return fit_embeddings(model, tokenizer, self.console.say)


@contextmanager
def open_run(
    configured: Configured, console: Console, launch: Launch, request: ResumeRequest | None = None
) -> Iterator[OpenRun]:
    """Claim the folder and bind the plugins; at the end close everything, however the run ended. With a `request`, go
    on with a run that was stopped.

    Raises:
        DumboError: the folder cannot be made or holds a run already, or a run cannot go on.
    """
    config, plugins = configured.config, configured.plugins
    launch.connect(config.trainer.arguments)
    lock: RunLock | None = None

    def claim() -> tuple[Path, Resumption | None]:
        nonlocal lock
        lock, resumption = claim_run(configured, request, launch.world_size, console.say)
        return lock.folder, resumption

    folder, resumption = launch.decide(claim)
    summary = Summary(folder, configured.source.file, [plugin.name for plugin in plugins.found], launch.is_first)
    opening = read_opening(resumption.checkpoint if resumption is not None else None)
    run = OpenRun(configured, folder, console, launch, summary, lock, resumption=resumption, opening=opening)
    services = Services(
        output_dir=folder,
        say=console.say,
        records=run.records,
        load_model=run.load_another_model,
        train_set=lambda: run.train_set,
        held_out=lambda: run.held_out,
        generator=run.generator,
        note=summary.note,
        rank=launch.rank,
        world_size=launch.world_size,
    )
    outcome = "failed"
    try:
        summary.write()
        console.tell(summary.progress)
        plugins.bind(services)
        yield run
        outcome = "finished"
    except (Interrupted, KeyboardInterrupt) as error:
        outcome = "interrupted"
        if isinstance(error, Interrupted):
            raise
        raise Interrupted("stopped; nothing was trained" if not run.has_trained else "stopped") from None
    except (Exception, SystemExit) as error:
        summary.note("error", str(error) if isinstance(error, DumboError) else describe(error))
        raise
    finally:
        run.close(outcome)


def _names(plugins: Sequence[FoundPlugin]) -> str:
    return " or ".join(f"'{plugin.name}'" for plugin in plugins)


def _seed(seed: int) -> None:
    """Seed every generator that models and plugins draw from."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
