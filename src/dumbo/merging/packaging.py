"""What lies beside the weights of a merged model: its configuration, the tokenizer, how it was made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dumbo.merging.bases import INDEX_FILE
from dumbo.merging.numbers import torch_name
from dumbo.merging.plan import Plan
from dumbo.merging.writing import index_of

_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
_OF_BASE = ("*.py", "LICENSE*", "NOTICE*", "*.tiktoken")
_IDS = ("pad", "bos", "eos")


def tokenizer_folder(plan_adapters: list[Path], base: Path) -> Path:
    """Where the tokenizer is taken from: the first adapter that has one, else the base model."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    having = (folder for folder in [*plan_adapters, base] if any((folder / name).is_file() for name in names))
    return next(having, base)


def tokens_of(folder: Path) -> int | None:
    """How many rows the tokenizer in `folder` needs: its largest id and one; None where it does not say."""
    tree = _read(folder / "tokenizer.json")
    model = tree.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = [len(vocabulary) - 1] if isinstance(vocabulary, list) else list((vocabulary or {}).values())
    ids += [int(token["id"]) for token in tree.get("added_tokens") or []]
    return max(ids) + 1 if ids else None


def write_package(plan: Plan, folder: Path, config: Mapping[str, Any] | None, tokenizer: Path) -> None:
    """Write all files but the weights into `folder`. `config`: the configuration where Transformers made it."""
    made = merged_config(plan, config, tokenizer)
    _write(folder / "config.json", made)
    index = index_of(plan)
    if index is not None:
        _write(folder / INDEX_FILE, index)
    for name in _TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    if (tokenizer / "chat_templates").is_dir():
        shutil.copytree(tokenizer / "chat_templates", folder / "chat_templates")
    for pattern in _OF_BASE:
        for file in plan.base.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    sources = [*(adapter.folder for adapter in plan.adapters), plan.base.folder]
    generation = next((source for source in sources if (source / "generation_config.json").is_file()), None)
    if generation is not None:
        settings = _read(generation / "generation_config.json")
        _set_ids(settings, special_ids(tokenizer) if tokenizer != plan.base.folder else {})
        _write(folder / "generation_config.json", settings)
    (folder / "README.md").write_text(card_of(plan), encoding="utf-8")


def merged_config(plan: Plan, config: Mapping[str, Any] | None, tokenizer: Path) -> dict[str, Any]:
    """The base model's configuration, with what is another now: the type of the numbers, the size of the vocabulary,
    the ids of special tokens, whether head and embeddings are one."""
    made = json.loads(json.dumps(config if config is not None else plan.base.config))
    made.pop("quantization_config", None)
    inner = [made, *(made[name] for name in ("text_config", "llm_config") if isinstance(made.get(name), dict))]
    ids = special_ids(tokenizer) if tokenizer != plan.base.folder else {}
    for section in inner:
        if plan.rows is not None and ("vocab_size" in section or section is inner[-1]):
            section["vocab_size"] = plan.rows
        if plan.unties and (section is made or "tie_word_embeddings" in section):
            section["tie_word_embeddings"] = False
        if plan.dtype is not None:
            section.pop("torch_dtype", None)
            if section is made or "dtype" in section:
                section["dtype"] = torch_name(plan.dtype)
        if section is made or any(f"{name}_token_id" in section for name in _IDS):
            _set_ids(section, ids)
    return dict(made)


def special_ids(folder: Path) -> dict[str, int]:
    """The ids of the tokenizer's pad, bos and eos tokens, of those that it has."""
    settings, tree = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
    ids = {str(token["content"]): int(token["id"]) for token in tree.get("added_tokens") or []}
    model = tree.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = (vocabulary if isinstance(vocabulary, dict) else {}) | ids
    found = {}
    for name in _IDS:
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            found[f"{name}_token_id"] = ids[text]
    return found


def _set_ids(section: dict[str, Any], ids: Mapping[str, int]) -> None:
    for key, number in ids.items():
        old = section.get(key)
        if not (isinstance(old, list) and number in old):  # Chat models stop at several.
            section[key] = number


def card_of(plan: Plan) -> str:
    """A model card: what was merged into what, and how it can be used."""
    base = plan.base.name
    shown = base if not Path(base).is_absolute() else Path(base).name
    lines = ["---", f"base_model: {json.dumps(shown)}", "library_name: transformers", "tags: [merged]", "---", ""]
    lines += [f"# {shown}, with an adapter merged in", ""]
    lines.append(f"The weights of `{shown}` with these changes added to them by `dumbo merge`:")
    lines.append("")
    for adapter in plan.adapters:
        rank = f", rank {adapter.settings['r']}" if adapter.settings.get("r") else ""
        kind = "DoRA" if adapter.settings.get("use_dora") else adapter.kind
        times = f", times {adapter.weight:g}" if adapter.weight != 1 else ""
        lines.append(f"- `{adapter.folder.name}`: {kind}{rank}{times}")
    if plan.unties:
        lines += ["", "Input embeddings and output head were one tensor in the base model, and are two here."]
    if plan.rows is not None:
        lines += ["", f"The vocabulary has {plan.rows} rows."]
    lines += ["", "It loads as any model of Transformers does. The licence is that of the base model.", ""]
    return "\n".join(lines)


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _write(file: Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
