"""Spans of contents in rendered text, and labels from spans."""

import re

import pytest

from dumbo.data.masking import (
    Piece,
    UnprovenSpanError,
    choose_mark,
    label_tokens,
    locate_contents,
    sentinel,
    widen_to_turn,
)
from dumbo.data.records import IGNORED

NO_END = re.compile("(?!)")


def locate(template, contents, wanted=(0,)):
    """Spans that are found where `template` is a function from contents to text."""
    rendered = template(contents)
    mark = choose_mark(rendered)
    marked = template([sentinel(mark, index) for index in range(len(contents))])
    return rendered, locate_contents(rendered, marked, mark, contents, wanted)


def test_contents_are_found_where_they_stand():
    rendered, pieces = locate(lambda c: f"<{c[0]}|{c[1]}>", ["same", "same"], wanted=(0, 1))
    assert pieces == [Piece(0, 1, 5), Piece(1, 6, 10)]
    assert rendered == "<same|same>"


def test_contents_may_come_in_another_order_and_more_than_once_where_not_wanted():
    _, pieces = locate(lambda c: f"{c[1]}-{c[0]}-{c[1]}", ["a", "bb"], wanted=(0,))
    assert pieces == [Piece(1, 0, 2), Piece(0, 3, 4), Piece(1, 5, 7)]


@pytest.mark.parametrize("strip", [str.strip, str.lstrip, str.rstrip, lambda text: text.strip("\n")])
def test_stripped_contents_are_found(strip):
    rendered, pieces = locate(lambda c: f"[I] {strip(c[0])} [/I] {strip(c[1])} </s>", [" \na ", "\nb c \n"], (0, 1))
    assert [rendered[piece.start : piece.end] for piece in pieces] == [strip(" \na "), strip("\nb c \n")]


def test_each_content_may_be_stripped_in_its_own_way():
    rendered, pieces = locate(lambda c: f"{c[0]}|{c[1].strip()}|{c[2].rstrip()}|", [" a ", " b ", " c "], (0, 1, 2))
    assert [rendered[piece.start : piece.end] for piece in pieces] == [" a ", "b", " c"]


def test_empty_contents_have_a_place():
    _, pieces = locate(lambda c: f"<{c[0]}>", [""])
    assert pieces == [Piece(0, 1, 1)]


def test_two_possible_readings_are_an_error():
    # Which of the two was stripped cannot be seen: three spaces stand where four would be.
    with pytest.raises(UnprovenSpanError, match="more than one place"):
        locate(lambda c: f"x{c[0].rstrip()} {c[1]}y", ["a ", " b"], wanted=(0, 1))


@pytest.mark.parametrize(
    ("template", "index", "reason"),
    [
        (lambda c: f"{c[0]}!", 1, "writes its content nowhere"),
        (lambda c: f"{c[0]} {c[1]} {c[1]}", 1, "writes its content 2 times"),
        (lambda c: f"{c[0]} {c[1].upper()}", 1, "rewrites its content"),
        (lambda c: f"{c[0].replace('a', 'b')} {c[1]}", 0, "rewrites its content"),
        (lambda c: f"{c[0]}{'!' if c[1] == 'ab' else '?'}{c[1]}", 1, "writes other text around it"),
        (lambda c: f"{c[0]} {c[1]}{'!' if c[1] == 'ab' else ''}", 1, "other text follows its content"),
        (lambda c: f"{c[0]} {c[1][:-1]}", 1, "writes its content nowhere"),
    ],
)
def test_what_cannot_be_proven_names_the_message(template, index, reason):
    with pytest.raises(UnprovenSpanError, match=reason) as error:
        locate(template, ["aa", "ab"], wanted=(0, 1))
    assert error.value.index == index
    assert str(error.value).startswith(f"message {index + 1}: ")


def test_the_mark_is_not_in_the_text():
    assert choose_mark("") == "\ue000"
    assert choose_mark("\ue000\ue001") == "\ue002"


def widened(text, generation_prompt="", end=NO_END):
    """`text` with the content in braces: what of it the model writes."""
    start, stop = text.index("{"), text.index("}") - 1
    text = text.replace("{", "").replace("}", "")
    first, last = widen_to_turn(text, [Piece(0, start, stop)], 0, generation_prompt, end)
    return text[first:last]


@pytest.mark.parametrize(
    ("text", "generation_prompt", "expected"),
    [
        ("<a>\n{hi}", "<a>\n", "hi"),
        ("<a>\n<think></think>{hi}", "<a>\n", "<think></think>hi"),
        ("A: {hi}", "A: ", "hi"),
        ("A: {hi}", "A:", " hi"),
        ("[/INST] {hi}", "", " hi"),
        ("<a>\n{hi}", "", "hi"),
        ("<b> {hi}", "<a>", "hi"),
    ],
)
def test_a_turn_starts_where_the_generation_prompt_ends(text, generation_prompt, expected):
    assert widened(text, generation_prompt) == expected


def test_a_turn_ends_after_its_end_token():
    end = re.compile(r"\s*</s>")
    assert widened("{hi} </s>\n", end=end) == "hi </s>"
    assert widened("{hi} x</s>\n", end=end) == "hi"


def test_an_end_token_in_the_next_content_is_not_the_end_of_this_one():
    pieces = [Piece(0, 0, 2), Piece(1, 2, 6)]
    assert widen_to_turn("hi</s>", pieces, 0, "", re.compile("</s>")) == (0, 2)


def test_only_tokens_wholly_within_a_span_are_trained():
    offsets = [(0, 2), (2, 4), (4, 7), (7, 8)]
    assert label_tokens([5, 6, 7, 8], offsets, [(3, 8)]) == [IGNORED, IGNORED, 7, 8]
    assert label_tokens([5, 6, 7, 8], offsets, [(2, 5)]) == [IGNORED, 6, IGNORED, IGNORED]
    assert label_tokens([5, 6, 7, 8], offsets, []) == [IGNORED] * 4


def test_spans_that_touch_are_one_and_their_order_is_free():
    assert label_tokens([5, 6], [(0, 2), (2, 4)], [(3, 4), (1, 3), (0, 1)]) == [5, 6]
    assert label_tokens([5], [(0, 2)], [(1, 2), (0, 1)]) == [5]


def test_the_bytes_of_one_character_share_its_label():
    assert label_tokens([1, 2, 3, 4], [(0, 1), (1, 2), (1, 2), (2, 3)], [(1, 2)]) == [IGNORED, 2, 3, IGNORED]


def test_a_token_without_characters_belongs_to_what_follows():
    offsets = [(0, 2), (2, 2), (2, 4), (4, 4), (4, 5)]
    assert label_tokens([1, 2, 3, 4, 5], offsets, [(2, 4)]) == [IGNORED, 2, 3, IGNORED, IGNORED]


def test_an_empty_span_trains_nothing():
    assert label_tokens([1, 2], [(0, 1), (1, 2)], [(1, 1)]) == [IGNORED, IGNORED]
