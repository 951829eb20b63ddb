"""`messages` of `jinja_formatter`: what rows say of the training, by messages, by parts, by characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumbo.data.records import CharRange, MessageTraining, Origin, Row
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.char_ranges import cut_ranges, join_ranges, read_details
from dumbo.plugins.jinja_formatter.data_options import MessagesOptions
from dumbo.plugins.jinja_formatter.plugin import JinjaFormatterPlugin

ASKED = {"role": "user", "content": "a"}
ORIGIN = Origin("rows.jsonl", 7)


def made(*listed, **options):
    to_record = JinjaFormatterPlugin().build_data_format(MessagesOptions(type="messages", **options))
    return to_record(Row({"messages": list(listed)}, ORIGIN))


def answer(content="b", **more):
    return {"role": "assistant", "content": content, **more}


def refusal(message, **options) -> str:
    with pytest.raises(DataError) as error:
        made(ASKED, message, **options)
    return str(error.value).removeprefix("rows.jsonl:7: ").splitlines()[0]


def text(said, **more):
    return {"type": "text", "text": said, **more}


def detail(begin, end, train=True):
    return {"begin_offset": begin, "end_offset": end, "train": train}


def test_rows_that_say_nothing_have_no_training():
    assert made(ASKED, answer(train=None, train_detail=None)).training == ()
    assert made(ASKED, answer(train_detail=[])).training == ()


@pytest.mark.parametrize("key", ["train", "training", "weight"])
def test_a_message_may_say_whether_it_is_trained(key):
    for value, train in ((True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False)):
        conversation = made(ASKED, answer(**{key: value}))
        assert conversation.training == (MessageTraining(), MessageTraining(train))
        assert conversation.messages[1] == answer(), "the flag is not for the template"
    assert made(ASKED, answer(keep=False), message_property_mappings={"train": "keep"}).training[1].train is False
    for wrong in (0.5, 2, "yes", [1]):
        assert refusal(answer(**{key: wrong})).startswith(f"'{key}' of message 2 is ")


def test_flags_that_disagree_are_refused():
    assert made(ASKED, answer(train=True, weight=1)).training[1].train is True
    assert refusal(answer(train=True, weight=0)) == "'train', 'weight' of message 2 disagree"


def test_an_answer_may_be_empty_where_it_is_not_trained():
    assert made(ASKED, answer("", train=False)).messages[1] == answer("")
    assert refusal(answer("", train=True)) == "'content' of message 2 is empty"


def test_parts_are_one_text():
    for parts in (
        [text("b"), text(" c")],
        [{"type": "text", "content": "b c", "value": None}],
        [{"value": "b "}, {"type": "text", "value": "c", "annotations": []}],
    ):
        conversation = made(ASKED, answer(parts))
        assert conversation.messages[1] == answer("b c")
        assert conversation.training == ()


def test_parts_may_say_whether_they_are_trained():
    parts = [text("ab", train=False), text("cd"), text("", train=True), text("e", weight=1), text("f", train=True)]
    thoughts = [text("Hm", weight=0), text(".")]
    conversation = made(ASKED, answer(parts, reasoning_content=thoughts))
    assert conversation.messages[1] == answer("abcdef", reasoning_content="Hm.")
    assert conversation.training[1] == MessageTraining(
        None,
        (CharRange(0, 2, train=False), CharRange(2, 4), CharRange(4, 6, train=True)),
        (CharRange(0, 2, train=False), CharRange(2, 3)),
    )


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "part 1 of 'content' of message 2 has the type 'image_url'"),
        ({"type": "text"}, "part 1 of 'content' of message 2 has no text"),
        (text("a", value="b"), "part 1 of 'content' of message 2 has 'text', 'value'"),
        (text("a", trian=False), "part 1 of 'content' of message 2 has 'text', 'trian'"),
        (text(3), "'text' of part 1 of 'content' of message 2 is the number 3"),
        (text("a", weight=0.3), "'weight' of part 1 of 'content' of message 2 is 0.3"),
        (None, "part 1 of 'content' of message 2 is null"),
    ],
)
def test_what_is_wrong_with_a_part_is_said(part, said):
    assert refusal(answer([part])) == said


def test_details_have_inclusive_ends():
    told = made(ASKED, answer("abcdefghi", train_detail=[detail(4, 8, train=False), detail(0, 2)])).training[1]
    assert told.content == (CharRange(0, 3, train=True), CharRange(4, 9, train=False))
    told = made(ASKED, answer(reasoning="abc", reasoning_train_detail=[detail(1, 1)])).training[1]
    assert told == MessageTraining(None, (), (CharRange(1, 2, train=True),))
    told = made(ASKED, answer("abc", spans=[detail(0, 2)]), message_property_mappings={"train_detail": "spans"})
    assert told.training[1].content == (CharRange(0, 3, train=True),)


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ([detail(0, 3)], "range 1 of 'train_detail' of message 2 ends at 3, and the text has 3 characters"),
        ([detail(-1, 1)], "range 1 of 'train_detail' of message 2 begins at -1 and ends at 1"),
        ([detail(2, 1)], "range 1 of 'train_detail' of message 2 begins at 2 and ends at 1"),
        ([detail(1, 2), detail(0, 1)], "two ranges of 'train_detail' of message 2 overlap: 0 to 1 and 1 to 2"),
        ([detail(0, 1, train=1)], "range 1 of 'train_detail' of message 2 is not two whole numbers with true or false"),
        ([detail(0.0, 1)], "range 1 of 'train_detail' of message 2 is not two whole numbers with true or false"),
        ([{"begin_offset": 0}], "range 1 of 'train_detail' of message 2 has 'begin_offset'"),
        ([3], "range 1 of 'train_detail' of message 2 is the number 3"),
        ({"begin_offset": 0}, "'train_detail' of message 2 is a mapping"),
    ],
)
def test_what_is_wrong_with_a_range_is_said(details, said):
    assert refusal(answer("abc", train_detail=details)) == said


def test_parts_and_details_do_not_go_together():
    assert refusal(answer([text("abc")], train_detail=[detail(0, 1)])) == (
        "message 2 has 'train_detail' and its 'content' in parts"
    )
    assert refusal(answer(reasoning_train_detail=[detail(0, 0)])) == (
        "message 2 has 'reasoning_train_detail' and no 'reasoning_content'"
    )


def test_ranges_follow_thoughts_that_are_split_off():
    content = "<think>abc</think> def"
    told = made(ASKED, answer(content, train_detail=[detail(8, 20)]), split_thinking=True)
    assert told.messages[1] == answer("def", reasoning_content="abc")
    assert told.training[1].reasoning == (CharRange(1, 3, train=True),)
    assert told.training[1].content == (CharRange(0, 2, train=True),)
    told = made(ASKED, answer([text("<think>abc</think>"), text(" def", train=True)]), split_thinking=True)
    assert told.training[1].reasoning == (CharRange(0, 3),)
    told = made(ASKED, answer(content, train_detail=[detail(19, 21)]), split_thinking=True)
    assert told.training[1].reasoning == (CharRange(0, 3, train=False),), "left out stays left out"


RANGES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from([True, False, None])), max_size=6)


def characters(ranges, length):
    """What ranges say of each character; `missing` where they say nothing."""
    said = ["missing"] * length
    for found in ranges:
        for place in range(found.start, found.end):
            assert said[place] == "missing"
            said[place] = found.train
    return said


def laid_out(steps):
    """Ranges that do not overlap, from gaps and lengths."""
    place, ranges = 0, []
    for gap, length, train in steps:
        ranges.append(CharRange(place + gap, place + gap + length, train))
        place += gap + length
    return tuple(ranges), place


@given(RANGES)
def test_joined_ranges_say_the_same_of_each_character(steps):
    ranges, length = laid_out(steps)
    joined = join_ranges(ranges)
    assert characters(joined, length) == characters(ranges, length)
    assert all(a.end < b.start or a.train != b.train for a, b in zip(joined, joined[1:], strict=False))


@given(RANGES, st.integers(0, 30), st.integers(0, 30))
def test_cut_ranges_say_the_same_of_each_character(steps, one, other):
    ranges, length = laid_out(steps)
    start, end = sorted((min(one, length), min(other, length)))
    said = characters(cut_ranges(ranges, start, end), end - start)
    expected = characters(ranges, length)[start:end]
    if ranges and set(expected) == {"missing"}:
        expected = [False] * len(expected)
    assert said == expected


@given(RANGES.map(lambda steps: [step for step in steps if step[2] is not None]))
def test_details_say_what_the_row_says_of_each_character(steps):
    ranges, length = laid_out(steps)
    listed = [detail(found.start, found.end - 1, found.train) for found in reversed(ranges)]
    assert characters(read_details(listed, "x" * length, "it", ORIGIN), length) == characters(ranges, length)
