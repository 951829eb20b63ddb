"""Which configurations make a language model that sees the tokens it is to predict."""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

ENCODERS = frozenset({*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation"})
"""Types whose `is_decoder` decides. Others carry it without using it: GPT-NeoX has it as false, and is causal."""


def is_encoder(config: PreTrainedConfig) -> bool:
    """Whether the model is an encoder with a language-modelling head: it would learn to copy what it sees."""
    decides = config.model_type in ENCODERS and not config.is_encoder_decoder
    return decides and getattr(config, "is_decoder", True) is False
