"""The base of every section of the configuration: frozen, closed, strict, and aware of what was read from it."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PrivateAttr, Strict, model_validator

Words = Annotated[tuple[str, ...], Strict(False)]
"""A list of texts, in YAML `[a, b]`; frozen, hence a tuple."""


def _takes_tuple(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return any(_takes_tuple(part) for part in get_args(annotation))
    return get_origin(annotation) is tuple


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


class EvaluationMetric:
    """Marks an option that names a metric of evaluations (`Annotated[str, EvaluationMetric()]`): that one of the run's
    plugins measures it is made sure of before anything is loaded."""


class Section(BaseModel):
    """A section of the configuration, or a plugin's options. Declare fields, each with a docstring beneath it.

    Unknown keys, `"3"` for 3, NaN and infinity are refused. Instances cannot be changed.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=False,
        protected_namespaces=(),
    )

    _read: set[str] = PrivateAttr(default_factory=set)

    @model_validator(mode="before")
    @classmethod
    def _as_yaml_writes_it(cls, value: Any) -> Any:
        """`liger:` with nothing behind it is the section with its defaults; a list is what a tuple is written as."""
        if not isinstance(value, dict):
            return {} if value is None else value
        tuples = {name for name, field in cls.model_fields.items() if _takes_tuple(field.annotation)}
        return {key: _frozen(item) if key in tuples else item for key, item in value.items()}

    def __getattribute__(self, name: str) -> Any:
        """Note which options were read, so that one that nobody read can be an error."""
        value = super().__getattribute__(name)
        if not name.startswith("_") and name in type(self).__pydantic_fields__:
            private = super().__getattribute__("__pydantic_private__")
            if private:
                private["_read"].add(name)
        return value

    def start_reading(self) -> frozenset[str]:
        """Forget what was read so far; it is returned."""
        earlier = frozenset(self._read)
        self._read.clear()
        return earlier

    def resume_reading(self, earlier: frozenset[str]) -> None:
        """What was read before `start_reading` counts again, and nothing since."""
        self._read.clear()
        self._read.update(earlier)

    def unread(self) -> tuple[str, ...]:
        """The options that the user wrote and nobody read since `start_reading`, in their order."""
        fields = type(self).__pydantic_fields__
        return tuple(name for name in fields if name in self.__pydantic_fields_set__ and name not in self._read)
