"""What can be wrong with `model` and `model.tokenizer` before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dumbo.config.schema import ModelSection, RunConfig
from dumbo.errors import Problem, key_path
from dumbo.plugins.transformers.folders import (
    as_folder,
    has_chat_template,
    model_folder_problem,
    name_problem,
    tokenizer_folder_problem,
)
from dumbo.tokenizers.section import template_problems, token_problems


def model_problems(model: ModelSection) -> list[Problem]:
    """The problems of `model.base_model`, `model.revision` and `model.architecture`."""
    key = "model.base_model"
    if model.architecture:
        return list(_architecture_problems(model))
    if not model.base_model:
        hints = (
            "base_model: owner/name on the hub, or a folder",
            "or, for random weights, architecture: {model_type: llama, ...}",
        )
        return [Problem("a model to start from is missing", key_path(key), hints=hints)]
    folder = as_folder(model.base_model)
    problem = name_problem(model.base_model, key)
    if folder is not None and problem is None:
        problem = model_folder_problem(folder, model.base_model, key)
    problems = [problem] if problem else []
    if folder is not None and model.revision is not None:
        message = "only the hub has revisions, and the base model is a local folder; leave 'revision' out"
        problems.append(Problem(message, key_path("model.revision")))
    return problems


def _architecture_problems(model: ModelSection) -> Iterator[Problem]:
    key = "model.architecture"
    if model.base_model:
        yield Problem("a model is named in base_model too; keep one of them", key_path(key))
    if model.allow_pickle:
        yield Problem("random weights are read from no file; leave it out", key_path("model.allow_pickle"))
    if model.revision is not None:
        yield Problem("there is no revision of random weights; leave 'revision' out", key_path("model.revision"))
    if model.config_overrides:
        message = "write these values into model.architecture"
        yield Problem(message, key_path("model.config_overrides"))
    model_type = model.architecture.get("model_type")
    if not isinstance(model_type, str):
        hint = "architecture: {model_type: llama, hidden_size: 256, ...}"
        yield Problem("needs a model_type, such as llama", key_path(key), hints=(hint,))


def tokenizer_problems(config: RunConfig) -> list[Problem]:
    """The problems of `model.tokenizer`, and of train formats that need a chat template which is not there."""
    section = config.model.tokenizer
    problems = [*_path_problems(config.model), *token_problems(section), *template_problems(section)]
    folder = _good_folder(section.path or config.model.base_model)
    if section.chat_template is None and folder is not None and not has_chat_template(folder):
        problems += missing_template_problems(config)
    return problems


def missing_template_problems(config: RunConfig) -> list[Problem]:
    """A problem for every dataset whose train format needs a chat template; to be used where there is none."""
    hints = (
        "model.tokenizer.chat_template: Jinja text, or the path of a .jinja file",
        "or name an instruction-tuned tokenizer with model.tokenizer.path",
    )
    return [
        Problem("needs a chat template, and the tokenizer has none", ("datasets", number, "train_format"), hints=hints)
        for number, entry in enumerate(config.datasets)
        if entry.train_format.needs_chat_template
    ]


def _good_folder(name: str | None) -> Path | None:
    folder = as_folder(name) if name else None
    return folder if folder is not None and folder.is_dir() else None


def _path_problems(model: ModelSection) -> Iterator[Problem]:
    path, key = model.tokenizer.path, "model.tokenizer.path"
    if path == "":
        yield Problem("is empty", key_path(key))
        return
    name = path or model.base_model
    if not name:  # There is a complaint about the base model already, unless another plugin makes the model.
        if model.architecture:
            message = "random weights bring no tokenizer"
            hints = ("name one: path: FOLDER, or owner/name on the hub", "or add 'tokenizer_trainer' under plugins:")
            yield Problem(message, key_path(key), hints=hints)
        return
    problem = name_problem(name, key) if path is not None else None
    if problem is not None:
        yield problem
        return
    folder = _good_folder(name)
    if folder is None:
        return
    where = key if path is not None else "model.base_model"
    problem = tokenizer_folder_problem(folder, name, where, model.trust_remote_code)
    if problem is not None:
        yield problem
