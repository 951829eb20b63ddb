"""Conversations as long as real ones, of text in this repository, and a tokenizer that is learned from it."""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

MEDIAN, TENTH, LONGEST = 450, 1080, 10_000
"""Tokens of the conversation in the middle, of one that nine in ten are shorter than, and of the longest."""
NEW_WORDS = 0.01
"""The share of words that no other row has (names, numbers, errors of typing): about as many as in text from the web,
where 20 million words have some 300,000 different ones."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
"""ChatML with marks around what the assistant says."""

ROWS = """\
model:
  base_model: {folder}
datasets:
  - path: {folder}/rows.jsonl
    type: huggingface_polars
    data_format: messages
    train_format: {{type: chat_template, chat_template: chatml}}
plugins: [transformers, transformers_trainer, polars, jinja_formatter]
"""
"""How a run begins whose folder has the model, the tokenizer and conversations."""


def write_conversations(file: Path, count: int, tokenizer: Any) -> dict[str, int]:
    """Write `count` conversations as JSONL; return what there is of tokens, counted by the tokenizer alone."""
    import numpy as np

    lengths: list[int] = []
    made = conversations(count, tokenizer)
    with file.open("w", encoding="utf-8") as stream:
        while batch := list(islice(made, 1000)):
            stream.writelines(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in batch)
            texts = ["".join(map(_written, messages)) for messages in batch]
            lengths += map(len, tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    return {
        "tokens": sum(lengths),
        "median_tokens": int(np.median(lengths)),
        "p90_tokens": int(np.quantile(lengths, 0.9)),
        "longest_tokens": max(lengths),
    }


def conversations(count: int, tokenizer: Any) -> Iterator[list[dict[str, str]]]:
    """Questions and answers, one to four of each; an answer is four times as long as its question."""
    draw = random.Random(0)
    pieces = [piece for text in _texts() for piece in text.splitlines(keepends=True) if "<|" not in piece]
    sizes = [len(encoding) for encoding in tokenizer.backend_tokenizer.encode_batch(pieces)]
    for _ in range(count):
        spread = math.log(TENTH / MEDIAN) / 1.2816
        wanted = min(draw.lognormvariate(math.log(MEDIAN), spread), 0.9 * LONGEST)
        turns = draw.randint(1, 4)
        messages = []
        for role, share in (("user", 0.2), ("assistant", 0.8)) * turns:
            place, left, taken = draw.randrange(len(pieces)), wanted * share / turns, []
            while left > 0:
                taken.append(pieces[place % len(pieces)])
                left -= sizes[place % len(pieces)]
                place += 1
            messages.append({"role": role, "content": _with_new_words("".join(taken), draw).strip() or "Yes."})
        yield messages


def learn_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 16,000 tokens for ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


def _texts() -> Sequence[str]:
    """Documentation and programs."""
    files = [file for pattern in ("*.md", "src/**/*.md", "src/**/*.py", "tests/**/*.py") for file in ROOT.glob(pattern)]
    return [file.read_text(encoding="utf-8") for file in sorted(files)]


def _written(message: dict[str, str]) -> str:
    return f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"


def _with_new_words(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    for _ in range(round(NEW_WORDS * len(words) + draw.random() - 0.5)):
        new = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 10)))
        words.insert(draw.randrange(len(words) + 1), new)
    return " ".join(words)
