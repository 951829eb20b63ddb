"""What the tests of quantized bases share: a model wide enough for blocks of 64, and looks at what a run left."""

import json

import torch

from dumbo.bridge.inference_model import load_for_inference
from tests.run.whole_runs import SHIPPED

IDS = torch.arange(3, 40)[None]
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
"""Layers whose widths are multiples of 32 and of 64: what bitsandbytes packs for the CPU."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def changes(plugin, options=None, **more):
    """A run of an adapter on a base that `plugin` quantizes."""
    section = {} if options is None else {f"model.{plugin}": options}
    return {"plugins": [*SHIPPED, "peft", plugin], "model.peft": {"rank": 4}, **section, **more}


def contract_of(folder):
    """What a folder with an adapter says of its base."""
    return json.loads((folder / "base_quantization.json").read_text(encoding="utf-8"))


def logits_of(folder, **options):
    model, _ = load_for_inference(folder, device=torch.device("cpu"), **options)
    with torch.no_grad():
        return model(IDS).logits


def relative(one, other):
    return float((one - other).norm() / other.norm())
