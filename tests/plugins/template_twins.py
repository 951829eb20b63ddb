"""Chat templates, each as Jinja and again as plain Python that writes the same text in segments."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from dumbo.chat.names import template_text
from dumbo.data.records import Conversation
from tests.builders import CHATML, CHATML_WITH_GENERATION
from tests.plugins.label_reference import Segment, Writer, own

EOT, EOS = "<|im_end|>", "</s>"


def chatml(conversation: Conversation) -> Iterator[Segment]:
    for index, message in enumerate(conversation.messages):
        answers = message["role"] == "assistant"
        yield Segment(f"<|im_start|>{message['role']}\n")
        yield own(message, index, "content", generated=answers)
        yield Segment(EOT, index, "eot", generated=answers)
        yield Segment("\n")


def trimming(conversation: Conversation) -> Iterator[Segment]:
    for index, message in enumerate(conversation.messages):
        yield Segment(f"<|im_start|>{message['role']}\n")
        yield own(message, index, "content", "lr")
        yield Segment(EOT, index, "eot")
        yield Segment("\n")


def two_ends(conversation: Conversation) -> Iterator[Segment]:
    for index, message in enumerate(conversation.messages):
        answers = message["role"] == "assistant"
        yield Segment(f"{message['role']}:")
        yield Segment(" ", index if answers else None, "body")
        yield own(message, index, "content")
        yield Segment(EOT, index, "eot")
        if answers:
            yield Segment("\n", index, "between")
            yield Segment(EOS, index, "eos")
        yield Segment("\n")


def marked_content(conversation: Conversation) -> Iterator[Segment]:
    """The end of the turn stands outside of the mark."""
    for index, message in enumerate(conversation.messages):
        yield Segment(f"<|im_start|>{message['role']}\n")
        yield own(message, index, "content", generated=message["role"] == "assistant")
        yield Segment(EOT, index, "eot")
        yield Segment("\n")


def plain_end(conversation: Conversation) -> Iterator[Segment]:
    for index, message in enumerate(conversation.messages):
        yield Segment(f"### {message['role']}\n")
        yield own(message, index, "content")
        yield Segment("\n", index if message["role"] == "assistant" else None, "body")
        yield Segment("[END]", index, "eot")
        yield Segment("\n")


def llama2(conversation: Conversation) -> Iterator[Segment]:
    """Without a generation prompt, with the system message in the user's first; what it writes is stripped."""
    messages = list(enumerate(conversation.messages))
    system = messages.pop(0) if messages[0][1]["role"] == "system" else None
    for index, message in messages:
        if message["role"] == "user":
            yield Segment("<s>[INST] ")
            if system:
                yield Segment("<<SYS>>\n")
                yield own(system[1], system[0], "content", "lr")
                yield Segment("\n<</SYS>>\n\n")
                system = None
            yield own(message, index, "content", "lr")
            yield Segment(" [/INST]")
        else:
            yield Segment(" ", index, "body")
            yield own(message, index, "content", "lr")
            yield Segment(" ", index, "body")
            yield Segment(EOS, index, "eot")


def tool_calls(conversation: Conversation) -> Iterator[Segment]:
    for tool in conversation.tools:
        yield Segment(json.dumps(tool, ensure_ascii=False) + "\n")
    for index, message in enumerate(conversation.messages):
        yield Segment(f"<|im_start|>{message['role']}\n")
        if message.get("reasoning_content"):
            yield Segment("<think>", index, "body")
            yield own(message, index, "reasoning")
            yield Segment("</think>", index, "body")
        yield own(message, index, "content")
        for call in message.get("tool_calls", ()):
            yield Segment("<tool_call>", index, "body")
            yield Segment(json.dumps(call["function"], ensure_ascii=False), index, "text", "call")
            yield Segment("</tool_call>", index, "body")
        yield Segment(EOT, index, "eot")
        yield Segment("\n")


def qwen3(conversation: Conversation) -> Iterator[Segment]:
    """Thoughts after the user's last question alone; results of tools in a row are one turn."""
    messages = conversation.messages
    roles = [message["role"] for message in messages]
    question = max((index for index, role in enumerate(roles) if role == "user"), default=len(roles) - 1)
    for index, message in enumerate(messages):
        role = roles[index]
        if role == "tool":
            if index == 0 or roles[index - 1] != "tool":
                yield Segment("<|im_start|>user")
            yield Segment("\n<tool_response>\n")
            yield own(message, index, "content")
            yield Segment("\n</tool_response>")
            if index + 1 == len(roles) or roles[index + 1] != "tool":
                yield Segment(EOT, index, "eot")
                yield Segment("\n")
            continue
        yield Segment(f"<|im_start|>{role}\n")
        thought = message.get("reasoning_content", "")
        if role == "assistant" and index > question and (index + 1 == len(roles) or thought):
            yield Segment("<think>\n", index, "body")
            if thought:
                yield own(message, index, "reasoning", "lr\n")
            yield Segment("\n</think>\n\n", index, "body")
            yield own(message, index, "content", "l\n")
        else:
            yield own(message, index, "content")
        yield from _qwen3_calls(message, index)
        yield Segment(EOT, index, "eot")
        yield Segment("\n")


def _qwen3_calls(message, index: int) -> Iterator[Segment]:
    for place, call in enumerate(message.get("tool_calls", ())):
        if message["content"] or place:
            yield Segment("\n", index, "body")
        yield Segment('<tool_call>\n{"name": "', index, "body")
        yield Segment(call["function"]["name"], index, "text", "call")
        yield Segment('", "arguments": ', index, "body")
        yield Segment(json.dumps(call["function"]["arguments"], ensure_ascii=False), index, "text", "call")
        yield Segment("}\n</tool_call>", index, "body")


@dataclass(frozen=True)
class Twin:
    """A template, and what writes the same."""

    jinja: str
    write: Writer
    marked: bool = False
    thinks: bool = False
    """Whether it writes thoughts, calls of tools and their results."""
    alternates: bool = False
    """Whether it wants user and assistant in turn."""


_PLAIN_END = (
    "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n[END]\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
_TWO_ENDS = (
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '<|im_end|>' }}"
    "{% if m.role == 'assistant' %}{{ '\n' + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system, turns = messages[0].content, messages[1:] %}"
    "{% else %}{% set system, turns = none, messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system is not none %}{{ '<<SYS>>\n' + system.strip() + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m['content'] | trim ~ ' [/INST]' }}{% else %}{{ ' ' ~ m['content'].strip() ~ ' ' ~ eos_token }}{% endif %}"
    "{% endfor %}"
)
_TOOL_CALLS = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}" + CHATML.replace(
    "{{ message.content }}",
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}",
)
_MARKED_CONTENT = CHATML_WITH_GENERATION.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")

TWINS = {
    "chatml": Twin(CHATML, chatml),
    "marked": Twin(CHATML_WITH_GENERATION, chatml, marked=True),
    "marked_content": Twin(_MARKED_CONTENT, marked_content, marked=True),
    "trimming": Twin(CHATML.replace("message.content", "message.content | trim"), trimming),
    "two_ends": Twin(_TWO_ENDS, two_ends),
    "plain_end": Twin(_PLAIN_END, plain_end),
    "llama2": Twin(_LLAMA2, llama2, alternates=True),
    "tool_calls": Twin(_TOOL_CALLS, tool_calls, thinks=True),
    "qwen3": Twin(template_text("qwen3"), qwen3, thinks=True),
}
