"""From a JSONL file of conversations to packed sequences with the labels of answers alone: dumbo, and peers beside it.

Each measurement is a process of its own, by turns, and begins when everything is imported and the tokenizer and a tiny
model are there. dumbo reads, tokenises, cuts what is too long and packs (`trainer.data.packing`, `too_long: split`).
TRL reads with `datasets.load_dataset` and does what `SFTTrainer` does with `packing=True` and
`assistant_only_loss=True`; its own packing (`bfd`) cuts off what is too long. Both get the same rows, the same
tokenizer and ChatML, TRL's with the marks that it needs; before anything is measured, tokens and labels of some
rows are compared. Both write what they make to files: dumbo to its cache, TRL to that of Datasets. Processor
seconds are user and system time of the process and its children.

LLaMA-Factory and Axolotl need environments of their own, as their versions of Transformers differ: see
`benchmarks/README.md`, and name their Python with `--peer llamafactory=PYTHON --peer axolotl=PYTHON`. They use their
own `chatml` templates; what they do is in `prepare_peers.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from clock import clocked
from conversations import CHATML, ROWS, learn_tokenizer, write_conversations

RESULT = Path(__file__).parent / "results" / "prepare.json"
LENGTHS = (512, 1024)
COMPARED = 64
COLOURS = {"dumbo": "#1f6f8b", "trl": "#c9a227", "llamafactory": "#7a9e7e", "axolotl": "#b5651d"}

TRAINER = """\
trainer:
  arguments: {{batch_size: 16, learning_rate: 1e-4}}
  data: {{sequence_length: {length}, packing: true, too_long: split}}
"""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="conversations (50000)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each, by turns (3)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="another peer to measure")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "FOLDER", "LENGTH"), help="one of them, in this process")
    options = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.measure:
        what, folder, length = options.measure
        print(json.dumps(MEASURED[what](Path(folder), int(length))))
        return 0
    with tempfile.TemporaryDirectory() as name:
        rows = {"rows": options.rows, **write_run(Path(name), options.rows)}
        print(", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in rows.items()), flush=True)
        compare_labels(Path(name))
        peers = dict(peer.split("=", 1) for peer in options.peer)
        results = list(measure(Path(name), options.repeat, peers))
    report = summary(results, rows)
    print(table(report))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(report, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}")
    return 0


def write_run(folder: Path, rows: int) -> dict[str, int]:
    """Write conversations, configurations, a tokenizer and a tiny model into `folder`; return what the rows have."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = learn_tokenizer()
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    for length in LENGTHS:
        (folder / f"run-{length}.yaml").write_text(
            (ROWS + TRAINER).format(folder=folder, length=length), encoding="utf-8"
        )
    return write_conversations(folder / "rows.jsonl", rows, tokenizer)


def compare_labels(folder: Path) -> None:
    """Make sure that both sides make the same of the first rows."""
    from transformers import AutoTokenizer

    from dumbo.configure import configure
    from dumbo.data.source_encoder import SourceEncoder
    from dumbo.data.sources import read_sources
    from dumbo.launch import Launch

    tokenizer = AutoTokenizer.from_pretrained(folder)
    configured = configure(folder / f"run-{LENGTHS[0]}.yaml", [], Launch.from_environment())
    [source] = read_sources(configured.config, configured.plugins)
    encoder = SourceEncoder(source, configured.plugins, tokenizer)
    for record, ours in encoder.encode(islice(source.records, COMPARED)):
        messages = [dict(message) for message in record.messages]
        theirs = tokenizer.apply_chat_template(
            messages, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, masks = theirs["input_ids"], theirs["assistant_masks"]
        labels = [token if mask else -100 for token, mask in zip(ids, masks, strict=True)]
        if (list(ours.input_ids), list(ours.labels)) != (ids, labels):
            raise SystemExit(f"{record.origin}: the two sides make different tokens or labels")


def measure(folder: Path, repeat: int, peers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Each side with each length, by turns; of `peers` each by its own Python."""
    ours = [sys.executable, __file__, "--measure"]
    others = str(Path(__file__).with_name("prepare_peers.py"))
    commands = {what: [*ours, what] for what in MEASURED}
    commands |= {what: [python, others, what] for what, python in peers.items()}
    for _ in range(repeat):
        for length in LENGTHS:
            for what, command in commands.items():
                done = subprocess.run(
                    [*command, str(folder), str(length)], stdout=subprocess.PIPE, text=True, check=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                print(f"{what} {length}: {found['cpu_seconds']:.1f} s of processor time", flush=True)
                yield {"what": what, "length": length, **found}


def measure_dumbo(folder: Path, length: int) -> dict[str, float]:
    """The sequences of an epoch, as `dumbo train` makes them."""
    import polars  # noqa: F401 (the peer's reader is imported before the clock starts, too)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dumbo.configure import configure
    from dumbo.console import Console
    from dumbo.data.build import build_datasets
    from dumbo.data.preparing import FromReaders, prepare_sources
    from dumbo.data.store import Store
    from dumbo.launch import Launch

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    configured = configure(folder / f"run-{length}.yaml", [], Launch.from_environment())
    config, plugins = configured.config, configured.plugins
    console, num_embeddings = Console(enabled=False), model.get_input_embeddings().weight.shape[0]
    with tempfile.TemporaryDirectory() as cache, clocked() as found:
        preparation = FromReaders(Store(Path(cache)))
        sources = preparation.read(config, plugins)
        encoded = prepare_sources(preparation, sources, plugins, tokenizer, num_embeddings, console)
        datasets = build_datasets(sources, encoded, config, plugins, length, tokenizer.pad_token_id, console)
        epoch = datasets.sequences.of_epoch(0)
    assert epoch.lengths.sum() == sum(rows.dataset.num_tokens for rows in encoded)
    return {
        **found,
        "tokens": int(epoch.lengths.sum()),
        "trained": datasets.train.num_supervised,
        "sequences": len(epoch.lengths),
    }


def measure_trl(folder: Path, length: int) -> dict[str, float]:
    """The rows of the peer's packed data set."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    logging.set_verbosity_error()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    config = SFTConfig(
        output_dir=str(folder / "out"),
        packing=True,
        max_length=length,
        assistant_only_loss=True,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )

    class ClockedTrainer(SFTTrainer):
        """Notes how long it takes to prepare the rows."""

        def _prepare_dataset(self, *values: Any, **named: Any) -> Any:
            with clocked() as self.found:
                return super()._prepare_dataset(*values, **named)

    with tempfile.TemporaryDirectory() as cache:
        with clocked() as reading:
            rows = load_dataset("json", data_files=str(folder / "rows.jsonl"), cache_dir=cache, split="train")
        trainer = ClockedTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
        packed = trainer.train_dataset.with_format("numpy")
        tokens = trained = 0
        for batch in packed.iter(1000):
            tokens += sum(map(len, batch["input_ids"]))
            trained += sum(int((labels != -100).sum()) for labels in batch["labels"])
    found = {name: value + reading[name] for name, value in trainer.found.items() if name.endswith("seconds")}
    memory = {"memory_before_mib": reading["memory_before_mib"], "memory_mib": trainer.found["memory_mib"]}
    return {**found, **memory, "tokens": tokens, "trained": trained, "sequences": len(packed)}


MEASURED: Mapping[str, Callable[[Path, int], dict[str, float]]] = {"dumbo": measure_dumbo, "trl": measure_trl}


def summary(results: Sequence[dict[str, Any]], rows: Mapping[str, int]) -> dict[str, Any]:
    """Medians, ratios, every measured value, and what they were measured on."""
    values = [_with_rates(result, rows) for result in results]
    medians: dict[str, dict[str, dict[str, float]]] = {}
    for length in LENGTHS:
        for what in dict.fromkeys(value["what"] for value in values):
            ours = [value for value in values if (value["what"], value["length"]) == (what, length)]
            names = list(islice(ours[0], 2, None))
            median = {name: statistics.median(value[name] for value in ours) for name in names}
            medians.setdefault(str(length), {})[what] = median
    rates = ("rows_per_cpu_second", "rows_per_second", "tokens_per_cpu_second", "memory_mib")
    ratios = {
        length: {
            peer: {name: round(of["dumbo"][name] / theirs[name], 2) for name in rates}
            for peer, theirs in of.items()
            if peer != "dumbo"
        }
        for length, of in medians.items()
    }
    return {
        "benchmark": "prepare",
        **rows,
        "dumbo_to_peer": ratios,
        "median": medians,
        "values": values,
        "versions": {name: version(name) for name in ("transformers", "trl", "datasets", "tokenizers")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _with_rates(result: Mapping[str, Any], rows: Mapping[str, int]) -> dict[str, Any]:
    count, tokens, capacity = rows["rows"], rows["tokens"], result["sequences"] * result["length"]
    rates = {
        "rows_per_cpu_second": count / result["cpu_seconds"],
        "rows_per_second": count / result["wall_seconds"],
        "tokens_per_cpu_second": tokens / result["cpu_seconds"],
        "tokens_per_second": tokens / result["wall_seconds"],
        "tokens_kept": result["tokens"] / tokens,
        "fullness": result["tokens"] / capacity,
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in {**result, **rates}.items()}


def table(report: Mapping[str, Any]) -> str:
    """The medians as text."""
    lines = []
    for length, of in report["median"].items():
        lines.append(f"\nsequences of {length:22} " + " ".join(f"{what:>14}" for what in of))
        for name in of["dumbo"]:
            digits = 3 if name in ("tokens_kept", "fullness") else 1
            found = " ".join(f"{values[name]:14,.{digits}f}" for values in of.values())
            lines.append(f"{name.replace('_', ' '):35} {found}")
        for peer, ratios in report["dumbo_to_peer"][length].items():
            shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in ratios.items())
            lines.append(f"dumbo / {peer}: {shown}")
    return "\n".join(lines)


def plot(report: Mapping[str, Any], file: Path) -> None:
    """Bars of what matters, with every measured value as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {
        "rows_per_cpu_second": "conversations per processor second",
        "tokens_kept": "share of tokens that is kept",
        "fullness": "share of positions with a token",
        "memory_mib": "most memory (MiB)",
    }
    sides = list(report["median"][str(LENGTHS[0])])
    width = 0.8 / len(sides)
    figure, axes = plt.subplots(1, len(shown), figsize=(13, 3.4), layout="constrained")
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        for place, what in enumerate(sides):
            places = [number + width * (place + 0.5) - 0.4 for number in range(len(LENGTHS))]
            heights = [report["median"][str(length)][what][name] for length in LENGTHS]
            bars = axis.bar(places, heights, 0.9 * width, color=COLOURS[what], label=what)
            axis.bar_label(bars, fmt="%.2f" if max(heights) < 2 else "{:,.0f}", fontsize=7, padding=2)
            for value in report["values"]:
                if value["what"] == what:
                    axis.plot(places[LENGTHS.index(value["length"])], value[name], ".", color="black", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(LENGTHS)), [f"sequences of {length}" for length in LENGTHS], fontsize=9)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sides), frameon=False)
    figure.suptitle(f"{report['rows']:,} conversations to packed sequences, {report['machine']}", fontsize=11)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
