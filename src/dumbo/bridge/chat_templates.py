"""Chat templates as Transformers renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render_chat_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """The text of a conversation, by the function below `apply_chat_template`: what a model is given at inference. It
    raises whatever the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[[dict(message) for message in messages]],
        tools=[dict(tool) for tool in tools] or None,
        chat_template=template,
        add_generation_prompt=generation_prompt,
        **variables,
    )
    return str(rendered[0][0])
