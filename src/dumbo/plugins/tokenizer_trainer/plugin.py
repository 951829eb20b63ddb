"""The options of a tokenizer that is trained, and the plugin that takes the tokenizer's seat with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem, key_path
from dumbo.plugin_loader import TokenizerLoaderPlugin
from dumbo.plugins.tokenizer_trainer.tokens import Tokens, choose_tokens
from dumbo.tokenizers.section import template_problems, token_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BYTES = 256
"""Every byte is a token, so that every text can be written."""


class TokenizerTrainerOptions(Section):
    """A tokenizer that is learned from the texts of the run: byte-level BPE."""

    vocab_size: Annotated[int, Field(gt=BYTES)] = 8192
    """Tokens of the vocabulary, at most: bytes, special and added tokens, and what is learned."""
    min_frequency: Annotated[int, Field(ge=1)] = 2
    """How often two neighbouring tokens must be seen in the texts to become one."""
    split_digits: bool = False
    """Make every digit a token of its own, which helps with arithmetic."""


class TokenizerTrainerPlugin(TokenizerLoaderPlugin):
    """Trains the tokenizer on the run's own datasets, for a model that starts from random weights."""

    name = "tokenizer_trainer"
    section = "model.tokenizer_trainer"
    options_type = TokenizerTrainerOptions
    packages: ClassVar[tuple[str, ...]] = ("transformers",)
    consumes: ClassVar[frozenset[str] | None] = frozenset(
        f"model.tokenizer.{name}"
        for name in (
            "path",
            "pad_token",
            "eos_token",
            "bos_token",
            "unk_token",
            "special_tokens",
            "tokens",
            "chat_template",
        )
    )

    def check(self, config: RunConfig) -> None:
        """Refuse a tokenizer that is there already, pretrained weights, and a vocabulary without room."""
        problems: list[Problem] = []
        if config.model.base_model is not None:
            message = "its weights belong to its own tokenizer, and mean nothing with a new one"
            problems.append(
                Problem(
                    message,
                    key_path("model.base_model"),
                    hints=(
                        "for a model from scratch write model.architecture: {model_type: llama, ...} instead",
                        "or remove 'tokenizer_trainer' under plugins:",
                    ),
                )
            )
        if config.model.tokenizer.path is not None:
            message = "names a tokenizer, and 'tokenizer_trainer' makes a new one"
            hint = "remove the path, or remove 'tokenizer_trainer' under plugins:"
            problems.append(Problem(message, key_path("model.tokenizer.path"), hints=(hint,)))
        section = config.model.tokenizer
        found = [*token_problems(section), *template_problems(section)]
        problems += found or self._size_problems(choose_tokens(config))
        if problems:
            raise ConfigError(problems)

    def _size_problems(self, tokens: Tokens) -> list[Problem]:
        least = BYTES + len(tokens.special) + len(tokens.ordinary)
        if self.options.vocab_size >= least:
            return []
        message = f"must be at least {least}: {BYTES} bytes and {least - BYTES} special and added tokens"
        return [Problem(message, key_path("model.tokenizer_trainer.vocab_size"))]

    def load_tokenizer(self, config: RunConfig, model: PreTrainedModel | None = None) -> PreTrainedTokenizerBase:
        """Return a tokenizer learned from the sources that are not held out whole; every rank learns the same."""
        from dumbo.plugins.tokenizer_trainer.training import train_tokenizer

        return train_tokenizer(self.services.records(), choose_tokens(config), self.options, self.services.say)
