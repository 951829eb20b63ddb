"""Tokenised sources made into the sets to train and to evaluate on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.console import Console
from dumbo.data.collate import PackedCollator, PaddingCollator
from dumbo.data.dataset import TokenDataset
from dumbo.data.encoded import EncodedRows, RowOrigins
from dumbo.data.holding_out import choose_held_out, first_of_each
from dumbo.data.lengths import fit_lengths
from dumbo.data.loss_weights import weigh_source
from dumbo.data.mixing import Mixture, mix
from dumbo.data.records import WEIGHTS, Origin
from dumbo.data.sequences import JoinedRows, PackedRows, Sequences, SingleRows
from dumbo.data.source_table import add_shares, print_sources, source_row
from dumbo.data.sources import Source
from dumbo.errors import RunError
from dumbo.plugin_loader import DatasetPlugin, LossPlugin

if TYPE_CHECKING:
    from dumbo.config.schema import RunConfig
    from dumbo.data.streaming import Stream
    from dumbo.plugin_manager import PluginManager


@dataclass(frozen=True)
class Datasets:
    """What the trainer gets."""

    train: TokenDataset | None
    """None where rows are streamed, and so are its sequences."""
    sequences: Sequences | None
    """What of `train` is trained together, in each epoch."""
    evaluation: TokenDataset | None
    padding_collator: PaddingCollator
    packing_collator: PackedCollator | None
    table: Sequence[Mapping[str, Any]]
    """What became of each source: rows, tokens, and how many were trained, held out, bad, too long."""
    stream: Stream | None = None
    """The sequences to train on, where they are made while training goes on."""
    stream_table: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    """What became of each source of the stream so far."""
    find_origin: Callable[[TokenDataset, int], Origin | None] = lambda dataset, row: None
    """Where a row of `train` came from, if that is known."""


def build_datasets(
    sources: Sequence[Source],
    encoded: Sequence[EncodedRows],
    config: RunConfig,
    plugins: PluginManager,
    limit: int | None,
    pad_token_id: int,
    console: Console,
) -> Datasets:
    """Hold rows out for evaluation, cut those over `limit` tokens as the configuration wants, plan what is trained
    together, and print a table of the sources, of which `encoded` has the tokens.

    Raises:
        DataError: rows that are too long, unless the configuration says what to do with them.
    """
    data = config.trainer.data
    kept = first_of_each(encoded, config.datasets) if data.deduplicate else [None] * len(encoded)
    held_out = choose_held_out(encoded, kept, config)
    train: list[TokenDataset] = []
    evaluation: list[TokenDataset] = []
    table: list[dict[str, Any]] = []
    for number, (source, rows, is_kept, is_held) in enumerate(zip(sources, encoded, kept, held_out, strict=True)):
        # Rows that are joined, or packed in pieces, are cut as needed; those that are evaluated on are padded.
        in_pieces = data.packing == "joined" or (data.packing and data.too_long == "split")
        policy, exempt = ("split", ~is_held) if in_pieces else (data.too_long, None)
        fitted = fit_lengths(rows, is_kept, limit, policy, exempt)
        # Held out are whole rows: the pieces of a long one are never on both sides.
        theirs = is_held[fitted.origin]
        dataset = weigh_source(fitted.dataset, source.entry.loss_weight).of_source(number)
        train.append(dataset.select((~theirs).nonzero()[0]))
        evaluation.append(dataset.select(theirs.nonzero()[0]))
        table.append(source_row(source, rows, is_kept, fitted, int(theirs.sum())))
    train_set = plugins.fold(DatasetPlugin, TokenDataset.join(train), config)
    if not len(train_set):
        raise RunError("no training rows are left")
    evaluation_set = TokenDataset.join(evaluation)
    if any(of_source.any() for of_source in held_out) and not len(evaluation_set):
        raise RunError("none of the held out rows is left: all of them were too long")
    mixture = _mixture(train_set, config)
    table = add_shares(table, train_set, mixture, config)
    print_sources(table, limit, sources, console)
    sequences = _sequences(train_set, mixture, limit, config)
    columns = train_set.column_types | evaluation_set.column_types
    _insist_on_readers(columns, plugins)
    padding, packing = PaddingCollator(pad_token_id, columns), PackedCollator() if data.packing else None
    return Datasets(
        train_set,
        sequences,
        evaluation_set if len(evaluation_set) else None,
        padding,
        packing,
        table,
        find_origin=RowOrigins(encoded).find,
    )


def _insist_on_readers(columns: Iterable[str], plugins: PluginManager) -> None:
    """Raise a RunError where there is a column that no loss would read."""
    names = plugins.names(LossPlugin)
    own = frozenset({WEIGHTS})  # what the loss reads that every run has
    read: frozenset[str] = getattr(plugins.holder(LossPlugin), "columns", frozenset()) if names else own
    unread = sorted(set(columns) - read)
    if unread:
        which = f"the loss of the plugin '{names[0]}'" if names else "the loss"
        raise RunError(f"the training set has a column '{unread[0]}' beside its tokens, and {which} does not read it")


def _mixture(dataset: TokenDataset, config: RunConfig) -> Mixture:
    weights = [0.0 if entry.held_out else entry.weight for entry in config.datasets]
    trainer = config.trainer
    return mix(dataset, weights, trainer.data.mix, trainer.seed, trainer.data.shuffle)


def _sequences(dataset: TokenDataset, mixture: Mixture, limit: int | None, config: RunConfig) -> Sequences:
    trainer = config.trainer
    if not len(mixture):
        raise RunError("the weights leave no training rows: no source has a weight and as much as half a row by it")
    if not trainer.data.packing:
        return SingleRows(dataset.length, mixture, trainer.seed, trainer.data.shuffle)
    assert limit is not None  # The configuration is refused otherwise.
    # An epoch has at least as many sequences as its tokens fill: there are no more epochs than this.
    tokens = int(dataset.length[mixture.rows(0)].sum())
    epochs = trainer.arguments.num_train_epochs
    if trainer.arguments.max_steps is not None:
        epochs = 2 + 2 * trainer.arguments.max_steps * trainer.arguments.batch_size * limit / tokens
    made = JoinedRows if trainer.data.packing == "joined" else PackedRows
    return made(dataset.length, mixture, limit, math.ceil(epochs), trainer.seed, trainer.data.shuffle)
