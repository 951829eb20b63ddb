"""Tokens of texts, put together from those of their words: most words of a text were seen before."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from dumbo.data.cuts import Cuts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

_MOST_WORDS = 200_000
_MOST_TOKENS = 2_000_000
"""Where one of them is reached, words that came but once are forgotten: the cache takes some 50 MB at most, and one
batch more."""


@dataclass(frozen=True)
class FlatTokens:
    """The tokens of many texts, one after the other; those of text `i` are `[rows[i], rows[i + 1])`."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    """The first character of each token, counted through all texts with one place left free behind each."""
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    """Where each text begins by that count."""


def place_texts(texts: Sequence[str]) -> NDArray[np.int64]:
    """Where each text begins when characters are counted through all of them, with one left free behind each: what
    ends with a text is not beside what begins with the next."""
    import numpy as np

    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    return np.cumsum(lengths) - lengths


def flatten(encodings: Sequence[Encoding], texts: Sequence[str]) -> FlatTokens:
    """What the tokenizer made of `texts`."""
    import numpy as np

    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, lengths.sum())
    places = place_texts(texts)
    pairs = _offsets(encodings, int(lengths.sum())) + np.repeat(places, lengths)[:, None]
    return FlatTokens(ids, pairs[:, 0], pairs[:, 1], np.append(0, np.cumsum(lengths)), places)


def split_texts(tokens: FlatTokens) -> Iterator[tuple[list[int], NDArray[np.int64]]]:
    """The ids of each text, and its tokens' first characters and those after the last, [tokens, 2]."""
    import numpy as np

    pairs = np.stack([tokens.starts, tokens.ends], axis=1)
    for place, (start, end) in zip(tokens.places.tolist(), pairwise(tokens.rows.tolist()), strict=True):
        yield tokens.ids[start:end].tolist(), pairs[start:end] - place


def _offsets(encodings: Iterable[Encoding], count: int) -> NDArray[np.int64]:
    """The characters of all tokens, [tokens, 2]."""
    import numpy as np

    pairs = chain.from_iterable(encoding.offsets for encoding in encodings)
    return np.fromiter(chain.from_iterable(pairs), np.int64, 2 * count).reshape(-1, 2)


_TOGETHER = 128
"""New words that are encoded as one text: fewer cost more calls, and of a longer one the offsets cost more."""


class _Numbers(dict[str, int]):
    """Numbers of words, from 0; one that is not known gets the next, and is noted as new."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.new.append(word)
        return number


class WordCache:
    """Encodes texts by cutting them into words, each of which the tokenizer sees once."""

    def __init__(self, backend: Tokenizer, cuts: Cuts, most_words: int = _MOST_WORDS) -> None:
        """When there are more than `most_words`, at most half of them are kept, those that came most often."""
        self.backend, self.cuts, self.most_words = backend, cuts, most_words
        # Before which characters every word ends that does not end in whitespace.
        self._beginnings = tuple(space for space in " \t\n\r" if len(cuts.words.findall(f"a{space}")) == 2)
        self._clear()

    def encode(self, texts: Sequence[str]) -> FlatTokens:
        """The tokens of the texts."""
        import numpy as np

        if len(self._numbers) > self.most_words or len(self._ids) > _MOST_TOKENS:
            self._forget()
        words, counts = self._cut(texts)
        number = self._numbers.__getitem__
        word = np.fromiter(map(number, words), np.int64, len(words))
        self._learn()
        self._count(word)
        # The tokens of a word lie together: the first of each, and how many they are.
        sizes = np.frombuffer(self._sizes, np.int32)[word]
        first = np.frombuffer(self._firsts, np.int64)[word]
        lengths = np.frombuffer(self._lengths, np.int32)[word].astype(np.int64)
        after = np.cumsum(sizes, dtype=np.int64)
        where = np.arange(after[-1] if len(after) else 0) + np.repeat(first - (after - sizes), sizes)
        # Behind each text one place is left free.
        of_text = np.repeat(np.arange(len(texts)), counts)
        begins = np.repeat(np.cumsum(lengths) - lengths + of_text, sizes)
        rows = np.concatenate([np.zeros(1, np.int64), after])[np.concatenate([[0], np.cumsum(counts)])]
        return FlatTokens(
            np.frombuffer(self._ids, np.int32)[where],
            np.frombuffer(self._starts, np.int32)[where] + begins,
            np.frombuffer(self._ends, np.int32)[where] + begins,
            rows,
            place_texts(texts),
        )

    def _cut(self, texts: Sequence[str]) -> tuple[list[str], list[int]]:
        """The words of all texts, and how many each text has."""
        find, tokens, uncut = self.cuts.words.findall, self.cuts.tokens, self.cuts.uncut
        words: list[str] = []
        counts: list[int] = []
        before = 0
        for text in texts:
            if uncut is not None and uncut.search(text):
                words.append(text)
            elif tokens is None:
                words += find(text)
            else:
                for part in tokens.split(text):
                    words += find(part)
            counts.append(len(words) - before)
            before = len(words)
        return words, counts

    def _learn(self) -> None:
        """Ask the tokenizer for the new words."""
        import numpy as np

        new, self._numbers.new = self._numbers.new, []
        if not new:
            return
        lengths = np.fromiter(map(len, new), np.int32, len(new))
        sizes, firsts = np.zeros(len(new), np.int32), np.zeros(len(new), np.int64)
        joined, alone = self._split(new)
        groups = [joined[first : first + _TOGETHER] for first in range(0, len(joined), _TOGETHER)]
        texts = ["".join(new[place] for place in group) for group in groups]
        encodings = self.backend.encode_batch([*texts, *(new[place] for place in alone)], add_special_tokens=False)
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        pairs = _offsets(encodings, int(counts.sum()))
        if joined:
            of_texts = counts[: len(texts)]
            sizes_of_texts = np.fromiter(map(len, texts), np.int64, len(texts))
            in_joined = pairs[: of_texts.sum()]
            in_joined += np.repeat(np.cumsum(sizes_of_texts) - sizes_of_texts, of_texts)[:, None]
            ends = np.cumsum(lengths[joined])
            of_word = np.searchsorted(ends, in_joined[:, 0], side="right")
            in_joined -= (ends - lengths[joined])[of_word][:, None]
            sizes[joined] = np.bincount(of_word, minlength=len(joined))
        sizes[alone] = counts[len(texts) :]
        order = [*joined, *alone]
        firsts[order] = len(self._ids) + np.cumsum(sizes[order]) - sizes[order]
        self._firsts.frombytes(firsts.tobytes())
        self._sizes.frombytes(sizes.tobytes())
        self._lengths.frombytes(lengths.tobytes())
        self._starts.frombytes(pairs[:, 0].astype(np.int32).tobytes())
        self._ends.frombytes(pairs[:, 1].astype(np.int32).tobytes())
        for encoding in encodings:
            self._ids.extend(encoding.ids)

    def _split(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """The places of words that may follow one another, as in a text, and of the others: to encode one text takes
        half the time of its words."""
        joined: list[int] = []
        alone: list[int] = []
        for place, word in enumerate(words):
            can_follow = word.startswith(self._beginnings) and not word[-1].isspace()
            (joined if can_follow else alone).append(place)
        text = "".join(words[place] for place in joined)
        if self.cuts.uncut is not None and self.cuts.uncut.search(text):
            return [], list(range(len(words)))
        return joined, alone

    def _count(self, words: NDArray[np.int64]) -> None:
        """Note that they came."""
        import numpy as np

        self._seen.frombytes(bytes(self._seen.itemsize * (len(self._numbers) - len(self._seen))))
        seen = np.frombuffer(self._seen, np.int64)
        seen += np.bincount(words, minlength=len(seen))

    def _forget(self) -> None:
        """Keep the words that came most often, and none that came once: names, numbers, errors of typing."""
        import numpy as np

        words, seen = list(self._numbers), np.array(self._seen)
        facts = [np.array(values) for values in (self._firsts, self._sizes, self._lengths)]
        tokens = [np.array(values) for values in (self._ids, self._starts, self._ends)]
        self._clear()
        often = np.argsort(-seen, kind="stable")[: self.most_words // 2]
        is_kept = (seen[often] > 1) & (np.cumsum(facts[1][often]) <= _MOST_TOKENS // 2)
        kept = np.sort(often[is_kept])
        firsts, sizes, lengths = (values[kept] for values in facts)
        after = np.cumsum(sizes, dtype=np.int64)
        where = np.arange(sizes.sum()) + np.repeat(firsts - (after - sizes), sizes)
        self._numbers.update((words[place], number) for number, place in enumerate(kept.tolist()))
        for values, found in (
            (self._seen, seen[kept] // 2),  # so that words of long ago are forgotten, too
            (self._firsts, after - sizes),
            (self._sizes, sizes),
            (self._lengths, lengths),
            *zip((self._ids, self._starts, self._ends), (values[where] for values in tokens), strict=True),
        ):
            values.frombytes(found.tobytes())

    def _clear(self) -> None:
        self._numbers = _Numbers()
        self._seen = array("q")
        """How often each came."""
        self._firsts, self._sizes, self._lengths = array("q"), array("i"), array("i")
        self._ids, self._starts, self._ends = array("i"), array("i"), array("i")
