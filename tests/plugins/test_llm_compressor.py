"""Sparse fine-tuning: zeros stay zeros under every optimizer, others are trained, and what cannot be is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from dumbo.cli.main import main
from dumbo.errors import ConfigError, RunError
from dumbo.plugins.llm_compressor.recipe import Pruning, read_recipe
from dumbo.plugins.llm_compressor.zeros import Zeros
from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, weights_of, write_and_run

PLUGINS = [*SHIPPED, "llm_compressor"]
SPARSE = ("q_proj", "down_proj")
FAST = {"trainer.arguments.max_steps": 5, "trainer.arguments.learning_rate": 0.01, "plugins": PLUGINS}
RECIPE = {
    "finetuning_stage": {
        "finetuning_modifiers": {"ConstantPruningModifier": {"targets": ["re:.*q_proj.weight"], "start": 0}}
    }
}

ENDS = {"ConstantPruningModifier": {"targets": ["Linear"], "end": 2}}


@pytest.fixture(scope="module")
def sparse_folder(tmp_path_factory, model_folder):
    """A model of which half of `q_proj` and `down_proj` is zero."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("sparse")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in SPARSE):
                weight.masked_fill_(torch.rand(weight.shape, generator=draw) < 0.5, 0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


def zeros_of(weights):
    return {name: weight == 0 for name, weight in weights.items() if any(part in name for part in SPARSE)}


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


OPTIMIZERS = {
    "adamw": {"trainer.arguments.weight_decay": 0.1, "trainer.arguments.batch_size": 4},
    "momentum": {"trainer.arguments.optim": "sgd", "trainer.arguments.optim_args": "momentum=0.9,nesterov=True"},
    "adafactor": {"trainer.arguments.optim": "adafactor"},
}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(more, marks=() if name == "adamw" else pytest.mark.full, id=name)
        for name, more in OPTIMIZERS.items()
    ],
)
def test_zeros_stay_and_all_else_is_trained(tmp_path, sparse_folder, rows_file, more):
    run = write_and_run(tmp_path, sparse_folder, rows_file, {**FAST, **more})
    before, after = weights_of(sparse_folder), weights_of(run / "model")
    for name, zero in zeros_of(before).items():
        assert 0.4 < zero.float().mean() < 0.6
        assert torch.equal(after[name] == 0, zero), name
    for name, weight in before.items():
        if "embed_tokens" in name:
            continue  # tokens that are in no row have no gradient
        changed = (after[name] != weight)[weight != 0]
        assert changed.float().mean() > 0.5, name
    assert losses_of(run)[-1] < losses_of(run)[0]


@pytest.mark.full
def test_without_it_they_are_filled(tmp_path, sparse_folder, rows_file):
    run = write_and_run(tmp_path, sparse_folder, rows_file, {**FAST, "plugins": SHIPPED})
    after = weights_of(run / "model")
    assert all(
        (after[name] == 0)[zero].float().mean() < 0.1 for name, zero in zeros_of(weights_of(sparse_folder)).items()
    )


def test_each_step_is_the_masked_step_of_the_optimizer():
    """W <- (W - update) * M, and no more, over five steps of AdamW with decay."""
    model = builders.build_tiny_model()
    reference = builders.build_tiny_model()
    name = "model.layers.1.mlp.up_proj.weight"
    mask = torch.rand(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        for each in (model, reference):
            each.get_parameter(name).masked_fill_(mask, 0)
    zeros = Zeros.of_model(model, Pruning((), ("a",)))
    assert list(zeros.weights) == [name]
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01, weight_decay=0.1) for each in (model, reference)]
    ids = torch.arange(4, 40)[None]
    for _ in range(5):
        for each, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            each(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        zeros.restore()
        with torch.no_grad():
            reference.get_parameter(name).mul_(~mask)
    for (path, mine), (_, theirs) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), path
    zeros.check_kept()
    with torch.no_grad():
        model.get_parameter(name)[mask.nonzero()[0][0]] += 1
    with pytest.raises(RunError, match=f"zeros of {name} are none any more"):
        zeros.check_kept()


def test_what_is_saved_loads_equal_and_the_shares_are_told(tmp_path, sparse_folder, rows_file, capsys):
    run = write_and_run(tmp_path, sparse_folder, rows_file, FAST)
    said = capsys.readouterr().out
    assert "in 4 weights are zero and stay so" in said
    assert "model.layers.{0-1}.self_attn.q_proj.weight: " in said
    rows = summary_of(run)["sparsity"]
    assert [row["name"].split(".")[-2] for row in rows] == ["q_proj", "down_proj"] * 2
    assert all(row["before"] == row["after"] and 0.4 < row["after"] < 0.6 for row in rows)
    loaded = dict(AutoModelForCausalLM.from_pretrained(run / "model").named_parameters())
    assert all(
        torch.equal(loaded[name], weight) for name, weight in weights_of(run / "model").items() if name in loaded
    )


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(tmp_path, sparse_folder, rows_file):
    whole = write_and_run(tmp_path / "whole", sparse_folder, rows_file, FAST)
    saving = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 2}
    (tmp_path / "stop.py").write_text(STOP)
    stopping = {**FAST, **saving, "plugins": [*PLUGINS, str(tmp_path / "stop.py") + ":StopPlugin"]}
    (tmp_path / "parts").mkdir()
    file = builders.write_config(tmp_path / "parts", sparse_folder, rows_file, stopping)
    assert main(["train", str(file)]) != 0
    (tmp_path / "stop.py").write_text(STOP.replace("== 3", "== 300"))
    assert main(["train", str(file), "--resume"]) == 0
    expected, found = weights_of(whole / "model"), weights_of(tmp_path / "parts" / "out" / "model")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_recipe_that_was_changed_meanwhile_is_told_of(tmp_path, sparse_folder, rows_file, capsys):
    recipe = tmp_path / "recipe.yaml"
    text = "stage: {modifiers: {ConstantPruningModifier: {targets: ['re:.*q_proj'], start: 0, end: %s}}}"
    recipe.write_text(text % -1)
    (tmp_path / "stop.py").write_text(STOP)
    changes = {
        **FAST,
        "model.llm_compressor": {"recipe": str(recipe)},
        "trainer.arguments.save_strategy": "steps",
        "trainer.arguments.save_steps": 2,
        "plugins": [*PLUGINS, str(tmp_path / "stop.py") + ":StopPlugin"],
    }
    file = builders.write_config(tmp_path / "run", sparse_folder, rows_file, changes)
    assert main(["train", str(file)]) != 0
    (tmp_path / "stop.py").write_text(STOP.replace("== 3", "== 300"))
    recipe.write_text(text % 5)
    capsys.readouterr()
    assert main(["train", str(file), "--resume"]) == 0
    said = "llm_compressor: 'end' is 5.0 from here on, and was not set when the run was stopped"
    assert [line for line in capsys.readouterr().out.splitlines() if "from here on" in line] == [said]


STOP = """
from dumbo.errors import RunError
from dumbo.plugin_loader import CallbackPlugin


class StopPlugin(CallbackPlugin):
    def get_callbacks(self, config):
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_begin(self, args, state, control, **more):
                if state.global_step == 3:
                    raise RunError("enough")

        return [Stop()]
"""


@pytest.mark.full
def test_a_recipe_says_what_stays(tmp_path, sparse_folder, rows_file):
    run = write_and_run(tmp_path, sparse_folder, rows_file, {**FAST, "model.llm_compressor": {"recipe": RECIPE}})
    before, after = weights_of(sparse_folder), weights_of(run / "model")
    for name, zero in zeros_of(before).items():
        assert torch.equal(after[name] == 0, zero) == ("q_proj" in name), name


@pytest.mark.full
def test_zeros_may_be_trained_again_from_an_epoch_on(tmp_path, sparse_folder, rows_file):
    values = {"targets": "Linear", "start": 0.0, "end": 1}
    more = {"model.llm_compressor": {"recipe": {"ConstantPruningModifier": values}}}
    for steps, kept in ((1, True), (6, False)):
        folder = tmp_path / str(steps)
        folder.mkdir()
        run = write_and_run(folder, sparse_folder, rows_file, {**FAST, **more, "trainer.arguments.max_steps": steps})
        after = weights_of(run / "model")
        assert all(
            bool((after[name] == 0)[zero].all()) == kept for name, zero in zeros_of(weights_of(sparse_folder)).items()
        )


def test_a_recipe_is_read():
    found = read_recipe({**RECIPE, "other_stage": {"run_type": "oneshot"}})
    assert (found.targets, found.end) == (("re:.*q_proj.weight",), None)
    assert found.where[-2:] == ("ConstantPruningModifier", "targets")
    assert read_recipe({"ConstantPruningModifier": {"targets": "Linear", "start": 0.0, "end": 2}}).end == 2.0


RECIPE_FILE = """
finetuning_stage:
  finetuning_modifiers:
    ConstantPruningModifier: {targets: ["re:.*q_proj.weight"], start: 0, update: null}
"""


def test_a_recipe_is_read_from_a_file_as_if_it_stood_in_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE_FILE)
    assert read_recipe("recipe.yaml") == read_recipe(str(tmp_path / "recipe.yaml")) == read_recipe(RECIPE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "model.llm_compressor.recipe: there is no file '{file}'"),
        ("- a\n", "model.llm_compressor.recipe: '{file}' holds no recipe, which is a mapping"),
        ("", "'{file}' holds no recipe, which is a mapping"),
        (b"\xff\xfe", "'{file}' cannot be read: it is no text"),
        ("a: [", "{file}:1:4: "),
        ("stage: {}", "{file}:1:1: has no modifiers"),
        (RECIPE_FILE.replace("start: 0", "start: 2"), "ConstantPruningModifier.start: the zeros of the model would be"),
        (RECIPE_FILE.replace("start: 0", "strat: 0"), "{file}:4:64: finetuning_stage.finetuning_modifiers."),
    ],
)
def test_files_that_are_no_recipe_are_one_clear_line(tmp_path, sparse_folder, rows_file, capsys, text, words):
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    changes = {"plugins": PLUGINS, "model.llm_compressor": {"recipe": str(recipe)}}
    assert main(["check", str(builders.write_config(tmp_path, sparse_folder, rows_file, changes))]) == 2
    assert words.format(file=recipe) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (("q_proj",), 2),
        (("layers.1.self_attn.q_proj.weight",), 1),
        (("model.layers.0.mlp.down_proj", "re:.*1.mlp.down_proj.weight"), 2),
        (("Linear",), 4),
        (("re:.*",), 5),  # the padding token is a row of zeros among the embeddings
        ((), 4),
    ],
)
def test_targets_mean_weights_layers_and_classes(sparse_folder, targets, found):
    model = AutoModelForCausalLM.from_pretrained(sparse_folder)
    assert len(Zeros.of_model(model, Pruning(targets, ("a",))).weights) == found


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("up_prj",), "'up_prj' means no weight\n    nearest are: .*up_proj"),
        (("re:q_proj",), "'re:q_proj' means no weight"),
        (("re:(",), "is not a regular expression"),
        (("up_proj",), "'up_proj' means 2 weights, and none has zeros"),
    ],
)
def test_targets_without_weights_or_zeros_are_errors(sparse_folder, targets, words):
    model = AutoModelForCausalLM.from_pretrained(sparse_folder)
    with pytest.raises(ConfigError, match=words):
        Zeros.of_model(model, Pruning(targets, ("a",)))


def test_a_dense_model_is_an_error():
    with pytest.raises(ConfigError, match="LlamaForCausalLM is not sparse"):
        Zeros.of_model(builders.build_tiny_model(), Pruning((), ("a",)))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"stage": {"quant_modifiers": {"GPTQModifier": {}}}}, "'GPTQModifier' is not available here"),
        ({"stage": {}}, "has no modifiers"),
        ({"stage": 3}, "is neither a stage nor modifiers"),
        ({"ConstantPruningModifier": {"targets": []}}, "must name weights"),
        ({"ConstantPruningModifier": {"targets": "a", "strat": 0}}, "strat: unknown option\n    did you mean 'start'"),
        ({"ConstantPruningModifier": {"targets": "a", "start": 2}}, "trained away before"),
        ({"ConstantPruningModifier": {"targets": "a", "end": 0}}, "no zero would be kept"),
        ({"ConstantPruningModifier": {"targets": "a", "update": 2}}, "update: would change nothing: zeros are made"),
        ({"ConstantPruningModifier": {"targets": "a", "end": "two"}}, "must be a number of epochs"),
        ({f"s{n}": {"modifiers": {"ConstantPruningModifier": {"targets": "a"}}} for n in "12"}, "2 times"),
    ],
)
def test_recipes_that_cannot_be_followed_are_errors(recipe, words):
    with pytest.raises(ConfigError, match=words):
        read_recipe(recipe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.llm_compressor": {"recipe": ENDS, "save_compressed": True}}, "from epoch 2 on zeros may be trained"),
        ({"model.llm_compressor": {"recipe": RECIPE, "targets": ["q_proj"]}}, "a recipe names targets too"),
        ({"model.llm_compressor": {"recipe": {"a": {"SparseGPTModifier": {}}}}}, "llmcompressor demands an older"),
        ({"plugins": [*PLUGINS, "peft"]}, "an adapter changes every weight"),
        ({"trainer.arguments.optim": "galore_adamw_layerwise"}, "in the backward pass"),
        ({"trainer.arguments.optim": "lomo"}, "in the backward pass"),
        ({"trainer.arguments.optim": "schedule_free_adamw"}, "saves an average of weights"),
    ],
)
def test_what_would_fill_zeros_is_refused(tmp_path, sparse_folder, rows_file, capsys, changes, words):
    file = builders.write_config(tmp_path, sparse_folder, rows_file, {"plugins": PLUGINS, **changes})
    assert main(["check", str(file)]) == 2
    assert words in capsys.readouterr().err
