"""Where adapters come from: runs, sharded checkpoints, quantized training; and how much is in memory at once."""

import json
import tracemalloc

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from dumbo.cli.main import main
from tests import builders
from tests.merging import made
from tests.run.whole_runs import SHIPPED, write_and_run

CONFIG = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])


def test_a_run_is_merged_into_its_own_folder(tmp_path, model_folder, rows_file, capsys):
    changes = {
        "plugins": [*SHIPPED, "peft"],
        "model.peft": {"rank": 4},
        "trainer.arguments.learning_rate": 0.05,
        "trainer.arguments.save_strategy": "steps",
        "trainer.arguments.save_steps": 1,
    }
    run = write_and_run(tmp_path, model_folder, rows_file, changes)
    from dumbo.bridge.inference_model import load_for_inference

    model, _ = load_for_inference(run / "model", device=torch.device("cpu"))
    wanted = made.logits(model)
    capsys.readouterr()
    assert main(["merge", str(run), "--no-proof"]) == 0
    assert torch.allclose(made.logits(made.loaded(run / "merged")), wanted, atol=1e-5)
    checkpoint = sorted((run / "checkpoints").glob("step-*"))[0]
    assert main(["merge", str(checkpoint), "--output", str(tmp_path / "first"), "--no-proof"]) == 0
    name = "model.layers.0.self_attn.q_proj.weight"
    first, last = (load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "first", run / "merged"))
    assert not torch.equal(first, last)
    assert main(["merge", str(run)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.full
def test_what_a_run_changed_in_the_configuration_stays(tmp_path, model_folder, rows_file):
    overrides = {"rms_norm_eps": 0.01}
    changes = {"plugins": [*SHIPPED, "peft"], "model.peft": {"rank": 4}, "model.config_overrides": overrides}
    run = write_and_run(tmp_path, model_folder, rows_file, changes)
    from dumbo.bridge.inference_model import load_for_inference

    model, _ = load_for_inference(run / "model", device=torch.device("cpu"), config_overrides=overrides)
    assert main(["merge", str(run), "--no-proof"]) == 0
    assert torch.allclose(made.logits(made.loaded(run / "merged")), made.logits(model), atol=1e-5)
    assert json.loads((run / "merged" / "config.json").read_text())["rms_norm_eps"] == 0.01


def test_what_acted_beside_a_run_s_adapter_is_never_left_out_unasked(tmp_path, model_folder, capsys):
    run = tmp_path / "run"
    made.adapt(model_folder, run / "model", CONFIG)
    made.adapt(model_folder, run / "model" / "style", CONFIG, seed=2)
    assert main(["merge", str(run), "--no-proof"]) == 2
    said = capsys.readouterr().err
    assert "has 2 adapters: default, style" in said and "--adapter default" in said
    assert main(["merge", str(run), "--adapter", "default", "--adapter", "style", "--no-proof"]) == 0


def sharded(adapter, names=lambda name: name):
    """The adapter's weights as FSDP leaves them, beside its settings."""
    import torch.distributed.checkpoint as dcp

    file = adapter / "adapter_model.safetensors"
    state = {names(name): value for name, value in load_file(file).items()}
    file.unlink()
    dcp.save({"model": state}, checkpoint_id=adapter / "pytorch_model_fsdp_0", no_dist=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sharded_checkpoint_is_gathered(model_folder, tmp_path):
    wanted = made.adapt(model_folder, tmp_path / "adapter", CONFIG)

    def named(name):
        return name.replace(".weight", ".default.weight")

    sharded(tmp_path / "adapter", named)
    folder = made.merged(tmp_path / "adapter")
    assert torch.allclose(made.logits(made.loaded(folder)), wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sharded_checkpoint_that_would_run_code_is_refused(model_folder, tmp_path, capsys):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    made.adapt(model_folder, tmp_path / "adapter", CONFIG)
    sharded(tmp_path / "adapter")
    (tmp_path / "adapter" / "pytorch_model_fsdp_0" / ".metadata").write_bytes(pickle.dumps(Evil()))
    made.merged(tmp_path / "adapter", code=2)
    assert "which no list of tensors needs" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sharded_checkpoint_that_lacks_a_file_is_refused(model_folder, tmp_path, capsys):
    made.adapt(model_folder, tmp_path / "adapter", CONFIG)
    sharded(tmp_path / "adapter")
    for file in (tmp_path / "adapter" / "pytorch_model_fsdp_0").glob("*.distcp"):
        file.unlink()
    made.merged(tmp_path / "adapter", code=2)
    assert "cannot be read from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_only_what_was_quantized_in_training_is_rounded(settings, model_folder, tmp_path):
    """Embeddings, head and norms never were; nor are layers that the adapter leaves alone."""
    pytest.importorskip("bitsandbytes")
    from dumbo.merging.quantized import rounded

    made.adapt(model_folder, tmp_path / "adapter", LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    modules = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qkvo"]
    file = tmp_path / "adapter" / "base_quantization.json"
    file.write_text(
        json.dumps({"quantization_config": {"quant_method": "bitsandbytes", **settings}, "modules": modules})
    )
    plain, onto = made.merged(tmp_path / "adapter"), None
    plain = plain.rename(tmp_path / "plain")
    onto = made.merged(tmp_path / "adapter", "--onto", "quantized")
    old, full, low = made.tensors(model_folder), made.tensors(plain), made.tensors(onto)
    for name, value in old.items():
        is_quantized = name.removesuffix(".weight") in modules
        base = rounded(value, settings) if is_quantized else value
        assert is_quantized == (not torch.equal(base, value)), name
        delta = full[name] - value
        assert torch.allclose(low[name], base + delta, atol=1e-6), name
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(low[name], old[name])
    assert torch.equal(low["lm_head.weight"], full["lm_head.weight"])


def test_an_adapter_must_say_how_its_base_was_quantized(model_folder, tmp_path, capsys):
    made.adapt(model_folder, tmp_path / "adapter", CONFIG)
    made.merged(tmp_path / "adapter", "--onto", "quantized", code=2)
    assert "does not say how its base model was quantized (no base_quantization.json)" in capsys.readouterr().err


def test_memory_does_not_depend_on_the_size_of_the_model(tmp_path):
    """The largest sum of allocations while a model is merged whose largest tensor is a multiple of it."""
    from dumbo.console import Console
    from dumbo.merging.merge import Request, merge

    shape = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 3, "num_key_value_heads": 4}
    base = builders.save_tiny_model(tmp_path / "base", **shape)
    made.adapt(base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj", "down_proj", "up_proj"]))
    tracemalloc.start()
    try:
        request = Request(tmp_path / "adapter", tmp_path / "out", proves=False)
        size = merge(request, Console(enabled=False)).bytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 70e6
    assert peak < 30e6
