"""The examples run: some steps of each, and in `make test-full` to their ends, with what they promise."""

import json
import runpy
import shutil
import string

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import losses_of, metrics_of

EXAMPLES = builders.ROOT / "examples"
PRETRAINED = ("first_run", "smollm2_alpaca")
"""Those that start from a model of the hub."""
TEACHER = (
    "datasets.0.train_format.train_on_inputs=true",
    "datasets.1.train_format.train_on_inputs=true",
    "plugins=[transformers, transformers_trainer, tokenizer_trainer, polars, jinja_formatter]",
)
"""What makes the teacher of `distill.yaml` of the quickstart, as its comment says."""
SHORT = ("trainer.arguments.max_steps=2", "trainer.arguments.batch_size=16")


@pytest.fixture
def run_example(tmp_path, model_folder, monkeypatch):
    """A function that trains an example from the repository's root, as its comments say, on what this machine has."""
    monkeypatch.chdir(builders.ROOT)
    rows = builders.write_rows(tmp_path / "alpaca.jsonl", builders.alpaca_rows(60))
    here = {
        "quickstart": [],
        "diffusion": [],
        "lora": [],
        "distill": [],
        "qlora": [],
        "eaft": [],
        "dft": [],
        "spectrum": [],
        "dense_mixer": [],
        "sparse": [],
        "grokking": [],
        "first_run": [f"model.base_model={model_folder}"],
        "smollm2_alpaca": [
            f"model.base_model={model_folder}",
            f"datasets.0.path={rows}",
            "trainer.data.val_set_size=6",
            "trainer.arguments.eval_steps=2",
            "trainer.arguments.batch_size=8",
            "trainer.arguments.physical_batch_size=8",
        ],
    }

    def run(name, *words, output="out"):
        folder = tmp_path / output
        assert main(["train", f"examples/{name}.yaml", f"trainer.output_dir={folder}", *here[name], *words]) == 0
        return folder

    return run


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", PRETRAINED)
def test_an_example_takes_its_first_steps(run_example, name):
    physical = ["trainer.arguments.physical_batch_size=8"] if name != "first_run" else []
    folder = run_example(name, *SHORT, *physical)
    assert len(losses_of(folder)) == 2
    assert (folder / "model" / "model.safetensors").is_file() and (folder / "report.html").is_file()


def test_the_quickstart_takes_its_first_steps_and_lora_goes_on(run_example):
    few = "evaluation.exact_match.max_rows=8"
    first = run_example("quickstart", *SHORT, "trainer.arguments.physical_batch_size=8", few, output="first")
    assert len(losses_of(first)) == 2
    assert (first / "model" / "model.safetensors").is_file() and (first / "report.html").is_file()
    one = ["trainer.arguments.max_steps=1", "trainer.arguments.eval_on_start=false"]
    for name in ("eaft", "dft", "spectrum"):
        run_example(name, f"model.base_model={first / 'model'}", few, *one, output=name)
    named = [f"model.tokenizer.path={first / 'model'}", f"trainer.kd.teacher.path={first / 'model'}"]
    taught = run_example("distill", *named, "trainer.arguments.max_steps=2", "datasets.0.split=train[:64]", output="kd")
    assert all(row["train/kd_loss"] > 0 for row in metrics_of(taught) if "train/loss" in row)
    folder = run_example("lora", f"model.base_model={first / 'model'}", few, *one)
    assert (folder / "model" / "adapter_model.safetensors").is_file()
    assert samples_of(folder)[0]["prompt"].startswith("double ")


def test_experts_and_sparse_models_take_their_first_steps(run_example, model_folder, tmp_path):
    one = ["trainer.arguments.max_steps=1", "evaluation.exact_match.max_rows=8"]
    assert losses_of(run_example("dense_mixer", *one))
    prune = runpy.run_path(str(EXAMPLES / "prune.py"))["main"]
    prune(str(model_folder), str(tmp_path / "pruned"), 0.5)
    sparse = [f"model.base_model={tmp_path / 'pruned'}", "trainer.arguments.eval_on_start=false"]
    folder = run_example("sparse", *one, *sparse, output="sparse")
    rows = json.loads((folder / "summary.json").read_text())["sparsity"]
    assert len(rows) == 14 and all(row["before"] == row["after"] == 0.5 for row in rows)


def test_the_example_of_grokking_takes_its_first_steps(run_example):
    few = ["trainer.arguments.max_steps=2", "trainer.arguments.eval_steps=2", "evaluation.exact_match.max_rows=20"]
    folder = run_example("grokking", *few)
    assert len(losses_of(folder)) == 2
    assert len(losses_of(folder, "eval/exact_match")) == 1


def test_the_diffusion_example_takes_its_first_steps_and_writes(run_example, capsys):
    few = ["evaluation.exact_match.max_rows=8", "evaluation.samples.count=1", "trainer.arguments.eval_on_start=false"]
    folder = run_example("diffusion", *SHORT, "trainer.arguments.physical_batch_size=8", *few)
    assert len(losses_of(folder, "train/accuracy")) == 2 and samples_of(folder)
    assert main(["generate", str(folder), "--max-new-tokens", "4", "sort c b a", ":mask 0.5 sort c b a = a b c"]) == 0
    assert "Masked (" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "count"), [("make_quickstart", 4), ("make_modular", 2)])
def test_the_data_is_what_its_script_writes(tmp_path, script, count):
    runpy.run_path(str(EXAMPLES / "data" / f"{script}.py"))["main"](tmp_path)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert len(names) == count
    for name in names:
        assert (tmp_path / name).read_bytes() == (EXAMPLES / "data" / name).read_bytes(), name


def test_every_sum_of_the_grokking_example_is_right_and_there_once():
    questions, prime = [], 31
    digits = string.digits + string.ascii_letters
    for side in ("train", "held_out"):
        for line in (EXAMPLES / "data" / f"modular_{side}.jsonl").read_text(encoding="utf-8").splitlines():
            (asked, answer) = (segment["text"] for segment in json.loads(line)["segments"])
            questions.append(asked)
            assert digits.index(answer) == (digits.index(asked[0]) + digits.index(asked[2])) % prime
    assert len(questions) == len(set(questions)) == prime**2


@pytest.mark.parametrize("name", ["quickstart", "lora"])
def test_no_held_out_question_is_trained_on(name):
    sides = []
    for side in ("train", "held_out"):
        lines = (EXAMPLES / "data" / f"{name}_{side}.jsonl").read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line)["instruction"] for line in lines]
        assert len(set(questions)) == len(questions)
        sides.append(set(questions))
    assert not sides[0] & sides[1]


@pytest.mark.full
def test_experts_learn_from_nothing(run_example):
    losses = losses_of(run_example("dense_mixer"))
    assert losses[-1] < losses[0] / 2


@pytest.mark.full
def test_a_pruned_quickstart_gets_better_with_its_zeros(run_example, tmp_path):
    first = run_example("quickstart", output="first")
    prune = runpy.run_path(str(EXAMPLES / "prune.py"))["main"]
    prune(str(first / "model"), str(tmp_path / "pruned"), 0.5)
    folder = run_example("sparse", f"model.base_model={tmp_path / 'pruned'}", output="sparse")
    pruned, *_, trained = losses_of(folder, "eval/exact_match")
    assert trained > pruned


@pytest.mark.full
@pytest.mark.parametrize("name", PRETRAINED)
def test_an_example_runs_to_its_end(run_example, name):
    folder = run_example(name)
    losses = losses_of(folder)
    assert losses[-1] < losses[0]
    assert json.loads((folder / "summary.json").read_text())["outcome"] == "finished"


@pytest.mark.full
def test_the_diffusion_example_fills_in_masked_words(run_example):
    """Of words alone, without the end tokens that a row is sure to have: well above the most frequent masked word."""
    folder = run_example("diffusion", output="diffusion")
    measure = runpy.run_path(str(EXAMPLES.parent / "benchmarks" / "diffusion.py"))["measure"]
    for share, found in measure(folder).items():
        assert found["right"] > 0.35 and found["right"] > 2 * found["chance"], share
    assert losses_of(folder, "eval/exact_match")[-1] > 0.1
    assert {row["step"] for row in samples_of(folder)} >= {0, metrics_of(folder)[-1]["step"]}


@pytest.mark.full
def test_the_quickstart_learns_and_lora_goes_on(run_example, capsys):
    """What the README says of both: from nothing right to nine out of ten and more."""
    first = run_example("quickstart", output="quickstart")
    right = losses_of(first, "eval/exact_match")
    assert right[0] == 0 and right[-1] > 0.9
    rows = samples_of(first)
    assert {row["step"] for row in rows} >= {0, metrics_of(first)[-1]["step"]}
    folder = run_example("qlora", f"model.base_model={first / 'model'}", output="qlora")
    assert losses_of(folder, "eval/exact_match")[-1] > 0.9
    for name in ("eaft", "dft", "spectrum"):
        folder = run_example(name, f"model.base_model={first / 'model'}", output=name)
        right = losses_of(folder, "eval/exact_match")
        assert right[0] < 0.1 and right[-1] > right[0]
    folder = run_example("lora", f"model.base_model={first / 'model'}", output="lora")
    right = losses_of(folder, "eval/exact_match")
    assert right[0] < 0.1 and right[-1] > 0.9
    capsys.readouterr()
    assert main(["generate", str(folder), "double h e y"]) == 0
    assert capsys.readouterr().out == "h h e e y y\n"
    shutil.rmtree(first / "model")
    assert main(["generate", str(folder), "double h e y"]) == 2
    assert "base model" in capsys.readouterr().err


@pytest.mark.full
def test_a_student_comes_nearer_to_its_teacher_and_learns_more_than_without(run_example):
    """At equal steps, of equal rows and equal first weights."""
    teacher = run_example("quickstart", "trainer.arguments.max_steps=300", *TEACHER, output="teacher") / "model"
    tokens = f"model.tokenizer.path={teacher}"
    taught = run_example("distill", tokens, f"trainer.kd.teacher.path={teacher}", output="kd")
    told = losses_of(taught, "train/kd_loss")
    assert told[-1] < 0.5 * told[0]
    plain = "plugins=[transformers, transformers_trainer, polars, jinja_formatter]"
    alone = run_example("distill", tokens, "trainer.kd=null", plain, output="alone")
    ours, theirs = (losses_of(run, "eval/loss") for run in (taught, alone))
    assert len(ours) == len(theirs) and ours[-1] < theirs[-1] - 0.05
    assert min(ours) < min(theirs)


@pytest.mark.full
def test_the_example_of_grokking_runs_to_its_end(run_example):
    right = losses_of(run_example("grokking"), "eval/exact_match")
    assert right[0] < 0.1 and right[-1] > 0.95
