"""The options of masked diffusion, and the plugin that masks, computes the loss, and writes text by unmasking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import BasePlugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from dumbo.data.dataset import TokenDataset
    from dumbo.inference.generate import TextGenerator, Writer
    from dumbo.job import Loss
    from dumbo.plugins.diffusion.loss import DiffusionLoss

Share = Annotated[float, Field(ge=0, le=1)]


class DiffusionOptions(Section):
    """Masked diffusion: tokens are masked at random, and the model learns to fill them in, seeing both sides."""

    noise_schedule: Literal["linear", "cosine"] = "linear"
    """How the share of masked tokens follows from a time t that is drawn evenly from 0 to 1 for each row: `linear`, all
    shares from the smallest to the largest alike; `cosine`, more of the small ones."""
    min_mask_ratio: Share = 0.0
    """The share of masked tokens at t = 0."""
    max_mask_ratio: Share = 1.0
    """The share at t = 1. With less than 1 the model does not learn to begin from nothing, as it must to write."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """The smallest share, whatever the others say: losses are divided by it."""
    importance_weighting: bool = True
    """Divide the loss of a masked token by the share. With the linear schedule from 0 to 1 the loss then bounds the
    negative log-likelihood (LLaDA, MDLM). Without, all masked tokens weigh the same."""
    shift_logits: bool = True
    """Predict a token at the place before it, as models do that were trained to predict the next token. `false`, at its
    own place, is LLaDA's way, for models from random weights."""
    end_padding: Annotated[int, Field(ge=0)] = 16
    """Put up to so many end tokens more behind rows whose last trained token is an end token, drawn for each row:
    of a canvas that is longer than its answer, the model learns to leave the rest empty. 0 for none."""
    mask_token_id: Annotated[int, Field(ge=0)] | None = None
    """The id of a special or added token of the tokenizer to mask with."""
    mask_token_str: Annotated[str, Field(min_length=1)] | None = None
    """The token to mask with: a special one of the tokenizer, or else a new one. By default the tokenizer's own mask
    token, or `<|diffusion_mask|>`."""
    num_diffusion_steps: Annotated[int, Field(ge=1)] = 128
    """Forward passes in which a text is written, by default; never more than it has tokens. Blocks share them out,
    rounded down, and each has one at least."""
    block_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a text that are finished before those behind them are begun, by default; null for all at once."""


class DiffusionPlugin(BasePlugin):
    """Trains a language model to fill in masked tokens (LLaDA, MDLM), and lets it write by unmasking."""

    name = "diffusion"
    section = "trainer.diffusion"
    options_type = DiffusionOptions
    packages = ("torch", "transformers")
    consumes: frozenset[str] | None = frozenset()  # type: ignore[misc]
    conflicts: ClassVar[frozenset[str]] = frozenset({"eaft", "dft"})

    options: DiffusionOptions
    _loss: DiffusionLoss | None = None
    _tokenizer: PreTrainedTokenizerBase
    _longest: int | None = None

    def check(self, config: RunConfig) -> None:
        """Refuse options that contradict each other, and data that is never whole."""
        problems = list(_problems(self.options, config))
        if problems:
            raise ConfigError(problems)

    def patch_tokenizer(self, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> PreTrainedTokenizerBase:
        """Return the tokenizer with a mask token. Raises ConfigError for one that cannot be it."""
        from dumbo.plugins.diffusion.mask_token import set_mask_token

        set_mask_token(tokenizer, self.options)
        self._tokenizer = tokenizer
        return tokenizer

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model, which sees both sides of each token. Raises ConfigError for one that cannot."""
        from dumbo.bridge.bidirectional import make_bidirectional
        from dumbo.data.lengths import sequence_length
        from dumbo.errors import RunError

        try:
            make_bidirectional(model)
        except RunError as error:
            raise ConfigError.at(
                "model.base_model", f"diffusion: {error}", "take a model of attention layers"
            ) from error
        self._longest = sequence_length(config, model)
        return model

    def transform_dataset(self, dataset: TokenDataset, config: RunConfig) -> TokenDataset:
        """Return the rows with end tokens behind those that end."""
        from dumbo.plugins.diffusion.end_padding import pad_ends

        most = 0 if config.trainer.data.packing == "joined" else self.options.end_padding
        return pad_ends(dataset, self._tokenizer, most, self._longest, config.trainer.seed, self.services.say)

    def build_loss(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Loss:
        """Return the loss of masked tokens."""
        from dumbo.plugins.diffusion.loss import build_loss

        self._loss = build_loss(self.options, config.trainer.seed, tokenizer, self.services)
        return self._loss

    def get_callbacks(self, config: RunConfig) -> Sequence[TrainerCallback]:
        """Return what adds the metrics of evaluations to the logs; the trainer logs those of the training."""
        from dumbo.plugins.diffusion.metrics import LogDiffusion

        assert self._loss is not None  # the run makes it before
        return [LogDiffusion(self._loss)]

    def build_generator(self, model: Any, tokenizer: PreTrainedTokenizerBase, writer: Writer) -> TextGenerator:
        """Return what writes by unmasking."""
        from dumbo.plugins.diffusion.generating import DiffusionGenerator

        return DiffusionGenerator(model, tokenizer, writer, self.options)


def _problems(options: DiffusionOptions, config: RunConfig) -> Iterator[Problem]:
    if options.min_mask_ratio > options.max_mask_ratio:
        message = f"is more than max_mask_ratio ({options.max_mask_ratio:g})"
        yield _problem("min_mask_ratio", message, "exchange the two")
    elif options.max_mask_ratio < options.eps:
        hint = "write more than eps"
        yield _problem("max_mask_ratio", f"is less than eps ({options.eps:g}), which then decides alone", hint)
    if options.mask_token_id is not None and options.mask_token_str is not None:
        yield _problem("mask_token_id", "names the mask token, and so does mask_token_str", "remove one of the two")
    if config.trainer.data.streaming:
        message = "'diffusion' changes the training set as a whole, and a stream is never whole"
        yield Problem(message, ("trainer", "data", "streaming"), hints=("remove streaming",))


def _problem(option: str, message: str, *hints: str) -> Problem:
    return Problem(message, ("trainer", "diffusion", option), hints=hints)
