"""Packed rows are trained as each alone would be, and a model that mixes them is refused."""

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from dumbo.bridge.packing import require_isolation
from dumbo.data.collate import PackedCollator
from dumbo.errors import ConfigError
from dumbo.losses.token import next_token_cross_entropy

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "llama": GROUPED,
    "qwen3": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 6},
    "gemma3_text": {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma2": {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "olmo2": GROUPED,
    "qwen3_moe": {**GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
}


def build(model_type, **sizes):
    torch.manual_seed(0)
    tokens = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    made = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**sizes, **tokens))
    return made.float().eval()


def rows(*lengths):
    draw = np.random.default_rng(0)
    made = [draw.integers(3, 64, length).astype(np.int32) for length in lengths]
    labels = [np.where(draw.random(len(ids)) < 0.7, ids, -100) for ids in made]
    for label in labels:
        label[0] = -100
    return [{"input_ids": ids, "labels": label.astype(np.int32)} for ids, label in zip(made, labels, strict=True)]


def gradients(model, batches):
    """The loss summed over all supervised tokens, and its gradients."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        loss = next_token_cross_entropy(model(**inputs, use_cache=False).logits, batch["labels"], 0.0)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODELS)
def test_packed_rows_train_as_each_alone(model_type, attention):
    model = build(model_type, **MODELS[model_type])
    if (model_type, attention) == ("gemma2", "sdpa"):
        pytest.skip("its soft-caps are known to eager attention alone")
    model.set_attn_implementation(attention)
    require_isolation(model)
    made = rows(9, 1, 14, 5, 5)
    loss, theirs = gradients(model, [PackedCollator()(made)])
    alone, ours = gradients(model, [PackedCollator()([row]) for row in made if len(row["input_ids"]) > 1])
    assert loss == pytest.approx(alone, rel=1e-5)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_no_row_changes_the_logits_of_another(model_type):
    model = build(model_type, **MODELS[model_type])
    made = rows(9, 14)
    for changed, kept in ((0, slice(9, None)), (1, slice(0, 9))):
        others = [dict(row) for row in made]
        others[changed]["input_ids"] = (others[changed]["input_ids"] + 1) % 64
        with torch.no_grad():
            one, other = (
                model(**{k: v for k, v in PackedCollator()(each).items() if k != "labels"}, use_cache=False).logits
                for each in (made, others)
            )
        assert torch.equal(one[0, kept], other[0, kept])
        assert not torch.equal(one, other)


REFUSED = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    # In Transformers 5.23 its masks are made without the positions, so that rows see each other.
    "gpt_oss": {**GROUPED, "sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_that_mixes_rows_is_refused(model_type):
    model = build(model_type, **REFUSED[model_type]).train()
    with pytest.raises(ConfigError) as caught:
        require_isolation(model)
    assert f"trainer.data.packing: '{model_type}'" in str(caught.value) and "remove packing" in str(caught.value)
    assert model.training
