"""The plugin `diffusion`: whole runs, what they leave, and what they refuse."""

import json
import shutil
from types import MappingProxyType

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from dumbo.cli.main import main
from dumbo.errors import ConfigError
from dumbo.inference.generate import Sampling
from dumbo.inference.opening import open_model
from dumbo.output.run_reading import read_run
from dumbo.plugins.diffusion.mask_token import set_mask_token
from dumbo.plugins.diffusion.plugin import DiffusionOptions
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, printed_by, run_here, write_and_run

PLUGINS = [*SHIPPED, "diffusion"]
ANSWERS = {
    "datasets.0.train_format": {"type": "chat_template", "train_on_inputs": False},
    "trainer.diffusion": {"end_padding": 4},
    "plugins": PLUGINS,
}
LEARNING = ANSWERS | {
    "trainer.diffusion": {"end_padding": 4, "importance_weighting": False},
    "trainer.arguments.max_steps": 150,
    "trainer.arguments.learning_rate": 1e-2,
    "trainer.arguments.batch_size": 8,
    "trainer.arguments.physical_batch_size": 8,
    "trainer.arguments.logging_steps": 20,
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory, model_folder):
    """A run that learned to answer YES, whatever it is asked."""
    folder = tmp_path_factory.mktemp("learned")
    rows = builders.write_rows(
        folder / "rows.jsonl", [{"instruction": f"Say {word}.", "output": "YES"} for word in "abcdefghijklmnopqrstuvwx"]
    )
    return write_and_run(folder, model_folder, rows, LEARNING)


def test_a_run_learns_to_answer_and_to_end(learned, capsys):
    losses = losses_of(learned)
    assert losses[-1] < losses[0] / 3
    assert main(["generate", str(learned), "--max-new-tokens", "7", "Say a.", ":complete 6 Say q."]) == 0
    said = capsys.readouterr()
    assert said.out == "YES\nYES\n" and said.err == f"{learned / 'model'} on cpu, prompts by chat_template\n"


def test_masked_words_are_filled_in_from_the_command_line(learned, capsys):
    words = [f"{learned}", "--seed", "1", "--temperature", "0.1"]
    assert main(["generate", *words, ":mask 0.5 Say  a."]) == 0
    said = capsys.readouterr()
    assert "Masked (" in said.err and "<|diffusion_mask|>" in said.err and "  " in said.err.split("Masked")[1]
    assert main(["generate", *words, ":mask 0.5 Say  a."]) == 0
    assert capsys.readouterr().out == said.out and "<|diffusion_mask|>" not in said.out


def test_a_model_folder_alone_is_still_a_diffusion_model(learned, tmp_path, capsys):
    """Its tokenizer says so, and brings the mask token with its id and the options."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(learned / "model", moved)
    opened = open_model(moved)
    assert type(opened.generator).__name__ == "DiffusionGenerator"
    tokenizer = AutoTokenizer.from_pretrained(moved)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|diffusion_mask|>", len(tokenizer) - 1)
    assert tokenizer.mask_token_id >= tokenizer.vocab_size, "an id that a check by vocab_size would not take"
    assert json.loads((moved / "config.json").read_text())["is_causal"] is False
    assert main(["generate", str(moved), "--steps", "2", "--block-length", "4", "--max-new-tokens", "8", "Say c."]) == 0
    assert capsys.readouterr().out == "YES\n"


def test_a_run_from_a_diffusion_model_goes_on_with_its_token(learned, rows_file, tmp_path, capsys):
    rows = AutoTokenizer.from_pretrained(learned / "model")
    again = write_and_run(tmp_path, learned / "model", rows_file, ANSWERS)
    tokenizer = AutoTokenizer.from_pretrained(again / "model")
    assert tokenizer.mask_token_id == rows.mask_token_id and len(tokenizer) == len(rows)
    file = builders.write_config(tmp_path / "causal", learned / "model", rows_file)
    said = printed_by(capsys, 2, "train", str(file)).err
    assert "the model sees both sides of a token" in said and "add 'diffusion' under plugins" in said
    overrides = {"model.config_overrides": {"is_causal": True}}
    causal = write_and_run(tmp_path / "again", learned / "model", rows_file, overrides)
    assert type(open_model(causal).generator).__name__ == "TextGenerator"


def test_flags_without_effect_are_refused(learned, model_folder, capsys):
    said = printed_by(capsys, 2, "generate", str(learned), "--temperature", "1", "--top-p", "0.5", "Hi").err
    assert "--top-p has no effect: this model writes by unmasking" in said
    said = printed_by(capsys, 2, "generate", str(model_folder), "--steps", "4", "Hi").err
    assert "--steps has no effect: this model writes from left to right" in said
    assert "asks for no token" in printed_by(capsys, 2, "generate", str(learned), ":complete 0 Hi").err


def test_a_missing_writer_is_named(learned, tmp_path, capsys):
    """A model's files name an installed plugin; a file with code they cannot name."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(learned / "model", moved)
    file = moved / "tokenizer_config.json"
    kept = json.loads(file.read_text())
    for name in ("absent", "./evil.py:Evil"):
        file.write_text(json.dumps(kept | {"dumbo_generator": {"plugin": name, "options": {}}}))
        (moved / "evil.py").write_text("raise SystemExit(3)\n")
        said = printed_by(capsys, 2, "generate", str(moved), "Hi").err
        assert f"this model's text is written by the plugin '{name}', which is not here" in said


def check_infilled(folder, rows):
    """Half of the answer of one held-out row is masked, always the same tokens, and filled in."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    fields = {"step", "original", "masked", "generated", "mask_ratio", "masked_tokens", "total_tokens"}
    assert all(set(row) == fields for row in rows) and len({row["masked"] for row in rows}) == 1
    for row in rows:
        whole, masked, made = (tokenizer(row[name])["input_ids"] for name in ("original", "masked", "generated"))
        places = [place for place, token in enumerate(masked) if token == tokenizer.mask_token_id]
        answer = tokenizer(row["original"].split("assistant\n")[1].split("<|im_end|>")[0])["input_ids"]
        assert len(whole) == len(masked) == row["total_tokens"] and len(places) == row["masked_tokens"]
        assert row["mask_ratio"] == len(places) / len(whole) and abs(len(places) - len(answer) / 2) <= 1
        assert places[0] >= len(whole) - len(answer) - 2 and "<|diffusion_mask|>" not in row["generated"]
        assert all(masked[n] == whole[n] for n in range(len(whole)) if n not in places)
        assert row["generated"].startswith(row["masked"].split("<|diffusion_mask|>")[0]) and made
    read = [(sample.prompt, sample.output, sample.reference) for sample in read_run(folder).samples]
    shown = [(row["masked"], row["generated"], row["original"]) for row in rows]
    assert [sample for sample in read if "<|diffusion_mask|>" in sample[0]] == shown
    assert "&lt;|diffusion_mask|&gt;" in (folder / "report.html").read_text(), "they are in the report"


def test_texts_without_questions_are_masked_too(tmp_path, model_folder, rows_file, capsys):
    """Of rows that are trained as a whole nothing can be asked, and their tokens can be masked."""
    changes = {
        "datasets.0.train_format": {"type": "chat_template", "train_on_inputs": True},
        "trainer.data.val_set_size": 3,
        "trainer.arguments.max_steps": 1,
        "evaluation.samples": {"count": 2, "mask_ratio": 0.25},
        "plugins": [*PLUGINS, "samples"],
    }
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 1, 1] and all(0.1 < row["mask_ratio"] <= 0.25 for row in rows)
    assert "  of 2 texts with masked tokens, 0 filled in as they were" in capsys.readouterr().out
    assert rows[0]["original"].startswith("<|im_start|>") and rows[0]["masked"].startswith("<|im_start|>")


def test_metrics_are_logged_and_evaluations_repeat_themselves(tmp_path, model_folder, rows_file):
    changes = ANSWERS | {
        "trainer.data.val_set_size": 4,
        "trainer.arguments.logging_steps": 2,
        "trainer.arguments.max_steps": 4,
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 2,
        "trainer.arguments.learning_rate": 1e-30,
        "evaluation.samples": {"count": 1, "max_new_tokens": 4},
        "evaluation.exact_match": {"max_rows": 2},
        "plugins": [*PLUGINS, "samples", "exact_match"],
    }
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    logged = [row for row in metrics_of(folder) if "train/loss" in row]
    names = "accuracy mask_ratio num_masked_tokens avg_p_mask ce_loss importance_weight_avg answer_ratio"
    rows = []
    for row in logged:
        found = {name: row[f"train/{name}"] for name in [*names.split(), "avg_answer_length"]}
        assert 0 < found["mask_ratio"] <= found["answer_ratio"] < 1 and found["num_masked_tokens"] >= 1
        assert 0 <= found["accuracy"] <= 1 and 4 < found["ce_loss"] < 9 and found["importance_weight_avg"] >= 1
        trained = found["num_masked_tokens"] / found["mask_ratio"] * found["answer_ratio"]
        rows.append(trained / found["avg_answer_length"])
    assert rows == pytest.approx([4, 4, 8]), "of steps 1, 2, and 3 with 4, each of two forward passes"
    losses = losses_of(folder, "eval/loss")
    assert len(losses) == 2 and losses[0] == losses[1]
    assert losses_of(folder, "eval/accuracy") and losses_of(folder, "eval/exact_match") == [0.0, 0.0]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], "prompt" in row) for row in samples] == [
        (n, asked) for n in (0, 2, 4) for asked in (True, False)
    ]
    check_infilled(folder, [row for row in samples if "masked" in row])


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param(
            {"trainer.data.packing": True, "trainer.data.sequence_length": 160, "trainer.arguments.batch_size": 2},
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_run_that_was_stopped_goes_on_bit_by_bit(tmp_path, model_folder, rows_file, more):
    changes = {**{name: value for name, value in ANSWERS.items() if name != "plugins"}, **more}
    if more:
        changes["trainer.arguments.physical_batch_size"] = 1
    whole = run_here(write_stoppable(tmp_path / "whole", model_folder, rows_file, changes, ("diffusion",)))
    file = write_stoppable(tmp_path / "stopped", model_folder, rows_file, changes, ("diffusion",))
    with stop_by("SIGTERM", 3):
        assert main(["train", str(file)]) != 0
    assert main(["train", str(file), "--resume"]) == 0
    assert_same_run(file.parent / "out", whole)


def test_packed_rows_train_and_are_evaluated(tmp_path, model_folder, rows_file, capsys):
    changes = ANSWERS | {
        "trainer.data": {"packing": True, "sequence_length": 160, "val_set_size": 3},
        "trainer.arguments.batch_size": 2,
        "trainer.arguments.physical_batch_size": 1,
    }
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    assert len(losses_of(folder)) == 2 and losses_of(folder, "eval/loss")
    assert "end tokens more behind 9 rows" in capsys.readouterr().out


@pytest.mark.full
def test_an_adapter_learns_the_mask_token_and_stays_a_diffusion_model(tmp_path, model_folder, rows_file, capsys):
    changes = ANSWERS | {"model.peft": {"rank": 4}, "plugins": [*PLUGINS, "peft"]}
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    assert type(open_model(folder).generator).__name__ == "DiffusionGenerator"
    assert main(["merge", str(folder), "--output", str(tmp_path / "merged")]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for place in (folder, tmp_path / "merged"):
        assert main(["generate", str(place), "--max-new-tokens", "5", "Add 3 and 4."]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


REFUSED = {
    "two losses": ({"plugins": [*PLUGINS, "cut_cross_entropy"]}, "all want to be the one plugin with 'build_loss'"),
    "a teacher": ({"plugins": [*PLUGINS, "kd"]}, "'diffusion', 'kd' all want to be the one plugin with 'build_loss'"),
    "weights by entropy": ({"plugins": [*PLUGINS, "eaft"]}, "plugin 'diffusion' cannot be combined with 'eaft'"),
    "weights by probability": ({"plugins": [*PLUGINS, "dft"]}, "plugin 'diffusion' cannot be combined with 'dft'"),
    "smoothing": ({"trainer.arguments.label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    "a stream": (
        {"trainer.data.streaming": True, "trainer.data.sequence_length": 64},
        "'diffusion' changes the training set as a whole, and a stream is never whole",
    ),
    "ratios": (
        {"trainer.diffusion": {"min_mask_ratio": 0.6, "max_mask_ratio": 0.5}},
        "is more than max_mask_ratio (0.5)",
    ),
    "nothing masked": ({"trainer.diffusion": {"max_mask_ratio": 0.0}}, "is less than eps"),
    "two tokens": ({"trainer.diffusion": {"mask_token_id": 1, "mask_token_str": "<m>"}}, "and so does mask_token_str"),
    "a misspelt key": ({"trainer.diffusion": {"noise_shedule": "linear"}}, "did you mean 'noise_schedule'?"),
}
OWN_WEIGHTS = """
from dumbo.plugin_loader import TokenWeightPlugin


class EvenPlugin(TokenWeightPlugin):
    name = "even"

    def build_token_weights(self, config):
        return lambda logits, log_probabilities: log_probabilities * 0 + 1
"""
REFUSED_LATER = {
    "no such id": ({"mask_token_id": 9999}, "the tokenizer has no token 9999; its ids are 0 to"),
    "an ordinary id": ({"mask_token_id": 60}, "is an ordinary token, which texts may have"),
    "an ordinary token": ({"mask_token_str": "Ġthe"}, "is an ordinary token, which texts may have"),
    "the end token": ({"mask_token_str": "<|im_end|>"}, "'<|im_end|>' is the tokenizer's eos_token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_combined_is_refused_before_anything_is_loaded(tmp_path, model_folder, rows_file, capsys, name):
    changes, expected = REFUSED[name]
    file = builders.write_config(tmp_path, model_folder, rows_file, ANSWERS | changes)
    assert expected in printed_by(capsys, 2, "check", str(file)).err


def test_weights_of_ones_own_are_refused(tmp_path, model_folder, rows_file, capsys):
    (tmp_path / "own.py").write_text(OWN_WEIGHTS)
    changes = ANSWERS | {"plugins": [*PLUGINS, "./own.py:EvenPlugin"]}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert "takes no other weights of tokens" in printed_by(capsys, 2, "train", str(file)).err


@pytest.mark.parametrize("name", REFUSED_LATER)
def test_a_token_that_cannot_mask_is_refused(tmp_path, model_folder, rows_file, capsys, name):
    options, expected = REFUSED_LATER[name]
    file = builders.write_config(tmp_path, model_folder, rows_file, ANSWERS | {"trainer.diffusion": options})
    assert expected in printed_by(capsys, 2, "train", str(file)).err


def gapped_tokenizer(**vocabulary):
    """One of words, whose ids need not follow each other; `<s>` is special."""
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="UNK"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="UNK", additional_special_tokens=["<s>"])


GAPPED = MappingProxyType({"UNK": 0, "a": 1, "b": 2, "<s>": 40})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mask_token_id": 20}, "the tokenizer has no token 20; its ids are 0 to 40, with gaps"),
        ({"mask_token_id": 41}, "the tokenizer has no token 41; its ids are 0 to 40, with gaps"),
        ({"mask_token_id": 2}, "'b' is an ordinary token"),
        ({"mask_token_id": 0}, "'UNK' is the tokenizer's unk_token"),
    ],
)
def test_an_id_in_a_gap_of_the_vocabulary_is_none(options, expected):
    tokenizer = gapped_tokenizer(**GAPPED)
    with pytest.raises(ConfigError, match=expected):
        set_mask_token(tokenizer, DiffusionOptions(**options))
    assert tokenizer.mask_token is None and "None" not in tokenizer.get_vocab()


def test_an_id_behind_gaps_is_taken():
    tokenizer = gapped_tokenizer(**GAPPED)
    assert len(tokenizer) == 4 and set_mask_token(tokenizer, DiffusionOptions(mask_token_id=40)) == 40
    assert tokenizer.mask_token == "<s>" and len(tokenizer) == 4


def test_a_new_token_takes_no_other_ones_id():
    """The library counts the tokens for the id of a new one, and there is one with that id already."""
    tokenizer = gapped_tokenizer(**{"UNK": 0, "<s>": 1, "a": 2, "b": 4})
    with pytest.raises(ConfigError, match="gives the new token '<m>' the id 4 of 'b'"):
        set_mask_token(tokenizer, DiffusionOptions(mask_token_str="<m>"))


def test_the_id_of_an_added_token_beyond_the_vocabulary_is_taken(tmp_path, model_folder, rows_file):
    """`vocab_size` leaves added tokens out, and the model has no row for this one yet."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|blank|>"]})
    number = tokenizer.convert_tokens_to_ids("<|blank|>")
    source = tmp_path / "model"
    shutil.copytree(model_folder, source)
    tokenizer.save_pretrained(source)
    assert number >= tokenizer.vocab_size and number >= AutoConfig.from_pretrained(source).vocab_size
    changes = ANSWERS | {"trainer.diffusion": {"mask_token_id": number}, "trainer.arguments.max_steps": 1}
    folder = write_and_run(tmp_path, source, rows_file, changes)
    opened = open_model(folder)
    tokenizer = opened.generator.tokenizer
    assert (tokenizer.mask_token, tokenizer.mask_token_id, len(tokenizer)) == ("<|blank|>", number, number + 1)
    assert opened.generator.model.get_input_embeddings().weight.shape[0] > number
    masked = opened.generator.reply([{"role": "user", "content": ":mask 1 Add 3 and 4."}], 9, Sampling(), None)
    assert "<|blank|>" in masked.note and "<|blank|>" not in masked.text


@pytest.mark.parametrize(
    "options", [{"mask_token_id": 1}, {"mask_token_str": "<|im_start|>"}, {"mask_token_str": "<m>"}]
)
def test_a_token_that_is_named_is_found_again(tmp_path, model_folder, rows_file, options):
    folder = write_and_run(tmp_path, model_folder, rows_file, ANSWERS | {"trainer.diffusion": options})
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    expected = options.get("mask_token_str", "<|im_start|>")
    assert tokenizer.mask_token == expected and tokenizer.mask_token_id == tokenizer.convert_tokens_to_ids(expected)
    assert open_model(folder).generator._mask_token == tokenizer.mask_token_id
    kept = yaml.safe_load((folder / "run.yaml").read_text())["trainer"]["diffusion"]
    assert kept == options
