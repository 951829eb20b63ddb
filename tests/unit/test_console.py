"""What a run tells the person in front of it: plain lines in a pipe, a bar on a terminal, nothing on other ranks."""

import io

import pytest

from dumbo.console import Console, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(console_calls, *, stream=None, enabled=True):
    stream = io.StringIO() if stream is None else stream
    console_calls(Console(enabled=enabled, stream=stream))
    return stream.getvalue()


def training(console):
    console.start_training(4)
    console.advance(1)
    metrics = {"train/loss": 2.34567, "train/learning_rate": 5e-5, "train/grad_norm": 1.23456, "train/epoch": 0.5}
    console.log_metrics({**metrics, "perf/tokens_per_second": 1234.5}, 1)
    console.log_metrics({"eval/loss": 1.5, "train/epoch": 0.5}, 1)
    console.stop_training()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00"), (5025, "1:23:45")],
)
def test_times_are_read_like_those_of_a_clock(seconds, expected):
    assert clock(seconds) == expected


def test_in_a_pipe_every_log_is_a_plain_line():
    first, second = printed(training).splitlines()
    assert first.startswith("step 1/4  loss 2.3457  lr 5e-05  grad 1.23  1234 tokens/s  0:00")
    assert first.endswith(" left")
    assert second == "step 1/4  eval/loss 1.5"


def test_the_last_step_has_no_time_left():
    def last(console):
        console.start_training(4)
        console.log_metrics({"train/loss": 2.0}, 4)

    assert printed(last) == "step 4/4  loss 2.0000\n"


def test_in_a_pipe_nothing_is_drawn_over():
    def everything(console):
        console.say("with [brackets] and ünïcode")
        assert list(console.track([1, 2, 3], "counting", 3)) == [1, 2, 3]
        training(console)
        console.close("finished")

    text = printed(everything)
    assert text.startswith("with [brackets] and ünïcode\n")
    assert "\x1b" not in text
    assert "\r" not in text


def test_on_a_terminal_there_is_a_bar_with_the_loss():
    def run(console):
        assert list(console.track([1, 2, 3], "counting", 3)) == [1, 2, 3]
        console.say("with [brackets]")
        training(console)

    text = printed(run, stream=Terminal())
    assert "with [brackets]" in text
    assert "loss 2.346" in text
    assert "1/4" in text
    assert "eval/loss 1.5" in text
    assert "lr 5e-05" not in text, "the bar stands for the line"


def test_a_bar_that_a_failed_run_leaves_is_taken_away_once():
    def fail(console):
        console.start_training(4)
        console.close("failed")
        console.close("failed")
        console.say("after")

    assert "after" in printed(fail, stream=Terminal())


def test_other_ranks_print_nothing():
    def everything(console):
        console.say("a line")
        console.table(["a"], [[1]])
        assert list(console.track([1, 2], "counting", 2)) == [1, 2]
        training(console)

    assert printed(everything, enabled=False) == ""
    assert printed(everything, enabled=False, stream=Terminal()) == ""


def test_a_table_has_numbers_on_the_right_and_text_on_the_left():
    text = printed(lambda console: console.table(["source", "rows"], [["a.json", 12345], ["longer.json", 7]]))
    assert text.splitlines() == [
        "  source         rows",
        "  a.json       12,345",
        "  longer.json       7",
    ]


def test_a_table_without_rows_is_its_header():
    assert printed(lambda console: console.table(["source", "rows"], [])) == "  source  rows\n"
