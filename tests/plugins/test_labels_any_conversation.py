"""Labels of random conversations, templates and options, against a reference that decides for every character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.data.records import CharRange, Example, MessageTraining
from dumbo.errors import DataError
from tests import builders
from tests.builders import CHATML
from tests.plugins.chat_labels import KINDS, call_of, chat, jinja, talk, tokenizer_of
from tests.plugins.label_reference import Choice, reference_labels
from tests.plugins.template_twins import TWINS

FRAGMENTS = [
    "a",
    " ",
    "\n",
    "\t",
    "é",
    "🙂",
    "ﬁ",
    " the",
    " answer",
    "Hello world!",
    "user",
    "{{ x }}",
    "'",
    ".\n\n",
    "▂",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join)
MODES = st.sampled_from([None, "turn", "all", "last", "none"])
FLAGS = st.sampled_from([None, None, True, False])


@st.composite
def ranges(draw, text):
    """None, or some of the parts that a text falls into, each with a flag."""
    if not text or draw(st.booleans()):
        return ()
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=3))})
    parts = [CharRange(start, end, draw(FLAGS)) for start, end in zip(cuts, cuts[1:], strict=False)]
    return tuple(part for part in parts if draw(st.integers(0, 3))) or tuple(parts[:1])


@st.composite
def conversations(draw, twin):
    roles = draw(st.lists(st.sampled_from(["user", "assistant", "assistant"]), max_size=4)) + ["assistant"]
    if twin.alternates:
        roles = ["user", "assistant"] * draw(st.integers(1, 3)) + draw(st.sampled_from([[], ["user"]]))
        roles = draw(st.sampled_from([[], ["system"]])) + roles
    elif draw(st.booleans()):
        others = ["system", "tool"] if twin.thinks else ["system"]
        roles.insert(draw(st.integers(0, len(roles))), draw(st.sampled_from(others)))
    messages, training = [], []
    for role in roles:
        message = {"role": role, "content": draw(TEXTS)}
        thought = draw(TEXTS) if twin.thinks and role == "assistant" and draw(st.booleans()) else None
        if thought is not None:
            message["reasoning_content"] = thought
        if twin.thinks and role == "assistant" and draw(st.integers(0, 3)) == 0:
            message["tool_calls"] = [call_of("f", x=draw(TEXTS), n=5)] * draw(st.integers(1, 2))
        messages.append(message)
        training.append(MessageTraining(draw(FLAGS), draw(ranges(message["content"])), draw(ranges(thought))))
    tools = [{"name": "f", "description": draw(TEXTS)}] if twin.jinja.startswith("{% for tool") else []
    return talk(*messages, tools=tools, training=training if draw(st.booleans()) else ())


@st.composite
def choices(draw, twin):
    whole = draw(st.integers(0, 3)) == 0
    roles = [("assistant",)] if whole else [("assistant",), ("assistant",), ("user", "assistant"), ("system", "tool")]
    return Choice(
        whole_text=whole,
        roles=draw(st.sampled_from(roles)),
        eos=draw(MODES),
        eot=draw(MODES),
        hidden=draw(st.sampled_from(["mask", "mask", "train", "error"])),
        marked=twin.marked,
    )


def options_of(choice) -> dict:
    """The options that say the same."""
    options = {"train_on_eos": choice.eos, "train_on_eot": choice.eot, "hidden_thinking": choice.hidden}
    roles = {} if choice.whole_text else {"roles_to_train": choice.roles}
    return {**options, **roles, "train_on_inputs": choice.whole_text}


def check(build, tokenizer, twin, conversation, choice):
    """One conversation has the labels of the reference, or is refused where there is nothing to train on."""
    segments = list(twin.write(conversation))
    text = "".join(segment.text for segment in segments)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids += [tokenizer.eos_token_id] if choice.appends_eos and not text.rstrip().endswith(choice.appends_eos) else []
    expected = reference_labels(tokenizer, segments, conversation, choice, ids)
    is_refused = expected.says_nothing or all(label == -100 for label in expected.labels[1:])
    try:
        example = build(conversation)
    except DataError as error:
        assert is_refused, str(error)
        return None
    assert not is_refused
    lead = len(example.input_ids) - len(ids)
    assert example.input_ids[lead:] == ids
    assert example.labels[lead:] == expected.labels
    assert example.counts.get("straddling tokens", 0) == expected.straddling
    assert example.input_ids[:lead] == ([tokenizer.bos_token_id] if lead else [])
    assert example.labels[:lead] == ([tokenizer.bos_token_id if choice.whole_text else -100] if lead else [])
    return example


@pytest.mark.parametrize("end", [None, "none"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_end_of_an_answer_that_is_all_empty_is_found(whole, end):
    """Its empty thought and its empty content are in two places, and the turn ends behind the second."""
    twin, tokenizer, choice = TWINS["qwen3"], tokenizer_of("byte_level"), Choice(whole_text=whole, eot=end)
    build = chat(tokenizer, chat_template=twin.jinja, **options_of(choice))
    answer = {"role": "assistant", "content": "", "reasoning_content": ""}
    check(build, tokenizer, twin, talk({"role": "user", "content": "q"}, answer), choice)


@pytest.mark.parametrize("name", TWINS)
def test_any_conversation_has_the_labels_of_the_reference(name):
    twin = TWINS[name]

    @settings(max_examples=builders.examples(25 if name == "qwen3" else 35), derandomize=True)
    @given(st.data())
    def compare(data):
        tokenizer = tokenizer_of(data.draw(st.sampled_from(sorted(KINDS))))
        choice = data.draw(choices(twin))
        build = chat(tokenizer, chat_template=twin.jinja, **options_of(choice))
        for _ in range(4):
            check(build, tokenizer, twin, data.draw(conversations(twin)), choice)

    compare()


@pytest.mark.parametrize("name", ["chatml", "trimming", "two_ends", "plain_end", "tool_calls"])
def test_a_template_of_the_users_own_has_the_labels_of_the_reference_and_an_end_token(name):
    twin = TWINS[name]

    @settings(max_examples=builders.examples(30), derandomize=True)
    @given(st.data())
    def compare(data):
        tokenizer = tokenizer_of(data.draw(st.sampled_from(sorted(KINDS))))
        choice = data.draw(choices(twin))
        choice = Choice(**{**vars(choice), "appends_eos": tokenizer.eos_token})
        build = jinja(tokenizer, twin.jinja, **options_of(choice))
        for _ in range(2):
            check(build, tokenizer, twin, data.draw(conversations(twin)), choice)

    compare()


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_marks_give_the_mask_of_transformers(kind):
    tokenizer = tokenizer_of(kind)
    template = TWINS["marked"].jinja
    by_marks, by_proof = chat(tokenizer, chat_template=template), chat(tokenizer)

    @settings(max_examples=builders.examples(25), derandomize=True)
    @given(conversations(TWINS["marked"]))
    def compare(conversation):
        conversation = talk(*conversation.messages)
        example = by_marks(conversation)
        assert example == by_proof(conversation)
        if example.counts:
            return  # Transformers trains tokens that reach over the edge.
        theirs = tokenizer.apply_chat_template(
            list(conversation.messages),
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert example.input_ids == theirs["input_ids"]
        assert [int(label != -100) for label in example.labels] == theirs["assistant_masks"]

    compare()


@settings(max_examples=builders.examples(20), derandomize=True)
@given(st.lists(conversations(TWINS["chatml"]), max_size=6))
def test_a_batch_is_its_rows(batch):
    build = chat(tokenizer_of("byte_level"), chat_template=CHATML)
    for record, result in zip(batch, build.encode_batch(batch), strict=True):
        if isinstance(result, Example):
            assert result == build(record) == build.explain(record).example
        else:
            with pytest.raises(DataError) as error:
                build(record)
            assert str(error.value) == str(result)
