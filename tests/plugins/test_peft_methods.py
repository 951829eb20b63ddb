"""Every method of adapters trains, is saved alone, and loads again with the same logits, or is refused."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from dumbo.bridge.inference_model import load_for_inference
from dumbo.cli.main import main
from dumbo.plugins.peft.adapter import Place, add_adapter
from dumbo.plugins.peft.methods import METHODS, REFUSED
from dumbo.plugins.peft.plugin import PeftOptions
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.numerics.training import random_rows, run_config, train
from tests.run.whole_runs import SHIPPED, losses_of, write_and_run

IDS = torch.arange(3, 40)[None]
# What a model 32 wide needs that a large one does not.
SETTINGS = {
    "adalora": {"rank": 4, "settings": {"target_r": 2}},
    "boft": {"settings": {"boft_block_size": 4}},
    "c3a": {"settings": {"block_size": 16}},
    "fourierft": {"settings": {"n_frequency": 50}},
    "gralora": {"rank": 4},
    "hira": {"rank": 4},
    "lily": {"rank": 4},
    "miss": {"rank": 4},
    "oft": {"settings": {"oft_block_size": 4}},
    "peanut": {"rank": 4},
    "psoft": {"rank": 4},
    "pvera": {"rank": 8},
    "randlora": {"rank": 4},
    "road": {"settings": {"group_size": 16}},
    "shira": {"rank": 2},
    "vblora": {"rank": 2, "settings": {"num_vectors": 8, "vector_length": 16}},
    "vera": {"rank": 8},
    "waveft": {"settings": {"n_frequency": 50}},
}
QUICK = ("lora", "ia3", "vera", "ln_tuning", "oft")
pytestmark = [pytest.mark.filterwarnings("ignore")]


def wrapped(model_folder, **options):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    return add_adapter(model, PeftOptions(**options), Place(run_config({}), Path()))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def quick(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in names]


@pytest.mark.parametrize("method", quick(METHODS))
def test_a_method_trains_and_what_is_saved_loads_again(tmp_path, model_folder, method):
    model = wrapped(model_folder, method=method, **SETTINGS.get(method, {}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = train(tmp_path, model, random_rows(8), batch_size=4, physical_batch_size=4, learning_rate=0.05)
    assert any(not torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())
    trained.trainer.save(tmp_path / "saved")
    plain = logits(AutoModelForCausalLM.from_pretrained(model_folder))
    expected = logits(trained.model)
    assert not torch.allclose(expected, plain, atol=1e-4), "it does something"
    ours, _ = load_for_inference(tmp_path / "saved", device=torch.device("cpu"))
    assert torch.allclose(logits(ours), expected, atol=1e-5)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "saved")
    assert torch.allclose(logits(by_peft), expected, atol=1e-5)


@pytest.mark.parametrize("method", quick(METHODS))
def test_users_see_no_warnings_of_a_method(model_folder, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped(model_folder, method=method, **SETTINGS.get(method, {}))


def test_every_method_of_peft_is_offered_or_refused():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING} == METHODS.keys() | REFUSED.keys()


def write(folder, model_folder, rows_file, options, changes=None):
    changes = {"plugins": [*SHIPPED, "peft"], "model.peft": options, **(changes or {})}
    return write_and_run(folder, model_folder, rows_file, changes)


def test_ranks_of_adalora_move_to_the_budget(tmp_path, model_folder, rows_file, capsys):
    steps = {"trainer.arguments.max_steps": 8, "trainer.arguments.learning_rate": 0.05}
    options = {"method": "adalora", "rank": 4, "settings": {"target_r": 2, "tinit": 2, "tfinal": 1}}
    out = write(tmp_path, model_folder, rows_file, options, steps)
    assert "peft: adalora (rank 4, at the end 2 on average" in capsys.readouterr().out
    from safetensors.torch import load_file

    weights = load_file(out / "model" / "adapter_model.safetensors")
    left = sum(int((value != 0).sum()) for name, value in weights.items() if "lora_E" in name)
    layers = sum("lora_E" in name for name in weights)
    assert left == 2 * layers
    assert losses_of(out)[-1] < losses_of(out)[0]


def test_too_few_steps_for_adalora(tmp_path, model_folder, rows_file, capsys):
    options = {"method": "adalora", "settings": {"tinit": 2}}
    changes = {"plugins": [*SHIPPED, "peft"], "model.peft": options, "trainer.arguments.max_steps": 2}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main(["train", str(file)]) == 2
    assert "model.peft.settings: tinit 2 and tfinal 0 leave none of the 2 steps" in capsys.readouterr().err


def test_the_penalty_of_adalora_is_that_of_peft(model_folder):
    from dumbo.plugins.peft.budget import RankBudget

    model = wrapped(model_folder, method="adalora", rank=4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    RankBudget(model, "default")
    ours = model(IDS).aux_loss
    without = model.base_model.model(IDS, labels=IDS).loss
    assert ours.item() == pytest.approx((model(input_ids=IDS, labels=IDS).loss - without).item(), rel=1e-4)


RESUMED = {
    "adalora": {"method": "adalora", "rank": 4, "settings": {"target_r": 2, "tinit": 3, "tfinal": 4}},
    "pissa": {"rank": 4, "init": "pissa_niter_4"},
    "ia3": {"method": "ia3"},
    "vera": {"method": "vera", "rank": 8},
    "olora": {"rank": 4, "init": "olora", "use_dora": True},
    "eva": {"rank": 2, "init": "eva"},
    "mica": {"rank": 4, "init": "mica"},
    "lora_plus": {"rank": 4, "lora_plus_ratio": 16.0},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "pissa" else pytest.mark.full) for name in RESUMED]
)
def test_a_run_goes_on_as_if_it_had_never_stopped(tmp_path, model_folder, tmp_path_factory, name):
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(26))
    changes = {"model.peft": RESUMED[name], "trainer.arguments.learning_rate": 0.01}
    files = [write_stoppable(tmp_path / where, model_folder, rows, copy.deepcopy(changes), ("peft",)) for where in "ab"]
    assert main(["train", str(files[0])]) == 0
    with stop_by("SIGTERM", 11):
        assert main(["train", str(files[1])]) == 75
    assert main(["train", str(files[1]), "--resume"]) == 0
    assert_same_run(tmp_path / "b" / "out", tmp_path / "a" / "out")
