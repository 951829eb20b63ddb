"""The chat templates that a configuration can call by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """What is to be known of a template without reading it."""

    summary: str
    """The models that it is for, in one line."""
    needs: tuple[str, ...] = ()
    """Texts that the tokenizer must know as one token each: the marks of the turns."""
    tools: bool = False
    """Whether it writes tools, calls of them and their results."""
    thinking: bool = False
    """Whether it writes what the assistant thought."""
    system: bool = True
    """Whether it writes system messages."""


_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_MISTRAL_CALLS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
_MISTRAL = ("[INST]", "[/INST]", *_MISTRAL_CALLS)
_MISTRAL_V7 = (*_MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
_COHERE_ROLES = ("<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
_GEMMA = ("<start_of_turn>", "<end_of_turn>")
_GRANITE = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
_HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")

TEMPLATES = MappingProxyType(
    {
        "alpaca": NamedTemplate("the headings of Stanford Alpaca, for base models"),
        "chatml": NamedTemplate("ChatML: Yi, Dolphin, OpenHermes and many others", _CHATML),
        "command_r": NamedTemplate(
            "Cohere Command R and R+, Aya Expanse, without tools",
            (*_COHERE_ROLES, "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ),
        "deepseek_r1": NamedTemplate("DeepSeek R1 and its distilled models", _DEEPSEEK, thinking=True),
        "deepseek_v3": NamedTemplate("DeepSeek V3, without tools", _DEEPSEEK),
        "exaone3": NamedTemplate(
            "LG EXAONE 3.0 and 3.5 Instruct", ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]")
        ),
        "gemma": NamedTemplate("Google Gemma 1 and 2 Instruct", _GEMMA, system=False),
        "gemma3": NamedTemplate("Google Gemma 3 Instruct, text only", _GEMMA),
        "gpt_oss": NamedTemplate(
            "OpenAI gpt-oss 20b and 120b: the harmony format", _HARMONY, tools=True, thinking=True
        ),
        "granite3": NamedTemplate("IBM Granite 3.1 to 3.3 Instruct, without tools and thinking", _GRANITE),
        "granite4": NamedTemplate("IBM Granite 4.0", _GRANITE, tools=True),
        "llama2": NamedTemplate("Meta Llama 2 Chat"),
        "llama3": NamedTemplate("Meta Llama 3 to 3.3 Instruct, without tools and dates", _LLAMA3),
        "llama3_tools": NamedTemplate("Meta Llama 3.1, 3.2 and 3.3 Instruct, with tools", _LLAMA3, tools=True),
        "llama4": NamedTemplate(
            "Meta Llama 4 Scout and Maverick Instruct, text only",
            ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>"),
            tools=True,
        ),
        "metharme": NamedTemplate("Metharme, also called Pygmalion 2"),
        "mistral_v1": NamedTemplate("Mistral 7B Instruct v0.1 and v0.2, Mixtral 8x7B Instruct"),
        "mistral_v3": NamedTemplate(
            "Mistral 7B Instruct v0.3, Mixtral 8x22B Instruct, Mistral Large 2407", _MISTRAL, tools=True
        ),
        "mistral_v7": NamedTemplate("Mistral Large 2411, Pixtral Large", _MISTRAL_V7, tools=True),
        "mistral_v7_tekken": NamedTemplate("Mistral Small 3 and 3.1", _MISTRAL_V7, tools=True),
        "olmo2": NamedTemplate("Ai2 OLMo 2 Instruct"),
        "phi3": NamedTemplate(
            "Microsoft Phi 3 and 3.5 Instruct", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
        ),
        "phi4": NamedTemplate("Microsoft Phi 4", (*_CHATML, "<|im_sep|>")),
        "qwen2_5": NamedTemplate("Qwen 2.5 Instruct and Coder", _CHATML, tools=True),
        "qwen3": NamedTemplate("Qwen 3, with thinking", _CHATML, tools=True, thinking=True),
        "qwen3_instruct": NamedTemplate("Qwen 3 Instruct 2507, which does not think", _CHATML, tools=True),
        "smollm2": NamedTemplate("SmolLM 2 Instruct: ChatML with a system message of its own", _CHATML),
        "tulu": NamedTemplate("Ai2 Tülu 2 and 3"),
        "vicuna": NamedTemplate("Vicuna 1.1, 1.3 and 1.5"),
        "zephyr": NamedTemplate("Zephyr, TinyLlama Chat"),
    }
)
"""Name -> what it is."""

_REFUSALS = "_refusals"
"""The file that stands before every template."""


def template_names() -> tuple[str, ...]:
    """The names, in alphabetical order."""
    return tuple(sorted(TEMPLATES))


@cache
def template_text(name: str) -> str:
    """The Jinja text of the template called `name`, which depends on no other file.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise KeyError(name)
    folder = files("dumbo.chat") / "named_templates"
    return "".join((folder / f"{part}.jinja").read_text(encoding="utf-8") for part in (_REFUSALS, name))
