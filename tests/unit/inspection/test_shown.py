"""What is shown of rows: every character of them, harmless, in colours or marks."""

import io
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumbo.data.encoding import decode_each
from dumbo.data.records import IGNORED, Example, Origin
from dumbo.data.train_format import Explanation, MessageTokens
from dumbo.errors import Place, Problem
from dumbo.inspection.shown import Token, show_bad_rows, show_row
from dumbo.inspection.terminal import Screen
from dumbo.inspection.tokens import special_tokens
from dumbo.visible import made_visible
from tests import builders

ORIGIN = Origin("rows.jsonl", 3)
TOKENIZER = builders.build_tokenizer()


def row(labels=(IGNORED, IGNORED, 12, 13, 14), straddling=(1,)):
    texts = ("<|im_start|>", "a\n", " b", "\n", "<|im_end|>")
    example = Example([1, 11, 12, 13, 14], list(labels), ORIGIN)
    messages = (MessageTokens(0, "user\x1b", 0, 2), MessageTokens(1, "assistant", 2, 5), MessageTokens(2, "tool", 5, 5))
    return show_row(ORIGIN, Explanation(example, texts, messages, frozenset(straddling), ("so",)), frozenset({1, 14}))


class Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self):
        return True


@given(st.text())
def test_the_texts_of_tokens_are_the_whole_text(text):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    texts = decode_each(ids, TOKENIZER)
    assert len(texts) == len(ids) and "".join(texts) == text


def test_a_character_of_several_tokens_is_the_first_ones():
    ids = TOKENIZER("a😀b").input_ids
    assert len(ids) > 3 and decode_each(ids, TOKENIZER) == ("a", "😀", *[""] * (len(ids) - 3), "b")
    assert decode_each(ids[:2], TOKENIZER) == ("a", "\ufffd"), "cut off within a character"


def test_a_decoder_that_leaves_out_the_first_space_loses_none():
    """As those of SentencePiece do."""
    from tokenizers import decoders

    tokenizer = builders.build_tokenizer()
    steps = [decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    ids = tokenizer("the license of the work").input_ids
    assert "".join(decode_each(ids, tokenizer)) == "the license of the work"


def test_special_tokens_are_all_that_were_added_as_such():
    assert special_tokens(TOKENIZER) == frozenset(range(4))


@given(st.text(st.characters(exclude_categories=())))
def test_no_control_character_is_left(text):
    shown = made_visible(text)
    assert all(char in "\n\t" or category(char) not in ("Cc", "Cs") for char in shown)
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "state", "special", "expected"),
    [
        (" a", "trained", False, " a"),
        ("  ", "trained", False, "··"),
        (" \t", "trained", False, "·→\t"),
        ("a.\n\n", "trained", False, "a.⏎\n⏎\n"),
        (" \n", "masked", False, " \n"),
        ("\n", "masked", True, "⏎\n"),
        (" ", "straddling", False, "·"),
        ("\x1b[0m", "masked", False, "␛[0m"),
    ],
)
def test_white_space_that_matters_is_seen(text, state, special, expected):
    assert Token(0, 1, 1, text, state, special).visible == expected


def test_a_row_is_described():
    shown = row()
    assert (shown.place, shown.heading) == ("rows.jsonl:3", "5 tokens, 3 trained (60%)")
    assert [token.state for token in shown.tokens] == ["masked", "straddling", *["trained"] * 3]
    assert [(m.number, m.role, m.positions, m.tokens, m.trained) for m in shown.messages] == [
        (1, "user␛", "0–1", 2, 0),
        (2, "assistant", "2–4", 3, 3),
        (3, "tool", "none", 0, 0),
    ]
    assert shown.tokens[4].title == "token 4, id 14, special, trained, label is its id"
    assert row(labels=[IGNORED] * 4 + [7]).tokens[4].title.endswith("trained, label 7")


def test_a_trained_token_never_straddles():
    assert row(straddling=(2,)).tokens[2].state == "trained"


def test_bad_rows_are_in_the_order_of_files():
    problems = [Problem("p", place=Place("b", 1)), Problem("q", place=Place("a", 9)), Problem("r", place=Place("a", 2))]
    assert [shown.place for shown in show_bad_rows(problems)] == ["a:2", "a:9", "b:1"]


def test_marks_tell_where_there_are_no_colours():
    stream = io.StringIO()
    Screen(stream).row(row())
    assert "  <|im_start|>‹a⏎\n  ›⟦ b⏎\n  <|im_end|>⟧\n" in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_terminal_has_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    screen = Screen(stream)
    screen.legend()
    screen.row(row())
    said = stream.getvalue()
    assert "\x1b[32m b" in said, "green"
    assert "\x1b[1;32m<|im_end|>" in said, "bold green"
    assert "\x1b[1;34m<|im_start|>" in said, "bold blue"
    assert "\x1b[33ma⏎" in said, "yellow"
    assert "\x1b[2mnot trained" in said, "dim"
    assert "⟦" not in said and "user␛" in said


def test_a_terminal_whose_colours_are_switched_off_has_marks(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    Screen(stream).row(row())
    assert "⟦ b⏎" in stream.getvalue()
