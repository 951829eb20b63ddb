"""Labels of the named templates: the last answer is what its prompt at inference leaves to write, and no more."""

import pytest

from dumbo.chat.names import TEMPLATES
from tests.builders import thinned
from tests.plugins.chat_labels import answer, call_of, chat, talk, tokenizer_of, trained

USER, ANSWERS = {"role": "user", "content": "is it?"}, (answer("the answer"), answer("no\n1"))
RESULT = {"role": "tool", "content": "5", "tool_call_id": "abcdefghi", "name": "f"}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "does", "parameters": {"type": "object", "properties": {}}},
}
CALLING = (USER, answer("", tool_calls=[call_of("f", x="é", n=5)]))


def conversations(template):
    """Conversations that a template writes, each with its tools."""
    yield (USER, ANSWERS[0], USER, ANSWERS[1]), ()
    if template.system:
        yield ({"role": "system", "content": "Be brief."}, USER, ANSWERS[0]), ()
    if template.tools:
        yield CALLING, (TOOL,)
        yield (*CALLING, RESULT, ANSWERS[1]), (TOOL,)
    if template.thinking:
        yield (USER, ANSWERS[0], USER, answer("yes", reasoning_content="hm")), ()


@pytest.mark.parametrize("name", thinned(TEMPLATES, 3))
def test_the_last_answer_is_what_the_prompt_leaves_to_write(name):
    template = TEMPLATES[name]
    tokenizer = tokenizer_of("byte_level", *template.needs)
    build = chat(tokenizer, chat_template=name)
    for messages, tools in conversations(template):
        explained = build.explain(talk(*messages, tools=tools))
        example = explained.example
        prompt = build.renderer.render(messages[:-1], tools, generation_prompt=True).text
        whole = build.renderer.render(messages, tools).text
        assert whole.startswith(prompt) and "".join(explained.texts) == whole
        assert trained(tokenizer, example)[-1] == whole[len(prompt) :].rstrip("\n")
        assert "straddling tokens" not in example.counts
        ids = build.write_prompt(messages[:-1], tools)
        if not build.frames[0].generation_prompt:
            assert ids is None
            continue
        if messages[-1].get("tool_calls"):
            continue  # Line breaks before a special token, as some calls begin, are other tokens than before a word.
        assert example.input_ids[: len(ids)] == ids and example.labels[len(ids)] == example.input_ids[len(ids)]
