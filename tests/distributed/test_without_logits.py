"""Two processes without logits: the losses and weights of one process with them, under DDP and FSDP."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, run_here, weights_of

NEVER = "loss: logits are made for 5 trained tokens at a time; 24 x 96 (0 MiB) are never held"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def on_two_processes(*words):
    environment = builders.clean_environment(PYTHONUNBUFFERED="1", OMP_NUM_THREADS="1")
    command = [*TORCHRUN, *map(str, words)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def trained(how, kind="untied"):
    """What sharded_loss.py prints."""
    printed = on_two_processes(Path(__file__).with_name("sharded_loss.py"), how, kind).stdout
    return json.loads(printed.splitlines()[-1])


def assert_equal(found, line):
    assert found["error"] is None
    assert found["said"] == [line]
    assert len(found["two"]) == 4
    assert found["two"] == pytest.approx(found["one"], rel=1e-5)
    assert found["farthest"] < 1e-5


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("ddp", "untied"),
        ("ddp", "layers"),
        ("ddp", "lm_head"),
        ("ddp unused", "untied"),
        ("ddp unused", "tied"),
        ("fsdp", "untied"),
        ("fsdp", "tied"),
        ("fsdp", "layers"),
    ],
)
def test_losses_and_weights_are_those_of_one_process(how, kind):
    assert_equal(trained(how, kind), NEVER)


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "kind", "line"),
    [
        ("ddp static", "untied", "as the model is distributed with a static graph"),
        ("fsdp of the head", "untied", "as the output head is a unit of its own for FSDP, whose weights are there in "),
        ("fsdp", "lm_head", "as the model needs their values (register_hook)"),
    ],
)
def test_where_logits_must_be_held_they_are_and_it_is_said(how, kind, line):
    found = trained(how, kind)
    (said,) = found["said"]
    assert line in said
    assert_equal(found, said)


@pytest.mark.full
def test_weights_that_are_gone_are_an_error():
    found = trained("fsdp resharded")
    assert found["error"].startswith("RunError: the weights of the output head are gone when the loss is computed")
    assert "reshard_after_forward=False" in found["error"]


@pytest.mark.full
def test_a_whole_run_and_its_metrics_of_tokens(tmp_path, model_folder):
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(14))
    changes = {
        "trainer.arguments.batch_size": 8,
        "trainer.arguments.physical_batch_size": 2,
        "trainer.arguments.max_steps": 4,
        "trainer.arguments.logging_steps": 2,
        "trainer.arguments.adam_epsilon": 1e-6,
        "trainer.data.val_set_size": 3,
        "model.cut_cross_entropy": {"token_metrics": True, "tile_tokens": 16},
        "plugins": [*SHIPPED, "cut_cross_entropy"],
    }
    file = builders.write_config(tmp_path / "two", model_folder, rows, changes)
    result = on_two_processes("-m", "dumbo", file)
    assert result.stdout.count("loss: logits are made for ") == 1
    two = tmp_path / "two" / "out"
    alone = run_here(builders.write_config(tmp_path / "one", model_folder, rows, changes))
    for path in ("train/loss", "train/grad_norm", "eval/loss", "train/token_accuracy", "train/entropy"):
        assert losses_of(two, path) == pytest.approx(losses_of(alone, path), rel=1e-5), path
        assert losses_of(two, path)
    one, other = weights_of(alone / "model"), weights_of(two / "model")
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-5, msg=name)
