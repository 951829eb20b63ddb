"""The loss of masked diffusion: the cross entropy of the tokens that were masked, weighted by how many were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dumbo.bridge.bidirectional import prove_bidirectional
from dumbo.bridge.counting import counted
from dumbo.bridge.token_loss import TokenLoss, values_of
from dumbo.data.records import IGNORED
from dumbo.errors import ConfigError, PluginError, RunError
from dumbo.job import Batch
from dumbo.kernels.linear_cross_entropy import (
    LinearLoss,
    LossOptions,
    TokenWeights,
    cross_entropy_of,
    linear_cross_entropy,
)
from dumbo.losses.diffusion import MaskSchedule, predicting_places
from dumbo.plugin_loader import Services
from dumbo.plugins.diffusion.mask_token import mask_token_id
from dumbo.plugins.diffusion.noise import Masking, Noise
from dumbo.plugins.diffusion.plugin import DiffusionOptions

COUNTED = ("positions", "trained", "documents", "p", "masked", "weights", "correct", "cross_entropy")
"""What is summed over forward passes: tokens without padding, those that are trained, rows or packed documents that
have some, their mask probabilities; and of the masked tokens the number, weights, right predictions, and nats."""


def build_loss(options: DiffusionOptions, seed: int, tokenizer: Any, services: Services) -> DiffusionLoss:
    """The loss that `options` describe."""
    schedule = MaskSchedule(options.noise_schedule, options.min_mask_ratio, options.max_mask_ratio, options.eps)
    mask = mask_token_id(tokenizer)
    services.say(describe(options, schedule, str(tokenizer.mask_token), mask))
    masking = Masking(schedule, never_masked(tokenizer), seed, services.rank)
    return DiffusionLoss(masking, mask, options.importance_weighting, options.shift_logits, services.say)


def never_masked(tokenizer: Any) -> frozenset[int]:
    """The tokens that are never predicted: bos, pad and mask. The end token is, also where rows are padded with it."""
    found = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    return frozenset(found - {None, tokenizer.eos_token_id})


def describe(options: DiffusionOptions, schedule: MaskSchedule, token: str, number: int) -> str:
    """A line that says what is masked how often, and what the loss is."""
    low, high = max(schedule.low, schedule.eps), max(schedule.high, schedule.eps)
    is_bound = options.importance_weighting and schedule.is_bound
    what = "a bound on the negative log-likelihood" if is_bound else "that of masked tokens, no bound on a likelihood"
    shares = f"{low:g} to {high:g} of a row, {schedule.mean:.2f} on average ({schedule.kind})"
    return f"diffusion: '{token}' ({number}) masks {shares}; the loss is {what}; every evaluation has the same noise"


class DiffusionLoss(TokenLoss):
    """(model, batch, num_items) -> sum over masked tokens of weight * cross entropy, divided by `num_items`, the number
    of all trained tokens of the global batch.

    LLaDA (arXiv 2502.09992), equation 3 and, of answers alone, 5; MDLM (arXiv 2406.07524), equation 10.
    """

    def __init__(
        self, masking: Masking, mask_token: int, importance: bool, shifted: bool, say: Callable[[str], None]
    ) -> None:
        """`shifted`: a token is predicted at the place before it."""
        super().__init__(LossOptions(with_metrics=True), say)
        self._masking, self._mask_token, self._importance, self._shifted = masking, mask_token, importance, shifted
        self._is_proven = False
        self.evaluated: Tensor | None = None
        """The sums of `COUNTED`, as `counts` has them, of the evaluation that is being made."""

    def __call__(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        """The loss; without gradients with the noise of evaluations."""
        self._prove(model, batch)
        noise = self._masking.draw(batch, training=torch.is_grad_enabled())
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        inputs["input_ids"] = batch["input_ids"].masked_fill(noise.masked_BT, self._mask_token)
        targets = batch["input_ids"][noise.masked_BT]
        weights = self._masking.schedule.weights(noise.p_BT[noise.masked_BT], self._importance)
        places = predicting_places(noise.masked_BT, self._shifted)
        logits = self._logits(model, inputs, batch["labels"].numel())
        linear = self._unmade(logits, self._options)
        if linear is not None:
            found = linear_cross_entropy(linear.rows(places), targets, self._options, weights)
        else:
            found = cross_entropy_of(values_of(logits)[places], targets, self._options, weights)
        self._tally(batch, noise, weights, found)
        return found.total / num_items

    def take_means(self, device: torch.device, world_size: int) -> dict[str, float]:
        """The metrics of what was trained since they were last taken, on all ranks; to be called on all of them."""
        return metrics_of(self.take_sums(len(COUNTED), device, world_size))

    def weigh(self, weigh: TokenWeights) -> None:
        """Tokens have their weights by how many are masked.

        Raises:
            PluginError: always.
        """
        raise PluginError(
            "the plugin 'diffusion' takes no other weights of tokens\n    remove the plugin that has some"
        )

    def _tally(self, batch: Batch, noise: Noise, weights: Tensor, found: LinearLoss) -> None:
        mask, labels = batch.get("attention_mask"), batch["labels"]
        positions = labels.numel() if mask is None else mask.sum()
        numbers = (positions, (labels[:, 1:] != IGNORED).sum(), len(noise.p_D), noise.p_D.sum(), len(weights))
        assert found.num_correct is not None and found.cross_entropy is not None  # They were asked for.
        counts = counted(labels.device, *numbers, weights.sum(), found.num_correct, found.cross_entropy)
        if torch.is_grad_enabled():
            self.count(counts)
        else:
            self.evaluated = counts if self.evaluated is None else self.evaluated + counts

    def _prove(self, model: Any, batch: Batch) -> None:
        """Once, where the model is and computes as in training."""
        if self._is_proven:
            return
        self._is_proven = True
        try:
            prove_bidirectional(model, batch["input_ids"].device, packed="cu_seq_lens_q" in batch)
        except RunError as error:
            hint = "write model.attention: sdpa, or take another model"
            raise ConfigError.at("model.attention", f"diffusion: {error}", hint) from error


def metrics_of(counts: Sequence[float]) -> dict[str, float]:
    """Name -> number, of the sums that `COUNTED` names; nothing where nothing was masked."""
    found = dict(zip(COUNTED, counts, strict=True))
    if not found["positions"] or not found["documents"]:
        return {}
    metrics = {
        "mask_ratio": found["masked"] / found["positions"],
        "num_masked_tokens": found["masked"],
        "avg_p_mask": found["p"] / found["documents"],
    }
    if found["masked"]:
        metrics["accuracy"] = found["correct"] / found["masked"]
        metrics["ce_loss"] = found["cross_entropy"] / found["masked"]
        metrics["importance_weight_avg"] = found["weights"] / found["masked"]
    if found["trained"] + found["documents"] < found["positions"]:  # a prompt is given; the first token always is
        metrics["answer_ratio"] = found["trained"] / found["positions"]
        metrics["avg_answer_length"] = found["trained"] / found["documents"]
    return metrics
