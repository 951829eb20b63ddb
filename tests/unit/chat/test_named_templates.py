"""Each named template writes its family's format, refuses what that has no place for, and prompts as it trains."""

import re
from functools import cache
from importlib.resources import files

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.chat.environment import SPECIAL_TOKENS, compile_plain_template, read_variables
from dumbo.chat.names import TEMPLATES, template_names, template_text
from tests.unit.chat.named_formats import (
    TALK,
    TALKS,
    THOUGHTFUL,
    THOUGHTS,
    TOOL,
    TOOL_TALK,
    TOOL_TALKS,
    assistant,
    call,
    result,
    system,
    user,
)

NAMES = template_names()
WITH_TOOLS = [name for name in NAMES if TEMPLATES[name].tools]
WITH_THINKING = [name for name in NAMES if TEMPLATES[name].thinking]
TAKE_TURNS = ("command_r", "gemma", "gemma3", "llama2", "mistral_v1", "mistral_v3")
SYSTEM_FIRST = (*TAKE_TURNS, "alpaca", "deepseek_r1", "deepseek_v3", "gpt_oss", "vicuna")
ONE_CALL = ("gpt_oss", "llama3_tools")
CALL_ALONE = ("llama3_tools", "mistral_v3")
NUMBERED_CALLS = ("mistral_v3", "mistral_v7", "mistral_v7_tekken")
PLAIN_MARKS = ("llama2", "metharme", "mistral_v1", "olmo2", "tulu", "zephyr")
"""What they write around messages is text to their tokenizers; answers end in the end token."""
ENDS = {
    **dict.fromkeys(("chatml", "phi4", "qwen2_5", "qwen3", "qwen3_instruct", "smollm2"), r"<\|im_end\|>"),
    **dict.fromkeys(("deepseek_r1", "deepseek_v3"), "<｜end▁of▁sentence｜>"),
    **dict.fromkeys(("gemma", "gemma3"), "<end_of_turn>"),
    **dict.fromkeys(("granite3", "granite4"), r"<\|end_of_text\|>"),
    **dict.fromkeys(("llama3", "llama3_tools"), r"<\|eot_id\|>"),
    "command_r": r"<\|END_OF_TURN_TOKEN\|>",
    "exaone3": r"\[\|endofturn\|\]",
    "gpt_oss": r"<\|(?:return|call|end)\|>",
    "llama4": r"<\|eot\|>",
    "phi3": r"<\|end\|>",
}
"""What an answer ends in, if not in the tokenizer's end token."""


@cache
def compiled(name):
    return compile_plain_template(template_text(name))


def render(name, messages, tools=(), prompt=False, **variables):
    """The text; a variable or key that is written and not there is an error."""
    return compiled(name).render(
        messages=messages,
        tools=list(tools) or None,
        add_generation_prompt=prompt,
        **{"bos_token": "<s>", "eos_token": "</s>"} | variables,
    )


def refusal(name, messages, tools=(), **variables):
    with pytest.raises(jinja2.TemplateError) as raised:
        render(name, messages, tools, **variables)
    assert not isinstance(raised.value, jinja2.UndefinedError)
    return str(raised.value)


def talk_for(name):
    return TALK if TEMPLATES[name].system else TALK[1:]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_is_written_as_published(name):
    assert render(name, talk_for(name)) == TALKS[name]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools_calls_and_results_are_written_as_published(name):
    assert render(name, TOOL_TALK, [TOOL]) == TOOL_TALKS[name]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_arguments_may_be_json_already(name):
    talk = [TOOL_TALK[0], call('{"city": "Rome"}'), *TOOL_TALK[2:]]
    assert render(name, talk, [TOOL]) == TOOL_TALKS[name]


@pytest.mark.parametrize("name", WITH_THINKING)
def test_thoughts_are_written_as_published(name):
    assert render(name, THOUGHTFUL) == THOUGHTS[name]


def test_a_thought_between_calls_stays_until_the_answer_is_over():
    talk = [user("Rome?"), call({"city": "Rome"}, reasoning_content="look"), result("21"), assistant("Warm.")]
    for name, thought in (("qwen3", "<think>\nlook\n</think>\n\n<tool_call>"), ("gpt_oss", "<|message|>look<|end|>")):
        assert thought in render(name, talk, [TOOL])
        assert thought not in render(name, [*talk, user("Thanks")], [TOOL], prompt=True)


def test_a_thought_within_the_content_is_written_as_one_beside_it():
    inside = [user("Hi"), assistant("<think>\ngreet\n</think>\n\nHello!"), user("2+2?")]
    beside = [user("Hi"), assistant("Hello!", reasoning_content="greet"), user("2+2?")]
    for length in (2, 3):
        assert render("qwen3", inside[:length]) == render("qwen3", beside[:length])


def test_qwen3_can_be_told_not_to_think():
    assert render("qwen3", [user("Hi")], prompt=True, enable_thinking=False).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (
            "alpaca",
            "<s>Below is an instruction that describes a task. Write a response that appropriately completes the ",
        ),
        ("exaone3", "[|system|][|endofturn|]\n[|user|]"),
        ("granite3", "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nYou are Granite, "),
        (
            "qwen2_5",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>",
        ),
        (
            "smollm2",
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>",
        ),
        ("vicuna", "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "),
    ],
)
def test_a_family_has_a_system_message_of_its_own(name, start):
    assert render(name, [user("Hi")]).startswith(start)
    assert render(name, []).startswith(start.removesuffix("[|user|]"))


@pytest.mark.parametrize(
    ("name", "variable", "text"),
    [
        ("gpt_oss", "current_date", "\nCurrent date: 1 May 2026\n"),
        ("gpt_oss", "reasoning_effort", "\nReasoning: 1 May 2026\n"),
        ("gpt_oss", "model_identity", "<|message|>1 May 2026\nKnowledge"),
        ("granite3", "current_date", "\nToday's Date: 1 May 2026.\n"),
        ("llama3_tools", "date_string", "\nToday Date: 1 May 2026\n"),
    ],
)
def test_variables_are_written(name, variable, text):
    assert text in render(name, [user("Hi")], **{variable: "1 May 2026"})


def test_names_and_files_agree():
    found = {file.name.removesuffix(".jinja") for file in files("dumbo.chat").joinpath("named_templates").iterdir()}
    assert found == {*NAMES, "_refusals"}
    with pytest.raises(KeyError):
        template_text("_refusals")


def test_the_page_lists_every_template_as_it_is():
    page = files("dumbo").joinpath("docs", "chat_templates.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:3] == "| `"]
    said = {name.strip("`"): (summary, writes) for name, summary, writes in rows}
    assert list(said) == list(NAMES)
    for name, template in TEMPLATES.items():
        flags = {"tools": template.tools, "thinking": template.thinking, "no system message": not template.system}
        assert said[name] == (template.summary, ", ".join(word for word, is_so in flags.items() if is_so))
    without = {name for name in NAMES if not TEMPLATES[name].needs}
    [sentence] = re.findall(r"The templates ([^.]*) need none", page)
    assert set(re.findall(r"`(\w+)`", sentence)) == without


@pytest.mark.parametrize("name", NAMES)
def test_a_template_reads_nothing_but_what_it_may_be_given(name):
    text = template_text(name)
    own = {"gpt_oss": {"current_date", "model_identity", "reasoning_effort"}, "granite3": {"current_date"}}
    own |= {"llama3_tools": {"date_string"}, "qwen3": {"enable_thinking"}}
    allowed = {"messages", "tools", "add_generation_prompt", *SPECIAL_TOKENS}
    assert read_variables(text) - allowed == own.get(name, set())
    assert "strftime_now" not in text, "what a row is made into would change with the calendar"
    assert "Format: " in text
    assert max(map(len, text.splitlines())) <= 120


SPOKEN = st.text("ab .\n'é*", max_size=8)


@st.composite
def talks(draw, name):
    """A conversation with every role that the template knows, in an order that it takes."""
    talk = [system(draw(SPOKEN))] if TEMPLATES[name].system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        for _ in range(1 if name in TAKE_TURNS else draw(st.integers(1, 2))):
            talk.append(user(draw(SPOKEN)))
        if TEMPLATES[name].tools and draw(st.booleans()):
            content = "" if name in CALL_ALONE else draw(SPOKEN)
            talk += [call({"city": draw(SPOKEN)}, content=content), result(draw(SPOKEN))]
        # Of two answers in a row, Qwen 3 gives an empty thought to the last one alone.
        for _ in range(1 if name in (*TAKE_TURNS, "qwen3") else draw(st.integers(1, 2))):
            talk.append(assistant(draw(SPOKEN)))
    return talk


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(data=st.data())
def test_an_answer_follows_its_prompt_and_ends_in_its_end_token(name, data):
    talk = data.draw(talks(name))
    tools = [TOOL] if TEMPLATES[name].tools else []
    text = render(name, talk, tools)
    for index, message in enumerate(talk):
        if message["role"] != "assistant":
            continue
        prompt = render(name, talk[:index], tools, prompt=True)
        assert text.startswith(prompt)
        answer = re.split(ENDS.get(name, "</s>"), text[len(prompt) :])[0]
        assert len(answer) < len(text) - len(prompt), "no end"
        if "tool_calls" not in message:
            assert answer.strip().endswith(message["content"].strip())


def all_texts(name):
    """Everything that is written between and around messages."""
    texts = [render(name, talk_for(name), prompt=True)]
    if TEMPLATES[name].tools:
        texts += [render(name, TOOL_TALK, [TOOL])]
    return "".join(texts)


@pytest.mark.parametrize("name", NAMES)
def test_the_marks_that_are_tokens_are_declared(name):
    written = set(re.findall(r"<\|[^|>]+\|>|\[\|?/?\w+\|?\]|<｜[^｜]+｜>|<(?:start|end)_of_turn>", all_texts(name)))
    if name in PLAIN_MARKS:
        assert TEMPLATES[name].needs == ()
    else:
        assert written == set(TEMPLATES[name].needs)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_role_is_refused(name):
    assert f"message 2: '{name}' has no such role" in refusal(name, [user("Hi"), {"role": "critic", "content": "No."}])
    assert "message 1: " in refusal(name, [{"content": "Hi"}])


@pytest.mark.parametrize("name", NAMES)
def test_content_that_is_no_text_is_refused(name):
    for content in ([{"type": "text", "text": "Hi"}], None, 3):
        assert refusal(name, [user(content)]) == "message 1: its content is not a text"
    assert refusal(name, [{"role": "user"}]) == "message 1: its content is not a text"


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_place_is_refused(name):
    template = TEMPLATES[name]
    if not template.tools:
        assert refusal(name, [user("Hi")], [TOOL]) == f"'{name}' has no place for tools"
        assert "message 2: " in refusal(name, [user("Hi"), call({})])
        assert "no such role" in refusal(name, [user("Hi"), result("21")])
    if not template.thinking:
        assert "message 2: " in refusal(name, THOUGHTFUL)
    if not template.system:
        assert "no such role; its roles are user, assistant" in refusal(name, TALK)
    assert "message 1: " in refusal(name, [user("Hi") | {"reasoning_content": "hm"}])
    assert "message 1: " in refusal(name, [user("Hi") | {"tool_calls": call({})["tool_calls"]}])


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_messages_is_the_familys(name):
    twice = [user("a"), user("b"), assistant("c")]
    if name in TAKE_TURNS:
        assert refusal(name, twice) == f"message 2: '{name}' takes user and assistant in turn"
        assert "message 1: " in refusal(name, twice[2:])
    else:
        assert re.search("a.*b.*c", render(name, twice), re.DOTALL)
    if name in SYSTEM_FIRST and TEMPLATES[name].system:
        assert refusal(name, [*TALK, system("Stop.")])
    elif TEMPLATES[name].system:
        assert "Stop." in render(name, [*TALK, system("Stop."), user("Why?")])


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_call_has_to_be_one_that_the_family_knows(name):
    broken = call({"city": "Rome"})
    broken["tool_calls"][0]["function"] = {"name": "get_weather", "arguments": None}
    assert refusal(name, [user("Rome?"), broken]) == "message 2: a tool call needs a name, and arguments as a mapping"
    several = [
        user("Rome?"),
        call({"city": "Rome"}, {"city": "Oslo"}),
        result("21"),
        result("3", 2),
        assistant("Warm."),
    ]
    if name in ONE_CALL:
        assert "one tool at a time" in refusal(name, several)
    else:
        assert re.search("Rome.*Oslo.*21.*3", render(name, several), re.DOTALL)
    beside = [user("Rome?"), call({"city": "Rome"}, content="Let me look.")]
    if name in CALL_ALONE:
        assert "beside tool_calls" in refusal(name, beside)
    else:
        assert "Let me look." in render(name, beside)
    if name in NUMBERED_CALLS:
        for number in (1, 2):
            cut = [dict(message) for message in TOOL_TALK]
            cut[1]["tool_calls"] = [dict(cut[1]["tool_calls"][0])]
            del (cut[1]["tool_calls"][0] if number == 1 else cut[2])["id" if number == 1 else "tool_call_id"]
            assert "nine letters or digits" in refusal(name, cut)


@pytest.mark.parametrize("name", ["llama3_tools", "llama4", *NUMBERED_CALLS])
def test_tools_in_the_first_message_need_one_of_the_users(name):
    for talk in ([], [system("Be brief.")], [assistant("Hello!")]):
        with pytest.raises(jinja2.TemplateError):
            render(name, talk, [TOOL])


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_the_tokenizer_lacks_is_named(name):
    for token in ("bos_token", "eos_token"):
        if f'required({token}, "{token}")' in template_text(name):
            assert f"the tokenizer has no {token}" in refusal(name, [user("Hi")], **{token: None})
        else:
            assert "None" not in render(name, [user("Hi"), assistant("Hello!")], **{token: None})


def test_gpt_oss_describes_tools_as_its_renderer_does():
    """The expected text is what `openai-harmony` 0.0.8 writes for the same schema."""
    properties = {
        "city": {"type": "string", "title": "CITY", "description": "The city.", "examples": ["Rome"]},
        "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
        "note": {"type": "string", "default": "x", "nullable": True},
        "days": {"type": "array", "items": {"type": "integer"}, "default": [1]},
        "box": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
        "many": {"type": ["integer", "string"]},
        "one": {"description": "Either.", "oneOf": [{"type": "string"}, {"type": "number", "description": "Old."}]},
        "free": {},
    }
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "f", "description": "One.\nTwo.", "parameters": parameters}}
    assert (
        '// One.\n// Two.\ntype f = (_: {\n// CITY\n//\n// The city.\n// Examples:\n// - "Rome"\ncity: string,\n'
        'unit?: "c" | "f", // default: c\nnote?: string | null, // default: "x"\ndays?: number[], // default: [1]\n'
        "box?: {\n    deep?: boolean,\n    },\nmany?: number | string,\n"
        "// Either.\none?:\n | string\n | number // Old.\n,\nfree?: any,\n}) => any;\n\n} // namespace functions<|end|>"
    ) in render("gpt_oss", [user("Hi")], [tool])
