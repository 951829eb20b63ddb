"""The tokenizer_trainer plugin learns a tokenizer from the run's rows: the same each time, and no text is lost."""

from types import SimpleNamespace
from typing import get_args

import pytest
from transformers import AutoTokenizer

from dumbo.cli.main import main
from dumbo.config.schema import DatasetEntry, FormatOptions, RunConfig
from dumbo.data.records import (
    Conversation,
    Origin,
    Preference,
    Prompt,
    Rating,
    Record,
    Segments,
    Steps,
    Text,
    Tokens,
    texts_of,
)
from dumbo.errors import ConfigError, RunError
from dumbo.plugins.tokenizer_trainer.plugin import TokenizerTrainerOptions, TokenizerTrainerPlugin
from tests import builders
from tests.plugins.transformers_runs import ChatFormat
from tests.run.whole_runs import SHIPPED, losses_of, run_here

ORIGIN = Origin("rows.jsonl", 1)
TEXTS = tuple(Text(line, ORIGIN) for line in (builders.ROOT / "LICENSE").read_text().splitlines())
CHATS = tuple(
    Conversation(
        (
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"], "name": None},
        ),
        ORIGIN,
    )
    for row in builders.alpaca_rows(40)
)
STRANGE = (
    "",
    " ",
    "  two  spaces ",
    "\r\n\t\0\x7f",
    "naïve – “quotes”",
    "漢字かな",
    "👩‍👩‍👧🏽",
    "e\u0301",
    "<|pa",
    "2024-01-31 ",
)


def trained(records, options=None, train_format=FormatOptions, **section):
    """The tokenizer, and what was said."""
    plugin = TokenizerTrainerPlugin()
    plugin.options = TokenizerTrainerOptions(**(options or {}))
    entry = DatasetEntry(type="r", data_format=FormatOptions(type="d"), train_format=train_format(type="t"))
    config = RunConfig(model={"tokenizer": section}, datasets=(entry,), plugins=("tokenizer_trainer",))
    said = []
    plugin.services = SimpleNamespace(records=lambda: iter(records), say=said.append)
    plugin.check(config)
    return plugin.load_tokenizer(config, model=None), said


def test_every_text_comes_back_and_the_folder_loads(tmp_path):
    tokenizer, said = trained(TEXTS, {"vocab_size": 500})
    assert len(tokenizer) == 500
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token, loaded.eos_token, loaded.bos_token, loaded.unk_token) == (
        "<|pad|>",
        "<|endoftext|>",
        None,
        None,
    )
    assert loaded.chat_template is None
    for text in (*STRANGE, *(record.text for record in TEXTS)):
        ids = loaded(text).input_ids
        assert ids == tokenizer(text).input_ids
        assert loaded.decode(ids) == text
    assert loaded.decode(loaded("a<|endoftext|>").input_ids, skip_special_tokens=True) == "a"
    assert len(said) == 1
    assert said[0].startswith(f"tokenizer: trained on {sum(bool(t.text) for t in TEXTS)} texts: 500 tokens, ")


def test_the_same_texts_give_the_same_tokenizer():
    once, again = (trained(TEXTS, {"vocab_size": 700})[0] for _ in range(2))
    assert once.get_vocab() == again.get_vocab()
    assert once.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()


def test_learned_tokens_make_texts_shorter():
    plain, _ = trained(TEXTS, {"vocab_size": 258})
    learned, _ = trained(TEXTS, {"vocab_size": 1000})
    text = " ".join(record.text for record in TEXTS)
    assert len(plain(text).input_ids) == len(text.encode())
    assert len(learned(text).input_ids) < len(text) / 2


def test_digits_stand_alone_only_where_asked_for():
    records = [Text(f"the year 2024 and {n}", ORIGIN) for n in range(50)]
    together, _ = trained(records, {"vocab_size": 300})
    apart, _ = trained(records, {"vocab_size": 300, "split_digits": True})
    assert len(together(" 2024").input_ids) == 1
    assert [apart.decode([token]) for token in apart("x2024").input_ids] == ["x", "2", "0", "2", "4"]
    assert apart.decode(apart(" 2024, 7").input_ids) == " 2024, 7"


def test_too_few_texts_are_told_and_rare_pairs_are_not_learned():
    often, said = trained([Text("abc", ORIGIN)] * 3, {"vocab_size": 400, "min_frequency": 3})
    assert len(often) == 260  # 256 bytes, two special tokens, and two pairs
    assert said[1] == (
        "tokenizer: 260 of the 400 tokens of vocab_size: the texts have no more pairs that are seen 3 times"
    )
    assert len(trained([Text("abc", ORIGIN)] * 3, {"vocab_size": 400, "min_frequency": 4})[0]) == 258


def test_the_tokens_of_the_configuration_are_there():
    tokenizer, _ = trained(
        TEXTS,
        {"vocab_size": 400},
        pad_token="[PAD]",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        special_tokens=("<call>",),
        tokens=("Dumbo", "zzz"),
    )
    assert len(tokenizer) == 400
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("[PAD]", "</s>", "<s>", "<unk>", "<call>")]
    assert ids == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_token, tokenizer.unk_token, tokenizer.pad_token_id) == ("<s>", "<unk>", 0)
    ids = tokenizer("<call>flyDumbo</s>").input_ids
    assert tokenizer.convert_tokens_to_ids("Dumbo") in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "flyDumbo"


def test_chatml_is_the_template_where_a_format_needs_one(tmp_path):
    tokenizer, _ = trained(CHATS, {"vocab_size": 320}, ChatFormat)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token == "<|im_end|>"
    text = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = loaded(text).input_ids
    assert ids.count(loaded.convert_tokens_to_ids("<|im_start|>")) == 2
    assert loaded.decode(ids, skip_special_tokens=True) == "user\nHi\nassistant\n"


def test_what_a_template_writes_is_learned_too():
    template = "{% for m in messages %}QUESTIONNAIRE {{ m.content }}{% endfor %}"
    with_template, _ = trained(CHATS, {"vocab_size": 400}, ChatFormat, chat_template=template)
    without, _ = trained(CHATS, {"vocab_size": 400}, chat_template=template)
    assert with_template.chat_template == without.chat_template == template
    assert len(with_template("QUESTIONNAIRE").input_ids) < len(without("QUESTIONNAIRE").input_ids)


def test_a_record_that_the_template_refuses_still_teaches_its_texts():
    refusing = "{{ raise_exception('no') }}"
    tokenizer, _ = trained(CHATS, {"vocab_size": 300}, ChatFormat, chat_template=refusing)
    assert len(tokenizer(" sum").input_ids) < 4


def test_every_kind_of_record_teaches_its_texts():
    said = ({"role": "user", "content": "ask"},)
    records = (
        (Text("text", ORIGIN), ["text"]),
        (Segments((("one", True), ("two", False)), ORIGIN), ["one", "two"]),
        (Steps("prompt", ("first", "second"), (1, 0), ORIGIN), ["prompt", "first", "second"]),
        (Tokens((1, 2), (1, 2), ORIGIN), []),
        (Prompt(said, ORIGIN), ["ask"]),
        (Rating(said, ({"role": "assistant", "content": "answer"},), True, ORIGIN), ["ask", "answer"]),
        (Preference(said, said, ({"role": "assistant", "content": None},), ORIGIN), ["ask", "ask"]),
        (Conversation(said, ORIGIN), ["ask"]),
    )
    assert {type(record) for record, _ in records} == set(get_args(Record))
    for record, texts in records:
        assert list(texts_of(record)) == texts
    solutions = [Steps(f"{line.text}?", (line.text,), (1,), ORIGIN) for line in TEXTS]
    assert len(trained(solutions, {"vocab_size": 500})[0]) == 500


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(RunError, match="no text to learn from"):
        trained([Text("", ORIGIN)])


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ({"path": "x"}, {}, "model.tokenizer.path: names a tokenizer, and 'tokenizer_trainer' makes a new one"),
        ({"eos_token": ""}, {}, "model.tokenizer.eos_token: a token cannot be empty"),
        ({"tokens": ("a", "a")}, {}, "model.tokenizer.tokens: 'a' is listed 2 times"),
        ({"tokens": ("a",), "bos_token": "a"}, {}, "model.tokenizer.tokens: 'a' is an ordinary token here"),
        ({"chat_template": "no.jinja"}, {}, "model.tokenizer.chat_template: the file 'no.jinja' cannot be read"),
        ({"chat_template": "plain"}, {}, "model.tokenizer.chat_template: is neither a named template, nor"),
        ({"chat_template": "{% for %}"}, {}, "model.tokenizer.chat_template: the template is not valid Jinja: line 1"),
        (
            {"tokens": ("a",), "bos_token": "b"},
            {"vocab_size": 259},
            "model.tokenizer_trainer.vocab_size: must be at least 261: 256 bytes and 5 special and added tokens",
        ),
    ],
)
def test_mistakes_are_told_with_their_key(section, options, message):
    with pytest.raises(ConfigError) as caught:
        trained(CHATS, options, ChatFormat, **section)
    assert str(caught.value).startswith(message)


FROM_SCRATCH = {
    "model": {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
        },
        "tokenizer_trainer": {"vocab_size": 300},
    },
    "datasets.0.train_format": "chat_template",
    "plugins": [*SHIPPED, "tokenizer_trainer"],
}


def test_a_run_from_scratch_in_which_a_held_out_source_teaches_nothing(tmp_path, rows_file, capsys):
    entry = builders.run_config("none", rows_file, FROM_SCRATCH)["datasets"][0]
    other = builders.write_rows(tmp_path / "other.jsonl", builders.alpaca_rows(5))
    sources = [entry, {**entry, "path": str(other), "held_out": True}]
    folder = run_here(builders.write_config(tmp_path, "none", rows_file, FROM_SCRATCH | {"datasets": sources}))
    said = capsys.readouterr().out
    assert "tokenizer: trained on 12 texts: 300 tokens, " in said
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert len(tokenizer) == 300
    assert tokenizer.chat_template.count("<|im_start|>") == 2
    assert losses_of(folder)[0] < 7  # ln 300 is 5.7


def test_pretrained_weights_are_refused(tmp_path, model_folder, rows_file, capsys):
    changes = {"model.tokenizer": {}, "plugins": [*SHIPPED, "tokenizer_trainer"]}
    assert main(["check", str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 2
    error = capsys.readouterr().err
    assert ":2:3: model.base_model: its weights belong to its own tokenizer, and mean nothing with a new one\n" in error
    assert "write model.architecture: {model_type: llama, ...} instead" in error
