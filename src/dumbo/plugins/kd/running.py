"""Makes the loss of a run with its teacher, and puts what was recorded beside the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dumbo.config.schema import RunConfig
from dumbo.data.dataset import TokenDataset
from dumbo.errors import ConfigError
from dumbo.plugins.kd.options import KdOptions
from dumbo.plugins.kd.recording import Recording, is_same_teacher, teacher_name, vocabulary_digest
from dumbo.services import Services

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.plugins.kd.loss import KdLoss, Teacher
    from dumbo.plugins.kd.teachers import LiveTeacher

_FOLDER = "trainer.kd.recorded.folder"


def recorded_beside(
    dataset: TokenDataset, options: KdOptions, say: Callable[[str], None]
) -> tuple[Recording, TokenDataset]:
    """What was recorded, and the training set with it beside its tokens.

    Raises:
        ConfigError: there is none, or it is of other rows or another teacher, or of another kind than the options say,
            or nobody has checked it.
    """
    from pathlib import Path

    assert options.recorded is not None
    recording = Recording.open(Path(options.recorded.folder).expanduser())
    facts = recording.facts
    for name, wanted in (("top_k", options.recorded.top_k), ("dtype", options.recorded.dtype)):
        if name in options.recorded.model_fields_set and getattr(facts, name) != wanted:
            message = f"the recording in {recording.folder} has {getattr(facts, name)}"
            raise ConfigError.at(f"trainer.kd.recorded.{name}", message, "remove this key, or record it again")
    _insist_on_its_teacher(recording, options)
    if options.outside == "bucket" and facts.temperature != options.temperature:
        message = (
            f"the teacher was recorded at the temperature {facts.temperature:g}, and outside: bucket needs the same"
        )
        raise ConfigError.at("trainer.kd.temperature", message, "write outside: zero, or ignored, or record it again")
    taught = dataset.with_columns(recording.beside(dataset))
    if not recording.is_checked:
        message = f"the recording in {recording.folder} was not checked to its end"
        raise ConfigError.at(_FOLDER, message, "check it: dumbo teacher-logprobs CONFIG")
    said = f"{facts.top_k} log-probabilities at each place, of {facts.teacher}"
    say(f"kd: {recording.folder} has {said}")
    return recording, taught


def _insist_on_its_teacher(recording: Recording, options: KdOptions) -> None:
    name = teacher_name(options)
    if name is None or is_same_teacher(name, recording.facts.teacher):
        return
    key, part = ("teacher.path", "teacher") if options.teacher is not None else ("server.url", "server")
    message = f"in {recording.folder} is what another teacher said: {recording.facts.teacher}"
    another = "another trainer.kd.recorded.folder, and dumbo teacher-logprobs CONFIG"
    ways = f"to train on that, remove trainer.kd.{part}", f"to record this one, {another}"
    raise ConfigError.at(f"trainer.kd.{key}", message, *ways)


def build_loss(
    options: KdOptions,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    recording: Recording | None,
    services: Services,
) -> KdLoss:
    """The loss, with the teacher that the options name.

    Raises:
        ConfigError: the teacher has other tokens.
        RunError: it cannot be loaded, or does not answer.
    """
    from dumbo.plugins.kd.loss import KdLoss
    from dumbo.plugins.kd.teachers import RowTeacher, ServerTeacher

    num_tokens = count_tokens(tokenizer)
    teacher: Teacher
    if recording is not None:
        if recording.facts.vocabulary != vocabulary_digest(tokenizer):
            message = f"in {recording.folder} is what was said of another tokenizer's tokens"
            raise ConfigError.at(_FOLDER, message, "record it again: dumbo teacher-logprobs CONFIG")
        teacher = RowTeacher(options, recording.facts.temperature / options.temperature, num_tokens)
    elif options.teacher is not None:
        teacher = load_teacher(options, tokenizer, services)
    elif options.server is not None:
        from dumbo.plugins.kd.server import TeacherServer

        teacher = ServerTeacher(TeacherServer(options.server, services.say), options, num_tokens)
    else:
        teacher = RowTeacher(options, 1 / options.temperature, num_tokens)
    return KdLoss(options, teacher, services.say)


def count_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids there are, with gaps between them counted."""
    return max(tokenizer.get_vocab().values()) + 1


def load_teacher(options: KdOptions, tokenizer: PreTrainedTokenizerBase, services: Services) -> LiveTeacher:
    """The teacher in this process.

    Raises:
        ConfigError: its tokenizer is another one, or it has fewer embeddings than the student has tokens.
    """
    from dumbo.plugins.kd.teachers import LiveTeacher
    from dumbo.plugins.kd.vocabularies import insist_on_one_vocabulary

    assert options.teacher is not None
    insist_on_one_vocabulary(options.teacher.path, tokenizer)
    model = services.load_model(options.teacher.path)
    return LiveTeacher(model, options.teacher, options, count_tokens(tokenizer))
