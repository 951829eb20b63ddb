"""Fits a model to a tokenizer: embedding rows for every token, and the ids of the special tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dumbo.bridge.quantized_base import is_quantized
from dumbo.errors import Problem, RunError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fit_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> PreTrainedModel:
    """Return `model` with a row for every token of `tokenizer`, and the special token ids in its configurations.

    Rows are only ever added. In a pretrained model (one with a name) a new row is the mean of the old ones: in the
    input embeddings, an untied head and its bias; in a random one it is what the model's initialiser draws from torch's
    generator. A tied head stays tied. A model that does not show its embeddings is left as it is.
    """
    _keep_heads_apart(model)
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    rows = embedding_rows(model)
    if rows is not None and needed > rows:
        pretrained = bool(model.name_or_path)
        _grow(model, needed, mean=pretrained)
        if pretrained:
            say(f"embeddings: {rows} -> {needed} rows for the tokenizer; the new ones are the mean of the old ones")
        else:
            say(f"embeddings: {needed} rows, one for each token of the tokenizer")
    set_token_ids(model, tokenizer)
    return model


def embedding_rows(model: PreTrainedModel) -> int | None:
    """The number of token ids that `model` can take; None if it does not say."""
    weight = getattr(_input_embeddings(model), "weight", None)
    return None if weight is None else int(weight.shape[0])


def set_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's pad, bos and eos ids into the model's configuration and generation configuration.

    A list of ids that end a text is kept if the tokenizer's is among them: chat models stop at several.
    """
    configs = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    for config in configs:
        if config is None:
            continue
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            new, old = getattr(tokenizer, name, None), getattr(config, name, None)
            kept = isinstance(old, list) and new in old
            if new is not None and not kept:
                setattr(config, name, new)


def _input_embeddings(model: PreTrainedModel) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


def _keep_heads_apart(model: PreTrainedModel) -> None:
    """Say in the configuration that a head is not tied, where it is not.

    Transformers loads other weights into a head that the configuration calls tied where the checkpoint has them, but a
    resize of the embeddings, or a loading of what was saved, would tie it and so overwrite it.
    """
    embeddings, head = _input_embeddings(model), _head(model)
    if embeddings is None or head is None or not getattr(model, "_tied_weights_keys", None):
        return
    if head.weight is not embeddings.weight:
        for config in (model.config, model.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False


def _grow(model: PreTrainedModel, size: int, mean: bool) -> None:
    import torch

    if is_quantized(getattr(_head(model), "weight", None)):
        message = f"the tokenizer has {size} tokens, more than the model, whose output head is quantized"
        raise RunError(str(Problem(message, hints=("leave the head out of what is quantized",))))
    old = {name: weight.shape[0] for name, weight in _vocabulary_weights(model).items()}
    # Transformers' own mean is one draw per row from a fitted normal distribution; ours is the mean itself.
    model.resize_token_embeddings(size, mean_resizing=False)
    if not mean:
        return
    with torch.no_grad():
        for name, weight in _vocabulary_weights(model).items():
            rows = old[name]
            weight[rows:] = weight[:rows].float().mean(dim=0).to(weight.dtype)


def _vocabulary_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights with a row per token id: input embeddings, an untied head, its bias."""
    embeddings = _input_embeddings(model)
    head = _head(model)
    weights = {"embeddings": embeddings.weight}
    if head is not None and head.weight is not embeddings.weight:
        weights["head"] = head.weight
    if getattr(head, "bias", None) is not None:
        weights["bias"] = head.bias
    return weights
