"""Adapters on bases in the 8-bit formats of torchao: what is quantized, that it trains, comes back and goes on."""

import pytest
from transformers import AutoModelForCausalLM

from dumbo.bridge.memory import state_bytes
from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.plugins.quantized_runs import WIDE, changes, contract_of, logits_of, relative
from tests.run.whole_runs import losses_of, printed_by, run_here, write_and_run

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return builders.save_tiny_model(tmp_path_factory.mktemp("base") / "wide", **WIDE)


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [
        {"format": "int8"},
        {"format": "float8", "skip_modules": ["down_proj"]},
        {"format": "int8", "group_size": 32},
        {"format": "float8", "group_size": 32},
    ],
    ids=["int8", "float8", "int8-groups", "float8-groups"],
)
def test_a_base_in_8_bits_learns_comes_back_and_goes_on(tmp_path, base, rows_file, options, capsys):
    changed = {**changes("torchao", options), "trainer.arguments.learning_rate": 0.01}
    changed |= {"trainer.arguments.num_train_epochs": 5}
    changed.pop("plugins")  # there are those of `write_stoppable`
    whole = run_here(write_stoppable(tmp_path / "whole", base, rows_file, changed, ("peft", "torchao")))
    said = capsys.readouterr().out
    count = 12 if "skip_modules" in options else 14
    assert f"torchao: {options['format']}: {count} layers with" in said
    assert losses_of(whole)[-1] < losses_of(whole)[0] - 0.1
    names = contract_of(whole / "model")["modules"]
    assert len(names) == count and "lm_head" not in names
    assert 1e-5 < relative(logits_of(whole / "model"), logits_of(whole / "model", unquantized=True)) < 0.1
    file = write_stoppable(tmp_path / "stopped", base, rows_file, changed, ("peft", "torchao"))
    with stop_by("SIGTERM", 7):
        assert main(["train", str(file)]) != 0
    assert main(["train", str(file), "--resume"]) == 0
    assert_same_run(file.parent / "out", whole)


@pytest.mark.full
def test_bfloat16_packing_and_checkpointing_go_together(tmp_path, base, rows_file, capsys):
    more = {
        "trainer.arguments.max_steps": 6,
        "trainer.arguments.learning_rate": 0.01,
        "trainer.arguments.bf16": True,
        "trainer.arguments.gradient_checkpointing": True,
        "trainer.data.packing": True,
        "trainer.data.sequence_length": 256,
    }
    out = write_and_run(tmp_path, base, rows_file, changes("torchao", **more))
    assert losses_of(out)[-1] < losses_of(out)[0] - 0.05
    assert main(["generate", str(out), "--max-new-tokens", "2", "Hi"]) == 0


def test_memory_is_that_of_the_codes(base):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    plain = AutoModelForCausalLM.from_pretrained(base)
    made = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=made, device_map={"": "cpu"})
    plain.requires_grad_(False)
    packed.requires_grad_(False)
    values = sum(weight.numel() for name, weight in plain.named_parameters() if "proj" in name)
    saved = state_bytes(plain) - state_bytes(packed)
    assert 0.85 * 3 * values < saved < 3 * values  # a byte instead of four, and a scale for each row


@pytest.mark.parametrize("name", ["int4", "int8_dynamic", "float8_dynamic"])
def test_formats_that_cannot_be_trained_on_are_refused(tmp_path, base, rows_file, name, capsys):
    file = builders.write_config(tmp_path, base, rows_file, changes("torchao", {"format": name}))
    said = printed_by(capsys, 2, "check", str(file)).err
    assert f"model.torchao.format: '{name}' cannot be trained on" in said


def test_other_options_are_refused_in_a_line(tmp_path, base, rows_file, capsys):
    def said(options, verb="train", **more):
        file = builders.write_config(tmp_path, base, rows_file, changes("torchao", options, **more))
        return printed_by(capsys, 2, verb, str(file)).err

    assert "model.torchao.skip_modules: 'down_prj' matches no linear layer" in said({"skip_modules": ["down_prj"]})
    text = said({}, **{"model.peft": {"rank": 4, "modules_to_save": ["down_proj"]}})
    assert "'down_proj' is quantized, and cannot be trained as a whole" in text
    assert "model.torchao.group_size" in said({"group_size": 48})
