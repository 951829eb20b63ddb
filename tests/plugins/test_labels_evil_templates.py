"""Templates that were written to get a wrong label out of the train formats: an error, or the right ones."""

import pytest

from dumbo.data.records import MessageTraining
from tests.plugins.chat_labels import answer, byte_level, call_of, chat, jinja, refusal, talk, tokenizer_of, trained

LOOP = "{%% for m in messages %%}%s{%% endfor %%}"


def test_escaping_is_not_missed():
    build = chat(byte_level(LOOP % "{{ m.role }}: {{ m.content + ('\n'|e) }}</s>"))
    assert "the template" in refusal(build, talk("user: q", "assistant: a < b"))


def test_one_json_of_two_messages_labels_neither():
    template = "{{ {'output': messages[1].content, 'input': messages[0].content} | tojson }}</s>"
    for build in (chat(byte_level(template)), jinja(tokenizer_of("byte_level"), template, train_on_inputs=False)):
        assert "the template" in refusal(build, talk("user: secret", "assistant: y"))


def test_a_call_that_is_named_again_as_json_ends_where_it_ends():
    template = LOOP % (
        "<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'tool' %}{{ messages[loop.index0 - 1].tool_calls[0].function.name | tojson }}: {% endif %}"
        "{{ m.content }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n"
    )
    conversation = talk("user: 2 + 3?", answer(tool_calls=[call_of("f", a=2)]), "tool: result")
    tokenizer = byte_level(template)
    assert trained(tokenizer, chat(tokenizer)(conversation)) == ['{"name": "f", "arguments": {"a": 2}}<|im_end|>']


def test_an_answer_that_is_written_twice_as_json_is_refused():
    template = LOOP % "{{ m.role }}: {{ m.content | tojson }}</s>\n" + "RECAP {{ messages[-1].content | tojson }}"
    assert "more than once" in refusal(chat(byte_level(template)), talk("user: hi", "assistant: y"))


def test_an_end_behind_another_message_is_not_this_ones():
    tokenizer = tokenizer_of("byte_level")
    written = "{{ m.role }}: {{ m.content | upper if m.role == 'user' else m.content }}\n"
    build = jinja(tokenizer, LOOP % written + "{{ eos_token }}", train_on_inputs=False)
    assert trained(tokenizer, build(talk("user: hi", "assistant: y", "user: secret question"))) == [" y"]


def test_what_is_not_to_be_trained_must_be_told_from_the_whole_text():
    silent = (MessageTraining(train=False), MessageTraining())
    build = jinja(tokenizer_of("byte_level"), LOOP % "{{ m.content | upper }}\n")
    assert "what is not to be trained" in refusal(build, talk("user: secret", "assistant: y", training=silent))


def test_an_end_that_takes_in_the_line_end_behind_it_is_trained():
    from tokenizers import AddedToken

    tokenizer = byte_level(LOOP % "<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n")
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]})
    labels = chat(tokenizer)(talk("user: hi", "assistant: yes")).labels
    assert labels[-1] == tokenizer.convert_tokens_to_ids("<|end|>")


def test_what_stands_between_marks_is_not_trained():
    half = "{% generation %}{{ m.content[:2] }}{% endgeneration %}[SEP]{% generation %}{{ m.content[2:] }}"
    template = LOOP % (
        "{{ m.role }}\n{% if m.role == 'assistant' %}" + half + "{% endgeneration %}{% else %}"
        "{{ m.content }}{% endif %}\n"
    )
    tokenizer = byte_level(template)
    assert "".join(trained(tokenizer, chat(tokenizer)(talk("user: hi", "assistant: abcd")))) == "abcd"


def test_a_header_that_stands_ready_is_no_end():
    tokenizer = byte_level(LOOP % "{{ '<|im_start|>' if m.role == 'user' }}{{ m.content }}\n" + "<|im_end|>")
    ready = byte_level(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}\n<|im_start|>\n{% else %}{{ m.content }}\n"
        "{% endif %}{% endfor %}<|im_start|>\n"
    )
    assert chat(tokenizer).frames[0].end_of_turn == ("<|im_end|>",)
    assert "<|im_start|>" not in chat(ready).frames[0].end_of_turn


@pytest.mark.parametrize("kind", ["metaspace", "trimmed"])
def test_a_prompt_has_the_start_token_that_rows_have(kind):
    tokenizer = tokenizer_of(kind)
    template = LOOP % "{{ m.role }}: {{ m.content }}\n" + "{% if add_generation_prompt %}assistant:{% endif %}"
    build = jinja(tokenizer, template, train_on_inputs=False)
    conversation = talk("user: hi", "assistant: yes")
    prompt = build.write_prompt(conversation.messages[:1])
    assert prompt[0] == tokenizer.bos_token_id == build(conversation).input_ids[0]
    assert build(conversation).input_ids[: len(prompt)] == prompt
    assert build.write_prompt([]) is None
