"""The heavy half: the options as Transformers and torchao have them."""

from __future__ import annotations

from typing import Any

from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, PerGroup, PerRow
from transformers import AutoConfig, TorchAoConfig

from dumbo.bridge import quantized_loading
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugins.torchao.plugin import TorchAoOptions

_WIDTHS = ("hidden_size", "intermediate_size")


def load_options(options: TorchAoOptions, config: RunConfig) -> dict[str, Any]:
    """Arguments for `from_pretrained`.

    Raises:
        ConfigError: layers cannot be divided into groups of this size.
    """
    _check_groups(options.group_size, config)
    granularity = PerRow() if options.group_size is None else PerGroup(options.group_size)
    kind = Int8WeightOnlyConfig if options.format == "int8" else Float8WeightOnlyConfig
    # Otherwise it would change how all of PyTorch multiplies in float32.
    made = kind(granularity=granularity, set_inductor_config=False)
    skipped = quantized_loading.left_alone(options.skip_modules, options.quantize_head)
    if skipped is not None:
        # Transformers looks for them from the beginning of the names of weights, not at the end of those of modules.
        skipped += [f".*{name}" for name in skipped]
    return quantized_loading.load_options(TorchAoConfig(made, modules_to_not_convert=skipped), config)


def _check_groups(size: int | None, config: RunConfig) -> None:
    if size is None:
        return
    try:
        shape = AutoConfig.from_pretrained(
            str(config.model.base_model), revision=config.model.revision
        ).get_text_config()
    except Exception:  # who loads the model says what is wrong with it
        return
    for name in _WIDTHS:
        width = getattr(shape, name, None)
        if isinstance(width, int) and width % size:
            message = f"{size} does not divide the width of all layers: {name} is {width}"
            raise ConfigError.at("model.torchao.group_size", message, "leave it out for a scale per row, or write 32")
