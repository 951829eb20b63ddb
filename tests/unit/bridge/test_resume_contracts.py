"""What `bridge/resuming.py` relies on in the installed Transformers and Accelerate: other versions may fail here."""

import inspect

import pytest
import torch
from accelerate.data_loader import skip_first_batches
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback, TrainerState

from tests.numerics.training import tiny_llama
from tests.unit.bridge.test_contracts import Noting, arguments


class Recording(Noting):
    """Notes in which order the methods are called that a resumable trainer overrides."""

    def __init__(self, *positional, **named):
        self.called = []
        super().__init__(*positional, **named)

    def _init_training_state(self, *positional):
        self.called.append("state")
        return super()._init_training_state(*positional)

    def _load_from_checkpoint(self, *positional):
        self.called.append(("model", positional))

    def _load_optimizer_and_scheduler(self, *positional):
        self.called.append(("optimizer", positional))

    def _load_scaler(self, *positional):
        self.called.append(("scaler", positional))

    def _load_rng_state(self, *positional):
        self.called.append(("random", positional))

    def _run_epoch(self, *positional, **named):
        self.called.append(("epoch", named["epoch"], named["steps_trained_in_current_epoch"]))
        super()._run_epoch(*positional, **named)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *positional, **named):
        assert tr_loss is self._tr_loss
        self.called.append(("after", self.state.global_step))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *positional, **named)

    def _save_checkpoint(self, model, trial):
        self.called.append(("save", self.state.global_step))


class Beginning(TrainerCallback):
    def on_train_begin(self, args, state, control, **more):
        self.trainer.called.append("begin")
        # What is put back here must not be reset afterwards.
        self.trainer._globalstep_last_logged, self.trainer._total_loss_scalar = -1, 5.0


def trainer_in(folder, **changes):
    beginning = Beginning()
    trainer = Recording(model=tiny_llama(), args=arguments(folder, **changes), callbacks=[beginning])
    beginning.trainer = trainer
    return trainer


@pytest.fixture
def resumed(tmp_path):
    """Went on after step 4 of 6: the second epoch has two more."""
    state = TrainerState(global_step=4, epoch=1.3, max_steps=6, num_train_epochs=2, logging_steps=9, train_batch_size=1)
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    trainer = trainer_in(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path))
    return trainer, str(tmp_path)


def test_the_order_in_which_a_run_goes_on(resumed):
    trainer, folder = resumed
    wanted = [("model", (folder,)), "state", ("optimizer", (folder,)), ("scaler", (folder,)), "begin"]
    assert trainer.called[: len(wanted)] == wanted
    assert trainer.called[len(wanted)] == ("epoch", 1, 2), "epochs and forward passes are counted from the steps"
    after = [call for call in trainer.called if call[0] == "after"]
    assert after == [("after", 5), ("after", 6), ("after", 6)], "after each step, and at the end of the epoch"
    assert trainer.state.global_step == 6


def test_what_is_put_back_when_the_training_begins_stays(resumed):
    trainer, _ = resumed
    assert trainer._total_loss_scalar >= 5.0
    assert trainer.state.logging_steps == 9, "the saved interval goes before the argument's"
    assert trainer._globalstep_last_logged == -1


def test_skipping_keeps_the_order_of_the_plan_and_its_epoch(tmp_path):
    class Batches:
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([[self.epoch, number] for number in range(4)])

        def __len__(self):
            return 4

    own = torch.Generator()
    loader = torch.utils.data.DataLoader(list(range(10)), batch_sampler=Batches(), generator=own)
    skipped = skip_first_batches(loader, 2)
    assert skipped.generator is own
    # The Trainer reaches the plan through the wrapper.
    assert skipped.batch_sampler.batch_sampler is loader.batch_sampler
    loader.batch_sampler.set_epoch(3)
    assert [batch.tolist() for batch in skipped] == [[3, 2], [3, 3]]


def test_an_epoch_is_told_to_a_plan_that_is_wrapped():
    source = list(inspect.signature(Trainer._run_epoch).parameters)
    assert source[:4] == ["self", "model", "epoch", "train_dataloader"]
    assert list(inspect.signature(Trainer._maybe_log_save_evaluate).parameters) == [
        "self",
        "tr_loss",
        "grad_norm",
        "model",
        "trial",
        "epoch",
        "ignore_keys_for_eval",
        "start_time",
        "learning_rate",
    ]


def test_a_checkpoint_comes_after_log_and_evaluation(tmp_path):
    trainer = trainer_in(tmp_path, save_strategy="steps", save_steps=2, logging_steps=2, max_steps=4)
    trainer.train()
    saves = [call for call in trainer.called if call[0] == "save"]
    assert saves == [("save", 2), ("save", 4)]
    for save in saves:
        assert trainer.called[trainer.called.index(save) - 1] == ("after", save[1])


def test_the_flow_of_transformers_comes_before_our_callbacks(tmp_path):
    """So that what is due at a step is known when somebody asks for the end."""
    trainer = trainer_in(tmp_path)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.index(DefaultFlowCallback) < kinds.index(Beginning)
