"""LoRA+: learning rates of its own for each kind of matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dumbo.errors import ConfigError
from dumbo.plugins.peft.options import PeftOptions

_EMBEDDING_RATE = 1e-6
_FAST = (r"\.lora_B\.", r"\.lora_magnitude_vector\.", r"\.bias$")
_EMBEDDING = r"\.lora_embedding_[AB]\."


def lora_plus_factors(adapted: Any, options: PeftOptions, learning_rate: float) -> Mapping[str, float]:
    """Patterns of names -> times of the learning rate, for those kinds of weights that `adapted` trains.

    As PEFT's `create_loraplus_optimizer` has it (arXiv 2402.12354): matrices B and what has one dimension learn at
    `lora_plus_ratio` times the rate, adapters on embeddings at a rate that is independent of it.

    Raises:
        ConfigError: a rate for embeddings, which have no adapter.
    """
    assert options.lora_plus_ratio is not None
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    factors = {pattern: options.lora_plus_ratio for pattern in _FAST if any(re.search(pattern, n) for n in trained)}
    if any(re.search(_EMBEDDING, name) for name in trained):
        rate = options.lora_plus_embedding_rate or _EMBEDDING_RATE
        factors[_EMBEDDING] = rate / learning_rate if learning_rate else 1.0
    elif options.lora_plus_embedding_rate is not None:
        message = "has no effect: no embeddings have an adapter"
        raise ConfigError.at("model.peft.lora_plus_embedding_rate", message, "leave it out")
    return factors
