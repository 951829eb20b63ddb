"""What some architectures need beside small sizes: data, so that nothing else asks for the name of a model."""

from types import MappingProxyType

import torch

_MIXED = ["sliding_attention", "full_attention"]
_ASSISTANT = {
    "backbone_hidden_size": 64,
    "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2}
    | {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    | {"num_key_value_heads": 2, "num_hidden_layers": 4, "global_head_dim": 16, "layer_types": _MIXED * 2}
    | {"final_logit_softcapping": 2.0},
}
_DOTS = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4) | {
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "head_dim": 32,
}
_MIXTURE = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}


def _rope(*sections):
    """Rotations by time, height and width of images, of so many pairs of each head."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}}


OPTIONS = MappingProxyType(
    {
        "beam": {"mlp_layer_types": ["dense", "sparse"]},
        "blt": {"encoder_hash_byte_group_vocab": 50},
        "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
        | {"logit_scale": 0.25},
        "dbrx": {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 96},
        },
        "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        "deepseek_v2": {"num_experts_per_tok": 2},
        "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe"]},
        "diffusion_gemma_text": _MIXTURE | {"global_head_dim": 16},
        "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
        "dots3_note_text": _DOTS | {f"swa_{name}": value for name, value in _DOTS.items()},
        "ernie4_5_vl_moe_text": _rope(2, 2, 4) | {"moe_intermediate_size": [32, 16]},
        "flint": {"mlp_only_layers": [0]},
        "gemma4_text": {"global_head_dim": 16, "final_logit_softcapping": 2.0},
        "gemma4_unified_text": {"global_head_dim": 16, "final_logit_softcapping": 2.0},
        "gemma4_assistant": _ASSISTANT,
        "gemma4_unified_assistant": _ASSISTANT,
        "glm4v_text": _rope(2, 3, 3),
        "glm4v_moe_text": _rope(1, 1, 2),
        "glm5_next_text": {"mlp_layer_types": ["dense", "sparse"], "index_kpool": 4, "qk_rope_head_dim": 0}
        | {"linear_head_dim": 16, "linear_num_heads": 4},
        "glm_ocr_text": _rope(2, 3, 3),
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "inkling2_vision": {"text_hidden_size": 64},
        "kimi_linear": {"linear_head_dim": 16, "linear_num_heads": 4},
        "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        "longcat_flash": {"head_dim": 16},
        "mamba2": {"num_heads": 8, "n_groups": 1},
        "muse_spark_audio": {"num_hidden_layers": 2, "hidden_sizes": [8, 8], "depths": [1, 1], "patch_sizes": [4, 4]},
        "muse_spark_text": {"moe_hidden_size": 32},
        "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": 2, "num_decoder_layers": 2}
        | {"num_decoder_attention_heads": 4},
        "qwen2_5_vl_text": _rope(2, 3, 3),
        "qwen2_vl_text": _rope(2, 3, 3),
        "qwen3_omni_moe_thinker": {"vision_start_token_id": 3},
        "paddleocr_vl_text": _rope(2, 3, 3),
        "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [3, 4]}
        | {"attention_head_size": 16, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "hash_seed": 0}
        | {"num_buckets": 2, "num_hidden_layers": None, "local_attention_probs_dropout_prob": 0.0},
        "xlnet": {"max_position_embeddings": None, "d_inner": 96},
        "xmod": {"default_language": "en_XX"},
        "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_dt_rank": 4},
        "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 8},
        "zaya": {"num_experts_per_tok": 1},
    }
)
"""Fields of a configuration by its model type; None: the field is left alone."""

WITH_EXPERTS = MappingProxyType(
    OPTIONS | {"gemma4_text": OPTIONS["gemma4_text"] | {"enable_moe_block": True} | _MIXTURE}
)
"""The same, for models whose experts are an option."""

WHOLE = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})
"""Whose configurations are nothing without options."""


def _states_of_another(ids):
    """What a model that drafts for another has of it: embeddings with hidden states, and keys and values."""
    draw = torch.Generator().manual_seed(2)
    kinds = {kind: tuple(torch.randn(len(ids), 2, ids.shape[1], 16, generator=draw) for _ in "kv") for kind in _MIXED}
    return {"inputs_embeds": torch.randn(*ids.shape, 128, generator=draw), "shared_kv_states": kinds}


INPUTS = MappingProxyType(
    {"gemma4_assistant": _states_of_another, "gemma4_unified_assistant": _states_of_another},
)
"""What models take beside tokens, made of these."""
