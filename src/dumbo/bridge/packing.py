"""Switches a model to attention that keeps packed documents apart, having proven on the model itself that it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dumbo.bridge.attention import PACKED, register_packed_attention
from dumbo.bridge.recurrent import SeparateDocuments, recurrent_mixers
from dumbo.errors import RunError

RECURRENT = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba", "recurrent"})
"""Kinds of layers, in a configuration's `layer_types`, that carry a state from token to token."""

PROBED = (7, 5)
"""Lengths of the two documents of the probe."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, that is rounding in float32."""

HALF_TOLERANCE = 0.05
"""The same in half precision, where other shapes add up in other orders."""


def packed_batch_inputs(input_ids: Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    """What a model's forward pass is given for a packed row `input_ids [1, T]` of documents of these lengths.

    Positions begin anew with each document. The boundaries (int32 `[documents + 1]`) and the longest length go by the
    names that Transformers' flash attention reads, the number of each token's document (int32 `[1, T]`) by the one
    that its recurrent layers read. There is no `attention_mask` and no cache.

    Raises:
        ValueError: the lengths are not those of documents that fill the row.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"packed documents lie in one row [1, T], not in {list(input_ids.shape)}")
    if not lengths or min(lengths) < 1 or sum(lengths) != input_ids.shape[1]:
        raise ValueError(f"documents of {list(lengths)} tokens do not fill a row of {input_ids.shape[1]}")
    device = input_ids.device
    each = torch.tensor(list(lengths), device=device)
    ends = each.cumsum(0)
    starts = torch.repeat_interleave(ends - each, each)
    boundaries = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    number = torch.repeat_interleave(torch.arange(len(each), device=device), each)
    return {
        "input_ids": input_ids,
        "position_ids": (torch.arange(len(starts), device=device) - starts)[None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "seq_idx": number[None].to(torch.int32),
        "use_cache": False,
    }


@dataclass(frozen=True)
class Packing:
    """A model that was prepared for packed rows."""

    model: Any
    implementation: str
    """The attention implementation for packed rows."""
    ordinary: str
    """The one that the model came with."""
    separate: SeparateDocuments | None = None
    """What makes recurrent layers compute each document by itself; None where they do so anyway, or are none."""

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """The model as it came, for a while: to generate, and to evaluate padded batches."""
        _set_attention(self.model, self.ordinary)
        if self.separate is not None:
            self.separate.enabled = False
        try:
            yield
        finally:
            _set_attention(self.model, self.implementation)
            if self.separate is not None:
                self.separate.enabled = True


def prepare_for_packing(model: Any, attention: str | None = None, autocast: torch.dtype | None = None) -> Packing:
    """Switch `model` to layers that keep packed documents apart, and prove on it that nothing leaks.

    Recurrent layers are left alone where their kernels keep documents apart. Else they are given each document by
    itself, which needs no kernels.

    Call it where the model computes (a kernel for GPUs cannot be proven on a CPU). None takes our own attention, or
    the model's where that is flash attention; other names are Transformers' ('sdpa' and 'eager' make a mask of all
    tokens by all tokens from the positions).

    `autocast` is the type that the run's autocast computes in, None for a run without. The proof is made under it, as
    kernels are chosen by the type, and flash attention takes weights in float32 under autocast alone.

    Raises:
        RunError: the model's layers cannot keep documents apart; the message names the model's type and says why.
            The model then has the attention that it came with.
    """
    ordinary = _attention_of(model)
    implementation = attention or (ordinary if "flash" in ordinary else register_packed_attention())
    if implementation == PACKED:
        register_packed_attention()
    SeparateDocuments.remove_from(model)
    try:
        _set_attention(model, implementation)
        return Packing(model, implementation, ordinary, _isolate(model, autocast))
    except BaseException:
        _set_attention(model, ordinary)
        raise


def _isolate(model: Any, autocast: torch.dtype | None) -> SeparateDocuments | None:
    """Prove isolation as the model is; where it has recurrent layers and leaks, with documents given one by one."""
    if recurrent_mixers(model):
        with contextlib.suppress(RunError):
            prove_isolation(model, autocast)
            return None
    separate = SeparateDocuments.install(model)
    try:
        prove_isolation(model, autocast)
    except BaseException:
        if separate is not None:
            separate.remove()
        raise
    return separate


def prove_isolation(model: Any, autocast: torch.dtype | None = None) -> None:
    """Raise a RunError unless two made-up documents come out of `model` packed as they do alone.

    The model computes as it will in training: under autocast to the type `autocast`, unless that is None.

    Two things are measured in evaluation mode: how far packed logits are from those of the documents alone, and
    whether other tokens in one document change the logits of the other. Where the configuration names recurrent
    layers the second must not be by a single bit, as a state may decay to less than rounding. If it is, because
    experts that have other tokens to multiply round otherwise, then all gradients of one document's logits by the
    other's embedded tokens must be zero.
    """
    was_training = model.training
    model.eval()
    for mixer in recurrent_mixers(model).values():
        mixer.training = True  # they have other kernels for training; what they contain stays as it is
    try:
        found = _measure(model, autocast)
    except RunError as error:
        raise RunError(f"{_refusal(model)}: {error}") from None
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        said = str(error).strip().splitlines()
        what = said[0].rstrip(".") if said else type(error).__name__
        raise RunError(f"{_refusal(model)}: {what}{_reason(model)}") from error
    finally:
        model.train(was_training)
    computing = autocast or next(iter(model.parameters())).dtype
    tolerance = found.scale * (HALF_TOLERANCE if computing in (torch.float16, torch.bfloat16) else TOLERANCE)
    if not (found.leak <= tolerance and found.is_exact):
        what = f"a token of one changes the logits of another by {found.leak:.2g}"
        raise RunError(f"{_refusal(model)}: {what}{_reason(model)}")
    if not found.apart <= tolerance:
        what = f"packed logits differ by {found.apart:.2g} from a document's own"
        raise RunError(f"{_refusal(model)}: {what}{_reason(model)}")


@dataclass(frozen=True)
class _Measured:
    """What became of two made-up documents in a packed row."""

    scale: float
    """The largest logit."""
    leak: float
    """The largest change of a logit by tokens of the other document."""
    is_exact: bool
    """Whether, in a model with recurrent layers, not the smallest part of the leak can be a state's."""
    apart: float
    """The largest difference between a packed logit and that of the document alone."""


def _measure(model: Any, autocast: torch.dtype | None) -> _Measured:
    first, second, other_first, other_second = _made_up(model)
    with torch.no_grad():
        alone = torch.cat([_logits(model, autocast, tokens) for tokens in (first, second)])
        packed = _logits(model, autocast, first, second)
        changed = [_logits(model, autocast, *pair) for pair in ((other_first, second), (first, other_second))]
    cut = len(first)
    leaks = [(changed[0] - packed)[cut:], (changed[1] - packed)[:cut]]
    leak = max(float(difference.abs().max()) for difference in leaks)
    is_exact = not _recurrent(model) or leak == 0.0 or _gradients_are_apart(model, autocast, first, second)
    return _Measured(float(alone.abs().max()), leak, is_exact, float((packed - alone).abs().max()))


def _gradients_are_apart(model: Any, autocast: torch.dtype | None, first: Tensor, second: Tensor) -> bool:
    """Whether no embedded token of one document has a gradient, not the smallest, from logits of the other."""
    total, cut = len(first) + len(second), len(first)
    embedded: list[Tensor] = []

    def begin_here(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if output.shape[:2] != (1, total):
            return None
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    handles = [table.register_forward_hook(begin_here) for table in tables]
    try:
        with torch.enable_grad():
            logits = _logits(model, autocast, first, second)
            for own, other in ((slice(0, cut), slice(cut, None)), (slice(cut, None), slice(0, cut))):
                found = torch.autograd.grad(
                    logits[own].logsumexp(-1).sum(), embedded, retain_graph=True, allow_unused=True
                )
                crossed = [gradient[0, other] for gradient in found if gradient is not None]
                if not crossed or any(bool(gradient.any()) for gradient in crossed):
                    return False
    finally:
        for handle in handles:
            handle.remove()
    return True


def _made_up(model: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two documents and two others of the same lengths, which share no token in any place."""
    size = model.get_input_embeddings().weight.shape[0]
    device = model.get_input_embeddings().weight.device
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randint(size, (length,), generator=draw) for length in PROBED)
    tokens = (first, second, (first + 1 + size // 3) % size, (second + 1 + size // 3) % size)
    first, second, other_first, other_second = (ids.to(device) for ids in tokens)
    return first, second, other_first, other_second


def _logits(model: Any, autocast: torch.dtype | None, *documents: Tensor) -> Tensor:
    """Float32 `[T, vocabulary]`."""
    row = torch.cat(documents)[None]
    inputs = packed_batch_inputs(row, [len(tokens) for tokens in documents])
    if len(documents) == 1:
        inputs = {"input_ids": row, "use_cache": False}
    # One autocast for each pass: it keeps weights in its type until its end, without gradients if they were off.
    with torch.autocast(row.device.type, autocast) if autocast else contextlib.nullcontext():
        logits: Tensor = model(**inputs).logits
    return logits[0].float()


def _refusal(model: Any) -> str:
    return f"packing: a {model.config.model_type} model cannot keep documents apart"


def _reason(model: Any) -> str:
    kinds = _recurrent(model)
    return f"; its layers of the kinds {', '.join(kinds)} carry a state across documents" if kinds else ""


def _recurrent(model: Any) -> list[str]:
    """The kinds of recurrent layers that the configuration names."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    return sorted(RECURRENT.intersection(kinds))


def _attention_of(model: Any) -> str:
    return str(model.config.get_text_config()._attn_implementation)


def _set_attention(model: Any, name: str) -> None:
    """Give the language model, and no tower for images or sounds, the implementation `name`."""
    config = model.config
    text = config.get_text_config()
    if text._attn_implementation == name:
        return
    parts = [part for part in getattr(config, "sub_configs", {}) if getattr(config, part, None) is text]
    try:
        model.set_attn_implementation({parts[0]: name} if parts else name)
    except (ValueError, ImportError) as error:
        raise RunError(f"{_refusal(model)} by '{name}': {str(error).split('. ')[0]}") from error
    if text._attn_implementation != name:
        message = f"its layers do not take an attention implementation from outside, such as '{name}'"
        raise RunError(f"{_refusal(model)}: {message}")
