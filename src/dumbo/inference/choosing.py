"""Which way of writing text a model has: from left to right, or a plugin's own, which its tokenizer's files name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.blame import describe
from dumbo.errors import DumboError, Problem, RunError
from dumbo.inference.generate import TextGenerator, Writer
from dumbo.inference.prompting import writer_for
from dumbo.plugin_loader import GeneratorPlugin, TrainFormatPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.config.schema import RunConfig
    from dumbo.plugin_manager import PluginManager

KEY = "dumbo_generator"
"""In `tokenizer_config.json`, which full weights and adapters both have beside them."""


def keep_generator(tokenizer: PreTrainedTokenizerBase, plugins: PluginManager) -> None:
    """Let the tokenizer's files say which plugin of the run writes its text, and with which options."""
    names = plugins.names(GeneratorPlugin)
    if names:
        options = plugins.holder(GeneratorPlugin).options.model_dump(mode="json")
        tokenizer.init_kwargs[KEY] = {"plugin": names[0], "options": options}
    else:  # the base model may have had one
        tokenizer.init_kwargs.pop(KEY, None)


def generator_of_run(
    plugins: PluginManager, config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> TextGenerator:
    """What writes text in a run, its prompts written by the train format of the first source."""
    options = config.datasets[0].train_format
    encode = plugins.call_provider(TrainFormatPlugin, "train_formats", options.type, options, tokenizer)
    writer = writer_for(encode, tokenizer)
    return plugins.call_seat(GeneratorPlugin, model, tokenizer, writer) or TextGenerator(model, tokenizer, writer)


def generator_of_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, writer: Writer, listed: Iterable[str], folder: Path
) -> TextGenerator:
    """What writes text with an opened model; `listed` are the plugins of its run, whose configuration is in `folder`.

    A plugin in a file is looked for among these alone: a model's files may come from anywhere, and cannot name code.

    Raises:
        RunError: the plugin that the tokenizer's files name is not here, or cannot use them.
    """
    kept = tokenizer.init_kwargs.get(KEY)
    if kept is None:
        return TextGenerator(model, tokenizer, writer)
    name, options = (kept.get("plugin"), kept.get("options")) if isinstance(kept, dict) else (None, None)
    plugin_type: Any = _find(str(name), listed, folder)
    try:
        plugin = plugin_type()
        plugin.options = plugin_type.options_type.model_validate_json(_as_json(options))
        made: TextGenerator = plugin.build_generator(model, tokenizer, writer)
    except DumboError:
        raise
    except Exception as error:
        raise _error(f"the plugin '{name}', which writes this model's text, failed: {describe(error)}") from error
    return made


def _find(name: str, listed: Iterable[str], folder: Path) -> Any:
    from dumbo.plugin_finder import find_plugin, installed_names

    for address in [name] if name in installed_names() else map(str, listed):
        try:
            found = find_plugin(address, folder)
        except DumboError:
            continue
        if found.name == name and hasattr(found.type, GeneratorPlugin.build_generator.__name__):
            return found.type
    raise _error(f"this model's text is written by the plugin '{name}', which is not here", "install its package")


def _as_json(options: Any) -> str:
    import json

    return json.dumps(options or {})


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
