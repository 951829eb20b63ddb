"""What a template writes around texts that it cannot look into is what it writes around any."""

from random import Random

import jinja2
import pytest

from dumbo.chat import forms
from dumbo.chat.environment import compile_chat_template
from dumbo.chat.names import TEMPLATES
from dumbo.chat.unseen import OutlineFinder
from tests.builders import thinned
from tests.plugins.chat_labels import chat, talk, tokenizer_of

GIVEN = {"tools": None, "documents": None, "add_generation_prompt": False, "bos_token": "<s>", "eos_token": "</s>"}
LOOP = "{%% for m in messages %%}%s{%% endfor %%}"


def outline_of(template, roles=("user", "assistant")):
    return OutlineFinder(template, jinja2.Undefined, GIVEN).find(roles)


def parts_of(template, roles=("user", "assistant")):
    """The texts of an outline, with the messages' numbers where their contents go."""
    return [part.text if part.message is None else part.message for part in outline_of(template, roles).parts]


def test_texts_and_places_are_found():
    template = LOOP % "{{ '<' ~ m.role + '>' }}{{ m.content }}{% if not loop.last %}{{ eos_token }}{% endif %}"
    assert parts_of(template) == ["<user>", 0, "</s><assistant>", 1]
    assert parts_of(LOOP % "{% if m.role == 'user' %}{{ m['content'] }}!{% endif %}") == [0, "!"]
    assert parts_of("{% macro w(m) %}[{{ m.content }}]{% endmacro %}" + LOOP % "{{ w(m) }}") == ["[", 0, "][", 1, "]"]
    assert parts_of("{{ messages | map(attribute='content') | first }}{{ messages[-1].content }}") == [0, 1]
    assert parts_of(LOOP % "{% generation %}{{ m.content }}.{% endgeneration %}") == [0, ".", 1, "."]


def test_stripping_is_followed():
    [_, first, text, second] = outline_of(LOOP % "{{ (' [' + m.content) | trim + m.content.rstrip() }}").parts[:4]
    assert (first.strips_left, first.strips_right) == (False, True)
    assert (second.strips_left, second.strips_right) == (False, False) and text.message == 0
    [only] = outline_of("{{ (' \n' ~ messages[0].content ~ ' ').strip() }}").parts
    assert (only.strips_left, only.strips_right) == (True, True)


def test_what_contents_must_lack_is_noted():
    template = (
        "{% if '<x>' not in m.content and m.content != 'no' %}{{ m.content.lstrip('\n').split('<y>')[-1] }}{% endif %}"
    )
    outline = outline_of(LOOP % template)
    assert outline.lacks == {"<x>", "no", "<y>"} and outline.no_left == {"\n"} and not outline.no_right
    assert outline_of(LOOP % "{{ m.content if m.content in ['a', 'b'] else m.content.rstrip('\t') }}").lacks == {
        "a",
        "b",
    }


@pytest.mark.parametrize(
    "leak",
    [
        "{{ m.content | length }}",
        "{{ m.content | upper }}",
        "{{ m.content[0] }}",
        "{{ m.content[:5] }}",
        "{{ m.content | tojson }}",
        "{{ m | tojson }}",
        "{{ m.content ~ (m.content | int) }}",
        "{{ m.content.upper() }}",
        "{{ m.content.splitlines()[0] }}",
        "{{ m.content.split()[0] }}",
        "{{ m.content.strip('ab') }}",
        "{{ m.content | replace('a', 'b') }}",
        "{{ m.content | e }}",
        "{{ m.content + ('<' | e) }}",
        "{{ '%s' % m.content }}",
        "{{ '%s' | format(m.content) }}",
        "{{ m.content * 2 }}",
        "{{ [m.content, 'x'] | join }}",
        "{% for c in m.content %}{{ c }}{% endfor %}",
        "{% if m.content in 'yes no' %}x{% endif %}{{ m.content }}",
        "{% if 'yes'.startswith(m.content) %}x{% endif %}{{ m.content }}",
        "{% if ('x' ~ m.content).startswith('xy') %}x{% endif %}{{ m.content }}",
        "{% if 'ab' in ('a' ~ m.content) %}x{% endif %}{{ m.content }}",
        "{% if m.content < 'b' %}x{% endif %}{{ m.content }}",
        "{% if m.content is lower %}x{% endif %}{{ m.content }}",
        "{% if m.content == messages[0].content %}x{% endif %}{{ m.content }}",
        "{% if loop.changed(m.content) %}x{% endif %}{{ m.content }}",
        "{% if {'a': 1}[m.content] %}x{% endif %}{{ m.content }}",
        "{% if {'a': 1}.get(m.content) %}x{% endif %}{{ m.content }}",
        "{% if '' in m.content %}x{% endif %}{{ m.content }}",
        "{% set ns = namespace(t=m.content) %}{{ ns.t | title }}",
        "{% filter upper %}{{ m.content }}{% endfilter %}",
        "{{ strftime_now('%f') }}{{ m.content }}",
        "{{ ['a', 'b'] | random }}{{ m.content }}",
        "{{ lipsum() }}{{ m.content }}",
        "{{ m.content }}{{ raise_exception('no') }}",
        "{{ messages | map(attribute='content') | unique | list | length }}",
        "{{ messages | sort(attribute='content') | length }}{{ m.content }}",
        "{{ m.content | no_such_filter }}",
        "{{ m.role }}",
    ],
)
def test_a_template_that_looks_into_a_text_has_no_outline(leak):
    assert outline_of(LOOP % leak) is None


BITS = (
    "a",
    "é",
    "🙂",
    " ",
    "\n",
    "\t",
    "\x1c",
    "\u2028",
    "</think>",
    "<tool_response>",
    "Yes",
    "{{ x }}",
    "[/INST]",
    "<|",
)


@pytest.mark.parametrize("name", thinned(TEMPLATES, 3))
def test_a_form_is_filled_as_the_template_writes(name):
    template = TEMPLATES[name]
    build = chat(tokenizer_of("byte_level", *template.needs), chat_template=name)
    known = forms.Forms(build.renderer.outline, build.prepare)
    draw, num_filled = Random(name), 0
    for _ in range(60):
        roles = [*draw.choice([[], [], ["system"]]), *["user", "assistant"] * draw.randint(1, 2)]
        record = talk(*((role, "".join(draw.choices(BITS, k=draw.randint(1, 3)))) for role in roles))
        found = known.fill(record)
        if found is None:
            continue
        prepared = build.prepare(record)
        assert found.text == prepared.rendered.text
        assert found.spans == prepared.selection.spans and found.counts == prepared.selection.counts
        assert found.contents == [(piece.start, piece.end) for piece in prepared.rendered.pieces]
        num_filled += 1
    assert num_filled > 5


def test_no_more_is_kept_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(forms, "_MOST_MESSAGES", 6)
    build = chat(tokenizer_of("byte_level"))
    known = forms.Forms(build.renderer.outline, build.prepare)
    kinds = [["user", "assistant"] * count for count in (1, 2, 3)]
    records = [talk(*((role, "a") for role in roles)) for roles in kinds]
    found = [known.fill(record) is not None for record in (*[records[0]] * 3, *[records[1]] * 3, *[records[2]] * 3)]
    assert found == [False, False, True] * 3 and known.fill(records[2]) is not None
    assert known.fill(records[0]) is None  # All before the third kind are forgotten.


def test_an_outline_is_what_jinja_writes():
    template = LOOP % "{{ m.role + ': ' ~ m.content | trim }}{{ '\n' if not loop.last }}"
    texts = ["one ", " two"]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    written = "".join(part if isinstance(part, str) else texts[part].strip() for part in parts_of(template))
    assert written == compile_chat_template(template).render(messages=messages)
