"""`text_formatter`: its options, records from rows, and rows of random ids."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dumbo.data.records import IGNORED, Origin, Row, Segments, Steps, Text, Tokens
from dumbo.errors import DataError
from dumbo.plugins.text_formatter.plugin import (
    CompletionData,
    InputOutputData,
    StepwiseData,
    SyntheticOptions,
    TextFormatterPlugin,
    TokensData,
)

ORIGIN = Origin("rows.jsonl", 7)
SEGMENTS = "which must be a list of segments,"
RIGHT = {"label": True, "text": "a"}
STEPS = {"prompt": "1 + 1?", "completions": ["Think.", "2"], "labels": [True, 0]}


def record(options_type, values, **options):
    options = options_type(type="any", **options)
    return TextFormatterPlugin().build_data_format(options)(Row(values, ORIGIN))


def message_of(error) -> str:
    text = str(error.value)
    assert text.startswith("rows.jsonl:7: ")
    return text.removeprefix("rows.jsonl:7: ")


def refusal(options_type, values, **options) -> str:
    with pytest.raises(DataError) as error:
        record(options_type, values, **options)
    return message_of(error)


def test_a_text_is_kept_to_the_last_space():
    assert record(CompletionData, {"text": " To be \n"}) == Text(" To be \n", ORIGIN)
    assert record(CompletionData, {"body": "or not", "text": "x"}, field="body") == Text("or not", ORIGIN)


def test_a_column_that_is_not_there_is_named_with_a_near_one():
    assert refusal(CompletionData, {"txt": "a", "id": 3}).splitlines() == [
        "no column 'text'",
        "    did you mean 'txt'?",
        "    the row has 'txt', 'id'",
    ]
    assert refusal(CompletionData, {}).splitlines() == ["no column 'text'", "    the row has no columns"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "'text' is the number 3"),
        (None, "'text' is null"),
        (["a"], "'text' is a list"),
        ({}, "'text' is a mapping"),
        (True, "'text' is true or false"),
        (b"a", "'text' is a bytes"),
        ("", "'text' is empty"),
        (" \n\t", "'text' is only whitespace"),
    ],
)
def test_what_is_no_text_is_refused(value, message):
    assert refusal(CompletionData, {"text": value}).splitlines()[0] == message


def test_segments_are_kept_in_their_order_and_empty_ones_too():
    listed = [{"label": False, "text": "<s>Hi "}, {"text": "", "label": True, "id": 3}]
    wanted = Segments((("<s>Hi ", False), ("", True)), ORIGIN)
    assert record(InputOutputData, {"segments": listed}) == wanted
    assert record(InputOutputData, {"parts": json.dumps(listed)}, field="parts") == wanted


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "'segments' is empty"),
        ({"label": True, "text": "a"}, "'segments' is a mapping"),
        ("[{", f"'segments', {SEGMENTS} is text that is not valid JSON: expecting property name"),
        ('{"label": true}', "'segments' is a mapping"),
        ("[" * 100_000, f"'segments', {SEGMENTS} is JSON that is nested too deeply"),
        ([RIGHT, "b"], "segment 2 is text"),
        ([RIGHT, {"text": "b"}], "segment 2 has no 'label'"),
        ([{"label": True, "value": "b"}], "segment 1 has no 'text'"),
        ([{"label": 1, "text": "b"}], "'label' of segment 1 is the number 1"),
        ([{"label": "true", "text": "b"}], "'label' of segment 1 is text"),
        ([{"label": None, "text": "b"}], "'label' of segment 1 is null"),
        ([{"label": False, "text": None}], "'text' of segment 1 is null"),
    ],
)
def test_what_are_no_segments_is_refused(value, message):
    assert refusal(InputOutputData, {"segments": value}).splitlines()[0].startswith(message)


def test_broken_json_says_where():
    text = refusal(InputOutputData, {"segments": '[{"label": yes}]'})
    first, second = text.splitlines()
    assert first.endswith("expecting value at character 12")
    assert second == '    it goes wrong at: [{"label": yes}]'


def test_tokens_without_labels_are_all_trained():
    assert record(TokensData, {"input_ids": [5, 6]}) == Tokens((5, 6), (5, 6), ORIGIN)
    absent = {"input_ids": [5, 6], "labels": None, "attention_mask": None}
    assert record(TokensData, absent) == Tokens((5, 6), (5, 6), ORIGIN)


def test_labels_are_taken_and_columns_can_have_other_names():
    row = {"ids": "[5, 6, 7]", "targets": [-100, 6, 7], "mask": [1, 1, 0], "labels": [1], "attention_mask": []}
    names = {"field_input_ids": "ids", "field_labels": "targets", "field_attention_mask": "mask"}
    assert record(TokensData, row, **names) == Tokens((5, 6), (IGNORED, 6), ORIGIN)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 4), st.integers(0, 4), st.data())
def test_padding_at_both_ends_is_cut_off(ids, before, after, data):
    labels = [data.draw(st.sampled_from([token, IGNORED])) for token in ids]
    row = {
        "input_ids": [3] * before + ids + [3] * after,
        "labels": [IGNORED] * before + labels + [3] * after,
        "attention_mask": [0] * before + [1] * len(ids) + [0] * after,
    }
    assert record(TokensData, row) == Tokens(tuple(ids), tuple(labels), ORIGIN)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_ids": []}, "'input_ids' is empty"),
        ({"input_ids": None}, "'input_ids' is null"),
        ({"input_ids": [5, -1]}, "input_ids[1] is the number -1"),
        ({"input_ids": [5, 6.0]}, "input_ids[1] is the number 6.0"),
        ({"input_ids": [True, 5]}, "input_ids[0] is true or false"),
        ({"input_ids": [5, "6"]}, "input_ids[1] is text"),
        ({"input_ids": [[5, 6]]}, "input_ids[0] is a list"),
        ({"labels": [5, 6]}, "the length of 'labels' is 2, that of 'input_ids' is 3"),
        ({"labels": [5, 6, 7, 8]}, "the length of 'labels' is 4, that of 'input_ids' is 3"),
        ({"labels": [5, 9, 7]}, "labels[1] is 9, and input_ids[1] is 6"),
        ({"labels": [5, -1, 7]}, "labels[1] is -1, and input_ids[1] is 6"),
        ({"labels": [5, None, 7]}, "labels[1] is null"),
        ({"attention_mask": [1, 1]}, "the length of 'attention_mask' is 2, that of 'input_ids' is 3"),
        ({"attention_mask": [1, 0, 1]}, "attention_mask[1] is 0, with tokens on both sides"),
        ({"input_ids": [5] * 4, "attention_mask": [0, 1, 0, 1]}, "attention_mask[2] is 0, with tokens on both sides"),
        ({"attention_mask": [0, 0, 0]}, "'attention_mask' hides every token"),
        ({"attention_mask": [1, 2, 1]}, "attention_mask[1] is 2"),
        ({"attention_mask": [0, 1, 1], "labels": [5, 6, 8]}, "labels[2] is 8, and input_ids[2] is 7"),
    ],
)
def test_what_are_no_tokens_is_refused_with_its_place(values, message):
    assert refusal(TokensData, {"input_ids": [5, 6, 7], **values}).splitlines()[0] == message


def test_shifted_labels_are_recognised():
    hint = "    the labels are those of the next tokens; do not shift them, the loss does"
    shifted = refusal(TokensData, {"input_ids": [5, 6, 7, 8], "labels": [6, 7, 8, -100]})
    assert shifted.splitlines() == ["labels[0] is 6, and input_ids[0] is 5", hint]
    assert hint not in refusal(TokensData, {"input_ids": [5, 6, 7, 8], "labels": [6, 7, 7, -100]})


@pytest.mark.parametrize("option", ["field_labels", "field_attention_mask"])
def test_a_column_that_the_user_named_must_exist(option):
    assert refusal(TokensData, {"input_ids": [5, 6]}, **{option: "lables"}).startswith("no column 'lables'")


def test_steps_have_labels_of_either_kind():
    assert record(StepwiseData, STEPS) == Steps("1 + 1?", ("Think.", "2"), (1, 0), ORIGIN)
    row = {"q": "?", "steps": '["a"]', "ok": "[1]"}
    names = {"field_prompt": "q", "field_completions": "steps", "field_labels": "ok"}
    assert record(StepwiseData, row, **names) == Steps("?", ("a",), (1,), ORIGIN)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " "}, "'prompt' is only whitespace"),
        ({"prompt": ["a"]}, "'prompt' is a list"),
        ({"completions": []}, "'completions' is empty"),
        (
            {"completions": "Think."},
            "'completions', which must be a list of texts, is text that is not valid JSON",
        ),
        ({"completions": ["Think.", " "]}, "step 2 of 'completions' is empty"),
        ({"completions": ["Think.", 2]}, "step 2 of 'completions' is the number 2"),
        ({"labels": [True]}, "the length of 'labels' is 1, that of 'completions' is 2"),
        ({"labels": [True, -1]}, "label 2 of 'labels' is the number -1"),
        ({"labels": [True, None]}, "label 2 of 'labels' is null"),
        ({"labels": [True, "+"]}, "label 2 of 'labels' is text"),
        ({"labels": True}, "'labels' is true or false"),
    ],
)
def test_what_are_no_steps_is_refused(values, message):
    assert refusal(StepwiseData, {**STEPS, **values}).splitlines()[0].startswith(message)


def random_rows(**options):
    options = {"sequence_length": 8, "max_input_id": 120, **options}
    return list(TextFormatterPlugin().read(SyntheticOptions(**options)))


def test_synthetic_rows_are_random_and_repeatable():
    rows = random_rows(num_rows=40)
    ids = [token for row in rows for token in row.values["input_ids"]]
    assert [row.origin for row in rows[:2]] == [Origin("synthetic", 1), Origin("synthetic", 2)]
    assert {len(row.values["input_ids"]) for row in rows} == {8}
    assert (min(ids), max(ids)) == (100, 120)
    assert len(set(ids)) == 21, "320 draws of 21 ids"
    assert rows == random_rows(num_rows=40)
    assert rows[:9] == random_rows(num_rows=9), "fewer rows are the first ones"
    assert rows[0] != random_rows(num_rows=40, seed=1)[0]
    assert len(random_rows()) == 1000


def test_a_range_of_one_id_is_one_and_of_none_an_error():
    assert random_rows(num_rows=1, min_input_id=4, max_input_id=4)[0].values == {"input_ids": [4] * 8}
    with pytest.raises(ValidationError, match="must be at least min_input_id, which is 100"):
        random_rows(max_input_id=99)


@pytest.mark.parametrize(
    "options",
    [{"num_rows": 0}, {"sequence_length": 1}, {"min_input_id": -1}, {"max_input_id": None}, {"seed": -1}],
)
def test_wrong_numbers_of_synthetic_rows_are_refused(options):
    with pytest.raises(ValidationError):
        random_rows(**options)


def test_the_plugin_is_light():
    heavy = "any(name in sys.modules for name in ('torch', 'transformers', 'tokenizers', 'numpy', 'polars'))"
    code = f"import sys; import dumbo.plugins.text_formatter.plugin; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
