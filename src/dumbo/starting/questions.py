"""The answers behind a first configuration: from flags, from questions on a terminal, or by default."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dumbo.errors import DumboError
from dumbo.starting import answers as known
from dumbo.starting.answers import Answers
from dumbo.starting.asking import Choice, ask, choose
from dumbo.starting.machine import find_gpu
from dumbo.starting.models import FoundModel, named_model, offered_models
from dumbo.starting.rows import EXAMPLE_HUB_DATA, FoundData, alpaca_format, named_data, nearby_data


@dataclass(frozen=True)
class Flags:
    """What the command line has answered already; None where it says nothing."""

    model: str | None = None
    data: str | None = None
    lora: bool | None = None
    held_out: str | None = None
    tracker: str | None = None


@dataclass(frozen=True)
class _Random:
    """Stands for no model among the choices, where None would be no answer."""


def gather(flags: Flags, asks: bool) -> Answers:
    """All answers; those that no flag gives are asked for, or (`asks` is false) taken by default.

    Raises:
        DumboError: a flag that cannot be.
    """
    gpu = find_gpu()
    if asks:
        size = f", {gpu.mebibytes / 1024:.0f} GiB" if gpu and gpu.mebibytes else ""
        print(f"device: {gpu.name}{size}" if gpu else "device: no GPU found, so small batches for the CPU")
    model = _model(flags, asks)
    data = _data(flags, asks)
    lora = _lora(flags, asks, model)
    held_out = _held_out(flags, asks, data)
    return Answers(model, data, lora, held_out, _tracker(flags, asks), gpu is not None)


def _model(flags: Flags, asks: bool) -> FoundModel | None:
    if flags.model == known.RANDOM:
        return None
    if flags.model is not None:
        named = named_model(flags.model)
        if isinstance(named, str):
            raise DumboError(f"--model: {named}\n    write a folder, a hub name, or {known.RANDOM}")
        return named
    offered = list(offered_models())
    if not asks:
        return offered[0]
    choices: list[Choice[FoundModel | _Random]] = [Choice(model, model.name, model.about) for model in offered]
    choices.append(Choice(_Random(), "random weights", "a small new model with a tokenizer of its own"))
    chosen = choose(
        "Where does training start?", choices, named_model, ["or write the path of a folder, or a hub name"]
    )
    return None if isinstance(chosen, _Random) else chosen


def _data(flags: Flags, asks: bool) -> FoundData:
    if flags.data is not None:
        data = named_data(flags.data)
        if not data.data_format:
            raise DumboError(f"--data {flags.data}: {data.problem}")
        return data
    found = nearby_data()
    fitting = [data for data in found if data.data_format]
    if not asks:
        return fitting[0] if fitting else _no_data(found)
    choices = [Choice(data, data.path, data.about) for data in fitting]
    odd = [data for data in found if not data.data_format]
    choices += [
        Choice(data, data.path, f"{', '.join(data.columns[:6])}: asks which column is what")
        for data in odd
        if len(_askable(data)) > 1
    ]
    left_out = [f"no choice: {data.path}: {data.problem.partition(';')[0]}" for data in odd if len(_askable(data)) < 2]
    if not choices:
        example = named_data(EXAMPLE_HUB_DATA)
        choices = [Choice(example, example.path, "no data files are here; this is an example on the hub, 24 MB")]
    other = ["or write the path of a file (jsonl, json, csv, parquet), or a data set on the hub", *left_out]
    chosen = choose("Which data?", choices, _read_data, other)
    return chosen if chosen.data_format else _with_columns(chosen)


def _no_data(found: list[FoundData]) -> FoundData:
    """The example from the hub, unless there are files that were probably meant."""
    if not found:
        return named_data(EXAMPLE_HUB_DATA)
    lines = [f"    {data.path}: {data.problem}" for data in found]
    raise DumboError("\n".join(["no data format fits the files that are here; rename columns, or give --data", *lines]))


def _read_data(text: str) -> FoundData | str:
    data = named_data(text)
    return data if data.data_format or len(_askable(data)) > 1 else data.problem


def _askable(data: FoundData) -> list[str]:
    """Columns that may be a question or an answer; `input` is what a question is about, whatever they are called."""
    return [name for name in data.text_columns if name != "input"]


def _with_columns(data: FoundData) -> FoundData:
    """The data with a format of the columns that somebody names."""
    print(f"\n{data.path}: {data.problem}")
    names = _askable(data)
    question = choose("Which column is the question?", [Choice(name, name) for name in names])
    left = [name for name in names if name != question]
    answer = left[0] if len(left) == 1 else choose("Which column is the answer?", [Choice(name, name) for name in left])
    return replace(data, data_format=alpaca_format(question, answer), problem="")


def _lora(flags: Flags, asks: bool, model: FoundModel | None) -> bool:
    install = known.lora_install()
    if flags.lora:
        if model is None:
            raise DumboError("--lora: random weights have nothing for an adapter to keep\n    write --full")
        if install:
            raise DumboError(f"--lora needs the package 'peft', which is not installed\n    {install}")
    if flags.lora is not None or model is None:
        return bool(flags.lora)
    by_default = known.lora_by_default(model) and not install
    if not asks:
        return by_default
    if install:
        print(f"\nAll weights are trained; LoRA, which needs far less memory, comes with {install}")
        return False
    choices = [
        Choice(False, "all weights", "learns most; takes about 16 bytes of memory per parameter"),
        Choice(True, "LoRA", "a few new weights; far less memory, and a small file at the end"),
    ]
    return choose("Train all weights, or LoRA?", choices[::-1] if by_default else choices)


def _held_out(flags: Flags, asks: bool, data: FoundData) -> int | float:
    if flags.held_out is not None:
        share = known.read_share(flags.held_out, data)
        if isinstance(share, str):
            raise DumboError(f"--held-out: {share}")
        return share
    by_default = known.held_out_by_default(data)
    if not asks:
        return by_default
    about = "a share (10%), a number of rows, or 0; the report shows how well the model does on them"
    return ask("How much to hold out?", f"{by_default:.0%}", lambda text: known.read_share(text, data), about)


def _tracker(flags: Flags, asks: bool) -> str | None:
    if flags.tracker == known.NO_TRACKER or (flags.tracker is None and not asks):
        return None
    trackers = {tracker.name: tracker for tracker in known.trackers()}
    if flags.tracker is not None:
        if flags.tracker not in trackers:
            raise DumboError(f"--tracker: there is no '{flags.tracker}'\n    write {', '.join([*trackers, 'or none'])}")
        if trackers[flags.tracker].install:
            message = f"--tracker: the package of '{flags.tracker}' is not installed"
            raise DumboError(f"{message}\n    {trackers[flags.tracker].install}")
        return flags.tracker
    ready = [tracker for tracker in trackers.values() if not tracker.install]
    if not ready:
        return None
    nothing: Choice[str] = Choice("", known.NO_TRACKER, "curves are in the run's report.html and metrics.jsonl")
    choices = [nothing, *(Choice(tracker.name, tracker.name, tracker.about) for tracker in ready)]
    return choose("Send the curves to a tracker too?", choices) or None
