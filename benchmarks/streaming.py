"""Tokens per second and peak memory of a stream of documents that is larger than its memory may be.

JSON lines of documents are streamed through tokenisation and joining in a process whose address space is limited, once
for a tenth of the size and once for all of it: peak memory is to be the same. Every token is to come exactly once, in
the order of the file: their number and a digest are compared with those of a plain loop over the documents.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from two_sizes import compare_sizes

RESULT = Path(__file__).parent / "results" / "streaming.json"
TEXTS = Path(__file__).parents[1] / "src" / "dumbo" / "docs"
LIMIT = 3 << 30
"""Bytes of address space: libraries take most of it, and the rows and tokens of 1 GB would not fit in the rest."""
DISTINCT = 2000
"""Different documents; the file repeats them in random order, so that the plain loop tokenises each once."""

RUN = """\
model:
  base_model: {folder}
datasets:
  - {{type: huggingface_polars, path: {file}, data_format: completion, train_format: completion}}
trainer:
  arguments: {{max_steps: 1, batch_size: 8}}
  data: {{streaming: true, sequence_length: 2048, packing: joined, shuffle_buffer: 1000, shuffle: false}}
plugins: [transformers, transformers_trainer, polars, text_formatter]
"""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file."""
    return compare_sizes(words, __doc__, RESULT, measure, stream_file, address_space_limit_mib=LIMIT >> 20)


def measure(megabytes: int) -> dict[str, Any]:
    """Stream a file of this size in a process of its own, and hold it against the plain loop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = write_tokenizer(folder)
        order, file = write_documents(folder, documents, megabytes)
        (folder / "run.yaml").write_text(RUN.format(folder=folder, file=file), encoding="utf-8")
        command = [sys.executable, __file__, "--run", str(folder / "run.yaml")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=limit_memory)
        found = json.loads(done.stdout.splitlines()[-1])
        size = file.stat().st_size
        expected = plain_loop(folder, documents, order)
    digest = found.pop("digest")
    assert (found["tokens"], digest) == expected, "a token is missing, repeated or in another place"
    result = {"megabytes": round(size / 1e6, 1), "documents": len(order), **found, "every_token_once": True}
    print("  ".join(f"{key} {value:,}" for key, value in result.items()))
    return result


def limit_memory() -> None:
    """What the child process may have."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


def stream_file(run: Path) -> int:
    """One pass over the stream of a run; prints its tokens, their digest, seconds and the peak of resident memory."""
    from transformers import AutoTokenizer

    from dumbo.configure import configure
    from dumbo.data.bad_rows import BadRows
    from dumbo.data.lazy_rows import LazySource
    from dumbo.data.source_encoder import SourceEncoder
    from dumbo.data.sources import Source
    from dumbo.data.streaming import PassEnd, Stream, StreamSettings
    from dumbo.launch import Launch

    configured = configure(run, [], Launch())
    config, data = configured.config, configured.config.trainer.data
    tokenizer = AutoTokenizer.from_pretrained(config.model.base_model)
    source = Source(config.datasets[0], 0, BadRows(stops_early=True))
    rows = LazySource(source, configured.plugins, SourceEncoder(source, configured.plugins, tokenizer))
    ended: list[PassEnd] = []
    settings = StreamSettings(
        data.sequence_length or 0, (1.0,), packing="joined", window_rows=data.shuffle_buffer, shuffle=data.shuffle
    )
    began = time.perf_counter()
    stream = Stream(lambda _, skip: rows.examples(skip), settings, on_pass_end=ended.append)
    digest, tokens = hashlib.blake2b(digest_size=16), 0
    for piece in pieces_of(stream):
        left = ended[0].tokens - tokens if ended else len(piece)
        digest.update(piece.tokens[:left].tobytes())
        tokens += min(left, len(piece))
        if ended and tokens == ended[0].tokens:
            break
    seconds = time.perf_counter() - began
    stream.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        "tokens": tokens,
        "digest": digest.hexdigest(),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "peak_mib": round(peak),
    }
    print(json.dumps(found))
    return 0


def pieces_of(stream: Any) -> Iterator[Any]:
    """The pieces of all sequences, in their order."""
    while True:
        for group in stream.take(8):
            yield from group


def plain_loop(folder: Path, documents: Sequence[str], order: Sequence[int]) -> tuple[int, str]:
    """The number of tokens, and their digest, of all documents one after the other."""
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = [np.array([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], np.int32) for text in documents]
    digest = hashlib.blake2b(digest_size=16)
    for number in order:
        digest.update(made[number].tobytes())
    return sum(len(made[number]) for number in order), digest.hexdigest()


def write_documents(folder: Path, documents: Sequence[str], megabytes: int) -> tuple[list[int], Path]:
    """Write documents until the file has its size; return their numbers in its order, and the file."""
    draw, order, written = random.Random(1), [], 0
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
    file = folder / "documents.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        while written < megabytes * 1_000_000:
            order.append(draw.randrange(len(documents)))
            stream.write(lines[order[-1]])
            written += len(lines[order[-1]])
    return order, file


def write_tokenizer(folder: Path) -> list[str]:
    """Learn a tokenizer from dumbo's documentation, write it and a model's configuration; return documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(TEXTS.glob("*.md"))).replace("<|", "")
    paragraphs = [paragraph for paragraph in text.split("\n\n") if len(paragraph) > 40]
    draw = random.Random(0)
    documents = ["\n\n".join(draw.choices(paragraphs, k=draw.randint(1, 30))) for _ in range(DISTINCT)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(
            vocab_size=8000, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    return documents


if __name__ == "__main__":
    sys.exit(main())
