"""`model.tokenizer`: where the tokenizer comes from, and the tokens that are set or added."""

from __future__ import annotations

from dumbo.config.section import Section, Words


class TokenizerSection(Section):
    """The tokenizer: where it comes from, and the tokens that are set or added."""

    path: str | None = None
    """Folder or hub name of the tokenizer; by default it is the base model's."""
    pad_token: str | None = None
    """Padding token. By default a free one is looked for, without growing the embeddings."""
    eos_token: str | None = None
    """Token that ends a text."""
    bos_token: str | None = None
    """Token that starts a text."""
    unk_token: str | None = None
    """Token for text that the vocabulary cannot write."""
    special_tokens: Words = ()
    """More tokens that are never split and are left out when text is decoded for people."""
    tokens: Words = ()
    """More ordinary tokens: words of a language or a format that should be one token each."""
    chat_template: str | None = None
    """The chat template: a name (`chatml`, `llama3`, ...: `dumbo docs chat_templates`), the path of a `.jinja` file, or
    Jinja text; by default the tokenizer's own."""
