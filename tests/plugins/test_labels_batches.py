"""Rows that are made in batches, by the forms that they share, are those that are made one by one."""

import json
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.chat import batches
from dumbo.data.records import Example, MessageTraining, Origin, Text
from dumbo.errors import DataError
from tests.builders import ROOT, thinned
from tests.plugins.chat_labels import KINDS, ORIGIN, chat, jinja, metaspace, talk, tokenizer_of
from tests.plugins.template_twins import TWINS
from tests.plugins.test_labels_any_conversation import choices, conversations, options_of

SENTENCES = [line for line in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines() if line.strip()]


def shown(results):
    """Results to be compared: errors by what they say."""
    return [
        str(result)
        if isinstance(result, DataError)
        else (list(result.input_ids), list(result.labels), result.origin, dict(result.counts))
        for result in results
    ]


def check(build, records, size=8):
    """All ways to make examples give the same."""
    given = [records[start : start + size] for start in range(0, len(records), size)]
    made = [result for results in build.encode_batches(given) for result in results]
    assert shown(made) == shown(build.encode_batch(records))
    assert all(type(result.input_ids) is array for result in made if isinstance(result, Example))
    return made


@pytest.mark.parametrize("name", thinned(TWINS, 2))
def test_any_conversations_are_the_same_in_batches(name):
    twin = TWINS[name]

    @settings(max_examples=6, derandomize=True)
    @given(st.data())
    def compare(data):
        tokenizer = tokenizer_of(data.draw(st.sampled_from(sorted(KINDS))))
        build = chat(tokenizer, chat_template=twin.jinja, **options_of(data.draw(choices(twin))))
        check(build, data.draw(st.lists(conversations(twin), min_size=2, max_size=6)) * 3, size=5)

    compare()


@pytest.mark.parametrize("name", ["chatml", "trimming", "two_ends", "plain_end", "marked"])
def test_any_conversations_of_a_users_template_are_the_same_in_batches(name):
    twin = TWINS[name]

    @settings(max_examples=8, derandomize=True)
    @given(st.data())
    def compare(data):
        tokenizer = tokenizer_of(data.draw(st.sampled_from(sorted(KINDS))))
        build = jinja(tokenizer, twin.jinja, **options_of(data.draw(choices(twin))))
        check(build, data.draw(st.lists(conversations(twin), min_size=2, max_size=6)) * 3, size=5)

    compare()


def rows(count):
    """Conversations as they are: texts of several lines, two to five messages, some with flags of their own."""
    for row in range(count):
        texts = ["\n".join(SENTENCES[(7 * row + 3 * place) % 100 :][:3]) for place in range(2 + row % 4)]
        roles = ["user", "assistant", "user", "assistant", "user"]
        training = [MessageTraining(flag) for flag in (None, True, False, None, True)][: len(texts)]
        yield talk(*zip(roles, texts, strict=False), training=training if row % 5 == 0 else ())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"train_on_inputs": True}, {"train_on_eos": "none"}])
def test_long_rows_are_the_same_in_batches(kind, options):
    made = check(chat(tokenizer_of(kind), **options), list(rows(24)))
    assert all(isinstance(result, Example) for result in made)
    check(jinja(tokenizer_of(kind), **options), list(rows(24)))


def long_way_of(build, records, monkeypatch):
    """The records that are made without a form."""
    seen, long_way = [], build.try_prepare
    monkeypatch.setattr(build, "try_prepare", lambda record: seen.append(record) or long_way(record))
    list(build.encode_batches([records]))
    return seen


def test_forms_are_used(monkeypatch):
    seen = long_way_of(chat(tokenizer_of("byte_level")), list(rows(600)), monkeypatch)
    assert 4 < len(seen) < 40  # The first of each kind, and some that are compared.


@pytest.mark.parametrize(("template", "is_usual"), [("chatml", True), ("qwen3", False)])
def test_thoughts_have_forms_where_the_template_writes_them_as_any_text(template, is_usual, monkeypatch):
    build = chat(tokenizer_of("byte_level"), chat_template=template)
    thinking = [talk(("user", "How?"), ("assistant", f"<think>so {row}</think>\n\nthus")) for row in range(100)]
    check(build, thinking)
    assert (len(long_way_of(build, thinking, monkeypatch)) < 10) == is_usual


@pytest.mark.parametrize(
    "content",
    [
        *("", " ", "<|im_end|>", "a<|im_start|>b", "\ud800", "x\n", "\n x", "</s>", "é<|im_end|>"),
        *("<think>x</think>y", "<think>", "x</think>", "<reasoning>x", "a <think> b</think><think>", "</think>\n"),
    ],
)
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_odd_contents_among_others_are_the_same_in_batches(kind, content):
    odd = [talk(("user", "q"), ("assistant", content)), talk(("user", content), ("assistant", "a"))]
    usual = [talk(("user", "What is it?"), ("assistant", "It is this."))] * 3
    for build in (chat(tokenizer_of(kind)), jinja(tokenizer_of(kind)), chat(tokenizer_of(kind), chat_template="qwen3")):
        check(build, [*usual, *odd, *usual])


def test_other_records_and_rows_are_the_same_in_batches():
    odd = [Text("x", ORIGIN), talk(), talk("user: q"), talk({"role": "user"}), talk({"role": 3, "content": "q"})]
    odd += [talk({"role": "user", "content": "q", "name": "n"}, "assistant: a"), talk("bot: q", "assistant: a")]
    odd += [talk("user: q", "assistant: a", tools=[{"name": "f"}])]
    check(chat(tokenizer_of("byte_level"), chat_template="qwen3"), [*rows(4), *odd, *odd, *odd])


def test_tokens_that_take_in_spaces_have_no_forms():
    tokenizer = metaspace("{% for m in messages %}{{ m.role }}:<g>{{ m.content }}</s>{% endfor %}")
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("<g>", rstrip=True)], special_tokens=True)
    check(chat(tokenizer), [talk(("user", " q"), ("assistant", " a b")) for _ in range(6)])


def test_two_start_tokens_are_an_error_in_batches_too():
    build = jinja(tokenizer_of("metaspace"), "<s><s>{{ messages[0].content }}{{ messages[1].content }}")
    made = check(build, [talk("user: q", "assistant: a")] * 6)
    assert all("two start tokens" in str(result) for result in made)


def test_a_template_that_writes_another_text_later_is_found_out(monkeypatch):
    build = chat(tokenizer_of("byte_level"))
    monkeypatch.setattr(build.renderer, "render_plain", lambda messages: "x")
    made = [result for results in build.encode_batches([list(rows(30))]) for result in results]
    assert any("cannot be followed" in str(result) for result in made if isinstance(result, DataError))


def test_labels_that_are_others_without_a_form_are_found_out(monkeypatch):
    build = chat(tokenizer_of("byte_level"))
    monkeypatch.setattr(batches.Forms, "fill", moved(batches.Forms.fill))
    made = [result for results in build.encode_batches([list(rows(30))]) for result in results]
    assert any("cannot be followed" in str(result) for result in made if isinstance(result, DataError))


def moved(fill):
    """`fill` with a mistake in its spans."""

    def call(self, record):
        found = fill(self, record)
        return found and found._replace(spans=[(start + 5, end) for start, end in found.spans])

    return call


def test_origins_stay_with_their_rows():
    build = chat(tokenizer_of("byte_level"))
    records = [talk("user: q", f"assistant: {json.dumps(row)}") for row in range(20)]
    records = [type(record)(record.messages, Origin("file", row)) for row, record in enumerate(records)]
    assert [result.origin.row for result in check(build, records)] == list(range(20))
