"""Packed rows beside padded batches, in models with recurrent layers: one step forward and backward, on this machine.

The peer is the same random model given the same documents as a batch that is padded on the right to the longest, with
the attention that it was loaded with. Lengths are drawn as lengths of conversations are: from a log-normal
distribution, until they fill a row. Both give the same loss, which is checked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from packed_rows import measure_packed
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dumbo.bridge.packing import Packing, packed_batch_inputs, prepare_for_packing

RESULT = Path(__file__).parent / "results" / "packed_recurrent.json"
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "bamba": {
        "attn_layer_indices": [2],
        "mamba_n_heads": 8,
        "mamba_d_head": 64,
        "mamba_d_state": 32,
        "mamba_chunk_size": 64,
    },
}
"""Linear attention, convolution and state space, each with a layer of attention."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file."""

    def measure_all(lengths: tuple[int, ...], median: int, repeat: int) -> list[dict[str, Any]]:
        return [measure(name, lengths, median, repeat) for name in MODELS]

    return measure_packed(words, __doc__ or "", RESULT, 1024, [50, 150], measure_all, table)


def measure(name: str, lengths: tuple[int, ...], median: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of a step by the packed row and by the padded batch."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES, **MODELS[name]), dtype=torch.float32)
    packing = prepare_for_packing(model)
    texts = [torch.randint(SIZES["vocab_size"], (length,)) for length in lengths]
    packed, padded = packed_step(model, texts), padded_step(packing, texts)
    losses = packed(), padded()
    assert abs(losses[0] - losses[1]) < 1e-4 * losses[1], losses
    times = [(seconds(packed), seconds(padded)) for _ in range(repeat)]
    packed_ms, padded_ms = (round(1000 * statistics.median(column), 1) for column in zip(*times, strict=True))
    return {
        "model": name,
        "documents": len(lengths),
        "median_length": median,
        "padding_share": round(1 - sum(lengths) / (max(lengths) * len(lengths)), 3),
        "packed_ms": packed_ms,
        "padded_ms": padded_ms,
        "speedup": round(padded_ms / packed_ms, 2),
    }


def packed_step(model: Any, texts: Sequence[Tensor]) -> Callable[[], float]:
    """A pass over one row, and back; gives the loss."""
    inputs = packed_batch_inputs(torch.cat(list(texts))[None], [len(text) for text in texts])
    labels = torch.cat([torch.cat([text.new_full((1,), -100), text[1:]]) for text in texts])[None]
    return lambda: step(model, inputs, labels)


def padded_step(packing: Packing, texts: Sequence[Tensor]) -> Callable[[], float]:
    """A pass over one padded batch, and back; gives the loss."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=-100)

    def run() -> float:
        with packing.switched_off():
            return step(packing.model, {"input_ids": tokens, "attention_mask": mask, "use_cache": False}, labels)

    return run


def step(model: Any, inputs: dict[str, Any], labels: Tensor) -> float:
    """The loss summed over predicted tokens, and its gradients."""
    model.zero_grad()
    logits = model(**inputs).logits[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    loss.backward()
    return float(loss.detach())


def seconds(run: Callable[[], float]) -> float:
    """One step."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(cases: Sequence[dict[str, Any]]) -> str:
    """The cases as text."""
    lines = ["model         documents  padding   packed ms   padded ms  speedup"]
    for case in cases:
        lines.append(
            f"{case['model']:12}  {case['documents']:9}  {case['padding_share']:7.0%}  {case['packed_ms']:10.1f}"
            f"  {case['padded_ms']:10.1f}  {case['speedup']:7.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
