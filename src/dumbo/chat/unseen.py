"""Templates run on texts that nobody can look into: what they write around such texts, they write around any.

A text of a message is replaced by an object that is no string. It can be written, joined and stripped of whitespace, it
is not empty, and it has none of the constants that the template looks for in it. Whatever else is asked of it ends the
attempt. So a template that runs to its end writes the same for all messages of these roles but where their texts stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import Frame
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.runtime import Macro

from dumbo.chat.environment import GenerationTag, TracingEnvironment
from dumbo.chat.traced import TracedText


class Part(NamedTuple):
    """Text of the template's own, or the place of a message's content."""

    text: str
    message: int | None = None
    """The message whose content stands here, from 0; None: `text` does."""
    strips_left: bool = False
    strips_right: bool = False
    """Whether the content stands here without the whitespace at its beginning, and at its end."""


@dataclass(frozen=True)
class Outline:
    """What a template writes for messages of some roles with contents that are not blank."""

    parts: tuple[Part, ...]
    lacks: frozenset[str]
    """Texts that no content may have for this to be so."""
    no_left: frozenset[str]
    no_right: frozenset[str]
    """Characters that no content may begin with, and that none may end with."""


class SeenError(Exception):
    """The template did something with a text of which the result depends on the text."""


@dataclass
class _Watch:
    """What a template asked of its texts."""

    was_seen: bool = False
    """Kept for those who catch exceptions of any kind."""
    lacks: set[str] = field(default_factory=set)
    no_left: set[str] = field(default_factory=set)
    no_right: set[str] = field(default_factory=set)

    def see(self) -> NoReturn:
        self.was_seen = True
        raise SeenError


class UnseenText:
    """Parts of which some are not known."""

    def __init__(self, parts: Sequence[Part], watch: _Watch) -> None:
        self._parts, self._watch = tuple(parts), watch

    def _refuse(self, *values: Any, **named: Any) -> NoReturn:
        self._watch.see()

    __str__ = __repr__ = __format__ = __hash__ = __len__ = __iter__ = __getitem__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __int__ = __float__ = _refuse
    __index__ = __complex__ = __reversed__ = __copy__ = __deepcopy__ = __reduce_ex__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        self._watch.see()

    def __bool__(self) -> bool:
        return any(part.message is not None or part.text for part in self._parts)

    def __add__(self, other: Any) -> UnseenText:
        return self._joined((self, other))

    def __radd__(self, other: Any) -> UnseenText:
        return self._joined((other, self))

    def _joined(self, values: tuple[Any, Any]) -> UnseenText:
        parts = [part for value in values for part in self._parts_of(value)]
        return UnseenText(parts, self._watch)

    def _parts_of(self, value: Any) -> Sequence[Part]:
        if isinstance(value, UnseenText):
            return value._parts
        if type(value) not in (str, TracedText):
            self._watch.see()
        return (Part(str.__str__(value)),)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str | UnseenText):
            return False
        if other == "" and isinstance(other, str) and self:
            return False
        return self._lacks(other)

    def __contains__(self, text: Any) -> bool:
        return self._lacks(text)

    def startswith(self, text: Any, /) -> bool:
        """As `str.startswith`, of a text that has nothing of it."""
        return self._lacks(text)

    endswith = startswith

    def find(self, text: Any, /) -> int:
        """As `str.find`, of a text that has nothing of it."""
        return -1 + self._lacks(text)

    rfind = find

    def split(self, text: Any = None, maxsplit: Any = -1, /) -> list[UnseenText]:
        """As `str.split`, of a text that has no such separator."""
        self._lacks(text)
        return [self]

    rsplit = split

    def partition(self, text: Any, /) -> tuple[UnseenText, str, str]:
        """As `str.partition`, of a text that has no such separator."""
        self._lacks(text)
        return self, "", ""

    def rpartition(self, text: Any, /) -> tuple[str, str, UnseenText]:
        """As `str.rpartition`, of a text that has no such separator."""
        self._lacks(text)
        return "", "", self

    def replace(self, old: Any, new: Any, count: Any = -1, /) -> UnseenText:
        """As `str.replace`, of a text that has nothing to replace."""
        self._lacks(old)
        return self

    def removeprefix(self, text: Any, /) -> UnseenText:
        """As `str.removeprefix`, of a text without it."""
        self._lacks(text)
        return self

    removesuffix = removeprefix

    def _lacks(self, text: Any) -> bool:
        """False, where the whole is one content; from now on it is one that lacks `text`."""
        if type(text) is not str or not text or len(self._parts) != 1 or self._parts[0].message is None:
            self._watch.see()
        self._watch.lacks.add(text)
        return False

    def strip(self, chars: str | None = None, /) -> UnseenText:
        """As `str.strip`; of other characters than whitespace there must be none."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> UnseenText:
        """As `str.lstrip`."""
        parts = list(self._parts)
        while parts:
            first = parts[0]
            if first.message is not None:
                if self._takes_all(chars):
                    parts[0] = first._replace(strips_left=True)
                elif not first.strips_left:
                    self._watch.no_left.update(str(chars))
                break
            parts[0] = first._replace(text=first.text.lstrip(chars))
            if parts[0].text:
                break
            del parts[0]
        return UnseenText(parts, self._watch)

    def rstrip(self, chars: str | None = None, /) -> UnseenText:
        """As `str.rstrip`."""
        parts = list(self._parts)
        while parts:
            last = parts[-1]
            if last.message is not None:
                if self._takes_all(chars):
                    parts[-1] = last._replace(strips_right=True)
                elif not last.strips_right:
                    self._watch.no_right.update(str(chars))
                break
            parts[-1] = last._replace(text=last.text.rstrip(chars))
            if parts[-1].text:
                break
            del parts[-1]
        return UnseenText(parts, self._watch)

    def _takes_all(self, chars: str | None) -> bool:
        """Whether all whitespace is stripped, and not some of it; nothing else can be."""
        if chars is not None and (type(chars) is not str or not chars.isspace()):
            self._watch.see()
        return chars is None


def _join(values: Iterable[Any]) -> Any:
    """All values, one after the other, as templates write them."""
    kept = [value if isinstance(value, UnseenText) else str.__str__(str(value)) for value in values]
    unseen = next((value for value in kept if isinstance(value, UnseenText)), None)
    if unseen is None:
        return "".join(map(str, kept))
    return UnseenText([part for value in kept for part in unseen._parts_of(value)], unseen._watch)


class _UnseenCode(NativeCodeGenerator):
    """Jinja's compiler for values that need not be strings."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _UnmarkedTag(GenerationTag):
    """`{% generation %}` as if it were not there."""

    def _mark(self, caller: Macro) -> Any:
        return caller()


class _UnseenEnvironment(TracingEnvironment):
    code_generator_class = _UnseenCode  # type: ignore[assignment]
    concat = staticmethod(_join)  # type: ignore[assignment]
    generation_tag = _UnmarkedTag

    def __init__(self, undefined: type[jinja2.Undefined], watch: _Watch) -> None:
        super().__init__(undefined)
        self.watch = watch
        trim: Any = self.filters["trim"]
        self.filters["trim"] = lambda value, chars=None: (
            value.strip(chars) if isinstance(value, UnseenText) else trim(value, chars)
        )
        self.filters["string"] = lambda value: value if isinstance(value, UnseenText) else str(value)
        for name in ("string", "iterable", "sequence"):
            self.tests[name] = _or_unseen(self.tests[name])
        # Their results are others every time.
        self.filters["random"] = self.globals["strftime_now"] = self.globals["lipsum"] = self._see

    def _see(self, *values: Any, **named: Any) -> NoReturn:
        self.watch.see()


def _or_unseen(test: Any) -> Any:
    return lambda value: isinstance(value, UnseenText) or test(value)


class OutlineFinder:
    """Finds out what a template writes."""

    def __init__(self, template: str, undefined: type[jinja2.Undefined], variables: Mapping[str, Any]) -> None:
        """`undefined` is what stands for values that are not there; `variables` are given to the template."""
        self._template, self._undefined, self._variables = template, undefined, variables
        self._watch = _Watch()
        self._compiled: jinja2.Template | None = None

    def find(self, roles: Sequence[str]) -> Outline | None:
        """What the template writes for messages of `roles` with contents and nothing else; None where that depends on
        the contents, or where the template fails."""
        watch = self._watch
        watch.was_seen, watch.lacks, watch.no_left, watch.no_right = False, set(), set(), set()
        texts = [UnseenText([Part("", index)], watch) for index in range(len(roles))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        try:
            if self._compiled is None:
                self._compiled = _UnseenEnvironment(self._undefined, watch).from_string(self._template)
            written = self._compiled.render(messages=messages, **self._variables)
        except Exception:  # Templates run arbitrary expressions and refuse in any way they like.
            return None
        if watch.was_seen or not isinstance(written, UnseenText):
            return None
        sets = frozenset(watch.lacks), frozenset(watch.no_left), frozenset(watch.no_right)
        return Outline(tuple(_merged(written._parts)), *sets)


def _merged(parts: Iterable[Part]) -> Iterator[Part]:
    """The same parts, with one text between two contents."""
    text = ""
    for part in parts:
        if part.message is None:
            text += part.text
            continue
        if text:
            yield Part(text)
        yield part
        text = ""
    if text:
        yield Part(text)
