"""Tokens put together from those of words are the tokens of the whole text, or the text is not cut."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from dumbo.data.cuts import GPT2, find_cuts, split_pairs
from dumbo.data.encoding import OffsetEncoder
from dumbo.data.word_cache import WordCache, flatten, split_texts
from tests.plugins.chat_labels import CORPUS, KINDS, tokenizer_of

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": GPT2, "llama3": LLAMA3, "qwen": QWEN, "o200k": O200K}
FRAGMENTS = [
    *(
        "a",
        "B",
        "the",
        "'s",
        "'LL",
        "12345",
        ".",
        "...",
        "/",
        "_",
        "é",
        "ſ",
        "e\u0301",
        "漢字",
        "🙂",
        "½",
        "<x>",
        "<y z>",
    ),
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u3000"),
]
TEXTS = st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join), min_size=1, max_size=5)


def split_by(pattern, *others):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([*others, split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def learned(pre_tokenizer, normalizer=None, added=()):
    """A tokenizer whose merges reach over as much as its words have."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    odd = ["  \n\n the the\n\nthe ...\r\n  12345 a'LL é漢字  a\xa0b\t\tc\n  d\n12 \x1ca\x1c\n.\n/ a"] * 8
    backend.train_from_iterator(
        [*CORPUS, *odd], trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_tokens(list(added))
    return backend


def backends():
    yield "byte_level", learned(pre_tokenizers.ByteLevel(add_prefix_space=False))
    digits = pre_tokenizers.Digits(individual_digits=True)
    yield "digits", learned(pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    for name, pattern in PATTERNS.items():
        yield name, learned(split_by(pattern))
    yield "normalised", learned(split_by(LLAMA3), normalizers.NFC())
    alone = AddedToken("<x>", normalized=False)
    yield "added", learned(split_by(QWEN), added=[alone, AddedToken("  ", normalized=True), AddedToken("./")])
    spaced = AddedToken("<y z>", normalized=False)
    yield "spaced", learned(pre_tokenizers.ByteLevel(add_prefix_space=False), added=[alone, spaced])
    greedy = AddedToken("<x>", normalized=False, lstrip=True, rstrip=True)
    yield "greedy", learned(split_by(O200K), added=[greedy, AddedToken("the", single_word=True)])


BACKENDS = dict(backends())


def same(ours, theirs) -> bool:
    names = ("ids", "starts", "ends", "rows", "places")
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in names)


@pytest.mark.parametrize("name", BACKENDS)
def test_words_give_the_tokens_of_the_whole(name):
    backend = BACKENDS[name]
    cuts = find_cuts(backend)
    cache = WordCache(backend, cuts, most_words=40)

    @settings(max_examples=60, derandomize=True)
    @given(TEXTS)
    def compare(texts):
        whole = flatten(backend.encode_batch(texts, add_special_tokens=False), texts)
        assert same(cache.encode(texts), whole)
        assert same(cache.encode(texts), whole)  # Now every word is known.

    compare()
    assert len(cuts.words.findall("one two three")) == 3


class Counting:
    """A tokenizer that keeps what it was given."""

    def __init__(self, backend):
        self.backend, self.given = backend, []

    def encode_batch(self, texts, **options):
        self.given += texts
        return self.backend.encode_batch(texts, **options)


def test_of_too_many_words_those_that_come_often_stay():
    backend = BACKENDS["byte_level"]
    counting = Counting(backend)
    cache = WordCache(counting, find_cuts(backend), most_words=40)
    usual = "so it goes on and on"
    for start in range(0, 400, 20):
        texts = [usual, " ".join(f"new{number}" for number in range(start, start + 20))]
        assert same(cache.encode(texts), flatten(backend.encode_batch(texts, add_special_tokens=False), texts))
    assert "".join(counting.given).count(" goes") == 1, "it was never forgotten"
    before = len(counting.given)
    cache.encode(["a new7 goes"])
    asked = "".join(counting.given[before:])
    assert " new7" in asked, "it came once"
    assert "goes" not in asked


@pytest.mark.parametrize("name", PATTERNS)
def test_what_a_pattern_splits_is_read_from_it(name):
    pairs = split_pairs(PATTERNS[name])
    assert {("letter", "space"), ("other", "space"), ("number", "space")} <= pairs
    assert (("newline", "letter") in pairs) == (name != "gpt2")  # There, `\s+(?!\S)` leaves the last line's end.
    assert (("other", "newline") in pairs) == (name == "gpt2")


@pytest.mark.parametrize(
    "pattern",
    [
        r"\S+ ?|\s+",
        r"\p{L}+(?: \p{L}+)*|\s+",
        r"[^\r\n]+|\s+",
        r"[a-z -]+|\s+",
        r"[^\p{Lu}]+|\s+",
        r"\p{L}+(?! )|\s+",
        r"\p{L}+(?=\S)|\s+",
        r"(?<=a) b|\s+",
        r"\p{L}+(?!\S)|\s+",
        r"\p{L}+|.|\s+",
        r"\w+\s|\s+",
        r"\p{L}+| ?\p{N}+",
        r"\p{L}+?\s*|\s+",
        r"(\p{L}| )+|\s+",
        r"[\p{L}&&[^a]]+|\s+",
        r"\p{L}+$|\s+",
        r"\x20a|a\x20|\s+",
    ],
)
def test_a_pattern_of_which_that_is_not_known_is_not_cut_by(pattern):
    assert ("letter", "space") not in split_pairs(pattern)


def test_a_line_is_not_cut_off_where_a_match_may_go_on():
    pairs = split_pairs(r"[\r\n]?\p{L}+|[^\s\p{L}]+|\s*[\r\n]+|\s+")
    assert ("newline", "letter") not in pairs and ("newline", "number") in pairs


@pytest.mark.parametrize(
    "backend",
    [
        tokenizer_of("metaspace").backend_tokenizer,
        tokenizer_of("prefix_space").backend_tokenizer,
        learned(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        learned(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        learned(split_by(LLAMA3), normalizers.NFKC()),
        learned(split_by(LLAMA3), normalizers.NFC(), [AddedToken("<y z>", normalized=True)]),
        learned(split_by(LLAMA3, pre_tokenizers.Split(" ", "merged_with_next"))),
        Tokenizer(models.BPE(dropout=0.1)),
        Tokenizer(models.BPE()),
    ],
)
def test_other_tokenizers_see_texts_whole(backend):
    assert find_cuts(backend) is None


def test_what_is_whitespace_for_patterns_is_whitespace_for_python():
    ink = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and not chr(code).isspace())
    split = pre_tokenizers.Split(Regex(r"\s"), "isolated")
    assert len(split.pre_tokenize_str(ink)) == 1
    assert len(split.pre_tokenize_str(" \t\n\r")) == 4


@pytest.mark.parametrize("name", ["byte_level", "llama3"])
def test_new_words_are_encoded_together_where_all_may_follow_one_another(name):
    backend = BACKENDS[name]
    cache = WordCache(backend, find_cuts(backend))
    words = [" the", " a's", " x.\n\tb", " é"] + ["\n  b", "\tc"] * (name == "byte_level")
    assert cache._split(words) == (list(range(len(words))), [])
    assert cache._split(["a", *words, " b\n", "  ", "\n"])[1] == [0, *range(len(words) + 1, len(words) + 4)]


def test_padding_and_truncation_of_a_tokenizer_are_of_no_account():
    tokenizer = deepcopy(tokenizer_of("byte_level"))
    texts = ["one two three four five", "", "six"]
    expected = OffsetEncoder(tokenizer).encode_batch(texts)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    tokenizer.backend_tokenizer.enable_truncation(3)
    found = [ids for ids, _ in split_texts(OffsetEncoder(tokenizer).encode_flat(texts))]
    assert found == [ids for ids, _ in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_and_lists_are_the_same(kind):
    encoder = OffsetEncoder(tokenizer_of(kind))
    texts = [f"{text}{number}\n <|im_end|> é  x" for number, text in enumerate(CORPUS * 12)] + ["", " "]
    expected = encoder.encode_batch(texts)
    for _ in range(2):
        found = [
            (ids, [tuple(pair) for pair in pairs.tolist()]) for ids, pairs in split_texts(encoder.encode_flat(texts))
        ]
        assert found == expected


def test_words_that_give_other_tokens_are_found_out():
    encoder = OffsetEncoder(tokenizer_of("byte_level"))
    texts = ["Hello world!"] * 40
    expected = encoder.encode_batch(texts)
    encoder.encode_flat(texts[:1])
    encoder._words._ids[0] += 1
    with pytest.warns(UserWarning, match="tokenised whole"):
        found = [
            (ids, [tuple(pair) for pair in pairs.tolist()]) for ids, pairs in split_texts(encoder.encode_flat(texts))
        ]
    assert found == expected == encoder.encode_batch(texts)
