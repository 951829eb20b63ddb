"""What cannot be loaded for generating is said in a line; what can is loaded whole."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from dumbo.bridge.inference_model import load_for_inference
from dumbo.errors import ConfigError, RunError

CPU = torch.device("cpu")


@pytest.fixture
def adapter(tmp_path, model_folder):
    """A folder that looks like an adapter on `model_folder`; its weights are nobody's."""
    folder = tmp_path / "adapter"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(model_folder), "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def rewritten(folder, base):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    return folder


def refusal(folder):
    with pytest.raises(RunError) as caught:
        load_for_inference(folder, device=CPU)
    return str(caught.value)


def test_whole_weights_are_loaded_in_evaluation_mode(model_folder):
    model, tokenizer = load_for_inference(model_folder, device=CPU)
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids).logits, AutoModelForCausalLM.from_pretrained(model_folder)(ids).logits)
    assert not model.training
    assert len(tokenizer) == 512


def test_what_is_missing_is_named(tmp_path, model_folder, adapter):
    assert "there is no folder" in refusal(tmp_path / "nothing")
    assert "holds neither a model (config.json) nor an adapter" in refusal(tmp_path)
    assert "names no base model" in refusal(rewritten(adapter, None))
    assert f"is missing: there is no folder '{tmp_path}/gone'" in refusal(rewritten(adapter, f"{tmp_path}/gone"))
    assert "model 'owner/name'" in refusal(rewritten(adapter, "owner/name"))


def test_weights_of_another_model_are_refused(adapter):
    assert "does not fit its base model" in refusal(adapter)


def test_pickles_are_not_opened(tmp_path, model_folder, adapter):
    folder = shutil.copytree(model_folder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has weights only as pickles (pytorch_model.bin)" in refusal(folder)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "has weights only as pickles (adapter_model.bin)" in refusal(adapter)


# PEFT, used by itself to make the adapter, asks Transformers for what it renames.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_what_the_run_changed_in_the_base_model_is_changed_again(model_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    shutil.copy(model_folder / "tokenizer.json", tmp_path)
    shutil.copy(model_folder / "tokenizer_config.json", tmp_path)
    overrides = {"rms_norm_eps": 0.5, "rope_theta": 10.0, "hidden_act": "gelu"}
    model, _ = load_for_inference(tmp_path, device=CPU, config_overrides=overrides)
    config = model.get_base_model().config
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"], config.hidden_act) == (0.5, 10.0, "gelu")
    with pytest.raises(ConfigError, match=r"model\.config_overrides\.attn_pdrop: LlamaConfig has no such value"):
        load_for_inference(tmp_path, device=CPU, config_overrides={"attn_pdrop": 0.5})


def test_a_base_model_s_own_code_needs_trust(tmp_path, model_folder, adapter):
    base = shutil.copytree(model_folder, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    auto_map = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"}
    (base / "config.json").write_text(json.dumps(settings | {"model_type": "mine", "auto_map": auto_map}))
    said = refusal(rewritten(adapter, str(base)))
    assert f"the model in '{base}' needs Python code of its own" in said and "--trust-remote-code" in said
