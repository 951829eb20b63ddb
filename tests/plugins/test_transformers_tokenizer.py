"""The transformers plugin sets and adds tokens, finds a padding token, and never changes more than it was asked to."""

import json

import pytest

from dumbo.errors import ConfigError, RunError
from dumbo.plugins.transformers.padding import set_pad_token
from tests import builders
from tests.plugins.transformers_runs import ChatFormat, new_plugin, run_config


@pytest.fixture
def plugin():
    return new_plugin()


@pytest.fixture
def folder(tmp_path):
    tokenizer = builders.build_tokenizer(pad_token=None, eos_token=None, chat_template=None)
    tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "plain"


def load(plugin, folder, model=None, train_format=None, **tokenizer):
    options = {"train_format": train_format} if train_format else {}
    plugin.config = run_config(base_model=str(folder), tokenizer=tokenizer, **options)
    return plugin.load_tokenizer(plugin.config, model=model)


def test_tokens_in_the_vocabulary_keep_their_ids(plugin, folder):
    before = builders.build_tokenizer().get_vocab()
    tokenizer = load(plugin, folder, pad_token="<|pad|>", eos_token="<|im_end|>", special_tokens=["<|im_start|>"])
    assert tokenizer.get_vocab() == before
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|im_end|>")
    assert plugin.said == []
    ids = tokenizer("<|im_start|>Copyright<|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Copyright"


def test_new_tokens_are_added_once_and_told(plugin, folder):
    tokenizer = load(
        plugin,
        folder,
        pad_token="<|pad|>",
        eos_token="<eot>",
        unk_token="<unk>",
        special_tokens=["<call>"],
        tokens=["Dumbo"],
    )
    size = len(builders.build_tokenizer())
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("<eot>", "<unk>", "<call>", "Dumbo")] == [
        *range(size, size + 4)
    ]
    assert plugin.said == [
        "tokenizer: 4 added, which the model has yet to learn: "
        f"'<eot>' ({size}), '<unk>' ({size + 1}), '<call>' ({size + 2}), 'Dumbo' ({size + 3})"
    ]
    ids = tokenizer("flyDumbo<call>").input_ids
    assert {size + 2, size + 3} <= set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "flyDumbo"


def test_the_special_tokens_of_the_tokenizer_stay_special(plugin, tmp_path):
    tokenizer = builders.build_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(tmp_path)
    loaded = load(plugin, tmp_path, special_tokens=["<new>"])
    assert {"<|im_start|>", "<new>"} <= set(loaded.all_special_tokens)
    loaded.save_pretrained(tmp_path / "saved")
    again = load(plugin, tmp_path / "saved")
    assert {"<|im_start|>", "<new>"} <= set(again.all_special_tokens) and again.get_vocab() == loaded.get_vocab()


def test_eos_reaches_the_configurations_of_the_model(plugin, folder):
    model = builders.build_tiny_model(600, eos_token_id=1)
    tokenizer = load(plugin, folder, model, eos_token="<|im_end|>", pad_token="<|pad|>")
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_frame_that_stays_old_is_told(plugin, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = builders.build_tokenizer(bos_token="<|im_start|>")
    first = ("<|im_start|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[first])
    tokenizer.save_pretrained(tmp_path)
    load(plugin, tmp_path, bos_token="<|endoftext|>")
    assert plugin.said == [
        "tokenizer: plain texts are still framed with '<|im_start|>', not with the new bos_token '<|endoftext|>'"
    ]


def test_the_template_comes_from_text_or_file(plugin, folder, tmp_path):
    (tmp_path / "chat.jinja").write_text(builders.CHATML)
    for value in (builders.CHATML, str(tmp_path / "chat.jinja")):
        tokenizer = load(plugin, folder, chat_template=value)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
            "<|im_start|>user\nhi<|im_end|>\n"
        )


def test_a_missing_template_is_found_after_loading_too(plugin, folder):
    with pytest.raises(ConfigError, match=r"^datasets\.0\.train_format: needs a chat template"):
        load(plugin, folder, train_format=ChatFormat)


def test_a_broken_tokenizer_is_one_line(plugin, folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(RunError) as caught:
        load(plugin, folder)
    assert str(caught.value).startswith(f"model.base_model: '{folder}' cannot be loaded: ")
    assert len(str(caught.value).splitlines()) == 1


def test_another_tokenizer_than_the_models(plugin, folder, tmp_path):
    assert len(load(plugin, "owner/name", path=str(folder))) == len(builders.build_tokenizer())
    with pytest.raises(ConfigError, match=r"^model\.tokenizer\.path: .* holds no tokenizer"):
        (tmp_path / "empty").mkdir()
        load(plugin, folder, path=str(tmp_path / "empty"))


def bare(rename=None, eos_token=None):
    """A tokenizer without padding token; special tokens of its vocabulary renamed."""
    tokenizer = builders.build_tokenizer(pad_token=None, eos_token=None, chat_template=None)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    rename = {"<|pad|>": "<p>", "<|endoftext|>": "<e>"} | (rename or {})
    for token in state["added_tokens"]:
        token["content"] = rename.get(token["content"], token["content"])
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {rename.get(token, token): number for token, number in vocabulary.items()}
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": eos_token} if eos_token else {}))


@pytest.mark.parametrize(
    ("rename", "eos_token", "taken", "expected"),
    [
        ({"<|pad|>": "[PAD]"}, None, (), "[PAD]"),
        ({"<|pad|>": "<|finetune_right_pad_id|>"}, None, (), "<|finetune_right_pad_id|>"),
        ({"<|endoftext|>": "<|endoftext|>"}, "<|im_end|>", (), "<|endoftext|>"),
        ({"<|pad|>": "<|reserved_special_token_7|>"}, "<|im_end|>", (), "<|reserved_special_token_7|>"),
        ({"<|pad|>": "<unused0>"}, "<|im_end|>", (), "<unused0>"),
        ({"<|pad|>": "<unused0>", "<|endoftext|>": "<unused1>"}, "<|im_end|>", ("<unused0>",), "<unused1>"),
    ],
)
def test_a_free_token_of_the_vocabulary_pads(rename, eos_token, taken, expected):
    tokenizer = bare(rename, eos_token)
    before = tokenizer.get_vocab()
    said = set_pad_token(tokenizer, 10_000, taken)
    assert tokenizer.pad_token == expected and tokenizer.get_vocab() == before
    assert said.startswith(f"tokenizer: pad_token is '{expected}' ({before[expected]}): it is in the vocabulary")


def test_a_spare_row_pads_before_another_tokens_does():
    tokenizer = bare({"<|endoftext|>": "<|endoftext|>"}, eos_token="<|endoftext|>")
    size = len(tokenizer)
    assert "spare row" in set_pad_token(tokenizer, size + 1, ())
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|pad|>", size)


def test_without_a_spare_row_unk_pads_and_then_eos():
    tokenizer = bare(eos_token="<e>")
    tokenizer.unk_token = "<p>"
    assert "the unk_token" in set_pad_token(tokenizer, len(tokenizer), ()) and tokenizer.pad_token == "<p>"
    tokenizer = bare(eos_token="<e>")
    assert "the eos_token" in set_pad_token(tokenizer, len(tokenizer), ()) and tokenizer.pad_token == "<e>"
    assert set_pad_token(bare(), None, ()) is None


def test_a_token_that_the_template_writes_is_not_free():
    tokenizer = bare({"<|endoftext|>": "<|endoftext|>"}, eos_token="<|im_end|>")
    tokenizer.chat_template = "{{ messages }}<|endoftext|>"
    set_pad_token(tokenizer, len(tokenizer), ())
    assert tokenizer.pad_token == "<|im_end|>"


def test_no_candidate_is_an_error(plugin, folder, monkeypatch, tmp_path):
    bare().save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"^model\.tokenizer\.pad_token: .*name one"):
        load(plugin, tmp_path / "bare")
