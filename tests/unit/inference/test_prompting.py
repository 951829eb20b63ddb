"""A prompt has the very tokens that stand before an answer in training."""

import pytest

from dumbo.data.dataset import TokenDataset
from dumbo.data.records import IGNORED, Conversation, Example, Origin
from dumbo.errors import DataError
from dumbo.inference.generate import TextGenerator
from dumbo.inference.prompting import PlainPromptWriter, PromptWriter, row_prompt, row_prompts, writer_for
from dumbo.plugin_finder import find_plugin
from tests import builders

HERE = Origin("rows.jsonl", 1)


def train_format(tokenizer, name="chat_template", **options):
    plugin = find_plugin("jinja_formatter", builders.ROOT).type()
    made = plugin.train_formats[name].model_validate({"type": name, **options})
    return plugin.build_train_format(made, tokenizer)


def question(text):
    return {"role": "user", "content": text}


def row(labels):
    return {"input_ids": list(range(10, 10 + len(labels))), "labels": labels}


@pytest.mark.parametrize(
    ("labels", "prompt", "reference"),
    [
        ([IGNORED, IGNORED, 12, 13], [10, 11], [12, 13]),
        ([IGNORED, IGNORED, 12, IGNORED], [10, 11], [12]),
        ([IGNORED, 11, IGNORED, IGNORED, 14], [10, 11, 12, 13], [14]),
    ],
)
def test_the_last_answer_of_a_row_is_cut_off(labels, prompt, reference):
    found = row_prompt(row(labels))
    assert (found.input_ids, found.reference) == (prompt, reference)


@pytest.mark.parametrize("labels", [[IGNORED, 11, 12], [IGNORED] * 4, [IGNORED]])
def test_a_row_without_a_question_has_no_prompt(labels):
    assert row_prompt(row(labels)) is None


def test_some_rows_are_chosen_and_always_the_same():
    examples = [Example([n, n, n], [IGNORED, IGNORED, n], HERE) for n in range(10)]
    dataset = TokenDataset.from_examples(examples)
    chosen = [prompt.reference[0] for prompt in row_prompts(dataset, 4)]
    assert len(set(chosen)) == 4 and chosen == sorted(chosen)
    assert [prompt.reference[0] for prompt in row_prompts(dataset, 4)] == chosen
    assert len(row_prompts(dataset)) == len(row_prompts(dataset, 99)) == 10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chat_template", {}),
        ("chat_template", {"train_on_inputs": False}),
        ("jinja_messages", {"template": "Q: {{ messages[0].content }}\nA: {{ messages[1].content }}"}),
        ("jinja_messages", {"template": "{% for m in messages %}{{ m.content }}{% endfor %}"}),
        (
            "jinja_messages",
            {"template": "{{ messages[0].content }} = {{ messages[1].content }}", "train_on_inputs": False},
        ),
    ],
)
def test_a_written_prompt_begins_the_row_of_training(tokenizer, name, options):
    encode = train_format(tokenizer, name, **options)
    prompt = PromptWriter(encode, tokenizer).write([question("Add 3 and 4.")])
    answer = {"role": "assistant", "content": "The sum is 7."}
    example = encode(Conversation((question("Add 3 and 4."), answer), HERE))
    assert example.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(example.input_ids[len(prompt) :]).lstrip().startswith("The sum is 7.")
    assert "Add 3 and 4." in tokenizer.decode(prompt)
    if options.get("train_on_inputs") is False:
        assert row_prompt({"input_ids": example.input_ids, "labels": example.labels}).input_ids == prompt


def test_the_chat_template_s_header_is_part_of_the_prompt(tokenizer):
    prompt = PromptWriter(train_format(tokenizer), tokenizer).write([question("Hi")])
    assert tokenizer.decode(prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_earlier_turns_are_written_too(tokenizer):
    turns = [question("Hi"), {"role": "assistant", "content": "Yes?"}, question("Bye")]
    text = tokenizer.decode(PromptWriter(train_format(tokenizer), tokenizer).write(turns))
    assert text.endswith("Yes?<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n")


def test_the_end_of_a_turn_ends_an_answer():
    tokenizer = builders.build_tokenizer(eos_token="<|endoftext|>")
    writer = PromptWriter(train_format(tokenizer), tokenizer)
    assert tokenizer.convert_ids_to_tokens(writer.end_ids()) in (["<|im_end|>"], ["<|endoftext|>"])


def test_a_format_that_knows_no_conversations_takes_plain_text(tokenizer):
    def of_text(record):
        return Example(tokenizer(record.text)["input_ids"], [], record.origin)

    writer = writer_for(of_text, tokenizer)
    assert isinstance(writer, PlainPromptWriter)
    assert tokenizer.decode(writer.write([question("once upon")])) == "once upon"
    with pytest.raises(DataError, match="it takes one text, not a conversation"):
        writer.write([question("a"), question("b")])


def writer_of(tokenizer, template, **options):
    return writer_for(train_format(tokenizer, "jinja_messages", template=template, **options), tokenizer)


def system(text):
    return {"role": "system", "content": text}


def test_a_format_that_wants_a_system_message_is_not_passed_by(tokenizer):
    template = "{{ messages[0].content }}: {{ messages[1].content }} = {{ messages[2].content }}<|im_end|>"
    writer = writer_of(tokenizer, template)
    assert tokenizer.decode(writer.write([system("Add"), question("3 and 4")])) == "Add: 3 and 4 ="
    with pytest.raises(DataError, match=r"the prompt:1: the template refuses the conversation: .* no element 2"):
        writer.write([question("3 and 4")])
    assert tokenizer.convert_ids_to_tokens(writer.end_ids()) == ["<|im_end|>"]


def test_a_format_of_a_user_s_own_may_fail_in_any_way(tokenizer):
    def of_three(record):
        return Example(tokenizer(record.messages[2]["content"])["input_ids"], [], record.origin)

    writer = writer_for(of_three, tokenizer)
    with pytest.raises(DataError, match="the train format cannot write these messages: IndexError: tuple index"):
        writer.write([question("Hi")])


@pytest.mark.parametrize(
    ("template", "messages", "left_out"),
    [
        ("{{ messages[0].content }} = {{ messages[1].content }}", [system("S"), question("Hi")], "the answer"),
        ("{{ messages[0].content }} = {{ messages[-1].content }}", [system("S"), question("Hi")], "the last of"),
        ("{{ messages[-1].content }}", [question("Hi")], "the last of"),
    ],
)
def test_messages_that_a_template_leaves_out_are_no_prompt(tokenizer, template, messages, left_out):
    with pytest.raises(DataError, match=f"the run's train format leaves out {left_out}"):
        writer_of(tokenizer, template).write(messages)


@pytest.mark.parametrize("text", ["A", "7", " A ", ""])
def test_a_question_that_looks_like_a_stand_in_is_one_all_the_same(tokenizer, text):
    writer = writer_of(tokenizer, "{{ messages[0].content | trim }} = {{ messages[1].content }}")
    assert tokenizer.decode(writer.write([question(text)])) == f"{text.strip()} ="


def test_whether_a_system_message_reaches_the_prompt_is_known(tokenizer):
    def reads_system(template):
        return TextGenerator(None, tokenizer, writer_of(tokenizer, template)).reads_system("Be kind.")

    assert reads_system("{% for m in messages %}{{ m.content }}{% endfor %}")
    of_users = "{% for m in messages if m.role != 'system' %}{{ m.content }} {% endfor %}"
    assert not reads_system(of_users)
    with pytest.raises(DataError, match="refuses"):
        reads_system(
            "{{ raise_exception('no system') if messages[0].role == 'system' }}{{ messages[0].content }}"
            "{{ messages[1].content }}"
        )


def test_turns_are_kept_behind_the_system_message_that_a_format_wants(tokenizer):
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('?') }}{% endif %}"
    template += "{% for m in messages %}{{ m.content }} {% endfor %}"
    generator = TextGenerator(None, tokenizer, writer_of(tokenizer, template))
    assert generator.keeps_turns("Be kind.") and not generator.keeps_turns()
