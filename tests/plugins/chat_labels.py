"""Tokenizers of four kinds, and the train formats of `jinja_formatter` built in a line, for tests of labels."""

from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dumbo.data.records import IGNORED, Conversation, Origin
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.plugin import JinjaFormatterPlugin
from dumbo.plugins.jinja_formatter.train_options import ChatTemplateOptions, JinjaMessagesOptions
from tests.builders import CHATML

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


@cache
def tokenizer_of(kind: str, *special_tokens: str):
    """One tokenizer of each kind, for tests that leave it as it is; `special_tokens` are added to it."""
    tokenizer = KINDS[kind]()
    if special_tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": list(special_tokens)})
    return tokenizer


def talk(*turns, tools=(), training=()):
    """`talk("user: hi", ...)`, pairs of role and content, or whole messages."""
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            role, content = turn.split(": ", 1) if isinstance(turn, str) else turn
            turn = {"role": role, "content": content}
        messages.append(turn)
    return Conversation(tuple(messages), ORIGIN, tuple(tools), tuple(training))


def answer(content="", **more):
    """An assistant's message with more than its content."""
    return {"role": "assistant", "content": content, **more}


def call_of(name, **arguments):
    """A call of a tool, as templates take it."""
    return {"type": "function", "id": "abcdefghi", "function": {"name": name, "arguments": arguments}}


def chat(tokenizer, **options):
    return JinjaFormatterPlugin().build_train_format(ChatTemplateOptions(type="chat_template", **options), tokenizer)


def jinja(tokenizer, template=CONCATENATION, **options):
    options = JinjaMessagesOptions(type="jinja_messages", template=template, **options)
    return JinjaFormatterPlugin().build_train_format(options, tokenizer)


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


def refusal(build, record) -> str:
    """What the row is refused for, without its place."""
    with pytest.raises(DataError) as error:
        build(record)
    text = str(error.value)
    assert text.startswith("chats.jsonl:3: ")
    return text.removeprefix("chats.jsonl:3: ")
