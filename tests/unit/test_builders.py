"""The builders that other tests rest on: what they make is what Transformers loads."""

import yaml

from tests import builders


def test_a_saved_model_and_tokenizer_load_again(model_folder, tokenizer):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    loaded = AutoTokenizer.from_pretrained(model_folder)
    assert model.config.model_type == "llama"
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    text = "Grant of Copyright Licence — ünïcode 🐘\n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.chat_template == builders.CHATML


def test_a_tokenizer_can_lack_tokens_and_template():
    bare = builders.build_tokenizer(pad_token=None, eos_token=None, chat_template=None)
    assert (bare.pad_token, bare.eos_token, bare.chat_template) == (None, None, None)
    assert bare.convert_tokens_to_ids("<|im_end|>") == builders.SPECIAL_TOKENS.index("<|im_end|>")


def test_both_templates_render_the_same_text():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    texts = [
        builders.build_tokenizer(chat_template=template).apply_chat_template(messages, tokenize=False)
        for template in (builders.CHATML, builders.CHATML_WITH_GENERATION)
    ]
    assert texts[0] == texts[1] == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_changes_to_a_configuration_go_by_dotted_key(tmp_path):
    changes = {"trainer.arguments.max_steps": builders.REMOVE, "datasets.0.type": "json", "model.liger": {"rope": True}}
    file = builders.write_config(tmp_path, tmp_path / "model", tmp_path / "rows.jsonl", changes)
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert "max_steps" not in config["trainer"]["arguments"]
    assert config["datasets"][0]["type"] == "json"
    assert config["model"]["liger"] == {"rope": True}
    assert config["trainer"]["output_dir"] == str(tmp_path / "out")
