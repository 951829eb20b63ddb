"""`jinja_formatter`: tokens and labels from conversations, against tokenizers of four kinds."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dumbo.data.records import IGNORED, Conversation, Origin, Text
from dumbo.errors import ConfigError, DataError
from dumbo.plugins.jinja_formatter.plugin import ChatTemplateOptions, JinjaFormatterPlugin, JinjaMessagesOptions
from tests.builders import CHATML, CHATML_WITH_GENERATION

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world! How are you?\n",
    "ASSISTANT: the answer is ten, and the user asked: what is the answer? [INST] one two [/INST] three four\n",
    "Ein schöner Tag für señor Müller 🙂 — naïve café\n\n",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
ORIGIN = Origin("chats.jsonl", 3)
CONCATENATION = "{% for message in messages %}{{ message.content }}{% endfor %}"
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message.content).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def start_token():
    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


def finish(backend, alphabet, chat_template):
    """Train and wrap; a tokenizer without an alphabet of bytes has tokens for them."""
    byte_tokens = [] if alphabet else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL + byte_tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_level(chat_template=CHATML, *, trim_offsets=False):
    """As GPT-2, Qwen; with `trim_offsets` as Llama 3, whose offsets leave out the space of ` word`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if trim_offsets:
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), start_token()])
    return finish(backend, pre_tokenizers.ByteLevel.alphabet(), chat_template)


def metaspace(chat_template=CHATML):
    """As Mistral: `▁` for spaces and before the first word, a start token, unknown characters as bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.post_processor = start_token()
    return finish(backend, [], chat_template)


def prefix_space(chat_template=CHATML):
    """As the first Llama: its normalizer puts `▁` before the text after each special token."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = start_token()
    return finish(backend, [], chat_template)


KINDS = {
    "byte_level": byte_level,
    "trimmed": lambda template=CHATML: byte_level(template, trim_offsets=True),
    "metaspace": metaspace,
    "prefix_space": prefix_space,
}


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def bpe():
    return byte_level()


def talk(*turns, tools=()):
    """`talk("user: hi", ...)`, or pairs of role and content."""
    pairs = [turn.split(": ", 1) if isinstance(turn, str) else turn for turn in turns]
    return Conversation(tuple({"role": role, "content": content} for role, content in pairs), ORIGIN, tools)


def chat(tokenizer, **options):
    return JinjaFormatterPlugin().build_train_format(ChatTemplateOptions(type="chat_template", **options), tokenizer)


def jinja(tokenizer, template=CONCATENATION, **options):
    options = JinjaMessagesOptions(type="jinja_messages", template=template, **options)
    return JinjaFormatterPlugin().build_train_format(options, tokenizer)


def with_template(tokenizer, template):
    """The same tokenizer with another chat template."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    copy.chat_template = template
    return copy


def trained(tokenizer, example) -> list[str]:
    """The runs of trained tokens, as text."""
    runs, current = [], []
    for token, label in [*zip(example.input_ids, example.labels, strict=True), (0, IGNORED)]:
        assert label in (token, IGNORED)
        if label != IGNORED:
            current.append(token)
        elif current:
            runs.append(tokenizer.decode(current, clean_up_tokenization_spaces=False))
            current = []
    return runs


def offsets_are_whole(tokenizer) -> bool:
    """Whether the tokenizer's own offsets include the space of ` the`."""
    offsets = tokenizer("a the", return_offsets_mapping=True)["offset_mapping"]
    return any(start <= 1 < end for start, end in offsets)


def refusal(build, record) -> str:
    with pytest.raises(DataError) as error:
        build(record)
    text = str(error.value)
    assert text.startswith("chats.jsonl:3: ")
    return text.removeprefix("chats.jsonl:3: ")


# chat_template: golden labels


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


def test_offsets_without_their_space_hide_no_straddling_token():
    header = "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = byte_level(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + header, trim_offsets=True
    )
    example = chat(tokenizer)(talk("user: what is", "assistant: the answer"))
    # ` the` reaches into the header, which ends in its space at inference: the model never has to write it.
    assert trained(tokenizer, example) == [" answer"]


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
        ("{{ m.content | upper }}", "message 2: the template writes its content nowhere"),
        ("{{ m.content.split('|')[-1] }}", "message 2: the template rewrites its content"),
        ("{{ m.content if m.role == 'user' }}", "message 2: the template writes its content nowhere"),
        ("{{ m.content }}{{ m.content }}", "message 2: the template writes its content 2 times"),
    ],
)
def test_content_that_is_rewritten_or_hidden_is_refused(content, reason):
    template = "{% for m in messages %}<|im_start|>" + content + "<|im_end|>{% endfor %}"
    if "upper" in content:  # A sentinel has no letters, so upper case shows only in the real text.
        reason = "message 1: the template rewrites its content"
    assert refusal(chat(byte_level(template)), talk("user: a", "assistant: hidden|shown")).startswith(reason)


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content"])
def test_what_an_assistant_says_beside_content_is_not_silently_left_out(bpe, key):
    conversation = Conversation(
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "c"}), ORIGIN
    )
    assert refusal(chat(bpe), conversation).startswith("message 2: only the place of 'content' can be proven")


def test_a_conversation_with_nothing_to_train_on_is_refused(bpe):
    assert refusal(chat(bpe), talk("human: a", "gpt: b", "human: c")) == (
        "no assistant message, so there is nothing to train on\n"
        "    the roles are 'human', 'gpt'; what is trained has the role 'assistant'"
    )
    unmarked = byte_level(CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}")
    assert refusal(chat(unmarked), talk("user: a", "assistant: b")).startswith("no token to train on")


@pytest.mark.parametrize("build", [chat, jinja])
def test_text_records_are_refused(bpe, build):
    assert "takes conversations, and the data format makes a Text" in refusal(build(bpe), Text("a", ORIGIN))


def test_content_that_is_not_text_is_refused(bpe):
    record = Conversation(({"role": "user", "content": ["a"]},), ORIGIN)
    assert refusal(chat(bpe), record) == "message 1 needs 'role' and 'content' as text"


def test_special_tokens_within_content_do_not_break_it(bpe):
    example = chat(bpe)(talk("user: <|im_end|>", "assistant: a<|im_end|>b</s>"))
    assert trained(bpe, example) == ["a<|im_end|>b</s><|im_end|>"]


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


# Any conversation, against a reference that knows the template and counts bytes


def token_bytes(tokenizer, token) -> bytes:
    """The bytes of the text that a token stands for, from its name alone."""
    name = tokenizer.convert_ids_to_tokens(token)
    if name in SPECIAL:
        return name.encode()
    if "▁" in tokenizer.get_vocab():
        is_byte = name.startswith("<0x") and len(name) == 6
        return bytes([int(name[3:5], 16)]) if is_byte else name.replace("▁", " ").encode()
    back = {char: byte for byte, char in bytes_to_unicode().items()}
    return bytes(back[char] for char in name)


def reference_labels(tokenizer, segments, input_ids) -> list[int]:
    """Labels by walking through the bytes of `segments`, pairs of a text and whether it is trained."""
    flags = [flag for text, flag in segments for _ in text.encode()]
    text = "".join(text for text, _ in segments).encode()
    labels, position = [], 0
    for token in input_ids:
        written = token_bytes(tokenizer, token)
        # A tokenizer may write a space of its own before the first word.
        length = len(written) if text.startswith(written, position) else len(written) - 1
        assert text.startswith(written[len(written) - length :], position)
        labels.append(token if all(flags[position : position + length]) else IGNORED)
        position += length
    assert position == len(text)
    return labels


CONTENT = st.text(alphabet="ab .\n\té🙂ﬁñ'", max_size=8)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), CONTENT), max_size=5).map(
    lambda turns: [*turns, ("assistant", "b")]
)


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("kind", ["byte_level", "trimmed", "metaspace"])
def test_any_conversation_has_the_labels_of_the_reference(kind, strips):
    content = "{{ message.content.strip() }}" if strips else "{{ message.content }}"
    tokenizer = KINDS[kind](CHATML.replace("{{ message.content }}", content))
    build = chat(tokenizer)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(TURNS)
    def compare(turns):
        segments = []
        for role, text in turns:
            answers = role == "assistant"
            segments += [(f"<|im_start|>{role}\n", False), (text.strip() if strips else text, answers)]
            segments += [("<|im_end|>", answers), ("\n", False)]
        example = build(talk(*turns))
        assert example.input_ids == tokenizer("".join(t for t, _ in segments), add_special_tokens=False)["input_ids"]
        assert example.labels == reference_labels(tokenizer, segments, example.input_ids)

    compare()


def test_a_format_can_be_sent_to_another_process(bpe):
    conversation = talk("user: a", "assistant: b")
    for build in (chat(bpe), jinja(bpe), jinja(bpe, CHATML, train_on_inputs=False)):
        assert pickle.loads(pickle.dumps(build))(conversation) == build(conversation)


def test_the_number_of_renders_does_not_grow_with_the_conversation(bpe):
    build = chat(bpe)
    renders = []
    render = build.renderer.render
    build.renderer.render = lambda *parts: renders.append(1) or render(*parts)
    build(talk(*["user: a", "assistant: b"] * 50))
    assert len(renders) == 2
