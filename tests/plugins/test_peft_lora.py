"""What LoRA can be told: beginnings, patterns, layers, experts, tokens and learning rates, against PEFT itself."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM

from dumbo.bridge.inference_model import load_for_inference
from dumbo.bridge.learning_rates import scale_learning_rates
from dumbo.cli.main import main
from dumbo.job import RateFactor
from dumbo.plugins.peft.adapter import Place, add_adapter
from dumbo.plugins.peft.plugin import PeftOptions
from dumbo.plugins.peft.rates import lora_plus_factors
from tests import builders
from tests.numerics.training import farthest_weight, random_rows, run_config, train, train_by_hand
from tests.run.whole_runs import SHIPPED, losses_of, write_and_run

PLUGINS = [*SHIPPED, "peft"]
IDS = torch.arange(3, 40)[None]
pytestmark = [pytest.mark.filterwarnings("ignore")]


def wrapped(model_folder, say=lambda text: None, folder=Path(), **options):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    return add_adapter(model, PeftOptions(**options), Place(run_config({}), folder, say))


def by_peft_itself(model_folder, **options):
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", **options)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def settings_of(out):
    return json.loads((out / "model" / "adapter_config.json").read_text(encoding="utf-8"))


ALL = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rank": 4, "init": "pissa"}, {**ALL, "init_lora_weights": "pissa"}),
        pytest.param(
            {"rank": 4, "init": "pissa_niter_4", "use_rslora": True},
            {**ALL, "init_lora_weights": "pissa_niter_4", "use_rslora": True},
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"rank": 4, "init": "pissa", "use_dora": True},
            {**ALL, "init_lora_weights": "pissa", "use_dora": True},
            marks=pytest.mark.full,
        ),
        ({"rank": 4, "init": "olora"}, {**ALL, "init_lora_weights": "olora"}),
        pytest.param({"rank": 4, "init": "mica"}, {**ALL, "init_lora_weights": "mica"}, marks=pytest.mark.full),
        (
            {"rank": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*up_proj": 3.0}, "init": "pissa"},
            {
                **ALL,
                "rank_pattern": {"q_proj": 2},
                "alpha_pattern": {"q_proj": 4, "layers.1.*up_proj": 3},
                "init_lora_weights": "pissa",
            },
        ),
        pytest.param(
            {"rank": 4, "layers_to_transform": (1,), "exclude_modules": ("k_proj",)},
            {
                **ALL,
                "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                "layers_to_transform": [1],
            },
            marks=pytest.mark.full,
        ),
    ],
    ids=["pissa", "pissa-rslora", "pissa-dora", "olora", "mica", "patterns", "layers"],
)
def test_the_curve_is_that_of_peft_and_the_adapter_fits_the_unchanged_base(tmp_path, model_folder, ours, theirs):
    rows = random_rows(8)
    by_hand, expected = train_by_hand(by_peft_itself(model_folder, **theirs), rows, batch_size=4, epochs=2)
    trained = train(
        tmp_path, wrapped(model_folder, **ours), rows, batch_size=4, physical_batch_size=2, num_train_epochs=2.0
    )
    assert trained.metrics.values("train/loss") == pytest.approx(expected, rel=1e-5)
    assert farthest_weight(trained.model, by_hand) < 1e-5
    trained.trainer.save(tmp_path / "saved")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    by_peft = PeftModel.from_pretrained(base, tmp_path / "saved")
    assert torch.allclose(logits(by_peft), logits(trained.model), atol=1e-5)
    ours_again, _ = load_for_inference(tmp_path / "saved", device=torch.device("cpu"))
    assert torch.allclose(logits(ours_again), logits(trained.model), atol=1e-5)
    merged = by_peft.merge_and_unload()
    assert torch.allclose(logits(merged), logits(trained.model), atol=1e-4)


def test_pissa_is_saved_as_lora_of_twice_the_rank(tmp_path, model_folder, rows_file):
    changes = {"plugins": PLUGINS, "model.peft": {"rank": 4, "init": "pissa", "use_rslora": True}}
    out = write_and_run(tmp_path, model_folder, rows_file, changes)
    settings = settings_of(out)
    assert (settings["r"], settings["init_lora_weights"]) == (8, True)
    assert settings["lora_alpha"] == pytest.approx(8 * 2**0.5)


def test_the_best_weights_of_pissa_come_back(tmp_path, model_folder, rows_file):
    changes = {
        "plugins": PLUGINS,
        "model.peft": {"rank": 4, "init": "pissa"},
        "trainer.arguments.max_steps": 3,
        "trainer.arguments.learning_rate": 10.0,
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 1,
        "trainer.arguments.load_best_model_at_end": True,
        "trainer.data.val_set_size": 2,
    }
    out = write_and_run(tmp_path, model_folder, rows_file, changes)
    best, _ = load_for_inference(out / "checkpoints" / "best", device=torch.device("cpu"))
    last, _ = load_for_inference(out / "model", device=torch.device("cpu"))
    assert torch.equal(logits(best), logits(last))


def test_eva_gives_ranks_by_what_reaches_the_layers(tmp_path, model_folder, rows_file, capsys):
    changes = {"plugins": PLUGINS, "model.peft": {"rank": 2, "init": "eva"}, "trainer.arguments.learning_rate": 0.05}
    out = write_and_run(tmp_path, model_folder, rows_file, changes)
    assert "peft: eva, after " in capsys.readouterr().out
    settings = settings_of(out)
    assert settings["init_lora_weights"] is True
    assert len(set(settings["rank_pattern"].values()) | {2}) > 1, "not all ranks are alike"
    ours, _ = load_for_inference(out / "model", device=torch.device("cpu"))
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    plain = logits(base)
    by_peft = PeftModel.from_pretrained(base, out / "model")
    assert torch.allclose(logits(ours), logits(by_peft), atol=1e-6)
    assert not torch.allclose(logits(ours), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "changes", "line"),
    [
        ({"rank": 16, "init": "eva", "eva_rho": 64.0}, {}, "'eva' looks for 1024 directions (rank times eva_rho)"),
        (
            {"rank": 2, "init": "eva"},
            {"trainer.data.streaming": True, "trainer.data.sequence_length": 256},
            "model.peft.init: 'eva' looks at training rows before the first step",
        ),
    ],
)
def test_rows_that_eva_cannot_use(tmp_path, model_folder, rows_file, options, changes, line, capsys):
    file = builders.write_config(
        tmp_path, model_folder, rows_file, {"plugins": PLUGINS, "model.peft": options, **changes}
    )
    assert main(["train", str(file)]) == 2
    assert line in capsys.readouterr().err


def test_patterns_and_layers_reach_the_adapter(model_folder):
    model = wrapped(model_folder, rank=4, rank_pattern={"layers.0.self_attn.q_proj": 2}, alpha_pattern={"up_proj": 1.0})
    ranks = {name: module.r["default"] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    scales = {name: module.scaling["default"] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    other = {name for name, rank in ranks.items() if rank != 4}
    assert other == {"base_model.model.model.layers.0.self_attn.q_proj"}
    assert all(scales[name] == (0.25 if "up_proj" in name else 2.0) for name in scales)
    model = wrapped(model_folder, rank=4, layers_to_transform=(1,))
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(names) == 7
    assert all(".layers.1." in name for name in names)


def test_rows_of_listed_tokens_are_trained_alone(tmp_path, model_folder, rows_file, capsys):
    changes = {
        "plugins": PLUGINS,
        "model.peft": {"rank": 2, "train_tokens": [90, 91]},
        "trainer.arguments.learning_rate": 0.1,
        "trainer.arguments.weight_decay": 0.5,
    }
    out = write_and_run(tmp_path, model_folder, rows_file, changes)
    assert "peft: trained too are the rows of 2 tokens that are listed" in capsys.readouterr().out
    ours, _ = load_for_inference(out / "model", device=torch.device("cpu"))
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    before = base.get_input_embeddings().weight.clone()
    every = torch.arange(512)
    changed = (ours.get_input_embeddings()(every) != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [90, 91]
    assert torch.allclose(logits(ours), logits(PeftModel.from_pretrained(base, out / "model")), atol=1e-6)


def test_experts_in_one_parameter_are_adapted(tmp_path, rows_file, capsys):
    shape = {"num_local_experts": 2, "num_experts_per_tok": 1}
    folder = builders.save_tiny_model(tmp_path / "moe", config_type="mixtral", **shape)
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    options = {"rank": 2, "target_modules": ["q_proj"], "target_parameters": experts}
    changes = {"plugins": PLUGINS, "model.peft": options, "trainer.arguments.learning_rate": 0.05}
    out = write_and_run(tmp_path / "run", folder, rows_file, changes)
    assert "on 6 layers: q_proj 2, down_proj 2, gate_up_proj 2" in capsys.readouterr().out
    ours, _ = load_for_inference(out / "model", device=torch.device("cpu"))
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = logits(base)
    assert not torch.allclose(logits(ours), plain, atol=1e-4)
    assert torch.allclose(logits(ours), logits(PeftModel.from_pretrained(base, out / "model")), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4, "lora_plus_ratio": 16.0},
        {
            "rank": 4,
            "lora_plus_ratio": 4.0,
            "lora_plus_embedding_rate": 1e-3,
            "target_modules": ("q_proj", "embed_tokens"),
        },
        pytest.param({"rank": 4, "lora_plus_ratio": 4.0, "use_dora": True}, marks=pytest.mark.full),
    ],
    ids=["plain", "embeddings", "dora"],
)
def test_lora_plus_is_that_of_peft_step_for_step(model_folder, options):
    models, optimizers = [], []
    for number in range(2):
        model = wrapped(model_folder, **options)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if number:
            ratio, rate = options["lora_plus_ratio"], options.get("lora_plus_embedding_rate", 1e-6)
            optimizer = create_loraplus_optimizer(
                model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=ratio, loraplus_lr_embedding=rate,
                loraplus_weight_decay=0.1,
            )  # fmt: skip
        else:
            optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
            factors = lora_plus_factors(model, PeftOptions(**options), 1e-2)
            scale_learning_rates(optimizer, model, [RateFactor(*pair) for pair in factors.items()])
        models.append(model)
        optimizers.append(optimizer)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert farthest_weight(*models) == 0


def test_lora_plus_trains_faster_in_a_run(tmp_path, model_folder, rows_file):
    changes = {"plugins": PLUGINS, "trainer.arguments.max_steps": 4, "trainer.arguments.learning_rate": 1e-3}
    plain = write_and_run(tmp_path / "a", model_folder, rows_file, {**changes, "model.peft": {"rank": 4}})
    fast = write_and_run(
        tmp_path / "b", model_folder, rows_file, {**changes, "model.peft": {"rank": 4, "lora_plus_ratio": 16.0}}
    )
    assert losses_of(fast)[0] == losses_of(plain)[0]
    assert losses_of(fast)[-1] < losses_of(plain)[-1]
    assert losses_of(fast)[-1] < losses_of(fast)[0]
