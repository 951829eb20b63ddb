"""Opens what a run left for generating: its model, its tokenizer, and the train format that writes its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.blame import describe
from dumbo.data.records import Origin
from dumbo.errors import DumboError, Problem, RunError
from dumbo.inference.choosing import generator_of_model
from dumbo.inference.generate import TextGenerator, Writer
from dumbo.inference.prompting import PlainPromptWriter, PromptWriter, writer_for
from dumbo.local_paths import near_paths
from dumbo.run_folder import models_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.data.records import TrainFormat

_MODEL_FILES = ("config.json", "adapter_config.json")
_BEGUN = ("summary.json", "metrics.jsonl")
"""What a run has beside its `run.yaml`, and a configuration that somebody wrote has not."""
_AS_IT_IS = "the text as it is"


@dataclass(frozen=True)
class Opened:
    """A model that is ready to write."""

    generator: TextGenerator
    folder: Path
    """Where its weights came from."""
    format: str
    """What writes its prompts, in a word or two."""


def open_model(
    path: Path,
    raw: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: tuple[str, ...] = (),
    unquantized: bool = False,
) -> Opened:
    """Load the model of a run's folder, of a checkpoint, or of any folder with a model.

    Prompts are written by the run's own train format, without a run by the tokenizer's chat template, and without one,
    or with `raw`, as they are. Whether a model's own code may run, and which files may be pickles, is for
    `trust_remote_code` and `allow_pickle` to say, not for the run. `unquantized` takes an adapter's base as its
    files have it.

    Raises:
        RunError: there is no model, or its train format cannot be had.
    """
    folder = find_model(path)
    run_file = _run_file_of(folder)
    tree = _tree_of(run_file) if run_file is not None else {}
    train_format = None if raw or run_file is None else _train_format(run_file, tree)
    from dumbo.bridge.inference_model import load_for_inference
    from dumbo.bridge.quiet import quieten_libraries

    quieten_libraries()
    model, tokenizer = load_for_inference(
        folder,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        config_overrides=_config_overrides(tree),
        unquantized=unquantized,
    )
    writer: Writer = PlainPromptWriter(tokenizer)
    name = _AS_IT_IS
    if train_format is not None:
        writer = writer_for(train_format.build(tokenizer), tokenizer)
        name = train_format.name if isinstance(writer, PromptWriter) else _AS_IT_IS
    elif tokenizer.chat_template and not raw:
        writer, name = ChatTemplateWriter(tokenizer), "the tokenizer's chat template"
    listed, place = tree.get("plugins") or (), run_file.parent if run_file is not None else folder
    return Opened(generator_of_model(model, tokenizer, writer, listed, place), folder, name)


def find_model(path: Path) -> Path:
    """The folder with the weights: the run's `model/`, else its best or newest checkpoint, else `path` itself.

    Raises:
        RunError: there is none.
    """
    if not path.is_dir():
        hints = near_paths(path, folders=True)
        raise RunError(str(Problem(f"there is no folder '{path}'", hints=tuple(hints))))
    if _holds_model(path):
        return path
    for folder in (path / "model", path / "checkpoints" / "best", *reversed(models_of(path))):
        if _holds_model(folder):
            return folder
    if (path / "run.yaml").is_file():
        message = f"the run in '{path}' has left no model: it ended before one was written"
        raise RunError(str(Problem(message, hints=("start it again: dumbo " + str(path / "run.yaml"),))))
    runs = [child.name for child in sorted(path.iterdir()) if (child / "run.yaml").is_file()]
    hints = (f"runs in it: {', '.join(runs[-5:])}",) if runs else ()
    raise RunError(str(Problem(f"'{path}' holds neither a run nor a model", hints=hints)))


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MODEL_FILES)


def _run_file_of(folder: Path) -> Path | None:
    """The configuration of the run that `folder` belongs to; None for a model without one."""
    for place in (folder.absolute(), folder.resolve()):  # a model may be a link, and a path may end in dots
        runs = [place]
        if place.name == "model":
            runs.append(place.parent)
        if place.parent.name == "checkpoints":
            runs.append(place.parent.parent)
        for run in runs:
            if (run / "run.yaml").is_file() and any((run / name).is_file() for name in _BEGUN):
                return run / "run.yaml"
    return None


def _tree_of(run_file: Path) -> dict[str, Any]:
    from dumbo.config.source import load_source

    return load_source(run_file).tree


def _config_overrides(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What the run changed in its model's configuration, which an adapter's folder does not tell."""
    section = tree.get("model")
    written = section.get("config_overrides") if isinstance(section, dict) else None
    return written if isinstance(written, dict) else {}


@dataclass(frozen=True)
class _FoundFormat:
    """A train format that was found by its name among a run's plugins."""

    name: str
    plugin: Any
    options: Any

    def build(self, tokenizer: PreTrainedTokenizerBase) -> TrainFormat:
        try:
            encode: TrainFormat = self.plugin.build_train_format(self.options, tokenizer)
        except DumboError:
            raise
        except Exception as error:
            raise _unusable(self.name, describe(error, type(self.plugin))) from error
        return encode


def _train_format(run_file: Path, tree: Mapping[str, Any]) -> _FoundFormat:
    """The first source's train format.

    Raises:
        RunError: no plugin of the run brings it, or it does not take the run's options.
    """
    from dumbo.plugin_finder import find_plugin

    entries = tree.get("datasets") or [{}]
    written = entries[0].get("train_format")
    options = dict(written) if isinstance(written, dict) else {"type": written}
    # It is saved with the tokenizer; a file that it names may be gone by now.
    options.pop("chat_template", None)
    name = str(options.get("type"))
    for listed in tree.get("plugins") or []:
        try:
            found = find_plugin(str(listed), run_file.parent)
        except DumboError:
            continue
        table = getattr(found.type, "train_formats", {})
        if name in table:
            try:
                return _FoundFormat(name, found.type(), table[name].model_validate(options))
            except Exception as error:
                raise _unusable(name, str(error).splitlines()[0]) from error
    raise _unusable(name, "no plugin of the run brings it here")


def _unusable(name: str, reason: str) -> RunError:
    message = f"the run's train format '{name}' cannot be used: {reason}"
    return RunError(str(Problem(message, hints=("--raw writes prompts as they are",))))


class ChatTemplateWriter:
    """Writes messages by the tokenizer's chat template, for a model that no run of ours has trained."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def write(self, messages: Any) -> list[int]:
        """The ids of the messages and of the header of an answer.

        Raises:
            DataError: the template refuses these messages.
        """
        try:
            made: Any = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except Exception as error:  # templates run arbitrary expressions, and refuse in any way they like
            raise Origin("the prompt", 1).error(f"the chat template refuses these messages: {error}") from error
        return list(made["input_ids"])

    def end_ids(self) -> list[int]:
        """None: the model's own configuration names them."""
        return []
