"""The options of the train formats that write conversations."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dumbo.config.schema import FormatOptions, Words

FILLED_IN = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "tools",
    }
)
"""What Transformers gives to chat templates, or takes for itself, under these names."""


_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")


class TrainedOptions(FormatOptions):
    """What of a conversation is trained."""

    roles_to_train: Annotated[Words, Field(min_length=1)] = ("assistant",)
    """Roles whose messages are trained."""
    train_on_eos: Literal["turn", "all", "last", "none"] | None = None
    """Of which turns the tokenizer's end token is trained, where the template writes it: `turn` of those that are
    trained (the default), `all`, `last` of the last trained one, `none`. Where the template has `{% generation %}`
    marks, they decide unless this is written."""
    train_on_eot: Literal["turn", "all", "last", "none"] | None = None
    """The same for the tokens that end a turn and are not the tokenizer's end token; by default as `train_on_eos`."""
    eot_tokens: Words = ()
    """The tokens that end a turn; by default what the template is found to write after an answer."""
    hidden_thinking: Literal["mask", "train", "error"] = "mask"
    """A turn that is to be trained and whose thought the template leaves out, as many do for earlier turns: `mask` does
    not train it, `train` trains it as it is written, without its thought; `error` refuses the row."""
    allow_special_tokens: bool = False
    """Take messages with texts that the tokenizer makes special tokens of, such as `<|im_end|>`; they could end a turn
    or begin one, so such a row is an error by default."""

    @field_validator("roles_to_train")
    @classmethod
    def _check_spelling(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse a role that is a known one misspelled; any other name may be a data set's own."""
        for role in roles:
            near = get_close_matches(role, _KNOWN_ROLES, n=1, cutoff=0.8)
            if role not in _KNOWN_ROLES and near:
                raise ValueError(f"no role is called '{role}': did you mean '{near[0]}'?")
        return roles


class JinjaMessagesOptions(TrainedOptions):
    """A template of your own makes the text; the tokenizer's end token follows unless the template wrote it."""

    template: str
    """Jinja template, given `messages`, `tools`, `bos_token`, `eos_token` and the tokenizer's other special tokens."""
    train_on_inputs: bool = True
    """Train on the whole text; false trains on what the assistant says and the end token after it."""

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        """Report a template that is broken, or that reads what it is not given, before anything is loaded."""
        from dumbo.chat.environment import check_template

        check_template(template)
        return template

    @model_validator(mode="after")
    def _check_roles(self) -> JinjaMessagesOptions:
        """Refuse a choice of roles beside the training on everything."""
        if self.train_on_inputs and "roles_to_train" in self.model_fields_set:
            raise ValueError("'roles_to_train' chooses among the messages, and 'train_on_inputs' trains on all of them")
        return self


class ChatTemplateOptions(TrainedOptions):
    """A chat template makes the text; trained is what the assistant says, with the end of its turns."""

    chat_template: str | None = None
    """A named template (`chatml`, `llama3`, `qwen3`, ...: `dumbo docs chat_templates`), the path of a `.jinja` file, or
    Jinja text; by default the tokenizer's own. It is saved with the model."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More variables for the chat template, e.g. `{enable_thinking: false}`; one that it does not read is an error."""
    train_on_inputs: bool = False
    """Train on the whole text, what system and user say included."""

    @field_validator("chat_template")
    @classmethod
    def _check_template(cls, value: str | None) -> str | None:
        """Report an unknown name, a file that cannot be read, and broken Jinja before anything is loaded."""
        from dumbo.tokenizers.section import template_fault

        fault = template_fault(value) if value is not None else None
        if fault:
            raise ValueError(": ".join(fault))
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_names(cls, variables: dict[str, Any]) -> dict[str, Any]:
        """Refuse names that the format itself fills in."""
        taken = sorted(FILLED_IN & set(variables))
        if taken:
            raise ValueError(f"'{taken[0]}' cannot be set here: the format fills it in")
        return variables

    @model_validator(mode="after")
    def _check_roles(self) -> ChatTemplateOptions:
        """Refuse a choice of roles beside the training on everything."""
        if self.train_on_inputs and "roles_to_train" in self.model_fields_set:
            raise ValueError("'roles_to_train' chooses among the messages, and 'train_on_inputs' trains on all of them")
        return self

    @property
    def needs_chat_template(self) -> bool:
        """Whether the tokenizer must have one."""
        return self.chat_template is None
