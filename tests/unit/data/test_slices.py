"""Parts of splits: the same rows as the library Datasets takes, and mistakes shown at their place."""

import random

import datasets
import pytest

from dumbo.data.slices import SliceMistake, SplitSlice, parse_split

TEXTS = [
    "train",
    "train[:10%]",
    "train[100:200]",
    "train[-5%:]",
    "train[:1_000]",
    "train[-7:-3]",
    "train[33%:67%]",
    "train[-50%:90%]",
    "train[0:50%]",
    "train[:]",
    "train[5:-5]",
    "train[:5] + test[1:] + train[-2:]",
]


@pytest.mark.parametrize("text", TEXTS)
def test_rows_are_those_that_datasets_takes(text):
    numbers = random.Random(0)
    for num_rows in (0, 1, 3, 10, 99, 101, 1000, *(numbers.randrange(10**6) for _ in range(20))):
        lengths = {"train": num_rows, "test": num_rows // 3}
        theirs = datasets.ReadInstruction.from_spec(text).to_absolute(lengths)
        ours = parse_split(text)
        assert [part.name for part in ours] == [part.splitname for part in theirs]
        for our, their in zip(ours, theirs, strict=True):
            start, stop = our.bounds(lengths[our.name])
            assert list(range(start, stop)) == list(range(their.from_, their.to))


def test_a_slice_without_a_name():
    assert parse_split("[:1000]") == (SplitSlice("", None, 1000),)
    assert parse_split("[-5%:]+test") == (SplitSlice("", -5, None, True), SplitSlice("test"))


def test_a_slice_is_written_as_it_is_read():
    for text in ("train", "train[:10%]", "[100:200]", "a.b-c[-5%:]"):
        [part] = parse_split(text)
        assert str(part) == text


def test_whether_rows_must_be_counted():
    needs = {text: parse_split(text)[0].needs_count for text in ("a", "a[:9]", "a[3:9]", "a[-3:]", "a[:-3]", "a[:9%]")}
    assert needs == {"a": False, "a[:9]": False, "a[3:9]": False, "a[-3:]": True, "a[:-3]": True, "a[:9%]": True}


HINT = "write for example train, train[:10%], [100:200] or train[-500:]+test"


@pytest.mark.parametrize(
    ("text", "message", "hints"),
    [
        ("train[:10%", "'train[:10%' cannot be read: ']' is missing at character 11, where the end is", [HINT]),
        ("train[100]", "'train[100]' cannot be read: ':' is missing at character 10, where ']' is", [HINT]),
        ("train[:x]", "'train[:x]' cannot be read: ']' is missing at character 8, where 'x' is", [HINT]),
        (
            "train[:0.5%]",
            "'train[:0.5%]' cannot be read: ']' is missing at character 9, where '.' is",
            ["percent and rows are whole numbers", HINT],
        ),
        ("train+", "'train+' cannot be read: a split or '[' is missing at character 7, where the end is", [HINT]),
        ("train,test", "'train,test' cannot be read: '+' or the end is missing at character 6, where ',' is", [HINT]),
        (
            "train[:9](x)",
            "'train[:9](x)' cannot be read: '+' or the end is missing at character 10, where '(' is",
            [HINT],
        ),
        ("a+b[:101%]", "'b[:101%]' at character 3 has more than 100 %", [HINT]),
        (
            "a[10%:200]",
            "'a[10%:200]' at character 1 has one bound in percent and one in rows",
            [f"write both in percent or both in rows; {HINT}"],
        ),
        *(
            (
                text,
                f"'{text}' at character 1 is empty whatever the rows are: it ends where it begins, or before",
                [HINT],
            )
            for text in ("a[5:5]", "a[9:2]", "a[-2:-9]", "a[:0]", "a[:0%]", "a[100%:]")
        ),
    ],
)
def test_mistakes_are_shown_at_their_place(text, message, hints):
    with pytest.raises(SliceMistake) as caught:
        parse_split(text)
    assert (caught.value.message, list(caught.value.hints)) == (message, hints)
