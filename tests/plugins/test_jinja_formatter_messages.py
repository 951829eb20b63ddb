"""`messages` of `jinja_formatter`: other names, other roles, ShareGPT, tools, thoughts, system messages."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dumbo.data.records import MessageTraining, Origin, Row
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.data_options import MessagesOptions
from dumbo.plugins.jinja_formatter.plugin import JinjaFormatterPlugin
from dumbo.plugins.jinja_formatter.thinking import UnsplitThinkingError, split_thinking

ASKED = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}
ADD = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}


def made(listed, columns=(), **options):
    """The conversation of a row with these messages."""
    to_record = JinjaFormatterPlugin().build_data_format(MessagesOptions(type="messages", **options))
    name = options.get("field_messages", "messages")
    return to_record(Row({name: listed, **dict(columns)}, Origin("rows.jsonl", 7)))


def messages_of(listed, columns=(), **options):
    return list(made(listed, columns, **options).messages)


def refusal(listed, columns=(), **options) -> list[str]:
    """What is said about a row with these messages, line by line."""
    with pytest.raises(DataError) as error:
        made(listed, columns, **options)
    text = str(error.value)
    assert text.startswith("rows.jsonl:7: ")
    return text.removeprefix("rows.jsonl:7: ").split("\n    ")


def test_messages_may_be_the_text_of_a_json_list():
    assert messages_of(json.dumps([ASKED, ANSWERED])) == [ASKED, ANSWERED]
    broken = refusal('[{"role": "user", "content": "a"},, ]')
    assert broken[0] == "'messages' is text that is not valid JSON: expecting value at character 35"
    assert broken[1] == 'it goes wrong at: ...content": "a"},, ]'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"role": "user", "role": "tool", "content": "a"}]', "the key 'role' appears twice in one object"),
        ('[{"role": "user", "content": NaN}]', "NaN is not a JSON value; write null"),
        ('[{"role": "user", "content": "\\ud800"}]', "half of a character"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_python_would_quietly_change_is_refused(text, said):
    assert said in refusal(text)[0]


def test_keys_of_other_names_are_added_to_those_that_are_known():
    listed = [
        {"who": "user", "text": "a", "name": "Ada"},
        {"who": "assistant", "text": "b", "thoughts": "Hm.", "name": None},
        {"who": "assistant", "text": "c", "reasoning_content": "So."},
    ]
    names = {"role": "who", "content": "text", "reasoning_content": "thoughts"}
    assert messages_of(listed, message_property_mappings=names) == [
        {"role": "user", "content": "a", "name": "Ada"},
        {"role": "assistant", "content": "b", "reasoning_content": "Hm."},
        {"role": "assistant", "content": "c", "reasoning_content": "So."},
    ]
    assert messages_of([{"who": "user", "content": "a"}], message_property_mappings={"role": "who"}) == [ASKED]
    both = [{"role": "user", "content": "raw", "clean": "a"}]
    assert messages_of(both, message_property_mappings={"content": "clean"}) == [ASKED]


def test_a_name_that_no_message_has_is_a_mistake():
    assert refusal([{"who": "user", "content": "a"}], message_property_mappings={"role": "whom"}) == [
        "no message has 'whom', from which 'role' is to be taken",
        "did you mean 'who'?",
    ]
    listed = [ASKED, {**ANSWERED, "thoughts": "Hm."}]
    said = refusal(listed, message_property_mappings={"reasoning_content": "thougths"})
    assert said[1] == "did you mean 'thoughts'?"
    assert messages_of([ASKED, ANSWERED], message_property_mappings={"reasoning_content": "thoughts"})
    assert (
        refusal(
            [{"who": "user", "text": "a"}, {"text": "b"}], message_property_mappings={"role": "who", "content": "text"}
        )[0]
        == "message 2 has no 'who'"
    )


@pytest.mark.parametrize("key", ["wieght", "Train", "train_detials"])
def test_a_misspelled_word_about_training_is_a_mistake(key):
    said = refusal([ASKED, {**ANSWERED, key: 0}])
    assert said[0] == f"message 2 has '{key}', which says nothing of its training"
    assert said[1].startswith("did you mean '") and said[1].endswith("'? rename the key otherwise")


def test_a_message_without_content_is_a_mistake():
    assert refusal([ASKED, {"role": "assistant", "content": None}])[0] == "message 2 has null as its 'content'"
    assert refusal([{"role": "user", "content": None}, ANSWERED])[0] == "message 1 has null as its 'content'"


def test_one_key_is_not_mapped_to_two_names():
    with pytest.raises(ValidationError, match="'rol' is no key of messages: did you mean 'role'?"):
        MessagesOptions(type="messages", message_property_mappings={"rol": "who"})
    with pytest.raises(ValidationError, match="'text' is mapped to 'role', 'content'; it can be one of them"):
        MessagesOptions(type="messages", message_property_mappings={"role": "text", "content": "text"})


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        *(("human", "user"), ("prompter", "user"), ("gpt", "assistant"), ("model", "assistant"), ("bot", "assistant")),
        *(("observation", "tool"), ("function_response", "tool"), ("ipython", "tool"), ("developer", "developer")),
    ],
)
def test_roles_of_data_sets_are_those_of_templates(role, expected):
    assert messages_of([{"role": role, "content": "a"}])[0]["role"] == expected


def test_more_roles_are_added_to_those_that_are_known():
    roles = {"assistant": "waiter", "critic": ["critic"], "judge": []}
    said = ["waiter", "critic", "judge", "human", "gpt"]
    made_of = messages_of([{"role": role, "content": "a"} for role in said], roles=roles)
    assert [message["role"] for message in made_of] == ["assistant", "critic", "judge", "user", "assistant"]
    swapped = messages_of([ASKED, ANSWERED], roles={"user": ("assistant",), "assistant": ("user",)})
    assert [message["role"] for message in swapped] == ["assistant", "user"]


def test_a_role_that_is_not_known_is_refused():
    said = refusal([ASKED, {"role": "Asistant", "content": "b"}])
    assert said[:2] == ["message 2 has the role 'Asistant', which is not known", "did you mean 'assistant'?"]
    assert said[-1] == (
        "write roles: {assistant: [Asistant]}, or whichever role it stands for, or {Asistant: [Asistant]} to keep it"
    )
    assert "which is not known" in refusal([{"role": "function", "content": "3", "name": "add"}])[0]


def test_a_role_is_not_under_two_names():
    with pytest.raises(ValidationError, match="the role 'bot' is under 'user', 'assistant'"):
        MessagesOptions(type="messages", roles={"user": ["bot"], "assistant": ["bot", "gpt"]})
    for wrong in (3, [3], {"a": "b"}):
        with pytest.raises(ValidationError, match="'user' takes a name or a list of names"):
            MessagesOptions(type="messages", roles={"user": wrong})


def test_sharegpt_is_recognised():
    listed = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "1+?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Two.", "weight": 1},
        {"from": "human", "value": "Both?"},
        {"from": "function_call", "value": '[{"name": "add", "arguments": "{\\"x\\": 1}"}, {"name": "now"}]'},
    ]
    now = {"type": "function", "function": {"name": "now", "arguments": {}}}
    conversation = made(listed)
    assert list(conversation.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+?"},
        {"role": "assistant", "content": "", "tool_calls": [ADD]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "content": "", "tool_calls": [ADD, now]},
    ]
    assert [told.train for told in conversation.training] == [None, None, None, None, True, None, None]
    assert messages_of([{"speaker": "gpt", "from": "x", "value": "y"}], message_property_mappings={"role": "speaker"})


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (("function_call", "add(1)"), "'content' of message 1 is text that is not valid JSON: expecting value at char"),
        (("function_call", "3"), "'content' of message 1 is the number 3"),
        (("function_call", '{"arguments": {}}'), "call 1 of 'content' of message 1 has no 'name'"),
        (("gpt", ""), "'content' of message 1 is empty"),
        (("gpt", None), "message 1 has no 'value'"),
        (("robot", "a"), "message 1 has the role 'robot', which is not known"),
    ],
)
def test_what_is_wrong_with_a_turn_of_sharegpt_is_said(turn, said):
    assert refusal([dict(zip(("from", "value"), turn, strict=True))])[0].startswith(said)


def test_a_call_as_a_role_can_be_another_role():
    turn = {"from": "function_call", "value": "add(1)"}
    assert messages_of([turn], roles={"assistant": ["function_call"]}) == [{"role": "assistant", "content": "add(1)"}]
    called = {"role": "tool_call", "content": json.dumps(ADD)}
    assert messages_of([called]) == [{"role": "assistant", "content": "", "tool_calls": [ADD]}]
    assert refusal([{**called, "tool_calls": [ADD]}])[0] == "message 1 has the role 'tool_call' and 'tool_calls'"


@pytest.mark.parametrize(
    "calls",
    [
        [ADD],
        [{**ADD, "function": {"name": "add", "arguments": '{"x": 1}'}}],
        [{"name": "add", "arguments": {"x": 1}}],
        [{"function": {"name": "add", "arguments": {"x": 1}, "strict": None}, "type": None}],
        json.dumps([ADD]),
    ],
)
def test_calls_have_one_shape(calls):
    for content in ({"content": None}, {"content": ""}, {}):
        said = {"role": "assistant", "tool_calls": calls, **content}
        assert messages_of([ASKED, said])[1] == {"role": "assistant", "content": "", "tool_calls": [ADD]}


def test_calls_keep_their_ids_and_the_old_name_is_known():
    listed = [{**ANSWERED, "tool_calls": [{"id": "7", "name": "add", "arguments": {"x": 1}}]}]
    listed.append({"role": "tool", "content": "2", "tool_call_id": "7"})
    called, answered = messages_of(listed)
    assert called["tool_calls"] == [{"id": "7", **ADD}] and answered["tool_call_id"] == "7"
    old = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"x": 1}'}}
    assert messages_of([old]) == [{"role": "assistant", "content": "", "tool_calls": [ADD]}]


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (
            [{"name": "add", "arguments": '{"x": }'}],
            "'arguments' of call 1 of 'tool_calls' of message 1 is text that is not valid JSON: expecting value at c",
        ),
        ([{"name": "add", "arguments": "[1]"}], "'arguments' of call 1 of 'tool_calls' of message 1 is a list"),
        ([{"name": "add", "parameters": {}}], "call 1 of 'tool_calls' of message 1 has 'name', 'parameters'"),
        ([ADD, {"type": "code", "name": "add"}], "call 2 of 'tool_calls' of message 1 has the type 'code'"),
        ([{"function": "add"}], "'function' of call 1 of 'tool_calls' of message 1 is text"),
        (["add"], "call 1 of 'tool_calls' of message 1 is text"),
        (3, "'tool_calls' of message 1 is the number 3"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(calls, said):
    assert refusal([ANSWERED | {"tool_calls": calls}])[0].startswith(said)


def test_only_an_assistant_calls_and_in_one_place():
    assert refusal([ASKED | {"tool_calls": [ADD]}])[0] == "message 1 calls a tool and has the role 'user'"
    both = {"tool_calls": [ADD], "function_call": {"name": "add"}}
    assert refusal([ANSWERED | both])[0] == "message 1 has 'tool_calls', 'function_call'"
    assert refusal([{"role": "tool", "content": None}])[0] == "message 1 has null as its 'content'"


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
INNER = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": INNER}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        [INNER],
        [{"type": "function", **INNER}],
        [{"function": INNER}],
        [json.dumps(TOOL)],
        json.dumps([INNER]),
        [{**INNER, "parameters": json.dumps(SCHEMA), "strict": None}],
    ],
)
def test_tools_have_one_shape_under_any_name(tools):
    assert made([ASKED], {"helpers": tools}, field_tools="helpers").tools == (TOOL,)
    assert made([ASKED], {"tools": tools}).tools == (TOOL,)


def test_what_stands_beside_a_function_is_kept():
    assert made([ASKED], {"tools": [TOOL | {"strict": True}]}).tools == (TOOL | {"strict": True},)


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_there_may_be_no_tools(tools):
    assert made([ASKED], {"tools": tools}).tools == ()


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([1], "tool 1 of 'tools' is the number 1"),
        ({"name": "add"}, "'tools' is not a list of JSON schemas"),
        (
            "[{]",
            "'tools' is text that is not valid JSON: expecting property name enclosed in double quotes at character 3",
        ),
        ([{"description": "Adds."}], "tool 1 of 'tools' has no 'name'"),
        ([TOOL, {"type": "web_search", "name": "x"}], "tool 2 of 'tools' has the type 'web_search'"),
        ([{"name": "add", "parameters": "{"}], "'parameters' of tool 1 of 'tools' is text that is not valid JSON"),
        ([{"name": "add", "parameters": [1]}], "'parameters' of tool 1 of 'tools' is a list"),
    ],
)
def test_what_is_wrong_with_tools_is_said(tools, said):
    assert refusal([ASKED], {"tools": tools})[0].startswith(said)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_have_one_name(key):
    thought = {"role": "assistant", "content": "b", "reasoning_content": "Hm."}
    assert messages_of([{**ANSWERED, key: "Hm."}]) == [thought]
    assert messages_of([{"role": "assistant", key: "Hm."}]) == [{**thought, "content": ""}]
    assert messages_of([{**ANSWERED, key: "Hm.", "reasoning": "Hm."}]) == [thought]
    assert refusal([{**thought, "thinking": "Oh."}])[0].startswith(
        "message 1 has different thoughts in 'reasoning_cont"
    )
    assert refusal([{**ANSWERED, key: True}])[0] == f"'{key}' of message 1 is true or false"


@pytest.mark.parametrize(
    ("content", "thoughts", "answer"),
    [
        ("<think>\nHm.\n</think>\n\n4 ", "Hm.", "4 "),
        ("  <reasoning>Hm.</reasoning>4", "Hm.", "4"),
        (
            "<|begin_of_thought|>\n\nHm.<|end_of_thought|>\n<|begin_of_solution|>\n4\n<|end_of_solution|>\n",
            "Hm.",
            "4",
        ),
        ("<think>Hm.</think><|begin_of_solution|><|end_of_solution|>", "Hm.", ""),
        ("<think>Is <think> a tag?</think>It is.", "Is <think> a tag?", "It is."),
        ("<think>\n\n</think>\n\n4", None, "4"),
        ("4", None, "4"),
        ("Write <think> first.", None, "Write <think> first."),
        ("  4", None, "  4"),
    ],
)
def test_thoughts_are_split_from_answers(content, thoughts, answer):
    said = {"role": "assistant", "content": content}
    expected = {"role": "assistant", "content": answer, **({"reasoning_content": thoughts} if thoughts else {})}
    conversation = made([ASKED, said], split_thinking=True)
    assert (list(conversation.messages), conversation.training) == ([ASKED, expected], ())
    assert messages_of([ASKED, said]) == [ASKED, said]
    asked = {"role": "user", "content": content}
    assert messages_of([asked], split_thinking=True) == [asked]


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (
            {"content": "Well. <think>Hm.</think>4"},
            "'content' of message 1 has text before '<think>', which would be lost",
        ),
        ({"content": "<think>Hm."}, "'content' of message 1 begins with '<think>' and has no '</think>'"),
        (
            {"content": "<think>Hm.</think><|begin_of_solution|>4"},
            "'content' of message 1 has '<|begin_of_solution|>' and does not end in '<|end_of_solution|>'",
        ),
        (
            {"content": "<think>Hm.</think><|begin_of_solution|>4<|end_of_solution|> Done."},
            "'content' of message 1 has '<|begin_of_solution|>' and does not end in '<|end_of_solution|>'",
        ),
        ({"content": "<think>Hm.</think>4", "reasoning": "Oh."}, "message 1 has thoughts in 'content' and beside it"),
        ({"content": "<think></think>"}, "'content' of message 1 is empty"),
    ],
)
def test_thoughts_that_cannot_be_split_are_refused(said, fault):
    assert refusal([{"role": "assistant", **said}], split_thinking=True)[0].startswith(fault)


def test_split_thinking_loses_no_character_but_tags_and_white_space():
    pieces = st.sampled_from(
        [
            "<think>",
            "</think>",
            "<reasoning>",
            "</reasoning>",
            "<|begin_of_solution|>",
            "<|end_of_solution|>",
            " ",
            "a",
            "\n",
        ]
    )

    @given(st.lists(pieces, max_size=8).map("".join))
    def check(text):
        try:
            found = split_thinking(text)
        except UnsplitThinkingError:
            return
        if found is None:
            assert not text.lstrip().startswith(("<think>", "<reasoning>"))
            return
        outside = text[: found.thoughts[0]] + text[found.thoughts[1] : found.answer[0]] + text[found.answer[1] :]
        for tag in ("<think>", "</think>", "<reasoning>", "</reasoning>"):
            outside = outside.replace(tag, "", 1)
        assert outside.replace("<|begin_of_solution|>", "", 1).replace("<|end_of_solution|>", "", 1).strip() == ""

    check()


SYSTEM = {"role": "system", "content": "Be brief."}


def test_a_system_message_may_have_a_column_of_its_own():
    for columns, options in (({"system": "Be brief."}, {}), ({"brief": "Be brief."}, {"field_system": "brief"})):
        assert messages_of([ASKED], columns, **options) == [SYSTEM, ASKED]
        assert messages_of([SYSTEM, ASKED], columns, **options) == [SYSTEM, ASKED]
    for nothing in (None, "", " \n"):
        assert messages_of([ASKED], {"system": nothing}) == [ASKED]
    assert messages_of([ASKED], {"system": 3}, field_system=None) == [ASKED]
    assert refusal([ASKED], field_system="brief")[0] == "no column 'brief'"
    assert refusal([ASKED], {"system": 3})[0] == "'system' is the number 3"


def test_two_system_messages_that_differ_are_refused():
    said = refusal([SYSTEM, ASKED], {"system": "Be long."})
    assert said[0] == "the column 'system' and message 1 say different things to the assistant"
    assert messages_of([SYSTEM, ASKED], {"system": "Be long."}, field_system=None) == [SYSTEM, ASKED]


def test_a_system_message_of_a_column_does_not_shift_what_is_trained():
    conversation = made([ASKED, ANSWERED | {"train": False}], {"system": "Be brief."})
    assert [told.train for told in conversation.training] == [None, None, False]


def test_system_messages_can_be_dropped():
    listed = [SYSTEM, {**ASKED, "train": False}, ANSWERED]
    conversation = made(listed, {"system": "Be long."}, drop_system_message=True)
    assert list(conversation.messages) == [ASKED, ANSWERED]
    assert [told.train for told in conversation.training] == [False, None]
    assert refusal([SYSTEM], drop_system_message=True)[0] == "no message is left"
    with pytest.raises(ValidationError, match="field_system adds system messages"):
        MessagesOptions(type="messages", drop_system_message=True, field_system="brief")


KEYS = ("role", "content", "from", "value", "type", "text", "name", "arguments", "function", "tool_calls", "thinking")
MORE_KEYS = ("train", "weight", "train_detail", "begin_offset", "end_offset", "function_call", "parameters", "other")
WORDS = st.sampled_from(
    ("user", "assistant", "tool", "function_call", "text", "function", "<think>a</think>b", "{}", "")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats(0, 1) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS + MORE_KEYS), inner, max_size=4),
    max_leaves=12,
)
TURN = st.fixed_dictionaries(
    {"role": WORDS, "content": JSON},
    optional={
        key: JSON for key in ("tool_calls", "function_call", "thinking", "train", "train_detail", "weight", "name")
    },
)


@given(
    st.lists(TURN | JSON, max_size=3) | JSON, st.dictionaries(st.sampled_from(("tools", "system")), JSON), st.booleans()
)
@settings(max_examples=300)
def test_no_row_is_more_than_an_error_with_its_place(listed, columns, split):
    """Whatever a row holds, it makes messages of texts, with ranges inside of them, or it is refused by name."""
    try:
        conversation = made(listed, columns, split_thinking=split)
    except DataError as error:
        assert str(error).startswith("rows.jsonl:7: ")
        return
    assert len(conversation.training) in (0, len(conversation.messages))
    for index, message in enumerate(conversation.messages):
        assert isinstance(message["content"], str) and isinstance(message.get("reasoning_content", ""), str)
        assert not message.keys() & {"train", "training", "weight", "train_detail", "thinking", "function_call"}
        told = conversation.training[index] if conversation.training else MessageTraining()
        for text, ranges in (
            (message["content"], told.content),
            (message.get("reasoning_content", ""), told.reasoning),
        ):
            assert all(0 <= found.start < found.end <= len(text) for found in ranges)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["system", "user", "human", "assistant", "gpt", "tool", "stranger", "function_call", "", None]
            ),
            st.sampled_from(["a", "", " \t\u2003", "<think>b</think>c", "{}", None, 3]),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_plain_messages_are_read_as_all_others_are(listed, splits):
    """They go a shorter way, which messages with an empty key more do not."""

    def outcome(empty):
        messages = [
            {"from" if is_other else "role": role, "value" if is_other else "content": text, **empty}
            for role, text, is_other in listed
        ]
        try:
            return made(messages, split_thinking=splits)
        except DataError as error:
            return str(error)

    assert outcome({}) == outcome({"name": None})
