"""Whether the loss without logits is the loss with them, in models of any architecture."""

import warnings
from dataclasses import dataclass, field

import torch

from dumbo.bridge.head import HeadError, head_shape, leaving_logits
from dumbo.bridge.lazy_logits import LazyLogits
from dumbo.bridge.token_loss import TokenLoss
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.losses.token import count_supervised, next_token_cross_entropy
from tests.architectures import tiny
from tests.architectures.special import INPUTS

LOSS, GRADIENT = 1e-5, 1e-4
"""Relative differences of losses, and of gradients to the largest of all: fixed before anything was compared."""


@dataclass
class Finding:
    """What came out for one architecture."""

    name: str
    model_class: str = ""
    verdict: str = ""
    """`fused`, `held`, `no linear head` or `not built here`; MISMATCH is a fault."""
    reason: str = ""
    """Why it is not fused."""
    steps: str = ""
    """What the model does to its logits, as it was noted."""
    own: str = ""
    """The same of the loss that the model computes itself: `fused`, what needed values, or why there is none."""
    loss: float = 0.0
    gradient: float = 0.0
    """The largest differences."""
    trl: str = ""
    """What TRL's fused head gives: `equal`, `different` or an error."""
    mismatches: list[str] = field(default_factory=list)


def examine(name: str, kind: str = "causal", with_trl: bool = False) -> Finding:
    """Compare the loss of tokens, and the loss of the model itself, with and without logits."""
    found = Finding(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, batch = tiny.build(name, kind), tiny.batch(name)
            found.model_class = type(model).__name__
            found.verdict, found.reason = _head(model)
            logits, total = _stock(model, batch)
        except Exception as error:  # noqa: BLE001 - whatever a model needs beside tokens is a verdict
            if found.verdict != "no linear head":
                found.verdict, found.reason = "not built here", first_line(error)
            return found
        _examine_token_loss(found, model, batch, logits, total)
        if found.verdict != "no linear head":
            _examine_own_loss(found, model, batch)
        if with_trl and name not in INPUTS:
            found.trl = _examine_trl(model, batch)
    if found.mismatches:
        found.verdict, found.reason = "MISMATCH", "; ".join(found.mismatches)
    return found


def _head(model):
    try:
        head_shape(model)
    except HeadError as error:
        return "no linear head", str(error)
    return "", ""


def _stock(model, batch):
    """The logits of a model as it is, and their loss with its gradients."""
    logits = _called(model, {name: value for name, value in batch.items() if name != "labels"}).logits
    if logits.shape[:2] != batch["labels"].shape:
        raise ValueError(f"logits {list(logits.shape)} of tokens {list(batch['labels'].shape)}")
    loss = next_token_cross_entropy(logits, batch["labels"]) / count_supervised(batch["labels"])
    return logits.detach(), (loss.detach(), gradients(loss, model))


def _called(model, batch):
    torch.manual_seed(0)  # dropout that no option switches off
    return model(**batch)


def gradients(loss, model):
    """Of all parameters that the loss depends on."""
    model.zero_grad()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def _examine_token_loss(found, model, batch, stock_logits, stock):
    lines, seen = [], []
    compute = TokenLoss(LossOptions(), lines.append, worthwhile_bytes=0)
    handle = model.register_forward_hook(lambda module, inputs, out: seen.append(out.logits))
    torch.manual_seed(0)
    loss = compute(model, batch, count_supervised(batch["labels"]))
    handle.remove()
    _compare(found, "the loss of tokens", (loss.detach(), gradients(loss, model)), stock)
    logits = seen[-1]
    if isinstance(logits, LazyLogits) and logits.reason is None:
        found.verdict = "fused"
        found.steps = ", ".join(step.kind for step in logits.linear.steps)
        if not torch.allclose(logits.values_of("the comparison"), stock_logits, rtol=1e-4, atol=1e-5):
            found.mismatches.append("the logits")
    elif not found.verdict:
        found.verdict = "held"
        found.reason = logits.reason if isinstance(logits, LazyLogits) else lines[-1]


def _examine_own_loss(found, model, batch):
    try:
        loss = getattr(_called(model, batch), "loss", None)
    except Exception as error:  # noqa: BLE001 - without images, say
        found.own = f"fails with whole logits too, {first_line(error)}"
        return
    if loss is None:
        found.own = "it has none"
        return
    stock = (loss.detach(), gradients(loss, model))
    with leaving_logits(model):
        out = _called(model, batch)
    _compare(found, "the model's own loss", (out.loss.detach(), gradients(out.loss, model)), stock)
    is_lazy = isinstance(out.logits, LazyLogits)
    found.own = "fused" if is_lazy and out.logits.reason is None else out.logits.reason if is_lazy else "values"


def _examine_trl(model, batch):
    """Without the auxiliary loss of experts, which its fused head takes from fields that few configurations have."""
    from trl.trainer.utils import add_fused_lm_head

    for config in tiny.configs(model.config):
        if hasattr(config, "output_router_logits"):
            config.output_router_logits = False
    _, stock = _stock(model, batch)
    try:
        add_fused_lm_head(model)
        loss = _called(model, {**batch, "fused_lm_head": True}).loss
        loss_error, gradient_error = differences((loss.detach(), gradients(loss, model)), stock)
    except Exception as error:  # noqa: BLE001 - of whatever kind
        return first_line(error)
    return "equal" if loss_error <= LOSS and gradient_error <= GRADIENT else "different"


def _compare(found, what, ours, theirs):
    loss, gradient = differences(ours, theirs)
    found.loss, found.gradient = max(found.loss, loss), max(found.gradient, gradient)
    if not (loss <= LOSS and gradient <= GRADIENT):
        found.mismatches.append(f"{what}: loss {loss:.1e}, gradients {gradient:.1e}")
    elif ours[1].keys() != theirs[1].keys():
        found.mismatches.append(f"{what}: gradients of {sorted(ours[1].keys() ^ theirs[1].keys())[:3]}")


def differences(ours, theirs):
    """Of losses, relative; of gradients, relative to the largest number of all of them."""
    loss = float((ours[0] - theirs[0]).abs() / theirs[0].abs().clamp_min(1e-6))
    largest = max(float(gradient.abs().max()) for gradient in theirs[1].values() if gradient.numel())
    both = [(ours[1][name], gradient) for name, gradient in theirs[1].items() if name in ours[1] and gradient.numel()]
    return loss, max(float((one - other).abs().max()) for one, other in both) / largest


def first_line(error):
    """And the one below where it only announces that."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {text.rstrip('. ')}" if text else type(error).__name__
