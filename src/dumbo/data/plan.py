"""Which rows every rank takes in every forward pass, decided before training: exact steps, equal work on all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.config.arguments import TrainerArguments
    from dumbo.config.schema import RunConfig
    from dumbo.data.dataset import RowIndex
    from dumbo.data.sequences import EpochSequences, Sequences

_GROUPED_STEPS = 50
"""Steps that share their rows out by length: enough to have rows alike, few enough to leave the order to chance."""

FILLER = -1
"""Index of the row that nobody trains on: a rank takes it where the last rows of an epoch do not reach all ranks."""


@dataclass(frozen=True)
class BatchPlan:
    """A global batch holds the same sequences on any number of ranks. In it they stand by their lengths, the longest
    first: a forward pass has sequences of similar lengths, and what needs most memory comes at once."""

    sequences: Sequences
    batch_size: int
    """Sequences per optimizer step over all ranks; the last step of an epoch takes what is left."""
    physical_batch_size: int
    world_size: int
    grouped_steps: int = 1
    """So many steps in a row share their sequences out by length."""
    seed: int = 0
    """Gives the order of grouped steps."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over the rows."""
        return -(-len(self.sequences) // self.batch_size)

    @property
    def micro_batches_per_epoch(self) -> int:
        """Forward passes of each rank in a pass over the rows."""
        at_once = self.physical_batch_size * self.world_size
        whole, rest = divmod(len(self.sequences), self.batch_size)
        return whole * (self.batch_size // at_once) + -(-rest // at_once)

    def micro_batches(self, epoch: int, rank: int) -> Iterator[list[RowIndex]]:
        """The rows of each forward pass of `rank` in `epoch`, grouped by optimizer step."""
        sequences = self.sequences.of_epoch(epoch)
        for numbers in self._passes(sequences, epoch):
            rows = [row for number in numbers[rank :: self.world_size] for row in sequences.rows_of(number)]
            yield rows or [FILLER]

    def padding_share(self, epoch: int = 0) -> float:
        """The share of positions that are padding, where the sequences of a forward pass are padded to the longest."""
        sequences = self.sequences.of_epoch(epoch)
        tokens = positions = 0
        for numbers in self._passes(sequences, epoch):
            for rank in range(self.world_size):
                lengths = sequences.lengths[numbers[rank :: self.world_size]]
                tokens += int(lengths.sum())
                positions += len(lengths) * int(lengths.max(initial=0))
        return 1 - tokens / max(positions, 1)

    def _passes(self, sequences: EpochSequences, epoch: int) -> Iterator[list[int]]:
        """The sequences of each forward pass, of all ranks together."""
        import numpy as np

        at_once = self.physical_batch_size * self.world_size
        window = self.batch_size * self.grouped_steps
        for begin in range(0, len(self.sequences), window):
            numbers = np.arange(begin, min(begin + window, len(self.sequences)))
            by_length = numbers[np.argsort(-sequences.lengths[numbers], kind="stable")]
            steps = [by_length[first : first + self.batch_size] for first in range(0, len(by_length), self.batch_size)]
            if len(steps) > 1:
                # A short step stays the last one; the others come in any order, so that not all begin with the longest.
                order = np.random.default_rng([self.seed, epoch, begin]).permutation(len(steps) - 1)
                steps = [*(steps[place] for place in order), steps[-1]]
            for step in steps:
                for first in range(0, len(step), at_once):
                    yield step[first : first + at_once].tolist()


def plan_run(config: RunConfig, sequences: Sequences, physical_batch_size: int, world_size: int) -> BatchPlan:
    """The plan that a run's configuration asks for."""
    trainer = config.trainer
    grouped = _GROUPED_STEPS if trainer.data.group_by_length else 1
    return BatchPlan(sequences, trainer.arguments.batch_size, physical_batch_size, world_size, grouped, trainer.seed)


def total_steps(plan: BatchPlan, arguments: TrainerArguments) -> int:
    """Optimizer steps of the whole run."""
    return arguments.max_steps or math.ceil(arguments.num_train_epochs * plan.steps_per_epoch)


def describe_plan(plan: BatchPlan, arguments: TrainerArguments) -> str:
    """How many steps there will be, of how many tokens, and how much of them is padding."""
    tokens = int(plan.sequences.of_epoch(0).lengths.sum())
    filled = plan.sequences.filling or f"{plan.padding_share():.0%} padding"
    steps = f"{plan.steps_per_epoch:,} steps per epoch, {total_steps(plan, arguments):,} in all"
    return f"{steps}; {tokens:,} tokens per epoch; {filled}"
