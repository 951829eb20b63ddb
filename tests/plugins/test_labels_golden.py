"""What is trained of certain conversations: written out, and worked out by the reference for every tokenizer."""

from itertools import pairwise

import pytest

from dumbo.data.records import CharRange, MessageTraining, Origin, Row
from dumbo.plugins.jinja_formatter.data_options import MessagesOptions
from dumbo.plugins.jinja_formatter.plugin import JinjaFormatterPlugin
from tests.builders import CHATML
from tests.plugins.chat_labels import (
    KINDS,
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
from tests.plugins.label_reference import Choice, reference_labels
from tests.plugins.template_twins import TWINS

LONG = ("system: Be brief.", "user: hi", "assistant: Hello world!", "user: how?", "assistant:  so \n", "user: ok")
TWO = ("user: a", ("assistant", "\nb"))
END = "<|im_end|>"
CALL = call_of("f", x="é", n=5)
MARKS = {"eos": "train_on_eos", "eot": "train_on_eot", "hidden": "hidden_thinking", "roles": "roles_to_train"}


def told(*trains, **ranges):
    """What a row says of its messages: flags, and ranges of the last one as triples."""
    training = [MessageTraining(train) for train in trains]
    extents = {name: tuple(CharRange(*extent) for extent in listed) for name, listed in ranges.items()}
    return [*training[:-1], MessageTraining(trains[-1], **extents)]


GOLDEN = {
    # Every mode of the end tokens; ChatML ends turns in a token that is not the tokenizer's end token.
    "chatml": ("chatml", LONG, (), {}, ["Hello world!<|im_end|>", " so \n<|im_end|>"]),
    "eos_turn": ("chatml", LONG, (), {"eos": "turn"}, ["Hello world!<|im_end|>", " so \n<|im_end|>"]),
    "eos_last": ("chatml", LONG, (), {"eos": "last"}, ["Hello world!", " so \n<|im_end|>"]),
    "eos_none": ("chatml", LONG, (), {"eos": "none"}, ["Hello world!", " so \n"]),
    "eos_all": ("chatml", LONG, (), {"eos": "all"}, [END, END, "Hello world!" + END, END, " so \n" + END, END]),
    "eot_over_eos": ("chatml", LONG, (), {"eos": "all", "eot": "none"}, ["Hello world!", " so \n"]),
    "last_is_of_trained": (
        "chatml",
        LONG[:5],
        told(None, None, None, None, False),
        {"eos": "last"},
        ["Hello world!" + END],
    ),
    "all_of_untrained": (
        "chatml",
        LONG[1:5],
        told(None, None, None, False),
        {"eos": "all"},
        [END, "Hello world!" + END, END, END],
    ),
    "user_trained": ("chatml", LONG[1:3], told(True, None), {}, ["hi" + END, "Hello world!" + END]),
    "roles": ("chatml", LONG[:3], (), {"roles": ("system", "user")}, ["Be brief." + END, "hi" + END]),
    # Two end tokens after an answer, with a line break between.
    "two_ends": ("two_ends", TWO, (), {}, [" \nb<|im_end|>\n</s>"]),
    "two_ends_eot_none": ("two_ends", TWO, (), {"eot": "none"}, [" \nb", "</s>"]),
    "two_ends_eos_none": (
        "two_ends",
        TWO,
        (),
        {"eos": "none", "eot": "turn"},
        [" \nb<|im_end|>"],
    ),
    "two_ends_eos_all": (
        "two_ends",
        (*TWO, "user: c", ("assistant", "\nd")),
        told(None, False, None, None),
        {"eos": "all", "eot": "last"},
        ["</s>", " \nd<|im_end|>\n</s>"],
    ),
    # Places in which a message may stand.
    "system_in_the_middle": ("chatml", ("user: a", "system: b", "assistant: c"), (), {}, ["c" + END]),
    "empty_answer": ("chatml", ("user: a", "assistant: ", "user: b"), (), {}, [END]),
    "answers_in_a_row": ("chatml", ("assistant: a", "assistant: b"), told(False, None), {}, ["b" + END]),
    "marked_answers_in_a_row": ("marked", ("assistant: ", "assistant: b"), told(False, None), {}, ["b" + END]),
    "marked": ("marked", LONG, (), {}, ["Hello world!<|im_end|>", " so \n<|im_end|>"]),
    "marked_none": ("marked", LONG, (), {"eos": "none"}, ["Hello world!", " so \n"]),
    "marked_content": ("marked_content", LONG, (), {}, ["Hello world!", " so \n"]),
    "marked_content_turn": ("marked_content", LONG, (), {"eos": "turn"}, ["Hello world!" + END, " so \n" + END]),
    "plain_end": ("plain_end", LONG[1:4], (), {}, ["Hello world!\n[END]"]),
    "trimming": ("trimming", LONG, (), {}, ["Hello world!" + END, "so" + END]),
    # Ranges: what they leave out is not trained, tokens over an edge neither.
    "ranges": (
        "chatml",
        ("user: a", "assistant: the answer is ten"),
        told(None, None, content=[(0, 3, None), (10, 13, None)]),
        {},
        ["the", " is", END],
    ),
    "ranges_cut_tokens": (
        "chatml",
        ("user: a", "assistant: the answer is ten"),
        told(None, None, content=[(5, 14, True)]),
        {},
        [" is", END],
    ),
    "ranges_all_masked": (
        "chatml",
        ("user: a", "assistant: b", "assistant: c"),
        told(None, None, None, content=[(0, 1, False)]),
        {},
        ["b" + END],
    ),
    "ranges_of_a_user": ("chatml", ("user: a b", "assistant: c"), (), {"roles": ("user",)}, ["a b" + END]),
    "ranges_and_false": (
        "chatml",
        ("assistant: b", "assistant: c"),
        told(None, False, content=[(0, 1, True)]),
        {},
        ["b" + END],
    ),
    "ranges_in_marks": (
        "marked",
        ("user: a", "assistant: the answer"),
        told(None, None, content=[(0, 3, True)]),
        {},
        ["the", END],
    ),
    "ranges_of_stripped_text": (
        "trimming",
        ("user: a", "assistant: \n the answer "),
        told(None, None, content=[(0, 5, True)]),
        {},
        ["the", END],
    ),
    "ranges_of_thoughts": (
        "tool_calls",
        ("user: a", answer("b", reasoning_content="one two")),
        told(None, None, reasoning=[(0, 3, True)]),
        {},
        ["one", "b" + END],
    ),
    "inputs_but_one": (
        "chatml",
        ("user: a", "assistant: b"),
        told(False, None),
        {"whole_text": True},
        ["<|im_start|>user\n", "\n<|im_start|>assistant\nb<|im_end|>\n"],
    ),
    # Thoughts and calls of tools.
    "call": (
        "tool_calls",
        ("user: a", answer("", tool_calls=[CALL]), {"role": "tool", "content": "5"}, "assistant: ok"),
        (),
        {},
        ['<tool_call>{"name": "f", "arguments": {"x": "é", "n": 5}}</tool_call>' + END, "ok" + END],
    ),
    "qwen3": (
        "qwen3",
        ("user: a", answer("b", reasoning_content="hm"), "user: c", answer("d", reasoning_content="so"), "user: e"),
        (),
        {"hidden": "train"},
        ["b" + END, "d" + END],
    ),
    "qwen3_thinks": (
        "qwen3",
        ("user: a", answer("b", reasoning_content="hm"), "user: c", answer("d", reasoning_content="so")),
        (),
        {},
        ["<think>\nso\n</think>\n\nd" + END],
    ),
    "qwen3_calls": (
        "qwen3",
        (
            "user: a",
            answer("", tool_calls=[CALL]),
            {"role": "tool", "content": "5"},
            answer("ok", reasoning_content="hm"),
        ),
        (),
        {},
        [
            '<tool_call>\n{"name": "f", "arguments": {"x": "é", "n": 5}}\n</tool_call>' + END,
            "<think>\nhm\n</think>\n\nok" + END,
        ],
    ),
    "qwen3_thinks_and_calls": (
        "qwen3",
        ("user: a", answer("", reasoning_content="hm", tool_calls=[CALL, CALL])),
        (),
        {"eos": "none"},
        [
            "<think>\nhm\n</think>\n\n"
            + "\n".join(['<tool_call>\n{"name": "f", "arguments": {"x": "é", "n": 5}}\n</tool_call>'] * 2)
        ],
    ),
}


def options_of(choice) -> dict:
    options = {MARKS[name]: value for name, value in choice.items() if name in MARKS}
    return {**options, **({"train_on_inputs": True} if choice.get("whole_text") else {})}


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_trained(name):
    template, messages, training, choice, expected = GOLDEN[name]
    tokenizer = tokenizer_of("byte_level")
    build = chat(tokenizer, chat_template=TWINS[template].jinja, **options_of(choice))
    assert trained(tokenizer, build(talk(*messages, training=training))) == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte_level"])
def test_other_tokenizers_have_the_labels_of_the_reference(kind):
    tokenizer = tokenizer_of(kind)
    for name, (template, messages, training, choice, _) in GOLDEN.items():
        twin, conversation = TWINS[template], talk(*messages, training=training)
        example = chat(tokenizer, chat_template=twin.jinja, **options_of(choice))(conversation)
        decided = Choice(**choice, marked=twin.marked)
        segments = list(twin.write(conversation))
        expected = reference_labels(tokenizer, segments, conversation, decided, example.input_ids)
        assert (example.labels, expected.says_nothing) == (expected.labels, False), name


def test_tokens_over_the_edge_of_a_range_are_masked_and_counted():
    build = chat(tokenizer_of("byte_level"))
    record = talk("user: a", "assistant: the answer is ten", training=told(None, None, content=[(5, 14, True)]))
    assert build(record).counts == {"straddling tokens": 2}
    explained = build.explain(record)
    assert [explained.texts[place] for place in sorted(explained.straddling)] == [" answer", " ten"]


def test_parts_of_content_are_trained_as_they_say():
    data_format = JinjaFormatterPlugin().build_data_format(MessagesOptions(type="messages"))
    content = [
        {"type": "text", "text": "the answer", "train": False},
        {"type": "text", "text": " is ten"},
        {"type": "text", "text": " one", "weight": 0},
        {"type": "text", "text": " two", "weight": 1},
    ]
    row = Row(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]}, Origin("r", 1)
    )
    tokenizer = tokenizer_of("byte_level")
    assert trained(tokenizer, chat(tokenizer)(data_format(row))) == [" is ten", " two" + END]


def test_hidden_thoughts_are_masked_trained_without_or_refused():
    tokenizer = tokenizer_of("byte_level")
    messages = ("user: a", answer("b", reasoning_content="hm"), "user: c", "assistant: d")
    last = "<think>\n\n</think>\n\nd" + END
    masked = chat(tokenizer, chat_template="qwen3")
    example = masked(talk(*messages))
    assert trained(tokenizer, example) == [last] and example.counts == {"turns without their thought": 1}
    assert masked.explain(talk(*messages)).remarks == (
        "message 2 is not trained: the template leaves out what it thinks",
    )
    as_written = chat(tokenizer, chat_template="qwen3", hidden_thinking="train")
    assert trained(tokenizer, as_written(talk(*messages))) == ["b" + END, last]
    strict = chat(tokenizer, chat_template="qwen3", hidden_thinking="error")
    assert refusal(strict, talk(*messages)).startswith("message 2: the template leaves out or rewrites what it thinks")
    assert trained(tokenizer, strict(talk(*messages, training=told(None, False, None, None)))) == [last]


def test_chosen_end_tokens_take_the_place_of_those_that_are_found():
    tokenizer, template = tokenizer_of("byte_level"), TWINS["two_ends"].jinja
    chosen = chat(tokenizer, chat_template=template, eot_tokens=["</s>"], train_on_eot="none")
    assert trained(tokenizer, chosen(talk(*TWO))) == [" \nb<|im_end|>\n"]
    both = chat(tokenizer, chat_template=template, eot_tokens=["<|im_end|>", "</s>"], train_on_eot="all")
    assert trained(tokenizer, both(talk(*TWO)))[0] == END


HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")


@pytest.mark.parametrize(
    ("template", "special", "expected"),
    [
        (
            "mistral_v3",
            ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
            ['[TOOL_CALLS] [{"name": "f", "arguments": {"x": "é", "n": 5}, "id": "abcdefghi"}]</s>', " ok</s>"],
        ),
        (
            "llama3_tools",
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            ['{"name": "f", "parameters": {"x": "é", "n": 5}}<|eot_id|>', "ok<|eot_id|>"],
        ),
        (
            "gpt_oss",
            HARMONY,
            [
                ' to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"x": "é", "n": 5}<|call|>',
                "<|channel|>final<|message|>ok<|return|>",
            ],
        ),
        (
            "tool_calls",
            ("<tool_call>", "</tool_call>"),
            ['<tool_call>{"name": "f", "arguments": {"x": "é", "n": 5}}</tool_call>' + END, "ok" + END],
        ),
    ],
)
def test_a_call_of_a_tool_is_trained_from_its_beginning_to_its_end(template, special, expected):
    tokenizer = tokenizer_of("byte_level", *special)
    named = TWINS[template].jinja if template in TWINS else template
    build = chat(tokenizer, chat_template=named)
    result = {"role": "tool", "content": "5", "tool_call_id": "abcdefghi"}
    example = build(talk("user: a", answer("", tool_calls=[CALL]), result, "assistant: ok"))
    assert trained(tokenizer, example) == expected
    assert example.counts == {}
    assert trained(
        tokenizer,
        chat(tokenizer, chat_template=named, train_on_eos="none")(
            talk("user: a", answer("", tool_calls=[CALL]), result, "assistant: ok")
        ),
    ) == [text[: -len(end)] for text, end in zip(expected, [ending(text) for text in expected], strict=True)]


def ending(text: str) -> str:
    """The end token that a text ends in."""
    return text[text.rindex("<") :]


def test_an_empty_content_behind_a_call_does_not_end_it():
    calls = "{% for c in message.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    tokenizer = byte_level(CHATML.replace("{{ message.content }}", calls + "{{ message.content }}"))
    example = chat(tokenizer)(talk("user: a", answer("", tool_calls=[call_of("f")])))
    assert trained(tokenizer, example) == ['<tool_call>{"name": "f", "arguments": {}}</tool_call>' + END]


def test_an_answer_begins_after_the_last_header():
    shown = "{% if message.content %}{{ message.content }}{% endif %}"
    tokenizer = byte_level(CHATML.replace("{{ message.content }}", shown))
    record = talk("user: a", "assistant: ", "assistant: b", training=told(None, False, None))
    assert trained(tokenizer, chat(tokenizer)(record)) == ["b" + END]


# jinja_messages


@pytest.mark.parametrize(
    ("options", "messages", "expected"),
    [
        ({}, ("user: a", "assistant: b"), ["a\nb\n</s>"]),
        ({"train_on_inputs": False}, ("user: a", "assistant: b"), ["b\n</s>"]),
        ({"train_on_inputs": False}, ("user: a", "assistant: b", "user: c"), ["b"]),
        ({"train_on_inputs": False, "train_on_eos": "all"}, ("assistant: b", "user: c"), ["b", "</s>"]),
        ({"train_on_inputs": False, "train_on_eos": "last"}, ("assistant: a", "assistant: b"), ["a", "b\n</s>"]),
        ({"train_on_inputs": False, "train_on_eos": "none"}, ("user: a", "assistant: b"), ["b"]),
        ({"train_on_eos": "none"}, ("user: a", "assistant: b"), ["a\nb\n"]),
    ],
)
def test_the_end_token_that_follows_a_template_of_the_users_own(options, messages, expected):
    tokenizer = tokenizer_of("byte_level")
    build = jinja(tokenizer, "{% for m in messages %}{{ m.content }}{{ '\\n' }}{% endfor %}", **options)
    assert trained(tokenizer, build(talk(*messages))) == expected


def test_a_template_of_the_users_own_may_leave_out_what_is_not_trained():
    tokenizer = tokenizer_of("byte_level")
    template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content ~ ' ' }}{% endif %}{% endfor %}"
    record = talk("system: x", "user: a", "assistant: b")
    assert trained(tokenizer, jinja(tokenizer, template)(record)) == ["a b </s>"]
    assert trained(tokenizer, jinja(tokenizer, template, train_on_inputs=False)(record)) == [" b </s>"]
    strict = jinja(tokenizer, template, train_on_inputs=False, roles_to_train=["system"])
    assert refusal(strict, record).startswith("message 1: the template writes nothing of it")


def test_a_message_in_two_places_takes_nothing_of_what_stands_between():
    tokenizer = tokenizer_of("byte_level")
    template = "{{ messages[0].content }}{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    build = jinja(tokenizer, template)
    assert trained(tokenizer, build(talk("user: a", "assistant: b"))) == ["a<|im_start|>a<|im_start|>b</s>"]
    masked = talk("assistant: b", "user: a", "assistant: c", training=told(False, None, None))
    assert "in several places" in refusal(build, masked)


def test_the_places_of_messages_are_in_their_order():
    explained = chat(tokenizer_of("byte_level")).explain(talk(*LONG))
    assert [place.role for place in explained.messages] == [turn.split(":")[0] for turn in LONG]
    assert all(first.end <= second.start for first, second in pairwise(explained.messages))
    assert "".join(explained.texts[explained.messages[2].start : explained.messages[2].end]) == "Hello world!"
