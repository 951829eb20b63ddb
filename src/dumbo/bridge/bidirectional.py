"""Makes a causal language model see the tokens on both sides, and proves on the model itself that it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dumbo.bridge.packing import packed_batch_inputs
from dumbo.bridge.recurrent import recurrent_mixers
from dumbo.errors import RunError

KINDS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, in a configuration's `layer_types`, of which Transformers has a mask to both sides. A window then
reaches as far to the right as to the left."""

PROBED = 6
"""Tokens of the probe."""

LEAST, MOST = 1e-6, 1e-2
"""Changes of logits, relative to the largest logit, by a token that is seen (at least) and by one that is not (at most:
experts that are given other tokens round otherwise)."""


def make_bidirectional(model: Any) -> None:
    """Let every layer of `model` attend to both sides, in training and in generation, with any attention backend.

    `is_causal` of the configuration decides on the masks that Transformers makes; that of the attention layers decides
    where a backend needs no mask. The first is saved with the model.

    Raises:
        RunError: it has layers that read from left to right; the message names the model's type and the layers.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    wrong = sorted(set(kinds) - KINDS)
    if wrong:
        raise RunError(f"{_refusal(model)}: its layers of the kinds {', '.join(wrong)} read from left to right")
    mixers = recurrent_mixers(model)
    if mixers:
        name, mixer = next(iter(mixers.items()))
        raise RunError(f"{_refusal(model)}: {type(mixer).__name__} ({name}) carries a state from left to right")
    config.is_causal = False
    model.config.is_causal = False
    for module in model.modules():
        if getattr(module, "is_causal", None) is True:
            module.is_causal = False


@torch.no_grad()
def prove_bidirectional(model: Any, device: torch.device, packed: bool = False) -> None:
    """Raise a RunError unless every token's logits depend on the last token of its text, and none on what is no part
    of the text: padding or, `packed`, another document.

    `model` may be wrapped; it computes as in training, under whatever autocast there is. A made-up row is gone through
    three times.
    """
    size = _plain(model).get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (1, PROBED + 1), generator=draw)
    last, padding = ids.clone(), ids.clone()
    last[0, PROBED - 1] = (ids[0, PROBED - 1] + 1 + size // 3) % size
    padding[0, PROBED] = (ids[0, PROBED] + 1 + size // 3) % size
    was_training = model.training
    model.eval()
    try:
        first, changed, padded = (_logits(model, row.to(device), packed) for row in (ids, last, padding))
    finally:
        model.train(was_training)
    scale = float(first.abs().max())
    if not scale:
        return  # a head of zeros, from which nothing can be told
    seen = (changed - first).abs().amax(-1) > scale * LEAST
    blind = (~seen[: PROBED - 1]).nonzero().flatten().tolist()
    if blind:
        raise RunError(f"{_refusal(model)}: token {blind[0] + 1} of a text does not see the last one")
    leak = float((padded - first).abs().max())
    if leak > scale * MOST:
        what = "another document" if packed else "padding"
        raise RunError(f"{_refusal(model)} alone: what stands in {what} changes logits by {leak:.2g}")


def _logits(model: Any, ids: Tensor, packed: bool) -> Tensor:
    """Float32 `[PROBED, vocabulary]`; the last token is padding, or a document of its own."""
    if packed:
        inputs = packed_batch_inputs(ids, [PROBED, 1])
    else:
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    logits: Tensor = model(**inputs).logits
    return logits[0, :PROBED].float()


def _plain(model: Any) -> Any:
    """Without what distributes it."""
    while not hasattr(model, "config"):
        model = model.module
    return model


def _refusal(model: Any) -> str:
    return f"a {_plain(model).config.model_type} model cannot see both sides of a token"
