"""Sources made into a stream to train on; those that are held out are read whole, and evaluated on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.console import Console
from dumbo.data.build import Datasets
from dumbo.data.collate import PackedCollator, PaddingCollator
from dumbo.data.dataset import TokenDataset
from dumbo.data.encoded import RowWriter
from dumbo.data.lazy_rows import LazySource
from dumbo.data.lengths import fit_lengths
from dumbo.data.preparing import encode_rows, keep_template
from dumbo.data.source_encoder import SourceEncoder
from dumbo.data.source_table import print_sources, source_row
from dumbo.data.sources import Source
from dumbo.data.streaming import PassEnd, Stream, StreamSettings
from dumbo.errors import ConfigError, Problem, RunError
from dumbo.plugin_loader import DatasetPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.config.schema import RunConfig
    from dumbo.plugin_manager import PluginManager


def build_stream(
    sources: Sequence[Source],
    config: RunConfig,
    plugins: PluginManager,
    tokenizer: PreTrainedTokenizerBase,
    num_embeddings: int | None,
    limit: int,
    console: Console,
    state: Mapping[str, Any] | None = None,
) -> Datasets:
    """A stream over the sources. They have their first rows as records, which are looked at before anything is trained;
    those that are held out have all. With the `state` of another stream it goes on where that was.

    Raises:
        DataError: rows that cannot be used, or that are too long, unless the configuration says what to do with them.
        ConfigError: a plugin wants to change the training set, which is never there as a whole.
    """
    changing = plugins.names(DatasetPlugin)
    if changing:
        message = f"the plugin '{changing[0]}' changes the training set as a whole, and a stream is never whole"
        raise ConfigError.at("trainer.data.streaming", message, "remove one of the two")
    data = config.trainer.data
    encoders = [SourceEncoder(source, plugins, tokenizer, num_embeddings) for source in sources]
    keep_template(encoders, tokenizer)
    evaluation, held_out, first_rows = _look_at_rows(sources, encoders, limit, config, console)
    lazy = [LazySource(source, plugins, encoder) for source, encoder in zip(sources, encoders, strict=True)]
    settings = StreamSettings(
        capacity=limit,
        weights=tuple(0.0 if entry.held_out else entry.weight for entry in config.datasets),
        mix="rows" if data.mix == "passes" else data.mix,  # With passes there is one source.
        packing=data.packing,
        too_long=data.too_long,
        window_rows=data.shuffle_buffer,
        shuffle=data.shuffle,
        seed=config.trainer.seed,
    )
    if state is not None and len(state["sources"]) != len(sources):
        message = f"the checkpoint has a stream of {len(state['sources'])} sources, and this one has {len(sources)}"
        raise ConfigError.at("datasets", message, "write the same sources, or start a new run from its weights")
    stream = Stream(lambda source, skip: lazy[source].examples(skip), settings, state, _pass_teller(sources, console))
    stream.fingerprint = _fingerprint(settings, sources, first_rows)
    return Datasets(
        train=None,
        sequences=None,
        evaluation=evaluation,
        padding_collator=PaddingCollator(tokenizer.pad_token_id),
        packing_collator=PackedCollator() if data.packing else None,
        table=held_out,
        stream=stream,
        stream_table=lambda: [*_table(stream, lazy), *held_out],
    )


def _look_at_rows(
    sources: Sequence[Source], encoders: Sequence[SourceEncoder], limit: int, config: RunConfig, console: Console
) -> tuple[TokenDataset | None, list[dict[str, Any]], list[str]]:
    """The held-out rows and what became of them; of the other sources the first rows are encoded, to see that they can
    be, and a digest of each is returned."""
    data = config.trainer.data
    joined = data.packing == "joined"
    evaluation: list[TokenDataset] = []
    table: list[dict[str, Any]] = []
    first_rows: list[str] = []
    for source, encoder in zip(sources, encoders, strict=True):
        rows = encode_rows(source, encoder, RowWriter(), console)
        if rows.dataset.column_types:
            message = f"rows of this source have a column '{min(rows.dataset.column_types)}' beside their tokens"
            hints = ("a stream passes on tokens alone", "remove trainer.data.streaming, or what makes the column")
            raise ConfigError([Problem(message, ("datasets", source.index), hints=hints)])
        if not source.entry.held_out:
            first_rows.append(fit_lengths(rows, None, None if joined else limit, data.too_long).dataset.digest())
            # The stream reads them again, and notes those of them that are bad.
            source.bad.count = 0
            source.bad.problems.clear()
            continue
        fitted = fit_lengths(rows, None, limit, "split" if joined else data.too_long)
        evaluation.append(fitted.dataset.of_source(source.index))
        table.append(source_row(source, rows, None, fitted, len(fitted.dataset)))
    if not evaluation:
        return None, [], first_rows
    print_sources(table, None, [source for source in sources if source.entry.held_out], console)
    together = TokenDataset.join(evaluation)
    if not len(together):
        raise RunError("none of the held out rows is left: all of them were too long")
    return together, table, first_rows


def _fingerprint(settings: StreamSettings, sources: Sequence[Source], first_rows: Sequence[str]) -> str:
    """Stands for the rows of a stream, which nobody has read: for the first of each source, the sizes of the files as
    far as they are on this machine, and how often each source comes."""
    sizes = [sorted(size for _, size, _ in source.stamps.stamps.values()) for source in sources]
    parts = json.dumps([list(first_rows), sizes, list(settings.weights)])
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _pass_teller(sources: Sequence[Source], console: Console) -> Callable[[PassEnd], None]:
    """Says of each source once how much there is in it, when it begins anew."""
    told: set[int] = set()

    def tell(ended: PassEnd) -> None:
        if ended.source not in told:
            told.add(ended.source)
            what = f"{ended.rows:,} rows, {ended.tokens:,} tokens"
            console.say(f"{sources[ended.source].label} was read to its end ({what}), and begins anew")

    return tell


def _table(stream: Stream, sources: Sequence[LazySource]) -> list[dict[str, Any]]:
    """What was trained on so far of each source; what was left out is counted once, as far as rows were read."""
    trained = [of_source.tokens for of_source in stream.trained]
    pairs = zip(sources, stream.trained, stream.positions, strict=True)
    return [
        {
            "source": lazy.source.label,
            "rows": of_source.rows,
            "tokens": of_source.tokens,
            "trained": of_source.supervised,
            "passes": of_source.passes,
            "bad": lazy.source.bad.count,
            "too_long": position.too_long,
            "emptied": position.emptied,
            **(
                {"share": of_source.tokens / max(sum(trained), 1)}
                if sum(map(bool, stream.settings.weights)) > 1
                else {}
            ),
            **lazy.counts,
        }
        for lazy, of_source, position in pairs
        if not lazy.source.entry.held_out
    ]
