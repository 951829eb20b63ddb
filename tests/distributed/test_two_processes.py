"""Two processes under torchrun: the losses and weights of one process at the same global batch; one of them speaks."""

import signal
import subprocess
import sys

import pytest
import torch

from tests import builders
from tests.run.whole_runs import LEFT, SHIPPED, losses_of, metrics_of, run_here, weights_of

# Eleven rows to train on in batches of eight: the second step of an epoch has three, of which one process gets one.
CHANGES = {
    "trainer.arguments.batch_size": 8,
    "trainer.arguments.physical_batch_size": 2,
    "trainer.arguments.num_train_epochs": 2.0,
    "trainer.arguments.max_steps": builders.REMOVE,
    "trainer.arguments.adam_epsilon": 1e-6,
    "trainer.data.val_set_size": 3,
    "plugins": [*SHIPPED, "./own.py:TellPlugin"],
}

TELL = """
from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import BasePlugin

class Telling(MetricsCollector):
    def open(self, run):
        print("tracker opened", flush=True)
    def log_metrics(self, metrics, step):
        pass

class TellPlugin(BasePlugin):
    def get_metrics_collector(self):
        return Telling()
    def patch_model(self, model, config):
        # Into a file each: two processes that print at once mix their lines.
        told = f"here is rank {self.services.rank} of {self.services.world_size}"
        (self.services.output_dir.parent / f"rank{self.services.rank}.txt").write_text(told)
        return model
    def after_train(self, artifact, config):
        print(f"after the training on rank {self.services.rank}", flush=True)
        return artifact
"""


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dumbo")


def torchrun(file):
    """`torchrun --standalone --nproc-per-node 2 -m dumbo FILE`."""
    return subprocess.run(
        [*TORCHRUN, str(file)],
        env=builders.clean_environment(PYTHONUNBUFFERED="1"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return builders.write_rows(tmp_path_factory.mktemp("fourteen") / "rows.jsonl", builders.alpaca_rows(14))


def write(folder, model_folder, rows, changes):
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(TELL)
    return builders.write_config(folder, model_folder, rows, changes)


@pytest.mark.full
def test_two_processes_train_as_one_does_and_only_the_first_speaks(tmp_path, model_folder, rows):
    result = torchrun(write(tmp_path / "two", model_folder, rows, CHANGES))
    assert result.returncode == 0, result.stderr
    alone = run_here(write(tmp_path / "one", model_folder, rows, CHANGES))
    assert_same_training(alone, tmp_path / "two" / "out")
    assert_one_voice(result, tmp_path / "two" / "out")


@pytest.mark.full
def test_two_processes_take_their_parts_of_one_stream(tmp_path, model_folder, rows):
    changes = {
        "trainer.data": {"streaming": True, "packing": "joined", "sequence_length": 48, "shuffle_buffer": 5},
        "trainer.arguments.batch_size": 8,
        "trainer.arguments.physical_batch_size": 2,
        "trainer.arguments.max_steps": 6,
        "trainer.arguments.adam_epsilon": 1e-6,
    }
    result = torchrun(write(tmp_path / "two", model_folder, rows, changes))
    assert result.returncode == 0, result.stderr
    alone = run_here(write(tmp_path / "one", model_folder, rows, changes))
    two = tmp_path / "two" / "out"
    assert len(losses_of(two)) == 6
    for path in ("train/loss", "train/grad_norm"):
        assert losses_of(two, path) == pytest.approx(losses_of(alone, path), rel=1e-5), path
    one, other = weights_of(alone / "model"), weights_of(two / "model")
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.full
def test_a_bad_row_in_a_stream_stops_both_after_the_same_step_and_keeps_the_weights(tmp_path, model_folder):
    made = builders.alpaca_rows(320)
    made[310] = {"instruction": 3}
    rows = builders.write_rows(tmp_path / "rows.jsonl", made)
    changes = {
        "trainer.data": {"streaming": True, "sequence_length": 256, "shuffle_buffer": 16},
        "trainer.arguments.batch_size": 8,
        "trainer.arguments.max_steps": 500,
    }
    result = torchrun(write(tmp_path / "two", model_folder, rows, changes))
    assert result.returncode != 0
    assert "rows.jsonl:311: " in result.stderr and "stopped after step 38 of 500" in result.stdout
    assert (tmp_path / "two" / "out" / "checkpoints" / "stopped-000038" / "model.safetensors").exists()


def assert_same_training(alone, folder):
    assert [row["step"] for row in metrics_of(folder)] == [row["step"] for row in metrics_of(alone)]
    for path in ("train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "eval/loss"):
        assert losses_of(folder, path) == pytest.approx(losses_of(alone, path), rel=1e-5), path
    assert len(losses_of(folder)) == 4
    assert len(losses_of(folder, "eval/loss")) == 2
    one, other = weights_of(alone / "model"), weights_of(folder / "model")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-5, msg=name)


def assert_one_voice(result, folder):
    ours = result.stdout.splitlines()
    told = [file.read_text() for file in sorted(folder.parent.glob("rank?.txt"))]
    assert told == ["here is rank 0 of 2", "here is rank 1 of 2"], "both work in one run's folder"
    assert len(set(ours)) == len(ours), "no line comes twice"
    assert sum(line.startswith("step ") for line in ours) == 6
    assert "8 sequences per step = 2 per pass x 2 accumulated x 2 processes" in ours
    assert ours.count("tracker opened") == 1
    assert [line for line in ours if line.startswith("after")] == ["after the training on rank 0"]
    assert sorted(path.name for path in folder.iterdir()) == LEFT
    assert "Traceback" not in result.stderr


@pytest.mark.full
def test_a_mistake_in_the_configuration_is_told_of_once(tmp_path, model_folder, rows):
    file = write(tmp_path, model_folder, rows, {"trainer.arguments.learning_rte": 1.0})
    result = torchrun(file)
    assert result.returncode != 0
    assert result.stderr.count("did you mean 'learning_rate'?") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_sizes_that_do_not_fit_two_processes_are_refused_once(tmp_path, model_folder, rows):
    file = write(tmp_path, model_folder, rows, {"trainer.arguments.physical_batch_size": 4})
    result = torchrun(file)
    assert result.returncode != 0
    assert result.stderr.count("4 sequences cannot be made of 4 per pass on 2 devices") == 1
    assert result.stderr.count("physical_batch_size: 2") == 1


@pytest.mark.full
def test_a_folder_that_holds_a_run_is_refused_once(tmp_path, model_folder, rows):
    folder = run_here(write(tmp_path, model_folder, rows, CHANGES))
    result = torchrun(tmp_path / "run.yaml")
    assert result.returncode != 0
    assert result.stderr.count("already holds a run") == 1
    assert "Traceback" not in result.stderr.partition("already holds")[0]
    assert folder.is_dir()


@pytest.mark.full
def test_ctrl_c_stops_both_after_the_same_step(tmp_path, model_folder, rows):
    file = write(tmp_path, model_folder, rows, CHANGES | {"trainer.arguments.num_train_epochs": 5000.0})
    environment = builders.clean_environment(PYTHONUNBUFFERED="1")
    process = subprocess.Popen(
        [*TORCHRUN, str(file)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=25)  # torchrun kills after 30 seconds what does not stop
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert error.count("stopped after step") == 1
    assert str(checkpoint) in error
    assert weights_of(checkpoint)


DISAGREEING = """
from dumbo.plugin_loader import EvaluatorPlugin

class DisagreeingPlugin(EvaluatorPlugin):
    metrics = ("luck_accuracy",)
    def build_evaluator(self, config):
        values = iter([0.5, 0.1, 0.9, 0.2] if self.services.rank == 0 else [0.1, 0.9, 0.2, 0.5])
        return lambda: {"luck_accuracy": next(values)}
"""


@pytest.mark.full
def test_ranks_that_measure_differently_decide_alike(tmp_path, model_folder, rows):
    """Best weights, an early end, samples, questions and watching, on two ranks that see different numbers."""
    changes = CHANGES | {
        "datasets.0.train_format": {"type": "chat_template", "train_on_inputs": False},
        "trainer.arguments.num_train_epochs": 4.0,
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 1,
        "trainer.arguments.load_best_model_at_end": True,
        "trainer.arguments.metric_for_best_model": "eval/luck_accuracy",
        "trainer.early_stopping": {"metric": "eval/luck_accuracy", "patience": 1},
        "evaluation.samples": {"max_new_tokens": 4},
        "plugins": [*SHIPPED, "./lucky.py:DisagreeingPlugin", "early_stopping", "watch", "samples", "exact_match"],
    }
    (tmp_path / "lucky.py").write_text(DISAGREEING)
    result = torchrun(write(tmp_path, model_folder, rows, changes))
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out"
    assert losses_of(folder, "eval/luck_accuracy") == [0.5, 0.1], "the first rank's: not better once, and the end"
    assert result.stdout.count("best eval/luck_accuracy 0.5 at step 1") == 1
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 3 * 3, "before, and at two steps"
