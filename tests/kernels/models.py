"""Tiny random models of the architectures that packing is proven for, and documents for them."""

import torch
import torch.nn.functional as F

from dumbo.bridge.packing import packed_batch_inputs
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
RECURRENT = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 8,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        **DELTA,
        **EXPERTS,
    },
    "jamba": {},
    "mamba": {},
}
"""Models with layers that carry a state from token to token."""

LENGTHS = (9, 1, 14, 9, 2, 1)
"""Longer than the windows, of one token, and of equal lengths."""


def build(name, **overrides):
    """A tiny model with weights five times as large as usual, so that attention has a say in the logits."""
    known = ARCHITECTURES | RECURRENT
    model = builders.build_tiny_model(64, config_type=name, **(known[name] | overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
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
