"""Memory that is not enough: the run says what was in it, or makes its steps in smaller passes with the same result."""

import json
from types import SimpleNamespace

import pytest
import torch

from dumbo.bridge.out_of_memory import is_out_of_memory, memory_message
from dumbo.bridge.splitting import documents_of, split_batch
from dumbo.data.collate import PackedCollator, PaddingCollator
from dumbo.errors import ConfigError
from dumbo.plugins.transformers_trainer.training import build
from tests import builders
from tests.numerics.training import build_trainer, random_rows, tiny_llama
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, weights_of

# A machine whose memory holds so many rows, or packed tokens, from a pass on; in the backward pass it fails halfway.
TIGHT = """
import json
from pathlib import Path
import torch
from dumbo.plugin_loader import BasePlugin

HERE = Path(__file__).parent

class TightPlugin(BasePlugin):
    def patch_model(self, model, config):
        tight = json.loads((HERE / "tight.json").read_text())
        self.passes, self.size = 0, 0
        def fail():
            if self.passes > tight.get("after", 0) and self.size > tight["holds"]:
                if tight["how"] == "really":
                    torch.empty(1 << 55)
                if tight["how"] == "other":
                    raise RuntimeError("shapes do not fit")
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        def before(module, positional, named):
            if module.training:
                rows, tokens = named["input_ids"].shape
                self.passes, self.size = self.passes + 1, tokens if "cu_seq_lens_q" in named else rows
                with (HERE / "passes.txt").open("a") as file:
                    print(self.size, file=file)
                if tight["where"] == "forward":
                    fail()
        def backward(gradient):
            fail()
        model.register_forward_pre_hook(before, with_kwargs=True)
        if tight["where"] == "backward":
            model.model.layers[0].mlp.down_proj.weight.register_hook(backward)
        return model
"""
CHANGES = {
    "trainer.arguments.batch_size": 8,
    "trainer.arguments.physical_batch_size": 4,
    "trainer.arguments.max_steps": 3,
    "trainer.arguments.optim": "sgd",
    "trainer.arguments.learning_rate": 0.1,
    "plugins": [*SHIPPED, "./own.py:TightPlugin"],
}


# Pairs as preference losses want them: what was chosen before what was rejected, each row with its place.
PAIRS = """
from dumbo.data.collate import PaddingCollator
from dumbo.plugin_loader import BasePlugin

class PairsPlugin(BasePlugin):
    def build_collator(self, config, tokenizer):
        pad = PaddingCollator(tokenizer.pad_token_id)
        return lambda rows: pad([*rows, *rows[::-1]])

    def build_loss(self, config, tokenizer):
        def loss(model, batch, num_items):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            chosen, rejected = logits.mean((1, 2)).chunk(2)
            return (rejected - chosen).sum() / num_items
        return loss

class WeighedPlugin(BasePlugin):
    rows_are_separate = True

    def build_collator(self, config, tokenizer):
        import torch
        pad = PaddingCollator(tokenizer.pad_token_id)
        def collate(rows):
            batch = pad(rows)
            return {**batch, "weights": (1 + batch["input_ids"] % 3).float(), "names": [str(row) for row in rows]}
        return collate

    def build_loss(self, config, tokenizer):
        from dumbo.losses.token import next_token_cross_entropy
        def loss(model, batch, num_items):
            assert len(batch["names"]) == len(batch["labels"])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return next_token_cross_entropy(logits * batch["weights"][..., None], batch["labels"]) / num_items
        return loss
"""


@pytest.fixture
def run(tmp_path, model_folder, rows_file, capsys):
    """Trains on a tight machine; returns what was printed, or said against it."""

    def train(code=0, *, name="run", model=model_folder, holds=1 << 30, where="forward", how="", after=0, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "own.py").write_text(TIGHT + PAIRS)
        tight = {"holds": holds, "where": where, "how": how, "after": after}
        (folder / "tight.json").write_text(json.dumps(tight))
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        file = builders.write_config(folder, model, rows_file, CHANGES | dotted)
        printed = printed_by(capsys, code, "train", str(file))
        train.folder, train.said = folder / "out", printed.out
        train.passes = [int(line) for line in (folder / "passes.txt").read_text().split()]
        return printed.err if code else printed.out

    return train


def assert_same(first, second, **tolerance):
    ours, theirs = weights_of(first / "model"), weights_of(second / "model")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_run_that_halves_its_passes_ends_where_one_with_enough_memory_does(run, where):
    run(name="whole")
    whole, losses = run.folder, losses_of(run.folder)
    said = run(name="halved", holds=2, where=where, after=1, trainer__faults={"on_oom": "halve"})
    assert said.count("memory is not enough") == 1
    assert "for a forward pass of 4 rows of up to" in said and "step 1 is made again in halves" in said
    # The second pass did not fit: the first one is made again too, and all that follow are small at once.
    assert run.passes[:2] == [4, 4]
    assert set(run.passes[2:]) == {2}
    assert_same(run.folder, whole, rtol=1e-5, atol=1e-7)
    assert losses_of(run.folder) == pytest.approx(losses, rel=1e-6)


def test_passes_are_halved_again_down_to_a_row(run):
    run(name="whole")
    whole = run.folder
    said = run(name="halved", holds=1, trainer__faults={"on_oom": "halve"})
    assert said.count("memory is not enough") == 2
    assert run.passes[:2] == [4, 2] and set(run.passes[2:]) == {1}
    assert_same(run.folder, whole, rtol=1e-5, atol=1e-7)


def test_random_numbers_are_those_of_smaller_passes_from_the_start(run):
    dropout = {"model__config_overrides": {"attention_dropout": 0.3}, "model__attention": "eager"}
    run(name="small", trainer__arguments__physical_batch_size=2, **dropout)
    small = run.folder
    run(name="halved", holds=2, where="backward", trainer__faults={"on_oom": "halve"}, **dropout)
    assert_same(run.folder, small, rtol=0, atol=0)
    assert losses_of(run.folder) == pytest.approx(losses_of(small), rel=1e-6)


def test_the_loss_of_experts_is_averaged_over_the_passes_that_were_made(run, tmp_path):
    experts = {"config_type": "mixtral", "num_local_experts": 4, "output_router_logits": True}
    model = builders.save_tiny_model(tmp_path / "experts", router_aux_loss_coef=0.5, **experts)
    run(name="small", model=model, trainer__arguments__physical_batch_size=2)
    small = run.folder
    run(name="halved", model=model, holds=2, after=1, trainer__faults={"on_oom": "halve"})
    assert_same(run.folder, small, rtol=1e-5, atol=1e-7)
    assert losses_of(run.folder) == pytest.approx(losses_of(small), rel=1e-6)


def test_packed_rows_are_cut_between_documents(run):
    packed = {"trainer__data": {"sequence_length": 256, "packing": True}, "trainer__arguments__batch_size": 4}
    run(name="whole", **packed)
    whole = run.folder
    assert max(run.passes) > 600
    said = run(name="halved", holds=500, trainer__faults={"on_oom": "halve"}, **packed)
    assert "packed rows of" in said
    assert run.passes[0] > 600 and max(run.passes[2:]) <= 500
    assert_same(run.folder, whole, rtol=1e-4, atol=1e-6)


def with_plugin(name, **faults):
    """Changes that list a plugin of `PAIRS`."""
    return {"plugins": [*CHANGES["plugins"], f"./own.py:{name}"], "trainer__faults": faults}


def test_batches_of_which_nobody_says_that_they_can_be_cut_are_refused(tmp_path, model_folder, rows_file, capsys):
    (tmp_path / "own.py").write_text(TIGHT + PAIRS)
    changes = {**CHANGES, "plugins": [*SHIPPED, "./own.py:PairsPlugin"], "trainer.faults.on_oom": "halve"}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    said = printed_by(capsys, 2, "check", str(file)).err.splitlines()
    message = "the plugin 'pairs' makes the batches, and does not say that their rows can be trained apart"
    assert said[0].endswith(f"trainer.faults.on_oom: {message}")
    assert said[1:3] == [
        "    write fail, and a smaller trainer.arguments.physical_batch_size",
        "    where no row of a batch needs another, write rows_are_separate = True in its class PairsPlugin",
    ]


def test_what_would_be_refused_is_not_advised(run):
    said = run(2, holds=2, **with_plugin("PairsPlugin"))
    assert "physical_batch_size" in said and "on_oom" not in said


def test_batches_of_a_plugin_that_says_so_are_cut_with_all_that_they_have(run):
    run(name="whole", **with_plugin("WeighedPlugin"))
    whole, losses = run.folder, losses_of(run.folder)
    run(name="halved", holds=2, **with_plugin("WeighedPlugin", on_oom="halve"))
    assert run.passes[0] == 4 and set(run.passes[1:]) == {2}
    assert_same(run.folder, whole, rtol=1e-5, atol=1e-7)
    assert losses_of(run.folder) == pytest.approx(losses, rel=1e-6)


def test_too_little_for_one_row_ends_the_run_with_the_weights_of_the_last_step(run):
    said = run(2, holds=0, after=3, trainer__faults={"on_oom": "halve"})
    first, memory, error, ways = said.splitlines()
    assert first.startswith("memory is not enough: step 3 has a forward pass of 1 row of")
    assert "main memory this process has" in memory and "GiB" in memory
    assert error == "    (CUDA out of memory. Tried to allocate 20.00 GiB.)"
    assert "physical_batch_size" in ways and "sequence_length" in ways and "on_oom" not in ways
    assert "stopped after step 2 of 3" in run.said
    assert weights_of(run.folder / "checkpoints" / "step-000002")


def test_the_run_fails_with_what_to_do_where_nothing_else_is_asked_for(run):
    said = run(2, holds=2, how="really")
    assert said.startswith("memory is not enough: step 1 has a forward pass of 4 rows of up to")
    assert "allocate" in said, "PyTorch's own words"
    assert "trainer.faults.on_oom: halve" in said and "(it is 4)" in said and "gradient_checkpointing: true" in said
    assert not (run.folder / "model").exists()


EAGER = """
import torch
from transformers import TrainerCallback
from dumbo.plugin_loader import BasePlugin

class Eager(TrainerCallback):
    def on_log(self, args, state, control, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

class EvalPlugin(BasePlugin):
    def patch_model(self, model, config):
        def before(module, positional, named):
            if not module.training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        model.register_forward_pre_hook(before, with_kwargs=True)
        return model

class EvaluatorPlugin(BasePlugin):
    def build_evaluator(self, config):
        return self.evaluate
    def evaluate(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

class OwnPlugin(BasePlugin):
    def get_callbacks(self, config):
        return [Eager()]
"""


def run_eager(tmp_path, model_folder, rows_file, capsys, plugin, **changes):
    (tmp_path / "own.py").write_text(EAGER)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    changes = {"trainer.faults.on_oom": "halve", "plugins": [*SHIPPED, f"./own.py:{plugin}"]} | changes
    file = builders.write_config(tmp_path, model_folder, rows_file, CHANGES | changes)
    return printed_by(capsys, 2, "train", str(file)).err.splitlines()


@pytest.mark.parametrize(("on_start", "when"), [(True, "before the first step"), (False, "after step 2")])
def test_an_evaluation_has_a_size_of_its_own(tmp_path, model_folder, rows_file, capsys, on_start, when):
    said = run_eager(
        tmp_path,
        model_folder,
        rows_file,
        capsys,
        "EvalPlugin",
        trainer__data__val_set_size=3,
        trainer__arguments__eval_on_start=on_start,
        trainer__arguments__per_device_eval_batch_size=3,
    )
    assert said[0].startswith(f"memory is not enough: the evaluation {when} has a forward pass of 3 rows of up to")
    smaller = "    take a smaller trainer.arguments.per_device_eval_batch_size (it is 3)"
    assert said[3] == f"{smaller}, or a smaller trainer.data.sequence_length"


def test_memory_that_a_plugin_lacks_names_it(tmp_path, model_folder, rows_file, capsys):
    said = run_eager(tmp_path, model_folder, rows_file, capsys, "OwnPlugin")
    assert said[0] == "memory is not enough: after step 1"
    assert "trainer.arguments.physical_batch_size (it is 4)" in said[3]
    assert said[4] == "    this was in the plugin 'own'"


def test_memory_that_an_evaluator_lacks_names_its_plugin(tmp_path, model_folder, rows_file, capsys):
    said = run_eager(tmp_path, model_folder, rows_file, capsys, "EvaluatorPlugin", trainer__data__val_set_size=3)
    assert said[0] == "memory is not enough: the evaluation after step 2"
    assert said[3:] == ["    take fewer or shorter texts to evaluate on", "    this was in the plugin 'evaluator'"]


def test_another_error_is_not_taken_for_one_of_memory(run):
    said = run(2, holds=2, how="other", trainer__faults={"on_oom": "halve"})
    assert said.startswith("plugin 'tight' failed during training: RuntimeError: shapes do not fit (")


def test_several_processes_cannot_make_a_step_again(tmp_path):
    run = build_trainer(tmp_path, tiny_llama(), random_rows(4))
    job = run.trainer._job
    faults = job.config.trainer.faults.model_copy(update={"on_oom": "halve"})
    config = job.config.model_copy(update={"trainer": job.config.trainer.model_copy(update={"faults": faults})})
    services = SimpleNamespace(world_size=2)
    with pytest.raises(ConfigError, match=r"trainer\.faults\.on_oom: a step cannot be made again while other"):
        build(SimpleNamespace(**(vars(job) | {"config": config})), services)


def test_errors_that_speak_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    for error in (caught.value, MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("CUDA out of memory")):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(error)
    assert "GiB" in memory_message(torch.device("cpu"), "in a step", MemoryError(), ["less"])


ITEMS = [{"input_ids": torch.arange(1, n + 1).numpy(), "labels": torch.arange(1, n + 1).numpy()} for n in (9, 4, 4, 2)]


@pytest.mark.parametrize("collate", [PaddingCollator(0), PackedCollator()], ids=["padded", "packed"])
@pytest.mark.parametrize("halvings", [0, 1, 2, 5])
def test_pieces_have_the_rows_of_the_whole_in_their_order(collate, halvings):
    pieces = split_batch(collate(ITEMS), halvings)
    assert len(pieces) == {0: 1, 1: 2, 2: 3 if isinstance(collate, PackedCollator) else 4, 5: 4}[halvings]
    rows = [row["input_ids"].tolist() for piece in pieces for row in documents_of(piece)]
    assert rows == [item["input_ids"].tolist() for item in ITEMS]
    for piece in pieces:
        again = collate([{name: part.numpy() for name, part in row.items()} for row in documents_of(piece)])
        assert again.keys() == piece.keys(), "a piece is what the collator makes of its rows"
        for name, value in again.items():
            assert torch.equal(value, piece[name]) if isinstance(value, torch.Tensor) else value == piece[name]


@pytest.mark.parametrize("other", [torch.zeros(2, 9), torch.zeros(()), ["a", "b"], {"of": "all"}], ids=str)
@pytest.mark.parametrize("collate", [PaddingCollator(0), PackedCollator()], ids=["padded", "packed"])
def test_a_batch_that_has_what_nobody_can_cut_stays_whole(collate, other):
    batch = {**collate(ITEMS), "other": other}
    assert split_batch(batch, 3) == [batch]


@pytest.mark.parametrize("collate", [PaddingCollator(0), PackedCollator()], ids=["padded", "packed"])
def test_pieces_have_everything_else_that_the_batch_has(collate):
    batch = collate(ITEMS)
    batch = {**batch, "weights": batch["input_ids"] * 0.5, "beta": 0.1, "nothing": None}
    pieces = split_batch(batch, 1)
    assert len(pieces) == 2
    for piece in pieces:
        assert torch.equal(piece["weights"], piece["input_ids"] * 0.5)
        assert piece["beta"] == 0.1 and piece["nothing"] is None


def test_what_is_as_wide_as_the_tokens_by_chance_keeps_its_width():
    batch = PaddingCollator(0)(ITEMS)
    choices = torch.arange(4 * 9).view(4, 9)
    names = [str(number) for number in range(4)]
    pieces = split_batch({**batch, "choices": choices, "names": names}, 1)
    assert torch.equal(torch.cat([piece["choices"] for piece in pieces]), choices)
    assert [name for piece in pieces for name in piece["names"]] == names
