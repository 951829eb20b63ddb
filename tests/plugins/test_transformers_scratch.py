"""Models from scratch: the values of `model.architecture` are those of the model, and mistakes in them are told."""

import json

import pytest
import torch

from dumbo.cli.main import main
from dumbo.errors import ConfigError
from tests import builders
from tests.plugins.transformers_runs import ChatFormat, new_plugin, run_config
from tests.run.whole_runs import SHIPPED, weights_of, write_and_run

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", **SIZES}


def build(architecture, **model):
    plugin = new_plugin()
    plugin.config = run_config(architecture=architecture, tokenizer={"path": "."}, **model)
    plugin.said.clear()
    return plugin.load_model(plugin.config), plugin.said


def failure(architecture, **model):
    with pytest.raises(ConfigError) as caught:
        build(architecture, **model)
    return str(caught.value)


def test_the_values_are_the_model_s_and_others_follow_from_them():
    model, said = build(LLAMA | {"rope_theta": 500.0, "max_position_embeddings": 99})
    config = model.config
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert config.head_dim == 8, "not that of the default sizes"
    assert config.rope_parameters["rope_theta"] == 500.0 and config.max_position_embeddings == 99
    assert said == ["model: LlamaForCausalLM with random weights in float32, attention sdpa"]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "gemma2", "mixtral", "gpt_neox", "olmo2"])
def test_many_types_can_be_made(model_type):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2} if model_type == "gpt2" else SIZES
    heads = {"num_key_value_heads": 2} if model_type in ("qwen3", "mixtral", "gemma2") else {}
    model, _ = build({"model_type": model_type, **sizes, **heads, "vocab_size": 64, "pad_token_id": 0})
    assert model.get_input_embeddings().weight.shape == (64, 32)
    ids = torch.arange(1, 6)[None]
    changed = ids.clone()
    changed[0, -1] = 9
    model.eval()
    first, second = model(input_ids=ids).logits[0, :-1], model(input_ids=changed).logits[0, :-1]
    assert torch.allclose(first, second, atol=1e-5), "no position sees a later one"


def test_dtype_and_attention_are_taken():
    model, said = build(LLAMA, dtype="bfloat16", attention="eager")
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert "in bfloat16, attention eager" in said[0]


def test_the_vocabulary_is_the_tokenizer_s_unless_it_is_given(tmp_path, model_folder, rows_file, capsys):
    changes = {
        "model": {"architecture": LLAMA, "tokenizer": {"path": str(model_folder)}},
        "trainer.arguments.max_steps": 1,
    }
    folder = write_and_run(tmp_path / "fitted", model_folder, rows_file, changes)
    assert weights_of(folder / "model")["model.embed_tokens.weight"].shape == (512, 32)
    config = json.loads((folder / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"]) == (512, 3)
    assert "embeddings: 512 rows, one for each token of the tokenizer" in capsys.readouterr().out
    changes["model"]["architecture"] = LLAMA | {"vocab_size": 640}
    folder = write_and_run(tmp_path / "wider", model_folder, rows_file, changes)
    assert weights_of(folder / "model")["model.embed_tokens.weight"].shape == (640, 32)


def test_weights_follow_the_seed(tmp_path, model_folder, rows_file):
    changes = {
        "model": {"architecture": LLAMA, "tokenizer": {"path": str(model_folder)}},
        "trainer.arguments.max_steps": 1,
        "trainer.arguments.learning_rate": 0.0,
    }
    weights = [
        weights_of(
            write_and_run(tmp_path / str(i), model_folder, rows_file, changes | {"trainer.seed": seed}) / "model"
        )
        for i, seed in enumerate((1, 1, 2))
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], weights[2][name])
    embeddings = weights[0]["model.embed_tokens.weight"]
    assert embeddings.std(dim=0).min() > 0.01, "rows are drawn, each for itself"


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ({"model_type": "lama"}, "has no language model of the type 'lama'\n    did you mean 'llama'"),
        ({"model_type": "clip"}, "'clip' is no causal language model"),
        ({"model_type": "bert"}, "'bert' is an encoder: it sees the tokens that it is to predict"),
        (
            LLAMA | {"hiden_size": 3},
            "architecture.hiden_size: LlamaConfig has no such value\n    did you mean 'hidden_size'",
        ),
        (LLAMA | {"hidden_size": "wide"}, "the model refuses them: TypeError: Field 'hidden_size' expected int"),
        (LLAMA | {"hidden_size": 30}, "hidden size (30) is not a multiple of the number of attention heads (4)"),
        ({"model_type": "qwen3", **SIZES}, "no model can be made of it: The size of tensor a (4) must match"),
        (LLAMA | {"dtype": "float16"}, "write it as model.dtype"),
    ],
)
def test_a_value_that_does_not_fit_is_told(architecture, expected):
    message = failure(architecture)
    assert message.startswith("model.architecture") and expected in message


def test_an_encoder_can_be_made_a_decoder():
    model, _ = build({"model_type": "bert", "is_decoder": True, **SIZES, "vocab_size": 64})
    assert type(model).__name__ == "BertLMHeadModel"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"architecture": LLAMA}, "model.tokenizer.path: random weights bring no tokenizer"),
        ({"architecture": LLAMA, "base_model": "owner/name"}, "a model is named in base_model too; keep one of them"),
        ({"architecture": {"hidden_size": 3}}, "model.architecture: needs a model_type, such as llama"),
        ({"architecture": LLAMA, "revision": "main"}, "there is no revision of random weights"),
        ({"architecture": LLAMA, "config_overrides": {"a": 1}}, "write these values into model.architecture"),
        ({}, "or, for random weights, architecture: {model_type: llama, ...}"),
    ],
)
def test_the_section_is_checked_before_anything_is_loaded(model, expected):
    plugin = new_plugin()
    with pytest.raises(ConfigError) as caught:
        plugin.check(run_config(ChatFormat, **model))
    assert expected in str(caught.value)


def test_a_plugin_s_load_options_do_not_reach_random_weights(tmp_path, model_folder, rows_file, capsys):
    (tmp_path / "own.py").write_text(
        "from dumbo.plugin_loader import LoadOptionsPlugin\n"
        "class SmallPlugin(LoadOptionsPlugin):\n"
        "    def load_kwargs(self, config):\n        return {'quantization_config': 1}\n"
    )
    changes = {
        "model": {"architecture": LLAMA, "tokenizer": {"path": str(model_folder)}},
        "plugins": [*SHIPPED, "./own.py:SmallPlugin"],
    }
    assert main(["train", str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 2
    assert (
        "sets 'quantization_config' for the loading of weights, and this model's are random" in capsys.readouterr().err
    )
