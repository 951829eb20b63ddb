"""`columns`, `alpaca` with its styles, and the fixed formats of `jinja_formatter`."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dumbo.config.foreign_keys import FOREIGN_TYPES
from dumbo.data.records import Origin, Row
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.data_options import AlpacaOptions, ColumnsOptions
from dumbo.plugins.jinja_formatter.fixed_formats import FIXED_FORMATS
from dumbo.plugins.jinja_formatter.patterns import parse_pattern
from dumbo.plugins.jinja_formatter.plugin import JinjaFormatterPlugin

PLUGIN = JinjaFormatterPlugin()
TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"


def said_by(to_record, **values) -> list[tuple[str, str]]:
    """Roles and contents of the conversation that a row makes."""
    return [(m["role"], m["content"]) for m in to_record(Row(values, Origin("rows.jsonl", 7))).messages]


def refusal(to_record, **values) -> list[str]:
    with pytest.raises(DataError) as error:
        said_by(to_record, **values)
    return str(error.value).removeprefix("rows.jsonl:7: ").split("\n    ")


def columns(**options):
    return PLUGIN.build_data_format(ColumnsOptions(type="columns", **options))


def alpaca(**options):
    return PLUGIN.build_data_format(AlpacaOptions(type="alpaca", **options))


def fixed(name):
    return PLUGIN.build_data_format(PLUGIN.data_formats[name](type=name))


@pytest.mark.parametrize(
    ("prompt", "with_input", "without", "system"),
    [
        ("plain", "Add.\n\n1 2", "Add.", "Be short."),
        ("chat", "USER: Add.\n1 2\nASSISTANT:", "USER: Add.\nASSISTANT:", "SYSTEM: Be short.\n"),
        (
            "phi",
            "<|user|>\nAdd.\n1 2<|end|>\n<|assistant|>\n",
            "<|user|>\nAdd.<|end|>\n<|assistant|>\n",
            "<|system|>\nBe short.<|end|>\n",
        ),
        (
            "alpaca",
            "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            "### Instruction:\nAdd.\n\n### Response:\n",
            "### System:\nBe short.\n\n",
        ),
    ],
)
def test_alpaca_in_every_style(prompt, with_input, without, system):
    row = {"instruction": "Add.", "output": "3"}
    task = TASK if prompt in ("alpaca", "chat") else ""
    plain, briefed = alpaca(prompt=prompt), alpaca(prompt=prompt, field_system="brief")
    assert said_by(plain, **row) == [("user", task + without), ("assistant", "3")]
    assert said_by(plain, **row, input="1 2")[0][1].endswith(with_input)
    assert said_by(briefed, **row, input="1 2", brief="Be short.") == [
        ("system", system),
        ("user", with_input),
        ("assistant", "3"),
    ]
    for nothing in (None, ""):
        assert said_by(briefed, **row, brief=nothing) == said_by(plain, **row)
    assert refusal(briefed, **row)[0] == "no column 'brief'"


def test_columns_are_instruction_input_and_output_by_default():
    assert said_by(columns(), instruction="Add.", input="1 2", output="3") == [
        ("user", "Add.\n1 2"),
        ("assistant", "3"),
    ]
    for absent in ({}, {"input": None}, {"input": ""}):
        assert said_by(columns(), instruction="Add.", output="3", **absent)[0] == ("user", "Add.")


def test_any_column_can_be_filled_in():
    make = columns(
        format="{{{topic.sub}}} {instruction}: {level}, {input}",
        no_input_format="{topic.sub}?",
        field_instruction="q",
        field_input="about",
        field_output="a",
    )
    row = {"q": "{topic.sub}", "level": 3, "a": 4, "topic.sub": "sums"}
    assert said_by(make, **row, about="x") == [("user", "{sums} {topic.sub}: 3, x"), ("assistant", "4")]
    assert said_by(make, **row, about=None)[0] == ("user", "sums?")


def test_a_format_without_input_is_for_every_row():
    assert said_by(columns(format="Q: {q}", field_output="a"), q="1+1?", a="2")[0] == ("user", "Q: 1+1?")


def test_a_system_message_comes_from_a_column_or_is_the_same_for_all():
    row = {"instruction": "Add.", "output": "3"}
    make = columns(field_system="brief", system_prompt="Be short.", system_format="[{system}]")
    assert said_by(make, **row, brief="Be long.")[0] == ("system", "[Be long.]")
    for nothing in (None, ""):
        assert said_by(make, **row, brief=nothing)[0] == ("system", "[Be short.]")
    assert refusal(make, **row)[0] == "no column 'brief'"
    inside = columns(field_system="brief", format="{system}{instruction}", system_format="{system}\n")
    assert said_by(inside, **row, brief="Be long.") == [("user", "Be long.\nAdd."), ("assistant", "3")]
    assert said_by(inside, **row, brief=None) == [("user", "Add."), ("assistant", "3")]


def test_what_a_row_of_columns_lacks_is_said():
    row = {"question": "1+1?", "answer": "2"}
    assert refusal(columns(format="{qestion}", field_output="answer"), **row)[:2] == [
        "no column 'qestion'",
        "did you mean 'question'?",
    ]
    assert refusal(columns(format="{x}", field_output="answer"), **row)[1] == "write a brace twice for a brace itself"
    assert refusal(columns(), instruction="a", output=" ")[0] == "'output' is empty"
    assert refusal(columns(), instruction=["a"], output="b")[0] == "'instruction' is a list"
    assert refusal(columns(), instruction=True, output="b")[0] == "'instruction' is true or false"
    assert refusal(columns(field_input="about"), instruction="a", output="b")[0] == "no column 'about'"
    assert refusal(columns(format="{instruction}: {input}"), instruction="a", output="b") == [
        "no input, which 'format' needs",
        "write no_input_format: what the user says in rows where 'input' is empty",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "{instruction"}, "'{' stands alone at character 1; write {{ for a brace itself"),
        ({"format": "a } b"}, "'}' stands alone at character 3; write }} for a brace itself"),
        ({"system_format": "{}"}, "a name is missing in '{}' at character 1"),
        ({"no_input_format": "{input}"}, "no_input_format is for rows without input, and has {input}"),
        ({"format": "{q}", "no_input_format": "a"}, "no_input_format does nothing: format has no {input}"),
        ({"format": "{q}", "field_input": "a"}, "field_input does nothing: format has no {input}"),
        ({"format": "{q} {a}", "field_output": "a"}, "the answer would be in the question: {a} is field_output"),
        ({"system_format": "Hi", "system_prompt": "a"}, "system_format has no {system}"),
        ({"system_format": "[{system}]"}, "system_format does nothing: write field_system or system_prompt"),
        ({"format": "{system} {q}"}, "{system} is in a format: write field_system or system_prompt"),
    ],
)
def test_formats_that_do_not_fit_together_are_mistakes_in_the_configuration(options, said):
    with pytest.raises(ValidationError) as error:
        ColumnsOptions(type="columns", **options)
    assert said in str(error.value)


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(st.characters(exclude_characters="{}"), min_size=1, max_size=5)))
)
def test_a_pattern_writes_what_it_is_made_of(pairs):
    """Literal text with its braces doubled comes back as it was, and names are found whatever they consist of."""
    text = "".join(literal.replace("{", "{{").replace("}", "}}") + f"{{{name}}}" for literal, name in pairs)
    pattern = parse_pattern(text)
    assert pattern.names == {name for _, name in pairs}
    assert pattern.write(lambda name: f"<{name}{{x}}>") == "".join(f"{literal}<{name}{{x}}>" for literal, name in pairs)


SCORES = {"scores": {"refusal": 9, "creativity": 2}, "critiques": {"refusal": {"explanation": "Nö."}}}
EXAMPLES = {
    "alpaca_qa": ({"question": "Q?", "answer": "A."}, TASK + "USER: Q?\nASSISTANT:", "A."),
    "camel_ai": ({"message_1": "Q?", "message_2": "A."}, TASK + "USER: Q?\nASSISTANT:", "A."),
    "concise_choice": (
        {"question": "Q?", "choices": ["x", "y"], "solution": "x"},
        '\nUSER: Q?\n- "x"\n- "y"\nASSISTANT:\n',
        "x",
    ),
    "context_qa": ({"article": "T.", "question": "Q?", "answer": "A."}, "USER: T.\n===\nQ?\nASSISTANT:", "A."),
    "context_qa_404": (
        {"article": "T.", "unanswerable_question": "Q?"},
        "USER: T.\n===\nQ?\nASSISTANT:",
        "cannot answer",
    ),
    "context_qa_v2": ({"context": "T.", "question": "Q?", "answer": "A."}, "Context: T.\nQuestion: Q?\n", "Answer: A."),
    "creative_answer": ({"instruction": "Q?", "revision": "A."}, "\nUSER: Q?\nASSISTANT:", "A."),
    "creative_critique": (
        {"instruction": "Q?", "answer": "B.", **SCORES},
        "Question: Q?\nAnswer: B.\n\nASSISTANT:",
        "Nö.",
    ),
    "creative_revise": (
        {"instruction": "Q?", "answer": "B.", "revision": "A.", **SCORES},
        "scores:\n  refusal: 9\n  creativity: 2\ncritiques:\n  refusal:\n    explanation: Nö.\n\nASSISTANT:",
        "A.",
    ),
    "explain_choice": (
        {"question": "Q?", "choices": ["x"], "explanation": "A."},
        '\nUSER: Q?\n- "x"\nASSISTANT:',
        "A.",
    ),
    "gpt4all": ({"prompt": "Q?", "response": "A."}, TASK + "### Instruction:\nQ?\n\n### Response:\n", "A."),
    "gpteacher": ({"instruction": "Q?", "response": "A."}, TASK + "### Instruction:\nQ?\n\n### Response:\n", "A."),
    "jeopardy": (
        {"question": "Q.", "category": "C", "answer": "a cat"},
        "\n\n### Instruction:\nQ.\n\n### Input:\nC\n\n### Response:\n",
        "what is a cat",
    ),
    "metharme": ({"prompt": "<|user|>Q?<|model|>", "generation": "A."}, "<|user|>Q?<|model|>", "A."),
    "oasst": ({"INSTRUCTION": "Q?", "RESPONSE": "A."}, TASK + "### Instruction:\nQ?\n\n### Response:\n", "A."),
    "open_orca": (
        {"system_prompt": None, "question": "Q?", "response": "A."},
        "### Human:\nQ?\n### Assistant:\n",
        "A.",
    ),
    "orca_mini": ({"system": "", "instruction": "Q?", "output": "A."}, "### User:\nQ?\n\n### Response:\n", "A."),
    "reflection": (
        {"instruction": "Q?", "output": "B.", "reflection": "R.", "corrected": "A."},
        "\n\n### Instruction:\nQ?\n\n### Response:\n",
        "### Thought:\nB.\n\n### Agent Reflection:\nR.\n\n### Final Response:\nA.",
    ),
    "summarize_tldr": ({"article": "T.", "summary": "S."}, "\nT.\nASSISTANT:", "S."),
}


@pytest.mark.parametrize("name", FIXED_FORMATS)
def test_a_fixed_format_writes_its_columns(name):
    values, question, answer = EXAMPLES[name]
    (asker, asked), (answerer, answered) = said_by(fixed(name), **values)
    assert (asker, answerer) == ("user", "assistant")
    assert asked.endswith(question) and answer in answered
    assert not re.search(r"\{\w", asked + answered)
    for column in {name for name, value in values.items() if value}:
        rest = {name: value for name, value in values.items() if name != column}
        assert refusal(fixed(name), **rest)[0].startswith("no column '"), column


def test_the_table_of_fixed_formats_is_in_the_readme():
    from tests import builders

    text = (builders.ROOT / "src/dumbo/plugins/jinja_formatter/README.md").read_text(encoding="utf-8")
    rows = {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)` +\| (.*?) \|", text, re.MULTILINE)}
    for name, (values, _, _) in EXAMPLES.items():
        assert {f"`{column}`" for column in values} <= set(re.findall(r"`\w+`", rows[name])), name


def test_fixed_formats_with_a_system_message_or_an_input():
    briefed = said_by(fixed("open_orca"), system_prompt="Be short.", question="Q?", response="A.")
    assert briefed[0] == ("system", "### System:\nBe short.\n")
    assert refusal(fixed("open_orca"), question="Q?", response="A.")[0] == "no column 'system_prompt'"
    asked = said_by(fixed("gpteacher"), instruction="Q?", input="T.", response="A.")[0][1]
    assert asked.endswith("### Instruction:\nQ?\n\n### Input:\nT.\n\n### Response:\n") and "paired with" in asked
    asked = said_by(fixed("orca_mini"), system="", instruction="Q?", input="T.", output="A.")[0][1]
    assert asked == "### User:\nQ?\n\n### Input:\nT.\n\n### Response:\n"


def test_what_a_critique_answers_is_yaml():
    values = EXAMPLES["creative_critique"][0]
    assert yaml.safe_load(said_by(fixed("creative_critique"), **values)[1][1]) == SCORES


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("jeopardy", {"answer": ""}, "'answer' is empty"),
        ("jeopardy", {"answer": 3}, "'answer' is the number 3"),
        ("explain_choice", {"choices": [1]}, "'choices' is a list"),
        ("explain_choice", {"explanation": None}, "no column 'solution or explanation'"),
        ("creative_critique", {"scores": 3}, "'scores' is the number 3"),
    ],
)
def test_what_is_wrong_with_a_row_of_a_fixed_format_is_said(name, changes, said):
    assert refusal(fixed(name), **{**EXAMPLES[name][0], **changes})[0] == said


def test_names_of_other_tools_lead_to_formats_that_exist():
    texts = [
        text.partition("data_format: ")[2] for text in FOREIGN_TYPES.values() if text.startswith("write data_format")
    ]
    formats = [text[: text.rindex("}") + 1] if text[0] == "{" else re.split(r"\W", text)[0] for text in texts]
    found = [text if isinstance(text, dict) else {"type": text} for text in map(yaml.safe_load, formats)]
    ours = [options for options in found if options["type"] in PLUGIN.data_formats]
    assert len(ours) > 20
    assert all(PLUGIN.data_formats[options["type"]](**options) for options in ours)
