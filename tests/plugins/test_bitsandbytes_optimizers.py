"""Optimizers with small states: they learn, their states are saved, and a run goes on with them bit for bit."""

import importlib.util

import pytest
import torch

from dumbo.checkpoint.opening import STATE
from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.plugins.quantized_runs import WIDE
from tests.run.whole_runs import losses_of, printed_by, run_here


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Weights of more than 4,096 values: smaller ones have their state in 32 bits."""
    return builders.save_tiny_model(tmp_path_factory.mktemp("base") / "wide", **WIDE)


@pytest.fixture
def uncompiled():
    """torchao compiles its step, which takes half a minute on a CPU; PyTorch runs the same step without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def goes_on(tmp_path, base, rows_file, name):
    """Stop a run with the optimizer `name` and go on with it; return the folder and the optimizer's saved tensors."""
    changed = {"trainer.arguments.optim": name, "trainer.arguments.learning_rate": 0.01}
    changed |= {"trainer.arguments.num_train_epochs": 5}
    whole = run_here(write_stoppable(tmp_path / "whole", base, rows_file, changed))
    file = write_stoppable(tmp_path / "stopped", base, rows_file, changed)
    with stop_by("SIGTERM", 8):
        assert main(["train", str(file)]) != 0
    out = file.parent / "out"
    [checkpoint] = list((out / "checkpoints").glob("step-*"))
    from safetensors.torch import load_file

    saved = load_file(checkpoint / STATE / "optimizer.safetensors")
    assert main(["train", str(file), "--resume"]) == 0
    assert_same_run(out, whole)
    assert losses_of(whole)[-1] < losses_of(whole)[0] - 0.2
    return saved


@pytest.mark.parametrize(
    "name",
    [
        "adamw_8bit",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("lion_8bit", "adamw_bnb_8bit", "ademamix_8bit")),
        *(pytest.param(name, marks=pytest.mark.full) for name in ("rmsprop_bnb_8bit", "ademamix", "lion_32bit")),
    ],
)
def test_a_run_with_an_optimizer_of_bitsandbytes_goes_on(tmp_path, base, rows_file, name):
    saved = goes_on(tmp_path, base, rows_file, name)
    has_codes = any(tensor.dtype == torch.uint8 and tensor.numel() >= 4096 for tensor in saved.values())
    assert has_codes == name.endswith("8bit")


@pytest.mark.full
@pytest.mark.parametrize("name", ["adamw_torch_8bit", "adamw_torch_4bit"])
def test_a_run_with_an_optimizer_of_torchao_goes_on(tmp_path, base, rows_file, name, uncompiled):
    saved = goes_on(tmp_path, base, rows_file, name)
    assert any(tensor.dtype == torch.uint8 for tensor in saved.values())


@pytest.mark.full
def test_a_run_with_torchao_s_compiled_step_goes_on(tmp_path, base, rows_file):
    goes_on(tmp_path, base, rows_file, "adamw_torch_8bit")


def refusal(tmp_path, base, rows_file, name, capsys):
    file = builders.write_config(tmp_path, base, rows_file, {"trainer.arguments.optim": name})
    return printed_by(capsys, 2, "check", str(file)).err


def test_paged_ones_are_refused_on_a_cpu(tmp_path, base, rows_file, capsys):
    said = refusal(tmp_path, base, rows_file, "paged_adamw_8bit", capsys)
    assert "trainer.arguments.optim: 'paged_adamw_8bit' moves its state between the memories of a GPU" in said
    assert "write adamw_8bit" in said
    assert "write adamw_torch_fused" in refusal(tmp_path / "b", base, rows_file, "paged_adamw_32bit", capsys)


def test_a_missing_package_is_named_with_its_extra(tmp_path, base, rows_file, capsys, monkeypatch):
    find = importlib.util.find_spec
    without = lambda name, *more: None if name in ("bitsandbytes", "torchao") else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    said = refusal(tmp_path, base, rows_file, "adamw_8bit", capsys)
    assert "'adamw_8bit' needs the package bitsandbytes" in said
    assert "pip install 'dumbo-trainer[bitsandbytes]'" in said
    assert "dumbo-trainer[torchao]" in refusal(tmp_path / "b", base, rows_file, "adamw_torch_4bit", capsys)
