"""What one configuration needs and this machine lacks: its mistakes, its model and data, and memory for its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dumbo.blame import describe
from dumbo.config.schema import RunConfig
from dumbo.configure import Configured, configure
from dumbo.diagnosis.findings import MEND_FIRST, Finding
from dumbo.diagnosis.hub import is_offline
from dumbo.diagnosis.libraries import Probed
from dumbo.diagnosis.weights import adapter_count, linear_count, parameter_count, tensor_shapes
from dumbo.errors import ConfigError, Problem
from dumbo.launch import Launch
from dumbo.local_paths import is_hub_name
from dumbo.memory import memory_bytes, size
from dumbo.plugin_interfaces import INTERFACES
from dumbo.plugin_loader import ModelPatcherPlugin, OptimizerPlugin, TrainerPlugin
from dumbo.plugin_manager import PluginManager
from dumbo.plugin_rules import claims
from dumbo.redact import redact_text
from dumbo.starting.models import cached_snapshot

_BYTES = (("float32", 4), ("auto", 4), ("bfloat16", 2), ("float16", 2))
_ADAM = ("adamw_torch", "adamw_torch_fused")
_ADAM_MOMENTS = 2
_QUANTIZING = ("bitsandbytes", "torchao")
_KNOWN_PATCHERS = ("peft", "liger", *_QUANTIZING)


def run_findings(file: Path, probed: Probed) -> Iterator[Finding]:
    """The configuration's mistakes, or else where its parts are and what its weights take."""
    try:
        checked = configure(file, (), Launch())
    except ConfigError as error:
        yield from (_problem(problem) for problem in error.problems)
        return
    except Exception as error:  # a library that it needs cannot be imported
        message = f"cannot be checked: {redact_text(describe(error))}"
        yield Finding("configuration", message, MEND_FIRST)
        return
    yield Finding("configuration", f"fine, and so are its {len(checked.plugins.found)} plugins")
    config = checked.config
    yield from _model_findings(config)
    yield from _data_findings(config)
    yield from _memory_findings(checked, probed)


def _problem(problem: Problem) -> Finding:
    first, _, hints = str(problem.cleaned(redact_text)).partition("\n")
    return Finding("configuration", first, "\n".join(line.strip() for line in hints.split("\n")) or "mend this line")


def _model_findings(config: RunConfig) -> Iterator[Finding]:
    if config.model.architecture:
        yield Finding("model", "random weights: nothing to load")
    elif config.model.base_model:
        yield _where("model", config.model.base_model, "models")
    if config.model.tokenizer.path:
        yield _where("tokenizer", config.model.tokenizer.path, "models")


def _data_findings(config: RunConfig) -> Iterator[Finding]:
    for entry in config.datasets:
        path = getattr(entry, "path", None)
        if isinstance(path, str) and (is_hub_name(path) or Path(path).expanduser().exists()):
            yield _where("data", path, "datasets")
        elif isinstance(path, str):
            yield Finding("data", f"{redact_text(path)}, read by {entry.type}")


def _where(what: str, name: str, kind: str) -> Finding:
    path = Path(name).expanduser()
    if path.exists():
        return Finding(what, f"{name}, on this machine")
    if cached_snapshot(name, kind) is not None:
        return Finding(what, f"{name}, in the hub's cache")
    text = f"{name}, not on this machine"
    if is_offline():
        unset = "unset HF_HUB_OFFLINE, or download it where there is a network"
        return Finding(what, f"{text}, and the hub is switched off", unset)
    return Finding(what, f"{text}: it is downloaded by the first run")


def _memory_findings(checked: Configured, probed: Probed) -> Iterator[Finding]:
    """Weights, gradients and moments of Adam, where the model's files are here and nothing else decides."""
    config = checked.config
    name = config.model.base_model
    folder = Path(name).expanduser() if name else None
    if name and folder is not None and not folder.is_dir():
        folder = cached_snapshot(name)
    shapes = tensor_shapes(folder) if folder is not None else {}
    if not shapes:
        return
    weights = _weight_bytes(config, shapes)
    trained, words = _trained_bytes(checked, shapes)
    if trained is None:
        yield Finding("memory", f"weights {size(weights)}; what is trained of them, plugins decide ({words})")
        return
    moments = _ADAM_MOMENTS * trained if _is_adam(checked.plugins, config) else 0
    parts = [f"weights {size(weights)}", f"gradients {size(trained)}"]
    parts += [f"optimizer {size(moments)}"] if moments else []
    total = weights + trained + moments
    device, free, there = _device(config, probed)
    text = f"{size(total)} = {' + '.join(parts)} ({words})\nactivations, which grow with rows and tokens, come on top"
    text += "" if moments else ", and so does the optimizer's state"
    if there and total > there:
        way_out = "a smaller model" if "peft" in config.plugins else "a smaller model, or LoRA ('dumbo docs peft')"
        yield Finding("memory", f"{text}\n{device} has {size(there)}: it cannot fit", f"take {way_out}")
    elif there:
        verdict = "fits" if total < 0.8 * free else "fits, with little or nothing left for the activations"
        yield Finding("memory", f"{text}\n{device} has {size(free)} of {size(there)} free: it {verdict}")
    else:
        yield Finding("memory", text)


def _weight_bytes(config: RunConfig, shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes of the base model, of which linear layers may be quantized."""
    plain = parameter_count(shapes) * dict(_BYTES)[config.model.dtype]
    quantizing = [name for name in _QUANTIZING if name in config.plugins]
    if not quantizing:
        return plain
    bits = getattr(getattr(config.model, quantizing[0], None), "bits", 8)
    values = linear_count(shapes)
    return plain - values * dict(_BYTES)[config.model.dtype] + values * bits // 8


def _trained_bytes(checked: Configured, shapes: dict[str, tuple[int, ...]]) -> tuple[int | None, str]:
    """Bytes of what is trained, with words for it; None where that depends on plugins that are not known here."""
    spec = next(spec for spec in INTERFACES if spec.type is ModelPatcherPlugin)
    patchers = [plugin for plugin in checked.plugins.found if claims(plugin.type, spec)]
    strange = [plugin.name for plugin in patchers if plugin.name not in _KNOWN_PATCHERS]
    options: Any = getattr(checked.config.model, "peft", None)
    if options is not None and "peft" in checked.config.plugins:
        if strange or not options.is_simple:
            return None, ", ".join(["peft", *strange])
        return 4 * adapter_count(shapes, options.width, options.target_modules), "LoRA's weights alone are trained"
    if checked.config.model.unfrozen_parameters:
        return None, ", ".join([*strange, "model.unfrozen_parameters"])
    if strange:
        return None, ", ".join(strange)
    return parameter_count(shapes) * dict(_BYTES)[checked.config.model.dtype], "all weights are trained"


def _is_adam(plugins: PluginManager, config: RunConfig) -> bool:
    ours = plugins.names(TrainerPlugin) == ["transformers_trainer"] or "transformers_trainer" in config.plugins
    return ours and not plugins.names(OptimizerPlugin) and config.trainer.arguments.optim in _ADAM


def _device(config: RunConfig, probed: Probed) -> tuple[str, int, int]:
    """Where it would train: name, free and total memory; the smallest of several GPUs."""
    gpus = probed.torch.get("gpus") or []
    if gpus and not config.trainer.arguments.use_cpu:
        smallest = min(gpus, key=lambda gpu: int(gpu["free"]))
        return str(smallest["name"]), int(smallest["free"]), int(smallest["total"])
    if probed.torch.get("mps") and not config.trainer.arguments.use_cpu:
        return "the GPU shares the machine's memory, which", *memory_bytes()
    return "this machine", *memory_bytes()
