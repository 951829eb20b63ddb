"""What `bridge/` relies on in the installed Transformers beyond its documentation; a version that differs fails here.

Everything is asked of the real `Trainer`, in a subclass that notes what is done to it.
"""

import inspect
import math
from types import MethodType

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from dumbo.bridge.guarded import GuardedTrainer
from dumbo.bridge.optimizers import FAMILIAR_OPTIMIZERS, FAMILIAR_SCHEDULES
from dumbo.bridge.trainer import DumboTrainer
from dumbo.bridge.training_args import training_arguments
from tests import builders
from tests.numerics.training import build_trainer, random_rows, run_config, tiny_llama

ROWS, BATCH, ACCUMULATED = 5, 1, 2  # three steps in an epoch; the last has one forward pass


class EpochLoader(torch.utils.data.DataLoader):
    def set_epoch(self, epoch):
        self.epochs = [*getattr(self, "epochs", []), epoch]


class Noting(Trainer):
    """Transformers' Trainer with a loss of 1 per forward pass, that notes what it is asked."""

    loss_is_scaled_for_ga = True

    def __init__(self, *positional, **named):
        self.asked, self.losses, self.logged, self.evaluated = [], [], [], []
        super().__init__(*positional, **named)
        self.model_accepts_loss_kwargs = True
        rows = [{"input_ids": torch.tensor([1, 2, 3])} for _ in range(ROWS)]
        self.loader = EpochLoader(rows, batch_size=BATCH)

    def get_train_dataloader(self):
        return self.loader

    def get_batch_samples(self, *positional, **named):
        self.asked.append(positional)
        assert not named
        batches, _ = super().get_batch_samples(*positional)
        return batches, torch.tensor(7)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.losses.append((num_items_in_batch, self.current_gradient_accumulation_steps, return_outputs))
        return 1 + 0 * model.lm_head.weight.sum()

    def log(self, logs, start_time=None):
        self.logged.append(dict(logs))
        super().log(logs, start_time)


class Order(TrainerCallback):
    def __init__(self):
        self.called = []

    def on_step_end(self, args, state, control, **kwargs):
        self.called.append("step_end")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.called.append("log")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.called.append("evaluate")

    def on_epoch_end(self, args, state, control, **kwargs):
        self.called.append("epoch_end")

    def on_train_end(self, args, state, control, **kwargs):
        self.called.append("train_end")


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATED,
        "num_train_epochs": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "max_grad_norm": 0.0,
    }
    return TrainingArguments(**(defaults | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = Noting(model=tiny_llama(), args=arguments(tmp_path_factory.mktemp("noting")), callbacks=[Order()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def test_batches_of_a_step_are_asked_for_by_iterator_number_and_device(trained):
    assert list(inspect.signature(Trainer.get_batch_samples).parameters) == [
        "self",
        "epoch_iterator",
        "num_batches",
        "device",
    ]
    assert [number for _, number, _ in trained.asked] == [2, 2, 1, 2, 2, 1], "what is left in the last step"
    assert all(isinstance(device, torch.device) for _, _, device in trained.asked)
    iterators = [iterator for iterator, _, _ in trained.asked]
    assert iterators[0] is iterators[1] is iterators[2]
    assert iterators[2] is not iterators[3], "each epoch has an iterator of its own"


def test_the_loader_is_told_every_epoch(trained):
    assert trained.loader.epochs == [0, 1]


def test_the_number_of_items_reaches_the_loss(trained):
    assert [int(items) for items, _, _ in trained.losses] == [7] * 10
    assert not any(return_outputs for _, _, return_outputs in trained.losses)


def test_the_passes_of_the_current_step_are_known_in_the_loss(trained):
    assert [passes for _, passes, _ in trained.losses] == [2, 2, 2, 2, 1] * 2


def test_a_loss_that_is_scaled_already_is_summed_and_not_divided_again(trained):
    # By `loss_is_scaled_for_ga` in the installed version, and by `model_accepts_loss_kwargs` before 5.20.
    assert [logs["loss"] for logs in trained.logged if "loss" in logs] == [2, 2, 1] * 2


def test_logs_have_the_names_that_are_translated(trained):
    expected = {"loss", "grad_norm", "learning_rate"}
    steps = [logs for logs in trained.logged if "loss" in logs]
    assert all(expected <= set(logs) <= expected | {"epoch"} for logs in steps), "a new one needs a path of its own"
    (summary,) = [logs for logs in trained.logged if "train_loss" in logs]
    assert {"train_runtime", "train_samples_per_second", "total_flos"} <= set(summary)
    assert len(trained.logged) == len(steps) + 1


def test_a_step_ends_before_it_is_logged(trained):
    (order,) = [callback for callback in trained.callback_handler.callbacks if isinstance(callback, Order)]
    epoch = ["step_end", "log"] * 3 + ["epoch_end"]
    assert order.called == [*epoch, *epoch, "log", "train_end"]


def test_callbacks_of_the_user_come_after_those_that_decide_when_to_log(trained):
    kinds = [type(callback) for callback in trained.callback_handler.callbacks]
    assert kinds.index(DefaultFlowCallback) < kinds.index(Order)


def test_the_learning_rate_that_is_logged_is_that_of_the_step(trained):
    rates = [logs["learning_rate"] for logs in trained.logged if "learning_rate" in logs]
    assert rates == pytest.approx([5e-5 * left / 6 for left in (6, 5, 4, 3, 2, 1)])


def test_gradients_that_are_not_clipped_have_their_norm_logged(trained):
    assert all("grad_norm" in logs for logs in trained.logged if "loss" in logs)


def test_a_trainer_without_bars_prints_unless_the_printer_is_removed(tmp_path):
    trainer = Noting(model=tiny_llama(), args=arguments(tmp_path))
    assert any(isinstance(callback, PrinterCallback) for callback in trainer.callback_handler.callbacks)
    ours = build_trainer(tmp_path, tiny_llama(), random_rows(2)).trainer
    assert not any(isinstance(callback, PrinterCallback) for callback in ours.callback_handler.callbacks)


def test_the_cache_is_switched_off_when_a_trainer_is_made(tmp_path):
    model = tiny_llama()
    assert model.config.use_cache is True
    Noting(model=model, args=arguments(tmp_path))
    assert model.config.use_cache is False, "`save` puts it back"


def test_a_folder_for_checkpoints_is_made_when_a_trainer_is_made(tmp_path):
    Noting(model=tiny_llama(), args=arguments(tmp_path))
    assert (tmp_path / "checkpoints").is_dir()
    build_trainer(tmp_path / "ours", tiny_llama(), random_rows(2))
    assert not (tmp_path / "ours" / "checkpoints").exists(), "ours takes it away again"


def test_the_number_of_devices_can_be_set_to_one(tmp_path):
    made = arguments(tmp_path)
    assert made.n_gpu in (0, 1)
    made._n_gpu = 3
    assert made.n_gpu == 3, "`_n_gpu` is what `n_gpu` returns"
    assert training_arguments(run_config({}), tmp_path, world_size=1, evaluates=False).n_gpu <= 1


def test_batches_are_put_on_the_device_by_prepare_inputs(trained):
    batch = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[1, 2]])}
    prepared = trained._prepare_inputs(batch)
    assert prepared.keys() == batch.keys()
    assert all(tensor.device == trained.args.device for tensor in prepared.values())


def test_what_ours_overrides_exists_with_the_same_parameters():
    overridden = [
        name
        for kind in (DumboTrainer, GuardedTrainer)
        for name, value in vars(kind).items()
        # `train` hands on whatever it is given.
        if inspect.isfunction(value) and name in dir(Trainer) and name not in ("__init__", "train")
    ]
    assert {"training_step", "_get_grad_norm"} <= set(overridden)
    assert {"get_batch_samples", "compute_loss", "evaluate", "log", "create_optimizer", "create_scheduler"} <= set(
        overridden
    )
    for name in overridden:
        theirs, ours = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (Trainer, DumboTrainer))
        assert ours == theirs, name


def test_names_of_ours_do_not_meet_those_of_transformers(tmp_path):
    plain = Noting(model=tiny_llama(), args=arguments(tmp_path))
    own = {"_job", "_aux_loss", "tokens_seen", "_tokens_logged", "_logged_at", "_use_cache", "is_stopped"}
    own |= {"requests", "checkpoints", "checkpoint_seconds", "stopped_at", "checkpoint", "_last", "steps_per_epoch"}
    own |= {"begin_or_go_on", "stop_if_asked", "logging_state", "restore_logging", "_do_what_is_due", "write_model"}
    own |= {"batch_plan", "packing", "_mean_loss", "_loader", "_sum_over_tokens", "_keep_aux_loss"}
    own |= {"_stream", "_stream_loader"}
    own |= {"_faults", "_guard", "_halvings", "_step", "_watchdog", "_begin_step", "_end_step", "_take_batches"}
    own |= {"_pass_through", "_halve_or_raise", "evaluating", "_fault", "_dump_rows", "_row_loss", "_origins"}
    own |= {
        "save_before_step",
        "_spikes",
        "_leaps",
        "skipped_steps",
        "_where",
        "_ways",
        "_judges_state",
        "_load_judges",
    }
    own |= {"save_what_was_made", "save_between_steps", "undo_evaluation", "_before_evaluation"}
    own |= {"_keep_steps", "_told_at_once", "_judges_state", "_load_judges"}
    own |= {"train_to_end", "save"}
    ours = build_trainer(tmp_path, tiny_llama(), random_rows(2)).trainer
    assert all(hasattr(ours, name) for name in own)
    assert not {name for name in own if hasattr(plain, name)}


@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_the_norm_of_the_gradient_is_asked_for_once_a_step_right_before_the_update(tmp_path, clipping):
    order = []

    class Guarded(Noting):
        def training_step(self, *positional, **named):
            order.append("pass")
            assert isinstance(self._tr_loss, torch.Tensor)
            return super().training_step(*positional, **named)

        def _get_grad_norm(self, model, grad_norm=None):
            assert (grad_norm is not None) == bool(clipping)
            assert model.lm_head.weight.grad is not None
            order.append("norm")
            return super()._get_grad_norm(model, grad_norm=grad_norm)

        def create_optimizer(self, model=None):
            optimizer = super().create_optimizer(model)
            optimizer.register_step_pre_hook(lambda *_: order.append("update"))
            return optimizer

    class Before(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            order.append("callback")

        def on_step_end(self, args, state, control, model, **kwargs):
            assert model.lm_head.weight.grad is None, "nothing is left of a step, whether its update was made or not"

    trainer = Guarded(model=tiny_llama(), args=arguments(tmp_path, max_grad_norm=clipping), callbacks=[Before()])
    trainer.train()
    step = ["pass", "pass", "norm", "callback", "update"]
    assert order == [*step, *step, *step[1:]] * 2


def test_an_update_that_is_left_out_by_the_optimizer_moves_the_schedule(tmp_path):
    class Idle(Noting):
        def create_optimizer(self, model=None):
            optimizer = super().create_optimizer(model)
            optimizer.step = MethodType(lambda itself, closure=None: None, optimizer)
            return optimizer

    model = tiny_llama()
    before = model.lm_head.weight.detach().clone()
    trainer = Idle(model=model, args=arguments(tmp_path))
    trainer.train()
    assert torch.equal(model.lm_head.weight, before)
    rates = [logs["learning_rate"] for logs in trainer.logged if "learning_rate" in logs]
    assert rates == pytest.approx([5e-5 * left / 6 for left in (6, 5, 4, 3, 2, 1)])


def test_a_sum_of_losses_that_is_no_number_stays_so_unless_it_is_set_back(tmp_path):
    class Broken(Noting):
        def compute_loss(self, *positional, **named):
            return super().compute_loss(*positional, **named) * (float("nan") if len(self.losses) < 2 else 1.0)

    trainer = Broken(model=tiny_llama(), args=arguments(tmp_path, logging_nan_inf_filter=False))
    trainer.train()
    losses = [logs["loss"] for logs in trainer.logged if "loss" in logs]
    assert len(losses) == 6 and all(map(math.isnan, losses)), "else `GuardedTrainer.log` need not set it back"


def test_an_optimizer_and_a_schedule_that_are_there_are_kept(tmp_path):
    trainer = Noting(model=tiny_llama(), args=arguments(tmp_path))
    trainer.optimizer = optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.5)
    trainer.lr_scheduler = schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert trainer.create_optimizer() is optimizer
    assert trainer.create_scheduler(5, optimizer) is schedule


def test_the_optimizer_s_class_and_arguments_can_be_asked_for_without_making_it(tmp_path):
    made = arguments(tmp_path, adam_beta1=0.5)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(made, tiny_llama())
    assert issubclass(kind, torch.optim.Optimizer)
    assert options["betas"][0] == 0.5


def test_names_that_are_taken_for_known_are_known():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert {name.value for name in OptimizerNames} >= FAMILIAR_OPTIMIZERS
    assert {name.value for name in SchedulerType} >= FAMILIAR_SCHEDULES


def test_models_of_experts_return_their_auxiliary_loss_without_labels():
    model = builders.build_tiny_model(64, config_type="mixtral", num_local_experts=2, output_router_logits=True)
    output = model(input_ids=torch.tensor([[1, 2, 3]]))
    assert output.loss is None
    assert output.aux_loss.requires_grad
    assert isinstance(model.config.router_aux_loss_coef, float)


def test_not_a_number_is_logged_as_it_is(tmp_path):
    class Broken(Noting):
        def compute_loss(self, *positional, **named):
            return super().compute_loss(*positional, **named) * float("nan")

    trainer = Broken(model=tiny_llama(), args=arguments(tmp_path, logging_nan_inf_filter=False, max_steps=1))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert str(trainer.logged[0]["loss"]) == "nan"
    ours = training_arguments(run_config({}), tmp_path, world_size=1, evaluates=False)
    assert ours.logging_nan_inf_filter is False
