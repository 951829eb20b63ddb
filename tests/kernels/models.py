"""Tiny random models of the architectures that packing is proven for, and documents for them."""

import itertools

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from dumbo.bridge.packing import packed_batch_inputs, prepare_for_packing
from tests import builders

EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
KINDS = ["sliding_attention", "full_attention"]
ARCHITECTURES = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "layer_types": KINDS},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 2.0, "layer_types": KINDS},
    "mistral": {"sliding_window": 6},
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "olmo2": {},
    "gpt_oss": {"head_dim": 8, "sliding_window": 6, "num_local_experts": 4, "layer_types": KINDS, **EXPERTS},
    "mixtral": {"num_local_experts": 4, **EXPERTS},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32, **EXPERTS},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
}
"""Model types and what their configurations have beside the usual. OPT's masks are not told of positions."""

DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HEADS = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
SHARED = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, **EXPERTS}
RECURRENT = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {"head_dim": 8, **LINEAR, **DELTA, **SHARED},
    "qwen3_5_text": {"head_dim": 8, **LINEAR, **DELTA},
    "olmo_hybrid": {**LINEAR, **DELTA},
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8, "head_dim": 8, **LINEAR},
    "mamba": {},
    "falcon_mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2},
    "bamba": {"attn_layer_indices": [1], **HEADS},
    "falcon_h1": {"head_dim": 8, "mamba_d_ssm": 64, **HEADS},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        **HEADS,
    },
    "nemotron_h": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "head_dim": 8,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "mamba_headdim": 16,
        "chunk_size": 8,
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "attention_window_size": 6,
        "lru_width": 32,
        "head_dim": 8,
    },
}
"""Models with layers that carry a state from token to token, all of which never look ahead."""

MIXED = {"zaya": {"num_experts": 2, "moe_intermediate_size": 32}, "xlstm": {}}
"""Models whose states cannot be reached: in the module that also computes attention, or in a layer of its own kind."""

LENGTHS = (9, 1, 14, 9, 2, 1)
"""Longer than the windows, of one token, and of equal lengths."""


def build(name, **overrides):
    """A tiny model with weights five times as large as usual, so that attention has a say in the logits.

    Not so those of which state spaces make rates of decay: they are exponents, and would make rounding large.
    """
    known = ARCHITECTURES | RECURRENT | MIXED
    model = builders.build_tiny_model(64, config_type=name, **(known[name] | overrides))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not parameter_name.endswith(("A_log", "x_proj.weight", "dt_proj.weight")):
                parameter.mul_(5)
    return model


def documents(lengths=LENGTHS, seed=0, device="cpu"):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(64, (length,), generator=draw).to(device) for length in lengths]


def packed_logits(model, texts):
    inputs = packed_batch_inputs(torch.cat(texts)[None], [len(text) for text in texts])
    return model(**inputs).logits[0]


def alone_logits(model, texts):
    return torch.cat([model(input_ids=text[None], use_cache=False).logits[0] for text in texts])


def loss_of(logits, texts):
    """The sum over the tokens that a token of their own document precedes."""
    labels = torch.cat([torch.cat([text.new_full((1,), -100), text[1:]]) for text in texts])
    return F.cross_entropy(logits[:-1].float(), labels[1:], reduction="sum", ignore_index=-100)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_trains_as_alone(model, texts):
    """Logits, loss and gradients of a packed row are those of its documents, within 1e-5; returns the `Packing`."""
    alone = alone_logits(model, texts)
    expected = loss_of(alone, texts)
    expected.backward()
    wanted = gradients(model)
    packing = prepare_for_packing(model)
    packed = packed_logits(model, texts)
    loss = loss_of(packed, texts)
    loss.backward()
    assert_close(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.detach().abs().max()))
    assert_close(loss, expected, rtol=1e-5, atol=0)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        largest = float(gradient.abs().max())
        assert_close(found[parameter], gradient, rtol=1e-5, atol=1e-5 * max(largest, 1.0), msg=parameter)
    return packing


def assert_nothing_crosses(model):
    """Other tokens in any document change its own logits, and no others."""
    texts, others = documents(), documents(seed=1)
    edges = list(itertools.accumulate((0, *LENGTHS)))
    with torch.no_grad():
        before = packed_logits(model, texts)
        for changed, start in enumerate(edges[:-1]):
            mixed = [others[i] if i == changed else text for i, text in enumerate(texts)]
            difference = (packed_logits(model, mixed) - before).abs().amax(-1)
            own = torch.zeros(len(difference), dtype=torch.bool)
            own[start : edges[changed + 1]] = True
            assert difference[~own].max() <= 1e-5 * before.abs().max()
            assert difference[own].max() > 1e-2 * before.abs().max()
