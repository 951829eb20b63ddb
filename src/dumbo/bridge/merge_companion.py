"""The process beside a merge that has Transformers: `python -m dumbo.bridge.merge_companion`.

It reads questions, a JSON object in a line each, and writes an answer to each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dumbo.errors import DumboError


def main() -> int:
    """Answer until there is nothing more to read."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print must not be taken for an answer.
    _import_all()
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(_answer(asked)) + "\n")
        answers.flush()
    return 0


def _import_all() -> None:
    """What any question needs: it takes seconds, in which the merge begins to write."""
    from dumbo.bridge import merge_proof  # noqa: F401
    from dumbo.bridge.quiet import quieten_libraries

    quieten_libraries()
    import peft  # noqa: F401


def _answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"names": _names, "reference": _reference, "merged": _merged}[str(asked["question"])](asked)
    except DumboError as error:
        return {"error": str(error)}
    except Exception as error:
        if os.environ.get("DUMBO_MERGE_DEBUG"):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{asked['what']}: {type(error).__name__}: {first}"}


def _config(asked: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    from dumbo.bridge.config_overrides import override

    options = {"trust_remote_code": bool(asked.get("trusted")), "local_files_only": not asked.get("trusted")}
    config = AutoConfig.from_pretrained(asked["folder"], **options)
    config = override(config, asked.get("overrides") or {})
    if asked.get("rows"):
        config.get_text_config().vocab_size = asked["rows"]
    config.quantization_config = None
    del config.quantization_config
    return config


def _names(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Where the model's weights lie, for `dumbo.merging.places`."""
    from dumbo.bridge.merge_names import flipped_weights, locate, own_parameters, tied_weights
    from dumbo.bridge.stored_model import empty_model

    config = _config(asked)
    written = config.to_dict()  # Before it is told that the empty model is of float32.
    model = empty_model(config, bool(asked.get("trusted")))
    pieces, reasons = locate(model, asked["shapes"])
    names = {id(module): name for name, module in model.named_modules()}
    embeddings, head = (_weight(names, find) for find in (model.get_input_embeddings, model.get_output_embeddings))
    tied = tied_weights(model)
    return {
        "pieces": pieces,
        "reasons": reasons,
        "embeddings": embeddings,
        "head": head,
        "is_tied": head in tied and pieces.get(head) == pieces.get(embeddings or ""),
        "shapes": {name: list(value.shape) for name, value in model.state_dict().items()},
        "flipped": flipped_weights(model),
        "parameters": own_parameters(model),
        "config": written,
    }


def _weight(names: Mapping[int, str], find: Any) -> str | None:
    try:
        module = find()
    except (AttributeError, NotImplementedError):
        return None
    return None if module is None else f"{names[id(module)]}.weight"


def _reference(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the logits of the base model with PEFT's adapters; they are kept for the comparison."""
    import torch

    from dumbo.bridge.merge_proof import few_threads, logits_of, with_adapters
    from dumbo.bridge.stored_model import FromDisk, empty_model

    few_threads()
    model = empty_model(_config(asked), bool(asked.get("trusted")))
    ids = torch.tensor(_probes(asked))
    weights = FromDisk(model, Path(asked["folder"]), _rounding(asked))
    wrapped, inside = with_adapters(model, asked["adapters"])
    with weights.attached(wrapped, inside):
        logits = logits_of(wrapped, ids)
    torch.save({"ids": ids, "logits": logits}, asked["kept"])
    return {"tokens": ids.numel(), "largest": float(logits.abs().max())}


def _merged(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the logits of the merged model, and of the same with other roundings; compare them with those kept."""
    import torch

    kept = torch.load(asked["kept"], weights_only=True)
    ids, reference = kept["ids"], kept["logits"]
    config = _config(asked)
    noise = float(asked["roundoff"]) * (float(config.get_text_config().hidden_size) ** 0.5 if asked["exact"] else 1.0)
    logits, other = _merged_logits(asked, config, ids, noise)
    return {
        "difference": float((logits - reference).abs().max()),
        "noise": float((logits - other).abs().max()),
        "largest": float(reference.abs().max()),
        "same_token": float((logits.argmax(-1) == reference.argmax(-1)).float().mean()),
        "finite": bool(torch.isfinite(logits).all()),
    }


def _merged_logits(asked: Mapping[str, Any], config: Any, ids: Any, noise: float) -> tuple[Any, Any]:
    """The logits of the merged model, and those with other roundings: in one pass, or where that cannot be, in two."""
    from dumbo.bridge.merge_proof import logits_of, noise_of, twice_with_noise
    from dumbo.bridge.stored_model import FromDisk, empty_model

    model = empty_model(config, bool(asked.get("trusted")))
    folder, changed = Path(asked["folder"]), frozenset(asked["changed"])
    with FromDisk(model, folder).attached(model, model.get_submodule):
        both = twice_with_noise(model, ids, noise, changed)
        if both is not None:
            return both
        logits = logits_of(model, ids)
    with FromDisk(model, folder, noise_of(noise, changed)).attached(model, model.get_submodule):
        return logits, logits_of(model, ids)


def _rounding(asked: Mapping[str, Any]) -> Any:
    quantization = asked.get("quantization")
    if not quantization:
        return None
    from dumbo.merging.quantized import rounding_of

    simulate = rounding_of(quantization)
    return lambda name, value: simulate(name, value)


def _probes(asked: Mapping[str, Any]) -> list[list[int]]:
    """Sequences of one length: drawn from all ids, the ids of new rows, and text where there is a tokenizer."""
    from random import Random

    length, count = 16, int(asked["tokens"])
    draw = Random(20)
    rows = [[draw.randrange(count) for _ in range(length)]]
    special = [int(number) for number in asked.get("special") or []]
    if special:
        rows.append([draw.choice(special) if place % 2 else draw.randrange(count) for place in range(length)])
    text = _text_ids(str(asked["tokenizer"]), length)
    return rows + [[min(number, count - 1) for number in row] for row in text]


_TEXTS = (
    "The merged model must say what the base model with its adapter says, word for word, and number for number.",
    "def add(first, second):\n    return first + second\n\nprint(add(17, 25))  # forty-two, as everybody knows",
)


def _text_ids(folder: str, length: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = [tokenizer(text)["input_ids"] for text in _TEXTS]
    except Exception:  # It is one of several probes, and a broken tokenizer is not the weights' fault.
        return []
    return [(row * length)[:length] for row in ids if row]


if __name__ == "__main__":
    raise SystemExit(main())
