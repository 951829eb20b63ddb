"""The collector by itself: no model, no run."""

from dumbo.metrics import RunInfo
from dumbo_csv_log import CsvLog


def test_losses_of_every_second_step(tmp_path):
    log = CsvLog("losses.csv", every=2)
    log.open(RunInfo("run", tmp_path, {}))
    for step in (1, 2, 3, 4):
        log.log_metrics({"train/loss": step / 2, "train/grad_norm": 1.0}, step)
    log.log_metrics({"eval/loss": 0.25}, 4)
    log.close("finished")
    assert (tmp_path / "losses.csv").read_text().splitlines() == [
        "step,metric,value",
        "2,train/loss,1.0",
        "4,train/loss,2.0",
        "4,eval/loss,0.25",
    ]
