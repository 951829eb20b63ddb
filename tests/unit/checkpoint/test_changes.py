"""What may change between a checkpoint and the run that goes on from it."""

import pytest

from dumbo.checkpoint.changes import changed_keys, check_changes
from dumbo.errors import ConfigError

CONFIG = {
    "model": {"base_model": "a", "attention": "auto", "peft": {"rank": 8}},
    "datasets": [{"path": "a.jsonl", "weight": 1.0}],
    "trainer": {
        "arguments": {"learning_rate": 1e-3, "batch_size": 4, "logging_steps": 1},
        "data": {"packing": False, "cache": True},
        "wandb": {"name": "one"},
        "seed": 1,
    },
    "plugins": ["transformers", "wandb"],
}


def changed(**values):
    """The configuration with other values at dotted keys (written with two underscores)."""
    from copy import deepcopy

    tree = deepcopy(CONFIG)
    for key, value in values.items():
        *way, last = key.split("__")
        section = tree
        for part in way:
            section = section[int(part)] if isinstance(section, list) else section[part]
        section[last] = value
    return tree


def test_the_same():
    assert changed_keys(CONFIG, changed()) == {}
    assert changed_keys(CONFIG, changed(plugins=["wandb", "transformers"])) == {}
    assert check_changes(CONFIG, changed(), []) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"trainer__arguments__logging_steps": 5},
        {"trainer__data__cache": False},
        {"trainer__output_dir": "other"},
        {"trainer__wandb__name": "two"},
        {"datasets__0__path": "b.jsonl"},
    ],
)
def test_harmless(change):
    assert check_changes(CONFIG, changed(**change), [], harmless=["trainer.wandb"]) == ()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"trainer__arguments__learning_rate": 1.0}, "trainer.arguments.learning_rate"),
        ({"model__attention": "eager"}, "model.attention"),
        ({"plugins": ["transformers"]}, "plugins"),
        ({"trainer__watch": {"after": 1}}, "trainer.watch"),
    ],
)
def test_to_be_allowed(change, key):
    with pytest.raises(ConfigError, match=f"add --allow-change {key}"):
        check_changes(CONFIG, changed(**change), [], harmless=["trainer.wandb"])
    assert len(check_changes(CONFIG, changed(**change), [key])) == 1
    assert check_changes(CONFIG, changed(**change), [key.partition(".")[0]])


@pytest.mark.parametrize(
    "change",
    [
        {"model__base_model": "b"},
        {"model__peft": {"rank": 16}},
        {"trainer__arguments__batch_size": 8},
        {"trainer__data__packing": True},
        {"trainer__seed": 2},
        {"trainer__data__mix": "rows"},
    ],
)
def test_impossible(change):
    [section] = change
    with pytest.raises(ConfigError, match="what the checkpoint holds does not fit"):
        check_changes(CONFIG, changed(**change), [section.replace("__", ".")])


def test_allowed_and_not_changed():
    """A job that is started again allows what its checkpoint has already."""
    assert check_changes(CONFIG, changed(), ["trainer.seed", "trainer.arguments"]) == ()
    assert check_changes(CONFIG, changed(), ["datasets"]) == (("datasets",),)  # their files may have


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("trainer.arguments.learning_rat", "trainer.arguments.learning_rate"),
        ("seed", "trainer.seed"),
        ("batch_size", "trainer.arguments.batch_size"),
        ("learning_rat", "trainer.arguments.learning_rate"),
    ],
)
def test_allowed_and_unknown(name, near):
    with pytest.raises(ConfigError, match=f"--allow-change {name}: there is no such key") as raised:
        check_changes(CONFIG, changed(), [name])
    assert str(raised.value).startswith("command line: ")
    assert f"did you mean '{near}'?" in str(raised.value)
    with pytest.raises(ConfigError, match="changed are trainer.arguments.logging_steps"):
        check_changes(CONFIG, changed(trainer__arguments__logging_steps=9), [name])
