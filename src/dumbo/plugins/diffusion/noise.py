"""Which tokens are masked: drawn anew in training, and always the same in evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dumbo.data.records import IGNORED
from dumbo.job import Batch
from dumbo.losses.diffusion import MaskSchedule

_RANKS_APART = 0x9E3779B97F4A7C15


class Noise(NamedTuple):
    """What is masked of a batch."""

    masked_BT: Tensor  # noqa: N815
    """Bool [sequences, tokens]."""
    p_BT: Tensor  # noqa: N815
    """Float32 [sequences, tokens]: the probability with which each token was masked, if it may be."""
    p_D: Tensor  # noqa: N815
    """Float64 [documents]: of those that have tokens to mask."""


class Masking:
    """Draws the noise of batches, on the CPU, so that devices agree.

    In training it follows PyTorch's own generator, whose state every checkpoint has, and differs between ranks, which
    all have the same. In evaluation that of a row follows from its tokens and the seed alone: it is the same in every
    evaluation, whatever the batches.
    """

    def __init__(self, schedule: MaskSchedule, never: frozenset[int], seed: int, rank: int) -> None:
        """Tokens of `never` are not masked."""
        self.schedule, self._seed, self._rank = schedule, seed, rank
        self._never = torch.tensor(sorted(never), dtype=torch.int64)

    def draw(self, batch: Batch, training: bool) -> Noise:
        """Masks for `batch`, a time for each of its rows or, where it is packed, of its documents."""
        ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
        maskable = maskable_tokens(batch) & ~torch.isin(ids, self._never)
        p = torch.zeros(ids.shape, dtype=torch.float32)
        even = torch.zeros(ids.shape, dtype=torch.float32)
        ratios = []
        generator = torch.Generator()
        if training:
            drawn = int(torch.randint(2**62, ()))
            generator.manual_seed((drawn + self._rank * _RANKS_APART) % 2**63)
        for row, first, end in _documents(batch):
            if not training:
                content = zlib.crc32(ids[row, first:end].numpy().tobytes())
                content = zlib.crc32((labels[row, first:end] != IGNORED).numpy().tobytes(), content)
                generator.manual_seed(self._seed * 2**31 + content)
            time = torch.rand((), generator=generator, dtype=torch.float64)
            even[row, first:end] = torch.rand(end - first, generator=generator)
            ratio = self.schedule.probabilities(time)
            p[row, first:end] = ratio.float()
            if maskable[row, first:end].any():
                ratios.append(ratio)
        device = batch["input_ids"].device
        p_D = torch.stack(ratios) if ratios else torch.zeros(0, dtype=torch.float64)  # noqa: N806
        return Noise(((even < p) & maskable).to(device), p.to(device), p_D)


def maskable_tokens(batch: Batch) -> Tensor:
    """Bool [sequences, tokens], on the CPU: those with a label, but for the first of a row, as the trainer counts."""
    trained = batch["labels"].cpu() != IGNORED
    trained[:, 0] = False
    return trained


def _documents(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Row, first token and end of each; padding is no part of any."""
    count, width = batch["input_ids"].shape
    if "cu_seq_lens_q" in batch:
        yield from ((0, first, end) for first, end in pairwise(batch["cu_seq_lens_q"].tolist()))
        return
    mask = batch.get("attention_mask")
    if mask is None:
        yield from ((row, 0, width) for row in range(count))
        return
    for row, kept in enumerate(mask.cpu().bool()):
        places = kept.nonzero()
        if len(places):
            yield row, int(places[0]), int(places[-1]) + 1
