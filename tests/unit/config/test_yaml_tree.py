"""YAML 1.2 as it is read, with places; and as it is written, so that readers of 1.2 and of 1.1 find the same values."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dumbo.config.yaml_tree import parse_yaml, plain_scalar
from dumbo.run_folder import yaml_text


def read(text):
    """The value of a text without mistakes."""
    tree = parse_yaml(text, "run.yaml")
    assert tree.problems == []
    return tree.value


def messages(text):
    return [str(problem) for problem in parse_yaml(text, "run.yaml").problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E5", 2e5),
        ("1.e3", 1000.0),
        (".5", 0.5),
        ("-0.25", -0.25),
        ("+3", 3),
        ("007", 7),  # 1.1 had octal numbers here
        ("0o17", 15),
        ("0xFF", 255),
        ("-.inf", -math.inf),
        (".Inf", math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
    ],
)
def test_numbers_truth_and_null_of_yaml_1_2(text, value):
    found = plain_scalar(text)
    assert found == value
    assert type(found) is type(value)
    assert read(f"key: {text}") == {"key": value}


def test_not_a_number_is_read_as_such():
    assert math.isnan(plain_scalar(".NaN"))


@pytest.mark.parametrize(
    "text",
    ["yes", "No", "on", "off", "y", "1_000", "12:30:00", "2024-01-31", "1e", "e5", "0b11", "08:15", "tRUE", ".", "nan"],
)
def test_words_of_yaml_1_1_are_texts(text):
    assert read(f"key: {text}") == {"key": text}


@pytest.mark.parametrize("text", ["'1e-4'", '"true"', "'null'", "''", "|\n  12\n", ">-\n  0x1\n"])
def test_quotes_and_blocks_make_texts(text):
    assert isinstance(read(f"key: {text}")["key"], str)


def test_a_number_of_thousands_of_digits_is_no_number():
    assert read("seed: " + "9" * 5000) == {"seed": "9" * 5000}


def test_every_key_and_item_has_its_place():
    text = "a: 1\nb:\n  c: [x, {d: 2}]\n  e:\n    - f: 3\n      g: 4\n    - 5\n"
    places = {path: (place.line, place.column) for path, place in parse_yaml(text, "run.yaml").places.items()}
    assert places == {
        (): (1, 1),
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", "c"): (3, 3),
        ("b", "c", 0): (3, 7),
        ("b", "c", 1): (3, 10),
        ("b", "c", 1, "d"): (3, 11),
        ("b", "e"): (4, 3),
        ("b", "e", 0): (5, 7),
        ("b", "e", 0, "f"): (5, 7),
        ("b", "e", 0, "g"): (6, 7),
        ("b", "e", 1): (7, 7),
    }
    assert {place.file for place in parse_yaml(text, "run.yaml").places.values()} == {"run.yaml"}


def test_a_byte_order_mark_and_windows_line_ends_change_nothing():
    tree = parse_yaml("\ufeffa: 1\r\nb:\r\n  c: 2\r\n", "run.yaml")
    assert tree.value == {"a": 1, "b": {"c": 2}}
    assert (tree.places["b", "c"].line, tree.places["b", "c"].column) == (3, 3)


def test_duplicate_keys_are_all_reported_and_the_first_counts():
    text = "a: 1\nb:\n  c: 2\n  c: 3\na: 4\na: 5\n"
    tree = parse_yaml(text, "run.yaml")
    assert tree.value == {"a": 1, "b": {"c": 2}}
    assert [str(problem).splitlines()[0] for problem in tree.problems] == [
        "run.yaml:4:3: b.c: this key is written twice",
        "run.yaml:5:1: a: this key is written twice",
        "run.yaml:6:1: a: this key is written twice",
    ]
    assert "run.yaml:3:3" in str(tree.problems[0])


def test_aliases_are_copies():
    value = read("a: &x {seed: [1]}\nb: *x\n")
    assert value == {"a": {"seed": [1]}, "b": {"seed": [1]}}
    assert value["a"]["seed"] is not value["b"]["seed"]


def test_merged_keys_stand_below_the_mappings_own_and_keep_their_places():
    text = "base: &base\n  a: 1\n  b: 1\nother: &other {b: 2, c: 2}\nrun:\n  b: 3\n  <<: [*base, *other]\n"
    tree = parse_yaml(text, "run.yaml")
    assert tree.problems == []
    assert tree.value["run"] == {"a": 1, "b": 3, "c": 2}
    assert tree.places["run", "a"].line == 2
    assert tree.places["run", "b"].line == 6
    assert tree.places["run", "c"].line == 4


def test_the_first_of_two_merged_mappings_counts():
    assert read("x: &x {a: 1}\ny: &y {a: 2, b: 2}\nrun: {<<: [*x, *y]}\n")["run"] == {"a": 1, "b": 2}


def test_merged_mappings_may_be_merged_themselves():
    assert read("a: &a {x: 1}\nb: &b\n  <<: *a\n  y: 2\nc:\n  <<: *b\n")["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [*a]\n", "run.yaml:1:4: a.0: this alias (*) contains itself"),
        ("a: &a\n  b: *a\n", "run.yaml:2:3: a.b: this alias (*) contains itself"),
        ("a: &a\n  <<: *a\n", "run.yaml:2:3: a: this alias (*) contains itself"),
        ("a: {<<: 3}\n", "run.yaml:1:9: a: '<<' takes a mapping"),
        ("a: *b\n", "run.yaml:1:4: not valid YAML: found undefined alias 'b'"),
        ("a: &x 1\nb: &x 2\n", "run.yaml:2:4: not valid YAML: found duplicate anchor 'x'"),
        ("a: !!int 3\n", "run.yaml:1:4: a: the tag !!int is not understood"),
        ("a: !thing [1]\n", "run.yaml:1:4: a: the tag !thing is not understood"),
        ("a: !!python/object:os.system {}\n", "run.yaml:1:4: a: the tag !!python/object:os.system is not understood"),
        ("!!str a: 3\n", "run.yaml:1:1: the tag !!str is not understood"),
        ("a:\n\tb: 1\n", "run.yaml:2:1: indented with a tab"),
        ("a:\n  b: 1\n  \tc: 1\n", "run.yaml:3:1: indented with a tab"),
        ("a: 1\nb:\t2\n", "run.yaml:2:3: a tab stands where a space belongs"),
        ("a: x\x07y\n", "run.yaml:1: not a text file: it holds control characters"),
        ("a: 1\nb: \x00\n", "run.yaml:2: not a text file: it holds control characters"),
        ("a: 1\n? [b, c]\n: 2\n", "run.yaml:2:3: a key must be a word"),
        ("a: &b {? [1] : 2}\nc: {<<: *b}\n", "run.yaml:1:10: a: a key must be a word"),
        ("a: 1\n---\nb: 2\n", "run.yaml:2:1: not valid YAML: a second document begins here"),
        ("a: b: c\n", "run.yaml:1:5: not valid YAML: mapping values are not allowed here"),
        ("a:\n  b: 1\n c: 2\n", "run.yaml:3:2: not valid YAML: "),
        ("a: [1, 2\n", "run.yaml:1:4: not valid YAML: the bracket opened here is never closed"),
        ("a: 1\nb: [x, y\nc:\n  d: 1\n", "run.yaml:2:4: not valid YAML: the bracket opened here is never closed"),
        ("a:\n  - {b: '}'\nc: 1\n", "run.yaml:2:5: not valid YAML: the bracket opened here is never closed"),
        ("a: {b: 1 c: 2}\n", "run.yaml:1:11: not valid YAML: expected ',' or '}'"),
        ('a: "x\n', "run.yaml:1:4: not valid YAML: the quote opened here is never closed"),
        ("a: 1\nb: 'x\nc: 'y'\n", "run.yaml:2:4: not valid YAML: the quote opened here is never closed"),
        ("a:\n  lr:1e-3\n  b: 2\n", "run.yaml:2:5: not valid YAML: line 2 has no space after ':'"),
        ("a:\n  b: 2\n  lr:1e-3\n# c\nc: 1\n", "run.yaml:3:5: not valid YAML: line 3 has no space after ':'"),
        ("t: {% for x in y %}\n", "run.yaml:1:4: not valid YAML: a text that begins with '{%' needs quotes"),
        ("t: {{ x[0].c }}\n", "run.yaml:1:4: not valid YAML: a text that begins with '{{' needs quotes"),
        ("t: % x\n", "run.yaml:1:4: not valid YAML: a text that begins with '%' needs quotes"),
        ("a\nb: 1\n", "run.yaml:2:2: not valid YAML: "),
        ("a: " + "[" * 3000 + "]" * 3000, "run.yaml: nested too deeply"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_mistakes_in_the_text_are_named_with_their_place(text, expected):
    assert messages(text)[0].splitlines()[0].startswith(expected)


@pytest.mark.parametrize("text", ["t: {% if x %}\n", "t: {{ x }}\n", "t: '1'\nu: {{ x.y }} z\n"])
def test_a_template_without_quotes_is_told_to_have_them(text):
    assert messages(text)[0].endswith("\n    put the text in quotes")


def test_the_rest_of_a_text_with_mistakes_is_read():
    tree = parse_yaml("a: !x 1\nb: [1, !y 2]\nc: 3\n", "run.yaml")
    assert len(tree.problems) == 2
    assert tree.value["c"] == 3


def test_a_tab_within_a_text_is_no_mistake():
    assert read("a: 'x\ty'\nb: |\n  x\ty\n") == {"a": "x\ty", "b": "x\ty\n"}


def test_texts_without_quotes_are_known():
    tree = parse_yaml("a: ${env:X}\nb: '${env:X}'\nc: [word, \"word\", 3]\n", "run.yaml")
    assert tree.unquoted == {("a",), ("c", 0)}


# Characters that YAML can hold; surrogates have no UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["1e-4", "12e4567", "0o17", "0x1f", "1_000", "yes", "null", "~", "", "<<", "=", "- a", "a: b", "#x", ".inf", "1:30"]
)
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False)
values = st.recursive(
    texts | numbers | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(bool), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(texts.filter(bool), values, max_size=4))
def test_what_is_written_is_read_back(tree):
    text = yaml_text(tree)
    assert read(text) == tree
    assert yaml.safe_load(text) == tree


@given(numbers | st.booleans())
def test_types_survive_writing(value):
    found = read(yaml_text({"key": value}))["key"]
    assert type(found) is type(value)
    assert found == value


def test_not_a_number_is_written_as_one():
    assert math.isnan(read(yaml_text({"key": math.nan}))["key"])


def test_a_list_that_stands_twice_is_written_twice():
    shared = [1]
    assert yaml_text({"a": shared, "b": shared}) == "a:\n- 1\nb:\n- 1\n"
