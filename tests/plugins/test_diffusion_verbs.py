"""`dumbo generate` and `dumbo chat` with a diffusion model: seeds, whitespace, colours."""

import io
import json
import sys

import pytest
import torch

from dumbo.cli.main import main
from tests import builders
from tests.plugins.diffusion_parts import mask_tokenizer

SAID = "Ġthe"
LAST = 12
"""The model says `SAID` at all places before this one, and then the end, whatever stands in the text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder as a run leaves it, of which every token is known."""
    tokenizer = mask_tokenizer()
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "tie_word_embeddings": False}
    model = builders.build_tiny_model(len(tokenizer), config_type="gpt2", is_causal=False, **shape)
    block, places = model.transformer.h[0], torch.eye(32)
    with torch.no_grad():
        for module in (model.transformer.wte, model.lm_head, block.attn.c_proj, block.mlp.c_proj):
            for weight in module.parameters():
                weight.zero_()
        model.transformer.wpe.weight[:32] = places
        said, end = tokenizer.convert_tokens_to_ids(SAID), tokenizer.eos_token_id
        for place in range(1, 32):  # a token is predicted at the place before it
            model.lm_head.weight[said if place < LAST else end] += 30 * places[place - 1]
    made = tmp_path_factory.mktemp("known")
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    file = made / "tokenizer_config.json"
    kept = json.loads(file.read_text()) | {"dumbo_generator": {"plugin": "diffusion", "options": {}}}
    file.write_text(json.dumps(kept))
    return made


def asked(folder, capsys, *words):
    assert main(["generate", str(folder), "--raw", *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    return said.out, [line for line in said.err.splitlines() if line.startswith("Masked")]


@pytest.mark.parametrize("command", [":mask 0.5", ":mask"])
def test_a_seed_decides_what_is_masked_where_no_token_is_drawn(folder, capsys, command):
    text = f"{command} a b c d e f g h i j k l"
    first = asked(folder, capsys, "--seed", "1", text)
    assert asked(folder, capsys, "--seed", "1", text) == first
    others = [asked(folder, capsys, "--seed", str(seed), text)[1] for seed in (2, 3, 4)]
    assert len(first[1]) == 1 and any(other != first[1] for other in others)


def test_a_seed_of_lines_acts_where_one_of_them_draws(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a b\n:mask 0.5 a b c d\n"))
    said, masked = asked(folder, capsys, "--seed", "1")
    assert said.count("\n") == 2 and len(masked) == 1


@pytest.mark.parametrize("prompt", ["a b", ":complete 4 a b", ":mask 1 a b", " :mask 0.5 a b"])
def test_a_seed_is_refused_where_nothing_is_drawn(folder, capsys, prompt):
    assert main(["generate", str(folder), "--raw", "--seed", "1", prompt]) == 2
    assert "--seed has no effect: at temperature 0 the likeliest token is taken" in capsys.readouterr().err


def talked(folder, monkeypatch, capsys, *lines, words=("--temperature", "0", "--max-new-tokens", "3")):
    """What a chat answers, line by line, and its error stream."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", str(folder), "--raw", *words]) == 0
    said = capsys.readouterr()
    return said.out.split("\nyou> ")[1 : 1 + len(lines)], said.err


def test_a_chat_keeps_the_whitespace_of_commands(folder, monkeypatch, capsys):
    """The model of this text says one token more for every one that it is given less."""
    lines = ["  a ", ":complete 2 a", ":complete 20 a b  c   ", " :mask a", ":complete 2 a   "]
    answers, _ = talked(folder, monkeypatch, capsys, *lines)
    assert answers[0] == "the the the\n", "of ordinary words it is trimmed"
    assert answers[1] == " the the\n", "what follows a text begins as it is written"
    tokenizer = mask_tokenizer()
    room = LAST - len(tokenizer("a b  c   ")["input_ids"])
    assert room != LAST - len(tokenizer("a b  c")["input_ids"])
    assert answers[2] == " the" * room + "\n", "spaces at the end are part of the text"
    assert answers[3] == " the" * 3 + "\n", "behind a space it is text"
    assert answers[4] == " the the\n"


def test_a_chat_fills_in_masked_words_in_colours(folder, monkeypatch, capsys):
    lines = [":mask 1 a the  the", ":mask 1 :complete 2 a the"]
    (plain, _), noted = talked(folder, monkeypatch, capsys, *lines[:1], lines[0])
    assert plain == "a the the the\n" and noted.count("Masked (75.0%): a<|diffusion_mask|>") == 2
    shown = sys.stdout
    monkeypatch.setattr(shown, "isatty", lambda: True)
    coloured, _ = talked(folder, monkeypatch, capsys, *lines, "Hi")
    dim, green, red = (f"\x1b[{code}m" for code in (2, 32, 31))
    end = "\x1b[0m"
    assert coloured[0] == f"{dim}a{end}{green} the{end}{red} the{end}{green} the{end}\n"
    assert coloured[1] == f"{dim}a{end}{green} the the the{end}\n"
    assert coloured[2] == "the the the\n", "what is not filled in has none"


def test_a_chat_takes_a_seed_for_what_commands_draw(folder, monkeypatch, capsys):
    words = ("--temperature", "0", "--seed")
    line = ":mask 0.5 a b c d e f g h i j"
    notes = [talked(folder, monkeypatch, capsys, line, words=(*words, seed))[1] for seed in "1123"]
    assert notes[0] == notes[1] and len(set(notes)) > 1
