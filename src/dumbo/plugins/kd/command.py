"""`dumbo teacher-logprobs CONFIG [KEY=VALUE ...]`: records what a teacher says of a run's training set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.plugins.kd.recording import (
    IDS,
    LOGPROBS,
    SHARD_TOKENS,
    Recording,
    RecordingFacts,
    teacher_name,
    tokens_digest,
    vocabulary_digest,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.configure import Configured
    from dumbo.console import Console
    from dumbo.data.dataset import TokenDataset
    from dumbo.data.records import Record
    from dumbo.data.sources import Source
    from dumbo.plugins.kd.options import KdOptions
    from dumbo.services import Services

_CHECKED = 8
"""Rows that are asked about a second time, alone."""
_FAR = 0.05
"""Probabilities of one token differ by less than this, however they are rounded; those of another place do not."""

Say = Callable[[Sequence[Mapping[str, Any]]], list[tuple[Any, Any]]]
"""Rows -> of each: token ids and log-probabilities, [tokens - 1, K]; row i of them predicts token i + 1."""


def record_logprobs(arguments: Sequence[str]) -> int:
    """Run the verb."""
    from dumbo.cli.flags import Parser
    from dumbo.configure import configure
    from dumbo.console import Console
    from dumbo.errors import ConfigError
    from dumbo.launch import Launch

    parser = Parser(prog="dumbo teacher-logprobs", description="Record what the teacher of a run says.")
    parser.add_argument("config", type=Path, help="YAML file with trainer.kd.recorded, and a teacher or a server")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that go before those of the file")
    parser.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="tokens that are read at once")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, metavar="N", help="tokens of a file, about")
    words = parser.parse_intermixed_args(arguments)
    if words.batch_tokens < 1 or words.shard_tokens < 1:
        parser.error("there must be at least one token")
    configured = configure(words.config, words.overrides, Launch())
    try:
        _record(configured, words, Console(goes_on=True))
    except ConfigError as error:
        raise configured.explain(error) from error
    return 0


def _record(configured: Configured, words: argparse.Namespace, console: Console) -> None:
    from dumbo.data.build import build_datasets
    from dumbo.data.prepared import preparation_of
    from dumbo.data.preparing import prepare_sources
    from dumbo.errors import ConfigError
    from dumbo.inspection.limits import likely_limit
    from dumbo.inspection.tokens import load_tokenizer
    from dumbo.plugin_loader import LossPlugin, ModelLoaderPlugin
    from dumbo.services import Services

    config, plugins = configured.config, configured.plugins
    plugin: Any = plugins.holder(LossPlugin) if plugins.names(LossPlugin) == ["kd"] else None
    if plugin is None:
        raise ConfigError.at("plugins", "'kd' is not listed", "add it, with trainer.kd.recorded and a teacher")
    _insist_on_somebody(plugin.options)
    if config.trainer.data.streaming:
        raise ConfigError.at("trainer.data.streaming", "of a stream nothing is recorded", "remove it")
    sources: list[Source] = []

    def records() -> Iterator[Record]:
        return (record for source in sources if not source.entry.held_out for record in source.records)

    loader: Any = plugins.holder(ModelLoaderPlugin)
    services = Services(output_dir=Path(), say=console.say, records=records, load_model=lambda name: loader.load(name))
    plugins.bind(services)
    preparation = preparation_of(config)
    sources += preparation.read(config, plugins)
    tokenizer = load_tokenizer(config, plugins)
    encoded = prepare_sources(preparation, sources, plugins, tokenizer, None, console)
    found: list[TokenDataset] = []
    plugin.record = found.append
    build_datasets(sources, encoded, config, plugins, likely_limit(config), tokenizer.pad_token_id, console)
    write_recording(found[0], plugin.options, tokenizer, services, console, words.batch_tokens, words.shard_tokens)


def _insist_on_somebody(options: KdOptions) -> None:
    from dumbo.errors import ConfigError

    if options.recorded is None:
        raise ConfigError.at("trainer.kd", "there is no place to record to", "write recorded: {folder: FOLDER}")
    if options.teacher is None and options.server is None:
        raise ConfigError.at("trainer.kd", "there is nobody to record", "write teacher: {path: FOLDER}, or a server")


def write_recording(
    dataset: TokenDataset,
    options: KdOptions,
    tokenizer: PreTrainedTokenizerBase,
    services: Services,
    console: Console,
    batch_tokens: int,
    shard_tokens: int,
) -> None:
    """Write the files of a training set, or those that are missing, and look at some of their rows again, unless that
    was done.

    Raises:
        ConfigError: there is another recording in the folder.
        RunError: the teacher says something else of a row when it is asked again.
    """
    from dumbo.errors import ConfigError
    from dumbo.plugins.kd.running import count_tokens

    recorded = options.recorded
    name, temperature = teacher_name(options), 1.0 if options.teacher is None else options.temperature
    assert recorded is not None and name is not None
    if recorded.top_k > count_tokens(tokenizer):
        message = f"there are {count_tokens(tokenizer)} tokens"
        raise ConfigError.at("trainer.kd.recorded.top_k", message, "write no more than these")
    kind = (recorded.top_k, recorded.dtype, temperature, shard_tokens)
    facts = RecordingFacts(tokens_digest(dataset), vocabulary_digest(tokenizer), name, *kind)
    recording = Recording.begin(Path(recorded.folder).expanduser(), facts)
    shards = list(recording.shards(dataset))
    left = [shard for shard in shards if not recording.is_whole(shard[0], shard[2])]
    if left and len(left) < len(shards):
        console.say(f"going on: {len(shards) - len(left)} of {len(shards)} files are there")
    if left or not recording.is_checked:
        # First of all: what is written from here on is trained on by nobody before it was looked at.
        recording = recording.marked(is_checked=False)
        say = _speaker(options, tokenizer, services)
        total = sum(tokens for _, _, tokens in left)
        bar = iter(console.track(range(total), "asking the teacher", total) if left else ())
        for number, place, tokens in left:
            recording.write(number, _shard(dataset, place, tokens, recording, say, batch_tokens, bar))
        list(bar)
        _look_again(dataset, recording, say)
        recording.marked(is_checked=True)
        already = "" if left else "; it was whole, and is checked now"
    else:
        already = "; it was whole already, and checked"
    size = sum(file.stat().st_size for file in recording.folder.iterdir()) / 2**20
    said = f"{len(dataset):,} rows, {dataset.num_tokens:,} tokens, {size:,.1f} MiB"
    console.say(f"{recording.folder}: {said}{already}")


def _speaker(options: KdOptions, tokenizer: PreTrainedTokenizerBase, services: Services) -> Say:
    """Asks the teacher about rows."""
    from dumbo.plugins.kd.running import load_teacher

    assert options.recorded is not None
    count = options.recorded.top_k
    if options.server is not None:
        from dumbo.plugins.kd.server import TeacherServer

        client = TeacherServer(options.server.model_copy(update={"top_k": count}), services.say)
        return lambda rows: client.top_k([row["input_ids"].tolist() for row in rows])
    import torch

    from dumbo.data.collate import PaddingCollator

    teacher = load_teacher(options, tokenizer, services)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    collate = PaddingCollator(0)

    def say(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
        batch = collate([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        # Behind the last token of a row nothing is predicted.
        kept = torch.nn.functional.pad(inputs["attention_mask"][:, 1:].bool(), (0, 1))
        ids, logs = teacher.top_k(inputs, kept, count)
        lengths = [len(row["input_ids"]) - 1 for row in rows]
        return list(zip(torch.split(ids, lengths), torch.split(logs, lengths), strict=True))

    return say


def _shard(
    dataset: TokenDataset,
    place: slice,
    tokens: int,
    recording: Recording,
    say: Say,
    batch_tokens: int,
    bar: Iterator[Any],
) -> dict[str, Any]:
    """What the teacher says of the rows of a shard."""
    values = {name: kind.defaults(tokens) for name, kind in recording.types.items()}
    at = 0
    for rows in _batches(dataset, place, batch_tokens):
        items = [dataset[row] for row in rows]
        for item, (ids, logs) in zip(items, say(items), strict=True):
            length = len(item["input_ids"])
            values[IDS][at : at + length - 1] = ids.numpy()
            values[LOGPROBS][at : at + length - 1] = logs.float().numpy()
            at += length
            for _ in range(length):
                next(bar, None)
    return values


def _batches(dataset: TokenDataset, place: slice, batch_tokens: int) -> Iterator[list[int]]:
    """Rows after each other, as many as have `batch_tokens` when they are padded."""
    rows: list[int] = []
    longest = 0
    for row in range(place.start, place.stop):
        length = int(dataset.length[row])
        if rows and max(longest, length) * (len(rows) + 1) > batch_tokens:
            yield rows
            rows, longest = [], 0
        rows.append(row)
        longest = max(longest, length)
    if rows:
        yield rows


def _look_again(dataset: TokenDataset, recording: Recording, say: Say) -> None:
    """Compare some rows, by themselves, with what stands beside them."""
    import numpy as np

    from dumbo.errors import RunError

    beside = dataset.with_columns(recording.beside(dataset))
    for row in np.linspace(0, len(dataset) - 1, min(_CHECKED, len(dataset)), dtype=int).tolist():
        item = beside[row]
        [(ids, logs)] = say([item])
        for position in range(len(item["input_ids"]) - 1):
            known = dict(zip(item[IDS][position].tolist(), np.exp(item[LOGPROBS][position].astype(float)), strict=True))
            again = dict(zip(ids[position].tolist(), np.exp(logs[position].double().numpy()), strict=True))
            # Which of two alike is the last of the K may change.
            far = [abs(known[token] - again[token]) for token in known.keys() & again.keys()]
            # What is no number is not near to anything.
            is_near = bool(far) and all(gap <= _FAR for gap in far)
            if not is_near or max(known, key=known.get) not in again:  # type: ignore[arg-type]
                message = f"the teacher says something else of row {row}, token {position + 1}, when it is asked again"
                raise RunError(f"{message}\n    the recording in {recording.folder} cannot be trusted: remove it")
