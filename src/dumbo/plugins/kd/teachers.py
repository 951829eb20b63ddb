"""Teachers: a model in this process, what stands beside the rows, and a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dumbo.bridge.model_logits import logits_of
from dumbo.bridge.packing import prepare_for_packing
from dumbo.bridge.splitting import BOUNDARIES, documents_of
from dumbo.bridge.token_loss import sees_both_sides
from dumbo.data.records import IGNORED
from dumbo.errors import ConfigError, RunError
from dumbo.job import Batch
from dumbo.kernels.linear_logits import LinearLogits, Sweep
from dumbo.losses.distill import divergence, top_k_divergence
from dumbo.losses.token import next_targets
from dumbo.plugins.kd.options import KdOptions, TeacherOptions
from dumbo.plugins.kd.recording import IDS, LOGPROBS

if TYPE_CHECKING:
    from dumbo.plugins.kd.loss import Judge

Rows = Callable[[slice], Tensor]
"""Logits of some places, [places, vocabulary], in at least float32."""


class Asked(Protocol):
    """What tells a teacher's likeliest tokens: a client of a server."""

    def top_k(self, rows: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Of each row of n token ids: ids, int64 [n - 1, K], and log-probabilities, float32 [n - 1, K], -inf where
        there is none; row i of them predicts token i + 1."""
        ...


class LiveTeacher:
    """A model that reads what the student reads; it has no gradients, and its logits are made by tiles."""

    def __init__(self, model: Any, options: TeacherOptions, kd: KdOptions, num_tokens: int) -> None:
        """`num_tokens` of the vocabulary exist: what a model has beyond them only fills its matrix up.

        Raises:
            ConfigError: the model has fewer, or sees both sides of a token, or its device is not there.
        """
        if sees_both_sides(model):
            message = f"the teacher {options.path} sees both sides of a token (is_causal: false in its config.json)"
            hint = "name a model that predicts the next token; this one would only repeat what it sees"
            raise ConfigError.at("trainer.kd.teacher.path", message, hint)
        self._device = _device(options)
        if options.dtype != "model":
            model = model.to(getattr(torch, options.dtype))
        self.model = model.eval().requires_grad_(False)
        self._kd, self._num_tokens = kd, num_tokens
        self._is_packing = False
        size = model.get_input_embeddings().weight.shape[0]
        if size < num_tokens:
            message = f"the teacher has {size} embeddings, and the student's tokenizer {num_tokens} tokens"
            raise ConfigError.at(
                "trainer.kd.teacher.path", message, "distillation needs a teacher with the same tokens"
            )

    def rows(self, inputs: Batch, kept: Tensor) -> Rows:
        """Its logits of the places that are `kept`."""
        device = self._device or kept.device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        if BOUNDARIES in inputs and not self._is_packing:
            prepare_for_packing(self.model, autocast=_autocast(device))
            self._is_packing = True
        theirs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        with torch.no_grad():
            logits = logits_of(self.model, theirs)
        kept = kept.to(device)
        if isinstance(logits, LinearLogits):
            chosen = logits.rows(kept)
            sweep = Sweep(chosen, (False,) * len(chosen.tensors))
            return lambda tile: sweep.logits(tile)[0]
        values = logits[kept]
        return lambda tile: values[tile].to(torch.promote_types(values.dtype, torch.float32))

    def judge(self, batch: Batch, inputs: Batch, kept: Tensor) -> Judge:
        """The divergence over the whole vocabulary."""
        rows, temperature, beta, shared = self.rows(inputs, kept), self._kd.temperature, self._kd.beta, self._num_tokens

        def judge(z: Tensor, tile: slice) -> Tensor:
            with torch.no_grad():
                teacher = (rows(tile)[:, :shared] / temperature).log_softmax(-1).to(z.device)
            return divergence(teacher, (z[:, :shared] / temperature).log_softmax(-1), beta)

        return judge

    def top_k(self, inputs: Batch, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities at the temperature of the likeliest tokens of the places that are `kept`."""
        rows, total = self.rows(inputs, kept), int(kept.sum())
        ids, logs = [], []
        with torch.no_grad():
            for first in range(0, total, 256):
                z = rows(slice(first, min(first + 256, total)))[:, : self._num_tokens] / self._kd.temperature
                values, chosen = z.log_softmax(-1).topk(count)
                ids.append(chosen.cpu())
                logs.append(values.cpu())
        nothing = torch.zeros(0, count)
        return torch.cat(ids or [nothing.long()]), torch.cat(logs or [nothing])


class RowTeacher:
    """What stands beside the tokens of the rows."""

    def __init__(self, kd: KdOptions, power: float, num_tokens: int) -> None:
        """`power` makes of the probabilities, as they stand there, those at the run's temperature; there are
        `num_tokens` tokens."""
        self._kd, self._power, self._num_tokens = kd, power, num_tokens

    def judge(self, batch: Batch, inputs: Batch, kept: Tensor) -> Judge:
        """The divergence over the tokens that are there.

        Raises:
            RunError: the batch has lost them.
        """
        if IDS not in batch or LOGPROBS not in batch:
            raise RunError(f"the batches have no column '{LOGPROBS}': a plugin that makes the batches has left it out")
        ids = batch[IDS][kept]
        _insist_on_tokens(ids, self._num_tokens)
        return _top_k_judge(ids, batch[LOGPROBS][kept], self._kd, self._power)


class ServerTeacher:
    """A server that is asked about the documents of every batch."""

    def __init__(self, client: Asked, kd: KdOptions, num_tokens: int) -> None:
        """There are `num_tokens` tokens."""
        self._client, self._kd, self._num_tokens = client, kd, num_tokens

    def judge(self, batch: Batch, inputs: Batch, kept: Tensor) -> Judge:
        """The divergence over its likeliest tokens."""
        documents = documents_of({**inputs, "labels": batch["labels"]})
        answers = self._client.top_k([document["input_ids"].tolist() for document in documents])
        chosen: list[tuple[Tensor, Tensor]] = []
        for document, (ids, logs) in zip(documents, answers, strict=True):
            places = (next_targets(document["labels"][None])[0, :-1] != IGNORED).cpu()
            chosen.append((ids[places], logs[places]))
        ids_NK, logs_NK = (torch.cat(parts).to(kept.device) for parts in zip(*chosen, strict=True))  # noqa: N806
        _insist_on_tokens(ids_NK, self._num_tokens)
        return _top_k_judge(ids_NK, logs_NK, self._kd, 1 / self._kd.temperature)


def _insist_on_tokens(ids: Tensor, num_tokens: int) -> None:
    if ids.numel() and int(ids.max()) >= num_tokens:
        message = f"the teacher names the token id {int(ids.max())}, and the student's tokens are 0 to {num_tokens - 1}"
        raise RunError(f"{message}\n    distillation needs a teacher with the same tokens")


def _top_k_judge(ids: Tensor, logs: Tensor, kd: KdOptions, power: float) -> Judge:
    ids = ids.long()

    def judge(z: Tensor, tile: slice) -> Tensor:
        z = z / kd.temperature
        student = z.gather(-1, ids[tile]) - z.logsumexp(-1, keepdim=True)
        return top_k_divergence(logs[tile], student, kd.beta, kd.outside, power)

    return judge


def _device(options: TeacherOptions) -> torch.device | None:
    if options.device is None:
        return None
    try:
        return torch.empty(0, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        message = f"there is no device '{options.device}': {str(error).splitlines()[0]}"
        hint = "write cpu or cuda:0, or remove this key for that of the student"
        raise ConfigError.at("trainer.kd.teacher.device", message, hint) from error


def _autocast(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
