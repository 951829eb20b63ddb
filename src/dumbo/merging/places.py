"""Where the weights that a model has in memory lie on disk: mostly under the same name, but not always.

Some have another name there, some lie in pieces, and some are not there because they are another one's (tied).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from dumbo.merging.bases import Base

PLAIN = frozenset(
    {"bloom", "cohere", "cohere2", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4"}
    | {"gpt2", "gpt_bigcode", "gpt_neo", "gptj", "granite", "helium", "llama", "mistral", "mpt", "nemotron", "olmo"}
    | {"olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"}
)
"""Model types of which Transformers gives no weight another name or form when it loads them, as a test makes sure. The
merge asks Transformers for the names of all others."""

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")
_TRANSFORMER = frozenset({"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt"})
"""Model types whose names begin with `transformer`; those of others begin with `model`."""
_CONV1D = frozenset({"gpt2"})
"""Model types whose layers are Transformers' `Conv1D`, with weights of inputs by outputs."""


@dataclass(frozen=True)
class Piece:
    """A part of a weight in memory, and where it lies in a tensor on disk."""

    tensor: str
    expert: int | None = None
    """The part is of this one of several matrices; None: of all, or there is one."""
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    """The part of the matrix; None: all of it."""
    row: int = 0
    column: int = 0
    """Where the part begins in the matrix on disk."""
    transposed: bool = False


@dataclass(frozen=True)
class Places:
    """What is known about the names of one model's weights."""

    pieces: Mapping[str, Sequence[Piece]]
    """Name in memory -> parts on disk. Those of tied weights are the ones of the weight that they are tied to."""
    embeddings: str | None = None
    head: str | None = None
    """Names in memory of the two weights with a row per token."""
    is_tied: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    flipped: frozenset[str] = frozenset()
    """Weights with inputs by outputs: Transformers' `Conv1D`, and experts that are laid out so."""
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Module -> its own weights that are no module's `weight`, in the order of their registration."""
    config: Mapping[str, Any] | None = None
    """The model's configuration where Transformers was asked for it."""

    def single(self, name: str) -> str | None:
        """The tensor on disk that is the weight `name` and nothing else; None where there is no such."""
        found = self.pieces.get(name, ())
        return found[0].tensor if len(found) == 1 and found[0] == Piece(found[0].tensor) else None


def plain_places(base: Base) -> Places:
    """The places of a model whose names on disk are those in memory, but for a prefix that a file may lack."""
    names = dict(base.tensors)
    bare = not any(name.startswith(("model.", "transformer.")) for name in names)
    prefix = "transformer" if base.model_type in _TRANSFORMER else "model"
    heads = [name for name in names if name.rpartition(".")[0].rpartition(".")[2] in ("lm_head", "embed_out")]
    pieces = {(f"{prefix}.{name}" if bare and name not in heads else name): (Piece(name),) for name in names}
    inner = [name for name in pieces if name.endswith(tuple(f".{last}.weight" for last in _EMBEDDINGS))]
    embeddings = inner[0] if len(inner) == 1 else None
    head = next((name for name in heads if name.endswith(".weight")), "lm_head.weight")
    is_tied = embeddings is not None and _is_tied(base, pieces[embeddings][0].tensor, head)
    if is_tied and embeddings is not None:
        pieces[head] = pieces[embeddings]
    flipped: frozenset[str] = frozenset()
    if base.model_type in _CONV1D:
        flipped = frozenset(name for name in pieces if re.fullmatch(r".*\.(c_\w+|q_attn)\.weight", name))
    shapes = {name: base.tensors[found[0].tensor].shape for name, found in pieces.items()}
    return Places(MappingProxyType(pieces), embeddings, head, is_tied, shapes, flipped)


def _is_tied(base: Base, embeddings: str, head: str) -> bool:
    if head not in base.tensors:
        return True
    # A file may hold both. Where they differ, Transformers keeps them apart, whatever the configuration says.
    ties = base.config.get("tie_word_embeddings", True)
    return bool(ties) and base.tensors[embeddings].same_bytes(base.tensors[head])


def places_from(answer: Mapping[str, Any]) -> Places:
    """The places that the process with Transformers has sent, as plain values."""

    def piece(entry: Mapping[str, Any]) -> Piece:
        pairs = {key: tuple(entry[key]) for key in ("rows", "columns") if entry.get(key) is not None}
        return Piece(**{**entry, **pairs})

    return Places(
        MappingProxyType({name: [piece(entry) for entry in found] for name, found in answer["pieces"].items()}),
        answer["embeddings"],
        answer["head"],
        answer["is_tied"],
        {name: tuple(shape) for name, shape in answer["shapes"].items()},
        frozenset(answer["flipped"]),
        answer["parameters"],
        answer["config"],
    )
