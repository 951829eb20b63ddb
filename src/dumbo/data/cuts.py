"""Where a text may be cut so that its parts have the tokens of the whole, by the tokenizer's own description."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

SPACE, NEWLINE, BLANK, LETTER, NUMBER, OTHER = "space", "newline", "blank", "letter", "number", "other"
"""Kinds of characters: ` `; `\\r` and `\\n`; other whitespace; `\\p{L}`; `\\p{N}`; all else."""
_WHITESPACE = frozenset({SPACE, NEWLINE, BLANK})
_INK = frozenset({LETTER, NUMBER, OTHER})
_ALL = _WHITESPACE | _INK

Pair = tuple[str, str]
"""The kinds of two characters side by side."""

_BEFORE_SPACE = frozenset(product(_INK, {SPACE}))
_BEFORE_WHITESPACE = frozenset(product(_INK, _WHITESPACE))
_BEFORE_WORD = frozenset(product({NEWLINE}, {LETTER, NUMBER}))

# Whitespace is what both Python and Oniguruma take for it: Python's `\s` has all of the other's, and four more. A cut
# is behind what is none for Python, and before ` `, `\t`, `\n` or `\r`, which are some for both.
_CUT_BEFORE_SPACE = r"\s*+\S++(?:[^\S ]\s*+\S*+)*+|\s++"
_CUT_BEFORE_WHITESPACE = r"\s*+\S++(?:[^\S \t\n\r]\s*+\S*+)*+|\s++"
_LINE_END = r"(?<=[\r\n])(?=[A-Za-z0-9])"
_CUT_BEFORE_SPACE_AND_WORD = (
    rf"\s++{_LINE_END}|\s*+\S++(?:(?=[^\S ])\s++(?!{_LINE_END})\S*+)*+(?:(?=[^\S ])\s++{_LINE_END})?+|\s++"
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` splits by, as the tokenizers package has it."""
_HARMLESS_NORMALIZERS = frozenset({"NFC", "NFD"})
"""None of them changes whether a character is whitespace, or anything before a space or behind a line's end because of
what is on its other side."""


@dataclass(frozen=True)
class Cuts:
    """How to cut texts."""

    words: re.Pattern[str]
    """Finds the parts of a text, one after the other, with nothing between them."""
    tokens: re.Pattern[str] | None
    """Finds added tokens, which stand alone whatever is around them; its one group is all of it."""
    uncut: re.Pattern[str] | None
    """What no text may have that is to be cut: tokens that look at what is around them."""


def find_cuts(backend: Tokenizer) -> Cuts | None:
    """How the texts of a tokenizer can be cut; None where it cannot be shown that cutting changes nothing."""
    normalizer, pre_tokenizer = _description(backend.normalizer), _description(backend.pre_tokenizer)
    if getattr(backend.model, "dropout", None) or backend.encode_special_tokens:
        return None
    if not all(kind in _HARMLESS_NORMALIZERS for kind in _kinds(normalizer)):
        return None
    pairs = _safe_pairs(pre_tokenizer)
    for allowed, words in (
        (_BEFORE_WHITESPACE, _CUT_BEFORE_WHITESPACE),
        (_BEFORE_SPACE | _BEFORE_WORD, _CUT_BEFORE_SPACE_AND_WORD),
        (_BEFORE_SPACE, _CUT_BEFORE_SPACE),
    ):
        if allowed <= pairs:
            return _with_tokens(re.compile(words), backend, normalizer is not None)
    return None


def _with_tokens(words: re.Pattern[str], backend: Tokenizer, is_normalized: bool) -> Cuts | None:
    """The cuts with what is special about added tokens: they are found before a text is split."""
    alone: list[str] = []
    uncut: list[str] = []
    added: list[AddedToken] = list(backend.get_added_tokens_decoder().values())
    for token in added:
        is_whole = words.findall(token.content) == [token.content]
        looks_around = token.lstrip or token.rstrip or token.single_word or not is_whole
        if looks_around and token.normalized and is_normalized:
            return None  # It would have to be looked for in the normalised text.
        if looks_around:
            uncut.append(token.content)
        elif not token.normalized:
            alone.append(token.content)
    return Cuts(words, _any_of(alone, "({})"), _any_of(uncut, "{}"))


def _any_of(texts: list[str], form: str) -> re.Pattern[str] | None:
    """Finds any of `texts`, the longest of those that begin at the same place, as tokenizers do."""
    ordered = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile(form.format("|".join(map(re.escape, ordered)))) if ordered else None


def _description(part: Any) -> Mapping[str, Any] | None:
    """A normalizer or pre-tokenizer as `tokenizer.json` describes it."""
    return json.loads(part.__getstate__()) if part is not None else None


def _kinds(normalizer: Mapping[str, Any] | None) -> Iterator[str]:
    if normalizer is None:
        return
    if normalizer["type"] != "Sequence":
        yield normalizer["type"]
    for part in normalizer.get("normalizers", ()):
        yield from _kinds(part)


def _safe_pairs(pre_tokenizer: Mapping[str, Any] | None) -> frozenset[Pair]:
    """The pairs of characters between which the text is split, whatever is around them."""
    if pre_tokenizer is None:
        return frozenset()
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    pairs, is_split = frozenset(product(_ALL, _ALL)), False
    for place, step in enumerate(steps):
        kind = step["type"]
        if kind == "Digits":
            continue  # It tells digits from all else by each character alone.
        is_last = place == len(steps) - 1  # Behind `ByteLevel` there are other characters.
        if kind == "ByteLevel" and not step["add_prefix_space"] and is_last:
            pattern = GPT2 if step["use_regex"] else None
        elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            pattern = step["pattern"]["Regex"]
        else:
            return frozenset()
        if pattern is not None:
            pairs, is_split = pairs & split_pairs(pattern), True
    return pairs if is_split else frozenset()


@dataclass(frozen=True)
class _Item:
    """A part of a pattern: a set of characters and how many of them."""

    may: frozenset[str]
    """Kinds of which it may match some."""
    all_of: frozenset[str]
    """Kinds of which it matches every one."""
    may_lack: bool = False
    may_repeat: bool = False


@dataclass(frozen=True)
class _Alternative:
    items: tuple[_Item, ...]
    looks_ahead: bool
    """Whether `(?!\\S)` follows."""

    @property
    def pairs(self) -> Iterator[Pair]:
        """What may stand side by side in a match."""
        for place, item in enumerate(self.items):
            if item.may_repeat:
                yield from product(item.may, item.may)
            for following in self.items[place + 1 :]:
                yield from product(item.may, following.may)
                if not following.may_lack:
                    break


def split_pairs(pattern: str) -> frozenset[Pair]:
    """The pairs of which the first is ink and the second whitespace, or the first a line's end and the second a letter
    or number, between which splitting by `pattern` always splits; none where the pattern cannot be read.

    Between the two of a pair that no match can hold, every match ends or begins. Nothing but `(?!\\S)` looks over the
    edge, and only behind whitespace. Whitespace is never left between matches, as `\\s+` matches all of it, so that it
    does not become a part together with its neighbours.
    """
    try:
        alternatives = _Reader(pattern).alternatives()
    except _UnreadError:
        return frozenset()
    if not any(_is_all_whitespace(alternative) for alternative in alternatives):
        return frozenset()
    pairs = set(_BEFORE_WHITESPACE | _BEFORE_WORD)
    for alternative in alternatives:
        pairs.difference_update(alternative.pairs)
        if not alternative.looks_ahead:
            continue
        if not all(item.may <= _WHITESPACE for item in alternative.items) or all(i.may_lack for i in alternative.items):
            return frozenset()
        before = alternatives[: alternatives.index(alternative)]
        if not any(_takes_lines(other) for other in before):
            pairs -= _BEFORE_WORD  # Its match ends earlier where a word follows.
    return frozenset(pairs)


def _is_all_whitespace(alternative: _Alternative) -> bool:
    """Whether it is `\\s+`."""
    return not alternative.looks_ahead and len(alternative.items) == 1 and alternative.items[0].all_of == _WHITESPACE


def _takes_lines(alternative: _Alternative) -> bool:
    """Whether it is `\\s*[\\r\\n]+`, which takes all whitespace that ends a line."""
    if alternative.looks_ahead or len(alternative.items) != 2:
        return False
    first, second = alternative.items
    takes_all = first.all_of == _WHITESPACE and first.may_lack and first.may_repeat
    return takes_all and second.may == second.all_of == {NEWLINE}


class _UnreadError(ValueError):
    """A pattern has something in it of which nothing is known here."""


_CLASSES = MappingProxyType(
    {
        r"\s": (_WHITESPACE, _WHITESPACE),
        r"\S": (_INK, _INK),
        r"\p{L}": ({LETTER}, {LETTER}),
        r"\p{N}": ({NUMBER}, {NUMBER}),
        **{rf"\p{{{name}}}": ({LETTER}, ()) for name in ("Lu", "Ll", "Lt", "Lm", "Lo")},
        **{rf"\p{{{name}}}": ({OTHER}, ()) for name in ("M", "P", "S", "Mn", "Mc", "Me")},
    }
)
"""Class -> the kinds of which it has some, and those of which it has all."""
_TOKEN = re.compile(r"\\p\{\w+\}|\\.|\(\?!\\S\)|\(\?i?:|\{\d+,\d*\}|\{\d+\}|.", re.DOTALL)
_ESCAPES = MappingProxyType({r"\r": "\r", r"\n": "\n", r"\t": "\t"})


class _Reader:
    """Reads the patterns of tokenizers, as far as they are made of what is known here."""

    def __init__(self, pattern: str) -> None:
        self.tokens: list[str] = _TOKEN.findall(pattern)
        self.place = 0

    def alternatives(self) -> list[_Alternative]:
        """All of them. Raises `_UnreadError`."""
        read = self._alternatives()
        if self.place < len(self.tokens):
            raise _UnreadError
        return read

    def _next(self) -> str:
        if self.place >= len(self.tokens):
            raise _UnreadError
        self.place += 1
        return self.tokens[self.place - 1]

    def _peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _alternatives(self) -> list[_Alternative]:
        read: list[_Alternative] = []
        items: list[_Item] = []
        looks_ahead = False
        while (token := self._peek()) != ")" or not token:
            if token in ("|", ""):
                read.append(_Alternative(tuple(items), looks_ahead))
                items, looks_ahead = [], False
                if not token:
                    return read
                self.place += 1
            elif looks_ahead:
                raise _UnreadError
            elif token == r"(?!\S)":
                looks_ahead = True
                self.place += 1
            else:
                items.append(self._item())
        return [*read, _Alternative(tuple(items), looks_ahead)]

    def _item(self) -> _Item:
        token = self._next()
        if token.startswith("(?"):
            inner = self._alternatives()
            if self._next() != ")" or any(alternative.looks_ahead for alternative in inner):
                raise _UnreadError
            found = frozenset(kind for alternative in inner for item in alternative.items for kind in item.may)
            self._quantifier()
            return _Item(found, frozenset(), may_lack=True, may_repeat=True)
        may, all_of = self._set() if token == "[" else _kinds_of(token)
        may_lack, may_repeat = self._quantifier()
        return _Item(may, all_of, may_lack, may_repeat)

    def _quantifier(self) -> tuple[bool, bool]:
        """Whether what stands before may lack, and whether it may repeat."""
        token = self._peek()
        if token not in ("?", "*", "+") and not token.startswith("{"):
            return False, False
        self.place += 1
        is_range = token.startswith("{")
        if self._peek() == "+" and not is_range:
            self.place += 1  # A possessive one matches no other way.
        if self._peek() in ("?", "*", "+"):
            raise _UnreadError
        return token in ("?", "*") or is_range, token != "?"

    def _set(self) -> tuple[frozenset[str], frozenset[str]]:
        """What is between brackets."""
        is_negated = self._peek() == "^"
        self.place += is_negated
        may: set[str] = set()
        all_of: set[str] = set()
        literals: set[str] = set()
        while (token := self._next()) != "]":
            if token in ("[", "^") or (token == "&" and self._peek() == "&"):
                raise _UnreadError
            if token == "-" or self._peek() == "-":
                may |= _ALL - {SPACE, NEWLINE} if self._is_harmless_range(token) else _ALL
                continue
            found, whole = _kinds_of(token)
            may |= found
            all_of |= whole
            literals.add(_ESCAPES.get(token, token))
        if {"\r", "\n"} <= literals:
            all_of.add(NEWLINE)
        return (_ALL - all_of, _ALL - may) if is_negated else (frozenset(may), frozenset(all_of))

    def _is_harmless_range(self, token: str) -> bool:
        """Whether a range, of which the rest is read, begins above all of ASCII's whitespace."""
        if token != "-" and self._peek() == "-":
            self.place += 1
            self._next()
        return len(token) == 1 and token > " "


def _kinds_of(token: str) -> tuple[frozenset[str], frozenset[str]]:
    """The kinds of which a character or class has some, and those of which it has all."""
    if token in _CLASSES:
        may, all_of = _CLASSES[token]
        return frozenset(may), frozenset(all_of)
    character = _ESCAPES.get(token, token)
    if len(character) == 2 and not character[1].isalnum():
        character = character[1]
    if len(character) != 1 or character in "^$.()*+?{}\\" and character == token:
        raise _UnreadError
    if character == " ":
        return frozenset({SPACE}), frozenset({SPACE})
    if character in "\r\n":
        return frozenset({NEWLINE}), frozenset()
    if not character.isascii():
        return _ALL - {SPACE, NEWLINE}, frozenset()
    is_letter, is_number = character.isalpha(), character.isdigit()
    kind = LETTER if is_letter else NUMBER if is_number else BLANK if character.isspace() else OTHER
    return frozenset({kind}), frozenset()
