"""Tiny random models of every architecture of Transformers that writes text, made of nothing but its configuration."""

from types import MappingProxyType

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.architectures.special import INPUTS, OPTIONS, WHOLE

VOCABULARY = 160
MAPPINGS = MappingProxyType(
    {"causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "image": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
)
"""Kinds of models: those that go on with a text, and those that see images too."""

_SIZES = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    128: "max_position_embeddings n_positions max_seq_len model_max_length max_sequence_length mamba_d_ssm",
    96: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff ffn_hidden_size mlp_hidden_size",
    64: "hidden_size n_embd d_model dim hidden_size_global embedding_size emb_dim embed_dim input_size lru_width "
    "word_embed_proj_dim",
    32: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size index_head_dim "
    "expert_ffn_hidden_size q_lora_rank qk_head_dim sliding_window",
    16: "head_dim d_kv kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim rotary_dim mamba_chunk_size "
    "chunk_size mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim global_head_dim",
    8: "state_size mamba_d_state ssm_state_size mamba_n_heads mamba_num_heads index_topk",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts linear_num_value_heads time_step_rank",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads num_kv_heads "
    "num_experts_per_tok moe_topk linear_num_key_heads index_n_heads num_global_key_value_heads",
    1: "n_shared_experts n_group topk_group first_k_dense_replace mamba_n_groups n_groups",
    0: "hidden_size_per_layer_input num_kv_shared_layers zero_expert_num",
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DROPOUTS = (
    "attention_dropout resid_pdrop embd_pdrop attn_pdrop dropout hidden_dropout hidden_dropout_prob layerdrop "
    "attention_probs_dropout_prob activation_dropout"
)
_LOGITS = {"final_logit_softcapping": 2.0, "logits_scaling": 4.0, "logit_scale": 0.25, "lm_head_multiplier": 0.5}
"""Far enough from nothing for a step that is forgotten to be seen."""
_FIELDS = MappingProxyType(
    {name: size for size, names in _SIZES.items() for name in names.split()}
    | dict.fromkeys(_DROPOUTS.split(), 0.0)
    | _TOKENS
    | _LOGITS
)
_OFTEN_NONE = frozenset({"num_key_value_heads", "head_dim", "n_inner", *_TOKENS})
"""Fields whose default is None, and that take a number."""
_IMAGES = MappingProxyType(
    {"depth": 2, "out_hidden_size": 64, "projection_dim": 64, "projector_hidden_size": 64, "image_size": 32}
    | {"patch_size": 8}
)
LARGEST = 60_000_000
"""Parameters: of more, a configuration was not shrunk."""


class TooLarge(Exception):
    """The configuration has sizes that are not in the tables."""


def build(name: str, kind: str = "causal", options=OPTIONS) -> torch.nn.Module:
    """A model in float32 that trains, with weights that make unlike logits, and its experts' auxiliary loss on."""
    classes = MAPPINGS[kind][name]
    model_class = getattr(transformers, classes if isinstance(classes, str) else classes[0])
    config = shrunk(model_class.config_class or CONFIG_MAPPING[name], name, options=options)
    for part in configs(config):
        part.use_cache = False
        if hasattr(part, "output_router_logits"):
            part.output_router_logits = True
    if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(config).parameters())
    if count > LARGEST:
        raise TooLarge(f"{count:,} parameters")
    torch.manual_seed(0)
    model = model_class(config).float().train()
    _randomize(model)
    return model


def shrunk(config_class, name="", more=MappingProxyType({}), options=OPTIONS):
    """A configuration in which every known size is small."""
    if name in WHOLE:
        return config_class(**options[name])
    usual = config_class()
    names = getattr(config_class, "attribute_map", None) or {}
    chosen = {}
    for part, config in _parts(usual).items():
        chosen[part] = shrunk(type(config), config.model_type, {} if "text" in part else _IMAGES, options)
    for field, value in {**_FIELDS, **more}.items():
        default = _default(usual, field)
        if default is None and field in _OFTEN_NONE and getattr(config_class, field, 0) is None:
            chosen[names.get(field, field)] = value
        elif isinstance(default, int | float) and not isinstance(default, bool):
            chosen[names.get(field, field)] = int(value) if isinstance(default, int) else value
    if _default(usual, "kv_lora_rank") is not None:  # attention in which each head has a key of its own
        chosen = {**chosen, "num_key_value_heads": 4, "head_dim": None}
    chosen |= options.get(name, {})
    return config_class(**{field: value for field, value in chosen.items() if value is not None})


def _default(config, field):
    """None where it has no such field, or has it for each layer, or only computes it."""
    found = getattr(type(config), field, None)
    if isinstance(found, property) and found.fset is None:
        return None
    try:
        return getattr(config, field, None)
    except Exception:  # noqa: BLE001 - a class of errors of its own where layers differ
        return None


def configs(config):
    """It, and those of its parts."""
    return [config, *_parts(config).values()]


def _parts(config):
    found = {name: getattr(config, name, None) for name in getattr(type(config), "sub_configs", None) or {}}
    return {name: part for name, part in found.items() if part is not None}


def _randomize(model):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1, generator=draw)
            elif not parameter.any() or not parameter.isfinite().all():
                parameter.normal_(0, 0.02, generator=draw)


def batch(name):
    """Two rows of twelve tokens, of which some are not trained, and what else the model takes."""
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = -100
    labels[1, 9] = -100
    more = INPUTS[name](ids) if name in INPUTS else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **more}
