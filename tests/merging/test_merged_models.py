"""A merged model is what PEFT computes with base model and adapter, of every kind; the rest is untouched."""

import json

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, TrainableTokensConfig

from tests import builders
from tests.merging import made

LAYER = ("self_attn.", "mlp.")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """In three files."""
    folder = tmp_path_factory.mktemp("llama")
    builders.save_tiny_model(folder)
    model = made.loaded(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    return builders.save_tiny_model(folder, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    return builders.save_tiny_model(folder, config_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64)


def same_as_peft(folder, wanted, tolerance=1e-5):
    got = made.logits(made.loaded(folder))
    assert torch.allclose(got, wanted, atol=tolerance * max(1.0, float(wanted.abs().max())), rtol=0)


KINDS = {
    "lora": (LoraConfig(r=4, target_modules=ALL), LAYER),
    "rslora": (LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=ALL), LAYER),
    "dora": (LoraConfig(r=4, use_dora=True, target_modules=ALL), LAYER),
    "patterns": (
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"layers.0.self_attn.q_proj": 6, "down_proj": 2},
            alpha_pattern={"v_proj": 5, r".*\.1\.mlp\.down_proj": 3},
        ),
        ("q_proj", "v_proj", "down_proj"),
    ),
    "embeddings": (LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]), ("embed_tokens", "q_proj")),
    "embeddings_dora": (LoraConfig(r=4, use_dora=True, target_modules=["embed_tokens"]), ("embed_tokens",)),
    "head": (LoraConfig(r=4, target_modules=["lm_head"]), ("lm_head",)),
    "saved": (
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"]),
        ("q_proj", "lm_head", "embed_tokens", "norm"),
    ),
    "rows": (
        LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 9, 60]}),
        ("q_proj", "embed_tokens"),
    ),
    "tokens": (TrainableTokensConfig(token_indices=[3, 9, 60]), ("embed_tokens",)),
    "ia3": (
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        ("k_proj", "v_proj", "down_proj"),
    ),
    "loha": (LoHaConfig(r=3, alpha=5, target_modules=["q_proj", "up_proj"]), ("q_proj", "up_proj")),
    "lokr": (LoKrConfig(r=3, alpha=5, target_modules=["q_proj", "up_proj"]), ("q_proj", "up_proj")),
    "lokr_whole": (LoKrConfig(r=40, alpha=80, target_modules=["q_proj"]), ("q_proj",)),
    "adalora": (
        AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj", "up_proj"]),
        ("q_proj", "up_proj"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_base_and_adapter(kind, llama, tmp_path):
    config, changed = KINDS[kind]
    wanted = made.adapt(llama, tmp_path / "adapter", config)
    assert not torch.allclose(wanted, made.logits(made.loaded(llama)), atol=1e-2)
    folder = made.merged(tmp_path / "adapter")
    same_as_peft(folder, wanted)
    made.untouched(llama, folder, *changed)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in made.tensors(folder).values())


GPT2 = {
    "lora": LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    "biases": LoraConfig(r=4, target_modules=["c_attn"], bias="all", fan_in_fan_out=True),
    "own_biases": LoraConfig(r=4, target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True),
    "lora_bias": LoraConfig(r=4, target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True),
    "embeddings": LoraConfig(r=4, target_modules=["wte", "wpe"], fan_in_fan_out=True),
    "ia3": IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True),
}


@pytest.mark.parametrize("kind", GPT2)
def test_layers_with_inputs_by_outputs_are_merged(kind, gpt2, tmp_path):
    wanted = made.adapt(gpt2, tmp_path / "adapter", GPT2[kind])
    same_as_peft(made.merged(tmp_path / "adapter"), wanted)


def test_a_file_without_the_outer_name_is_merged(gpt2, tmp_path):
    """The GPT-2 of the hub was saved without the head, and so without the first part of all names."""
    bare = tmp_path / "bare"
    made.loaded(gpt2).transformer.save_pretrained(bare)
    assert all(not name.startswith("transformer.") for name in made.tensors(bare))
    wanted = made.adapt(bare, tmp_path / "adapter", GPT2["lora"])
    same_as_peft(made.merged(tmp_path / "adapter"), wanted)


TIED = {
    "head": (LoraConfig(r=4, target_modules=["lm_head"]), False),
    "embeddings": (LoraConfig(r=4, target_modules=["embed_tokens"]), False),
    "both": (LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]), False),
    "saved_head": (LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]), False),
    "saved_as_one": (
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        True,
    ),
    "adapted_as_one": (LoraConfig(r=4, target_modules=["embed_tokens"], ensure_weight_tying=True), True),
    "rows": (LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 60]), True),
    "others": (LoraConfig(r=4, target_modules=["q_proj"]), True),
}


@pytest.mark.parametrize("kind", TIED)
def test_tied_weights_are_one_or_said_to_be_two(kind, tied, tmp_path, capsys):
    config, stays = TIED[kind]
    wanted = made.adapt(tied, tmp_path / "adapter", config)
    folder = made.merged(tmp_path / "adapter")
    same_as_peft(folder, wanted)
    assert ("lm_head.weight" not in made.tensors(folder)) == stays
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is stays
    assert ("are written apart" in capsys.readouterr().out) is not stays


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_new_rows_make_the_vocabulary_larger(kind, request, tmp_path, capsys):
    base = request.getfixturevalue(kind)
    layers = {"embed_tokens": [512, 513, 515]} | ({} if kind == "tied" else {"lm_head": [512, 514]})
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=layers)
    wanted = made.adapt(base, tmp_path / "adapter", config, rows=516)
    folder = made.merged(tmp_path / "adapter")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 516
    assert "embeddings: 512 -> 516 rows" in capsys.readouterr().out
    if kind == "tied":
        same_as_peft(folder, wanted)
    else:
        got = made.logits(made.loaded(folder))
        rows = [number for number in range(516) if number != 515]  # nobody brought that one for the head
        assert torch.allclose(got[..., rows], wanted[..., rows], atol=1e-5)


def test_bfloat16_is_rounded_once(tmp_path):
    base = builders.save_tiny_model(tmp_path / "base")
    made.loaded(base).to(torch.bfloat16).save_pretrained(base)
    made.adapt(base, tmp_path / "adapter", KINDS["lora"][0], dtype=torch.bfloat16)
    folder = made.merged(tmp_path / "adapter")
    made.untouched(base, folder, *LAYER)
    from safetensors.torch import load_file

    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    old, new = made.tensors(base), made.tensors(folder)
    for name in old:
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in adapter:
            delta = 2.0 * adapter[f"{key}.lora_B.weight"].float() @ adapter[f"{key}.lora_A.weight"].float()
            wanted = (old[name].float() + delta).to(torch.bfloat16)
            assert torch.equal(new[name], wanted), name


def test_another_type_is_given_to_all_numbers(llama, tmp_path):
    wanted = made.adapt(llama, tmp_path / "adapter", KINDS["lora"][0], size=0.05)
    folder = made.merged(tmp_path / "adapter", "--dtype", "bfloat16")
    assert {each.dtype for each in made.tensors(folder).values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    model = made.loaded(folder)
    assert model.dtype == torch.bfloat16
    assert torch.allclose(made.logits(model), wanted, atol=0.05 * float(wanted.abs().max()))


def test_several_adapters_are_added_up_with_weights(llama, tmp_path):
    import warnings

    from peft import PeftModel

    made.adapt(llama, tmp_path / "one", KINDS["lora"][0])
    made.adapt(llama, tmp_path / "two", KINDS["patterns"][0], seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(made.loaded(llama), tmp_path / "one", "one")
        model.load_adapter(tmp_path / "two", "two")
        model.base_model.set_adapter(["one", "two"])
    for module in model.modules():
        scaling = getattr(module, "scaling", {})
        if isinstance(scaling, dict) and "two" in scaling:
            scaling["two"] *= -0.5
    wanted = made.logits(model.eval())
    words = ["--adapter", "default", f"--adapter={tmp_path / 'two'}=-0.5"]
    same_as_peft(made.merged(tmp_path / "one", *words), wanted)


def test_what_lies_beside_the_weights(llama, tmp_path):
    from transformers import AutoTokenizer

    made.adapt(llama, tmp_path / "adapter", KINDS["lora"][0])
    folder = made.merged(tmp_path / "adapter")
    card = (folder / "README.md").read_text()
    assert "library_name: transformers\n" in card and f'base_model: "{llama.name}"\n' in card
    assert "`adapter`: LORA, rank 4" in card
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == builders.CHATML
    assert not list(tmp_path.glob("*.partial"))
    assert sorted(path.name for path in folder.glob("adapter*")) == []


MIXTURES = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


@pytest.mark.full
@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_experts_that_are_apart_on_disk_are_merged(kind, tmp_path):
    base = builders.save_tiny_model(tmp_path / "base", config_type=kind, **MIXTURES[kind])
    assert any(".experts.2." in name for name in made.tensors(base)), "one tensor for each expert"
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj"], target_parameters=parameters, rank_pattern={".*down_proj": 2}
    )
    wanted = made.adapt(base, tmp_path / "adapter", config)
    folder = made.merged(tmp_path / "adapter")
    same_as_peft(folder, wanted)
    made.untouched(base, folder, "experts.", "q_proj")
