"""What is found strange, and what is not."""

import pytest

from dumbo.data.records import IGNORED, Example, Origin
from dumbo.errors import Place, Problem
from dumbo.inspection.anomalies import group_reasons
from dumbo.inspection.tables import Table
from dumbo.inspection.tally import Ends, RoleTally, Tally
from tests import builders

TOKENIZER = builders.build_tokenizer(bos_token="<|endoftext|>")


def example(text, trained=lambda position, count: True):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    labels = [token if trained(position, len(ids)) else IGNORED for position, token in enumerate(ids)]
    return Example(ids, labels, Origin("rows.jsonl", 1))


@pytest.mark.parametrize(
    ("text", "is_open"),
    [("a<|im_end|>", False), ("a<|im_end|>\n \n", False), ("a<|pad|>", False), ("a", True), ("a\n", True)]
    + [("<|im_end|>a\n", True), ("\n", False)],
)
def test_rows_end_in_an_end_token(text, is_open):
    assert Ends(TOKENIZER).is_open(example(text)) == is_open


def test_the_last_trained_token_counts():
    ends = Ends(TOKENIZER)
    assert not ends.is_open(example("a<|im_end|>b", lambda position, count: position < count - 1))
    assert ends.is_open(example("ab<|im_end|>", lambda position, count: position < count - 1))


def test_two_start_tokens_at_the_start():
    ends = Ends(TOKENIZER)
    start = TOKENIZER.bos_token_id
    assert ends.starts_twice([start, start, 5]) and not ends.starts_twice([start, 5, start, start])
    assert not ends.starts_twice([start]) and not Ends(builders.build_tokenizer()).starts_twice([start, start])


def test_reasons_that_differ_in_numbers_are_one():
    messages = ["message 2 has no 'role'", "it is empty", "message 13 has no 'role'", "message 2 has no 'content'"]
    reasons = group_reasons(Problem(message, place=Place("a", line)) for line, message in enumerate(messages, 1))
    assert [str(reason) for reason in reasons] == [
        "2 × message 2 has no 'role' (the first: a:1)",
        "1 × it is empty (the first: a:2)",
        "1 × message 2 has no 'content' (the first: a:4)",
    ]


def test_messages_without_a_trained_token_are_counted():
    sums = RoleTally()
    for labels in ([IGNORED, 3], [IGNORED], []):
        sums.add(labels)
    assert (sums.messages, sums.tokens, sums.trained, sums.without) == (3, 3, 1, 2)


def test_a_source_without_tokens_has_a_share():
    assert Tally().share == 0


def test_numbers_and_shares_stand_to_the_right():
    assert Table("", ("a", "b", "c"), (("x", 1, "5%"), ("y", 2, "10%"))).numeric() == [1, 2]
