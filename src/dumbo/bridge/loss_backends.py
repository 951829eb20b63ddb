"""Other libraries' kernels for the cross entropy of logits that are never held, where they can make a model's."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from dumbo.kernels.linear_cross_entropy import LinearLoss, LossOptions
from dumbo.kernels.linear_logits import LinearLogits


class UnfitError(Exception):
    """The kernel cannot make these logits, or this loss of them; the text says why."""


def liger_cross_entropy(
    logits: LinearLogits,
    targets_N: Tensor,
    options: LossOptions,
    weights_N: Tensor | None = None,  # noqa: N803
    use_token_scaling: bool = False,
) -> LinearLoss:
    """As `linear_cross_entropy`, in the kernels of `liger_kernel`.

    `use_token_scaling` multiplies each token's loss by its predicted probability, which is not differentiated.

    Raises:
        UnfitError: it cannot do that.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden, weight, bias, cap = _parts(logits, "Liger's kernel")
    _refuse(options.z_loss, "Liger's kernel", "z_loss")
    _refuse(options.gradient_filter, "Liger's kernel", "gradient_filter")
    _refuse(options.with_metrics, "Liger's kernel", "token_metrics")
    _refuse_weights("Liger's kernel", options, weights_N)
    if not len(targets_N):
        return LinearLoss(hidden.float().sum() + weight.float().sum() * 0, None, None)
    if torch.is_grad_enabled() and weight.requires_grad and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()  # It computes no gradient at all where its input needs none.
    total: Tensor = liger_fused_linear_cross_entropy(
        hidden,
        weight,
        targets_N,
        bias=bias,
        reduction="sum",
        softcap=cap,
        label_smoothing=options.label_smoothing,
        use_token_scaling=use_token_scaling,
        accum_dtype=torch.float32,
    )
    return LinearLoss(total, None, None)


def apple_cross_entropy(
    logits: LinearLogits,
    targets_N: Tensor,
    options: LossOptions,
    weights_N: Tensor | None = None,  # noqa: N803
    **more: Any,
) -> LinearLoss:
    """As `linear_cross_entropy`, in the kernels of `cut_cross_entropy` (arXiv 2411.09009), which skip parts of the
    softmax that 16 bits would round to nothing. `more` goes to its function.

    Raises:
        UnfitError: it cannot do that.
    """
    from cut_cross_entropy import linear_cross_entropy

    known = inspect.signature(linear_cross_entropy).parameters
    hidden, weight, bias, cap = _parts(logits, "Apple's kernel")
    if bias is not None and "bias" not in known:
        raise UnfitError("Apple's kernel has no bias in the version that is installed")
    _refuse(options.label_smoothing, "Apple's kernel", "label_smoothing_factor")
    _refuse(options.z_loss, "Apple's kernel", "z_loss")
    _refuse(options.with_metrics, "Apple's kernel", "token_metrics")
    _refuse_weights("Apple's kernel", options, weights_N)
    if not len(targets_N):
        return LinearLoss(hidden.float().sum() + weight.float().sum() * 0, None, None)
    if options.gradient_filter:
        more["filter_eps"] = options.gradient_filter
    # Version 25.1.1 has none of these.
    more |= {name: True for name in ("accum_e_fp32", "accum_c_fp32") if name in known}
    if bias is not None:
        more["bias"] = bias
    total: Tensor = linear_cross_entropy(hidden, weight, targets_N, softcap=cap, reduction="sum", **more)
    return LinearLoss(total, None, None)


def _parts(logits: LinearLogits, who: str) -> tuple[Tensor, Tensor, Tensor | None, float | None]:
    """Hidden states, weight, bias and soft cap that make the same logits."""
    if len(logits.hidden) > 1:
        raise UnfitError(f"{who} knows one matrix, and the output head has a low-rank update")
    found = logits.scale_and_cap()
    if found is None or (logits.bias is not None and found[0] != 1.0):
        raise UnfitError(f"{who} cannot do what the model does to its logits")
    scale, cap = found
    hidden, weight = logits.hidden[0], logits.weights[0]
    if logits.dtype is not None:
        hidden, weight = hidden.to(logits.dtype), weight.to(logits.dtype)
    return hidden * scale if scale != 1.0 else hidden, weight, logits.bias, cap


def _refuse_weights(who: str, options: LossOptions, weights: Tensor | None) -> None:
    if options.weigh is not None:
        raise UnfitError(f"{who} cannot weigh tokens by what is predicted for them")
    if weights is not None:
        raise UnfitError(f"{who} knows no weights of rows")


def _refuse(value: Any, who: str, name: str) -> None:
    if value:
        raise UnfitError(f"{who} has no {name}")
