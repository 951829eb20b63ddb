"""Labels by published tokenizers, against the reference and Transformers. DUMBO_REAL_TOKENIZERS names a folder that has
some, each in its own folder; the other tests train tokenizers of the same kinds."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dumbo.chat.names import TEMPLATES
from dumbo.inference.prompting import PromptWriter
from tests.plugins.chat_labels import SPECIAL, answer, call_of, chat, talk, trained
from tests.plugins.label_reference import Choice, reference_labels
from tests.plugins.template_twins import TWINS
from tests.plugins.test_labels_golden import GOLDEN, options_of
from tests.unit.chat.named_formats import TOOL

VARIABLE = "DUMBO_REAL_TOKENIZERS"
FOLDERS = sorted(path.parent for path in Path(os.environ.get(VARIABLE, "/nowhere")).glob("*/tokenizer.json"))
TALKS = {
    "talk": ("user: What is 2 + 2?", "assistant: It is 4.", "user: señor 🙂?", "assistant: Sí,\n\tnaïve  café!"),
    "thoughts": ("user: What is 2 + 2?", answer("It is 4.", reasoning_content="Add them.")),
    "call": (
        "user: Is it warm in Rome?",
        answer("", tool_calls=[call_of("weather", city="Rome")]),
        {"role": "tool", "content": "21", "tool_call_id": "abcdefghi"},
        "assistant: It is.",
    ),
}

pytestmark = pytest.mark.skipif(not FOLDERS, reason=f"{VARIABLE} names no folder of published tokenizers")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def with_tokens(folder):
    """The tokenizer with the special tokens of the tests' templates."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": SPECIAL[3:]})
    return tokenizer


@pytest.mark.parametrize("name", GOLDEN)
def test_labels_are_those_of_the_reference(with_tokens, name):
    template, messages, training, choice, _ = GOLDEN[name]
    twin, conversation = TWINS[template], talk(*messages, training=training)
    example = chat(with_tokens, chat_template=twin.jinja, **options_of(choice))(conversation)
    decided = Choice(**choice, marked=twin.marked)
    segments = list(twin.write(conversation))
    expected = reference_labels(with_tokens, segments, conversation, decided, example.input_ids)
    assert (example.labels, expected.says_nothing) == (expected.labels, False)


@pytest.mark.parametrize("kind", TALKS)
def test_its_own_template_writes_what_transformers_writes(folder, kind):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        pytest.skip("it has no chat template")
    tools = [TOOL] if kind == "call" else []
    conversation = talk(*TALKS[kind], tools=tools)
    if kind == "thoughts" and "reasoning_content" not in tokenizer.chat_template:
        pytest.skip("its template knows no thoughts")
    build = chat(tokenizer)
    example = build(conversation)
    messages = [dict(message) for message in conversation.messages]
    theirs = tokenizer.apply_chat_template(messages, tools=tools or None, return_dict=True)["input_ids"]
    assert example.input_ids == list(theirs)
    said = "".join(trained(tokenizer, example))
    assert all(message["content"] in said for message in messages if message["role"] == "assistant")
    assert not any(message["content"] in said for message in messages if message["role"] != "assistant")
    assert said.endswith(tokenizer.eos_token)
    assert "straddling tokens" not in example.counts
    prompt = PromptWriter(build, tokenizer).write(messages[:1])
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert prompt == list(asked)


@pytest.mark.parametrize("kind", ["talk", "call"])
def test_a_named_template_writes_what_the_families_own_does(folder, kind):
    name = {"mistral-7b-instruct-v0.3": "mistral_v3"}.get(folder.name)
    if name is None:
        pytest.skip("no named template is its family's")
    assert name in TEMPLATES
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversation = talk(*TALKS[kind], tools=[TOOL] if kind == "call" else [])
    assert chat(tokenizer, chat_template=name)(conversation) == chat(tokenizer)(conversation)
