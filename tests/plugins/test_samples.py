"""Samples come before, during and after the training, in a file and on the screen."""

import json

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of, weights_of, write_and_run

ASKING = {
    "datasets.0.train_format": {"type": "chat_template", "train_on_inputs": False},
    "trainer.arguments.max_steps": 6,
    "trainer.arguments.eval_strategy": "steps",
    "trainer.arguments.eval_steps": 4,
    "trainer.data.val_set_size": 3,
    "evaluation.samples": {"count": 2, "every": 5, "max_new_tokens": 6},
    "plugins": [*SHIPPED, "samples"],
}


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_same_questions_are_asked_before_during_and_after(tmp_path, model_folder, rows_file, capsys):
    folder = write_and_run(tmp_path, model_folder, rows_file, ASKING)
    rows = samples_of(folder)
    assert [row["step"] for row in rows] == [0, 0, 4, 4, 5, 5, 6, 6]
    asked = [row["prompt"] for row in rows]
    assert asked == asked[:2] * 4 and asked[0] != asked[1]
    assert "Add" in asked[0] and asked[0].rstrip().endswith("assistant")
    assert rows[0]["reference"].startswith("The sum is ") and rows[0]["output"] != rows[0]["reference"]
    lines = capsys.readouterr().out.splitlines()
    for title in ("samples at step 0:", "samples at step 5:", "samples after the training:"):
        assert " -> " in lines[lines.index(title) + 1] and "(expected: The sum is" in lines[lines.index(title) + 1]
    assert "samples at step 4:" not in lines, "an evaluation's samples are in the file"


def test_prompts_of_ones_own_need_no_held_out_rows(tmp_path, model_folder, rows_file):
    prompts = ["Who are you?", "Add 1 and 2."]
    changes = {
        "datasets.0.train_format": "chat_template",
        "evaluation.samples": {"prompts": prompts, "max_new_tokens": 4},
        "plugins": [*SHIPPED, "samples"],
    }
    rows = samples_of(write_and_run(tmp_path, model_folder, rows_file, changes))
    assert [(row["step"], row["prompt"], row["reference"]) for row in rows] == [
        (step, prompt, None) for step in (0, 2) for prompt in prompts
    ]


def test_they_change_nothing_in_the_training(tmp_path, model_folder, rows_file):
    plain = {name: value for name, value in ASKING.items() if name != "evaluation.samples"} | {"plugins": SHIPPED}
    with_them = write_and_run(tmp_path / "with", model_folder, rows_file, ASKING)
    without = write_and_run(tmp_path / "without", model_folder, rows_file, plain)
    assert metrics_of(with_them) == metrics_of(without)
    first, second = weights_of(with_them / "model"), weights_of(without / "model")
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trainer.data.val_set_size": 0}, "there is nothing to ask: no prompts, and no held-out rows"),
        ({"evaluation.samples": {"prompts": ["a"], "count": 2}}, "counts held-out questions, and there are prompts"),
        (
            {"evaluation.samples": {"mask_ratio": 0.3}},
            "has no effect: this model writes from left to right, a token at a time",
        ),
        (
            {"evaluation.samples": {"prompts": ["a"], "mask_ratio": 0.3}, "trainer.data.val_set_size": 0},
            "masks held-out texts, and there are none",
        ),
        ({"datasets.0.train_format": "chat_template"}, "samples: no held-out row has a question before its answer"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, model_folder, rows_file, capsys, changes, expected):
    steady = {"trainer.arguments.eval_strategy": builders.REMOVE, "trainer.arguments.eval_steps": builders.REMOVE}
    written = ASKING | changes
    if "trainer.data.val_set_size" in changes:
        written |= steady
    written = {name: value for name, value in written.items() if value is not builders.REMOVE}
    if changes.get("datasets.0.train_format"):
        written["datasets.0.train_format"] = {"type": "chat_template", "train_on_inputs": True}
    assert main(["train", str(builders.write_config(tmp_path, model_folder, rows_file, written))]) == 2
    assert expected in capsys.readouterr().err
