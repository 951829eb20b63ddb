"""What can be told of the options of distillation before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from dumbo.config.schema import RunConfig
from dumbo.errors import Problem
from dumbo.plugins.kd.options import KdOptions, TaughtOptions

_KEY = ("trainer", "kd")


def option_problems(options: KdOptions, config: RunConfig) -> Iterator[Problem]:
    """Everything that is wrong with them."""
    if options.teacher is not None and options.server is not None:
        yield Problem("teacher and server are both given", (*_KEY, "server"), hints=("remove one of them",))
    if options.recorded is not None and options.server is not None and "top_k" in options.server.model_fields_set:
        message = "a recording has as many as trainer.kd.recorded.top_k says"
        yield Problem(message, (*_KEY, "server", "top_k"), hints=("write it there",))
    if not options.alpha:
        yield Problem(
            "nothing is learned from the teacher", (*_KEY, "alpha"), hints=("write more than 0, such as 0.5",)
        )
    yield from _source_problems(options, config)
    yield from _divergence_problems(options, config)


def taught_entries(config: RunConfig) -> list[tuple[int, TaughtOptions]]:
    """The entries whose rows bring what a teacher said, by their positions."""
    formats = [(index, entry.data_format) for index, entry in enumerate(config.datasets)]
    return [(index, options) for index, options in formats if isinstance(options, TaughtOptions)]


def _source_problems(options: KdOptions, config: RunConfig) -> Iterator[Problem]:
    taught = taught_entries(config)
    named = next((name for name in ("recorded", "teacher", "server") if getattr(options, name) is not None), None)
    if named is None and not taught:
        hints = ("name a teacher, a server, or what was recorded", "dumbo explain trainer.kd lists them")
        yield Problem("there is no teacher", _KEY, hints=hints)
    if named is not None and taught:
        path = ("datasets", taught[0][0], "data_format")
        message = f"these rows bring what a teacher said, and trainer.kd.{named} is another teacher"
        yield Problem(message, path, hints=("remove one of the two",))
    counts = {entry.top_k for _, entry in taught}
    if len(counts) > 1:
        last = ("datasets", taught[-1][0], "data_format", "top_k")
        yield Problem("other rows have another top_k", last, hints=("write the same for all sources",))


def _divergence_problems(options: KdOptions, config: RunConfig) -> Iterator[Problem]:
    path = (*_KEY, "outside")
    if options.teacher is not None and options.recorded is None:
        if "outside" in options.model_fields_set:
            message = "a teacher in this process tells all of its tokens, and none is outside"
            yield Problem(message, path, hints=("remove it",))
        return
    if options.outside == "zero" and options.beta == 1:
        message = "KL(student || teacher) is infinite where the teacher gives tokens no probability"
        yield Problem(message, path, hints=("write outside: bucket, or ignored",))
    if options.outside == "bucket":
        warm = any(entry.temperature != 1 for _, entry in taught_entries(config))
        told_at_1 = options.server is not None or options.recorded is None
        if (options.temperature != 1 and told_at_1) or warm:
            message = "what is outside of the teacher's top_k is not known at another temperature than it was told at"
            yield Problem(message, path, hints=("write outside: zero, or ignored, or temperature: 1.0",))
