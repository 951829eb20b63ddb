"""What a tracker's library raises never stops a training, and never shows a secret."""

from pathlib import Path

import pytest

from dumbo.errors import ConfigError, RunError
from dumbo.metrics import Metrics, RunInfo
from dumbo.trackers.tracker import End, Tracker, TrackerError, in_one_line

LEAKY = ConnectionError("no way to http://me:word@host/")
RUN = RunInfo("run", Path(), {})


class Listening(Tracker):
    name = "listening"
    advice = "write something else"

    def __init__(self, failing=(), error=LEAKY):
        self.said, self.calls, self.failing, self.error = [], [], failing, error
        super().__init__(self.said.append)

    def _call(self, *call):
        self.calls.append(call)
        if call[0] in self.failing:
            raise self.error

    def start(self, run):
        self._call("start")

    def write(self, metrics, step):
        self._call("write", step)

    def finish(self, end):
        self._call("finish", end)

    def abandon(self):
        self._call("abandon")


def test_the_end_has_the_outcome_and_the_last_step():
    tracker = Listening()
    tracker.open(RUN)
    for step in (1, 3, 2):
        tracker.log_metrics({}, step)
    tracker.close("interrupted")
    assert tracker.calls[-1] == ("finish", End("interrupted", 3))
    assert not End("failed", 3).left_nothing
    assert End("failed", None).left_nothing
    assert not End("finished", None).left_nothing


def test_what_cannot_be_opened_is_let_go_and_says_what_to_write():
    tracker = Listening(failing=("start", "abandon"))
    with pytest.raises(RunError) as raised:
        tracker.open(RUN)
    words = "listening: ConnectionError: no way to http://me:<redacted>@host/; write something else"
    assert str(raised.value) == words
    tracker.log_metrics({}, 1)
    tracker.close("failed")
    assert tracker.calls == [("start",), ("abandon",)]


def test_an_error_with_a_key_is_passed_on():
    tracker = Listening(failing=("start",), error=ConfigError.at("trainer.x", "wrong"))
    with pytest.raises(ConfigError, match="trainer.x: wrong"):
        tracker.open(RUN)
    assert tracker.calls == [("start",), ("abandon",)]


def test_an_interrupt_while_it_opens_is_no_failure_of_the_tracker():
    tracker = Listening(failing=("start",), error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tracker.open(RUN)
    assert tracker.calls == [("start",), ("abandon",)]


@pytest.mark.parametrize("hook", ["write", "finish"])
def test_one_that_fails_later_is_let_go_and_reported_once(hook, capsys):
    tracker, other = Listening(failing=(hook,)), Listening()
    metrics = Metrics([("listening", tracker), ("other", other)])
    metrics.open(RUN)
    metrics.log({}, 1)
    metrics.log({}, 2)
    metrics.close("finished")
    error = capsys.readouterr().err
    assert error.count("'listening' failed in") == len(error.splitlines()) == 1
    assert "http://me:<redacted>@host/" in error
    assert tracker.calls[-2][0] == hook
    assert tracker.calls[-1] == ("abandon",)
    assert other.calls == [("start",), ("write", 1), ("write", 2), ("finish", End("finished", 2))]


def test_a_long_message_keeps_its_beginning_and_its_reason():
    line = in_one_line(ValueError("begin " + "x " * 1000 + "\n reason"))
    assert line.startswith("ValueError: begin x")
    assert line.endswith("x reason")
    assert len(line) < 420
    assert "\n" not in line
    assert in_one_line(TrackerError("")) == "no message"


def test_what_is_told_has_no_secret():
    tracker = Listening()
    tracker.tell("at http://me:word@host/")
    assert tracker.said == ["listening: at http://me:<redacted>@host/"]
