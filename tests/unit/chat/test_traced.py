"""Text that knows where its characters come from: the same as `str` in all it does, and never wrong about an origin."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.chat.environment import compile_chat_template, compile_plain_template, compile_template
from dumbo.chat.rendering import TemplateRenderer
from dumbo.chat.traced import REWRITTEN, TOOLS, Field, Run, TracedText, join, mark_generated, runs_of, to_json, trace

LETTERS = ("abcdefgh", "ABCDEFGH")
"""The letters of two fields. Each stands in its field once, and in no other text: it tells itself where it is from."""
CONTENTS = ("  a b,\n c ", "", "   ", "abc", "a,b,c", "\n\na\n")
GAPS = st.sampled_from(["", "", " ", "\n", ", ", "\t\n", "\r\n", "  "])


@st.composite
def field_texts(draw, letters):
    return "".join(draw(GAPS) + letter for letter in letters[: draw(st.integers(0, len(letters)))]) + draw(GAPS)


def origins(text) -> list[tuple[Field | None, int]]:
    """The field of each character and its place there."""
    runs = runs_of(text)
    assert sum(run.length for run in runs) == len(text)
    return [
        (run.field, run.start + place if run.start != REWRITTEN else REWRITTEN)
        for run in runs
        for place in range(run.length)
    ]


def check(text: str, plain: str, fields, keeps: bool) -> None:
    """`text` is `plain`; what it says of its characters is right; and it says it of all letters where it `keeps`."""
    assert str.__eq__(text, plain) and hash(text) == hash(plain) and len(text) == len(plain)
    for character, (field, place) in zip(plain, origins(text), strict=True):
        if field is not None:
            assert field.text[place] == character
        if character.isalpha():
            [home] = [own for own in fields if character in own.text]
            assert field in (home, None)
            assert field is home or not keeps


SHORT = st.sampled_from([" ", "\n", ",", ", ", "x", "a", "b", "ab", " c", "D", ""])
COUNTS = st.sampled_from([-2, -1, 0, 1, 2])
PLACES = st.none() | st.integers(-20, 20)
STEPS = {
    "strip": st.tuples(st.none() | SHORT),
    "lstrip": st.tuples(st.none() | SHORT),
    "rstrip": st.tuples(st.none() | SHORT),
    "removeprefix": st.tuples(SHORT),
    "removesuffix": st.tuples(SHORT),
    "split": st.tuples(st.none() | SHORT.filter(bool), COUNTS),
    "rsplit": st.tuples(st.none() | SHORT.filter(bool), COUNTS),
    "partition": st.tuples(SHORT.filter(bool)),
    "rpartition": st.tuples(SHORT.filter(bool)),
    "splitlines": st.tuples(st.booleans()),
    "replace": st.tuples(SHORT.filter(bool), st.sampled_from(["", " ", "--", "\n"]), COUNTS),
    "cut": st.builds(slice, PLACES, PLACES),
    "before": st.sampled_from(["", "0", "1 "]),
    "after": st.sampled_from(["", "0", " 1"]),
    "joined": st.sampled_from(["", "2", "\n"]),
}
LOSING_STEPS = {
    "upper": st.tuples(),
    "title": st.tuples(),
    "swapcase": st.tuples(),
    "zfill": st.tuples(st.integers(0, 30)),
    "replace": st.tuples(st.just(""), st.just("_")),
    "cut": st.builds(slice, PLACES, PLACES, st.sampled_from([-1, 2, -2])),
}


def apply(text, name, argument, choose):
    """`text` after one step; of several parts, the one that `choose` says, or all of them joined again."""
    if name == "cut":
        return text[argument]
    if name == "before":
        return argument + text
    if name == "after":
        return text + argument
    if name == "joined":
        return (
            TracedText(argument).join([text, "3", text])
            if type(text) is TracedText
            else argument.join([text, "3", text])
        )
    result = getattr(text, name)(*argument)
    if isinstance(result, str):
        return result
    if not result:
        return text
    return result[choose % len(result)] if choose % 3 else join(result) if type(text) is TracedText else "".join(result)


@given(field_texts(LETTERS[0]), field_texts(LETTERS[1]), st.data())
@settings(max_examples=250, derandomize=True)
def test_chains_of_operations_give_what_str_gives_and_keep_every_origin(first, second, data):
    traced = [trace(first, 0, "content"), trace(second, 1, "content")]
    fields = [Field(0, "content", "") if not text else runs_of(text)[0].field for text in traced]
    text, plain = traced[0] + "|" + traced[1], first + "|" + second
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(sorted(STEPS)))
        argument, choose = data.draw(STEPS[name]), data.draw(st.integers(0, 8))
        text, plain = apply(text, name, argument, choose), apply(plain, name, argument, choose)
        check(text, plain, fields, keeps=True)


@given(field_texts(LETTERS[0]), st.sampled_from(sorted(LOSING_STEPS)), st.data())
@settings(max_examples=100, derandomize=True)
def test_other_operations_give_what_str_gives_and_know_nothing(text, name, data):
    traced, argument = trace(text, 0, "content"), data.draw(LOSING_STEPS[name])
    changed = apply(traced, name, argument, 0)
    assert changed == apply(text, name, argument, 0)
    # An empty cut may know its place.
    assert all(run.field is None or run.length == 0 for run in runs_of(changed)) or changed == text


@pytest.mark.parametrize(
    "expression",
    [
        "m.content",
        "m['content']",
        "m.get('content')",
        "m.content ~ '!' ~ 1",
        "'[' ~ m.content ~ ']'",
        "'[INST] ' + m.content + ' [/INST]'",
        "m.content | trim",
        "m.content.strip('\n') | trim",
        "m.content | replace('\n', '\r\n')",
        "m.content | replace(' ', '')",
        "m.content.split(',')[-1]",
        "m.content.split(',', 1) | last",
        "m.content.split() | join(' ')",
        "m.content.splitlines() | join('\n')",
        "m.content.partition(',')[0]",
        "[m.content, 'x', m.content] | join('-')",
        "messages | map(attribute='content') | join('-')",
        "messages | join('-', attribute='content')",
        "messages | join('', 'content')",
        "messages | map(attribute='content') | map('trim') | list | join",
        "m.content[1:]",
        "m.content[:-1]",
        "m.content[1:][:2]",
        "m.content or 'nothing'",
        "m.content | default('nothing')",
        "m.content | string",
        "m.content if m.role == 'user' else ''",
        "(1, m.content) | last",
        "{'text': m.content}.text",
        "m | items | map('last') | list | last",
        "m.content.removeprefix('a').removesuffix('c')",
        "'' ~ m.content",
    ],
)
def test_expressions_of_templates_keep_what_is_left(expression):
    for content in CONTENTS:
        check_template("{% for m in messages %}{{ " + expression + " }}{% endfor %}", content)


@pytest.mark.parametrize(
    "block",
    [
        "{% set x %}[{{ m.content }}]{% endset %}{{ x }}{{ x | trim }}",
        "{% set x = m.content ~ '.' %}{{ x[1:] }}",
        "{% macro say(text) %}<{{ text }}>{% endmacro %}{{ say(m.content) }}{{ say(m.content) | trim }}",
        "{% macro frame() %}({{ caller() }}){% endmacro %}{% call frame() %}{{ m.content }}{% endcall %}",
        "{% filter trim %} {{ m.content }} {% endfilter %}",
        "{% filter replace('b', '') %}{{ m.content }}{% endfilter %}",
        "{% set ns = namespace(text='') %}{% set ns.text = ns.text ~ m.content ~ ';' %}{{ ns.text }}",
        "{% for word in m.content.split(',') %}{{ word }}{% if not loop.last %}/{% endif %}{% endfor %}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
        "{%- generation -%} {{ m.content ~ 'x' }} {%- endgeneration -%}",
        "{% if m.content %}{{ m.content }}{% else %}nothing{% endif %}",
        "{% set system, rest = m.content, 'x' %}{{ system }}{{ rest }}",
        "{% with text = m.content | trim %}{{ text }}{% endwith %}",
        "{% if 'b' in m.content %}{{ m.content.split('b')[0] }}{% continue %}{% endif %}{{ m.content }}",
    ],
)
def test_blocks_of_templates_keep_what_is_left(block):
    for content in CONTENTS:
        check_template("{% for m in messages %}" + block + "{% endfor %}", content)


def check_template(template: str, content: str) -> None:
    """Rendered with and without traces, a template writes the same, and the traces are right and complete."""
    messages = [{"role": "user", "content": content}]
    traced = [{"role": "user", "content": trace(content, 0, "content")}]
    plain = compile_plain_template(template).render(messages=messages)
    for compiled in (compile_template(template), compile_chat_template(template)):
        text = compiled.render(messages=traced)
        field = next((run.field for run in traced[0]["content"]._runs), None)
        assert type(text) is TracedText and text == plain
        for character, (origin, place) in zip(plain, origins(text), strict=True):
            if character in "abc" and content:
                assert origin is field
            if origin is not None:
                assert origin.text[place] == character


@pytest.mark.parametrize(
    "expression",
    ["m.content | upper", "m.content | list | join('')", "'%s' % m.content", "m.content[::-1]", "m.content | indent"]
    + ["'{}'.format(m.content)", "m.content * 2", "','.join([m.content])", "m.content | safe", "m.content | length"],
)
def test_what_cannot_be_followed_is_the_templates_own_text(expression):
    template = "{% for m in messages %}{{ " + expression + " }}{% endfor %}"
    text = compile_template(template).render(messages=[{"content": trace("a\nb", 0, "content")}])
    assert text == compile_plain_template(template).render(messages=[{"content": "a\nb"}])
    for character, (field, place) in zip(text, origins(text), strict=True):
        assert field is None or field.text[place] == character


def test_a_place_where_nothing_is_left_is_known():
    template = "{% for m in messages %}<{{ m.content }}|{{ m.content | trim }}>{% endfor %}"
    text = compile_template(template).render(messages=[{"content": trace("", 0, "content")}])
    assert [(run.length, run.field is not None) for run in runs_of(text)] == [
        (1, False),
        (0, True),
        (1, False),
        (0, True),
        (1, False),
    ]
    blank = compile_template("{{ ' ' ~ text.strip() ~ ' ' }}").render(text=trace("  \n", 0, "content"))
    assert [run.field.text for run in runs_of(blank) if run.field] == ["  \n"]


def test_marks_of_generation_cover_their_block_alone():
    template = "a{% generation %}b{{ text }}{% endgeneration %}{{ text }}{% generation %}{% endgeneration %}"
    text = compile_chat_template(template).render(text=trace("xy", 0, "content"))
    marked = "".join(str((run.block is not None) * run.length) for run in runs_of(text))
    assert text == "abxyxy" and marked == "0120"
    first, second = runs_of(mark_generated("x") + mark_generated("y"))
    assert mark_generated("") == "" and first.block is not second.block, "blocks that touch are two"


def test_texts_within_calls_of_tools_are_traced_with_their_keys():
    call = {"function": {"name": "find", "arguments": {"city": "Rome", "days": 3, "deep": [{"no": None}]}}}
    loop = (
        "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}({% for k, v in "
        "c.function.arguments.items() %}{{ k }}={{ v if v is string else v | tojson }};"
        "{% endfor %}){% endfor %}{% endfor %}"
    )
    messages = [{"role": "assistant", "content": "", "tool_calls": [call, call]}]
    rendered = renderer(loop).render(messages)
    assert rendered.text == 'find(city=Rome;days=3;deep=[{"no": null}];)' * 2
    pieces = [(rendered.text[piece.start : piece.end], piece.field.name) for piece in rendered.pieces]
    arguments = "tool_calls.0.function.arguments"
    first = [
        ("find", "tool_calls.0.function.name"),
        ("city", f"{arguments}.city"),
        ("Rome", f"{arguments}.city"),
        ("days", f"{arguments}.days"),
        ("deep", f"{arguments}.deep"),
        ('[{"no": null}]', f"{arguments}.deep.0.no"),
    ]
    assert pieces[:6] == first
    assert [(text, name.replace("calls.1", "calls.0")) for text, name in pieces[6:]] == first


def test_json_stands_for_what_is_in_it():
    rendered = renderer(
        "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | tojson(indent=1) }}{% endfor %}"
    ).render([{"role": "assistant", "content": "", "tool_calls": [{"name": 'say "ﬁ"', "n": 1}]}], [{"name": "<b>"}])
    tools, calls = (piece for piece in rendered.pieces if piece.end > piece.start)
    inside = {piece.field.name for piece in rendered.pieces}
    assert inside == {"tools.0.name", "tool_calls.0.name", "tool_calls.0.n"}, "and it is known what is in it"
    assert rendered.text[: tools.end] == '[{"name": "<b>"}]' and tools.field.message == TOOLS
    assert rendered.text[calls.start :] == '[\n {\n  "name": "say \\"ﬁ\\"",\n  "n": 1\n }\n]'
    assert tools.offset == calls.offset == REWRITTEN and calls.field.message == 0
    assert to_json({"a": [1, None, True]}) == '{"a": [1, null, true]}' and type(to_json([1])) is str


def test_json_of_a_part_or_of_several_messages_stands_for_nothing():
    first, second = trace("abc", 0, "content"), trace("d", 1, "content")
    assert type(to_json(first[:2])) is str and type(to_json([first, second])) is str
    assert isinstance(to_json(trace(" abc\n", 0, "content").strip()), TracedText), "whitespace is no loss"


@pytest.mark.parametrize(
    ("cut", "is_known"),
    [
        (slice(None, -1), True),
        (slice(1, -2), True),
        (slice(1, None), True),
        (slice(None, -3), False),
        (slice(2, None), False),
        (slice(None, -5), False),
    ],
)
def test_json_may_lose_its_brackets_and_no_more(cut, is_known):
    """Mistral writes a call without its last bracket, to put the call's number behind it."""
    made = trace({"name": "f", "arguments": {"x": "a}"}}, 0, "calls")
    text = to_json(made)
    assert text.endswith('"a}"}}')
    names = {run.field and run.field.name for run in runs_of(text[cut])}
    assert names == ({"calls.name", "calls.arguments", "calls.arguments.x"} if is_known else {None})
    assert text[cut] == str.__getitem__(text, cut)


def test_json_beside_other_json_keeps_its_own_texts():
    first, second = to_json(trace(["a"], 0, "first")), to_json(trace(["b", "c"], 1, "second"))
    both = first + second
    assert {run.field.name for run in runs_of(both[: len(first)])} == {"first.0"}
    assert {run.field.name for run in runs_of(both[len(first) :])} == {"second.0", "second.1"}
    assert runs_of(both[3:3]) == ()


def test_a_text_of_the_template_has_no_field():
    assert runs_of("x") == (Run(1, None, 0, None),) and runs_of("") == ()
    assert origins(TracedText("ab")) == [(None, 0), (None, 1)]


def renderer(template: str) -> TemplateRenderer:
    class NoTokens:
        special_tokens_map: dict[str, str] = {}

    return TemplateRenderer(template, NoTokens())


def test_words_that_are_alike_keep_their_places():
    text = "a a  b " + trace("a b", 0, "content")
    for words in (text.split(), text.split(None, -1), text.rsplit(), text.split(" "), text.rsplit(None, 4)):
        origin = [origins(word)[0][1] for word in words if word and origins(word)[0][0]]
        assert words[-2:] == ["a", "b"] and origin == [0, 2]
    assert [origins(word)[0][0] is None for word in text.split()] == [True, True, True, False, False]
