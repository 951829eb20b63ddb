"""Writes a first configuration: YAML with a comment on every line that somebody may want to change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dumbo.config.yaml_tree import plain_scalar
from dumbo.starting.answers import Answers, tracker_options
from dumbo.starting.models import size_words

COMMENTS_AT = 52
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]*[A-Za-z0-9_./]|[A-Za-z0-9_.]")
ONE_QUESTION = "Question: {{ messages[0].content }}\nAnswer: {{ messages[1].content }}"
MANY_TURNS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
)
_SEQUENCE_LENGTH = 1024
_BASE_PLUGINS = ("transformers", "transformers_trainer", "polars", "jinja_formatter")

Line = tuple[str, str]
"""A line of YAML and the comment behind it."""


def starter_yaml(answers: Answers, file: Path) -> str:
    """The whole text of the configuration that will be called `file`."""
    sections = [
        (("model:", ""), *_model(answers)),
        (("datasets:", ""), *_datasets(answers)),
        (("trainer:", ""), *_trainer(answers)),
        tuple(_evaluation(answers)),
        tuple(_plugins(answers)),
    ]
    head = [
        "# Written by `dumbo init`. Every line may be changed; `dumbo explain KEY` says what a key takes.",
        f"# `dumbo check {file} --rows` checks it, `dumbo {file}` trains.",
    ]
    blocks = [[_commented(line) for line in section] for section in sections if section]
    return "\n\n".join("\n".join(block) for block in [head, *blocks]) + "\n"


def _commented(line: Line) -> str:
    text, comment = line
    if not comment:
        return text
    return f"{text.ljust(COMMENTS_AT - 2)}  # {comment}" if text.strip() else f"{text}# {comment}"


def _model(answers: Answers) -> Iterator[Line]:
    model = answers.model
    if model is None:
        yield from _random_weights(answers)
        return
    where = "a hub name: it is downloaded on first use" if model.folder is None else "where training starts"
    size = f" ({size_words(model.num_bytes)})" if model.num_bytes and model.folder else ""
    yield f"  base_model: {scalar(model.name)}", where + size
    if answers.lora:
        yield "  peft:", "LoRA: new weights are trained, the model's own stay as they are"
        yield "    rank: 16", "more learns more and takes more memory"
        yield "    target_modules: all-linear", "every linear layer but the output head"


def _random_weights(answers: Answers) -> Iterator[Line]:
    hidden, layers, heads = (512, 8, 8) if answers.has_gpu else (128, 4, 4)
    yield "  architecture:", "random weights; a base_model would bring trained ones"
    yield "    model_type: llama", ""
    yield f"    hidden_size: {hidden}", "width; a multiple of the number of heads"
    yield f"    intermediate_size: {3 * hidden}", ""
    yield f"    num_hidden_layers: {layers}", ""
    yield f"    num_attention_heads: {heads}", ""
    yield f"    num_key_value_heads: {heads}", ""
    yield "    max_position_embeddings: 512", "longest sequence in tokens"
    yield "    tie_word_embeddings: true", ""
    yield "  tokenizer_trainer:", "the tokenizer is learned from the rows below"
    yield f"    vocab_size: {8192 if answers.has_gpu else 2048}", "tokens at most; few rows give fewer"


def _datasets(answers: Answers) -> Iterator[Line]:
    data = answers.data
    yield f"  - path: {scalar(data.path)}", "file, folder, pattern such as data/*.jsonl, or hub data set"
    yield "    type: huggingface_polars", "who reads it"
    meanings = {
        "field_instruction": "column with the question",
        "field_input": "column with what the question is about; may be empty",
        "field_output": "column with the answer",
        "field_messages": "column with the messages",
    }
    if data.data_format == {"type": "messages"}:
        yield "    data_format: messages", "a row has `messages`, each with `role` and `content`"
    else:
        row = "a row is a question and its answer"
        yield "    data_format:", row if data.columns else f"{row}; 'dumbo check --rows' tells whether that is so"
        for key, value in data.data_format.items():
            yield f"      {key}: {scalar(value)}", meanings.get(key, "")
    yield "    train_format:", "how a row becomes text"
    yield from _train_format(answers)


def _train_format(answers: Answers) -> Iterator[Line]:
    if answers.model is None or answers.model.has_chat_template:
        brought = "the new tokenizer gets ChatML" if answers.model is None else "as the model's tokenizer writes chats"
        yield "      type: chat_template", brought
    else:
        template = MANY_TURNS if answers.data.data_format["type"] == "messages" else ONE_QUESTION
        yield "      type: jinja_messages", "a template of your own; the end token follows"
        yield f"      template: {scalar(template)}", ""
    yield "      train_on_inputs: false", "learn the answers, not the questions"


def _trainer(answers: Answers) -> Iterator[Line]:
    batch, physical = batch_sizes(answers)
    yield "  arguments:", ""
    yield f"    batch_size: {batch}", "sequences per optimizer step"
    yield f"    physical_batch_size: {physical}", "sequences per forward pass; less takes less memory"
    yield f"    learning_rate: {_learning_rate(answers)}", "highest; if the loss jumps, take less"
    yield "    lr_scheduler_type: cosine", "falls slowly at first"
    yield "    warmup_steps: 0.05", "share of the steps in which the rate rises"
    if answers.model is None:
        yield "    num_train_epochs: 10", "passes over the rows; random weights need many"
    else:
        yield "    num_train_epochs: 3", "passes over the rows"
    yield "  data:", ""
    if answers.model is not None:
        longest = min(_SEQUENCE_LENGTH, answers.model.longest or _SEQUENCE_LENGTH)
        yield f"    sequence_length: {longest}", "longest row in tokens"
    yield "    too_long: drop", "longer rows are left out and counted"
    if answers.held_out:
        yield f"    val_set_size: {answers.held_out}", "rows held out to evaluate on: a share, or a number"
    if answers.tracker is not None:
        options = list(tracker_options(answers.tracker))
        if options:
            yield f"  {answers.tracker}:", ""
            yield from ((f"    {key}: {scalar(value)}", comment) for key, value, comment in options)
    yield "  # output_dir: runs/first", "by default runs/<name of this file>-<time>"


def _evaluation(answers: Answers) -> Iterator[Line]:
    if answers.held_out:
        yield "evaluation:", ""
        yield "  samples:", "answers to held-out questions, before, during and after training"
        yield "    count: 3", ""
        yield "    max_new_tokens: 64", ""


def _plugins(answers: Answers) -> Iterator[Line]:
    added = (
        ("tokenizer_trainer", answers.model is None),
        ("peft", answers.lora),
        ("samples", bool(answers.held_out)),
        (answers.tracker or "", answers.tracker is not None),
    )
    yield "plugins:", "what is listed is on; `dumbo plugins` lists all"
    yield from ((f"  - {name}", "") for name in (*_BASE_PLUGINS, *(name for name, is_on in added if is_on)))


def batch_sizes(answers: Answers) -> tuple[int, int]:
    """Sequences per step and per forward pass: few on a CPU, and few of a large model."""
    if answers.model is None:
        return (64, 64) if answers.has_gpu else (16, 16)
    if not answers.has_gpu:
        return 8, 2
    physical: Sequence[tuple[float, int]] = ((1e9, 16), (4e9, 8), (16e9, 4), (float("inf"), 1))
    return 32, next(count for most, count in physical if answers.model.num_bytes < most)


def _learning_rate(answers: Answers) -> str:
    if answers.model is None:
        return "1e-3"
    if answers.lora:
        return "2e-4"
    return "1e-4" if answers.model.num_bytes < 1e9 else "2e-5"


def scalar(text: str) -> str:
    """A text in YAML on one line, in quotes where it would not be itself without."""
    is_plain = _PLAIN.fullmatch(text) and isinstance(plain_scalar(text), str)
    return text if is_plain else json.dumps(text, ensure_ascii=False)
