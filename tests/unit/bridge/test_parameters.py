"""Every parameter counts once, in the part that it belongs to."""

import pytest

from dumbo.bridge.parameters import count_parameters
from tests import builders


@pytest.mark.parametrize("config_type", ["llama", "gpt2", "mixtral", "gemma2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parts_add_up_to_the_model(config_type, tied):
    model = builders.build_tiny_model(64, config_type=config_type, tie_word_embeddings=tied)
    rows = {row["part"]: row["trainable"] for row in count_parameters(model)}
    assert sum(rows.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert rows["embeddings"] >= model.get_input_embeddings().weight.numel()
    assert ("output head" in rows) == (not tied)
    assert {"attention", "norms"} <= rows.keys() and ("experts" in rows) == (config_type == "mixtral")
    assert rows.get("other", 0) == (model.transformer.wpe.weight.numel() if config_type == "gpt2" else 0)


def test_frozen_ones_are_told_apart():
    model = builders.build_tiny_model(64)
    model.get_input_embeddings().requires_grad_(False)
    rows = {row["part"]: (row["trainable"], row["frozen"]) for row in count_parameters(model)}
    assert rows["embeddings"][0] == 0 and rows["embeddings"][1] == 64 * 32
    assert all(frozen == 0 for part, (_, frozen) in rows.items() if part not in ("embeddings", "output head"))
