"""Adapters: what they are put on, that they alone are trained, and that what is saved loads again."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from dumbo.bridge.inference_model import load_for_inference
from dumbo.cli.main import main
from dumbo.plugins.peft.adapter import Place, add_adapter
from dumbo.plugins.peft.plugin import PeftOptions
from tests import builders
from tests.numerics.training import farthest_weight, random_rows, run_config, train, train_by_hand
from tests.run.whole_runs import SHIPPED, losses_of, weights_of, write_and_run

PLUGINS = [*SHIPPED, "peft"]
SHAPE = {"model.peft": {"rank": 4}, "plugins": PLUGINS}
IDS = torch.arange(3, 40)[None]
# PEFT, used by itself as the reference, asks Transformers for what it renames, and misses its own names for experts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match:RuntimeWarning"),
]


def adapter_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "adapter_model.safetensors")


def settings_of(folder):
    return json.loads((folder / "model" / "adapter_config.json").read_text(encoding="utf-8"))


def refusal(tmp_path, model_folder, rows_file, options, capsys, changes=None, verb="train"):
    """The lines of an error, without the file's name."""
    file = builders.write_config(
        tmp_path, model_folder, rows_file, {"plugins": PLUGINS, "model.peft": options, **(changes or {})}
    )
    assert main([verb, str(file)]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, rows_file):
    """A run that others look at: five steps with rank 4 on every linear layer."""
    changes = {**SHAPE, "trainer.arguments.max_steps": 5, "trainer.arguments.learning_rate": 0.01}
    return write_and_run(tmp_path_factory.mktemp("peft"), model_folder, rows_file, changes)


def test_only_the_adapter_is_saved_and_the_loss_goes_down(run, model_folder):
    names = set(adapter_of(run))
    assert names
    assert all(".lora_" in name for name in names)
    assert not (run / "model" / "model.safetensors").exists()
    assert losses_of(run)[-1] < losses_of(run)[0] - 0.01
    assert settings_of(run)["base_model_name_or_path"] == str(model_folder.resolve())


def test_rank_alpha_and_targets_have_the_documented_defaults(run, tmp_path, model_folder, rows_file, capsys):
    assert settings_of(run)["lora_alpha"] == 8  # twice the rank
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in settings_of(run)["target_modules"]} == linear
    out = write_and_run(tmp_path, model_folder, rows_file, {"plugins": PLUGINS, "trainer.arguments.max_steps": 1})
    assert settings_of(out)["r"] == 16
    said = capsys.readouterr().out
    assert "peft: LoRA (rank 16, alpha 32) on 14 layers: q_proj 2, k_proj 2" in said
    assert "parameters are trained (" in said


def test_what_was_saved_loads_with_transformers_peft_and_here(run, model_folder):
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    plain = base(IDS).logits
    by_peft = PeftModel.from_pretrained(base, run / "model").eval()(IDS).logits
    by_transformers = AutoModelForCausalLM.from_pretrained(run / "model").eval()(IDS).logits
    ours, tokenizer = load_for_inference(run / "model", device=torch.device("cpu"))
    assert not torch.allclose(by_peft, plain, atol=1e-3)
    assert torch.equal(by_peft, by_transformers)
    assert torch.equal(ours(IDS).logits, by_peft)
    assert not ours.training
    assert ours.dtype == torch.float32
    assert len(tokenizer) == 512


def wrapped(model_folder, **options):
    """The model of a folder as the plugin leaves it."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    return add_adapter(model, PeftOptions(**options), Place(run_config({}), Path()))


def by_peft_itself(model_folder, **options):
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", **options)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config)


def test_users_see_no_warnings_of_peft(run, model_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped(model_folder, rank=4)
        load_for_inference(run / "model", device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rank": 4}, {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
        (
            {"rank": 4, "alpha": 6.0, "target_modules": ("q_proj", "v_proj"), "init": "gaussian", "use_rslora": True},
            {
                "r": 4,
                "lora_alpha": 6,
                "target_modules": ["q_proj", "v_proj"],
                "init_lora_weights": "gaussian",
                "use_rslora": True,
            },
        ),
        (
            {"rank": 2, "target_modules": r".*mlp\..*_proj", "modules_to_save": ("norm",), "use_dora": True},
            {
                "r": 2,
                "lora_alpha": 4,
                "target_modules": r".*mlp\..*_proj",
                "modules_to_save": ["norm"],
                "use_dora": True,
            },
        ),
        pytest.param(
            {"rank": 2, "target_modules": ("q_proj",), "init": "orthogonal"},
            {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
            marks=pytest.mark.full,
        ),
    ],
    ids=["all-linear", "list", "regex", "orthogonal"],
)
def test_the_curve_is_that_of_peft_itself(tmp_path, model_folder, ours, theirs):
    rows = random_rows(8)
    by_hand, expected = train_by_hand(by_peft_itself(model_folder, **theirs), rows, batch_size=4, epochs=2)
    trained = train(
        tmp_path, wrapped(model_folder, **ours), rows, batch_size=4, physical_batch_size=2, num_train_epochs=2.0
    )
    assert trained.metrics.values("train/loss") == pytest.approx(expected, rel=1e-5)
    assert farthest_weight(trained.model, by_hand) < 1e-5
    assert expected[-1] != expected[0]


def test_training_leaves_the_base_model_as_it_was(tmp_path, model_folder):
    model = wrapped(model_folder, rank=4)
    trained = train(tmp_path, model, random_rows(8), batch_size=4, physical_batch_size=4, learning_rate=0.1).model
    before, after = dict(model.named_parameters()), dict(trained.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_trains_the_same(tmp_path, model_folder, reentrant):
    options = {"batch_size": 4, "physical_batch_size": 4, "learning_rate": 0.01, "num_train_epochs": 2.0}
    plain = train(tmp_path / "a", wrapped(model_folder, rank=4), random_rows(8), **options)
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    saving = train(tmp_path / "b", wrapped(model_folder, rank=4), random_rows(8), **options, **kwargs)
    assert saving.metrics.values("train/loss") == pytest.approx(plain.metrics.values("train/loss"), rel=1e-6)
    assert all(value > 0 for value in saving.metrics.values("train/grad_norm"))
    assert farthest_weight(saving.model, plain.model) < 1e-6


def test_nothing_before_the_first_adapter_is_differentiated(tmp_path, model_folder):
    """Not even its input: the activations of frozen layers would be kept for nothing."""
    model = wrapped(model_folder, rank=2, target_modules=r".*layers\.1\.mlp\.down_proj")
    train(tmp_path, model, random_rows(4), batch_size=4, physical_batch_size=4)
    inputs = []
    for layer in model.get_base_model().model.layers:
        layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0].requires_grad))
    assert model(IDS).logits.requires_grad
    assert inputs == [False, False]


def test_noise_on_embeddings_reaches_a_wrapped_model(tmp_path, model_folder):
    options = {"batch_size": 4, "physical_batch_size": 4}
    plain = train(tmp_path / "a", wrapped(model_folder, rank=4), random_rows(8), **options)
    noisy = train(tmp_path / "b", wrapped(model_folder, rank=4), random_rows(8), **options, neftune_noise_alpha=5.0)
    assert noisy.metrics.values("train/loss") != plain.metrics.values("train/loss")


def test_the_auxiliary_loss_of_experts_is_added(tmp_path, rows_file, capsys):
    shape = {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    folder = builders.save_tiny_model(tmp_path / "moe", config_type="mixtral", **shape)
    losses = []
    for number, coefficient in enumerate((0.0, 10.0)):
        changes = {**SHAPE, "model.config_overrides": {"router_aux_loss_coef": coefficient}}
        out = write_and_run(tmp_path / str(number), folder, rows_file, changes | {"trainer.arguments.max_steps": 1})
        losses.append(losses_of(out)[0])
    assert losses[1] - losses[0] > 9  # balanced experts have an auxiliary loss of about 1
    # PEFT takes all linear layers of a model that it knows to be those inside of its experts, too.
    said = capsys.readouterr().out
    assert all(f"{name} 2" in said for name in ("q_proj", "gate", "down_proj", "gate_up_proj")), said
    ours, _ = load_for_inference(out / "model", device=torch.device("cpu"))
    assert torch.equal(ours(IDS).logits, AutoModelForCausalLM.from_pretrained(out / "model").eval()(IDS).logits)


@pytest.mark.parametrize(
    ("tied", "whole"),
    [
        (True, True),
        (False, False),
        pytest.param(True, False, marks=pytest.mark.full),
        pytest.param(False, True, marks=pytest.mark.full),
    ],
    ids=["tied-whole", "untied-rows", "tied-rows", "untied-whole"],
)
def test_rows_of_new_tokens_are_trained_and_come_back(tmp_path, rows_file, tied, whole):
    folder = builders.save_tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    options = {"rank": 4, "modules_to_save": ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]}
    changes = {
        "plugins": PLUGINS,
        "model.peft": options if whole else {"rank": 4},
        "model.tokenizer.special_tokens": ["<a>", "<b>"],
        "datasets.0.train_format.template": "{% for m in messages %}<a>{{ m.content }}<b>{% endfor %}",
        "trainer.arguments.learning_rate": 0.1,
    }
    out = write_and_run(tmp_path, folder, rows_file, changes)
    ids = torch.tensor([[3, 512, 513, 40]])
    ours, tokenizer = load_for_inference(out / "model", device=torch.device("cpu"))
    assert len(tokenizer) == 514
    base = AutoModelForCausalLM.from_pretrained(folder)
    base.resize_token_embeddings(514)
    fresh = base.get_input_embeddings().weight[512:].clone()
    theirs = PeftModel.from_pretrained(base, out / "model").eval()
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    rows = theirs.get_input_embeddings()(torch.tensor([512, 513]))
    assert not torch.allclose(rows, fresh, atol=1e-2)
    deltas = [name for name in adapter_of(out) if "trainable_tokens_delta" in name]
    assert len(deltas) == (0 if whole else 1 if tied else 2)


def test_an_adapter_on_embeddings_that_grew_is_refused(tmp_path, model_folder, rows_file, capsys):
    grown = {"model.tokenizer.special_tokens": ["<a>"]}
    options = {"target_modules": ["q_proj", "embed_tokens"]}
    said = refusal(tmp_path, model_folder, rows_file, options, capsys, grown)
    assert "model.peft.target_modules: the tokenizer brings 1 new tokens, whose rows would not be saved" in said
    assert "modules_to_save: [embed_tokens]" in said


def test_an_adapter_on_embeddings_that_did_not_grow_comes_back(tmp_path, model_folder, rows_file):
    options = {"rank": 4, "target_modules": ["embed_tokens", "q_proj", "lm_head"]}
    out = write_and_run(tmp_path, model_folder, rows_file, {"plugins": PLUGINS, "model.peft": options})
    names = [name for name in adapter_of(out) if "embed_tokens" in name or "lm_head" in name]
    assert names
    assert all("lora_" in name for name in names)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), out / "model").eval()
    ours, _ = load_for_inference(out / "model", device=torch.device("cpu"))
    assert torch.equal(ours(IDS).logits, again(IDS).logits)


def test_biases_are_trained_where_there_are_some(tmp_path, rows_file):
    folder = builders.save_tiny_model(tmp_path / "base", config_type="qwen2")
    options = {"rank": 4, "target_modules": ["q_proj"], "bias": "lora_only"}
    changes = {"plugins": PLUGINS, "model.peft": options, "trainer.arguments.learning_rate": 0.1}
    out = write_and_run(tmp_path, folder, rows_file, changes)
    ours, _ = load_for_inference(out / "model", device=torch.device("cpu"))
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), out / "model").eval()
    assert torch.equal(ours(IDS).logits, by_peft(IDS).logits)
    biases = {name: value for name, value in adapter_of(out).items() if name.endswith("bias")}
    assert len(biases) == 2
    before = weights_of(folder)["model.layers.0.self_attn.q_proj.bias"]
    assert any(not torch.equal(value, before) for value in biases.values())


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            {"target_modules": ["q_proj", "k_porj"]},
            ["model.peft.target_modules: 'k_porj' matches no module", "did you mean 'k_proj'", "the model has:"],
        ),
        (
            {"target_modules": "q_proj"},
            ["'q_proj' matches no module", "a text is a regular expression for the whole name", "the list [q_proj]"],
        ),
        ({"target_modules": ".*query.*"}, ["'.*query.*' matches no module", "the model has: "]),
        (
            {"target_modules": ["self_attn"]},
            ["matches model.layers.0.self_attn, a LlamaAttention, which LoRA cannot adapt", "it holds: q_proj"],
        ),
        (
            {"modules_to_save": ["embed_token"]},
            ["model.peft.modules_to_save: 'embed_token' matches no module", "did you mean 'embed_tokens'?"],
        ),
        (
            {"target_modules": ["lm_head", "q_proj"], "modules_to_save": ["lm_head"]},
            ["model.peft.target_modules: 'lm_head' has no effect: its modules are trained as a whole"],
        ),
        ({"bias": "all"}, ["model.peft.bias: has no effect: the model has no biases"]),
        ({"exclude_modules": ["k_porj"]}, ["model.peft.exclude_modules: 'k_porj' matches", "did you mean 'k_proj'"]),
        (
            {"rank_pattern": {"q_porj": 2}},
            ["model.peft.rank_pattern: 'q_porj' matches nothing", "did you mean 'q_proj'"],
        ),
        (
            {"alpha_pattern": {"lm_head": 2.0}},
            ["model.peft.alpha_pattern: 'lm_head' matches nothing that gets an adapter"],
        ),
        ({"layers_to_transform": [1, 2]}, ["model.peft.layers_to_transform: there is no layer 2", "there are 0 to 1"]),
        ({"target_parameters": ["mlp.gate_up"]}, ["model.peft.target_parameters: 'mlp.gate_up' matches no weight"]),
        ({"train_tokens": [512]}, ["model.peft.train_tokens: there is no token 512", "rows for 0 to 511"]),
        (
            {"method": "vera", "settings": {"d_intial": 0.1}},
            ["'vera' has no setting 'd_intial'", "did you mean 'd_initial'?"],
        ),
        ({"method": "vera", "settings": {"d_initial": "x"}}, ["'d_initial' is to be a number, got 'x' (a text)"]),
        ({"method": "vera", "settings": {"target_modules": ["q_proj"]}}, ["write it as model.peft.target_modules"]),
        ({"method": "fourierft", "target_modules": ["embed_tokens"]}, ["model.peft: PEFT refuses: "]),
    ],
)
def test_names_that_the_model_does_not_have_are_refused(tmp_path, model_folder, rows_file, options, lines, capsys):
    said = refusal(tmp_path, model_folder, rows_file, options, capsys)
    for line in lines:
        assert line in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"target_modules": []}, "model.peft.target_modules: is empty"),
        ({"target_modules": "(q_proj"}, "'(q_proj' is not a regular expression"),
        ({"modules_to_save": [""]}, "model.peft.modules_to_save: a name cannot be empty"),
        ({"init": "orthogonal", "rank": 3}, "model.peft.init: 'orthogonal' needs an even rank"),
        ({"rank": 0}, "model.peft.rank: "),
        ({"dropout": 1.0}, "model.peft.dropout: "),
        ({"type": "ia3"}, "write model.peft.method"),
        ({"method": "ia4"}, "model.peft.method: no method of adapters is called 'ia4'"),
        ({"method": "prompt_tuning"}, "model.peft.method: 'prompt_tuning' is not available: it puts tokens"),
        ({"init": "pisa"}, "model.peft.init: no beginning of LoRA is called 'pisa'"),
        ({"init": "corda"}, "model.peft.init: 'corda' is not available: it needs passes over rows"),
        ({"method": "ia3", "use_dora": True}, "model.peft.use_dora: is an option of lora, and the method is 'ia3'"),
        ({"method": "ia3", "rank": 4}, "model.peft.rank: 'ia3' has nothing that is called so"),
        ({"method": "vera", "settings": {"r": 4}}, "model.peft.settings: 'r' is an option of model.peft"),
        ({"settings": {"lora_bias": True}}, "model.peft.settings: has no effect with lora"),
        ({"lora_plus_embedding_rate": 1e-5}, "model.peft.lora_plus_embedding_rate: has no effect here"),
        ({"layers_pattern": "layers"}, "model.peft.layers_pattern: has no effect here"),
        ({"rank_pattern": {"(": 2}}, "'(' is not a regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "model.peft.rank_pattern.q_proj: "),
        ({"start_from": "x", "init": "pissa"}, "model.peft.init: has no effect with start_from"),
        ({"beside": {"default": "x"}}, "model.peft.beside: 'default' cannot be the name of an adapter"),
        ({"merge_first": ["x", "x"]}, "model.peft.merge_first: names a folder twice"),
        ({"target_parameters": ["a.b"], "dropout": 0.1}, "model.peft.dropout: PEFT has none for weights"),
    ],
)
def test_a_check_finds_what_needs_no_model(tmp_path, model_folder, rows_file, options, line, capsys):
    assert line in refusal(tmp_path, model_folder, rows_file, options, capsys, verb="check")


def test_random_weights_take_no_adapter(tmp_path, model_folder, rows_file, capsys):
    changes = {
        "model.base_model": builders.REMOVE,
        "model.architecture": {"model_type": "llama", "hidden_size": 32},
        "model.tokenizer.path": str(model_folder),
    }
    said = refusal(tmp_path, model_folder, rows_file, {}, capsys, changes, verb="check")
    assert "model.architecture: random weights are saved nowhere" in said


def test_an_adapter_folder_is_no_base_model(tmp_path, run, rows_file, capsys):
    said = refusal(tmp_path, run / "model", rows_file, {"rank": 4}, capsys, verb="check")
    assert "holds an adapter (adapter_config.json), and a base model must be whole" in said
