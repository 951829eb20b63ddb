"""The proof: what it prints, that it sees a wrong merge, and that nothing is left of one."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from dumbo.bridge import merge_companion
from dumbo.cli.main import main
from dumbo.errors import RunError
from dumbo.merging.bases import open_base
from dumbo.merging.places import PLAIN, plain_places
from tests import builders
from tests.merging import made

ALL = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return builders.save_tiny_model(tmp_path_factory.mktemp("base"))


def asked(question, **details):
    """The answer of the process beside the merge, given here."""
    answer = merge_companion._answer({"question": question, "what": "it", **details})
    if "error" in answer:
        raise RunError(answer["error"])
    return answer


def compared(base, adapter, folder, kept, roundoff=2.0**-24, changed=(), **details):
    """What the proof finds for a merged model in `folder`."""
    shared = {"kept": str(kept), "trusted": False}
    asked(
        "reference",
        folder=str(base),
        adapters=[{"folder": str(adapter), "weight": 1.0}],
        **{"tokens": 512, "tokenizer": str(base), **shared, **details},
    )
    exact = roundoff == 2.0**-24
    return asked("merged", folder=str(folder), roundoff=roundoff, exact=exact, changed=list(changed), **shared)


@pytest.mark.full
def test_a_merge_is_proven_by_the_command_line(base, tmp_path, capsys):
    made.adapt(base, tmp_path / "adapter", ALL)
    assert main(["merge", str(tmp_path / "adapter")]) == 0
    said = capsys.readouterr().out
    found = re.search(
        r"proof: over 48 tokens the largest difference of a logit is (\S+) \(rounding to float32 explains (\S+);", said
    )
    assert found, said
    assert float(found[1]) <= float(found[2]) < 1e-4
    assert "the likeliest token is the same for 100%" in said
    folder = tmp_path / "adapter" / "merged"
    assert f"{folder}: " in said and not list(tmp_path.glob("**/*.partial")) and not (folder / "reference.pt").exists()


KINDS = {
    "dora": LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "embed_tokens"]),
    "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    "rows": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 9, 60]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters_are_proven(kind, base, tmp_path):
    made.adapt(base, tmp_path / "adapter", KINDS[kind])
    folder = made.merged(tmp_path / "adapter")
    changed = ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"]
    found = compared(base, tmp_path / "adapter", folder, tmp_path / "kept", changed=changed)
    assert found["difference"] <= 4 * found["noise"] + 64 * 2**-24 * found["largest"]


def test_new_rows_and_tied_weights_are_proven(tmp_path):
    base = builders.save_tiny_model(tmp_path / "base", tie_word_embeddings=True)
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[512, 513, 515])
    made.adapt(base, tmp_path / "adapter", config, rows=516)
    folder = made.merged(tmp_path / "adapter")
    changed = ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight"]
    details = {"rows": 516, "tokens": 516, "special": [512, 513, 515]}
    found = compared(base, tmp_path / "adapter", folder, tmp_path / "kept", changed=changed, **details)
    assert found["difference"] <= 4 * found["noise"] + 64 * 2**-24 * found["largest"]


def test_a_merge_that_is_slightly_wrong_is_seen(base, tmp_path):
    made.adapt(base, tmp_path / "adapter", ALL)
    folder = made.merged(tmp_path / "adapter")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    weights[name] = weights[name] + 0.02 * (weights[name] - made.tensors(base)[name])  # alpha off by 2 %
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = compared(base, tmp_path / "adapter", folder, tmp_path / "kept", changed=list(weights))
    assert found["difference"] > 10 * (4 * found["noise"] + 64 * 2**-24 * found["largest"])


def test_rounding_to_bfloat16_is_explained_and_a_wrong_sum_is_not(base, tmp_path):
    made.adapt(base, tmp_path / "adapter", ALL)
    folder = made.merged(tmp_path / "adapter", "--dtype", "bfloat16")
    changed = list(made.tensors(folder))
    details = {"roundoff": 2.0**-8, "changed": changed}
    found = compared(base, tmp_path / "adapter", folder, tmp_path / "kept", **details)
    assert 1e-4 < found["difference"] <= 4 * found["noise"]
    weights = load_file(folder / "model.safetensors")
    for name in changed:
        if "v_proj" in name:
            weights[name] = made.tensors(base)[name].to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = compared(base, tmp_path / "adapter", folder, tmp_path / "kept", **details)
    assert found["difference"] > 4 * found["noise"]


@pytest.mark.full
def test_nothing_is_left_of_a_merge_that_is_not_proven(base, tmp_path, capsys):
    """The adapter that PEFT reads is another one than the one that was merged."""
    made.adapt(base, tmp_path / "adapter", ALL)
    file = tmp_path / "adapter" / "adapter_config.json"
    # PEFT takes alpha from the pattern; ours does, too, so that a lie needs a key that only PEFT knows.
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layers_to_transform": [1]}))
    assert main(["merge", str(tmp_path / "adapter")]) == 2
    said = capsys.readouterr().err
    assert "the merged model is not what the adapter makes of its base model" in said or "cannot be computed" in said
    assert not (tmp_path / "adapter" / "merged").exists() and not list(tmp_path.glob("**/*.partial"))


def test_layers_are_read_when_they_are_reached_and_dropped(base):
    from transformers import AutoConfig

    from dumbo.bridge.merge_proof import logits_of
    from dumbo.bridge.stored_model import FromDisk, empty_model

    model = empty_model(AutoConfig.from_pretrained(base), False)
    most = 0

    def count(module, inputs, output):
        nonlocal most
        most = max(most, sum(each.untyped_storage().nbytes() // 4 for each in model.parameters()))

    for module in model.modules():
        module.register_forward_hook(count)
    with FromDisk(model, base).attached(model, model.get_submodule):
        got = logits_of(model, made.IDS)
    assert torch.equal(got, made.logits(made.loaded(base)))
    assert all(each.untyped_storage().nbytes() == 4 for each in model.parameters())
    layer = sum(each.numel() for each in model.model.layers[0].parameters())
    assert most <= max(layer, 512 * 32) + 32


def test_other_roundings_of_inputs_are_those_of_weights(base):
    """In one pass with the plain model, or in one of their own."""
    from transformers import AutoConfig

    from dumbo.bridge.merge_proof import logits_of, noise_of, twice_with_noise
    from dumbo.bridge.stored_model import FromDisk, empty_model

    name = "model.layers.1.mlp.down_proj.weight"
    model = empty_model(AutoConfig.from_pretrained(base), False)
    with FromDisk(model, base).attached(model, model.get_submodule):
        plain, noisy = twice_with_noise(model, made.IDS, 0.01, frozenset({name}))
        assert twice_with_noise(model, made.IDS, 0.01, frozenset({name, "model.embed_tokens.weight"})) is None
    with FromDisk(model, base, noise_of(0.01, frozenset({name}))).attached(model, model.get_submodule):
        torch.testing.assert_close(noisy, logits_of(model, made.IDS))
    torch.testing.assert_close(plain, made.logits(made.loaded(base)))
    assert (noisy - plain).abs().max() > 1e-4


@pytest.mark.full
@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_plain_names_are_those_that_transformers_has(kind, tmp_path):
    shapes = {"mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4}, "bloom": {"n_layer": 2, "n_head": 4}}
    many = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64}
    shapes |= {"gpt2": many, "gptj": many | {"rotary_dim": 4}, "gpt_bigcode": many}
    shapes |= {"gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}}
    shapes |= {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "stablelm": {}, "gemma3_text": {"head_dim": 8}}
    shapes |= {name: {"head_dim": 8} for name in ("gemma", "gemma2", "glm", "glm4", "helium")}
    overrides = shapes.get(kind, {})
    model = builders.build_tiny_model(64, config_type=kind, **overrides)
    model.save_pretrained(tmp_path)
    answer = asked("names", folder=str(tmp_path), shapes={n: list(t.shape) for n, t in made.tensors(tmp_path).items()})
    base = open_base(str(tmp_path), None, tmp_path, print)
    ours = plain_places(base)
    theirs = {name: [each["tensor"] for each in found] for name, found in answer["pieces"].items()}
    assert {name: [each.tensor for each in found] for name, found in ours.pieces.items()} == theirs
    assert (ours.embeddings, ours.is_tied) == (answer["embeddings"], answer["is_tied"])
    assert set(answer["flipped"]) == ours.flipped
    if answer["head"] in theirs:
        assert ours.head == answer["head"]


@pytest.mark.full
def test_a_base_model_that_no_child_can_load_is_an_error_of_the_proof(base, tmp_path, capsys):
    other = shutil.copytree(base, tmp_path / "base")
    made.adapt(other, tmp_path / "adapter", ALL)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert main(["merge", str(tmp_path / "adapter")]) == 2
    assert "weights are missing, the first is model.layers.2." in capsys.readouterr().err
    assert not (tmp_path / "adapter" / "merged").exists()
