"""Settings beside their defaults."""

import copy

from dumbo.output.settings import defaults_of, settings_of
from tests.unit.output.fake_runs import CONFIG


def by_key(config):
    return {setting.key: setting for setting in settings_of(config)}


def test_what_differs_is_told_from_what_is_default():
    found = by_key(CONFIG)
    assert (found["trainer.arguments.batch_size"].value, found["trainer.arguments.batch_size"].default) == ("32", "8")
    assert found["trainer.arguments.batch_size"].differs and found["trainer.arguments.batch_size"].doc
    assert not found["trainer.arguments.num_train_epochs"].differs  # 3, and the default is 3.0
    assert not found["trainer.seed"].differs


def test_options_of_readers_and_formats_are_known():
    found = by_key(CONFIG)
    assert found["datasets.0.data_format.prompt"].default == "alpaca"
    assert found["datasets.0.path"].default is None
    assert found["datasets.0.train_format.train_on_inputs"].differs


def test_a_mapping_that_is_an_option_is_one_value():
    assert by_key(CONFIG)["model.architecture"].value == "{model_type: llama, hidden_size: 128}"


def test_keys_that_nobody_knows_are_shown_all_the_same():
    config = copy.deepcopy(CONFIG)
    config["model"]["nobodys"] = {"rank": 3, "targets": ["q", "k"]}
    config["plugins"] = ["no_such_plugin", "./own.py:Own", 7]
    found = by_key(config)
    assert found["model.nobodys.rank"].default is None and found["model.nobodys.rank"].differs
    assert found["datasets.0.type"].value == "huggingface_polars"


def test_numbers_that_are_not_finite_are_values_like_others():
    config = copy.deepcopy(CONFIG)
    config["trainer"]["arguments"]["lr_scheduler_kwargs"] = {"power": float("inf")}
    config["model"]["nobodys"] = {"most": float("inf"), "least": float("-inf"), "none": float("nan")}
    found = by_key(config)
    assert [found[f"model.nobodys.{name}"].value for name in ("most", "least", "none")] == [".inf", "-.inf", ".nan"]
    assert found["trainer.arguments.lr_scheduler_kwargs"].value == "{power: .inf}"


def test_a_plugin_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('this must not run')")
    assert settings_of(CONFIG | {"plugins": ["./own.py:Own"]})


def test_configurations_of_a_strange_shape():
    for config in (
        {},
        {"model": None},
        {"model": []},
        {"datasets": {"a": 1}},
        {"trainer": {"arguments": 3}},
        {"plugins": {}},
    ):
        assert len(settings_of(config)) <= 1


def test_defaults_of_keys_that_are_not_set():
    keys = {"trainer.arguments.batch_size", "trainer.nothing", "model.base_model"}
    assert defaults_of({"plugins": []}, keys) == {"trainer.arguments.batch_size": "8", "model.base_model": "null"}
