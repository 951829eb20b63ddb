"""What happens in a run: model -> tokenizer -> patches -> datasets -> trainer -> output, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dumbo import plugin_loader as hooks
from dumbo.checkpoint.folder import remove_rolling
from dumbo.checkpoint.resume import ResumeRequest
from dumbo.configure import Configured, configure
from dumbo.console import Console, clock
from dumbo.data.prepared import preparation_of
from dumbo.errors import ConfigError, Interrupted, Terminated
from dumbo.job import Artifact, Job, Trainer
from dumbo.launch import Launch
from dumbo.log_redaction import redacting_logs
from dumbo.run import OpenRun, open_run
from dumbo.run_folder import model_folder
from dumbo.termination import raising_on_termination


def train(
    config_file: Path, overrides: Sequence[str], launch: Launch, request: ResumeRequest | None = None
) -> Artifact:
    """Train what `config_file` describes and return what came out; with a `request`, go on with a run of it.

    Raises:
        DumboError: with a message for the user; the run's folder holds what was reached, or is gone if nothing was.
    """
    configured = configure(config_file, overrides, launch)
    try:
        with raising_on_termination(), redacting_logs():
            return _train(configured, Console(enabled=launch.is_first, goes_on=True), launch, request)
    except ConfigError as error:
        raise configured.explain(error) from error


def _train(configured: Configured, console: Console, launch: Launch, request: ResumeRequest | None) -> Artifact:
    config, plugins = configured.config, configured.plugins
    console.say(f"{configured.source.file}: {', '.join(plugin.name for plugin in plugins.found)}")
    with open_run(configured, console, launch, request) as run:
        preparation = preparation_of(config)
        run.start(preparation.read(config, plugins))
        model = run.load_model()
        tokenizer = run.load_tokenizer(model)
        model = run.fit_embeddings(model, tokenizer)
        model = run.patch_model(model)
        datasets = run.build_datasets(model, tokenizer, preparation)
        collator = run.build_collator(tokenizer) or datasets.padding_collator
        job = Job(
            config=config,
            model=model,
            tokenizer=tokenizer,
            train_dataset=datasets.train,
            eval_dataset=datasets.evaluation,
            sequences=datasets.sequences,
            collator=datasets.packing_collator or collator,
            eval_collator=collator,
            loss=run.build_loss(tokenizer),
            build_optimizer=plugins.seat(hooks.OptimizerPlugin, config),
            learning_rate_factors=run.learning_rate_factors(),
            build_scheduler=plugins.seat(hooks.SchedulerPlugin, config),
            evaluators=run.build_evaluators(),
            callbacks=[c for _, callbacks in plugins.call_each(hooks.CallbackPlugin, config) for c in callbacks],
            metrics=run.metrics,
            console=console,
            output_dir=run.folder,
            stream=datasets.stream,
            run_state=run.state(),
            find_origin=datasets.find_origin,
            rows_are_separate=plugins.rows_are_separate,
            leave_word=run.leave_word,
        )
        trainer = plugins.call_one(hooks.TrainerPlugin, job)
        artifact = _train_and_save(trainer, run, console)
        if launch.is_first:
            artifact = plugins.fold(hooks.OutputPlugin, artifact, config)
            remove_rolling(run.folder)
        return artifact


def _train_and_save(trainer: Trainer, run: OpenRun, console: Console) -> Artifact:
    """Train and write the model; that of a run which ended early goes where nobody takes it for the finished one."""
    began = time.monotonic()
    run.has_trained = True
    with run.blaming_plugins("training"):
        result = trainer.train()
    run.tell_stream()
    folder = result.checkpoint or model_folder(run.folder, result.steps if result.stopped_early else None)
    if result.checkpoint is None:
        with run.blaming_plugins("saving"):
            trainer.save_model(folder)
    run.summary.note_all({"steps": result.steps, "total_steps": result.total_steps, "model": str(folder)})
    if result.stopped_early:
        stopped = f"stopped after step {result.steps} of {result.total_steps}; the model as it was is in {folder}"
        if result.failure is not None:
            console.say(stopped + run.ways_on(result))
        raise result.failure or (Terminated if result.terminated else Interrupted)(stopped + run.ways_on(result))
    console.say(f"trained {result.words} in {clock(time.monotonic() - began)}; the model is in {folder}")
    return Artifact(folder, result.steps)
