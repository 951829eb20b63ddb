"""Loads a tokenizer, sets and adds its tokens and its chat template, and finds a padding token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dumbo.bridge.embeddings import embedding_rows, set_token_ids
from dumbo.config.schema import RunConfig, TokenizerSection
from dumbo.errors import ConfigError
from dumbo.plugins.transformers.checks import missing_template_problems
from dumbo.plugins.transformers.folders import name_problem, tokenizer_folder_problem
from dumbo.plugins.transformers.hub import fetch
from dumbo.plugins.transformers.load_errors import explain_loading
from dumbo.plugins.transformers.padding import set_pad_token
from dumbo.plugins.transformers.trust import say_code, say_unused_code
from dumbo.tokenizers.section import NAMED_TOKENS, read_template

Say = Callable[[str], None]


def load_tokenizer(config: RunConfig, model: PreTrainedModel | None, say: Say) -> PreTrainedTokenizerBase:
    """Return the run's tokenizer; `model`, if given, gets its special token ids and lends its spare embedding rows.

    Raises ConfigError for what the configuration can mend, RunError for what is wrong with hub, network or files.
    """
    section = config.model.tokenizer
    tokenizer = read_tokenizer(config, say)
    if section.chat_template is not None:
        tokenizer.chat_template = read_template(section.chat_template)
    if not tokenizer.chat_template:
        problems = missing_template_problems(config)
        if problems:
            raise ConfigError(problems)
    set_tokens(tokenizer, section, say)
    if tokenizer.pad_token_id is None:
        rows = embedding_rows(model) if model is not None else None
        taken = {*section.special_tokens, *section.tokens}
        said = set_pad_token(tokenizer, rows, taken)
        if said is None:
            raise ConfigError.at("model.tokenizer.pad_token", "the tokenizer has none and no free token; name one")
        say(said)
    if model is not None:
        set_token_ids(model, tokenizer)
    return tokenizer


def read_tokenizer(config: RunConfig, say: Say) -> PreTrainedTokenizerBase:
    """Return the tokenizer as its files have it."""
    model, path = config.model, config.model.tokenizer.path
    name, key = (path, "model.tokenizer.path") if path else (model.base_model, "model.base_model")
    if not name:
        raise ConfigError.at("model.tokenizer.path", "no tokenizer is named, and no base model that could bring one")
    problem = name_problem(name, key)
    if problem:
        raise ConfigError([problem])
    # The revision is the base model's; another repository's tokenizer has revisions of its own.
    revision = model.revision if name == model.base_model else None
    source = fetch(name, revision, key, weights=False, trusted=model.trust_remote_code)
    problem = tokenizer_folder_problem(source.folder, name, key, model.trust_remote_code)
    if problem:
        raise ConfigError([problem])
    options = source.load_kwargs(model.trust_remote_code)
    say_code(source.folder, "tokenizer_config.json", name, model.trust_remote_code, say)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.name, trust_remote_code=model.trust_remote_code, **options
        )
    except Exception as error:
        raise explain_loading(error, source, name, key) or error from error
    if not model.trust_remote_code:
        say_unused_code(source.folder, "tokenizer_config.json", name, tokenizer, say)
    return tokenizer


def set_tokens(tokenizer: PreTrainedTokenizerBase, section: TokenizerSection, say: Say) -> None:
    """Set and add what `section` asks for. A token that is in the vocabulary is used as it is, with the id it has."""
    before = tokenizer.get_vocab()
    framing = frame(tokenizer)
    named: dict[str, str] = {
        name: getattr(section, name) for name in NAMED_TOKENS if getattr(section, name) is not None
    }
    tokenizer.add_special_tokens(dict(named))
    if section.special_tokens:
        specials: dict[str, Any] = {"extra_special_tokens": list(section.special_tokens)}
        tokenizer.add_special_tokens(specials, replace_extra_special_tokens=False)
    tokenizer.add_tokens(list(section.tokens))
    ids = tokenizer.get_vocab()
    for name, token in named.items():
        if getattr(tokenizer, f"{name}_id") != ids.get(token):
            raise ConfigError.at(f"model.tokenizer.{name}", f"the tokenizer does not take '{token}' as its {name}")
    new = {
        token: ids[token]
        for token in (*named.values(), *section.special_tokens, *section.tokens)
        if token not in before
    }
    if new:
        words = ", ".join(f"'{token}' ({number})" for token, number in new.items())
        say(f"tokenizer: {len(new)} added, which the model has yet to learn: {words}")
    say_stale_frame(tokenizer, named, framing, say)


def frame(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokens that the tokenizer puts around an empty text, by the name that they have before anything is set."""
    ids = set(tokenizer("").input_ids)
    return {name: getattr(tokenizer, name) for name in NAMED_TOKENS if getattr(tokenizer, f"{name}_id") in ids}


def say_stale_frame(
    tokenizer: PreTrainedTokenizerBase, named: Mapping[str, str], before: Mapping[str, str], say: Say
) -> None:
    """Tell where the tokenizer goes on writing an old token around its texts: that is fixed in tokenizer.json."""
    ids = set(tokenizer("").input_ids)
    for name, old in before.items():
        if name in named and named[name] != old and tokenizer.convert_tokens_to_ids(old) in ids:
            say(f"tokenizer: plain texts are still framed with '{old}', not with the new {name} '{named[name]}'")
