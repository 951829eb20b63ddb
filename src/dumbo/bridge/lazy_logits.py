"""Logits that a model passes on and nobody has computed: what is done to them is noted, for a loss that needs none.

A model's head returns them, and the model goes on with them as with any tensor. Views of tokens, scaling, capping and
casts are noted. Whatever else is asked of them has their values, which are then computed as the head would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.autograd.function import once_differentiable
from torch.nn.parallel.distributed import _DDPSink
from torch.utils._pytree import tree_map

from dumbo.bridge.logit_views import indexed, viewed
from dumbo.kernels.linear_cross_entropy import LossOptions, linear_cross_entropy
from dumbo.kernels.linear_logits import LinearLogits, Step


class LazyLogits(Tensor):
    """[..., vocabulary], of which only shape, type and device are there, until values are asked for."""

    _linear: LinearLogits
    _reason: str | None
    _made: Tensor | None
    _sharing: list[ref[LazyLogits]]
    """All that are views of the same values."""

    @staticmethod
    def of(linear: LinearLogits) -> LazyLogits:
        """The logits that `linear` makes, as a result that leads to its tensors for who follows the graph."""
        made: LazyLogits = _Carried.apply(linear, *linear.tensors)  # type: ignore[no-untyped-call]
        return made

    @property
    def linear(self) -> LinearLogits:
        """What would make them; without gradients where they have none."""
        if self.requires_grad:
            return self._linear
        return self._linear.replaced([tensor.detach() for tensor in self._linear.tensors])

    @property
    def reason(self) -> str | None:
        """What needed their values; None as long as nothing did."""
        return self._reason or (_leads_elsewhere(self) and type(self.grad_fn).__name__) or None

    def values_of(self, reason: str) -> Tensor:
        """The logits themselves."""
        if self._made is None:
            self._reason = self.reason or reason
            with torch.set_grad_enabled(self.requires_grad):  # who asks first may want no gradients, others do
                if _leads_elsewhere(self):
                    with DisableTorchFunctionSubclass():
                        self._made = torch.clone(self)
                else:
                    self._made = self.linear.materialise()
        return self._made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What is done with them is noted, or has their values."""
        kwargs = kwargs or {}
        if func in _FACTS:
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        handle, lazy = _NOTED.get(func), _lazy((*args, *kwargs.values()))
        if handle is not None and args and all(logits.reason is None for logits in lazy):
            result = handle(*args, **kwargs)
            if result is not None:
                return result
        name = getattr(func, "__name__", str(func))
        before = [_version(logits.values_of(name)) for logits in lazy]
        result = func(*_with_values(args, name), **_with_values(kwargs, name))
        for logits, version in zip(lazy, before, strict=True):
            if _version(logits.values_of(name)) != version:
                _change(logits, None)
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """For what takes no notice of Python's seams; gradients come back through `_Carried`."""
        if func._schema.is_mutable and _lazy(args[:1]):
            raise RuntimeError(f"{func} would change logits in place that are left to the loss")

        def plain(value: Any) -> Any:
            if not isinstance(value, LazyLogits):
                return value
            value._reason = value.reason or str(func)
            # No graph is recorded here, so that what is made cannot be kept.
            return (value.linear.materialise() if value._made is None else value._made).detach()

        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))

    def __repr__(self) -> str:  # type: ignore[override]
        """Without the values."""
        with DisableTorchFunctionSubclass():
            return f"LazyLogits({list(self.shape)}, steps={[step.kind for step in self.linear.steps]})"


class _Carried(torch.autograd.Function):
    """Makes the wrapper a result of the tensors that it stands for: DDP follows the graph from what a model returns."""

    @staticmethod
    def forward(ctx: Any, linear: LinearLogits, *tensors: Tensor) -> LazyLogits:
        shape = (*linear.hidden[0].shape[:-1], linear.size)
        device, dtype = linear.hidden[0].device, linear.result_dtype
        made: LazyLogits = torch.Tensor._make_wrapper_subclass(LazyLogits, shape, dtype=dtype, device=device)
        made._linear, made._reason, made._made, made._sharing = linear, None, None, [ref(made)]
        ctx.linear = linear.replaced(())
        ctx.save_for_backward(*tensors)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if ctx.linear is None:
            raise RuntimeError("the logits were changed in place, and then used by what sees only how they were made")
        needs = ctx.needs_input_grad[1:]
        saved = zip(ctx.saved_tensors, needs, strict=True)
        tensors = [tensor.detach().requires_grad_(need) for tensor, need in saved]
        with torch.enable_grad():
            values = ctx.linear.replaced(tensors).materialise()
        needed = [tensor for tensor in tensors if tensor.requires_grad]
        found = iter(torch.autograd.grad(values, needed, upstream))
        return None, *(next(found) if need else None for need in needs)


def _lazy(args: Sequence[Any]) -> list[LazyLogits]:
    return [value for value in args if isinstance(value, LazyLogits)]


def _with_values(value: Any, reason: str) -> Any:
    if isinstance(value, LazyLogits):
        return value.values_of(reason)
    if type(value) in (list, tuple):
        return type(value)(_with_values(item, reason) for item in value)
    if type(value) is dict:
        return {name: _with_values(item, reason) for name, item in value.items()}
    return value


def _leads_elsewhere(logits: LazyLogits) -> bool:
    """Whether a function of somebody passes them on, and is to have their gradient.

    DDP's own only passes it on, and DDP does without that, except for a static graph, which `head_shape` refuses.
    """
    return logits.grad_fn is not None and type(logits.grad_fn) not in (_Carried._backward_cls, _DDPSink._backward_cls)


def _version(values: Tensor) -> int:
    return 0 if values.is_inference() else values._version


def _change(logits: LazyLogits, linear: LinearLogits | None) -> None:
    """What was made of `logits` in place: None for what cannot be said, in which case they have their values."""
    if any(other() is not None and other() is not logits for other in logits._sharing):
        raise RuntimeError("logits that are left to the loss were changed in place while there are views of them")
    context: Any = logits.grad_fn
    kind = type(context)
    if context is not None and kind is not _Carried._backward_cls:
        raise RuntimeError("logits that are left to the loss were changed in place after a function of gradients")
    if linear is not None:
        logits._linear = linear
    if context is not None:
        context.linear = None if linear is None else linear.replaced(())


def _number(value: Any, logits: Tensor) -> float | None:
    """A constant by which nothing but the values changes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, Tensor) or isinstance(value, LazyLogits) or value.requires_grad or value.is_complex():
        return None
    is_of_one = value.dim() == 0 or (value.numel() == 1 and value.dim() <= logits.dim() and value.dtype == logits.dtype)
    return float(value) if is_of_one else None


def _step(logits: LazyLogits, step: Step) -> LazyLogits:
    return LazyLogits.of(replace(logits.linear, steps=(*logits.linear.steps, step)))


# The names of parameters are PyTorch's, by which they may be given.


def _scale(input: Any, other: Any, **named: Any) -> LazyLogits | None:
    logits, by = (input, other) if isinstance(input, LazyLogits) else (other, input)
    factor = _number(by, logits)
    return None if factor is None or named else _step(logits, Step("scale", factor))


def _divide(input: Any, other: Any, **named: Any) -> LazyLogits | None:
    divisor = _number(other, input) if isinstance(input, LazyLogits) else None
    return None if not divisor or named else _step(input, Step("scale", 1 / divisor))


def _in_place(handle: Callable[..., LazyLogits | None]) -> Callable[..., LazyLogits | None]:
    def change(input: Any, *args: Any, **named: Any) -> LazyLogits | None:
        found = handle(input, *args, **named) if isinstance(input, LazyLogits) else None
        if found is None:
            return None
        _change(input, found.linear)
        return input  # type: ignore[no-any-return]

    return change


def _tanh(input: LazyLogits, **named: Any) -> LazyLogits | None:
    return None if named else _step(input, Step("tanh"))


def _add(input: Any, other: Any, **named: Any) -> LazyLogits | None:
    """A head and a low-rank update of it: the scale of the update goes into its hidden states."""
    if named or not (isinstance(input, LazyLogits) and isinstance(other, LazyLogits)) or input.shape != other.shape:
        return None
    head, update = input.linear, other.linear
    is_scaled = all(step.kind == "scale" for step in update.steps)
    if head.steps or not is_scaled or update.bias is not None or head.result_dtype != update.result_dtype:
        return None
    factor = prod(step.value for step in update.steps)
    hidden = [state * factor if factor != 1.0 else state for state in update.hidden]
    dtype = head.result_dtype
    return LazyLogits.of(
        replace(head, hidden=(*head.hidden, *hidden), weights=(*head.weights, *update.weights), dtype=dtype)
    )


def _to(logits: LazyLogits, *args: Any, **named: Any) -> LazyLogits | None:
    dtype = logits.dtype
    for value in (*args, *named.values()):
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, Tensor):
            if value.device != logits.device:
                return None
            dtype = value.dtype
        elif isinstance(value, str | torch.device):
            if torch.empty(0, device=value).device != logits.device:
                return None
        elif not isinstance(value, bool) and value is not None:
            return None
    return _cast(logits, dtype)


def _cast(logits: LazyLogits, dtype: torch.dtype, **named: Any) -> LazyLogits | None:
    if named or not dtype.is_floating_point:
        return None
    return logits if dtype == logits.dtype else _step(logits, Step("cast", dtype))


def _detach(input: LazyLogits) -> LazyLogits:
    linear = input.linear
    return _shared(input, linear.replaced([tensor.detach() for tensor in linear.tensors]))


def _with_hidden(logits: LazyLogits, change: Callable[[Tensor], Tensor]) -> LazyLogits:
    hidden = tuple(change(state) for state in logits.linear.hidden)
    return _shared(logits, replace(logits.linear, hidden=hidden))


def _shared(logits: LazyLogits, linear: LinearLogits) -> LazyLogits:
    """A view."""
    view = LazyLogits.of(linear)
    logits._sharing = [other for other in logits._sharing if other() is not None]
    logits._sharing.append(ref(view))
    view._sharing = logits._sharing
    return view


def _view(logits: LazyLogits, *shape: Any, **named: Any) -> LazyLogits | None:
    found = None if named else viewed(logits.linear, shape)
    return None if found is None else _shared(logits, found)


def _flatten(input: LazyLogits, start_dim: int = 0, end_dim: int = -1) -> LazyLogits | None:
    first, last = start_dim % input.dim(), end_dim % input.dim()
    return None if last == input.dim() - 1 else _with_hidden(input, lambda state: state.flatten(first, last))


def _squeeze(input: LazyLogits, dim: Any = None) -> LazyLogits | None:
    if not isinstance(dim, int) or dim % input.dim() == input.dim() - 1:
        return None
    return _with_hidden(input, lambda state: state.squeeze(dim % input.dim()))


def _index(logits: LazyLogits, index: Any) -> LazyLogits | None:
    found = indexed(logits.linear, index)
    return None if found is None else _shared(logits, found)


def _register_hook(logits: LazyLogits, hook: Callable[..., Any]) -> Any:
    """FSDP wants to know when the backward pass comes to its module, whatever the gradient: it does so by way of the
    hidden states."""
    owner = getattr(hook, "__self__", None)
    states = [state for state in logits.linear.hidden if state.requires_grad]
    if not states or not type(owner).__module__.startswith("torch.distributed.fsdp."):
        return None
    return states[0].register_hook(hook)  # type: ignore[no-untyped-call]


def _cross_entropy(
    logits: Any,
    target: Tensor,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """As PyTorch's, for sums and means over tokens: for models that compute their own loss."""
    old = weight is not None or size_average is not None or reduce is not None
    if not isinstance(logits, LazyLogits) or old or reduction not in ("sum", "mean") or logits.dim() != 2:
        return None
    if target.is_floating_point() or target.dim() != 1:
        return None
    kept = target != ignore_index
    total = linear_cross_entropy(logits.linear.rows(kept), target[kept], LossOptions(label_smoothing)).total
    total = total.to(torch.promote_types(logits.linear.result_dtype, total.dtype))
    return total if reduction == "sum" else total / kept.sum()


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


_FACTS = frozenset(
    {
        *map(_getter, ("shape", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_cpu", "ndim", "grad_fn")),
        *map(_getter, ("_base", "is_leaf", "is_meta", "is_sparse", "is_mps", "is_quantized", "is_nested")),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.__len__, Tensor.get_device),
        *(Tensor.is_floating_point, torch.is_floating_point, torch.is_tensor, Tensor.is_contiguous, Tensor.is_complex),
        *(Tensor.element_size, torch.numel),
    }
)
"""What can be told without values."""

_HANDLERS: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
    (_scale, (Tensor.mul, torch.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply)),
    (_divide, (Tensor.div, torch.div, Tensor.__truediv__, torch.true_divide, Tensor.true_divide, torch.divide)),
    (_in_place(_scale), (Tensor.mul_, Tensor.__imul__)),
    (_in_place(_divide), (Tensor.div_, Tensor.__itruediv__)),
    (_tanh, (torch.tanh, Tensor.tanh, F.tanh)),
    (_add, (Tensor.add, torch.add, Tensor.__add__, Tensor.__radd__)),
    (_to, (Tensor.to, Tensor.type_as)),
    (partial(_cast, dtype=torch.float32), (Tensor.float,)),
    (partial(_cast, dtype=torch.float64), (Tensor.double,)),
    (partial(_cast, dtype=torch.bfloat16), (Tensor.bfloat16,)),
    (partial(_cast, dtype=torch.float16), (Tensor.half,)),
    (lambda input, **named: None if named else LazyLogits.of(input.linear), (Tensor.clone, torch.clone)),
    (lambda logits, **named: None if named else _shared(logits, logits.linear), (Tensor.contiguous,)),
    (lambda logits, **named: None if named or logits.device.type != "cpu" else logits, (Tensor.cpu,)),
    (_view, (Tensor.view, Tensor.reshape, torch.reshape, Tensor.view_as)),
    (_flatten, (torch.flatten, Tensor.flatten)),
    (_squeeze, (torch.squeeze, Tensor.squeeze)),
    (_index, (Tensor.__getitem__,)),
    (_detach, (Tensor.detach, torch.detach)),
    (_register_hook, (Tensor.register_hook,)),
    (_cross_entropy, (F.cross_entropy,)),
)
_NOTED = MappingProxyType({function: handle for handle, functions in _HANDLERS for function in functions})
"""What is noted; a handler returns None where it would need values."""
