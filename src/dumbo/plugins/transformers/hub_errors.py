"""Explains what the hub, the network or the cache answered: what happened, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dumbo.errors import Problem, RunError, key_path

Kind = TypeVar("Kind", bound=BaseException)
LOGIN = "log in with 'hf auth login', or set HF_TOKEN"


def explain(error: BaseException, name: str, revision: str | None, key: str) -> RunError:
    """The error to raise for `error`, which came up while `name` was fetched for the option `key`.

    Nothing of a token, of a signed address or of the answer's body is repeated.
    """
    chain = tuple(causes(error))
    message, hints = (
        _refusal(chain, name, revision) or _bad_answer(chain, name) or _machine(chain) or _no_answer(chain, name)
    )
    return RunError(str(Problem(message, key_path(key) if key else (), hints=hints)))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it came from, the nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def endpoint() -> str:
    """The hub's address, without a name or password that may be part of it."""
    parts = urlsplit(constants.ENDPOINT)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


Explanation = tuple[str, tuple[str, ...]]


def _first(chain: tuple[BaseException, ...], kind: type[Kind]) -> Kind | None:
    return next((error for error in chain if isinstance(error, kind)), None)


def _refusal(chain: tuple[BaseException, ...], name: str, revision: str | None) -> Explanation | None:
    """The hub said no to this repository or revision. A gated repository's error is a kind of one that is missing."""
    page = f"{endpoint()}/{name}"
    if _first(chain, GatedRepoError):
        if get_token() is None:
            return f"'{name}' is gated, and no token is set", (f"accept its licence at {page}", f"then {LOGIN}")
        allow = "a fine-grained token must allow reading gated repositories"
        return f"'{name}' is gated, and your token has no access to it", (f"accept its licence at {page}", allow)
    if _first(chain, DisabledRepoError):
        return f"'{name}' was disabled by its owner or by the hub", (f"see {page}",)
    if _first(chain, RevisionNotFoundError):
        message = f"'{name}' has no revision '{revision}'"
        return message, (f"model.revision: a branch, tag or commit; see {page}/tree/main",)
    if _first(chain, RepositoryNotFoundError):
        private = LOGIN if get_token() is None else "your token may not be allowed to see it"
        return (
            f"there is no model '{name}' on {endpoint()}, or it is private",
            ("check the spelling", f"if it is private: {private}", f"no folder '{name}' is in {Path.cwd()} either"),
        )
    return None


def _bad_answer(chain: tuple[BaseException, ...], name: str) -> Explanation | None:
    error = _first(chain, HfHubHTTPError)
    if error is None:
        return None
    status = error.response.status_code
    if status == 401:
        hint = "make a new one at https://huggingface.co/settings/tokens, then log in with 'hf auth login'"
        return f"{endpoint()} does not accept your token", (
            hint,
            "a token in HF_TOKEN goes before the one of the login",
        )
    if status == 403:
        return f"{endpoint()} forbids access to '{name}'", ("check what your token is allowed to read",)
    if status == 429:
        return f"{endpoint()} answers no more requests for now (429)", (f"wait some minutes, and {LOGIN}",)
    return f"{endpoint()} failed with status {status} for '{name}'", ("try again later", _offline_hint())


def _machine(chain: tuple[BaseException, ...]) -> Explanation | None:
    cache = constants.HF_HUB_CACHE
    for error in chain:
        if not isinstance(error, OSError):
            continue
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space is left for the download in {cache}", ("make room, or set HF_HOME to a larger disk",)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"the download cache {cache} cannot be written", ("set HF_HOME to a folder of yours",)
    return None


def _no_answer(chain: tuple[BaseException, ...], name: str) -> Explanation:
    absent = _first(chain, LocalEntryNotFoundError) is not None
    if _first(chain, OfflineModeIsEnabled) or (absent and constants.HF_HUB_OFFLINE):
        message = f"'{name}' is not (wholly) in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
        return message, ("unset HF_HUB_OFFLINE, or write a local folder",)
    from_network = any(type(error).__module__.partition(".")[0].startswith("http") for error in chain)
    if from_network or absent:
        message = f"{endpoint()} cannot be reached, and '{name}' is not (wholly) in the cache {constants.HF_HUB_CACHE}"
        return message, ("check the network, HTTPS_PROXY and HF_ENDPOINT, or write a local folder",)
    first_line = (str(chain[0]).strip().splitlines() or [""])[0]
    return f"'{name}' cannot be fetched: {type(chain[0]).__name__}: {first_line}", ()


def _offline_hint() -> str:
    return "with HF_HUB_OFFLINE=1 only the cache is used"
