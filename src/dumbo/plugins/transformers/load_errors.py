"""Turns what Transformers raises while it loads into the option that is to blame and what to write instead."""

from __future__ import annotations

import transformers
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError

from dumbo.bridge.hub_errors import Repository, causes, explain
from dumbo.errors import ConfigError, DumboError, Problem, RunError, key_path
from dumbo.plugins.transformers.folders import place_of, read_object
from dumbo.plugins.transformers.hub import Source

EXPECTED = (OSError, ValueError, ImportError, KeyError, RuntimeError, StrictDataclassError)
ATTENTION_WORDS = ("attention", "attn", "flash", "kernel")


def explain_loading(
    error: Exception, source: Source, name: str, key: str, *, attention: str = "auto", overridden: bool = False
) -> DumboError | None:
    """The error to raise for `error`, which Transformers raised over `source`, named `name` at the option `key`.

    `attention` is what was asked for; `overridden`, whether there are overrides. None for what no user can cause.
    """
    if isinstance(error, DumboError):
        return error
    if not isinstance(error, EXPECTED):
        return None
    if any(isinstance(cause, HfHubHTTPError | LocalEntryNotFoundError) for cause in causes(error)):
        return explain(error, Repository("model", name, source.commit), key)
    text = str(error.args[0]) if error.args else str(error)
    where = place_of(key)
    problem = _code_problem(text, name) or _attention_problem(text, attention) or _type_problem(text, source, name, key)
    if problem is None and overridden:
        problem = Problem(
            f"the model cannot be made with them: {_summary(error, text)}", key_path("model.config_overrides")
        )
    if problem is not None:
        return ConfigError([problem])
    return RunError(str(Problem(f"'{name}' cannot be loaded: {_summary(error, text)}", where)))


def _code_problem(text: str, name: str) -> Problem | None:
    if "trust_remote_code" not in text:
        return None
    return Problem(
        f"'{name}' needs Python code of its own, which would run with all your rights",
        key_path("model.trust_remote_code"),
        hints=("read the .py files in its repository; if you trust them, write trust_remote_code: true",),
    )


def _attention_problem(text: str, attention: str) -> Problem | None:
    if attention == "auto" or not any(word in text.lower() for word in ATTENTION_WORDS):
        return None
    first = text.strip().splitlines()[0]
    return Problem(
        f"'{attention}' cannot be used here: {first}",
        key_path("model.attention"),
        hints=("auto, sdpa and eager need no package",),
    )


def _type_problem(text: str, source: Source, name: str, key: str) -> Problem | None:
    where = place_of(key)
    if "Unrecognized configuration class" in text:
        kind = read_object(source.folder / "config.json").get("model_type")
        return Problem(f"'{name}' is of type '{kind}', which has no causal language model in Transformers", where)
    if "does not recognize this architecture" not in text and "Unrecognized model" not in text:
        return None
    kind = read_object(source.folder / "config.json").get("model_type")
    if kind is None:
        return Problem(f"the config.json of '{name}' has no 'model_type'", where)
    message = f"'{name}' is of type '{kind}', which Transformers {transformers.__version__} does not know"
    return Problem(message, where, hints=("a newer one may: pip install -U transformers",))


def _summary(error: Exception, text: str) -> str:
    # Strict configurations say which field it is in the first line, and what is wrong with it in the last.
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
    return f"{type(error).__name__}: {line}" if isinstance(error, KeyError) else line
