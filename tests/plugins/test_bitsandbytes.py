"""Adapters on bases of 4 and 8 bits: what is quantized, that it trains, comes back and goes on, and what is refused."""

import json

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from dumbo.bridge.memory import saved_bytes, state_bytes
from dumbo.bridge.parameters import count_parameters
from dumbo.bridge.quantized_base import is_quantized, quantized_modules
from dumbo.cli.main import main
from dumbo.plugins.bitsandbytes.plugin import BitsAndBytesOptions
from dumbo.plugins.bitsandbytes.quantizing import load_options
from dumbo.plugins.peft.adapter import Place, add_adapter
from dumbo.plugins.peft.options import PeftOptions
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.numerics.training import run_config
from tests.plugins.quantized_runs import IDS, LINEAR, WIDE, changes, contract_of, logits_of, relative
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, run_here, write_and_run

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A wider model than the others', as blocks are 64 wide."""
    return builders.save_tiny_model(tmp_path_factory.mktemp("base") / "wide", **WIDE)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, rows_file):
    """Twelve steps of QLoRA with the defaults, evaluated twice on the way."""
    more = {
        "trainer.arguments.max_steps": 12,
        "trainer.arguments.learning_rate": 0.01,
        "trainer.data.val_set_size": 3,
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 4,
    }
    return write_and_run(tmp_path_factory.mktemp("qlora"), base, rows_file, changes("bitsandbytes", **more))


def loaded(base, **options):
    return AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32, device_map={"": "cpu"}
    )


def refusal(tmp_path, model, rows, changed, capsys, verb="train"):
    file = builders.write_config(tmp_path, model, rows, changed)
    return printed_by(capsys, 2, verb, str(file)).err


def test_qlora_learns_and_leaves_an_adapter_that_names_its_base(run, base):
    losses = losses_of(run)
    assert losses[-1] < losses[0] - 0.2
    evaluated = losses_of(run, "eval/loss")
    assert evaluated[0] > evaluated[1] > evaluated[2]
    assert not (run / "model" / "model.safetensors").exists()
    told = contract_of(run / "model")
    assert told["modules"] == [
        f"model.layers.{layer}.{part}.{name}"
        for layer in range(2)
        for name, part in zip(LINEAR, ["self_attn"] * 4 + ["mlp"] * 3, strict=True)
    ]
    config = told["quantization_config"]
    assert (config["load_in_4bit"], config["bnb_4bit_quant_type"], config["bnb_4bit_use_double_quant"]) == (
        True,
        "nf4",
        True,
    )
    assert told["dtype"] == "float32"
    assert not (base / "base_quantization.json").exists()


def test_what_was_saved_is_loaded_on_the_base_as_it_was_quantized(run, base):
    by_hand = PeftModel.from_pretrained(loaded(base, **NF4), run / "model").train()  # in training, nothing is packed
    ours = logits_of(run / "model")
    with torch.no_grad():
        assert torch.equal(ours, by_hand(IDS).logits)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "model").eval()
    on_the_plain_base = logits_of(run / "model", unquantized=True)
    assert torch.equal(on_the_plain_base, plain(IDS).logits)
    assert 1e-3 < relative(ours, on_the_plain_base) < 0.5


def test_generate_takes_the_quantized_base_or_the_plain_one(run, capsys, monkeypatch, tmp_path):
    words = [str(run), "--max-new-tokens", "3"]
    assert printed_by(capsys, 0, "generate", *words, "Add 3 and 4.").out
    assert printed_by(capsys, 0, "generate", *words, "--unquantized", "Add 3 and 4.").out


def test_a_damaged_word_about_the_base_and_a_flag_without_effect_are_errors(run, base, tmp_path, capsys):
    said = printed_by(capsys, 2, "generate", str(base), "--unquantized", "Hi").err
    assert "--unquantized has no effect" in said
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (run / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    told = contract_of(folder)
    (folder / "base_quantization.json").write_text(json.dumps({**told, "modules": told["modules"][1:]}))
    said = printed_by(capsys, 2, "generate", str(folder), "Hi").err
    assert "1 modules are not quantized as in training, the first is model.layers.0.self_attn.q_proj" in said
    (folder / "base_quantization.json").write_text("{")
    assert "cannot be read" in printed_by(capsys, 2, "generate", str(folder), "Hi").err


def test_evaluation_changes_nothing_in_the_quantized_weights(base, rows_file, tmp_path):
    """bitsandbytes packs them on some CPUs when they are evaluated, and gradients no longer pass."""
    steps = {"trainer.arguments.max_steps": 6, "trainer.arguments.learning_rate": 0.01, "trainer.data.val_set_size": 3}
    evaluated = {"trainer.arguments.eval_strategy": "steps", "trainer.arguments.eval_steps": 2}
    plain = write_and_run(tmp_path / "a", base, rows_file, changes("bitsandbytes", **steps))
    often = write_and_run(tmp_path / "b", base, rows_file, changes("bitsandbytes", **steps, **evaluated))
    assert losses_of(often) == losses_of(plain)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"quant_type": "fp4", "double_quant": False, "storage_dtype": "bfloat16"}, id="fp4", marks=pytest.mark.full
        ),
        pytest.param({"bits": 8}, id="int8", marks=pytest.mark.full),
    ],
)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, base, rows_file, options, capsys):
    changed = {**changes("bitsandbytes", options), "trainer.arguments.num_train_epochs": 5}
    changed.pop("plugins")  # there are those of `write_stoppable`
    make = lambda name: write_stoppable(tmp_path / name, base, rows_file, changed, ("peft", "bitsandbytes"))  # noqa: E731
    whole = run_here(make("whole"))
    file = make("stopped")
    with stop_by("SIGTERM", 5):
        assert main(["train", str(file)]) != 0
    stopped = file.parent / "out"
    [checkpoint] = list((stopped / "checkpoints").glob("step-*"))
    assert contract_of(checkpoint) == contract_of(whole / "model")
    assert main(["train", str(file), "--resume"]) == 0
    assert_same_run(stopped, whole)


def test_8_bits_learn_and_come_back(tmp_path, base, rows_file):
    more = {"trainer.arguments.max_steps": 8, "trainer.arguments.learning_rate": 0.01}
    out = write_and_run(tmp_path, base, rows_file, changes("bitsandbytes", {"bits": 8}, **more))
    assert losses_of(out)[-1] < losses_of(out)[0] - 0.1
    told = contract_of(out / "model")
    assert told["quantization_config"]["load_in_8bit"] and len(told["modules"]) == 14
    assert 1e-5 < relative(logits_of(out / "model"), logits_of(out / "model", unquantized=True)) < 0.1


@pytest.mark.full
@pytest.mark.parametrize(("plugin", "options"), [("bitsandbytes", {}), ("torchao", {})])
def test_dora_works_on_quantized_weights(tmp_path, base, rows_file, plugin, options):
    more = {"trainer.arguments.max_steps": 8, "trainer.arguments.learning_rate": 0.01}
    changed = changes(plugin, options, **more) | {"model.peft": {"rank": 4, "use_dora": True}}
    out = write_and_run(tmp_path, base, rows_file, changed)
    assert losses_of(out)[-1] < losses_of(out)[0] - 0.1
    assert relative(logits_of(out / "model"), logits_of(out / "model", unquantized=True)) < 0.5


@pytest.mark.full
def test_rows_are_packed_and_activations_checkpointed_in_bfloat16(tmp_path, base, rows_file, capsys):
    more = {"trainer.arguments.max_steps": 6, "trainer.arguments.learning_rate": 0.01, "trainer.arguments.bf16": True}
    packed = {"trainer.data.packing": True, "trainer.data.sequence_length": 256}
    saving = {"trainer.arguments.gradient_checkpointing": True}
    one = write_and_run(tmp_path / "a", base, rows_file, changes("bitsandbytes", **more, **packed))
    said = capsys.readouterr().out
    two = write_and_run(tmp_path / "b", base, rows_file, changes("bitsandbytes", **more, **packed, **saving))
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-3)
    assert losses_of(one)[-1] < losses_of(one)[0] - 0.05
    assert "computed in bfloat16" in said and "all other weights in bfloat16" in said
    assert contract_of(one / "model")["dtype"] == "bfloat16"


def test_the_loss_needs_no_logits_under_a_plain_head(tmp_path, base, rows_file):
    more = {"trainer.arguments.max_steps": 3}
    plain = write_and_run(tmp_path / "a", base, rows_file, changes("bitsandbytes", **more))
    changed = changes("bitsandbytes", **more)
    changed["plugins"] = [*changed["plugins"], "cut_cross_entropy"]
    without = write_and_run(tmp_path / "b", base, rows_file, changed)
    assert losses_of(without) == pytest.approx(losses_of(plain), rel=1e-5)


def test_modules_are_left_alone_by_name_and_the_head_may_be_quantized(tmp_path, base, rows_file, capsys):
    options = {"skip_modules": ["down_proj", "model.layers.0"], "quantize_head": True}
    out = write_and_run(tmp_path, base, rows_file, changes("bitsandbytes", options))
    names = contract_of(out / "model")["modules"]
    assert "lm_head" in names and not any("down_proj" in name for name in names)
    logits_of(out / "model")
    options = {"skip_modules": ["down_proj"]}
    out = write_and_run(tmp_path / "b", base, rows_file, changes("bitsandbytes", options))
    names = contract_of(out / "model")["modules"]
    assert len(names) == 12 and "lm_head" not in names


def test_what_cannot_be_is_refused_in_a_line(tmp_path, base, rows_file, capsys):
    def said(options=None, verb="train", **more):
        return refusal(tmp_path, base, rows_file, changes("bitsandbytes", options, **more), capsys, verb)

    plugins = changes("bitsandbytes")["plugins"]
    alone = [name for name in plugins if name != "peft"]
    without = {"plugins": alone, "model.peft": builders.REMOVE}
    file = {key: value for key, value in changes("bitsandbytes").items() if key != "model.peft"} | {"plugins": alone}
    text = refusal(tmp_path, base, rows_file, file, capsys, "check")
    assert "quantized weights cannot be trained, and there is no adapter on them" in text, without
    assert "add peft" in text
    text = said({"bits": 8, "quant_type": "fp4"}, "check")
    assert "model.bitsandbytes.quant_type: has no effect with bits: 8" in text
    assert "model.bitsandbytes.threshold: has no effect with bits: 4" in said({"threshold": 1}, "check")
    text = said(plugins=[*plugins, "torchao"], verb="check")
    assert "bitsandbytes" in text and "torchao" in text
    text = said({"skip_modules": ["down_prj"]})
    assert "model.bitsandbytes.skip_modules: 'down_prj' matches no linear layer" in text
    assert "the model has: q_proj, k_proj" in text
    text = said(**{"model.peft": {"rank": 4, "modules_to_save": ["down_proj"]}})
    assert "'down_proj' is quantized, and cannot be trained as a whole" in text
    text = said({"bits": 8}, **{"model.peft": {"rank": 4, "use_dora": True}})
    assert "model.peft.use_dora: does not work on the 8-bit layers of bitsandbytes" in text
    text = said({"quantize_head": True}, **{"model.tokenizer.special_tokens": ["<a>"]})
    assert "whose output head is quantized" in text
    text = said(**{"model.base_model": builders.REMOVE, "model.architecture": {"model_type": "llama"}}, verb="check")
    assert "model.architecture: random weights" in text


def test_a_tied_head_is_left_alone_or_refused(tmp_path, rows_file, capsys):
    folder = builders.save_tiny_model(tmp_path / "tied", tie_word_embeddings=True, **WIDE)
    out = write_and_run(tmp_path / "a", folder, rows_file, changes("bitsandbytes", {"skip_modules": ["k_proj"]}))
    assert "lm_head" not in contract_of(out / "model")["modules"]
    assert main(["generate", str(out), "--max-new-tokens", "2", "Hi"]) == 0
    text = refusal(tmp_path / "b", folder, rows_file, changes("bitsandbytes", {"quantize_head": True}), capsys)
    assert "model.bitsandbytes.quantize_head" in text and "tied" in text


def test_parameters_and_memory_are_those_of_the_values(base, run):
    plain, packed = AutoModelForCausalLM.from_pretrained(base), loaded(base, **NF4)
    packed.requires_grad_(False)
    assert len(quantized_modules(packed)) == 14
    assert sum(row["frozen"] for row in count_parameters(packed)) == plain.num_parameters()
    values = sum(weight.numel() for name, weight in plain.named_parameters() if name.split(".")[-2] in LINEAR)
    taken = state_bytes(packed) - 4 * (plain.num_parameters() - values)
    assert values / 2 < taken < values * 0.56  # with 8-bit scales, and scales of theirs
    assert saved_bytes(packed, 0) == state_bytes(packed)
    assert is_quantized(packed.model.layers[0].self_attn.q_proj.weight)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert sum(row["frozen"] for row in summary["parameters"]) == plain.num_parameters()


def test_a_base_that_is_stored_quantized_is_served_where_the_options_agree(tmp_path, base, rows_file, capsys):
    stored = tmp_path / "stored"
    loaded(base, **NF4).save_pretrained(stored)
    for file in base.glob("*token*"):
        (stored / file.name).write_bytes(file.read_bytes())
    out = write_and_run(tmp_path / "a", stored, rows_file, changes("bitsandbytes"))
    assert len(contract_of(out / "model")["modules"]) == 14
    ours = logits_of(out / "model")
    assert ours.isfinite().all()
    text = refusal(tmp_path / "b", stored, rows_file, changes("bitsandbytes", {"quant_type": "fp4"}), capsys)
    assert "model.bitsandbytes.quant_type: is fp4, and the base model is stored with nf4" in text
    plugins = [name for name in changes("bitsandbytes")["plugins"] if name != "bitsandbytes"]
    text = refusal(tmp_path / "c", stored, rows_file, {"plugins": plugins, "model.peft": {"rank": 4}}, capsys)
    assert "is stored quantized" in text and "bitsandbytes" in text


def test_layers_of_8_bits_are_given_the_threshold(base):
    options = BitsAndBytesOptions(bits=8, threshold=2.5)
    config = run_config({})
    model = AutoModelForCausalLM.from_pretrained(base, **load_options(options, config))
    layers = [module for name, module in model.named_modules() if name.endswith(LINEAR)]
    assert len(layers) == 14
    assert {layer.state.threshold for layer in layers} == {2.5}


@pytest.mark.parametrize("options", [{}, pytest.param({"bits": 8}, marks=pytest.mark.full)], ids=["nf4", "int8"])
def test_loftq_begins_with_what_quantization_took(tmp_path, base, rows_file, options, capsys):
    changed = changes("bitsandbytes", options, **{"trainer.arguments.learning_rate": 1e-12})
    plain = write_and_run(tmp_path / "plain", base, rows_file, changed)
    assert "peft: loftq" not in capsys.readouterr().out
    begun = write_and_run(tmp_path / "loftq", base, rows_file, changed | {"model.peft": {"rank": 16, "init": "loftq"}})
    assert "peft: loftq: the adapter begins with " in capsys.readouterr().out
    with torch.no_grad():
        full = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    far, near = (relative(logits_of(folder / "model"), full) for folder in (plain, begun))
    assert near < 0.8 * far


def test_loftq_has_the_nearest_matrices(base):
    quantized = loaded(base, **NF4)
    config = run_config({})
    options = PeftOptions(rank=4, alpha=12.0, init="loftq", target_modules=("q_proj",))
    adapted = add_adapter(quantized, options, Place(config, base))
    full = AutoModelForCausalLM.from_pretrained(base).model.layers[1].self_attn.q_proj.weight
    layer = adapted.base_model.model.model.layers[1].self_attn.q_proj
    weight = layer.base_layer.weight
    lost = full - dequantize_4bit(weight.data, weight.quant_state)
    left = lost - 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    tail = torch.linalg.svdvals(lost)[4:]
    assert float(left.norm()) == pytest.approx(float(tail.norm()), rel=1e-4)


def test_loftq_needs_a_quantized_base(tmp_path, base, rows_file, capsys):
    changed = {"plugins": [*SHIPPED, "peft"], "model.peft": {"rank": 4, "init": "loftq"}}
    said = refusal(tmp_path, base, rows_file, changed, capsys)
    assert "no layer here is quantized" in said and "add bitsandbytes or torchao" in said
