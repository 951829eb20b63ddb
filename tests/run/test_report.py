"""`dumbo report`, and the report that a real run leaves."""

import json
import re
import shutil

import pytest

from dumbo.cli.main import main
from dumbo.output.report import write_report
from tests.run.whole_runs import write_and_run
from tests.unit.output.fake_runs import metrics_rows, write_fake_run


@pytest.fixture(scope="module")
def real_run(tmp_path_factory, model_folder, rows_file):
    """A run of six steps with an evaluation."""
    changes = {"trainer.arguments.max_steps": 6, "trainer.data.val_set_size": 2}
    return write_and_run(tmp_path_factory.mktemp("real"), model_folder, rows_file, changes)


def complaint(capsys, *words):
    """The error of a command that must fail, in a line with its hints."""
    capsys.readouterr()
    assert main(["report", *map(str, words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_a_real_run_has_a_report(real_run):
    page = write_report(real_run).read_text(encoding="utf-8")
    assert "could not be made" not in page
    for shown in ("for <b>6 steps</b>", "trainer.arguments.learning_rate", "Gradient norm", "evaluation", "dumbo chat"):
        assert shown in page, shown
    assert (real_run / "loss.png").stat().st_size > 5000


def test_the_report_of_a_finished_run_is_written_by_the_run(real_run):
    """In a copy the files of the run's own report are there before anybody asks."""
    assert (real_run / "report.html").is_file() and (real_run / "loss.png").is_file()


def test_a_report_is_written_again(real_run, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(real_run, folder)
    (folder / "report.html").unlink(missing_ok=True)
    (folder / "loss.png").unlink(missing_ok=True)
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == str(folder / "report.html") and (folder / "loss.png").exists()
    assert re.fullmatch(rf"{folder}: .*, 6 steps.*", out[0])
    assert any(re.match(r"  train/loss +\d\.\d+   lowest \d\.\d+ at step \d", line) for line in out)


def test_a_report_goes_where_it_is_asked_for(tmp_path, capsys):
    run = write_fake_run(tmp_path / "run", rows=metrics_rows(20))
    assert main(["report", str(run), "--output", str(tmp_path / "my.html")]) == 0
    assert (tmp_path / "my.html").exists() and (tmp_path / "my.png").exists()
    assert not (run / "report.html").exists()


def test_a_picture_that_nobody_named_is_not_replaced(tmp_path, capsys):
    runs = [write_fake_run(tmp_path / name, rows=metrics_rows(20)) for name in ("a", "b")]
    for words, name in (([runs[0], "--output", tmp_path / "cat.html"], "cat"), (runs, "comparison")):
        (tmp_path / f"{name}.png").write_text("a cat")
        assert "and there is such a file, without a page\n" in complaint(capsys, *words)
        assert (tmp_path / f"{name}.png").read_text() == "a cat"
        (tmp_path / f"{name}.png").unlink()
        for _ in range(2):
            assert main(["report", *map(str, words)]) == 0, "a report may be written again"


def test_a_run_that_was_killed_has_a_report(tmp_path, capsys):
    run = write_fake_run(tmp_path / "run", rows=metrics_rows(20), outcome="running", steps=None)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-30])
    assert main(["report", str(run)]) == 0
    assert "still running, or killed, 20 of 900 steps" in capsys.readouterr().out


def test_several_runs_are_compared(tmp_path, capsys):
    folders = [write_fake_run(tmp_path / name, rows=metrics_rows(30, seed=i)) for i, name in enumerate("abc")]
    assert main(["report", *map(str, folders)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "comparison.html")
    assert "3 runs compared" in (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert (tmp_path / "comparison.png").stat().st_size > 5000


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert complaint(capsys, tmp_path / "none") == f"{tmp_path / 'none'}: there is no such folder\n"
    assert "is not the folder of a run: it has no metrics.jsonl" in complaint(capsys, tmp_path)
    run = write_fake_run(tmp_path / "runs" / "a")
    assert f"is a file; a run is a folder\n    write dumbo report {run}\n" in complaint(capsys, run / "run.yaml")
    assert f"write dumbo report {run}\n" in complaint(capsys, run / "model")
    assert f"it holds runs: {run}\n" in complaint(capsys, tmp_path / "runs")


@pytest.mark.parametrize("text", [None, "", "not json\n", '{"step": 3}\n'])
def test_a_run_without_metrics_is_said(tmp_path, capsys, text):
    run = write_fake_run(tmp_path / "run")
    file = run / "metrics.jsonl"
    file.unlink() if text is None else file.write_text(text)
    assert "nothing was logged" in complaint(capsys, run)


def test_one_run_given_twice_is_said(tmp_path, capsys, monkeypatch):
    run = write_fake_run(tmp_path / "run", rows=metrics_rows(20))
    monkeypatch.chdir(tmp_path)
    assert "run is given twice" in complaint(capsys, "run", run)
    assert "name each run once" in complaint(capsys, run, run)


def test_a_page_that_cannot_be_written_is_said(tmp_path, capsys):
    run = write_fake_run(tmp_path / "run", rows=metrics_rows(20))
    (tmp_path / "folder.html").mkdir()
    assert "ends in .html" in complaint(capsys, run, "--output", tmp_path / "page.png")
    assert "there is no folder" in complaint(capsys, run, "--output", tmp_path / "no" / "page.html")
    assert "this is a folder" in complaint(capsys, run, "--output", tmp_path / "folder.html")


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, capsys):
    run = write_fake_run(tmp_path / "run", rows=metrics_rows(20))
    (run / "report.html").mkdir()
    (run / "report.html" / "x").write_text("")
    assert "report.html cannot be written: " in complaint(capsys, run)


def test_no_run_at_all_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report"])
    assert ended.value.code == 2 and "RUN" in capsys.readouterr().err


def test_the_report_of_an_interrupted_run_names_the_checkpoint(tmp_path):
    run = write_fake_run(tmp_path / "run", rows=metrics_rows(40), outcome="interrupted", steps=40)
    for step in (20, 40):
        (run / "checkpoints" / f"step-{step:06}").mkdir(parents=True)
    text = write_report(run).read_text(encoding="utf-8")
    assert "Stopped early" in text and f"from_pretrained(&quot;{run}/checkpoints/step-000040&quot;)" in text
    assert "40 of 900 steps" in text


def test_what_the_summary_says_is_kept_as_it_is(real_run):
    """The report reads; it changes nothing else in the folder."""
    before = {
        path.name: path.read_bytes() for path in real_run.iterdir() if path.suffix in (".jsonl", ".json", ".yaml")
    }
    write_report(real_run)
    after = {path.name: path.read_bytes() for path in real_run.iterdir() if path.suffix in (".jsonl", ".json", ".yaml")}
    assert before == after
    assert all(json.loads(line) for line in before["metrics.jsonl"].splitlines())
