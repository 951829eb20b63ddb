"""Trains tiny models with the real trainer, and with a plain PyTorch loop to compare it with."""

import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dumbo.bridge.trainer import DumboTrainer
from dumbo.bridge.training_args import training_arguments
from dumbo.config.arguments import TrainerArguments
from dumbo.config.data_section import DataSection
from dumbo.config.schema import DatasetEntry, FormatOptions, ModelSection, RunConfig, TrainerSection
from dumbo.console import Console
from dumbo.data.collate import PaddingCollator
from dumbo.data.dataset import TokenDataset
from dumbo.data.records import Example, Origin
from dumbo.data.sequences import single_rows
from dumbo.job import Job
from dumbo.metrics import Metrics, MetricsCollector
from tests import builders

VOCABULARY = 96
SEED = 5


@dataclass
class Recorded(MetricsCollector):
    """Keeps what a run logs: `curve("train/loss")` is a list of pairs of step and value."""

    logged: list = field(default_factory=list)

    def log_metrics(self, metrics, step):
        self.logged.append((step, metrics))

    def curve(self, path):
        return [(step, metrics[path]) for step, metrics in self.logged if path in metrics]

    def values(self, path):
        return [value for _, value in self.curve(path)]


@dataclass
class Trained:
    """A model after its training, the trainer, and what was logged."""

    model: torch.nn.Module
    trainer: DumboTrainer
    metrics: Recorded


def random_rows(count: int, *, longest: int = 40, seed: int = 0) -> TokenDataset:
    """Rows of random tokens whose lengths and trained shares differ widely: some train one token, some nearly all."""
    numbers = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        length = int(numbers.integers(3, longest if index % 3 else 8))
        ids = numbers.integers(4, VOCABULARY, length).tolist()
        first = length - 1 if index % 4 == 0 else int(numbers.integers(1, length))
        examples.append(Example(ids, [-100] * first + ids[first:], Origin("rows", index + 1)))
    return TokenDataset.from_examples(examples)


def run_config(arguments: dict, **data) -> RunConfig:
    """A configuration with these trainer arguments and options of `trainer.data`."""
    entry = DatasetEntry(type="r", data_format=FormatOptions(type="d"), train_format=FormatOptions(type="t"))
    defaults = {"use_cpu": True, "logging_steps": 1, "learning_rate": 3e-3, "adam_epsilon": 1e-6}
    trainer = TrainerSection(arguments=TrainerArguments(**(defaults | arguments)), data=DataSection(**data), seed=SEED)
    return RunConfig(model=ModelSection(), datasets=(entry,), trainer=trainer, plugins=("a",))


@cache
def _tokenizer():
    """Saved with the model; nothing else is done with it."""
    return builders.build_tokenizer()


def build_trainer(
    folder: Path, model, train: TokenDataset, evaluation: TokenDataset | None = None, loss=None, **arguments
) -> Trained:
    """The real trainer over a copy of `model`, with nothing trained yet."""
    model = copy.deepcopy(model)
    config, recorded = run_config(arguments), Recorded()
    job = Job(
        config=config,
        model=model,
        tokenizer=_tokenizer(),
        train_dataset=train,
        eval_dataset=evaluation,
        sequences=single_rows(train.length, SEED, config.trainer.data.shuffle),
        collator=PaddingCollator(0),
        eval_collator=PaddingCollator(0),
        loss=loss,
        build_optimizer=None,
        build_scheduler=None,
        callbacks=[],
        metrics=Metrics([("recorded", recorded)]),
        console=Console(enabled=False),
        output_dir=folder,
    )
    theirs = training_arguments(config, folder, world_size=1, evaluates=evaluation is not None)
    return Trained(model, DumboTrainer(job, theirs), recorded)


def train(folder: Path, model, rows: TokenDataset, evaluation=None, loss=None, **arguments) -> Trained:
    """Train a copy of `model` to the end."""
    trained = build_trainer(folder, model, rows, evaluation, loss, **arguments)
    trained.trainer.train_to_end()
    return trained


def loss_of_rows(model, rows) -> tuple[torch.Tensor, int]:
    """Sum over the trained tokens and their number, a row at a time: nothing is padded or batched."""
    total, count = torch.zeros(()), 0
    for row in rows:
        ids, labels = (torch.tensor(row[name], dtype=torch.int64) for name in ("input_ids", "labels"))
        log_probabilities = model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
        trained = labels[1:] != -100
        total = total - log_probabilities[trained, labels[1:][trained]].sum()
        count += int(trained.sum())
    return total, count


def train_by_hand(model, rows: TokenDataset, *, batch_size: int, epochs: int, learning_rate=3e-3, clip=1.0):
    """A plain loop over a copy of `model`: AdamW, a linear schedule to 0, clipped gradients; also the losses."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, eps=1e-6, weight_decay=0.0)
    steps, losses = epochs * -(-len(rows) // batch_size), []
    for epoch in range(epochs):
        order = np.random.default_rng([SEED, epoch]).permutation(len(rows)).tolist()
        for start in range(0, len(rows), batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (steps - len(losses)) / steps
            total, count = loss_of_rows(model, [rows[index] for index in order[start : start + batch_size]])
            loss = total / count
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return model, losses


def tiny_llama():
    """A random Llama of two layers over `VOCABULARY` tokens."""
    return builders.build_tiny_model(VOCABULARY, seed=1)


def farthest_weight(one, other) -> float:
    """The largest difference between two models in any weight."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)
