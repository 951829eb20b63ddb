"""Makes layers that carry a state from token to token compute each document of a packed row by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dumbo.errors import RunError
from dumbo.kernels.packed_row import PackedRow, lay_out, take_back

MIXERS = frozenset({"conv", "linear_attn", "mamba", "mixer", "self_attn", "temporal_block"})
"""What decoder layers of Transformers call the module that mixes tokens."""

BOUNDARIES = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})
"""What a packed batch says of its documents: a batch of one document a row has none of it."""

CACHES = ("cache_params", "past_key_values", "use_cache")
"""What such modules call the memory of earlier calls."""


def recurrent_mixers(model: Any) -> dict[str, nn.Module]:
    """The modules of the language model that carry a state from token to token, by name; attention is none of them.

    They are known by their place in a layer, and by a convolution along the tokens or the kind of layer that they
    name. What computes attention in the same module is left out: it would need the mask of its row.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    return {
        name: module
        for name, module in (decoder or model).named_modules()
        if name.rpartition(".")[2] in MIXERS and _carries_state(module)
    }


def _carries_state(module: nn.Module) -> bool:
    if any(hasattr(part, "is_causal") or hasattr(part, "num_key_value_groups") for part in module.modules()):
        return False
    convolves = any(isinstance(child, nn.Conv1d) for child in module.children())
    return convolves or getattr(module, "layer_type", None) == "linear_attention"


@dataclass(eq=False)
class SeparateDocuments:
    """Recurrent modules of a model whose `forward` was replaced, and the row of the pass that the model is in."""

    enabled: bool = True
    """Whether packed rows are taken apart; if not, all is as without it."""
    _rows: list[PackedRow | None] = field(default_factory=list)
    _known: list[tuple[Tensor, PackedRow]] = field(default_factory=list)
    _mixers: list[Any] = field(default_factory=list)
    _checkpointed: list[Any] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)

    @classmethod
    def install(cls, model: Any) -> SeparateDocuments | None:
        """Replace `forward` of all recurrent modules in `model`, on these instances; None where it has none."""
        from transformers import PreTrainedModel

        mixers = recurrent_mixers(model)
        if not mixers:
            return None
        found = cls()
        inside = set(mixers.values())
        around = [module for module in model.modules() if inside.intersection(module.modules()) - {module}]
        for name, mixer in mixers.items():
            vars(mixer)["forward"] = MixerForward(mixer.forward, found, f"{type(mixer).__name__} ({name})")
            found._mixers.append(mixer)
        found._checkpointed += [module for module in around if hasattr(module, "gradient_checkpointing")]
        for module in around:
            if isinstance(module, PreTrainedModel):
                found._handles.append(module.register_forward_pre_hook(found._enter, prepend=True, with_kwargs=True))
                found._handles.append(module.register_forward_hook(found._leave, always_call=True))
        return found

    @staticmethod
    def remove_from(model: Any) -> None:
        """Undo what `install` did to `model`, if it did."""
        for mixer in recurrent_mixers(model).values():
            replaced = vars(mixer).get("forward")
            if isinstance(replaced, MixerForward):
                replaced.documents.remove()

    def remove(self) -> None:
        """Give all modules back what they had."""
        self.enabled = False
        for handle in self._handles:
            handle.remove()
        for mixer in self._mixers:
            if isinstance(vars(mixer).get("forward"), MixerForward):
                del vars(mixer)["forward"]
        for module in self._checkpointed:
            function = vars(module).get("_gradient_checkpointing_func")
            if isinstance(function, RememberingCheckpoint):
                module._gradient_checkpointing_func = function.ordinary

    def row_of_pass(self) -> PackedRow | None:
        """The packed row that the model computes, None for a batch that is not packed.

        Raises:
            RunError: the model computes nothing now.
        """
        if not self._rows:
            message = "a layer was called outside of the model's forward pass, where the documents are not known"
            raise RunError(f"packing: {message}; of checkpoints, take trainer.arguments.gradient_checkpointing")
        return self._rows[-1]

    @contextmanager
    def in_pass(self, row: PackedRow | None) -> Iterator[None]:
        """As if the model computed `row` here."""
        self._rows.append(row)
        try:
            yield
        finally:
            self._rows.pop()

    def is_in_pass(self) -> bool:
        """Whether the model computes something."""
        return bool(self._rows)

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._rows.append(self._rows[-1] if self._rows else None)
        boundaries = named.get("cu_seq_lens_q")
        if boundaries is not None:
            self._rows[-1] = self._row(boundaries)
        for layer in self._checkpointed:
            function = vars(layer).get("_gradient_checkpointing_func")
            if function is not None and not isinstance(function, RememberingCheckpoint):
                layer._gradient_checkpointing_func = RememberingCheckpoint(function, self)

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._rows.pop()

    def _row(self, boundaries: Tensor) -> PackedRow:
        if not (self._known and self._known[0][0] is boundaries):
            try:
                row = PackedRow.from_boundaries(boundaries, int(boundaries[-1]))
            except (ValueError, IndexError) as error:
                raise RunError(f"packing: {error}") from None
            self._known[:] = [(boundaries, row)]
        return self._known[0][1]


@dataclass(eq=False)
class RememberingCheckpoint:
    """Gradient checkpointing that computes a layer again, in the backward pass, with the row that it had at first."""

    ordinary: Callable[..., Any]
    documents: SeparateDocuments

    def __call__(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """What `ordinary` gives, for a function that knows its row."""
        if not self.documents.is_in_pass():
            return self.ordinary(function, *inputs, **options)
        row = self.documents.row_of_pass()

        def again(*inputs: Any) -> Any:
            with self.documents.in_pass(row):
                return function(*inputs)

        return self.ordinary(again, *inputs, **options)


@dataclass(eq=False)
class MixerForward:
    """`forward` of a recurrent module: a packed row becomes a padded batch of its documents, and a row again.

    These layers never look ahead, so padding behind a document changes nothing in it.
    """

    ordinary: Callable[..., Any]
    documents: SeparateDocuments
    name: str

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What `ordinary` gives; states `[1, T, hidden]` of a packed row are computed by documents.

        Raises:
            RunError: there are padding or a cache beside packed documents, or the row has other tokens.
        """
        row = self.documents.row_of_pass() if self.documents.enabled else None
        if row is None or len(row.lengths) == 1:
            return self.ordinary(*inputs, **named)
        self._check(inputs, named, sum(row.lengths))
        layout = row.sequences
        named = {name: value for name, value in named.items() if name not in BOUNDARIES}
        if "attention_mask" in named:
            named["attention_mask"] = None
        spread = [_by_group(value, row) for value in inputs]
        spread_named = {name: _by_group(value, row) for name, value in named.items()}
        results = [
            self.ordinary(*[value[i] for value in spread], **{name: value[i] for name, value in spread_named.items()})
            for i in range(len(layout.groups))
        ]
        if isinstance(results[0], Tensor):
            return take_back(results, layout)[None]
        # Beside its states a module may return weights or its last state, which no layer reads.
        states = take_back([result[0] for result in results], layout)[None]
        return (states, *[None] * (len(results[0]) - 1))

    def _check(self, inputs: tuple[Any, ...], named: dict[str, Any], total: int) -> None:
        states = inputs[0] if inputs else named.get("hidden_states")
        if not isinstance(states, Tensor) or states.shape[:2] != (1, total):
            shape = list(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise RunError(f"packing: documents of {total} tokens do not fill {shape}, which {self.name} was given")
        if any(named.get(cache) for cache in CACHES):
            raise RunError(
                f"packing: {self.name} was given a cache beside packed documents; use_cache=False is missing"
            )
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            raise RunError(f"packing: {self.name} was given an attention_mask beside packed documents; leave it out")


def _by_group(value: Any, row: PackedRow) -> list[Any]:
    """For each group its part of `value`: of `[1, T, ...]` the documents, of tuples all items, of all else itself."""
    layout = row.sequences
    if isinstance(value, tuple):
        items = [_by_group(item, row) for item in value]
        return [tuple(item[i] for item in items) for i in range(len(layout.groups))]
    if isinstance(value, Tensor) and value.shape[:2] == (1, sum(row.lengths)):
        return lay_out(value[0], layout)
    return [value] * len(layout.groups)
