"""Metrics go to every collector; one that fails is told of once and dropped; `metrics.jsonl` has a line per call."""

import json
import math

import pytest

from dumbo.errors import PluginError
from dumbo.metrics import Metrics, MetricsCollector, RunInfo
from dumbo.run_folder import MetricsFile


class Listening(MetricsCollector):
    def __init__(self):
        self.heard = []

    def open(self, run):
        self.heard.append(("open", run.name))

    def log_metrics(self, metrics, step):
        self.heard.append((step, metrics))
        metrics["added"] = 1.0

    def close(self, outcome):
        self.heard.append(("close", outcome))


class FailsFrom(MetricsCollector):
    def __init__(self, step):
        self.step, self.calls = step, 0

    def log_metrics(self, metrics, step):
        self.calls += 1
        if step >= self.step:
            raise ConnectionError("the server is gone")

    def close(self, outcome):
        raise OSError("cannot say goodbye")


@pytest.fixture
def run(tmp_path):
    return RunInfo("some-run", tmp_path, {})


def test_every_collector_gets_a_copy_of_its_own(run):
    one, other = Listening(), Listening()
    metrics, values = Metrics([("one", one), ("other", other)]), {"train/loss": 1.0}
    metrics.open(run)
    metrics.log(values, 3)
    assert values == {"train/loss": 1.0}
    metrics.close("finished")
    metrics.close("failed")
    heard = [("open", "some-run"), (3, {"train/loss": 1.0, "added": 1.0}), ("close", "finished")]
    assert one.heard == other.heard == heard


def test_one_that_fails_is_told_of_once_and_the_others_go_on(run, capsys):
    failing, listening = FailsFrom(2), Listening()
    metrics = Metrics([("tracker", failing), ("other", listening)])
    metrics.open(run)
    for step in (1, 2, 3):
        metrics.log({"train/loss": 1.0}, step)
    metrics.close("finished")
    assert failing.calls == 2
    assert [step for step, _ in listening.heard] == ["open", 1, 2, 3, "close"]
    message = "dumbo: 'tracker' failed in log_metrics and gets no more metrics: ConnectionError: the server is gone ("
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_one_that_fails_at_the_end_is_told_of(run, capsys):
    metrics = Metrics([("tracker", FailsFrom(9)), ("other", Listening())])
    metrics.close("finished")
    assert "'tracker' failed in close" in capsys.readouterr().err


def test_one_that_cannot_be_opened_ends_the_run_with_its_name(run):
    class Closed(MetricsCollector):
        def open(self, run):
            raise PermissionError("wrong key")

    with pytest.raises(PluginError, match="the metrics collector of 'tracker' cannot be opened: .*wrong key"):
        Metrics([("tracker", Closed())]).open(run)


def test_the_file_has_a_line_per_call_that_is_there_at_once(run):
    file, collector = run.output_dir / "metrics.jsonl", MetricsFile(print)
    collector.open(run)
    collector.log_metrics({"train/loss": 1.25, "train/epoch": 0.5}, 1)
    assert file.read_text() == '{"step": 1, "train/loss": 1.25, "train/epoch": 0.5}\n'
    collector.log_metrics({"train/loss": math.nan}, 2)
    collector.close("finished")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert math.isnan(rows[1]["train/loss"])
