"""Imports the libraries that a run needs and says what they say: a process of its own, because some die of it.

`python -m dumbo.diagnosis.probe` prints a line of JSON before and after each.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

IMPORTED = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "transformers", "accelerate")
"""In the order of what needs what."""


def main() -> None:
    """Import one after the other."""
    for name in IMPORTED:
        _say({"begins": name})
        try:
            module = importlib.import_module(name)
            facts = torch_facts(module) if name == "torch" else {}
            _say({"name": name, "version": str(getattr(module, "__version__", "")), **facts})
        except BaseException as error:  # whatever an import raises is what is wrong
            text = str(error).strip().splitlines()
            _say({"name": name, "error": f"{type(error).__name__}: {text[0]}" if text else type(error).__name__})


def torch_facts(torch: Any) -> dict[str, Any]:
    """Build, threads and devices. What cannot be asked is left out."""
    facts: dict[str, Any] = {"threads": torch.get_num_threads(), "cuda": torch.version.cuda, "hip": torch.version.hip}
    facts["mps"] = bool(torch.backends.mps.is_available())
    try:
        facts["gpus"] = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # a driver that does not fit the build
        facts["gpu_error"] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return facts


def _gpu(torch: Any, index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    capability = f"{properties.major}.{properties.minor}"
    with torch.cuda.device(index):
        bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return {"name": properties.name, "free": free, "total": total, "capability": capability, "bf16": bf16}


def _say(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
