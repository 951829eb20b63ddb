"""Who says a message: the names that data sets have for roles, as chat templates call them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dumbo.data.row_values import list_names, near_name_hints
from dumbo.plugins.jinja_formatter.message_values import MessageValues

ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "system": ("system",),
        "developer": ("developer",),
        "user": ("user", "human", "prompter"),
        "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "chatbot", "ai"),
        "tool": ("tool", "observation", "function_response", "tool_response", "tool_result", "ipython"),
    }
)
"""Role -> the names that rows may have for it. `function` is none of them: some data sets mean a call by it, others its
result."""

CALLING_ROLES = frozenset({"function_call", "tool_call"})
"""Roles of messages that are an assistant's call of a tool, written as JSON."""


class RoleNames:
    """Turns the roles of rows into those of templates."""

    def __init__(self, more: Mapping[str, tuple[str, ...]]) -> None:
        # What the user wrote goes before what is known, and a name that stands for nothing else stands for itself.
        known = {source: target for target, sources in ROLES.items() for source in sources}
        written = {source: target for target, sources in more.items() for source in sources}
        self.targets = {**known, **{target: target for target in more}, **written}

    def is_call(self, role: str) -> bool:
        """Whether a message of this role is a call of a tool, unless the user made another role of it."""
        return role in CALLING_ROLES and role not in self.targets

    def read(self, role: str, values: MessageValues) -> str:
        """The role as templates call it. Raises `DataError` for one that is not known."""
        if role in self.targets:
            return self.targets[role]
        near = near_name_hints(role, self.targets)
        known = f"roles are {list_names(dict.fromkeys(self.targets.values()))}"
        hint = (
            f"write roles: {{assistant: [{role}]}}, or whichever role it stands for, or {{{role}: [{role}]}} to keep it"
        )
        raise values.error(f"has the role '{role}', which is not known", *near, known, hint)
