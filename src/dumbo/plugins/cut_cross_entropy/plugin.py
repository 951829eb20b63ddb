"""The options of the loss without logits, and the plugin that computes it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import BasePlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.job import Loss

PACKAGES = MappingProxyType({"apple": "cut_cross_entropy", "liger": "liger_kernel"})
"""What a backend needs to be installed."""


class CutCrossEntropyOptions(Section):
    """The loss of next-token prediction, computed with the output head for a few tokens at a time."""

    backend: Literal["auto", "torch", "apple", "liger"] = "auto"
    """What computes it. `torch` runs everywhere and can do everything; `apple` and `liger` are kernels for GPUs, of the
    packages cut-cross-entropy and liger-kernel. `auto`: on a GPU in 16 bits, `liger` or `apple` where they are
    installed and can do what is asked for, else `torch`; which one is printed."""
    tile_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens whose logits are there at the same time. By default what takes 32 MiB on a CPU and 512 MiB on a GPU."""
    gradient_filter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Leave gradients of logits that are smaller than this out of the sums: of a trained model most are, and with them
    goes much of the work. 0.000244 (2 ** -12) loses nothing that 16 bits would keep; 0 is exact."""
    z_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Add this times the square of the logarithm of the softmax's sum to each token's loss, which keeps logits small
    (PaLM, arXiv 2204.02311, has 1e-4). Evaluation stays as it is."""
    token_metrics: bool = False
    """Log how often the most likely token is the right one (`train/token_accuracy`), and the mean entropy of the
    predictions in nats (`train/entropy`), out of the same pass."""


class CutCrossEntropyPlugin(BasePlugin):
    """Computes the loss without logits, whatever their size; every run does where they are large."""

    name = "cut_cross_entropy"
    section = "model.cut_cross_entropy"
    options_type = CutCrossEntropyOptions
    phase = Phase.KERNELS
    columns: frozenset[str] = frozenset({"weights"})
    consumes: frozenset[str] | None = frozenset({"trainer.arguments.label_smoothing_factor"})  # type: ignore[misc]

    options: CutCrossEntropyOptions

    def check(self, config: RunConfig) -> None:
        """Refuse what a backend cannot do, and one that is not installed."""
        problems = list(_backend_problems(self.options, config))
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model as it is, whose head can do without logits. Raises ConfigError for one that cannot."""
        from dumbo.plugins.cut_cross_entropy.loss import check_head

        check_head(model)
        return model

    def build_loss(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Loss:
        """Return the loss."""
        from dumbo.plugins.cut_cross_entropy.loss import build_loss

        return build_loss(self.options, config, self.services.say)


def _backend_problems(options: CutCrossEntropyOptions, config: RunConfig) -> Iterator[Problem]:
    backend = options.backend
    if backend not in PACKAGES:
        return
    package = PACKAGES[backend]
    if find_spec(package) is None:
        yield _problem("backend", f"'{backend}' needs the package {package.replace('_', '-')}", _install(backend))
    if config.trainer.arguments.use_cpu:
        yield _problem("backend", f"'{backend}' needs a GPU, and trainer.arguments.use_cpu is set", "write torch")
    unknown = {"z_loss": options.z_loss, "token_metrics": options.token_metrics, "tile_tokens": options.tile_tokens}
    if backend == "liger":
        unknown["gradient_filter"] = options.gradient_filter
    for name, value in unknown.items():
        if value:
            yield _problem(name, f"the backend '{backend}' has no such thing", "write backend: torch")
    if backend == "apple" and config.trainer.arguments.label_smoothing_factor:
        path = ("trainer", "arguments", "label_smoothing_factor")
        yield Problem("the backend 'apple' has no such thing", path, hints=("write backend: torch",))


def _install(backend: str) -> str:
    return f"pip install 'dumbo-trainer[{'liger' if backend == 'liger' else 'cut_cross_entropy'}]'"


def _problem(option: str, message: str, *hints: str) -> Problem:
    return Problem(message, ("model", "cut_cross_entropy", option), hints=hints)
