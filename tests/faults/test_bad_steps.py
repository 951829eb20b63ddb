"""Steps whose loss or gradient is not finite: nothing of them reaches the weights; too many in a row end the run."""

import json
import math

import pytest
import torch

from dumbo.bridge.bad_rows_file import describe_rows
from dumbo.bridge.step_guard import bad_step_error
from dumbo.data.records import Origin
from tests import builders
from tests.distributed.test_two_processes import torchrun
from tests.numerics.training import build_trainer, random_rows, tiny_llama
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, printed_by, weights_of

# The loss or the gradient is spoilt in the steps that a file names; what every step leaves is kept beside it.
SPOILING = """
import copy
import json
from pathlib import Path
import torch
from transformers import TrainerCallback
from dumbo.losses.token import next_token_cross_entropy
from dumbo.plugin_loader import BasePlugin

HERE = Path(__file__).parent

class Keep(TrainerCallback):
    def __init__(self):
        self.left, self.saw_gradient = [], []
    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.saw_gradient.append(any(parameter.grad is not None for parameter in model.parameters()))
    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        assert not any(parameter.grad is not None for parameter in model.parameters())
        self.left.append(copy.deepcopy({"weights": model.state_dict(), "moments": optimizer.state_dict()["state"]}))
    def on_train_end(self, args, state, control, **kwargs):
        torch.save({"left": self.left, "saw_gradient": self.saw_gradient}, HERE / "left.pt")

class SpoilPlugin(BasePlugin):
    def get_callbacks(self, config):
        return [Keep()]
    def patch_model(self, model, config):
        model.lm_head.weight.register_hook(lambda grad: grad + self.spoilt("gradient"))
        return model
    def spoilt(self, what):
        self.step = getattr(self, "passes", 0) // self.passes_per_step
        return {"nan": float("nan"), "inf": float("inf")}.get(self.wanted[what].get(str(self.step)), 0.0)
    def build_loss(self, config, tokenizer):
        self.wanted = json.loads((HERE / "spoil.json").read_text())
        sizes = config.trainer.arguments
        self.passes_per_step = sizes.batch_size // sizes.physical_batch_size
        self.passes = -1
        def loss(model, batch, num_items):
            if model.training:
                self.passes += 1
                kept = batch["input_ids"][batch["attention_mask"].bool() if "attention_mask" in batch else ...]
                with (HERE / "seen.jsonl").open("a") as file:
                    file.write(json.dumps(tokenizer.decode(kept.flatten().tolist())) + "\\n")
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            total = next_token_cross_entropy(model(**inputs).logits, batch["labels"]) / num_items
            return total + self.spoilt("loss")
        return loss
"""
STEPS = {
    "trainer.arguments.max_steps": 6,
    "trainer.arguments.weight_decay": 0.1,
    "plugins": [*SHIPPED, "./own.py:SpoilPlugin"],
}


@pytest.fixture
def run(tmp_path, model_folder, rows_file, capsys):
    """Trains with steps (from 0) whose loss or gradient is spoilt; returns what was printed, or said against it."""

    def train(code=0, *words, loss=None, gradient=None, **changes):
        (tmp_path / "own.py").write_text(SPOILING)
        (tmp_path / "spoil.json").write_text(json.dumps({"loss": loss or {}, "gradient": gradient or {}}))
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        file = builders.write_config(tmp_path, model_folder, rows_file, STEPS | dotted)
        printed = printed_by(capsys, code, "train", str(file), *words)
        train.folder = tmp_path / "out"
        train.said = printed.out
        return printed.err if code else printed.out

    return train


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


@pytest.mark.parametrize(
    ("kind", "clipping"),
    [
        ({"loss": {"2": "nan"}}, 1.0),
        pytest.param({"loss": {"2": "inf"}}, 0.0, marks=pytest.mark.full),
        ({"gradient": {"2": "inf"}}, 1.0),
        pytest.param({"gradient": {"2": "inf"}}, 0.0, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_a_bad_step_changes_nothing_but_the_schedule(run, tmp_path, kind, clipping):
    said = run(**kind, trainer__arguments__max_grad_norm=clipping)
    what = next(iter(kind))
    assert said.count("is skipped") == 1
    assert f"step 3 is skipped: the {what} is not finite" in said
    kept = torch.load(tmp_path / "left.pt", weights_only=True)
    left = kept["left"]
    assert same(left[2], left[1]), "weights and moments"
    assert not any(same(left[step]["weights"], left[step - 1]["weights"]) for step in (1, 3, 4, 5))
    assert all(torch.isfinite(tensor).all() for tensor in left[-1]["weights"].values())
    assert kept["saw_gradient"] == [True, True, False, True, True, True]
    rows = metrics_of(run.folder)
    assert [row["train/learning_rate"] for row in rows] == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])
    assert [row.get("train/skipped_steps") for row in rows] == [None, None, 1, 1, 1, 1]
    losses = losses_of(run.folder)
    assert [math.isfinite(loss) for loss in losses] == [what == "gradient" or step != 2 for step in range(6)]
    assert math.isfinite(rows[2]["train/grad_norm"]) == (what == "loss"), "what is not finite is shown"


def test_the_steps_before_and_after_are_those_of_a_run_whose_update_is_left_out(run, tmp_path):
    run(loss={"1": "nan"}, trainer__arguments__lr_scheduler_type="constant", trainer__arguments__logging_steps=3)
    left = torch.load(tmp_path / "left.pt", weights_only=True)["left"]
    assert left[2]["moments"][0]["step"] == 2, "Adam has made two steps of three"
    first, second = losses_of(run.folder)[1:]
    assert math.isnan(first), "what is in the mean is not hidden"
    assert math.isfinite(second)


def test_three_in_a_row_end_the_run_with_the_weights_of_the_last_good_step(run, rows_file):
    said = run(2, loss={"1": "nan", "3": "nan", "4": "nan", "5": "nan"}, trainer__seed=7)
    file = run.folder / "bad-step-000006.jsonl"
    assert said.splitlines()[:2] == [
        "step 6: the loss is not finite, for the 3rd step in a row",
        f"    its rows are in {file}",
    ]
    assert "trainer.faults.bad_steps" in said
    assert run.said.count("is skipped") == 2, "once for each stretch"
    assert "stopped after step 5 of 6; the model as it was is in" in run.said
    kept = weights_of(run.folder / "checkpoints" / "step-000005")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert (run.folder / "report.html").exists()
    assert json.loads((run.folder / "summary.json").read_text())["error"].startswith("step 6: the loss")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 4
    texts = [json.loads(line) for line in rows_file.read_text().splitlines()]
    for row in rows:
        assert row["file"].endswith("rows.jsonl")
        assert texts[row["row"] - 1]["instruction"] in row["text"] and texts[row["row"] - 1]["output"] in row["text"]
        assert row["tokens"] > row["trained"] > 0
        assert row["loss"] == "nan"


@pytest.mark.parametrize(("loss", "skipped"), [({"0": "nan"}, [3, 3]), ({}, [2, 2])], ids=["bad again", "good"])
def test_the_step_that_ended_a_run_is_not_counted_before_it_is_made_again(run, loss, skipped):
    said = run(2, loss={"2": "nan", "3": "nan", "4": "nan"})
    assert said.startswith("step 5: the loss is not finite, for the 3rd step in a row")
    run(0, "--resume", loss=loss, trainer__faults={"bad_steps": 4})
    assert [row.get("train/skipped_steps") for row in metrics_of(run.folder)] == [None, None, 1, 2, *skipped]


UNUSUAL = """
class UnusualPlugin(BasePlugin):
    def build_collator(self, config, tokenizer):
        from dumbo.data.collate import PaddingCollator
        pad = PaddingCollator(tokenizer.pad_token_id)
        def collate(rows):
            batch = pad(rows)
            return {"chosen": batch["input_ids"], "labels": batch["labels"]}
        return collate
    def build_loss(self, config, tokenizer):
        self.passes = -1
        def loss(model, batch, num_items):
            self.passes += model.training
            total = next_token_cross_entropy(model(input_ids=batch["chosen"]).logits, batch["labels"]) / num_items
            return total * float("nan") if self.passes >= 4 else total
        return loss
"""


def test_rows_that_cannot_be_described_do_not_hide_what_was_wrong(tmp_path, model_folder, rows_file, capsys):
    (tmp_path / "own.py").write_text(SPOILING + UNUSUAL)
    changes = {**STEPS, "plugins": [*SHIPPED, "./own.py:UnusualPlugin"], "trainer.faults.bad_steps": 1}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    printed = printed_by(capsys, 2, "train", str(file))
    assert printed.err.startswith("step 3: the loss is not finite\n")
    assert weights_of(tmp_path / "out" / "checkpoints" / "step-000002")
    rows = [json.loads(line) for line in (tmp_path / "out" / "bad-step-000003.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and len({row["row"] for row in rows}) == 4
    for row in rows:
        assert row["file"].endswith("rows.jsonl")
        assert row["not_described"] == "the batch cannot be told apart into rows of tokens (KeyError: 'input_ids')"


@pytest.mark.parametrize("labels", [None, torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)])
def test_whatever_a_batch_has_a_line_is_written_of_it(labels):
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.int64), "labels": labels}
    unknown, known = describe_rows(
        [{name: value for name, value in batch.items() if value is not None}] * 2,
        [[], [Origin("rows.jsonl", 7)]],
        builders.build_tokenizer(),
        lambda single: 0.0,
    )
    assert unknown.keys() == {"not_described"}
    assert known == {"file": "rows.jsonl", "row": 7, "not_described": unknown["not_described"]}


@pytest.mark.parametrize("packing", [True, "joined", False])
def test_the_rows_that_are_written_are_those_of_the_step(run, tmp_path, packing):
    changes = {"trainer__data": {"sequence_length": 256, "packing": packing}}
    said = run(2, gradient={"3": "inf"}, trainer__faults={"bad_steps": 1}, **changes)
    number = 5 if packing else 4  # The second step of an epoch has one pass where its rows are packed.
    assert said.startswith(f"step {number}: the gradient is not finite\n")
    rows = [json.loads(line) for line in (run.folder / f"bad-step-{number:06}.jsonl").read_text().splitlines()]
    passes = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()][6:8]
    assert "".join(row["text"] for row in rows) == "".join(passes)
    for row in rows:
        text = f" {row['row']} and {row['row'] + 1}"
        assert text in row["text"] or packing == "joined", row
        assert math.isfinite(row["loss"]) and (row["loss"] > 0 or not row["trained"])
    assert packing != "joined" or any(f" {row['row']} and {row['row'] + 1}" in row["text"] for row in rows)


def test_rows_of_a_stream_are_written_without_their_place(run):
    run(
        2,
        loss={"0": "nan"},
        trainer__faults={"bad_steps": 1},
        trainer__data={"streaming": True, "sequence_length": 256},
    )
    rows = [json.loads(line) for line in (run.folder / "bad-step-000001.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row.keys() == {"tokens", "trained", "loss", "text"} for row in rows)


def test_one_ends_it_at_the_first_and_null_never(run):
    assert run(2, loss={"0": "nan"}, trainer__faults={"bad_steps": 1}).startswith("step 1: the loss is not finite\n")
    assert (run.folder / "bad-step-000001.jsonl").exists()
    for file in sorted(run.folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    every = {str(step): "nan" for step in range(6)}
    said = run(loss=every, trainer__faults={"bad_steps": None})
    assert said.count("is skipped") == 1
    assert metrics_of(run.folder)[-1]["train/skipped_steps"] == 6
    assert "trained 6 steps, 6 of them skipped, in 0:" in said


@pytest.mark.parametrize(
    ("in_a_row", "said"),
    [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"), (21, "21st"), (22, "22nd"),
     (23, "23rd"), (101, "101st"), (112, "112th")],
)  # fmt: skip
def test_bad_steps_are_counted_in_words(in_a_row, said):
    message = str(bad_step_error(200, "the loss is not finite", in_a_row, "its rows are in f"))
    assert message.startswith(f"step 200: the loss is not finite, for the {said} step in a row\n")


def test_what_is_no_number_of_steps_is_refused(run):
    assert "trainer.faults.bad_steps" in run(2, trainer__faults={"bad_steps": 0})


@pytest.mark.full
def test_two_processes_skip_a_step_that_is_bad_on_one_of_them(tmp_path, model_folder, rows_file):
    """Its gradient is finite there too, so that nothing but the loss tells."""
    # The plugin counts four passes for a step, and each process makes two.
    own = SPOILING.replace("Path(__file__).parent", 'Path(__file__).parent / __import__("os").environ["RANK"]')
    own = own.replace("// sizes.physical_batch_size", "// sizes.physical_batch_size // 2")
    (tmp_path / "own.py").write_text(own)
    for rank, loss in (("0", {}), ("1", {"1": "nan", "4": "nan", "5": "nan"})):
        (tmp_path / rank).mkdir()
        (tmp_path / rank / "spoil.json").write_text(json.dumps({"loss": loss, "gradient": {}}))
    changes = {"trainer.faults.bad_steps": 2, "trainer.arguments.physical_batch_size": 1}
    file = builders.write_config(tmp_path, model_folder, rows_file, STEPS | changes)
    result = torchrun(file)
    assert result.returncode != 0
    assert "step 2 is skipped: the loss is not finite" in result.stdout
    assert "step 6: the loss is not finite, for the 2nd step in a row" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "bad-step-000006.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and len({row["row"] for row in rows}) == 4, "of both processes"
    assert "stopped after step 5 of 6" in result.stdout
    kept = weights_of(tmp_path / "out" / "checkpoints" / "step-000005")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_what_a_scaler_leaves_out_is_not_counted(tmp_path):
    """Float16 finds the scale of its loss by gradients that overflow; PyTorch has that scaler for a CPU too."""
    run = build_trainer(tmp_path, tiny_llama(), random_rows(8), batch_size=4, max_steps=12, max_grad_norm=0.0)
    trainer = run.trainer
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-8)
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert not any(math.isfinite(norm) for norm in run.metrics.values("train/grad_norm")[:4]), "enough to end the run"
    assert not torch.equal(trainer.model.lm_head.weight, before), "a scale was found"
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    assert trainer.logging_state()["faults"] == {"skipped": 0, "in_a_row": 0, "halvings": 0}
