"""Finds the run and the checkpoint to go on from, and sees to it that the configuration is still the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.checkpoint.changes import begins, changed_keys, check_changes
from dumbo.checkpoint.folder import take_up, tidy, whole_checkpoints
from dumbo.checkpoint.manifest import Damaged, Manifest
from dumbo.errors import ConfigError, KeyPath, Problem, RunError, RunFinished, dotted
from dumbo.plugin_loader import TrainerPlugin
from dumbo.redact import redact
from dumbo.run_folder import checkpoints_of, claim_folder, default_folders, hold_folder, resolved_tree
from dumbo.run_lock import RunLock
from dumbo.summary import installed_versions, outcome_of

if TYPE_CHECKING:
    from dumbo.configure import Configured

_WATCHING = ("get_metrics_collector", "run_command", "after_train")
"""What a plugin's hooks may be for its options to leave the weights alone."""


@dataclass(frozen=True)
class ResumeRequest:
    """What the user wrote: `--resume --from WHERE --allow-change KEY`."""

    where: Path | None = None
    """A run's folder or one of its checkpoints; None: the run that the configuration names."""
    allowed: tuple[str, ...] = ()
    """Keys that may differ from the checkpoint's configuration."""


@dataclass(frozen=True)
class Resumption:
    """A run that goes on."""

    run_folder: Path
    checkpoint: Path | None
    """None where the run was stopped before its first checkpoint: it begins anew."""
    manifest: Manifest | None
    changed: tuple[KeyPath, ...] = ()
    """Keys with other values than in the checkpoint, as the user allowed."""

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return self.manifest.step if self.manifest else 0


def claim_run(
    configured: Configured, request: ResumeRequest | None, world_size: int, say: Callable[[str], None]
) -> tuple[RunLock, Resumption | None]:
    """The folder of a new run, or with a `request` that of the run that goes on, with its checkpoint; it is held.

    Raises:
        DumboError: the folder holds another run, somebody else holds it, it cannot be written to, or the run cannot
            go on.
    """
    output_dir, file, plugins = configured.config.trainer.output_dir, configured.source.file, configured.plugins
    if request is None:
        return claim_folder(output_dir, file), None
    if not getattr(plugins.holder(TrainerPlugin), "resumes", False):
        name = plugins.names(TrainerPlugin)[0]
        raise RunError(f"--resume: the plugin '{name}', which trains, cannot go on from a checkpoint")
    folder = find_run(request, output_dir, file)
    if folder is None:
        _refuse_unknown(configured, request)
        say("--resume: this configuration has no run yet: a new one begins")
        return claim_folder(output_dir, file), None
    lock = hold_folder(folder, file)
    try:
        resumption = choose_checkpoint(folder, request, configured, world_size, say)
    except BaseException:
        lock.release()
        raise
    if resumption.checkpoint is not None:
        say(f"going on with {folder} after step {resumption.step} ({resumption.checkpoint.name})")
    return lock, resumption


def find_run(request: ResumeRequest, output_dir: str | None, config_file: Path) -> Path | None:
    """The folder of the run to go on with; None where the configuration has not left one yet.

    Raises:
        RunError: the folder that the user named is no run's.
    """
    if request.where is not None:
        folder = request.where
        # The name alone does not tell: `.` may be a checkpoint.
        run = folder.resolve().parent.parent if folder.resolve().parent.name == "checkpoints" else folder
        if not folder.is_dir() or not (run / "run.yaml").is_file():
            message = f"--from: '{folder}' is neither the folder of a run nor one of its checkpoints"
            raise RunError(str(Problem(message, hints=("'dumbo runs' lists the runs",))))
        return run
    if output_dir is not None:
        return Path(output_dir) if (Path(output_dir) / "run.yaml").is_file() else None
    started = [path for path in default_folders(config_file) if (path / "run.yaml").is_file()]
    return max(started, key=lambda path: (path / "run.yaml").stat().st_mtime, default=None)


def resume_command(configured: Configured, run_folder: Path) -> str:
    """What goes on with the run in `run_folder`, as one writes it in a shell."""
    source = configured.source
    found = find_run(ResumeRequest(), configured.config.trainer.output_dir, source.file)
    is_found = found is not None and found.resolve() == run_folder.resolve()
    where = [] if is_found else ["--from", str(run_folder)]
    return shlex.join(["dumbo", "train", str(source.file), *source.overrides, "--resume", *where])


def choose_checkpoint(
    run_folder: Path, request: ResumeRequest, configured: Configured, world_size: int, say: Callable[[str], None]
) -> Resumption:
    """The newest whole checkpoint, or the one that was named; for the owner of the run's lock.

    Raises:
        RunFinished: there is nothing to do.
        RunError: no checkpoint can be used, or not the one that was named, or there were more or fewer processes.
        ConfigError: the configuration has changed in a way that was not allowed.
    """
    tidy(run_folder)
    found = _checkpoint(run_folder, request, say)
    if found is None:
        return _without_checkpoint(run_folder, request, configured, say)
    checkpoint, manifest = found
    if manifest.world_size != world_size:
        message = f"{checkpoint} was written by {manifest.world_size} processes, and this run has {world_size}"
        hint = f"start as many, or a new run from its weights: model.base_model: {checkpoint}"
        raise RunError(str(Problem(message, hints=(hint,))))
    try:
        now, harmless = config_tree(configured), _watching(configured)
        changed = check_changes(manifest.config, now, request.allowed, harmless, checkpoint)
    except ConfigError as error:
        raise configured.explain(error) from error
    if is_finished(run_folder) and not changed and not _names_checkpoint(request, run_folder):
        hint = "to train on for longer: write more num_train_epochs or max_steps, and allow it with --allow-change KEY"
        raise _finished(run_folder, hint)
    checkpoint, others = take_up(run_folder, checkpoint, manifest.step)
    for aside in others:
        say(f"the run takes another way from here: a later checkpoint is kept as {aside}")
    _tell_versions(manifest, say)
    return Resumption(run_folder, checkpoint, manifest, changed)


def _without_checkpoint(
    run_folder: Path, request: ResumeRequest, configured: Configured, say: Callable[[str], None]
) -> Resumption:
    """A run that begins anew, if nothing is lost by that."""
    _refuse_unknown(configured, request)
    model = run_folder / "model"
    new_run = "start a new run in another folder"
    if is_finished(run_folder):
        # What was allowed and is the same as it was asks for nothing.
        if any(begins(dotted(path), key) for key in request.allowed for path in _changed_since(run_folder, configured)):
            message = f"the run in {run_folder} is finished and kept no checkpoint to train on from"
            raise RunError(str(Problem(message, hints=(f"{new_run}, with model.base_model: {model}",))))
        raise _finished(run_folder, f"to train on from its model: {new_run}, with model.base_model: {model}")
    if checkpoints_of(run_folder):
        message = f"no checkpoint in {run_folder / 'checkpoints'} can be used"
        hint = f"{new_run}; the weights of one that is damaged elsewhere can still be its model.base_model"
        raise RunError(str(Problem(message, hints=(hint,))))
    if model.exists():
        message = f"the run in {run_folder} has trained to its end, failed after it, and has no checkpoint"
        raise RunError(str(Problem(message, hints=(f"its model is in {model}", new_run))))
    say(f"{run_folder} has no checkpoint yet: it begins anew")
    return Resumption(run_folder, None, None)


def is_finished(run_folder: Path) -> bool:
    """Whether the run has come to its end, outputs and all."""
    outcome = outcome_of(run_folder)
    return (run_folder / "model").exists() if outcome is None else outcome == "finished"


def _finished(run_folder: Path, hint: str) -> RunFinished:
    return RunFinished(str(Problem(f"the run in {run_folder} is finished", hints=(hint,))))


def _refuse_unknown(configured: Configured, request: ResumeRequest) -> None:
    """Raise a `ConfigError` for a key that may change and does not exist, where there is nothing to compare with."""
    now = config_tree(configured)
    check_changes(now, now, request.allowed)


def _changed_since(run_folder: Path, configured: Configured) -> Iterable[KeyPath]:
    """The keys that were written with other values when the run began, as far as its file tells; without plugins,
    whose addresses are written from another folder there."""
    from dumbo.config.yaml_tree import parse_yaml

    file = run_folder / "run.yaml"
    written = parse_yaml(file.read_text(encoding="utf-8"), str(file)).value
    before, now = ({**tree, "plugins": []} for tree in (written, resolved_tree(configured.source)))
    return changed_keys(before, now)


def _tell_versions(manifest: Manifest, say: Callable[[str], None]) -> None:
    """Say which libraries are others than those that wrote the checkpoint."""
    now = installed_versions()
    names = [name for name in manifest.versions if now.get(name) != manifest.versions[name]]
    others = ", ".join(f"{name} {manifest.versions[name]} (now {now.get(name, 'none')})" for name in names)
    if others:
        say(f"the checkpoint was written with {others}: what follows may differ in the last digits")


def _names_checkpoint(request: ResumeRequest, run_folder: Path) -> bool:
    return request.where is not None and request.where.resolve() != run_folder.resolve()


def _checkpoint(run_folder: Path, request: ResumeRequest, say: Callable[[str], None]) -> tuple[Path, Manifest] | None:
    if _names_checkpoint(request, run_folder):
        assert request.where is not None
        try:
            manifest = Manifest.read(request.where)
            manifest.check(request.where)
        except Damaged as damage:
            others = [path.name for path in checkpoints_of(run_folder) if path.name != request.where.name]
            hint = f"the run has {', '.join(others)} too; without --from the newest whole one is taken"
            hints = (hint,) if others else ()
            raise RunError(str(Problem(f"{request.where} cannot be used: {damage}", hints=hints))) from damage
        return request.where, manifest
    return next(whole_checkpoints(run_folder, say), None)


def config_tree(configured: Configured) -> dict[str, Any]:
    """The whole configuration with every default, environment values by their names and secrets left out."""
    tree = configured.config.model_dump(mode="json")
    for path, template in configured.source.templates.items():
        _put(tree, path, template)
    plain: dict[str, Any] = json.loads(json.dumps(redact(tree)))
    return plain


def _put(tree: Any, path: KeyPath, value: str) -> None:
    for part in path[:-1]:
        if isinstance(tree, Mapping) and part not in tree:
            return  # a short form was written out: `data_format: name`
        tree = tree[part]
    if isinstance(tree, dict | list):
        tree[path[-1]] = value  # type: ignore[index]


def _watching(configured: Configured) -> list[str]:
    """The sections of plugins that do nothing but watch or work with what comes out."""
    from dumbo.plugin_interfaces import INTERFACES

    sections = []
    for plugin in configured.plugins.found:
        hooks = {interface.hook for interface in INTERFACES if hasattr(plugin.type, interface.hook)}
        if plugin.type.section is not None and hooks and hooks <= {*_WATCHING}:
            sections.append(plugin.type.section)
    return sections
