"""`chat_template` and `jinja_messages`: what they train, what they refuse, and what they say."""

import pickle

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from dumbo.data.records import IGNORED, Conversation, Text
from dumbo.errors import ConfigError
from tests.builders import CHATML, CHATML_WITH_GENERATION
from tests.plugins.chat_labels import (
    CONCATENATION,
    KINDS,
    LLAMA2,
    ORIGIN,
    answer,
    byte_level,
    call_of,
    chat,
    jinja,
    metaspace,
    refusal,
    talk,
    trained,
)


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def bpe():
    return byte_level()


def with_template(tokenizer, template):
    """The same tokenizer with another chat template."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    copy.chat_template = template
    return copy


def offsets_are_whole(tokenizer) -> bool:
    """Whether the tokenizer's own offsets include the space of ` the`."""
    offsets = tokenizer("a the", return_offsets_mapping=True)["offset_mapping"]
    return any(start <= 1 < end for start, end in offsets)


# chat_template: labels


def test_chatml_trains_each_answer_with_its_end(bpe):
    example = chat(bpe)(
        talk("system: Be brief.", "user: hi", "assistant: Hello world!", "user: how?", "assistant:  so \n", "user: ok")
    )
    assert trained(bpe, example) == ["Hello world!<|im_end|>", " so \n<|im_end|>"]
    assert example.origin == ORIGIN


def test_tokens_are_those_of_transformers(any_tokenizer):
    conversation = talk("user: hi 🙂", "assistant: señor ﬁ ☃", "user:  x ", "assistant: two\n")
    example = chat(any_tokenizer)(conversation)
    expected = any_tokenizer.apply_chat_template([dict(m) for m in conversation.messages], return_dict=False)
    assert example.input_ids == expected


def test_answers_like_the_question_are_told_apart(bpe):
    example = chat(bpe)(talk("user: same", "assistant: same", "user: same"))
    assert trained(bpe, example) == ["same<|im_end|>"]
    assert example.labels[-6:] == [IGNORED] * 6


def test_an_empty_answer_trains_its_end(bpe):
    assert trained(bpe, chat(bpe)(talk("user: hi", "assistant: "))) == ["<|im_end|>"]


@pytest.mark.parametrize("kind", ["metaspace", "prefix_space"])
def test_a_stripping_template_trains_what_is_left(kind):
    tokenizer = KINDS[kind](LLAMA2)
    example = chat(tokenizer)(
        talk("system: Be brief.", ("user", " one "), ("assistant", "  three four \n"), "user: two", "assistant: ☃")
    )
    names = tokenizer.convert_ids_to_tokens([label for label in example.labels if label != IGNORED])
    snowman = "".join(f"<0x{byte:02X}>" for byte in "☃".encode())
    assert "".join(names) == f"▁three▁four▁</s>▁{snowman}▁</s>"
    assert example.input_ids.count(tokenizer.bos_token_id) == 2


def test_generation_markers_give_the_labels_that_the_proof_gives(any_tokenizer):
    conversation = talk("system: x", "user: hi", "assistant: señor 🙂 two", "user: y", "assistant:  z\n", "user: ok")
    marked = with_template(any_tokenizer, CHATML_WITH_GENERATION)
    by_marks, by_proof = chat(marked)(conversation), chat(any_tokenizer)(conversation)
    assert by_marks == by_proof
    if not offsets_are_whole(marked):
        return  # Transformers looks the edges of a block up in trimmed offsets, and does not find whitespace there.
    theirs = marked.apply_chat_template(
        [dict(message) for message in conversation.messages], return_dict=True, return_assistant_tokens_mask=True
    )
    assert [int(label != IGNORED) for label in by_marks.labels] == theirs["assistant_masks"]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_the_space_in_which_a_header_ends_is_the_answers_in_rows_and_prompts(trim_offsets):
    header = "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = byte_level(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + header, trim_offsets=trim_offsets
    )
    build = chat(tokenizer)
    example = build(talk("user: what is", "assistant: the answer"))
    assert trained(tokenizer, example) == [" the answer"]
    assert "straddling tokens" not in example.counts
    prompt = build.write_prompt([{"role": "user", "content": "what is"}])
    assert example.input_ids[: len(prompt)] == prompt
    assert [label != IGNORED for label in example.labels[: len(prompt) + 1]] == [False] * len(prompt) + [True]


def test_without_a_generation_prompt_the_space_before_an_answer_is_the_models():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = byte_level(template)
    assert trained(tokenizer, chat(tokenizer)(talk("user: what is", "assistant: the answer"))) == [" the answer"]


def test_what_the_template_puts_between_generation_prompt_and_answer_is_trained():
    thought = "{{ '<think></think>' if message.role == 'assistant' }}"
    tokenizer = byte_level(CHATML.replace("{{ message.content }}", thought + "{{ message.content }}"))
    example = chat(tokenizer)(talk("user: hi", "assistant: yes"))
    assert trained(tokenizer, example) == ["<think></think>yes<|im_end|>"]


def test_an_end_of_turn_that_is_no_token_is_trained_as_text():
    tokenizer = byte_level(CHATML.replace("im_", "turn_"))
    example = chat(tokenizer)(talk("user: hi", "assistant: yes.", "user: more", "assistant: no"))
    assert trained(tokenizer, example) == ["yes.<|turn_end|>", "no<|turn_end|>"]


def test_the_token_that_starts_the_next_turn_is_not_an_end():
    template = "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' }}{{ m.content }}{% endfor %}"
    tokenizer = byte_level(template)
    example = chat(tokenizer)(talk("user: hi", "assistant: yes", "user: more", "assistant: no"))
    assert len(trained(tokenizer, example)) == 2
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in example.labels


def test_train_on_inputs_trains_everything(bpe):
    example = chat(bpe, train_on_inputs=True)(talk("user: hi"))
    assert example.labels == example.input_ids


def test_chat_template_kwargs_reach_the_template():
    tokenizer = byte_level(CHATML + "{% if mood %}{{ mood }}{% endif %}")
    example = chat(tokenizer, chat_template_kwargs={"mood": "glad"})(talk("user: hi", "assistant: yes"))
    assert tokenizer.decode(example.input_ids).endswith("glad")
    with pytest.raises(ConfigError, match="does not read 'moot' of 'chat_template_kwargs'"):
        chat(tokenizer, chat_template_kwargs={"moot": "glad"})


def test_tools_reach_the_template():
    tokenizer = byte_level("{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHATML)
    example = chat(tokenizer)(talk("user: hi", "assistant: yes", tools=({"name": "add"},)))
    assert tokenizer.decode(example.input_ids).startswith('{"name": "add"}<|im_start|>')


# chat_template: refusals


def test_a_tokenizer_without_a_template_is_refused_at_once():
    with pytest.raises(ConfigError, match="model.tokenizer.chat_template: the tokenizer has no chat template"):
        chat(byte_level(None))


def test_a_broken_chat_template_is_refused_at_once():
    with pytest.raises(ConfigError, match="the chat template is broken: line 2: "):
        chat(byte_level("{% for m in messages %}\n{{ m.content }"))


def test_what_the_template_says_against_a_row_is_passed_on():
    text = refusal(chat(byte_level(LLAMA2)), talk("user: a", "user: b", "assistant: c"))
    assert text == "the template refuses the conversation: roles must alternate"


def test_an_expression_that_fails_is_the_rows_problem():
    text = refusal(chat(byte_level("{{ messages[5].content + 'x' }}")), talk("user: a", "assistant: c"))
    assert text.startswith("the template refuses the conversation: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{{ m.content | upper }}", "message 1: the template leaves out or rewrites its content"),
        ("{{ m.content.split('|')[-1] }}", "message 2: the template leaves out or rewrites its content"),
        ("{{ m.content if m.role == 'user' }}", "message 2: the template leaves out or rewrites its content"),
        ("{{ m.content[:-1] }}", "message 1: the template leaves out or rewrites its content"),
        ("{{ m.content }}{{ m.content }}", "message 2: the template writes it more than once, or in several places"),
    ],
)
def test_content_that_is_rewritten_hidden_or_doubled_is_refused(content, reason):
    template = "{% for m in messages %}<|im_start|>" + content + "<|im_end|>{% endfor %}"
    text = refusal(chat(byte_level(template)), talk("user: a", "assistant: hidden|shown"))
    assert text.startswith(reason) and "its labels would be a guess" in text


def test_a_message_in_several_places_is_refused_only_where_it_is_trained():
    doubled = CHATML + "{{ messages[0].content }}"
    assert "several places" in refusal(chat(byte_level(doubled), roles_to_train=["user"]), talk("user: a"))
    assert chat(byte_level(doubled))(talk("user: a", "assistant: b")).counts == {}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"tool_calls": [call_of("f", x=1)]}, "message 2: the template leaves out or rewrites a call of a tool"),
        (
            {"reasoning_content": "c"},
            "no token to train on\n    message 2 is not trained: the template leaves out what",
        ),
    ],
)
def test_what_an_assistant_says_beside_content_is_not_silently_left_out(bpe, said, reason):
    assert refusal(chat(bpe), talk("user: a", answer("b", **said))).startswith(reason)


def test_tools_and_system_messages_are_not_silently_left_out(bpe):
    assert refusal(chat(bpe), talk("user: a", "assistant: b", tools=[{"name": "f"}])).startswith(
        "the template does not write the tools"
    )
    template = CHATML.replace("{{ message.content }}", "{{ message.content if message.role != 'system' }}")
    text = refusal(chat(byte_level(template)), talk("system: a", "user: b", "assistant: c"))
    assert text.startswith("message 1: the template leaves out or rewrites its content")
    assert "drop_system_message: true" in text


def test_a_conversation_with_nothing_to_train_on_is_refused(bpe):
    assert refusal(chat(bpe), talk("human: a", "gpt: b", "human: c")) == (
        "no message to train on\n    the roles are 'human', 'gpt'; trained is 'assistant' (roles_to_train)"
    )
    unmarked = byte_level(CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}")
    assert refusal(chat(unmarked), talk("user: a", "assistant: b")).startswith("message 2: the template marks")


@pytest.mark.parametrize("build", [chat, jinja])
def test_text_records_are_refused(bpe, build):
    assert "takes conversations, and the data format makes a Text" in refusal(build(bpe), Text("a", ORIGIN))


def test_content_that_is_not_text_is_refused(bpe):
    record = Conversation(({"role": "user", "content": ["a"]},), ORIGIN)
    assert refusal(chat(bpe), record) == "message 1 needs 'role' and 'content' as text"


@pytest.mark.parametrize("build", [chat, jinja])
def test_special_tokens_within_a_message_are_refused(bpe, build):
    text = refusal(build(bpe), talk("user: <|im_end|>", "assistant: b"))
    assert text.startswith("message 1 has the text '<|im_end|>', which the tokenizer makes a special token of")
    assert "allow_special_tokens: true" in text
    assert "message 2 has the text '</s>'" in refusal(build(bpe), talk("user: a", "assistant: b</s>"))


def test_special_tokens_within_a_message_may_be_allowed(bpe):
    example = chat(bpe, allow_special_tokens=True)(talk("user: <|im_end|>", "assistant: a<|im_end|>b</s>"))
    assert trained(bpe, example) == ["a<|im_end|>b</s><|im_end|>"]


def test_special_tokens_within_tools_and_calls_are_refused():
    template = "{{ tools | tojson }}" + CHATML.replace(
        "{{ message.content }}",
        "{{ message.content }}{% for c in message.tool_calls or [] %}{{ c | tojson }}{% endfor %}",
    )
    build = chat(byte_level(template))
    tools = [{"name": "</s>"}]
    assert "a tool's schema has the text '</s>'" in refusal(build, talk("user: a", "assistant: b", tools=tools))
    calls = answer("", tool_calls=[call_of("f", x="</s>")])
    assert "message 2 has the text '</s>'" in refusal(build, talk("user: a", calls, tools=[{"name": "f"}]))


@pytest.mark.parametrize(("content", "side"), [("a<|x|>", "rstrip"), ("<|x|>a", "lstrip")])
def test_special_tokens_that_take_in_whitespace_of_the_template_are_refused(content, side):
    tokenizer = byte_level("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("<|x|>", special=True, **{side: True})]})
    assert "message 1 has the text '<|x|>'" in refusal(chat(tokenizer), talk(("user", content), "assistant: b"))


@pytest.mark.parametrize("kind", ["metaspace", "prefix_space"])
def test_characters_that_the_tokenizer_does_not_know_are_no_special_tokens(kind):
    tokenizer = KINDS[kind]()
    assert trained(tokenizer, chat(tokenizer)(talk("user: ☃", "assistant: ☃")))


# jinja_messages


def test_the_end_token_follows_and_everything_is_trained(bpe):
    example = jinja(bpe)(talk("user: Hello\n", "assistant: world"))
    assert bpe.decode(example.input_ids) == "Hello\nworld</s>"
    assert example.labels == example.input_ids


@pytest.mark.parametrize("tail", ["{{ eos_token }}", "{{ eos_token }}{{ '\\n' }}"])
def test_the_end_token_is_not_doubled(bpe, tail):
    example = jinja(bpe, CONCATENATION + tail)(talk("user: a ", "assistant: b"))
    assert example.input_ids.count(bpe.eos_token_id) == 1


@pytest.mark.parametrize("kind", ["trimmed", "metaspace", "prefix_space"])
@pytest.mark.parametrize("template", [CONCATENATION, "{{ bos_token }}" + CONCATENATION])
def test_the_start_token_of_the_tokenizer_is_there_once(kind, template):
    tokenizer = KINDS[kind]()
    example = jinja(tokenizer, template)(talk("user: Hello ", "assistant: world"))
    written = tokenizer("Hello world")["input_ids"] + [tokenizer.eos_token_id]
    if "bos" in template:
        assert example.input_ids.count(tokenizer.bos_token_id) == 1 and example.input_ids[0] == written[0]
    else:
        assert example.input_ids == written


def test_a_tokenizer_that_adds_no_start_token_gets_none(bpe):
    assert bpe.bos_token_id not in jinja(bpe)(talk("user: a ", "assistant: b")).input_ids


def test_without_inputs_only_answers_and_the_end_are_trained(bpe):
    build = jinja(bpe, train_on_inputs=False)
    example = build(talk("user: ### Response:\n", "assistant: the answer"))
    assert trained(bpe, example) == ["the answer</s>"]
    assert trained(bpe, build(talk("user: a\n", "assistant: b", "user: \nc"))) == ["b"]


def test_without_inputs_the_whitespace_before_the_end_token_is_trained(bpe):
    build = jinja(bpe, "{% for m in messages %}{{ m.content }}{{ '\\n' }}{% endfor %}", train_on_inputs=False)
    assert trained(bpe, build(talk("user: a", "assistant: b"))) == ["b\n</s>"]


def test_writing_what_a_message_does_not_have_is_refused(bpe):
    text = refusal(jinja(bpe, "{% for m in messages %}{{ m.name }}{% endfor %}"), talk("user: a"))
    assert text == "the template refuses the conversation: 'dict object' has no attribute 'name'"
    optional = jinja(bpe, "{% for m in messages %}{% if m.name %}{{ m.name }}{% endif %}{{ m.content }}{% endfor %}")
    assert bpe.decode(optional(talk("user: a")).input_ids) == "a</s>"


def test_a_template_that_writes_nothing_is_refused(bpe):
    assert refusal(jinja(bpe, "{# nothing #}"), talk("user: a")).startswith("the template writes nothing")


def test_a_tokenizer_without_an_end_token_is_refused_at_once(bpe):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    with pytest.raises(ConfigError, match="model.tokenizer.eos_token: the tokenizer has no end token"):
        jinja(tokenizer)


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = metaspace()
    before = tokenizer.backend_tokenizer.to_str()
    chat(tokenizer)(talk("user: a", "assistant: b"))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_format_can_be_sent_to_another_process(bpe):
    conversation = talk("user: a", "assistant: b")
    for build in (chat(bpe), jinja(bpe), jinja(bpe, CHATML, train_on_inputs=False)):
        assert pickle.loads(pickle.dumps(build))(conversation) == build(conversation)


def test_the_number_of_renders_does_not_grow_with_the_conversation(bpe):
    build = chat(bpe)
    renders = []
    render = build.renderer.render
    build.renderer.render = lambda *parts: renders.append(1) or render(*parts)
    for count in (1, 2, 50):
        renders.clear()
        build(talk(*["user: a", "assistant: b"] * count))
        assert len(renders) == 1


TOOL = {"type": "function", "function": {"name": "f", "description": "adds", "parameters": {}}}


def test_a_tokenizer_with_a_template_for_tools_is_followed_in_both():
    with_tools = (
        "{{ tools | tojson }}\n{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = byte_level({"default": CHATML, "tool_use": with_tools})
    build = chat(tokenizer)
    said = "user: a", "assistant: b"
    assert trained(tokenizer, build(talk(*said))) == ["b<|im_end|>"]
    assert trained(tokenizer, build(talk(*said, tools=[TOOL]))) == ["b</s>"]
    assert trained(tokenizer, chat(tokenizer, train_on_eos="none")(talk(*said, tools=[TOOL]))) == ["b"]
    asked = [{"role": "user", "content": "a"}]
    assert tokenizer.decode(build.write_prompt(asked)).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(build.write_prompt(asked, [TOOL])).endswith("[user]a</s>[assistant]")
    assert [warning.split("'")[1] for warning in build.warnings] == ["<|im_end|>"], "tools' turns do end in </s>"


def test_a_template_for_tools_is_checked_as_what_it_does():
    """One that rewrites texts is not taken for one of those that only write."""
    rewrites = "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content | upper }}</s>{% endfor %}"
    tokenizer = byte_level({"default": CHATML, "tool_use": rewrites})
    build = chat(tokenizer)
    assert trained(tokenizer, build(talk("user: a", "assistant: b"))) == ["b<|im_end|>"]
    assert "leaves out or rewrites" in refusal(build, talk("user: a", "assistant: b", tools=[TOOL]))


def test_variables_may_be_of_one_of_two_templates():
    reads = CHATML.replace("{{ message.content }}", "{{ message.content }}{{ mood }}")
    tokenizer = byte_level({"default": CHATML, "tool_use": "{{ tools | tojson }}" + reads})
    build = chat(tokenizer, chat_template_kwargs={"mood": "!"})
    assert tokenizer.decode(build(talk("user: a", "assistant: b", tools=[TOOL])).input_ids).count("!") == 2
    with pytest.raises(ConfigError, match="does not read 'mod'"):
        chat(tokenizer, chat_template_kwargs={"mod": "!"})


def test_a_prompt_that_rows_do_not_have_before_answers_is_said():
    opened = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    assert any(
        "the model is asked for what it was not trained on" in said for said in chat(byte_level(opened)).warnings
    )
    assert not any("is asked for" in said for said in chat(byte_level(CHATML)).warnings)
