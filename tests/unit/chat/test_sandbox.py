"""Templates that were written to get out of Jinja: of a model's folder, of the hub, of a configuration."""

import pytest

from dumbo.bridge.chat_templates import render_chat_template
from dumbo.chat.environment import compile_chat_template, compile_plain_template, compile_template
from dumbo.chat.unseen import OutlineFinder
from dumbo.cli.main import main
from dumbo.errors import DumboError
from dumbo.inference.opening import ChatTemplateWriter
from dumbo.plugins.jinja_formatter.patterns import parse_pattern
from tests import builders

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
ESCAPES = (
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ messages|join(attribute='__class__') }}",
    "{{ messages|selectattr('__class__')|list }}",
    "{{ messages[0].content.__class__.__base__.__subclasses__() }}",
    "{{ messages[0]['content'].__init__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ lipsum.__globals__['os'].popen('touch it-ran').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['datetime'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ('{0.__class__}').format('') }}",
    "{{ ('{0.__class__.__mro__}')|format }}{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ messages[0].content.replace('hi', '{0.__class__}').format(1) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].clear() }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ namespace(__class__=1).__class__ }}",
    "{{ tools.__class__ }}",
)
COMPILERS = {
    "the chat template": compile_chat_template,
    "the template of a train format": compile_template,
    "the same without traces": compile_plain_template,
}


def is_contained(render):
    """Whether rendering fails, or writes nothing of Python's insides."""
    try:
        text = str(render())
    except Exception as error:
        return not isinstance(error, MemoryError)
    return not any(word in text for word in ("<class", "<module", "<function", "object at", "posix", "x" * 1000))


def test_these_templates_do_lead_out_of_plain_jinja(tmp_path, monkeypatch):
    import jinja2

    monkeypatch.chdir(tmp_path)
    plain = jinja2.Environment()
    given = {"messages": [dict(message) for message in MESSAGES], "tools": []}
    leading = [t for t in ESCAPES[:-6] if not is_contained(lambda t=t: plain.from_string(t).render(**given))]
    assert len(leading) >= 12 and (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("template", ESCAPES)
@pytest.mark.parametrize("compiler", COMPILERS.values(), ids=COMPILERS)
def test_nothing_leads_out(compiler, template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    messages = [dict(message) for message in MESSAGES]
    assert is_contained(lambda: compiler(template).render(messages=messages, tools=[], bos_token="<s>"))
    assert messages == MESSAGES, "the row is as it was"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", ESCAPES)
def test_nothing_leads_out_where_transformers_renders(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_contained(lambda: render_chat_template(template, MESSAGES, [], False, {}))
    tokenizer = builders.build_tokenizer(chat_template=template)
    try:
        ids = ChatTemplateWriter(tokenizer).write(MESSAGES)
    except DumboError:
        return
    assert is_contained(lambda: tokenizer.decode(ids))


@pytest.mark.parametrize("template", ESCAPES)
def test_nothing_leads_out_of_the_outline_of_a_template(template):
    import jinja2

    found = OutlineFinder(template, jinja2.Undefined, {"tools": []}).find(["user", "assistant"])
    assert found is None or is_contained(lambda: repr(found))


@pytest.mark.parametrize("name", ["chat_template", "jinja_messages"])
@pytest.mark.parametrize("template", ["{{ messages[0].content.__class__.__mro__ }}", "{{ lipsum.__globals__['os'] }}"])
def test_a_run_with_such_a_template_ends_with_one_message(name, template, tmp_path, model_folder, rows_file, capsys):
    changes = {"datasets.0.train_format": {"type": name}, "trainer.data.cache": False}
    if name == "chat_template":
        changes["model.tokenizer.chat_template"] = template
    else:
        changes["datasets.0.train_format"]["template"] = template
    assert main(["train", str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "<class" not in said and "<module" not in said


def test_braces_of_columns_look_nothing_up():
    """They are filled in, and never formatted: `{a.__class__}` is a column of that name."""
    pattern = parse_pattern("{a.__class__} {b!r:>9}")
    assert pattern.write(lambda name: f"[{name}]") == "[a.__class__] [b!r:>9]"
