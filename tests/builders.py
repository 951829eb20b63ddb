"""Builders of what tests train: tokenizers learned from text in the repository, tiny random models, rows, run files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, as many models have it: the assistant's turn ends in `<|im_end|>`, then a line break."""

CHATML_WITH_GENERATION = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The same text as `CHATML`, with the assistant's part marked for Transformers' `return_assistant_tokens_mask`."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def examples(most: int) -> int:
    """How often a property is tried: a third of `most`; with `DUMBO_TEST_EXAMPLES=all`, as in the full tests, all."""
    return most if os.environ.get("DUMBO_TEST_EXAMPLES") == "all" else max(1, most // 3)


def thinned(values: Iterable[Any], every: int) -> list[Any]:
    """The first of each `every` values for `make test`, and all of them for the full tests, to be cases of a test."""
    import pytest

    return [pytest.param(value, marks=pytest.mark.full if place % every else ()) for place, value in enumerate(values)]


class Remove:
    """A mark with a name of its own: test ids are made of it, and must be the same in every process."""

    def __repr__(self) -> str:
        return "REMOVE"


REMOVE = Remove()
"""In the changes to a configuration: take this key away."""


def build_tokenizer(
    *,
    vocab_size: int = 512,
    pad_token: str | None = "<|pad|>",
    eos_token: str | None = "<|im_end|>",
    bos_token: str | None = None,
    chat_template: str | None = CHATML,
    padding_side: str = "right",
):
    """A byte-level BPE tokenizer learned from the licence's text, with all of `SPECIAL_TOKENS` in its vocabulary.

    Pass None for a tokenizer that lacks the token or the template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((ROOT / "LICENSE").read_text().splitlines(), trainer)
    tokens = {"pad_token": pad_token, "eos_token": eos_token, "bos_token": bos_token}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=padding_side,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in tokens.items() if token is not None},
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def build_tiny_model(vocab_size: int = 512, *, config_type: str = "llama", seed: int = 0, **overrides: Any):
    """A random model of two layers, 32 wide, in float32: `config_type` is a model type of Transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    model_config = AutoConfig.for_model(config_type, **(shape | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)


def save_tiny_model(folder: Path, tokenizer=None, **overrides: Any) -> Path:
    """Write `build_tiny_model(**overrides)` and a tokenizer into `folder`, for `from_pretrained`; return it."""
    tokenizer = tokenizer or build_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = build_tiny_model(len(tokenizer), **(ids | overrides))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def alpaca_rows(count: int = 12) -> list[dict[str, str]]:
    """Rows in Alpaca's shape, every third one with an input; no two are alike."""
    return [
        {
            "instruction": f"Add {number} and {number + 1}.",
            "input": "Answer in one word." if number % 3 == 0 else "",
            "output": f"The sum is {2 * number + 1}.",
        }
        for number in range(1, count + 1)
    ]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """Write `rows` (by default `alpaca_rows()`) as JSON lines into `file`; return it."""
    rows = alpaca_rows() if rows is None else rows
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def run_config(model: Path, rows: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a run of two optimizer steps, with `changes` by dotted key laid over it.

    `{"trainer.arguments.max_steps": 5, "trainer.seed": REMOVE, "plugins": [...]}`; list positions are numbers.
    """
    config: dict[str, Any] = {
        "model": {"base_model": str(model), "tokenizer": {"pad_token": "<|pad|>", "eos_token": "<|im_end|>"}},
        "datasets": [
            {
                "path": str(rows),
                "type": "huggingface_polars",
                "data_format": "alpaca",
                "train_format": {
                    "type": "jinja_messages",
                    "template": "{% for message in messages %}{{ message.content }}{% endfor %}",
                },
            }
        ],
        "trainer": {
            "arguments": {
                "batch_size": 4,
                "physical_batch_size": 2,
                "learning_rate": 1e-3,
                "max_steps": 2,
                "logging_steps": 1,
                "use_cpu": True,
            },
            "seed": 7,
        },
        "plugins": ["transformers", "transformers_trainer", "polars", "jinja_formatter"],
    }
    for key, value in (changes or {}).items():
        _change(config, key.split("."), value)
    return config


def write_config(
    folder: Path, model: Path, rows: Path, changes: Mapping[str, Any] | None = None, *, name: str = "run.yaml"
) -> Path:
    """Write `run_config(model, rows, changes)`, whose run goes to `folder/out`, into `folder`; return the file."""
    config = run_config(model, rows, {"trainer.output_dir": str(folder / "out"), **(changes or {})})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def dumbo(*words: str | Path, cwd: Path | None = None, timeout: float = 240, **environment: str):
    """Run `python -m dumbo WORDS...` as a user would; the result has `returncode`, `stdout` and `stderr`, as text."""
    return subprocess.run(
        [sys.executable, "-m", "dumbo", *map(str, words)],
        cwd=cwd,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment with `changes`, and without what pytest and a launcher would pass on to a program."""
    inherited = {"PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTHONPROFILEIMPORTTIME", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
    return {name: value for name, value in os.environ.items() if name not in inherited} | changes


def _change(tree: Any, keys: list[str], value: Any) -> None:
    first, *rest = keys
    key = int(first) if isinstance(tree, list) else first
    if rest:
        if isinstance(tree, dict):
            tree.setdefault(key, {})
        _change(tree[key], rest, value)
    elif value is REMOVE:
        del tree[key]
    elif isinstance(tree, list) and key == len(tree):
        tree.append(deepcopy(value))
    else:
        tree[key] = deepcopy(value)
