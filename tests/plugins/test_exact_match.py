"""Exact match counts right answers, asks what it is told to, and needs questions."""

import pytest

from dumbo.cli.main import main
from dumbo.data.dataset import TokenDataset
from dumbo.data.records import IGNORED, Example, Origin
from dumbo.inference.generate import TextGenerator
from dumbo.inference.prompting import row_prompts
from dumbo.plugins.exact_match.plugin import exact_match
from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, write_and_run

ASKING = {
    "datasets.0.train_format": {"type": "chat_template", "train_on_inputs": False},
    "trainer.data.val_set_size": 4,
    "plugins": [*SHIPPED, "exact_match"],
}


class FixedAnswers(TextGenerator):
    """Writes what it was told to; the counting is what is tested."""

    def __init__(self, tokenizer, texts):
        super().__init__(None, tokenizer, None)
        self.texts, self.asked = list(texts), []

    def answers(self, prompts, max_new_tokens, sampling=None):
        self.asked.append((len(prompts), max_new_tokens))
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in self.texts[: len(prompts)]]


def rows(tokenizer, answers):
    examples = []
    for answer in answers:
        ids = tokenizer(f"What? {answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        prompt = len(tokenizer("What?", add_special_tokens=False)["input_ids"])
        examples.append(Example(ids, [IGNORED] * prompt + ids[prompt:], Origin("rows.jsonl", 1)))
    return TokenDataset.from_examples(examples)


def test_answers_are_right_to_the_letter_but_for_space_around_them(tokenizer):
    prompts = row_prompts(rows(tokenizer, ["yes", "no", "Maybe", "a b"]))
    writes = FixedAnswers(tokenizer, ["yes", " no\n", "maybe", "ab"])
    assert exact_match(writes, prompts, 8, ignore_case=False) == 0.5
    assert exact_match(writes, prompts, 8, ignore_case=True) == 0.75


@pytest.fixture(scope="module")
def learned(tmp_path_factory, model_folder):
    """A run that learns one answer by heart."""
    folder = tmp_path_factory.mktemp("learned")
    same = [{"instruction": f"Say {word}.", "output": "YES"} for word in "abcdefgh"]
    changes = {
        "trainer.arguments.max_steps": 25,
        "trainer.arguments.learning_rate": 2e-2,
        "trainer.arguments.eval_on_start": True,
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 25,
    }
    return write_and_run(folder, model_folder, builders.write_rows(folder / "same.jsonl", same), ASKING | changes)


def test_a_model_that_learned_the_answers_is_right(learned):
    assert losses_of(learned, "eval/exact_match") == [0.0, 1.0]


def test_the_options_choose_what_is_asked(learned, tmp_path, capsys):
    """From the model that answers YES."""
    rows = [
        {"instruction": f"Say {word}.", "output": answer}
        for word, answer in zip("ijklmn", ["yes", "YES"] * 3, strict=True)
    ]
    held_out = {
        "path": str(builders.write_rows(tmp_path / "other.jsonl", rows)),
        "type": "huggingface_polars",
        "data_format": "alpaca",
        "train_format": {"type": "chat_template", "train_on_inputs": False},
        "held_out": True,
    }
    changes = ASKING | {
        "datasets.1": held_out,
        "trainer.data.val_set_size": 0,
        "trainer.arguments.learning_rate": 0.0,
        "trainer.arguments.max_steps": 1,
    }
    found = {}
    for name, options in {
        "plain": {},
        "case": {"ignore_case": True},
        "one": {"max_rows": 1},
        "short": {"ignore_case": True, "max_new_tokens": 1},
    }.items():
        more = changes | ({"evaluation.exact_match": options} if options else {})
        run = write_and_run(tmp_path / name, learned / "model", builders.write_rows(tmp_path / "t.jsonl", rows), more)
        found[name] = losses_of(run, "eval/exact_match")[-1]
    assert found.pop("one") in (0.0, 1.0), "whichever question it is"
    assert found == {"plain": 0.5, "case": 1.0, "short": 0.0}


def test_rows_that_are_trained_as_a_whole_have_no_questions(tmp_path, model_folder, rows_file, capsys):
    whole = ASKING | {"datasets.0.train_format": {"type": "chat_template", "train_on_inputs": True}}
    assert main(["train", str(builders.write_config(tmp_path, model_folder, rows_file, whole))]) == 2
    message = capsys.readouterr().err
    assert "exact_match: no held-out row has a question before its answer" in message
    assert "train_on_inputs: false" in message


def test_without_held_out_rows_it_is_refused(tmp_path, model_folder, rows_file, capsys):
    changes = ASKING | {"trainer.data.val_set_size": 0}
    assert main(["check", str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 2
    assert "'exact_match' measures the model on held-out rows, and there are none" in capsys.readouterr().err
