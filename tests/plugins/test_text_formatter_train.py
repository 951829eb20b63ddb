"""`text_formatter`: tokens and labels from texts, segments, steps and tokens; with and without a start token."""

from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dumbo.data.records import IGNORED, Conversation, Origin, Segments, Steps, Text, Tokens
from dumbo.errors import ConfigError, DataError
from dumbo.plugins.text_formatter.plugin import (
    CompletionTraining,
    InputOutputTraining,
    StepwiseTraining,
    TextFormatterPlugin,
    TokensTraining,
)
from tests import builders

ORIGIN = Origin("rows.jsonl", 7)
VERSE = "To be, or not to be: that is the question.\n"
SOLVED = Steps("1 + 1 + 1?", ("Add two ones.", "That is 3.", "So 3."), (1, 0, 1), ORIGIN)
ASKED = [{"role": "user", "content": "To be, or"}]


@pytest.fixture(scope="module")
def llama():
    """As Llama 2: a start token before every text, spaces as `▁`, one before the first word, and no bytes: characters
    that it does not know are `<unk>`."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator([VERSE * 3], trainers.BpeTrainer(special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def build(options_type, tokenizer, **options):
    return TextFormatterPlugin().build_train_format(options_type(type="any", **options), tokenizer)


def refusal(formatter, record) -> list[str]:
    with pytest.raises(DataError) as error:
        formatter(record)
    text = str(error.value)
    assert text.startswith("rows.jsonl:7: ")
    return text.removeprefix("rows.jsonl:7: ").splitlines()


def trained(example, tokenizer) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


# Completion


def test_a_text_is_trained_whole_with_its_end(tokenizer):
    example = build(CompletionTraining, tokenizer)(Text(VERSE, ORIGIN))
    assert example.labels == example.input_ids
    assert tokenizer.decode(example.input_ids) == VERSE + "<|im_end|>"
    assert (example.origin, dict(example.counts)) == (ORIGIN, {})


def test_the_start_token_is_there_and_not_trained(llama):
    example = build(CompletionTraining, llama)(Text(VERSE, ORIGIN))
    assert example.input_ids == [*llama(VERSE)["input_ids"], llama.eos_token_id]
    assert example.input_ids[0] == llama.bos_token_id
    assert example.labels == [IGNORED, *example.input_ids[1:]]


def test_the_end_token_can_be_left_out_and_need_not_exist(tokenizer):
    without = builders.build_tokenizer(eos_token=None)
    for tokenizer_ in (tokenizer, without):
        example = build(CompletionTraining, tokenizer_, end_token=False)(Text(VERSE, ORIGIN))
        assert tokenizer_.decode(example.input_ids) == VERSE


@pytest.mark.parametrize("options_type", [CompletionTraining, StepwiseTraining])
def test_a_tokenizer_without_end_token_is_an_error_of_the_configuration(options_type):
    with pytest.raises(ConfigError, match="the tokenizer has no end token") as error:
        build(options_type, builders.build_tokenizer(eos_token=None))
    assert error.value.problems[0].path == ("model", "tokenizer", "eos_token")


def test_a_special_token_in_a_text_is_refused_unless_it_is_meant(tokenizer):
    text = Text("One.<|endoftext|>Two.", ORIGIN)
    assert refusal(build(CompletionTraining, tokenizer), text) == [
        "the tokenizer turns '<|endoftext|>' into a special token, which a text should not have",
        "    write `allow_special_tokens: true` into train_format if that token is meant",
    ]
    example = build(CompletionTraining, tokenizer, allow_special_tokens=True)(text)
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") in example.labels


def test_marks_of_the_text_s_own_are_not_doubled(llama):
    allowing = build(CompletionTraining, llama, allow_special_tokens=True)
    explained = allowing.explain(Text(f"<s>{VERSE}</s>", ORIGIN))
    ids = explained.example.input_ids
    assert (ids.count(llama.bos_token_id), ids.count(llama.eos_token_id)) == (1, 1)
    assert len(explained.remarks) == 2
    assert refusal(build(CompletionTraining, llama), Text(f"<s>{VERSE}", ORIGIN))[0].startswith("the tokenizer turns")


def test_what_the_tokenizer_does_not_know_is_no_special_token_of_the_text(llama):
    example = build(CompletionTraining, llama)(Text("to 🙂 be", ORIGIN))
    assert llama.unk_token_id in example.labels


@pytest.mark.parametrize("text", ["", " \n "])
def test_a_text_without_text_is_refused(text, tokenizer):
    assert refusal(build(CompletionTraining, tokenizer), Text(text, ORIGIN)) == ["the text is empty"]


def test_a_text_that_the_tokenizer_drops_is_refused(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Replace("z", "")
    dropping = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    assert refusal(build(CompletionTraining, dropping), Text("zzz", ORIGIN)) == [
        "the tokenizer makes no tokens of the text"
    ]


def test_a_single_token_alone_has_nothing_to_predict(tokenizer):
    formatter = build(CompletionTraining, tokenizer, end_token=False)
    assert refusal(formatter, Text("a", ORIGIN)) == ["no token to train on"]


# Segments


def test_segments_are_tokenised_one_by_one_with_nothing_added(tokenizer):
    pieces = [("<|im_start|>Hi ", False), ("there", True), (".", False), (" You<|im_end|>", True)]
    example = build(InputOutputTraining, tokenizer)(Segments(tuple(pieces), ORIGIN))
    ids = [tokenizer(text)["input_ids"] for text, _ in pieces]
    assert example.input_ids == [token for piece in ids for token in piece]
    assert example.labels == [
        token if label else IGNORED for piece, (_, label) in zip(ids, pieces, strict=True) for token in piece
    ]
    assert trained(example, tokenizer) == "there You<|im_end|>"
    assert dict(example.counts) == {}


def test_segments_can_all_be_trained(tokenizer):
    pieces = (("Hi", False), ("", True), (" you", False))
    assert refusal(build(InputOutputTraining, tokenizer), Segments(pieces, ORIGIN))[0].startswith("no token to train")
    example = build(InputOutputTraining, tokenizer, train_on_inputs=True)(Segments(pieces, ORIGIN))
    assert example.labels == example.input_ids


def test_what_segments_lack_is_counted(llama):
    formatter = build(InputOutputTraining, llama)
    missing = Segments((("</s>", False), ("to be", True)), ORIGIN)
    assert dict(formatter(missing).counts) == {"without end token": 1, "without start token": 1}
    assert len(formatter.explain(missing).remarks) == 2
    assert dict(formatter(Segments((("<s>to", False), (" be</s>", True)), ORIGIN)).counts) == {}


def test_segments_without_any_text_are_refused(tokenizer):
    assert refusal(build(InputOutputTraining, tokenizer), Segments((("", True),), ORIGIN)) == [
        "the tokenizer makes no tokens of the text"
    ]


# Steps


def test_right_steps_are_trained_and_wrong_ones_only_read(tokenizer):
    example = build(StepwiseTraining, tokenizer)(SOLVED)
    assert tokenizer.decode(example.input_ids) == "1 + 1 + 1?\nAdd two ones.\nThat is 3.\nSo 3.<|im_end|>"
    assert trained(example, tokenizer) == "Add two ones.\nSo 3.<|im_end|>"
    assert dict(example.counts) == {"wrong steps": 1}


def test_after_a_wrong_last_step_the_end_is_not_trained(tokenizer):
    steps = Steps("Why?", ("Well.", "No."), (1, 0), ORIGIN)
    example = build(StepwiseTraining, tokenizer)(steps)
    assert tokenizer.decode(example.input_ids) == "Why?\nWell.\nNo.<|im_end|>"
    assert trained(example, tokenizer) == "Well.\n"
    last = build(StepwiseTraining, tokenizer, train_on_last_step_only=True)
    assert refusal(last, steps)[0] == "the last step is wrong"
    assert trained(last(SOLVED), tokenizer) == "So 3.<|im_end|>"


def test_without_a_right_step_there_is_nothing_to_train(tokenizer):
    assert refusal(build(StepwiseTraining, tokenizer), Steps("Why?", ("No.",), (0,), ORIGIN)) == [
        "no right step to train on",
        "    trainer.data.on_bad_row: drop leaves such rows out",
    ]


def test_a_separator_may_be_a_special_token_and_a_step_may_not_have_one(tokenizer):
    formatter = build(StepwiseTraining, tokenizer, step_separator="<|im_start|>")
    mark = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert formatter(SOLVED).input_ids.count(mark) == 3
    # The one that leads on from a right step.
    assert formatter(SOLVED).labels.count(mark) == 1
    stolen = Steps("1?", ("a<|im_start|>b",), (1,), ORIGIN)
    assert refusal(formatter, stolen)[0].startswith("the tokenizer turns '<|im_start|>'")
    allowing = build(StepwiseTraining, tokenizer, step_separator="<|im_start|>", allow_special_tokens=True)
    assert allowing(stolen).labels.count(mark) == 1


def test_a_long_solution_is_cut(tokenizer):
    whole = build(StepwiseTraining, tokenizer)(SOLVED)
    asked = len(tokenizer("1 + 1 + 1?\n")["input_ids"])
    size = len(whole.input_ids) - asked
    assert build(StepwiseTraining, tokenizer, max_completion_length=size)(SOLVED) == whole
    cut = build(StepwiseTraining, tokenizer, max_completion_length=3)(SOLVED)
    assert (cut.input_ids, cut.labels) == (whole.input_ids[: asked + 3], whole.labels[: asked + 3])
    assert dict(cut.counts) == {"wrong steps": 1, "cut solutions": 1}
    explained = build(StepwiseTraining, tokenizer, max_completion_length=3).explain(SOLVED)
    assert explained.example == cut
    assert explained.remarks[-1].startswith("the solution is longer than 'max_completion_length'")
    late = Steps("Why?", ("A long and wrong step.", "Right."), (0, 1), ORIGIN)
    refused = refusal(build(StepwiseTraining, tokenizer, max_completion_length=2), late)
    assert refused[0] == "no right step within the first 2 tokens of the solution"


def test_the_start_token_is_no_part_of_a_solution(llama):
    formatter = build(StepwiseTraining, llama, max_completion_length=2, step_separator="\n")
    example = formatter(Steps("to be", ("that is the question",), (1,), ORIGIN))
    assert example.input_ids[0] == llama.bos_token_id
    assert sum(label != IGNORED for label in example.labels) == 2


def test_a_token_over_the_edge_of_a_wrong_step_is_not_trained(tokenizer):
    formatter = build(StepwiseTraining, tokenizer, step_separator=" ")
    explained = formatter.explain(Steps("a", ("the", "the"), (0, 1), ORIGIN))
    assert explained.texts == ("a", " the", " the", "<|im_end|>")
    assert explained.straddling == {2}
    assert explained.example.labels[:3] == [IGNORED] * 3
    assert explained.example.counts["straddling tokens"] == 1


def test_what_is_cut_off_is_not_explained(tokenizer):
    formatter = build(StepwiseTraining, tokenizer, step_separator=" ", max_completion_length=2)
    explained = formatter.explain(Steps("a", ("the the", "the", "the"), (1, 0, 1), ORIGIN))
    assert explained.texts == ("a", " the", " the")
    assert explained.straddling == {1}


def test_places_are_counted_from_the_start_token(llama):
    explained = build(StepwiseTraining, llama, step_separator=" ").explain(Steps("to", ("no", "that"), (0, 1), ORIGIN))
    assert explained.texts[0] == "<s>"
    assert [explained.texts[place] for place in explained.straddling] == [" th"]


# Tokens


def test_tokens_pass_as_they_are(tokenizer):
    end = tokenizer.eos_token_id
    example = build(TokensTraining, tokenizer)(Tokens((5, 6, end), (IGNORED, 6, end), ORIGIN))
    assert (example.input_ids, example.labels, dict(example.counts)) == ([5, 6, end], [IGNORED, 6, end], {})


def test_what_tokens_lack_is_counted(llama):
    formatter = build(TokensTraining, llama)
    start, end = llama.bos_token_id, llama.eos_token_id
    assert dict(formatter(Tokens((5, 6, end), (5, 6, IGNORED), ORIGIN)).counts) == {
        "without end token": 1,
        "without start token": 1,
    }
    assert dict(formatter(Tokens((start, 6, end), (IGNORED, 6, end), ORIGIN)).counts) == {}


def test_tokens_of_another_vocabulary_are_refused(tokenizer):
    formatter = build(TokensTraining, tokenizer)
    top = len(tokenizer) - 1
    assert formatter(Tokens((5, top), (5, top), ORIGIN)).input_ids == [5, top]
    assert refusal(formatter, Tokens((5, top + 1), (5, top + 1), ORIGIN))[0] == (
        f"there is the token id {top + 1}, and the tokenizer's ids are 0 to {top}"
    )


@pytest.mark.parametrize("labels", [(IGNORED, IGNORED), (5, IGNORED)])
def test_tokens_of_which_none_is_trained_are_refused(labels, tokenizer):
    assert refusal(build(TokensTraining, tokenizer), Tokens((5, 6), labels, ORIGIN))[0] == "no token to train on"


def test_tokens_are_explained_by_what_they_decode_to(tokenizer):
    ids = tokenizer("Ein schöner 🙂 Tag<|im_end|>")["input_ids"]
    texts = build(TokensTraining, tokenizer).explain(Tokens(tuple(ids), tuple(ids), ORIGIN)).texts
    assert len(texts) == len(ids)
    assert "".join(texts) == "Ein schöner 🙂 Tag<|im_end|>"


# All of them


FORMATS = MappingProxyType(
    {
        CompletionTraining: Text(VERSE, ORIGIN),
        InputOutputTraining: Segments((("a", True), ("b", True)), ORIGIN),
        StepwiseTraining: SOLVED,
        TokensTraining: Tokens((5, 6), (5, 6), ORIGIN),
    }
)


@pytest.mark.parametrize("options_type", FORMATS, ids=lambda options_type: options_type.__name__)
def test_records_of_other_formats_are_refused_and_do_not_disturb_their_batch(options_type, tokenizer):
    formatter = build(options_type, tokenizer)
    records = [*FORMATS.values(), Conversation((), ORIGIN), FORMATS[options_type]]
    results = formatter.encode_batch(records)
    assert [isinstance(result, DataError) for result in results] == [
        record is not FORMATS[options_type] for record in records
    ]
    assert results[-1] == formatter(FORMATS[options_type]) == formatter.explain(FORMATS[options_type]).example
    assert "makes a record of the kind Conversation" in str(results[-2])
    assert "choose a data format that makes" in str(results[-2])


@given(st.lists(st.tuples(st.text("ab 🙂ö\n", max_size=6), st.booleans()), min_size=1, max_size=5))
@settings(max_examples=60)
def test_segments_are_explained_with_their_own_text(tokenizer, pieces):
    formatter = build(InputOutputTraining, tokenizer)
    [result] = formatter.encode_batch([Segments(tuple(pieces), ORIGIN)])
    if isinstance(result, DataError):
        assert "no token" in str(result)
        return
    explained = formatter.explain(Segments(tuple(pieces), ORIGIN))
    assert explained.example == result
    assert "".join(explained.texts) == "".join(text for text, _ in pieces)
    shown = "".join(
        text for text, label in zip(explained.texts, result.labels, strict=True) if label != IGNORED and text
    )
    assert shown == "".join(text for text, label in pieces if label)


STEP = st.text("ab 1\n.", min_size=1, max_size=6).filter(str.strip)


@given(STEP, st.lists(st.tuples(STEP, st.integers(0, 1)), min_size=1, max_size=4), st.sampled_from(["\n", " ", "##"]))
@settings(max_examples=60)
def test_of_steps_no_more_than_the_right_ones_is_trained(tokenizer, prompt, judged, separator):
    steps = Steps(prompt, tuple(step for step, _ in judged), tuple(label for _, label in judged), ORIGIN)
    [result] = build(StepwiseTraining, tokenizer, step_separator=separator).encode_batch([steps])
    if isinstance(result, DataError):
        assert "no right step" in str(result)
        return
    explained = build(StepwiseTraining, tokenizer, step_separator=separator).explain(steps)
    assert "".join(explained.texts) == prompt + separator + separator.join(steps.steps) + "<|im_end|>"
    position, right = len(prompt + separator), set()
    for step, label in judged:
        after = position + len(step) + len(separator)
        right |= set(range(position, after)) if label else set()
        position = after
    position, places = 0, []
    for text, label in zip(explained.texts[:-1], result.labels, strict=False):
        places += range(position, position + len(text)) if label != IGNORED else []
        position += len(text)
    assert set(places) <= right
    over = sum(len(explained.texts[index]) for index in explained.straddling)
    assert len(places) + over >= len([place for place in right if place < position])
    assert (result.labels[-1] != IGNORED) == bool(judged[-1][1])


@pytest.mark.parametrize("options_type", [CompletionTraining, StepwiseTraining, InputOutputTraining])
def test_a_prompt_is_how_a_row_begins(options_type, tokenizer, llama):
    after = "\n" if options_type is StepwiseTraining else ""
    for model in (tokenizer, llama):
        start = [] if options_type is InputOutputTraining or model is tokenizer else [model.bos_token_id]
        ids = model(f"To be, or{after}", add_special_tokens=False)["input_ids"]
        assert build(options_type, model).write_prompt(ASKED) == start + ids


def test_ready_tokens_have_no_prompt(tokenizer):
    assert build(TokensTraining, tokenizer).write_prompt(ASKED) is None


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        (ASKED * 2, (), "there are 2 messages"),
        (ASKED, [{"name": "add"}], "there are tools"),
        ([{"role": "user", "content": ""}], (), "the message has no text"),
        ([{"role": "user", "content": "<|im_end|>"}], (), "the tokenizer turns '<|im_end|>'"),
    ],
)
def test_a_prompt_that_no_row_begins_with_is_refused(messages, tools, message, tokenizer):
    with pytest.raises(DataError, match="the prompt: ") as error:
        build(CompletionTraining, tokenizer).write_prompt(messages, tools)
    assert message in str(error.value)
