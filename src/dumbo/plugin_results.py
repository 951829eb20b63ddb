"""What hooks may return: checked where it is returned, so that the plugin is named and not what stumbles later."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.data.columns import column_fault
from dumbo.errors import DataError, PluginError, RunError
from dumbo.metrics import MetricsCollector
from dumbo.plugin_checks import parameters_of, takes
from dumbo.plugin_interfaces import Interface

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from dumbo.data.records import Example
    from dumbo.job import Batch, Collator, Evaluator, Loss, TokenWeights

_FUNCTIONS = frozenset(
    {"build_loss", "build_token_weights", "build_collator", "build_data_format", "build_train_format"}
    | {"build_evaluator"}
)
_TOKENS = ("input_ids", "attention_mask", "labels")
"""What of a batch has a value for each token."""
_METHODS = (
    ("patch_model", "named_parameters"),
    ("load_model", "named_parameters"),
    ("transform_dataset", "__getitem__"),
    ("after_train", "folder"),
    ("patch_tokenizer", "get_vocab"),
    ("build_generator", "answers"),
    ("build_trainer", "train"),
    ("build_trainer", "save_model"),
    ("build_optimizer", "param_groups"),
    ("build_scheduler", "get_last_lr"),
)
"""An attribute that each of these results must have."""
_EVENTS = ("on_init_end", "on_train_begin", "on_step_end", "on_log", "on_train_end")
"""Some of what every `TrainerCallback` has."""


def check_result(name: str, spec: Interface, result: Any) -> None:
    """Raise where the hook of `spec` returned something that the run cannot use.

    Raises:
        PluginError: what was returned, and what must be.
    """
    if result is None:
        word = "yield" if spec.hook == "read" else "return"
        raise _wrong(name, spec, "None", f" (did you forget '{word}'?)")
    if spec.hook in _FUNCTIONS and not callable(result):
        raise _wrong(name, spec, shown(result))
    if spec.hook in ("load_kwargs", "state_dict", "learning_rate_factors") and not isinstance(result, Mapping):
        raise _wrong(name, spec, shown(result))
    if spec.hook == "read" and not isinstance(result, Iterable):
        raise _wrong(name, spec, shown(result))
    if spec.hook == "get_callbacks":
        _check_callbacks(name, spec, result)
    if spec.hook == "get_metrics_collector":
        _check_collector(name, spec, result)
    for hook, attribute in _METHODS:
        if hook == spec.hook and not hasattr(result, attribute):
            raise _wrong(name, spec, shown(result))
    if spec.hook == "run_command" and not isinstance(result, int):
        raise _wrong(name, spec, shown(result))


def _wrong(name: str, spec: Interface, returned: str, more: str = "") -> PluginError:
    verb = "yield" if spec.hook == "read" else "return"
    return PluginError(f"plugin '{name}': {spec.hook} returned {returned}; it must {verb} {spec.returns}{more}")


def shown(result: Any) -> str:
    """What something is, in a few words: `None`, `a dict`, `the class Watch`."""
    if result is None:
        return "None"
    if isinstance(result, type):
        return f"the class {result.__name__}"
    kind = type(result).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _check_callbacks(name: str, spec: Interface, result: Any) -> None:
    if _is_callback(result):
        raise _wrong(name, spec, "one callback", f": write [{type(result).__name__}(...)]")
    if not isinstance(result, Sequence) or isinstance(result, str):
        raise _wrong(name, spec, shown(result))
    for callback in result:
        if isinstance(callback, type):
            kind = callback.__name__
            raise _wrong(name, spec, f"a list with the class {kind}", f": write {kind}(), not {kind}")
        if not _is_callback(callback):
            raise _wrong(name, spec, f"a list with {shown(callback)}")


def _is_callback(value: Any) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, event, None)) for event in _EVENTS)


def _check_collector(name: str, spec: Interface, result: Any) -> None:
    kind = type(result).__name__
    if isinstance(result, type) and issubclass(result, MetricsCollector):
        raise _wrong(name, spec, f"the class {result.__name__}", f": write {result.__name__}()")
    if not isinstance(result, MetricsCollector):
        raise _wrong(name, spec, shown(result))
    if getattr(result.log_metrics, "__func__", None) is MetricsCollector.log_metrics:
        raise PluginError(f"plugin '{name}': its collector {kind} has no method log_metrics(self, metrics, step)")
    for hook, count, words in (("log_metrics", 2, "metrics, step"), ("open", 1, "run"), ("close", 1, "outcome")):
        method = getattr(result, hook)
        if not takes(method, count):
            message = f"plugin '{name}': {kind}.{hook} is called with ({words}) and takes {parameters_of(method)}"
            raise PluginError(message)


def checked_loss(name: str, loss: Loss) -> Loss:
    """The loss of plugin `name`, with what it returns checked at each call.

    Raises:
        PluginError: it does not take three arguments.
    """
    if not takes(loss, 3):
        message = f"the loss takes {parameters_of(loss)}, must take (model, batch, num_items)"
        raise PluginError(f"plugin '{name}': {message}")

    def call(model: Module, batch: Batch, num_items: Tensor) -> Tensor:
        result = loss(model, batch, num_items)
        fault = _loss_fault(result, model)
        if fault:
            raise PluginError(f"plugin '{name}': the loss returned {fault}; it must return a scalar tensor")
        return result

    return call


def checked_token_weights(name: str, weigh: TokenWeights) -> TokenWeights:
    """The weights of tokens of plugin `name`, with what it returns checked at each call.

    Raises:
        PluginError: it does not take two arguments.
    """
    if not takes(weigh, 2):
        message = f"what weighs tokens takes {parameters_of(weigh)}, must take (logits, log_probabilities)"
        raise PluginError(f"plugin '{name}': {message}")

    def call(logits: Tensor, log_probabilities: Tensor) -> Tensor:
        import torch

        result: Any = weigh(logits, log_probabilities)
        if not isinstance(result, torch.Tensor) or result.shape != log_probabilities.shape:
            what = f"the shape {list(result.shape)}" if isinstance(result, torch.Tensor) else shown(result)
            message = f"its weights of tokens are {what}; there must be one for each of {len(log_probabilities)} tokens"
            raise PluginError(f"plugin '{name}': {message}")
        return result

    return call


def checked_collator(name: str, collate: Collator, has_loss: bool) -> Collator:
    """The collator of plugin `name`, with each batch checked; `has_loss` where a plugin's own loss reads them.

    Raises:
        PluginError: it does not take one argument.
    """
    if not takes(collate, 1):
        raise PluginError(f"plugin '{name}': the collator takes {parameters_of(collate)}, must take (rows)")

    def call(rows: Sequence[Mapping[str, Any]]) -> Batch:
        batch = collate(rows)
        fault = _batch_fault(batch, has_loss)
        if fault:
            raise PluginError(f"plugin '{name}': its collator returned {fault}")
        return batch

    return call


def checked_evaluator(name: str, evaluate: Evaluator) -> Evaluator:
    """The evaluator of plugin `name`, with what it returns checked at each call."""

    def call() -> Mapping[str, float]:
        result: Any = evaluate()
        if not isinstance(result, Mapping):
            raise PluginError(f"plugin '{name}': its evaluator returned {shown(result)}; it must return name -> number")
        for key, value in result.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                message = f"plugin '{name}': its evaluator returned {shown(value)} for {key!r}; it must be a number"
                raise PluginError(message)
            if key == "loss":
                raise PluginError(f"plugin '{name}': its evaluator may not return 'loss', which the trainer measures")
        return result

    return call


def _batch_fault(batch: Any, has_loss: bool) -> str:
    """What is wrong with a batch, if anything; no value of a tensor is looked at. A loss of a plugin's own knows best
    what it wants beside the labels, by which the trainer counts."""
    if not isinstance(batch, Mapping):
        return f"{shown(batch)}; it must return name -> tensor"
    if "labels" not in batch:
        return "a batch without 'labels', by which the tokens that are trained are counted"
    if not has_loss and "input_ids" not in batch and "inputs_embeds" not in batch:
        return "a batch without 'input_ids'; only a plugin with a loss of its own can do without"
    keys = [key for key in _TOKENS if key in batch and (key == "labels" or not has_loss)]
    faults = [fault for key in keys if (fault := _tokens_fault(key, batch[key]))]
    if faults:
        return faults[0]
    shapes = {key: list(batch[key].shape) for key in keys}
    if any(shape != shapes["labels"] for shape in shapes.values()):
        told = ", ".join(f"'{key}' {shape}" for key, shape in shapes.items())
        return f"tensors of different shapes: {told}; each token has one label"
    return ""


def _tokens_fault(key: str, value: Any) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return f"{shown(value)} for '{key}'; it must be a tensor"
    if value.ndim != 2:
        return f"'{key}' of the shape {list(value.shape)}; it must be [sequences, tokens]"
    if key == "labels" and value.dtype != torch.int64:
        return f"'labels' of the type {value.dtype}; they must be torch.int64"
    return ""


def _loss_fault(result: Any, model: Module) -> str:
    import torch

    if result is None:
        return "None"
    if not isinstance(result, torch.Tensor):
        return shown(result)
    if result.ndim:
        return f"a tensor of the shape {list(result.shape)}"
    if torch.is_grad_enabled() and not result.requires_grad and any(p.requires_grad for p in model.parameters()):
        return "a tensor without gradient (detached, or made of numbers)"
    return ""


def example_fault(example: Example, num_embeddings: int | None) -> str:
    """What is wrong with the token ids and labels that a train format made, if anything; cheap, as it sees every
    row."""
    ids, labels = example.input_ids, example.labels
    try:
        if len(ids) != len(labels):
            return f"{len(ids)} token ids and {len(labels)} labels; each token has one label"
        if not len(ids):
            return "no tokens"
        lowest, highest = min(ids), max(max(ids), max(labels))
        if lowest < 0:
            return f"the token id {lowest}"
        if num_embeddings is not None and highest >= num_embeddings:
            return f"the token id {highest}; the model has embeddings for 0 to {num_embeddings - 1}"
    except TypeError:
        return "token ids or labels that are no list of whole numbers"
    return column_fault(example) if example.columns else ""


def packed_are_sound(results: Sequence[Example | DataError], num_embeddings: int | None) -> bool:
    """Whether `example_fault` finds nothing in any of these examples, and all of them are packed in arrays: told at
    once for all, which takes a tenth of the time."""
    import numpy as np

    examples = [result for result in results if not isinstance(result, DataError)]
    numbers = [(example.input_ids, example.labels) for example in examples]
    if any(example.columns for example in examples):
        return False
    if not numbers or not all(isinstance(n, array) and n.typecode == "i" for pair in numbers for n in pair):
        return False
    if not all(len(ids) == len(labels) > 0 for ids, labels in numbers):
        return False
    ids, labels = (np.frombuffer(b"".join(column), np.int32) for column in zip(*numbers, strict=True))
    most = np.inf if num_embeddings is None else num_embeddings
    return bool(ids.min() >= 0 and max(ids.max(), labels.max()) < most)


def merge_load_options(contributions: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """One set of loading arguments from all plugins that have some.

    Raises:
        RunError: two plugins want different values of one argument.
    """
    merged: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, options in contributions:
        for key, value in options.items():
            if key in merged and merged[key] != value:
                both = f"'{owners[key]}' wants {merged[key]!r}, '{name}' wants {value!r}"
                raise RunError(f"two plugins disagree on '{key}' in the loading of the model: {both}")
            merged[key], owners[key] = value, name
    return merged
