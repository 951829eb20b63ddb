"""The transformers plugin loads a model whole, in the type asked for, or says why not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dumbo.errors import ConfigError, PluginError, RunError
from dumbo.plugin_loader import ModelLoaderPlugin
from tests import builders
from tests.plugins.transformers_runs import new_plugin, run_config


@pytest.fixture
def plugin():
    return new_plugin()


@pytest.fixture
def folder(tmp_path, tokenizer):
    return builders.save_tiny_model(tmp_path / "tiny", tokenizer)


def load(plugin, **model):
    plugin.config = run_config(**model)
    plugin.check(plugin.config)
    return plugin.load_model(plugin.config)


def failure(plugin, kind=ConfigError, **model):
    with pytest.raises(kind) as caught:
        load(plugin, **model)
    return str(caught.value)


def edit_config(folder, **changes):
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_loads_every_weight_in_float32_and_says_what_auto_chose(plugin, folder):
    saved = load_file(folder / "model.safetensors")
    edit_config(folder, dtype="bfloat16")
    model = load(plugin, base_model=str(folder))
    assert model.dtype == torch.float32
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in saved.items())
    assert plugin.said == [f"model: {folder} (LlamaForCausalLM), 0.05M parameters in float32, attention sdpa"]


def test_dtype_and_attention_are_taken(plugin, folder):
    model = load(plugin, base_model=str(folder), dtype="bfloat16", attention="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_arguments_of_other_plugins_are_passed_on_and_disagreement_is_an_error(plugin, folder):
    plugin.extra_load_kwargs = {"attn_implementation": "eager"}
    assert load(plugin, base_model=str(folder)).config._attn_implementation == "eager"
    assert "model.attention: is 'sdpa', but a plugin asks for 'eager'" in failure(
        plugin, base_model=str(folder), attention="sdpa"
    )
    plugin.extra_load_kwargs = {"revision": "x"}
    assert "not its to set" in failure(plugin, PluginError, base_model=str(folder))


def test_another_model_is_loaded_without_revision_and_overrides(plugin, folder):
    plugin.config = run_config(base_model="owner/name", revision="v1", dtype="bfloat16", config_overrides={"x": 1})
    assert plugin.load(str(folder)).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="^there is no folder"):
        plugin.load("./nowhere")


@pytest.mark.parametrize("name", ["sdppa", "paged|eager", "flash"])
def test_unknown_attention_lists_the_known_ones(plugin, folder, name):
    message = failure(plugin, base_model=str(folder), attention=name)
    assert message.startswith(f"model.attention: there is no attention implementation '{name}'")
    assert "eager, " in message and "sdpa" in message and "owner/name" in message


@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/none@main:function"])
def test_attention_without_its_package_is_an_error_at_its_key(plugin, folder, name):
    message = failure(plugin, base_model=str(folder), attention=name)
    assert message.startswith(f"model.attention: '{name}' cannot be used here: ")


def test_a_missing_head_is_never_random(plugin, folder):
    edit_weights(folder, lambda weights: {name: w for name, w in weights.items() if "lm_head" not in name})
    message = failure(plugin, base_model=str(folder))
    assert "the checkpoint lacks 1 weights, which would stay random: lm_head.weight" in message
    assert "without a language-modelling head" in message


def test_a_tied_head_needs_no_weight_of_its_own(plugin, tmp_path, tokenizer):
    folder = builders.save_tiny_model(tmp_path / "tied", tokenizer, tie_word_embeddings=True)
    model = load(plugin, base_model=str(folder))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_other_shapes_are_named(plugin, folder):
    edit_weights(folder, lambda weights: weights | {"model.norm.weight": torch.ones(7)})
    message = failure(plugin, base_model=str(folder))
    assert "model.norm.weight is 7, not 32" in message and "config.json does not fit" in message


def test_weights_without_a_place_are_told(plugin, folder):
    edit_weights(folder, lambda weights: weights | {"value_head.weight": torch.ones(7)})
    load(plugin, base_model=str(folder))
    assert "1 weights of the checkpoint are not used: value_head.weight" in plugin.said[0]


def test_overrides_of_every_kind_of_name_take_effect(plugin, folder):
    overrides = {"attention_dropout": 0.1, "rope_theta": 500000.0, "num_hidden_layers": 1}
    model = load(plugin, base_model=str(folder), config_overrides=overrides)
    assert model.config.attention_dropout == 0.1
    assert model.config.rope_parameters == {"rope_theta": 500000.0, "rope_type": "default"}
    assert len(model.model.layers) == 1
    assert "weights of the checkpoint are not used: model.layers.1" in plugin.said[0]
    scaled = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    merged = load(plugin, base_model=str(folder), config_overrides=scaled).config.rope_parameters
    assert merged == {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"hidden_sise": 4},
            "config_overrides.hidden_sise: LlamaConfig has no such value\n    did you mean 'hidden_size'",
        ),
        ({"hidden_size": "big"}, "Field 'hidden_size' expected int, got str"),
        ({"hidden_size": 33}, "The hidden size (33) is not a multiple of the number of attention heads"),
        ({"intermediate_size": 48}, "have other shapes"),
        ({"num_hidden_layers": 3}, "may ask for more weights than the checkpoint has"),
        ({"dtype": "bfloat16"}, "config_overrides.dtype: cannot be overridden\n    write it as model.dtype"),
        ({"rope_parameters": {"faktor": 2.0}}, "rope_parameters.faktor: rope_parameters has no such value"),
        ({"rope_parameters": {"rope_type": "yarm"}}, "rope_parameters.rope_type: 'yarm' is none of default, "),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'factor'"),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_theta: is set twice"),
        ({"tie_word_embeddings": False, "vocab_size": 600}, "embed_tokens.weight is 512x32, not 600x32"),
    ],
)
def test_overrides_that_cannot_be_are_errors_at_their_key(plugin, folder, overrides, expected):
    message = failure(plugin, base_model=str(folder), config_overrides=overrides)
    assert message.startswith("model.config_overrides")
    assert expected in message


def test_pickled_weights_are_refused_with_the_way_out(plugin, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = failure(plugin, base_model=str(folder))
    assert "has weights only as pickles (pytorch_model.bin)" in message and "save_pretrained" in message
    (folder / "pytorch_model.bin").unlink()
    assert "has no weights (model.safetensors)" in failure(plugin, base_model=str(folder))
    (folder / "model-q4.gguf").touch()
    assert "only model-q4.gguf" in failure(plugin, base_model=str(folder))


@pytest.mark.parametrize("length", [0, 5, 1000, -10])
def test_a_truncated_file_is_named(plugin, folder, length):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert failure(plugin, RunError, base_model=str(folder)).startswith(f"{file} is damaged or incomplete")


def test_a_git_lfs_pointer_is_recognised(plugin, folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in failure(plugin, RunError, base_model=str(folder))


def test_shards_load_and_a_missing_one_is_named(plugin, folder):
    model = load(plugin, base_model=str(folder))
    sharded = folder.parent / "sharded"
    model.save_pretrained(sharded, max_shard_size="60KB")
    plugin.seats = frozenset({ModelLoaderPlugin})
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load(plugin, base_model=str(sharded)).lm_head.weight, model.lm_head.weight)
    shards[-1].unlink()
    message = failure(plugin, RunError, base_model=str(sharded))
    assert f"1 of {len(shards)} weight files are missing: {shards[-1].name}" in message
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    assert "outside of its folder" in failure(plugin, RunError, base_model=str(sharded))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llamma9"}, "is of type 'llamma9', which Transformers "),
        ({"model_type": None}, "has no 'model_type'"),
        ({"model_type": "t5"}, "is of type 't5', which has no causal language model"),
        ({"model_type": "bert"}, "is an encoder (bert): it sees the tokens that it is to predict"),
        ({"hidden_size": "wide"}, "cannot be loaded: TypeError: Field 'hidden_size' expected int"),
    ],
)
def test_a_config_that_is_no_causal_model_is_explained(plugin, folder, changes, expected):
    edit_config(folder, **changes)
    message = failure(plugin, (ConfigError, RunError), base_model=str(folder))
    assert message.startswith("model.base_model: ") and expected in message and "\n\n" not in message


def test_a_decoder_that_says_it_is_none_is_loaded(plugin, tmp_path):
    """GPT-NeoX (Pythia) carries `is_decoder: false`, and is causal all the same."""
    folder = builders.save_tiny_model(tmp_path / "neox", config_type="gpt_neox")
    assert json.loads((folder / "config.json").read_text())["is_decoder"] is False
    assert type(load(plugin, base_model=str(folder))).__name__ == "GPTNeoXForCausalLM"


def test_code_of_the_model_runs_only_when_trusted(plugin, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"})
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineLM(LlamaForCausalLM):\n    config_class = Mine\n"
    )
    message = failure(plugin, base_model=str(folder))
    assert message.startswith("model.trust_remote_code: ") and "with all your rights" in message
    assert type(load(plugin, base_model=str(folder), trust_remote_code=True)).__name__ == "MineLM"


def test_an_adapter_is_not_a_model(plugin, folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    message = failure(plugin, base_model=str(folder))
    assert "holds an adapter" in message and "its base model is 'owner/base'" in message
