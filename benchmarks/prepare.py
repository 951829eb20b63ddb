"""Rows per second from a JSONL file of conversations to tokens and labels, beside TRL's way to the same mask.

The peer is what TRL's `SFTTrainer` does for `assistant_only_loss`: `apply_chat_template` with
`return_assistant_tokens_mask` on every row of a `Dataset.map`, with a template that marks what the assistant says.
Conversations are made of sentences of dumbo's own documentation, the tokenizer is learned from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "prepare.json"
TEXTS = Path(__file__).parents[1] / "src" / "dumbo" / "docs"

MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
"""ChatML with the marks that the peer needs; dumbo is given ChatML by its name, without any."""

RUN = """\
model:
  base_model: {folder}
datasets:
  - path: {folder}/rows.jsonl
    type: huggingface_polars
    data_format: messages
    train_format: {{type: chat_template, chat_template: chatml}}
trainer:
  arguments: {{batch_size: 16, learning_rate: 1e-4}}
plugins: [transformers, transformers_trainer, polars, jinja_formatter]
"""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000, help="conversations (5000)")
    parser.add_argument("--peer-rows", type=int, default=1000, help="of them for the peer, which is slower (1000)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each, by turns (3)")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_run(Path(folder), options.rows)
        results: list[dict[str, float]] = []
        for _ in range(options.repeat):
            ours = measure_dumbo(Path(folder), tokenizer)
            peer = measure_peer(Path(folder), tokenizer, min(options.peer_rows, options.rows))
            results.append({**ours, "trl_rows_per_second": peer})
    report = summary(results, options.rows)
    print(table(report))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output}")
    return 0


def write_run(folder: Path, rows: int) -> Any:
    """Write conversations, a configuration and a tokenizer into `folder`; return the tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(TEXTS.glob("*.md")))
    sentences = [sentence.strip() + "." for sentence in text.replace("\n", " ").split(".") if len(sentence) > 20]
    sentences = [sentence for sentence in sentences if "<|" not in sentence]  # A message may hold no special token.
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(rows):
            turns = [" ".join(draw.choices(sentences, k=draw.randint(1, 4))) for _ in range(2 * draw.randint(1, 3))]
            roles = ("user", "assistant")
            messages = [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(turns)]
            file.write(json.dumps({"messages": messages}) + "\n")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    (folder / "run.yaml").write_text(RUN.format(folder=folder), encoding="utf-8")
    return tokenizer


def measure_dumbo(folder: Path, tokenizer: Any) -> dict[str, float]:
    """Rows per second of reading, of tokens and labels, and of both with their gathering in flat arrays."""
    from dumbo.configure import configure
    from dumbo.data.dataset import TokenDataset
    from dumbo.data.records import Example
    from dumbo.data.source_encoder import SourceEncoder
    from dumbo.data.sources import read_sources
    from dumbo.launch import Launch

    configured = configure(folder / "run.yaml", [], Launch.from_environment())
    start = time.perf_counter()
    [source] = read_sources(configured.config, configured.plugins)
    was_read = time.perf_counter()
    encoder = SourceEncoder(source, configured.plugins, tokenizer)
    results = [result for _, result in encoder.encode(source.records)]
    was_encoded = time.perf_counter()
    dataset = TokenDataset.from_examples(result for result in results if isinstance(result, Example))
    end = time.perf_counter()
    rows = len(source.records)
    assert len(dataset) == rows
    return {
        "read_rows_per_second": rows / (was_read - start),
        "encode_rows_per_second": rows / (was_encoded - was_read),
        "rows_per_second": rows / (end - start),
        "tokens_per_second": dataset.num_tokens / (end - start),
        "tokens_per_row": dataset.num_tokens / rows,
    }


def measure_peer(folder: Path, tokenizer: Any, rows: int) -> float:
    """Rows per second of the peer, from rows in memory."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
    dataset = Dataset.from_list([json.loads(line) for line in lines])

    def tokenise(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer.apply_chat_template(
            row["messages"], chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    start = time.perf_counter()
    dataset.map(tokenise, remove_columns=["messages"], load_from_cache_file=False)
    return rows / (time.perf_counter() - start)


def summary(results: Sequence[dict[str, float]], rows: int) -> dict[str, Any]:
    """Medians, every measured value, and what they were measured on."""
    medians = {name: round(statistics.median(result[name] for result in results), 1) for name in results[0]}
    return {
        "benchmark": "prepare",
        "rows": rows,
        "median": medians,
        "ratio_to_trl": round(medians["rows_per_second"] / medians["trl_rows_per_second"], 2),
        "values": [{name: round(value, 1) for name, value in result.items()} for result in results],
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def table(report: dict[str, Any]) -> str:
    """The medians as text."""
    lines = [f"{name.replace('_', ' '):26} {value:12,.1f}" for name, value in report["median"].items()]
    return "\n".join(
        [f"{report['rows']:,} conversations", *lines, f"{'ratio to TRL':26} {report['ratio_to_trl']:12.2f}"]
    )


if __name__ == "__main__":
    raise SystemExit(main())
