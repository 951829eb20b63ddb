"""Learns a byte-level BPE vocabulary from records, and makes a tokenizer of it that Transformers can load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dumbo.data.records import Conversation, Record, texts_of
from dumbo.errors import ConfigError, RunError

if TYPE_CHECKING:
    from dumbo.plugins.tokenizer_trainer.plugin import TokenizerTrainerOptions
    from dumbo.plugins.tokenizer_trainer.tokens import Tokens

SAMPLE = 2000
"""Texts, spread over all of them, on which the compression is measured."""


def train_tokenizer(
    records: Iterable[Record], tokens: Tokens, options: TokenizerTrainerOptions, say: Callable[[str], None]
) -> PreTrainedTokenizerFast:
    """Return the tokenizer. The same records and options give the same one, on every machine and rank."""
    blank = _wrap(_backend(options.split_digits), tokens)
    texts = [text for record in records for text in _texts(record, blank, tokens.uses_template) if text]
    if not texts:
        raise RunError("tokenizer_trainer: the records have no text to learn from")
    # Otherwise it prints a warning when workers that load data are forked later; they use no tokenizer.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    backend = _backend(options.split_digits)
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size - len(tokens.ordinary),
        min_frequency=options.min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in tokens.special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer = _wrap(backend, tokens)
    _say_result(tokenizer, texts, tokens, options, say)
    return tokenizer


def _backend(split_digits: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level]) if split_digits else byte_level
    backend.decoder = decoders.ByteLevel()
    return backend


def _wrap(backend: Tokenizer, tokens: Tokens) -> PreTrainedTokenizerFast:
    named: Mapping[str, Any] = tokens.named
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, clean_up_tokenization_spaces=False, padding_side="right", **named
    )
    others = [token for token in tokens.special if token not in tokens.named.values()]
    if others:
        specials: dict[str, Any] = {"extra_special_tokens": others}
        tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens(list(tokens.ordinary))
    tokenizer.chat_template = tokens.chat_template
    return tokenizer


def _texts(record: Record, tokenizer: PreTrainedTokenizerFast, uses_template: bool) -> Iterator[str]:
    """What the tokenizer will be given, or nearly so: what the chat template makes of a conversation, or its texts."""
    text = _rendered(record, tokenizer) if uses_template and isinstance(record, Conversation) else None
    if text is not None:
        yield text
        return
    yield from texts_of(record)


def _rendered(record: Conversation, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The text of the conversation; None where the template refuses it, of which the train format will tell."""
    messages = [{key: value for key, value in m.items() if value is not None} for m in record.messages]
    tools: Any = [dict(tool) for tool in record.tools] or None
    try:
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))
    except TemplateSyntaxError as error:
        message = f"the template is not valid Jinja: line {error.lineno}: {error.message}"
        raise ConfigError.at("model.tokenizer.chat_template", message) from None
    except Exception:  # Templates run arbitrary expressions on what they are given.
        return None


def _say_result(
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    tokens: Tokens,
    options: TokenizerTrainerOptions,
    say: Callable[[str], None],
) -> None:
    sample = texts[:: max(1, len(texts) // SAMPLE)]
    encoded = tokenizer(sample, add_special_tokens=False).input_ids
    rate = sum(len(text.encode()) for text in sample) / max(1, sum(len(ids) for ids in encoded))
    size = len(tokenizer)
    named = ", ".join(f"{name.removesuffix('_token')} '{token}'" for name, token in tokens.named.items())
    say(f"tokenizer: trained on {len(texts)} texts: {size} tokens, {rate:.2f} bytes per token; {named}")
    if size < options.vocab_size:
        missing = f"the texts have no more pairs that are seen {options.min_frequency} times"
        say(f"tokenizer: {size} of the {options.vocab_size} tokens of vocab_size: {missing}")
