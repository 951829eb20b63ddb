"""Liger's kernels give what PyTorch gives, are all used, and are refused where they would not be.

The kernels run in Triton's interpreter, in a process of its own: see liger_kernels.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dumbo.cli.main import main
from dumbo.plugins.liger import plugin
from tests import builders
from tests.run.whole_runs import SHIPPED

PLUGINS = [*SHIPPED, "liger"]
KERNELS = ("rope", "rope again", "rms_norm", "glu_activation", "glu_activation of gemma")
LOSSES = (
    "fused",
    "fused, smoothed",
    "fused, capped logits",
    "none",
)
LONG_LOSSES = (
    "fused, scaled by probability",
    "cross_entropy, smoothed",
    "cross_entropy",
    "fused, only the head trained",
    "fused, tied",
    "fused, divided logits",
    "fused, multiplied logits",
    "fused, a model unknown to Liger",
    "fused, adapter",
    "of cut_cross_entropy",
    "of cut_cross_entropy, smoothed",
    "of cut_cross_entropy, capped logits",
    "fused, head saved whole",
    "fused, rows of new tokens",
)
TOLERANCE = 1e-5


def interpreted(part, folder):
    environment = builders.clean_environment(TRITON_INTERPRET="1")
    script = Path(__file__).with_name("liger_kernels.py")
    words = [sys.executable, str(script), part, str(folder)]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return interpreted("short", tmp_path_factory.mktemp("liger"))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return interpreted("long", tmp_path_factory.mktemp("liger"))


@pytest.mark.full
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_what_the_model_gave(short, name):
    worst, said = short[name]
    assert worst < TOLERANCE
    assert len(said) == 1
    assert said[0].startswith(f"liger: {name.split()[0]}: ")


@pytest.mark.full
def test_what_took_effect_is_said(short):
    assert short["rms_norm"][1] == ["liger: rms_norm: LigerRMSNorm 3"]
    assert short["glu_activation of gemma"][1] == ["liger: glu_activation: LigerGEGLUMLP 1"]
    assert short["rope"][1] == short["rope again"][1] == ["liger: rope: apply_rotary_pos_emb"]


@pytest.mark.full
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_the_reference(short, name):
    worst, evaluated, empty = short[name]
    assert worst < TOLERANCE
    assert evaluated < TOLERANCE, "an evaluation is neither smoothed nor scaled"
    assert empty == 0


@pytest.mark.full
@pytest.mark.parametrize("name", LONG_LOSSES)
def test_a_loss_is_that_of_the_reference_for_other_heads(long, name):
    worst, evaluated, empty = long[name]
    assert worst < TOLERANCE
    assert evaluated < TOLERANCE
    assert empty == 0


@pytest.mark.full
def test_whole_runs_have_the_same_losses(long):
    runs = long["runs"]
    assert len(runs["plain"]) == 2  # a step and an evaluation
    assert runs["plain"][0] > 1
    assert runs["fused"] == pytest.approx(runs["plain"], abs=1e-5)


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("no such kernel", "model.liger.layer_norm: Liger has no such kernel for models of the type 'llama'"),
        ("refused by Liger", "model.liger.rope: Liger refuses it for models of the type 'glm4'"),
        ("unknown model", "plugins: Liger has no kernels for models of the type 'gpt_neox'"),
        ("unknown model", "remove 'liger' from plugins"),
        ("unknown model", "fused_linear_cross_entropy: true and cross_entropy: true work with every model"),
        ("unknown model, asked", "model.liger.rope: Liger has no kernels for models of the type 'gpt_neox'"),
        ("adapter on the head", "model.liger.fused_linear_cross_entropy: the output head has an adapter of its own"),
        ("logits changed", "the model changes its logits after its head in a way that is not known here"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(short, case, line):
    assert line in short["refusals"][case]
    assert short["refusals"][case].startswith("ConfigError")


def said_of(tmp_path, model_folder, rows_file, capsys, options, changes=None):
    config = {"plugins": PLUGINS, "model.liger": options, **(changes or {})}
    file = builders.write_config(tmp_path, model_folder, rows_file, config)
    code = main(["check", str(file)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "changes", "line"),
    [
        (
            {"cross_entropy": True, "fused_linear_cross_entropy": True},
            {},
            "model.liger.cross_entropy: cannot be combined with fused_linear_cross_entropy",
        ),
        ({"use_token_scaling": True}, {}, "model.liger.use_token_scaling: needs fused_linear_cross_entropy: true"),
        (
            {"fused_linear_cross_entropy": True},
            {"trainer.arguments.torch_compile": True},
            "model.liger.fused_linear_cross_entropy: cannot be compiled",
        ),
        (
            {"rope": False, "rms_norm": False, "layer_norm": False, "glu_activation": False},
            {},
            "model.liger: every kernel is switched off",
        ),
    ],
)
def test_options_that_exclude_each_other(
    tmp_path, model_folder, rows_file, capsys, monkeypatch, options, changes, line
):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code, said = said_of(tmp_path, model_folder, rows_file, capsys, options, changes)
    assert code == 2
    assert line in said


OWN_LOSS = """
from dumbo.plugin_loader import LossPlugin


class OwnLossPlugin(LossPlugin):
    def build_loss(self, config, tokenizer):
        return lambda model, batch, num_items: model(**batch).loss
"""


def test_another_plugin_s_loss_goes_first(tmp_path, model_folder, rows_file, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "own.py").write_text(OWN_LOSS)
    own = {"plugins": [*PLUGINS, "./own.py:OwnLossPlugin"]}
    code, said = said_of(tmp_path, model_folder, rows_file, capsys, {"cross_entropy": True}, own)
    assert code == 2
    assert "model.liger.cross_entropy: another plugin computes the loss" in said
    code, said = said_of(tmp_path, model_folder, rows_file, capsys, {"rope": True}, own)
    assert code == 0, said


def test_a_machine_without_gpu_is_told_so_by_a_check(tmp_path, model_folder, rows_file, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(plugin, "DEVICE_FILES", ())  # also on a machine that has one
    changes = {"trainer.arguments.use_cpu": builders.REMOVE}
    code, said = said_of(tmp_path, model_folder, rows_file, capsys, {"rope": True}, changes)
    assert code == 2
    assert "'liger' needs a GPU, and this machine has none that PyTorch can use" in said
    assert "remove 'liger' from plugins" in said
    code, said = said_of(tmp_path / "cpu", model_folder, rows_file, capsys, {"rope": True})
    assert code == 2
    assert "'liger' needs a GPU, and trainer.arguments.use_cpu is set" in said


@pytest.mark.gpu
def test_on_a_gpu_a_run_has_the_losses_of_one_without(tmp_path, rows_file):
    from tests.run.whole_runs import losses_of, write_and_run

    folder = builders.save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    shape = {"trainer.arguments.use_cpu": builders.REMOVE, "trainer.arguments.bf16": False}
    plain = losses_of(write_and_run(tmp_path / "plain", folder, rows_file, shape))
    liger = {"plugins": PLUGINS, "model.liger": {"fused_linear_cross_entropy": True}}
    assert losses_of(write_and_run(tmp_path / "liger", folder, rows_file, shape | liger)) == pytest.approx(
        plain, rel=1e-3
    )
