"""Our subclass of Transformers' Trainer: rows by plan, one loss for any split into batches, evaluation by tokens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments

from dumbo.bridge.best import BestModel
from dumbo.bridge.callbacks import ShowProgress
from dumbo.bridge.counting import CountingLoss
from dumbo.bridge.gradients import change_gradients, listeners
from dumbo.bridge.guarded import GuardedTrainer
from dumbo.bridge.learning_rates import scale_learning_rates
from dumbo.bridge.packing import Packing
from dumbo.bridge.requests import Stop
from dumbo.bridge.stream_loader import StreamLoader
from dumbo.bridge.token_loss import TokenLoss
from dumbo.data.dataset import RowIndex, TokenDataset
from dumbo.data.plan import BatchPlan, plan_run
from dumbo.data.records import WEIGHTS
from dumbo.data.sequences import single_rows
from dumbo.data.streaming import Stream
from dumbo.errors import DumboError, Interrupted, PluginError, TrainingStopped
from dumbo.job import Batch, Job, Loss, TrainResult
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.losses.token import sum_of_weights
from dumbo.metrics import logged_path


class PlannedLoader(DataLoader[Any]):
    """Batches of one rank as a plan has them; the Trainer tells it the epoch."""

    def __init__(self, dataset: TokenDataset, plan: BatchPlan, rank: int, **options: Any) -> None:
        """`options` are those of PyTorch's DataLoader."""
        # With a generator of its own: each pass draws a seed for workers, which would move the training's dropout.
        own = torch.Generator()
        super().__init__(dataset, batch_sampler=_PlannedBatches(plan, rank), generator=own, **options)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """The next pass is over the rows of `epoch`."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class _PlannedBatches:
    def __init__(self, plan: BatchPlan, rank: int) -> None:
        self.plan, self.rank, self.epoch = plan, rank, 0

    def __iter__(self) -> Iterator[list[RowIndex]]:
        return self.plan.micro_batches(self.epoch, self.rank)

    def set_epoch(self, epoch: int) -> None:
        """Also called by the Trainer where it skips the first batches of a pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.micro_batches_per_epoch


class DumboTrainer(GuardedTrainer):
    """Transformers' Trainer with dumbo's data, loss, evaluation and logging in its public places.

    The loss of an optimizer step is the sum over all supervised tokens of the global batch divided by their number, on
    any number of ranks and with any accumulation. The auxiliary loss of mixture-of-experts models, where the model
    returns one, is averaged over the forward passes and added with its coefficient, whatever the loss.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, job: Job, arguments: TrainingArguments) -> None:
        """Wire `job` up; nothing is trained yet."""
        self._logged_at = time.monotonic()
        self._stream: StreamLoader | None = None
        self.packing: Packing | None = None
        """What keeps packed rows apart; off in evaluation, which pads."""
        ours = job.config.trainer.arguments
        own = TokenLoss(LossOptions(label_smoothing=ours.label_smoothing_factor), job.console.say)
        self._loss: Loss = job.loss or own
        keeping = []
        if ours.load_best_model_at_end:
            folder, last = job.output_dir / "checkpoints", lambda: self.checkpoints.folder.last_step
            keeping = [BestModel(ours, folder, self.save, job.console.say, lambda: self.is_stopped, last)]
        super().__init__(
            job,
            model=job.model,
            args=arguments,
            train_dataset=cast("Any", job.train_dataset),
            eval_dataset=cast("Any", job.eval_dataset),
            data_collator=cast("Any", job.collator),
            processing_class=job.tokenizer,
            callbacks=[*keeping, *job.callbacks, ShowProgress(job.console)],
        )
        # Before Transformers 5.20 this, and not `loss_is_scaled_for_ga`, kept the loss from being divided once more.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        with contextlib.suppress(OSError):
            # Made too early: a folder of checkpoints without one would mislead.
            Path(arguments.output_dir or "").rmdir()
        job.model.register_forward_hook(self._keep_aux_loss)
        if isinstance(self._loss, CountingLoss):
            self._loss.autocast = self.accelerator.autocast

    def train_to_end(self) -> TrainResult:
        """Train; Ctrl-C or SIGTERM end it after the current step, with a checkpoint, which the result tells."""
        self._logged_at = time.monotonic()
        try:
            self.begin_or_go_on()
        except KeyboardInterrupt:
            raise Interrupted(self._told_at_once()) from None
        except DumboError as error:
            # Between two steps, or the stream's: the steps that were made are worth keeping.
            of_stream = self._stream is not None and error is self._stream.batches.failed
            if not (of_stream or isinstance(error, TrainingStopped)) or not self.state.global_step:
                if isinstance(error, PluginError):
                    self._keep_steps()
                raise
            self._job.console.stop_training()
            # What a stream has handed out for this step is gone; but a checkpoint that is there has more than a model.
            checkpoint = (
                self.save_before_step()
                if self._stream is None
                else self.checkpoints.folder.written(self.state.global_step)
            )
            return TrainResult(self.state.global_step, self.state.max_steps, checkpoint=checkpoint, failure=error)
        except (Exception, SystemExit):
            self._keep_steps()
            raise
        finally:
            if self._job.stream is not None:
                self._job.stream.close()
        steps, total, stop = self.state.global_step, self.state.max_steps, self.requests.stop
        if stop is Stop.NOBODY:
            return TrainResult(steps, total, skipped=self.skipped_steps)
        is_user = stop is Stop.USER
        return TrainResult(steps, total, interrupted=is_user, terminated=not is_user, checkpoint=self.stopped_at)

    def _told_at_once(self) -> str:
        """What is said of a training that was ended in the middle of something."""
        last = self.checkpoints.folder.last_step
        kept = f"the last checkpoint is that of step {last}" if last is not None else "there is no checkpoint"
        return f"stopped at once, after step {self.state.global_step}; {kept}"

    def _keep_steps(self) -> None:
        """The training has failed, such as in a plugin's callback: what was trained until then is worth keeping."""
        step, say = self.state.global_step, self._job.console.say
        if not step or self.checkpoints.folder.written(step) is not None:
            return
        self._job.console.stop_training()
        try:
            checkpoint = self.save_what_was_made()
        except Exception as error:  # What failed first is what the user must know; a device may fail at everything.
            say(f"no checkpoint could be written of what was trained until then: {error}")
            return
        if checkpoint is not None:
            say(f"what was trained until then is in {checkpoint}: --resume goes on from it")

    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None for a stream."""
        return None if self._job.stream is not None else self.batch_plan.steps_per_epoch

    def get_train_dataloader(self) -> PlannedLoader | StreamLoader:
        """The training batches of this rank."""
        if self._job.stream is not None:
            self._stream = self._stream_loader(self._job.stream)
            return self._stream
        assert self._job.train_dataset is not None
        return self._loader(self._job.train_dataset, self.batch_plan, self.data_collator)

    @cached_property
    def batch_plan(self) -> BatchPlan:
        """Which rows are trained on when."""
        assert self._job.sequences is not None  # A stream has no plan.
        sizes = (self.args.per_device_train_batch_size, self.args.world_size)
        return plan_run(self._job.config, self._job.sequences, *sizes)

    def _stream_loader(self, stream: Stream) -> StreamLoader:
        sizes = (self._job.config.trainer.arguments.batch_size, self.args.per_device_train_batch_size)
        ranks = (self.args.world_size, self.args.process_index)
        resumption = self._job.run_state.resumption
        return StreamLoader(
            stream,
            self.args.max_steps - (resumption.step if resumption is not None else 0),
            *sizes,
            *ranks,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _loader(self, dataset: TokenDataset, plan: BatchPlan, collate: Any) -> PlannedLoader:
        workers = self.args.dataloader_num_workers
        return PlannedLoader(
            dataset,
            plan,
            self.args.process_index,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The batches of one optimizer step on this rank, and the number of supervised tokens on all ranks, or the sum
        of their weights where they have some."""
        self._begin_step()
        if isinstance(self._loss, CountingLoss):
            self._loss.begin_step()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            counts[0] += sum_of_weights(batch)
            counts[1] += batch["attention_mask"].sum() if "attention_mask" in batch else batch["labels"].numel()
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device))
        self.tokens_seen += int(counts[1])
        self._take_batches(batches)
        items = counts[0].float() if any(WEIGHTS in batch for batch in batches) else counts[0].long()
        return batches, items.where(items > 0, 1).to(device)

    def _forget_passes(self) -> None:
        if isinstance(self._loss, CountingLoss):
            self._loss.forget_step()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This rank's share of the step's loss, times the number of ranks, over which gradients are averaged."""
        assert isinstance(num_items_in_batch, Tensor) and not return_outputs
        share = self._sum_over_tokens(model, inputs, num_items_in_batch)
        loss: Tensor = share * self.args.world_size
        if self._aux_loss is not None:
            coefficient = getattr(self.accelerator.unwrap_model(model).config, "router_aux_loss_coef", 1.0)
            loss = loss + coefficient * self._aux_loss / self.current_gradient_accumulation_steps
        return loss

    def _sum_over_tokens(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        self._aux_loss = None
        return self._loss(model, batch, num_items)

    def _keep_aux_loss(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # A model that was given labels has added its auxiliary loss to the loss that it returns.
        added = getattr(output, "loss", None) is not None
        self._aux_loss = None if added else getattr(output, "aux_loss", None)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over all supervised tokens of the held-out rows, each counted once, or by its weight, on any number
        of ranks."""
        began = time.monotonic()
        dataset: Any = self._job.eval_dataset if eval_dataset is None else eval_dataset
        unpacked = self.packing.switched_off() if self.packing else contextlib.nullcontext()
        with unpacked, self.evaluating():
            metrics = {f"{metric_key_prefix}_loss": self._mean_loss(dataset)}
            for evaluate in self._job.evaluators:
                self.stop_if_asked()
                metrics |= {f"{metric_key_prefix}_{name}": float(value) for name, value in evaluate().items()}
        # What is decided by them (the best weights, an early end) must be decided alike on all ranks.
        metrics = cast("dict[str, float]", broadcast_object_list([metrics])[0])
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._logged_at += time.monotonic() - began  # the rate is that of the training alone
        return metrics

    def _mean_loss(self, dataset: TokenDataset) -> float:
        size, ranks = self.args.per_device_eval_batch_size, self.args.world_size
        # By length, as their order does not matter: least padding.
        sequences = single_rows(dataset.length, seed=0, shuffle=False)
        plan = BatchPlan(sequences, size * ranks, size, ranks, grouped_steps=len(dataset))
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        model = self._job.model
        model.eval()
        one = torch.ones((), device=self.args.device)
        with torch.no_grad():
            for batch in self._loader(dataset, plan, self._job.eval_collator):
                self.stop_if_asked()
                self.evaluated = batch
                batch = self._prepare_inputs(batch)
                total[0] += self._sum_over_tokens(model, batch, one)
                total[1] += sum_of_weights(batch)
        model.train()
        self.evaluated = None
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total)
        return (total[0] / total[1]).item()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # What callbacks change is clipped after that, so that no update is larger than it was asked to be.
        return None if listeners(self.callback_handler.callbacks) else super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the step's gradient before clipping, as callbacks leave it; a step that is skipped is none of
        their business."""
        norm = super()._get_grad_norm(model, grad_norm)
        found = listeners(self.callback_handler.callbacks)
        if not found or self._guard.skips or not torch.isfinite(norm):
            return norm
        return change_gradients(self, found, self._job.model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer plugin's, or the one that the arguments name."""
        is_made = self.optimizer is not None
        chosen = self._job.model if model is None else model
        if not is_made and self._job.build_optimizer is not None:
            self.optimizer = self._job.build_optimizer(chosen)
        optimizer = super().create_optimizer(model)
        if not is_made and self._job.learning_rate_factors:
            scale_learning_rates(optimizer, chosen, self._job.learning_rate_factors)
        return optimizer

    def logging_state(self) -> dict[str, Any]:
        """With what the loss has counted since the last log."""
        counts = self._loss.counts if isinstance(self._loss, CountingLoss) else None
        return {**super().logging_state(), "token_counts": counts}

    def restore_logging(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        if isinstance(self._loss, CountingLoss):
            self._loss.counts = state.get("token_counts")
        super().restore_logging(state)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The scheduler plugin's, or the one that the arguments name."""
        if self.lr_scheduler is None and self._job.build_scheduler is not None:
            chosen = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = cast("Any", self._job.build_scheduler(cast("Any", chosen), num_training_steps))
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand Transformers' metrics on under dumbo's paths."""
        if isinstance(self._loss, CountingLoss) and "loss" in logs:
            logs |= self._loss.take_means(self.args.device, self.args.world_size)
        super().log(logs, start_time)
        metrics = dict(_renamed(logs))
        if self._job.stream is not None:
            metrics.pop("train/epoch", None)  # Nobody knows how long one is.
        elif "train/epoch" in metrics:
            # Transformers counts forward passes, whose number depends on the ranks; steps are the same on any number.
            metrics["train/epoch"] = self.state.global_step / self.batch_plan.steps_per_epoch
        if "train/loss" in metrics:
            now, waited = time.monotonic(), self.checkpoint_seconds
            rate = (self.tokens_seen - self._tokens_logged) / max(now - self._logged_at - waited, 1e-9)
            if waited:
                metrics["perf/checkpoint_seconds"], self.checkpoint_seconds = waited, 0.0
            metrics["perf/tokens_per_second"] = rate
            self._tokens_logged, self._logged_at = self.tokens_seen, now
        if metrics:
            self._job.metrics.log(metrics, self.state.global_step)


_FINAL = frozenset({"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"})


def _renamed(logs: dict[str, float]) -> Iterator[tuple[str, float]]:
    """`loss` -> `train/loss`, `eval_loss` -> `eval/loss`; the summary after the last step is said elsewhere."""
    if _FINAL & logs.keys():
        return
    for name, value in logs.items():
        with contextlib.suppress(TypeError, ValueError):
            yield logged_path(name), float(value)
