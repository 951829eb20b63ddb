"""Earlier adapters: trained further, merged before a new one, or acting beside it; and folders that do not fit."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dumbo.bridge.inference_model import load_for_inference
from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.run.whole_runs import SHIPPED, losses_of, write_and_run

IDS = torch.arange(3, 40)[None]
PLUGINS = [*SHIPPED, "peft"]
STEPS = {"trainer.arguments.max_steps": 3, "trainer.arguments.learning_rate": 0.02}
pytestmark = [pytest.mark.filterwarnings("ignore")]


def run(folder, model, rows, options, changes=None):
    return write_and_run(folder, model, rows, {"plugins": PLUGINS, "model.peft": options, **STEPS, **(changes or {})})


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def loaded(folder):
    return load_for_inference(folder, device=torch.device("cpu"))[0]


def adapter_of(out):
    return load_file(out / "model" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def first(tmp_path_factory, model_folder, rows_file):
    """The run of an adapter that others begin with."""
    return run(
        tmp_path_factory.mktemp("first"), model_folder, rows_file, {"rank": 4, "target_modules": ["q_proj", "v_proj"]}
    )


def test_an_adapter_is_trained_further(tmp_path, model_folder, rows_file, first, capsys):
    out = run(tmp_path, model_folder, rows_file, {"start_from": str(first)}, {"trainer.arguments.learning_rate": 0.0})
    said = capsys.readouterr().out
    assert "peft: LoRA (rank 4, alpha 8) on 4 layers: q_proj 2, v_proj 2" in said
    assert f"peft: training goes on from the adapter in {first / 'model'}" in said
    before, after = adapter_of(first), adapter_of(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = run(tmp_path / "b", model_folder, rows_file, {"start_from": str(first / "model"), "rank": 4})
    assert losses_of(again)[0] == pytest.approx(losses_of(out)[0], rel=1e-6)
    assert losses_of(again)[-1] < losses_of(first)[-1]


def test_a_merged_adapter_is_in_the_base_of_the_new_one(tmp_path, model_folder, rows_file, first, capsys):
    out = run(tmp_path, model_folder, rows_file, {"rank": 2, "merge_first": [str(first)]})
    assert f"peft: merged {first / 'model'} into the base model" in capsys.readouterr().out
    settings = json.loads((out / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str((out / "base").resolve())
    base = AutoModelForCausalLM.from_pretrained(out / "base")
    assert torch.allclose(logits(base), logits(loaded(first / "model")), atol=1e-5)
    by_peft = PeftModel.from_pretrained(base, out / "model")
    assert torch.equal(logits(by_peft), logits(loaded(out / "model")))
    assert not torch.allclose(logits(loaded(out / "model")), logits(loaded(first / "model")), atol=1e-4)


def test_an_adapter_acts_beside_the_new_one(tmp_path, model_folder, rows_file, first):
    out = run(tmp_path, model_folder, rows_file, {"rank": 2, "beside": {"style": str(first)}})
    before, after = adapter_of(first), load_file(out / "model" / "style" / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    theirs = PeftModel.from_pretrained(base, out / "model")
    alone = logits(theirs)
    theirs.load_adapter(out / "model" / "style", "style")
    theirs.base_model.set_adapter(["default", "style"])
    assert torch.equal(logits(theirs), logits(loaded(out / "model")))
    assert not torch.allclose(logits(theirs), alone, atol=1e-4)
    # The first step of a new adapter changes nothing: the loss is that of the one beside.
    assert losses_of(out)[0] < losses_of(first)[0]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"start_from": "nowhere"}, ["model.peft.start_from: there is no folder 'nowhere'"]),
        (
            {"start_from": "{model}"},
            ["holds no adapter (adapter_config.json)", "it holds a whole model: write model.base"],
        ),
        (
            {"start_from": "{run}", "rank": 8},
            ["model.peft.rank: is 8, and 4 in the adapter in", "write 4, or leave it out"],
        ),
        ({"start_from": "{run}", "method": "ia3"}, ["is 'lora', and the method is 'ia3'", "write method: lora"]),
        ({"start_from": "{run}", "target_modules": ["q_proj"]}, ["means 2 modules, and the adapter in", "is on 4"]),
        ({"start_from": "{run}", "use_dora": True}, ["model.peft.use_dora: is true, and false in the adapter"]),
        ({"merge_first": ["{other}"]}, ["model.peft.merge_first: the adapter in", "belongs to the model"]),
        (
            {"beside": {"a": "{ia3}"}},
            ["model.peft.beside: PEFT refuses: Cannot combine adapters with different peft types"],
        ),
        ({"merge_first": ["{torn}"]}, ["does not fit its base model"]),
    ],
    ids=["no folder", "a model", "rank", "method", "targets", "dora", "another base", "another method", "torn"],
)
def test_folders_that_do_not_fit(tmp_path, model_folder, rows_file, first, options, lines, capsys):
    places = {"{run}": first, "{model}": model_folder, "nowhere": "nowhere"}
    named = json.dumps(options)
    if "{other}" in named or "{torn}" in named:
        places["{other}"] = places["{torn}"] = shutil.copytree(first / "model", tmp_path / "copy")
    if "{other}" in named:
        settings = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
        (tmp_path / "copy" / "adapter_config.json").write_text(
            json.dumps({**settings, "base_model_name_or_path": "a/b"})
        )
    if "{torn}" in named:
        settings = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
        (tmp_path / "copy" / "adapter_config.json").write_text(json.dumps({**settings, "r": 2}))
    if "{ia3}" in named:
        places["{ia3}"] = run(tmp_path / "ia3", model_folder, rows_file, {"method": "ia3"})
    for mark, place in places.items():
        named = named.replace(mark, str(place))
    changes = {"plugins": PLUGINS, "model.peft": json.loads(named)}
    file = builders.write_config(tmp_path / "run", model_folder, rows_file, changes)
    capsys.readouterr()
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    for line in lines:
        assert line in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "out" / "base").exists()


@pytest.mark.full
@pytest.mark.parametrize("key", ["start_from", "merge_first", "beside"])
def test_a_run_on_an_earlier_adapter_goes_on(tmp_path, model_folder, rows_file, first, key):
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(26))
    value = {"start_from": str(first), "merge_first": [str(first)], "beside": {"a": str(first)}}[key]
    changes = {"model.peft": {key: value, "dropout": 0.1}}
    files = [write_stoppable(tmp_path / where, model_folder, rows, dict(changes), ("peft",)) for where in "ab"]
    assert main(["train", str(files[0])]) == 0
    with stop_by("SIGTERM", 7):
        assert main(["train", str(files[1])]) == 75
    assert main(["train", str(files[1]), "--resume"]) == 0
    assert_same_run(tmp_path / "b" / "out", tmp_path / "a" / "out")
