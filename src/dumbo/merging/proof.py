"""Proves a merge: the logits of the merged model against those of base model and adapter, computed by PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dumbo.errors import Problem, RunError
from dumbo.merging.companion import Companion
from dumbo.merging.numbers import ROUNDOFF, torch_name
from dumbo.merging.places import Places
from dumbo.merging.plan import Plan

_KEPT = "reference.pt"
_TIMES = 4.0
"""How much larger than that of another rounding the difference may be: both are the largest of thousands of random
values of about one size."""
_FLOOR = 64 * ROUNDOFF["F32"]
"""Of the largest logit: two orders of the same sums in float32."""


@dataclass(frozen=True)
class Question:
    """What is to be proven."""

    plan: Plan
    places: Places
    tokenizer: Path
    """The folder of the tokenizer that probes are written with."""
    overrides: Mapping[str, Any]
    """What the run changed in the base model's configuration."""
    quantized: bool
    trusted: bool


@dataclass(frozen=True)
class Proof:
    """A comparison that has begun, or its result."""

    companion: Companion
    question: Question
    folder: Path
    changed: Sequence[str]
    tokens: int = 0
    difference: float = 0.0
    tolerance: float = 0.0
    largest: float = 0.0
    same_token: float = 0.0

    @property
    def dtype(self) -> str:
        """The coarsest type of the tensors that were changed."""
        types = {change.target.dtype for change in self.question.plan.changes.values()}
        return max(types, key=lambda code: ROUNDOFF[code])

    @classmethod
    def begin(cls, companion: Companion, question: Question, folder: Path) -> Proof:
        """Let the other process compute the logits of base model and adapter; this one can write into `folder`
        meanwhile."""
        plan, places = question.plan, question.places
        on_disk = {change.target.name for change in plan.changes.values()}
        changed = [
            name
            for name, pieces in places.pieces.items()
            if name in plan.added or any(piece.tensor in on_disk for piece in pieces)
        ]
        fresh = {number for change in plan.changes.values() for numbers, _ in change.fresh for number in numbers}
        companion.send(
            "reference",
            what="the base model with its adapter cannot be computed",
            folder=str(plan.base.folder),
            overrides=dict(question.overrides),
            adapters=[{"folder": str(each.folder), "weight": each.weight} for each in plan.adapters],
            rows=plan.rows,
            tokens=plan.rows or _rows(plan, places),
            special=sorted(fresh),
            tokenizer=str(question.tokenizer),
            quantization=dict(plan.adapters[0].quantization) if question.quantized else None,
            kept=str(folder / _KEPT),
            trusted=question.trusted,
        )
        return cls(companion, question, folder, changed)

    def finished(self) -> Proof:
        """The result, once the merged model is written.

        Raises:
            RunError: the two differ by more than rounding explains.
        """
        reference = self.companion.answer()
        answer = self.companion.ask(
            "merged",
            what="the merged model cannot be computed",
            folder=str(self.folder),
            kept=str(self.folder / _KEPT),
            changed=list(self.changed),
            roundoff=ROUNDOFF[self.dtype],
            exact=self.dtype in ("F32", "F64"),
            trusted=self.question.trusted,
        )
        (self.folder / _KEPT).unlink()
        done = replace(
            self,
            tokens=int(reference["tokens"]),
            difference=float(answer["difference"]),
            tolerance=_TIMES * float(answer["noise"]) + _FLOOR * float(answer["largest"]),
            largest=float(answer["largest"]),
            same_token=float(answer["same_token"]),
        )
        if not answer["finite"] or not done.difference <= done.tolerance:
            raise RunError(str(Problem(f"the merged model is not what the adapter makes of its base model: {done}")))
        return done

    def __str__(self) -> str:
        rounding = f"rounding to {torch_name(self.dtype)} explains {self.tolerance:.2g}"
        return (
            f"over {self.tokens} tokens the largest difference of a logit is {self.difference:.2g} ({rounding}; the "
            f"largest logit is {self.largest:.3g}), the likeliest token is the same for {self.same_token:.0%}"
        )


def _rows(plan: Plan, places: Places) -> int:
    name = places.single(places.embeddings) if places.embeddings is not None else None
    return plan.base.tensors[name].shape[0] if name is not None else int(plan.base.config.get("vocab_size", 1))
