"""Records made into the sets to train and to evaluate on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.console import Console
from dumbo.data.collate import PaddingCollator
from dumbo.data.dataset import TokenDataset
from dumbo.data.lengths import LengthPolicy, sequence_length
from dumbo.data.records import Example
from dumbo.data.source_encoder import SourceEncoder, common_template
from dumbo.data.sources import Source
from dumbo.errors import ConfigError, RunError
from dumbo.plugin_loader import DatasetPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.config.schema import RunConfig
    from dumbo.plugin_manager import PluginManager


@dataclass(frozen=True)
class Datasets:
    """What the trainer gets."""

    train: TokenDataset
    evaluation: TokenDataset | None
    padding_collator: PaddingCollator
    table: Sequence[Mapping[str, Any]]
    """What became of each source: rows, tokens, and how many were trained, held out, bad, too long."""


def build_datasets(
    sources: Sequence[Source],
    config: RunConfig,
    plugins: PluginManager,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
) -> Datasets:
    """Make tokens and labels of all records, hold rows out for evaluation, and print a table of the sources.

    Raises:
        DataError: rows that cannot be used, or that are too long, unless the configuration says what to do with them.
    """
    limit = sequence_length(config, model)
    encoders = [SourceEncoder(source, plugins, tokenizer, _num_embeddings(model)) for source in sources]
    _keep_template(encoders, tokenizer)
    for source, encoder in zip(sources, encoders, strict=True):
        source.examples = _encode(source, encoder, console)
    held_out = _choose_held_out(sources, config)
    train: list[Example] = []
    evaluation: list[Example] = []
    table: list[dict[str, Any]] = []
    start = 0
    for source in sources:
        lengths = LengthPolicy(limit, config.trainer.data.too_long)
        # Held out are whole rows: the pieces of a long one are never on both sides.
        ours: list[Example] = []
        theirs: list[Example] = []
        for row, example in enumerate(source.examples, start):
            (theirs if row in held_out else ours).extend(lengths.fit([example]))
        start += len(source.examples)
        lengths.settle()
        train, evaluation = train + ours, evaluation + theirs
        table.append(_table_row(source, [*ours, *theirs], len(theirs), lengths))
    _print_table(table, limit, sources, console)
    train_set = plugins.fold(DatasetPlugin, TokenDataset.from_examples(train), config)
    if not len(train_set):
        raise RunError("no training rows are left")
    if held_out and not evaluation:
        raise RunError("none of the held out rows is left: all of them were too long")
    evaluation_set = TokenDataset.from_examples(evaluation) if evaluation else None
    return Datasets(train_set, evaluation_set, PaddingCollator(tokenizer.pad_token_id), table)


def _encode(source: Source, encoder: SourceEncoder, console: Console) -> list[Example]:
    for warning in encoder.warnings:
        console.say(f"warning: {source.label}: {warning}")
    examples: list[Example] = []
    for _, result in encoder.encode(console.track(source.records, f"tokenising {source.label}")):
        if isinstance(result, Example):
            examples.append(result)
            continue
        source.note_bad(result)
        if source.has_seen_enough:
            break
    source.settle(examples)
    return examples


def _keep_template(encoders: Sequence[SourceEncoder], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer the chat template that its rows are written by, so that it is saved with the model."""
    template, own = common_template(encoders), tokenizer.chat_template
    if template and template != (own.get("default") if isinstance(own, dict) else own):
        tokenizer.chat_template = template


def _num_embeddings(model: PreTrainedModel) -> int | None:
    """How many tokens the model knows, where it can tell."""
    try:
        weight: Any = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0])


def _choose_held_out(sources: Sequence[Source], config: RunConfig) -> frozenset[int]:
    """The rows to hold out, counted over all sources: whole sources, and a choice from the others that depends on the
    seed and the number of rows alone."""
    import numpy as np

    whole: list[int] = []
    others: list[int] = []
    start = 0
    for source in sources:
        (whole if source.entry.held_out else others).extend(range(start, start + len(source.examples)))
        start += len(source.examples)
    size = config.trainer.data.val_set_size
    if not size:
        return frozenset(whole)
    count = size if isinstance(size, int) else max(1, round(size * len(others)))
    if count >= len(others):
        message = f"there are only {len(others)} rows, and some must be left to train on"
        raise ConfigError.at("trainer.data.val_set_size", message)
    order = np.random.default_rng([config.trainer.seed, 2**31]).permutation(len(others))
    return frozenset([*whole, *(others[index] for index in order[:count])])


def _table_row(source: Source, examples: Sequence[Example], held_out: int, lengths: LengthPolicy) -> dict[str, Any]:
    data = TokenDataset.from_examples(examples)
    return {
        "source": source.label,
        "rows": len(examples),
        "tokens": data.num_tokens,
        "trained": data.num_supervised,
        "held_out": held_out,
        "bad": source.num_bad,
        "too_long": lengths.too_long,
        "emptied": lengths.emptied,
        **_counted(source.examples),
    }


def _counted(examples: Sequence[Example]) -> Counter[str]:
    """What the format met on its way, over all examples."""
    counts: Counter[str] = Counter()
    for example in examples:
        if example.counts:
            counts.update(example.counts)
    return counts


def _print_table(
    rows: Sequence[Mapping[str, Any]], limit: int | None, sources: Sequence[Source], console: Console
) -> None:
    # Columns of which there is nothing to say are left away, but never a count that is not zero.
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if name in ("source", "rows", "tokens", "trained") or any(r.get(name) for r in rows)]
    shown = [{**row, "trained": f"{row['trained'] / max(row['tokens'], 1):.0%}"} for row in rows]
    console.table([name.replace("_", " ") for name in kept], [[row.get(name, 0) for name in kept] for row in shown])
    if limit is not None:
        console.say(f"sequences of up to {limit} tokens")
    dropped = [problem for source in sources for problem in source.bad_rows]
    if dropped:
        total = sum(source.num_bad for source in sources)
        console.say(f"dropped {total} bad row{'s' if total > 1 else ''}; the first: {str(dropped[0]).splitlines()[0]}")
