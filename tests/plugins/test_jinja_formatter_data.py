"""`jinja_formatter`: its options, and conversations from rows."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from dumbo.data.records import Origin, Row
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.data_options import AlpacaOptions, MessagesOptions
from dumbo.plugins.jinja_formatter.plugin import JinjaFormatterPlugin
from dumbo.plugins.jinja_formatter.train_options import ChatTemplateOptions, JinjaMessagesOptions


def row(**values):
    return Row(values, Origin("rows.jsonl", 7))


def alpaca(**options):
    return JinjaFormatterPlugin().build_data_format(AlpacaOptions(type="alpaca", **options))


def messages(**options):
    return JinjaFormatterPlugin().build_data_format(MessagesOptions(type="messages", **options))


def message_of(error) -> str:
    text = str(error.value)
    assert text.startswith("rows.jsonl:7: ")
    return text.removeprefix("rows.jsonl:7: ")


def test_alpaca_without_input_is_the_published_prompt():
    user, assistant = alpaca()(row(instruction="Count {x}.", output="1")).messages
    assert user == {
        "role": "user",
        "content": "Below is an instruction that describes a task. Write a response that appropriately completes "
        "the request.\n\n### Instruction:\nCount {x}.\n\n### Response:\n",
    }
    assert assistant == {"role": "assistant", "content": "1"}


def test_alpaca_with_input_has_it_under_its_own_heading():
    user, _ = alpaca()(row(instruction="Add.", input="1 {2}", output="3")).messages
    assert user["content"].endswith("### Instruction:\nAdd.\n\n### Input:\n1 {2}\n\n### Response:\n")
    assert "paired with an input" in user["content"]


@pytest.mark.parametrize("absent", [{}, {"input": None}, {"input": ""}])
def test_alpaca_input_may_be_absent_null_or_empty(absent):
    user, _ = alpaca()(row(instruction="Add.", output="3", **absent)).messages
    assert "### Input" not in user["content"]


def test_alpaca_plain_has_no_headings():
    make = alpaca(prompt="plain")
    assert make(row(instruction="Add.", input="1 2", output="3")).messages[0]["content"] == "Add.\n\n1 2"
    assert make(row(instruction="Add.", output="3")).messages[0]["content"] == "Add."


def test_alpaca_columns_can_have_other_names():
    make = alpaca(prompt="plain", field_instruction="q", field_input="about", field_output="a")
    conversation = make(row(q="Add.", about="1 2", a="3"))
    assert [message["content"] for message in conversation.messages] == ["Add.\n\n1 2", "3"]


def test_a_column_that_the_user_named_must_exist():
    with pytest.raises(DataError) as error:
        alpaca(field_input="contxt")(row(instruction="Add.", context="1", output="3"))
    assert message_of(error).splitlines()[:2] == ["no column 'contxt'", "    did you mean 'context'?"]


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(DataError) as error:
        alpaca()(row(instrction="Add.", output="3"))
    assert message_of(error) == (
        "no column 'instruction'\n    did you mean 'instrction'?\n    the row has 'instrction', 'output'"
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [(["a"], "a list"), (None, "null"), (3, "the number 3"), (True, "true or false"), ({}, "a mapping")],
)
def test_a_column_of_another_type_is_refused(value, kind):
    with pytest.raises(DataError) as error:
        alpaca()(row(instruction=value, output="3"))
    assert message_of(error) == f"'instruction' is {kind}\n    it must be text"


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_answer_that_is_empty_is_refused(answer):
    for make in (alpaca(), alpaca(prompt="plain")):
        with pytest.raises(DataError) as error:
            make(row(instruction="Add.", output=answer))
        assert message_of(error) == "'output' is empty\n    there is no answer to train on"
    asked = {"role": "user", "content": "a"}
    for turns, number in (([asked, "b", asked, answer], 4), ([asked, answer, asked, "b"], 2), ([asked, answer], 2)):
        said = [turn if turn is asked else {"role": "assistant", "content": turn} for turn in turns]
        with pytest.raises(DataError) as error:
            messages()(row(messages=said))
        assert message_of(error).startswith(f"'content' of message {number} is empty\n    there is no answer")


def test_only_an_assistant_that_calls_or_thinks_may_say_nothing():
    listed = [
        {"role": "system", "content": ""},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}], "reasoning_content": None},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "Done."},
    ]
    assert len(messages()(row(messages=listed)).messages) == 5
    listed[2]["tool_calls"] = []
    with pytest.raises(DataError, match="'content' of message 3 is empty"):
        messages()(row(messages=listed))


def test_conversations_are_the_messages_where_no_other_column_has_any():
    turn = {"role": "user", "content": "a"}
    assert messages()(row(id="1", tags=["x"], conversations=[turn])).messages == (turn,)
    for columns in ({"chat": [turn]}, {"conversations": [turn], "rejected": [turn]}):
        with pytest.raises(DataError) as error:
            messages()(row(id="1", **columns))
        assert message_of(error).splitlines() == [
            "no column 'messages'",
            f"    write `data_format: {{type: messages, field_messages: {next(iter(columns))}}}`",
            f"    the row has 'id', {', '.join(repr(name) for name in columns)}",
        ]
    with pytest.raises(DataError, match="no column 'messages'"):
        messages(field_messages="messages")(row(conversations=[turn]))


def test_a_row_without_messages_says_what_there_is():
    with pytest.raises(DataError) as error:
        messages()(row(mesages="a", texts=[]))
    assert message_of(error).splitlines()[1] == "    did you mean 'mesages'?"
    with pytest.raises(DataError, match="no column 'messages'\\n    rows without messages have the formats alpaca or"):
        messages()(row(question="a", answer="b"))
    with pytest.raises(DataError) as error:
        messages()(row(question=[[{"role": "user", "content": "a"}]]))
    assert message_of(error).splitlines()[1].startswith("    'question' holds lists of messages; a row is one conv")
    with pytest.raises(DataError, match="'question' is a list of lists"):
        messages(field_messages="question")(row(question=[[{"role": "user", "content": "a"}]]))


def test_messages_keep_other_keys_and_drop_nulls():
    listed = [{"role": "user", "content": "hi", "name": "Ada", "tool_calls": None}]
    conversation = messages()(row(messages=listed))
    assert conversation.messages == ({"role": "user", "content": "hi", "name": "Ada"},)
    assert conversation.tools == ()
    assert conversation.origin == Origin("rows.jsonl", 7)


def test_messages_and_tools_can_have_other_columns():
    tool = {"type": "function", "function": {"name": "add"}}
    make = messages(field_messages="chat", field_tools="functions")
    conversation = make(row(chat=[{"role": "user", "content": "hi"}], functions=[tool]))
    assert conversation.tools == (tool,)
    with pytest.raises(DataError, match="no column 'functions'"):
        make(row(chat=[{"role": "user", "content": "hi"}]))


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("hi", "'messages' is text\n    it must be a list of messages, or the text of a JSON list"),
        ('[{"role": "user", "content": "a"}, {', "'messages' is text that is not valid JSON: "),
        ("[3]", "message 1 is the number 3\n"),
        ([], "'messages' is empty\n    a conversation has at least one message"),
        ([{"role": "user", "content": "a"}, "b"], "message 2 is text\n"),
        ([{"speaker": "a"}], "message 1 has no 'role'\n    every message needs 'role' and 'content'; this one has 'sp"),
        ([{"role": "user", "content": "a"}, {"role": "assistant"}], "message 2 has no 'content'\n"),
        ([{"role": "user", "content": None}], "message 1 has null as its 'content'\n"),
        ([{"role": "user", "content": {"text": "a"}}], "'content' of message 1 is a mapping\n    it must be text, or"),
        ([{"role": "user", "content": ["a"]}], "part 1 of 'content' of message 1 is text\n    each part is"),
        ([{"role": 1, "content": "a"}], "'role' of message 1 is the number 1\n    it must be text"),
    ],
)
def test_bad_messages_say_which_and_what(listed, expected):
    with pytest.raises(DataError) as error:
        messages()(row(messages=listed))
    assert message_of(error).startswith(expected)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}\n{{ m.content }\n{% endfor %}", "line 2: unexpected '}'"),
        ("{{ messages[0].content | uper }}", "line 1: No filter named 'uper'"),
        ("{% for m in mesages %}{% endfor %}", "reads 'mesages', which it is not given; did you mean 'messages'"),
        ("{{ output }}", "the template reads 'output', which it is not given; there are messages, tools"),
    ],
)
def test_a_broken_template_is_a_mistake_in_the_configuration(template, expected):
    with pytest.raises(ValidationError) as error:
        JinjaMessagesOptions(type="jinja_messages", template=template)
    assert expected in str(error.value)


def test_a_template_may_ask_whether_a_variable_is_defined():
    template = "{% if documents is defined %}x{% endif %}{% set n = namespace(i=0) %}{{ messages[0].content }}"
    assert JinjaMessagesOptions(type="jinja_messages", template=template).template == template


def test_chat_template_kwargs_may_not_replace_what_the_format_gives():
    with pytest.raises(ValidationError, match="'messages' cannot be set here"):
        ChatTemplateOptions(type="chat_template", chat_template_kwargs={"messages": []})


def test_only_chat_template_needs_a_chat_template():
    assert ChatTemplateOptions(type="chat_template").needs_chat_template
    assert not JinjaMessagesOptions(type="jinja_messages", template="x").needs_chat_template


def test_importing_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, dumbo.plugins.jinja_formatter.plugin; print(*{'torch', 'transformers', 'jinja2'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
