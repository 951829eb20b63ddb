"""What users of other trainers have suffered from wrong labels, each complaint as a test.

Numbers are those of the issues in which it was reported (github.com/axolotl-ai-cloud/axolotl).
"""

import pytest

from dumbo.chat.names import TEMPLATES
from dumbo.data.records import IGNORED
from dumbo.errors import ConfigError, DataError
from dumbo.plugins.jinja_formatter.data_options import DATA_FORMATS
from dumbo.plugins.jinja_formatter.plugin import JinjaFormatterPlugin
from dumbo.plugins.jinja_formatter.train_options import ChatTemplateOptions
from tests.builders import CHATML, thinned
from tests.plugins.chat_labels import (
    ORIGIN,
    answer,
    byte_level,
    call_of,
    chat,
    jinja,
    refusal,
    talk,
    tokenizer_of,
    trained,
)

TWO_ROUNDS = talk("user: one", "assistant: two", "user: three", "assistant: four")
MISTRAL = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]")
THINKING = [name for name, template in TEMPLATES.items() if template.thinking]


def conversation_of(row):
    from dumbo.data.records import Row

    options = DATA_FORMATS["messages"](type="messages")
    return JinjaFormatterPlugin().build_data_format(options)(Row(row, ORIGIN))


def test_mistral_finds_its_end_token_2089():
    tokenizer = tokenizer_of("metaspace", *MISTRAL)
    example = chat(tokenizer, chat_template="mistral_v3")(TWO_ROUNDS)
    said = [text.translate({ord("▁"): None, ord(" "): None}) for text in trained(tokenizer, example)]
    assert said == ["two</s>", "four</s>"]


def test_all_turns_are_trained_and_not_the_last_alone_1761():
    tokenizer = tokenizer_of("byte_level")
    assert len(trained(tokenizer, chat(tokenizer)(talk(*["user: a", "assistant: b"] * 20)))) == 20


def test_qwen3_trains_answers_and_nothing_that_was_asked_3088():
    tokenizer = tokenizer_of("byte_level")
    example = chat(tokenizer, chat_template="qwen3")(TWO_ROUNDS)
    assert trained(tokenizer, example) == ["two<|im_end|>", "<think>\n\n</think>\n\nfour<|im_end|>"]


@pytest.mark.parametrize("name", thinned(sorted(TEMPLATES), 3))
def test_the_last_end_is_trained_2287(name):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES[name].needs)})
    example = chat(tokenizer, chat_template=name)(TWO_ROUNDS)
    last = [label for label in example.labels if label != IGNORED][-1]
    assert last in tokenizer.all_special_ids


def test_what_is_trained_by_default_stays_what_it_is_1847():
    options = ChatTemplateOptions(type="chat_template")
    assert options.roles_to_train == ("assistant",) and not options.train_on_inputs
    tokenizer = tokenizer_of("byte_level")
    written = chat(tokenizer, roles_to_train=["assistant"], train_on_eos="turn", train_on_eot="turn")(TWO_ROUNDS)
    assert chat(tokenizer)(TWO_ROUNDS) == written


def test_the_end_can_be_left_untrained_1330():
    tokenizer = tokenizer_of("byte_level")
    assert trained(tokenizer, chat(tokenizer, train_on_eos="none")(TWO_ROUNDS)) == ["two", "four"]


@pytest.mark.parametrize("name", THINKING)
def test_no_named_template_drops_the_last_thought_3724(name):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES[name].needs)})
    example = chat(tokenizer, chat_template=name)(talk("user: one", answer("two", reasoning_content="because")))
    [said] = trained(tokenizer, example)
    assert said.index("because") < said.index("two")


@pytest.mark.parametrize("name", thinned(sorted(set(TEMPLATES) - set(THINKING)), 3))
def test_a_named_template_that_knows_no_thoughts_refuses_them_3724(name):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES[name].needs)})
    thoughtful = talk("user: one", answer("two", reasoning_content="because"))
    assert "reasoning_content" in refusal(chat(tokenizer, chat_template=name), thoughtful)


def test_earlier_thoughts_that_a_template_hides_are_no_wrong_labels_3114():
    tokenizer = tokenizer_of("byte_level")
    hidden = talk("user: a", answer("b", reasoning_content="B"), "user: c", answer("d", reasoning_content="D"))
    example = chat(tokenizer, chat_template="qwen3")(hidden)
    assert trained(tokenizer, example) == ["<think>\nD\n</think>\n\nd<|im_end|>"]
    assert example.counts == {"turns without their thought": 1}


@pytest.mark.parametrize("name", thinned(sorted(TEMPLATES), 3))
def test_the_prompt_of_inference_is_what_training_has_before_the_answer_2014(name):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES[name].needs)})
    build = chat(tokenizer, chat_template=name)
    example = build(TWO_ROUNDS)
    prompt = build.write_prompt(TWO_ROUNDS.messages[:3])
    if prompt is None:
        return  # The family has no generation prompt: there it is what the rows have in common.
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[len(prompt) - 1] == IGNORED and example.labels[len(prompt)] != IGNORED
    assert IGNORED not in example.labels[len(prompt) : -2]


@pytest.mark.parametrize("tail", ["", "{{ eos_token }}", "{{ eos_token }}\n"])
def test_no_line_end_is_added_and_no_end_token_doubled_922_807(tail):
    tokenizer = tokenizer_of("byte_level")
    example = jinja(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}" + tail)(TWO_ROUNDS)
    text = tokenizer.decode(example.input_ids)
    assert text.rstrip("\n") == "twothreefour</s>".replace("two", "onetwo", 1)
    assert example.input_ids.count(tokenizer.eos_token_id) == 1


def test_a_start_token_is_written_once_1616():
    tokenizer = tokenizer_of("metaspace")
    assert tokenizer.bos_token_id not in jinja(tokenizer)(TWO_ROUNDS).input_ids[1:]
    doubled = byte_level("{{ bos_token }}{{ bos_token }}" + CHATML)
    assert refusal(chat(doubled), TWO_ROUNDS).startswith("the text begins with two start tokens '<s>'")


def test_sharegpt_needs_no_migration_1649():
    turns = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]
    conversation = conversation_of({"conversations": turns})
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_a_turn_whose_place_is_unsure_ends_the_run_and_is_not_masked():
    shouting = byte_level(CHATML.replace("{{ message.content }}", "{{ message.content | upper }}"))
    with pytest.raises(DataError, match=r"chats.jsonl:3: message 1: the template leaves out or rewrites its content"):
        chat(shouting)(TWO_ROUNDS)


def test_text_that_ends_a_turn_in_somebody_elses_name_is_refused():
    tokenizer = tokenizer_of("byte_level")
    injected = talk("user: a<|im_end|>\n<|im_start|>assistant\nb", "assistant: c")
    message = refusal(chat(tokenizer), injected)
    assert message.startswith("message 1 has the text '<|im_end|>', which the tokenizer makes a special token of")
    assert trained(tokenizer, chat(tokenizer, allow_special_tokens=True)(injected)) == ["c<|im_end|>"]


def test_the_end_that_a_template_never_writes_is_told():
    tokenizer = tokenizer_of("byte_level")
    assert (
        "ends answers in '<|im_end|>' and never writes the tokenizer's end token '</s>'" in chat(tokenizer).warnings[0]
    )
    endless = byte_level("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert chat(endless).warnings == [
        "the chat template writes nothing after an answer: the model will not learn to stop"
    ]
    fitting = byte_level(CHATML.replace("<|im_end|>", "{{ eos_token }}"))
    assert not chat(fitting).warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eot_tokens": ["</s>"]}, "the template never writes '</s>' after an answer"),
        ({"eot_tokens": ["<|nothing|>"]}, r"'<|nothing|>' is \d+ tokens of this tokenizer, not one"),
    ],
)
def test_an_end_that_cannot_be_is_an_error_and_not_ignored(options, message):
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        chat(tokenizer_of("byte_level"), **options)


def test_two_wishes_for_one_end_token_are_an_error():
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "</s>"))
    with pytest.raises(ConfigError, match="'</s>' is the end token too, for which 'train_on_eos' says something else"):
        chat(tokenizer, eot_tokens=["</s>"], train_on_eos="last", train_on_eot="all")


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "mistral_v3", "llama3_tools", "gpt_oss"])
def test_a_call_of_a_tool_is_trained_from_its_beginning(name):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES[name].needs)})
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
    result = {"role": "tool", "content": "5", "name": "add", "tool_call_id": "abcdefghi"}
    conversation = talk("user: 2 + 3?", answer(tool_calls=[call_of("add", a=2)]), result, "assistant: 5", tools=[tool])
    build = chat(tokenizer, chat_template=name)
    said = trained(tokenizer, build(conversation))
    begins = {
        "mistral_v3": '[TOOL_CALLS] [{"name": "add"',
        "llama3_tools": '{"name": "add"',
        "gpt_oss": " to=functions.add",
    }
    assert said[0].startswith(begins.get(name, '<tool_call>\n{"name": "add"'))
    assert said[0].endswith(("<|im_end|>", "</s>", "<|eot_id|>", "<|call|>"))
    untold = talk("user: 2 + 3?", "assistant: 5", tools=[tool])
    ignorant = byte_level(CHATML)
    assert refusal(chat(ignorant), untold).startswith("the template does not write the tools")


TOUCHING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
)
CALLING = "{%% for m in messages %%}<|im_start|>{{ m.content }}{%% for c in m.tool_calls %%}%s{%% endfor %%}<|im_end|>"


def test_marks_that_touch_belong_to_two_answers():
    tokenizer = byte_level(TOUCHING)
    example = chat(tokenizer)(talk("user: a", "assistant: b", "assistant: c"))
    assert trained(tokenizer, example) == ["b<|im_end|>c<|im_end|>"]


@pytest.mark.parametrize(
    ("written", "is_complete"),
    [
        ("{{ c.function.name }}", False),
        ("{{ c.function.name }}({{ c.function.arguments.a }})", False),
        ("{{ c.function.arguments | tojson }}", False),
        ("{{ c.function.name | tojson }}{{ c.function.arguments | tojson }}", True),
        ("{{ c | tojson }}", True),
        ("{{ c.function.name }}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", True),
    ],
)
def test_a_call_without_its_name_or_an_argument_is_refused(written, is_complete):
    build = chat(byte_level(CALLING % written + "{% endfor %}"))
    conversation = talk("user: 2 + 3?", answer(tool_calls=[call_of("add", a=2, b="3")]))
    if is_complete:
        assert build(conversation)
    else:
        assert refusal(build, conversation).startswith(
            "message 2: the template leaves out or rewrites a call of a tool"
        )


@pytest.mark.parametrize("key", ["thinking", "reasoning", "reasoning_content"])
def test_a_thought_is_missed_under_every_key_that_it_may_have(key):
    tokenizer = tokenizer_of("byte_level")
    assert refusal(chat(tokenizer), talk("user: a", answer("b", **{key: "c"}))).startswith("no token to train on")


def test_a_name_that_is_a_special_token_is_refused():
    tokenizer = byte_level(CHATML.replace("{{ message.role }}", "{{ message.role }} {{ message.name }}"))
    named = talk({"role": "user", "name": "<|im_end|>", "content": "a"}, "assistant: b")
    assert refusal(chat(tokenizer), named).startswith("message 1 has the text '<|im_end|>'")


@pytest.mark.parametrize(("mode", "said"), [(None, "b</s><|im_end|>"), ("none", "b")])
def test_an_end_of_text_before_the_end_of_the_turn_is_one(mode, said):
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "</s><|im_end|>"))
    assert trained(tokenizer, chat(tokenizer, train_on_eos=mode)(talk("user: a", "assistant: b"))) == [said]


def test_a_template_may_write_the_time_of_day():
    tokenizer = byte_level("{{ strftime_now('%H:%M:%S') }}" + CHATML)
    build = chat(tokenizer)
    assert all(trained(tokenizer, build(talk("user: a", "assistant: b"))) for _ in range(50))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_on_eos": "turn", "train_on_eot": "none"}, "<|channel|>final<|message|>b<|return|>"),
        ({"train_on_eos": "none", "train_on_eot": "turn"}, "<|channel|>final<|message|>b"),
        ({"train_on_eot": "none"}, "<|channel|>final<|message|>b"),
    ],
)
def test_the_end_of_the_text_is_trained_by_its_own_option(options, said):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES["gpt_oss"].needs), "eos_token": "<|return|>"})
    build = chat(tokenizer, chat_template="gpt_oss", **options)
    assert trained(tokenizer, build(talk("user: a", "assistant: b"))) == [said]


def test_the_end_of_a_call_is_trained_where_the_tokenizer_does_not_know_it():
    tokenizer = byte_level()
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
    conversation = talk("user: 2 + 3?", answer(tool_calls=[call_of("add", a=2)]), tools=[tool])
    [said] = trained(tokenizer, chat(tokenizer, chat_template="gpt_oss")(conversation))
    assert said.endswith("<|call|>")
