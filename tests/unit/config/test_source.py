"""The raw configuration: files laid over each other, overrides, environment values; and where each was written."""

from pathlib import Path

import pytest

from dumbo.config.source import load_source
from dumbo.run_folder import resolved_tree, yaml_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to write files in, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder, overrides=(), **files):
    """Write `files` (name without suffix -> text) and load `run.yaml` by its relative path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_source(Path("run.yaml"), overrides)


def lines(source):
    return [str(problem).splitlines()[0] for problem in source.problems]


def place(source, *path):
    return str(source.place(path))


def test_values_know_their_file_line_and_column(folder):
    source = load(folder, run="model:\n  base_model: x\n")
    assert source.problems == []
    assert place(source, "model", "base_model") == "run.yaml:2:3"
    assert place(source, "model", "missing", "deeper") == "run.yaml:1:1", "the nearest key above"


def test_mappings_of_extended_files_are_merged_and_lists_replaced(folder):
    base = "trainer:\n  seed: 1\n  data: {shuffle: true}\ndatasets:\n  - path: a\n  - path: b\n"
    run = "extends: base.yaml\ntrainer:\n  data:\n    too_long: drop\ndatasets:\n  - path: c\n"
    source = load(folder, base=base, run=run)
    assert source.problems == []
    assert source.tree == {
        "trainer": {"seed": 1, "data": {"shuffle": True, "too_long": "drop"}},
        "datasets": [{"path": "c"}],
    }
    assert place(source, "trainer", "seed") == "base.yaml:2:3"
    assert place(source, "trainer", "data", "shuffle") == "base.yaml:3:10"
    assert place(source, "trainer", "data", "too_long") == "run.yaml:4:5"
    assert place(source, "datasets", 0, "path") == "run.yaml:6:5"
    assert place(source, "datasets", 1, "path") == "run.yaml:5:1", "nothing is left of the list that was replaced"


def test_of_several_extended_files_the_later_counts(folder):
    source = load(folder, a="x: 1\ny: 1\n", b="y: 2\n", run="extends: [a.yaml, b.yaml]\nz: 3\n")
    assert source.tree == {"x": 1, "y": 2, "z": 3}
    assert [place(source, key) for key in "xyz"] == ["a.yaml:1:1", "b.yaml:1:1", "run.yaml:2:1"]


def test_extended_files_extend_others_from_their_own_folder(folder):
    (folder / "parts").mkdir()
    (folder / "parts" / "deep.yaml").write_text("x: 1\ny: 1\n")
    (folder / "parts" / "base.yaml").write_text("extends: deep.yaml\ny: 2\n")
    source = load(folder, run="extends: parts/base.yaml\n")
    assert source.tree == {"x": 1, "y": 2}
    assert place(source, "x") == "parts/deep.yaml:1:1"


def test_a_mapping_may_be_replaced_by_a_value_and_the_other_way_round(folder):
    source = load(folder, base="a: {b: 1}\nc: 2\n", run="extends: base.yaml\na: 3\nc: {d: 4}\n")
    assert source.tree == {"a": 3, "c": {"d": 4}}
    assert place(source, "a", "b") == "run.yaml:2:1"


def test_null_takes_a_section_away_and_is_a_value_elsewhere(folder):
    base = "model:\n  peft: {rank: 4}\n  revision: x\ntrainer:\n  kd: {alpha: 1, teacher: {path: x}}\n"
    run = "extends: base.yaml\nmodel: {peft: null, revision: null, liger: null}\ntrainer: {kd: {teacher: null}}\n"
    source = load(folder, base=base, run=run)
    tree = {"model": {"revision": None, "liger": None}, "trainer": {"kd": {"alpha": 1, "teacher": None}}}
    assert source.tree == tree
    assert place(source, "model", "peft", "rank") == "run.yaml:2:1", "of the section nothing is left"


def test_the_command_line_takes_a_section_away(folder):
    (folder / "run.yaml").write_text("model:\n  base_model: x\n  peft: {rank: 4}\n")
    source = load_source(folder / "run.yaml", ["model.peft=null", "model.base_model=null"])
    assert source.problems == [] and source.tree == {"model": {"base_model": None}}


def test_the_same_file_may_be_extended_twice_without_a_cycle(folder):
    files = {"top": "x: 1\n", "a": "extends: top.yaml\n", "b": "extends: top.yaml\ny: 2\n"}
    source = load(folder, **files, run="extends: [a.yaml, b.yaml]\n")
    assert source.problems == []
    assert source.tree == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"run": "extends: run.yaml\na: 1\n"}, "run.yaml:1:1: extends: these files extend each other"),
        (
            {"run": "a: 1\nextends: b.yaml\n", "b": "extends: run.yaml\n"},
            "b.yaml:1:1: extends: these files extend each other",
        ),
        ({"run": "a: 1\nextends: nope.yaml\n"}, "run.yaml:2:1: nope.yaml: there is no such file"),
        ({"run": "extends: b.yaml\n", "b": "- 1\n"}, "b.yaml:1:1: expected a mapping, got a list"),
        ({"run": "extends: b.yaml\n", "b": ""}, "b.yaml: the file is empty"),
        ({"run": "extends: b.yaml\n", "b": "a: [\n"}, "b.yaml:1:4: not valid YAML"),
        ({"run": "extends: .\na: 1\n"}, "run.yaml:1:1: . is a folder; name the YAML file in it"),
    ],
)
def test_a_file_that_cannot_be_extended_is_the_only_complaint(folder, files, expected):
    source = load(folder, ["a=2"], **files)
    assert len(source.problems) == 1
    assert lines(source)[0].startswith(expected)
    assert source.tree == {}, "what the other file would have said is not missing"


@pytest.mark.parametrize("value", ["3", "[a.yaml, 3]", "{a: b}", "null"])
def test_extends_takes_names_of_files(folder, value):
    source = load(folder, run=f"a: 1\nextends: {value}\n")
    assert lines(source) == ["run.yaml:2:1: extends: expected the name of a file, or a list of names"]
    assert source.tree == {"a": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "run.yaml: the file is empty"),
        (b"# nothing\n---\n", "run.yaml: the file is empty"),
        (b"- a\n- b\n", "run.yaml:1:1: expected a mapping, got a list"),
        (b"hello\n", "run.yaml:1:1: expected a mapping, got a single value"),
        (b"a: 1\ncaf\xe9: 1\n", "run.yaml:2:4: not a text file in UTF-8"),
        (b"\xc3\xa9\xe9: 1\n", "run.yaml:1:2: not a text file in UTF-8"),
        ("a: 1".encode("utf-16"), "run.yaml: not a text file in UTF-8, but in UTF-16"),
    ],
)
def test_a_file_that_says_nothing_is_the_only_complaint(folder, text, expected):
    (folder / "run.yaml").write_bytes(text)
    source = load(folder, ["trainer.seed=1"])
    assert lines(source) == [expected]
    assert source.tree == {}, "overrides alone are no configuration"


def test_a_missing_file_has_neighbours(folder):
    (folder / "runs.yaml").write_text("a: 1\n")
    source = load(folder)
    assert [str(problem) for problem in source.problems] == [
        "run.yaml: there is no such file\n    did you mean runs.yaml?"
    ]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("trainer.seed=3", ("trainer", "seed"), 3),
        ("trainer.arguments.learning_rate=3e-4", ("trainer", "arguments", "learning_rate"), 3e-4),
        ("model.revision='3e4'", ("model", "revision"), "3e4"),
        ('model.revision="a: b"', ("model", "revision"), "a: b"),
        ("model.revision=a=b", ("model", "revision"), "a=b"),
        ("model.revision=", ("model", "revision"), None),
        ("datasets.1.path=z", ("datasets", 1, "path"), "z"),
        ("datasets.0={path: q, split: [a]}", ("datasets", 0), {"path": "q", "split": ["a"]}),
        ("plugins=[a, b]", ("plugins",), ["a", "b"]),
        ("evaluation.new.deep=true", ("evaluation", "new", "deep"), True),
        ("empty.key=1", ("empty", "key"), 1),
    ],
)
def test_overrides_of_every_form(folder, override, path, value):
    run = "model: {base_model: x}\ntrainer: {seed: 1}\ndatasets: [{path: a}, {path: b}]\nplugins: [p]\nempty:\n"
    source = load(folder, [override], run=run)
    assert source.problems == []
    found = source.tree
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)
    assert place(source, *path) == "command line"
    assert place(source, "model", "base_model") == "run.yaml:1:9", "other values keep theirs"


def test_a_later_override_counts_and_forgets_the_places_of_what_it_replaces(folder):
    source = load(folder, ["a={b: 1}", "a.b=2", "c=3"], run="c: {d: 4}\n")
    assert source.tree == {"c": 3, "a": {"b": 2}}
    assert place(source, "c", "d") == "command line"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "command line: 'seed' is not an override"),
        ("=3", "command line: '=3' is not an override"),
        ("a.b.c=1", "command line: a.b.c: 'a.b' is not a section in this configuration"),
        ("l.2=1", "command line: l.2: 'l' has 2 entries, counted from 0"),
        ("l.2.x=1", "command line: l.2.x: 'l' has 2 entries, counted from 0"),
        ("l.1.x=1", "command line: l.1.x: 'l.1' is no mapping, and has no keys"),
        ("l.x.y=1", "command line: l.x.y: 'l' is a list"),
        ("m.1.x=1", "command line: m.1.x: 'm' has 1 entry, counted from 0"),
        ("l.x=1", "command line: l.x: 'l' is a list"),
        ("a.b=[1", "command line: a.b: the value is not valid YAML: [1"),
        ("a.b=x: y: z", "command line: a.b: the value is not valid YAML: x: y: z"),
    ],
)
def test_overrides_that_cannot_be_applied(folder, override, expected):
    source = load(folder, [override], run="a: {b: 3}\nl: [{x: 1}, 2]\nm: [{x: 1}]\n")
    assert lines(source) == [expected]
    assert source.tree == {"a": {"b": 3}, "l": [{"x": 1}, 2], "m": [{"x": 1}]}


def test_a_key_of_a_list_is_told_its_position(folder):
    assert load(folder, ["m.x=1"], run="m: [{x: 1}]\n").problems[0].hints == ("write m.0.x",)


def test_a_file_in_another_encoding_is_told_to_be_saved_in_utf_8(folder):
    for text in (b"caf\xe9\n", "a: 1".encode("utf-16"), "a: 1".encode("utf-16-le")):
        (folder / "run.yaml").write_bytes(text)
        assert load(folder).problems[0].hints == ("save the file as UTF-8",)


def test_environment_values(folder, monkeypatch):
    monkeypatch.setenv("NUMBER", "3e-4")
    monkeypatch.setenv("WORD", "true")
    run = (
        "number: ${env:NUMBER}\n"
        "text: '${env:NUMBER}'\n"
        "part: run-${env:NUMBER}-${env:WORD}\n"
        "list: [x, '${env:WORD}']\n"
        "items:\n  - ${env:WORD}\n"
    )
    source = load(folder, ["more=${env:NUMBER}", "quoted='${env:WORD}'"], run=run)
    assert source.problems == []
    assert source.tree == {
        "number": 3e-4,
        "text": "3e-4",
        "part": "run-3e-4-true",
        "list": ["x", "true"],
        "items": [True],
        "more": 3e-4,
        "quoted": "true",
    }


def test_environment_values_of_extended_files_are_typed_alike(folder, monkeypatch):
    monkeypatch.setenv("NUMBER", "5")
    source = load(folder, base="a: ${env:NUMBER}\nb: '${env:NUMBER}'\n", run="extends: base.yaml\nb: ${env:NUMBER}\n")
    assert source.tree == {"a": 5, "b": 5}


def test_environment_values_that_are_not_there(folder, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    run = "a: 1\nb:\n  - x-${env:NOT_SET}\nc: ${env:NOT_SET\n"
    source = load(folder, ["d=${env:}"], run=run)
    assert lines(source) == [
        "run.yaml:3:5: b.0: the environment variable 'NOT_SET' is not set",
        "run.yaml:4:1: c: '${env:' has no end",
        "command line: d: the environment variable '' is not set",
    ]


def test_saved_is_the_name_of_an_environment_value_and_never_what_it_held(folder, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = "model: {revision: '${env:SECRET}', tokenizer: {pad_token: <pad>}}\nurls: ['http://me:${env:SECRET}@host']\n"
    source = load(folder, ["trainer.key=${env:SECRET}"], run=run)
    assert source.tree["model"]["revision"] == "hunter2"
    tree = resolved_tree(source)
    assert tree["model"] == {"revision": "${env:SECRET}", "tokenizer": {"pad_token": "<pad>"}}
    assert "hunter2" not in yaml_text(tree)
    assert tree["trainer"]["key"] == "${env:SECRET}"


def test_secrets_are_left_out_of_what_is_saved(folder):
    run = (
        "a: {api_key: abc, webhook_url: 'https://x/y', eos_token: </s>}\nb: https://me:pass@host/x\nc: [hf_"
        + "a" * 30
        + "]"
    )
    tree = resolved_tree(load(folder, run=run))
    assert tree == {
        "a": {"api_key": "<redacted>", "webhook_url": "<redacted>", "eos_token": "</s>"},
        "b": "https://me:<redacted>@host/x",
        "c": ["<redacted>"],
    }
