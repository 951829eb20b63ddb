"""What `sft.py` trains: models with random weights, rows, and the configuration of dumbo's run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversations import CHATML, conversations, learn_tokenizer, write_conversations

LEARNING_RATE = 1e-4
MEAN_TOKENS = 560
"""Of a conversation, about; from this the number of packed ones is reckoned."""


@dataclass(frozen=True)
class Shape:
    """A Llama. Its vocabulary is the tokenizer's where none is written."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int | None = None
    tie_word_embeddings: bool = True


@dataclass(frozen=True)
class Case:
    """One training that all sides make alike."""

    name: str
    shape: Shape
    length: int
    """Tokens of a sequence: each row has exactly as many, and packed sequences have up to as many."""
    batch: int
    """Sequences of a step."""
    steps: int
    """Of packed rows as many steps as an epoch has, which are about as many."""
    lora: bool = False
    packed: bool = False
    dtype: str = "float32"


SMALL = Shape(256, 736, 4, 4, 4)
WIDE_VOCABULARY = Shape(128, 384, 2, 4, 4, vocab_size=128_256)
BILLION = Shape(2048, 8192, 16, 32, 8, vocab_size=128_256)
EIGHT_BILLION = Shape(4096, 14336, 32, 32, 8, vocab_size=128_256, tie_word_embeddings=False)
TINY = Shape(64, 192, 2, 4, 2)

GPU: Mapping[str, Any] = {"length": 4096, "batch": 2, "steps": 12, "packed": True, "dtype": "bfloat16"}
TINY_GPU: Mapping[str, Any] = {**GPU, "length": 256, "steps": 4}

SETS: Mapping[str, tuple[Case, ...]] = {
    "cpu": (
        Case("full", SMALL, 512, 2, 30),
        Case("lora", SMALL, 512, 2, 30, lora=True),
        Case("vocabulary", WIDE_VOCABULARY, 1024, 2, 6),
        Case("chat", SMALL, 1024, 2, 24, packed=True),
    ),
    "gpu": (
        Case("1b-full", BILLION, **GPU),
        Case("1b-lora", BILLION, **GPU, lora=True),
        Case("8b-lora", EIGHT_BILLION, **GPU, lora=True),
    ),
    "tiny": (
        Case("1b-full", TINY, **TINY_GPU),
        Case("1b-lora", TINY, **TINY_GPU, lora=True),
        Case("8b-lora", TINY, **TINY_GPU, lora=True),
    ),
}


def write_case(folder: Path, case: Case, steps: int | None, gpu: bool) -> dict[str, Any]:
    """Write model, tokenizer and rows of `case` where they are not yet; return the run, as all sides read it, and what
    its rows have. `steps` are others than the case's own."""
    steps = steps or case.steps
    tokenizer = learn_tokenizer()
    model = write_model(folder / "models", case, tokenizer)
    rows = folder / f"{case.name}.jsonl"
    if case.packed:
        found = write_conversations(rows, max(2, steps * case.batch * case.length // MEAN_TOKENS), tokenizer)
    else:
        found = write_exact(rows, steps * case.batch, case.length, tokenizer)
    return {
        "model": str(model),
        "rows": str(rows),
        "rows_have": found,
        "length": case.length,
        "batch": case.batch,
        "steps": None if case.packed else steps,
        "lora": case.lora,
        "packed": case.packed,
        "dtype": case.dtype,
        "learning_rate": LEARNING_RATE,
        "gpu": gpu,
        "batches": str(folder / f"{case.name}.batches"),
        "flops_per_token": flops_per_token(case, len(tokenizer)),
    }


def flops_per_token(case: Case, vocabulary: int) -> int:
    """Of the products with weights: two for each weight in the forward pass, as many for the gradients of what goes in,
    and as many again for those of the weights where they are trained. Attention itself is left out."""
    shape = case.shape
    attention = 2 * shape.hidden_size**2 * (1 + shape.num_key_value_heads / shape.num_attention_heads)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    weights = shape.num_hidden_layers * layer + shape.hidden_size * (shape.vocab_size or vocabulary)
    return round((4 if case.lora else 6) * weights)


def write_model(folder: Path, case: Case, tokenizer: Any) -> Path:
    """The folder of the case's model, which cases of one shape share."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = vars(case.shape) | {"vocab_size": case.shape.vocab_size or len(tokenizer)}
    model = folder / "-".join(str(value) for value in (*size.values(), case.dtype))
    if not model.is_dir():
        torch.manual_seed(0)
        special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = LlamaConfig(**size, **special, max_position_embeddings=8192, dtype=case.dtype)
        torch.set_default_dtype(getattr(torch, case.dtype))
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            LlamaForCausalLM(config).save_pretrained(model)
        torch.cuda.empty_cache()
        torch.set_default_dtype(torch.float32)
        tokenizer.save_pretrained(model)
    return model


def write_exact(file: Path, count: int, length: int, tokenizer: Any) -> dict[str, int]:
    """Write `count` conversations of exactly `length` tokens, one question and one answer each."""
    with file.open("w", encoding="utf-8") as stream:
        for _, messages in zip(range(count), exact_conversations(length, tokenizer), strict=False):
            stream.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return {"rows": count, "tokens": count * length}


def exact_conversations(length: int, tokenizer: Any) -> Iterator[list[dict[str, str]]]:
    """A fifth of the tokens are the question's. What does not have the length once it is written again is left out."""
    question = length // 5
    pool: list[int] = []
    for messages in conversations(1_000_000, tokenizer):
        pool += tokenizer("".join(message["content"] + "\n\n" for message in messages))["input_ids"]
        while len(pool) >= length:
            taken, pool = pool[:length], pool[length:]
            texts = [tokenizer.decode(ids).strip() for ids in (taken[:question], taken[question:])]
            rest = length - _length_of(texts[0], "", tokenizer)
            # What the template adds is taken from the answer; its length with fewer tokens is not always fewer by them.
            for kept in range(rest + 2, rest - 8, -1):
                answer = tokenizer.decode(taken[question : question + kept]).strip()
                if "�" not in answer + texts[0] and _length_of(texts[0], answer, tokenizer) == length:
                    yield [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": answer}]
                    break


def _length_of(question: str, answer: str, tokenizer: Any) -> int:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return len(tokenizer.apply_chat_template(messages, chat_template=CHATML, return_dict=True)["input_ids"])


def dumbo_config(run: Mapping[str, Any], clocked: bool = True) -> dict[str, Any]:
    """A configuration of dumbo; JSON is YAML. `clocked`: with the clock of `sft.py`."""
    low = run["dtype"] != "float32"
    amount = {"max_steps": run["steps"]} if run["steps"] else {"num_train_epochs": 1}
    packed = {"packing": True, "too_long": "split"} if run["packed"] else {}
    plugins = ["transformers", "transformers_trainer", "polars", "jinja_formatter", *(["peft"] if run["lora"] else [])]
    plugins += [str(Path(__file__).with_name("sft_plugin.py:StepClockPlugin"))] if clocked else []
    return {
        "model": {
            "base_model": run["model"],
            **({"dtype": run["dtype"]} if low else {}),
            **({"peft": {"rank": 16, "alpha": 32}} if run["lora"] else {}),
        },
        "datasets": [
            {
                "path": run["rows"],
                "type": "huggingface_polars",
                "data_format": "messages",
                "train_format": {"type": "chat_template", "chat_template": "chatml"},
            }
        ],
        "trainer": {
            "output_dir": run["out"],
            "data": {"sequence_length": run["length"], **packed},
            "arguments": {
                **amount,
                "batch_size": run["batch"],
                "physical_batch_size": run["batch"],
                "learning_rate": run["learning_rate"],
                "gradient_checkpointing": False,
                **({"bf16": True} if low else {}),
                **({} if run["gpu"] else {"use_cpu": True}),
            },
        },
        "plugins": plugins,
    }
