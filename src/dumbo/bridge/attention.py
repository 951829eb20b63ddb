"""Our packed attention as an attention implementation of Transformers, with its masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dumbo.errors import RunError
from dumbo.kernels.packed_attention import Scoring, packed_attention, scaled_dot_product
from dumbo.kernels.packed_row import PackedRow, Pattern, as_allows

PACKED = "dumbo_packed"
"""The name in Transformers' tables of attention functions and of masks."""

BOUNDARIES = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"})
"""What a packed batch says of its documents: the names are Transformers' own, and flash attention's."""

WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "layer_idx",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "seq_idx",
        "sliding_window",
        "use_cache",
    }
)
"""What models hand on to attention and what has no say in it; the mask knows of windows."""


def register_packed_attention() -> str:
    """Make `PACKED` known to Transformers, which may be done any number of times; return it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, attend)
    AttentionMaskInterface.register(PACKED, packed_mask)
    return PACKED


@dataclass(eq=False)
class UnmadeMask:
    """The mask of one row without padding or cache: it becomes a pattern for documents, or a tensor for a text.

    All layers of a kind share it in a forward pass, and so what it remembers.
    """

    request: dict[str, Any]
    """What `sdpa_mask` would be called with."""
    _rows: list[tuple[Tensor, PackedRow, Pattern]] = field(default_factory=list)
    _made: list[Tensor | None] = field(default_factory=list)

    def made(self) -> Tensor | None:
        """The mask as sdpa has it: bool `[1, 1, T, T]`, or None for a causal or a full one."""
        if not self._made:
            from transformers.masking_utils import sdpa_mask

            self._made.append(sdpa_mask(**self.request))
        return self._made[0]

    @property
    def is_causal(self) -> bool:
        """Whether no mask means a causal one."""
        return bool(self.request.get("allow_is_causal_skip", True))

    def separates(self) -> bool:
        """Whether a token does not see the one before: positions that begin anew were seen by the mask."""
        length, device = self.request["q_length"], torch.device(self.request["device"])
        if self.is_causal or self.request.get("use_vmap") or self.request.get("local_size") == 1 or length < 2:
            return False
        place = torch.arange(1, length, device=device)
        return not bool(as_allows(self.request["mask_function"], device)(place, place - 1).all())

    def documents(self, boundaries: Tensor) -> tuple[PackedRow, Pattern]:
        """The documents and what their tokens see.

        Raises:
            RunError: the mask is none of those that can be kept inside of documents.
        """
        for known, row, pattern in self._rows:
            if known is boundaries:
                return row, pattern
        try:
            row = PackedRow.from_boundaries(boundaries, self.request["q_length"])
        except ValueError as error:
            raise RunError(f"packed attention: {error}") from None
        allows = as_allows(self.request["mask_function"], boundaries.device)
        own = self.request.get("use_vmap")
        found = None if own else row.recognise(allows, self.request.get("local_size"))
        if found is None:
            kind = "a mask of its own" if own else "a mask that is neither causal, nor a sliding window, nor full"
            raise RunError(f"packed attention: the model asks for {kind} (chunks, blocks, images), which is not known")
        self._rows.append((boundaries, row, found))
        return row, found


def packed_mask(batch_size: int, q_length: int, kv_length: int, **request: Any) -> UnmadeMask | Tensor | None:
    """The mask function of `PACKED`: sdpa's mask, unmade for a single row without padding or cache."""
    from transformers.masking_utils import sdpa_mask

    request |= {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
    offsets = (request.get("q_offset", 0), request.get("kv_offset", 0))
    is_whole = all(isinstance(offset, int) and offset == 0 for offset in offsets) and q_length == kv_length > 1
    if batch_size == 1 and is_whole and request.get("attention_mask") is None:
        return UnmadeMask({"device": "cpu", **request})
    mask: Tensor | None = sdpa_mask(**request)
    return mask


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: UnmadeMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function of `PACKED`: inside of documents where the batch has boundaries, else as sdpa does it.

    Args:
        module: the layer that calls.
        query: `[B, H, Q, D]`.
        key: `[B, K, N, D]`.
        value: `[B, K, N, V]`.
        attention_mask: what `packed_mask` returned, or a mask of the model's own.
        dropout: the share of weights that become 0.
        scaling: what products are multiplied by.
        is_causal: None to ask the mask and the layer.
        softcap: the scores' limit.
        s_aux: `[H]`, attention sinks.
        **others: the boundaries of documents, and what has no effect on attention.

    Returns:
        `[B, Q, H, V]`, and no weights.

    Raises:
        RunError: something is asked for that is not known here, or the boundaries did not arrive.
    """
    refuse_unknown(others)
    scoring = Scoring(scaling, softcap, s_aux, dropout)
    boundaries: Tensor | None = others.get("cu_seq_lens_q")
    if boundaries is not None and len(boundaries) > 2:
        if not isinstance(attention_mask, UnmadeMask) or query.shape[0] != 1:
            message = "documents are told to be packed, but the model made no mask for one row without padding or cache"
            raise RunError(f"packed attention: {message} ({type(module).__name__})")
        row, pattern = attention_mask.documents(boundaries)
        if is_causal is not None and is_causal != pattern.causal:
            raise RunError(f"packed attention: is_causal={is_causal} contradicts the mask ({type(module).__name__})")
        return packed_attention(query, key, value, row, pattern, scoring), None
    if isinstance(attention_mask, UnmadeMask):
        if attention_mask.separates():
            message = f"positions begin anew, but 'cu_seq_lens_q' did not reach {type(module).__name__}"
            raise RunError(f"packed attention: {message}")
        is_causal = attention_mask.is_causal if is_causal is None else is_causal
        attention_mask = attention_mask.made()
    if scoring.is_plain:
        return _as_sdpa(module, query, key, value, attention_mask, scoring, is_causal)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    result = scaled_dot_product(query, key, value, attention_mask, causal, scoring)
    return result.transpose(1, 2).contiguous(), None


def refuse_unknown(others: dict[str, Any]) -> None:
    """Raise a RunError for an argument of attention that is set and that nobody here knows."""
    for name, value in others.items():
        if value is not None and name not in BOUNDARIES | WITHOUT_EFFECT:
            raise RunError(f"packed attention does not know '{name}', which the model's attention asks for")
    if others.get("output_attentions"):
        raise RunError("packed attention has no weights to return; leave output_attentions out")


def _as_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scoring: Scoring,
    is_causal: bool | None,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    forward: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    return forward(
        module, query, key, value, mask, dropout=scoring.dropout, scaling=scoring.scaling, is_causal=is_causal
    )
