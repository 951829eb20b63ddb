"""Trackers of a run that goes on: the same run there, every step once or with the same values."""

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import stop_by, write_stoppable


@pytest.fixture
def stopped(tmp_path, model_folder, monkeypatch):
    """A run with four trackers that was stopped after step 5 of 8."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(26))
    changes = {
        "trainer.arguments.max_steps": 8,
        "trainer.arguments.num_train_epochs": builders.REMOVE,
        "trainer.arguments.logging_steps": 1,
        "trainer.wandb": {"mode": "offline"},
        "trainer.mlflow": {"tracking_uri": str(tmp_path / "mlruns")},
        "trainer.trackio": {},
    }
    file = write_stoppable(tmp_path / "run", model_folder, rows, changes, ("wandb", "mlflow", "trackio", "tensorboard"))
    with stop_by("SIGTERM", 5):
        assert main(["train", str(file)]) == 75
    return file


@pytest.mark.full
def test_the_same_run_everywhere(stopped, tmp_path, capfd):
    assert main(["train", str(stopped), "--resume"]) == 0
    said = capfd.readouterr()
    assert "gets no more metrics" not in said.err
    out = stopped.parent / "out"

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("dumbo")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = {metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")}
    assert history == set(range(1, 9))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))

    folders = [path.name.rpartition("-")[2] for path in (out / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and len(set(folders)) == 1, "two parts of one run"
