"""The `transformers` plugin: takes the seats of the model loader and of the tokenizer loader."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugin_loader import BasePlugin, ModelLoaderPlugin, TokenizerLoaderPlugin
from dumbo.plugins.transformers.checks import model_problems, tokenizer_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEATS: frozenset[type[BasePlugin]] = frozenset({ModelLoaderPlugin, TokenizerLoaderPlugin})


class TransformersPlugin(BasePlugin):
    """Loads model and tokenizer through Transformers' Auto classes. Leaves either seat to a plugin that claims it."""

    name: ClassVar[str] = "transformers"
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    yields: ClassVar[frozenset[type]] = frozenset(SEATS)
    consumes: ClassVar[frozenset[str] | None] = frozenset(
        {
            "model.base_model",
            "model.revision",
            "model.architecture",
            "model.dtype",
            "model.attention",
            "model.trust_remote_code",
            "model.allow_pickle",
            "model.config_overrides",
            "model.tokenizer",
            "model.tokenizer.path",
            "model.tokenizer.pad_token",
            "model.tokenizer.eos_token",
            "model.tokenizer.bos_token",
            "model.tokenizer.unk_token",
            "model.tokenizer.special_tokens",
            "model.tokenizer.tokens",
            "model.tokenizer.chat_template",
        }
    )

    seats: frozenset[type[BasePlugin]] = SEATS
    """The seats that it holds in this run: what a plugin in another one does is not checked here."""
    extra_load_kwargs: Mapping[str, Any] = MappingProxyType({})
    """Arguments of other plugins for `from_pretrained`; the run sets them before `load_model`."""

    def check(self, config: RunConfig) -> None:
        """Look at names, folders, tokens and templates without importing torch; all problems are raised at once."""
        problems = model_problems(config.model) if ModelLoaderPlugin in self.seats else []
        if TokenizerLoaderPlugin in self.seats:
            problems += tokenizer_problems(config)
        if problems:
            raise ConfigError(problems)

    def load_model(self, config: RunConfig) -> PreTrainedModel:
        """Return the run's model, on the CPU; raise ConfigError or RunError with the way out."""
        if config.model.architecture:
            from dumbo.plugins.transformers.scratch import build_model

            return build_model(config, self.extra_load_kwargs, self.services.say)
        from dumbo.plugins.transformers.loading import ModelRequest, load_model

        return load_model(ModelRequest.of_run(config, self.extra_load_kwargs), self.services.say)

    def load_tokenizer(self, config: RunConfig, model: PreTrainedModel | None = None) -> PreTrainedTokenizerBase:
        """Return the run's tokenizer with its tokens set; given `model`, its special token ids are set too."""
        from dumbo.plugins.transformers.tokens import load_tokenizer

        return load_tokenizer(config, model, self.services.say)

    def load(self, name: str) -> PreTrainedModel:
        """Return another model, by folder or hub name, loaded as the run's own but for revision and overrides."""
        from dumbo.plugins.transformers.loading import ModelRequest, load_model

        return load_model(ModelRequest.of_other(name, self.config, self.extra_load_kwargs), self.services.say)
