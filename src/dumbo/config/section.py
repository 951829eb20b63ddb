"""The base of every section of the configuration: frozen, closed, strict, and aware of what was read from it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator


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
    def _empty_means_defaults(cls, value: Any) -> Any:
        """`liger:` with nothing behind it is the section with its defaults."""
        return {} if value is None else value

    def __getattribute__(self, name: str) -> Any:
        """Note which options were read, so that one that nobody read can be an error."""
        value = super().__getattribute__(name)
        if not name.startswith("_") and name in type(self).__pydantic_fields__:
            private = super().__getattribute__("__pydantic_private__")
            if private:
                private["_read"].add(name)
        return value

    def start_reading(self) -> None:
        """Forget what was read so far."""
        self._read.clear()

    def unread(self) -> tuple[str, ...]:
        """The options that the user wrote and nobody read since `start_reading`, in their order."""
        fields = type(self).__pydantic_fields__
        return tuple(name for name in fields if name in self.__pydantic_fields_set__ and name not in self._read)
