"""Explains what the hub, the network or the cache answered: what happened, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dumbo.errors import Problem, RunError, key_path

Kind = TypeVar("Kind", bound=BaseException)
Explanation = tuple[str, tuple[str, ...]]
LOGIN = "log in with 'hf auth login', or set HF_TOKEN"
LOCAL_COPY = "or give the path of a local copy"


@dataclass(frozen=True)
class Repository:
    """What was asked of the hub."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'"

    @property
    def page(self) -> str:
        """The address of its page for people."""
        return f"{endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


def explain(error: BaseException, repository: Repository, key: str = "", *, near: tuple[str, ...] = ()) -> RunError:
    """The error to raise for `error`, which came up while `repository` was fetched for the option `key`.

    `near` are hints about what lies on this machine, for a repository that is not there. Nothing of a token, of a
    signed address or of the answer's body is repeated.
    """
    chain = tuple(causes(error))
    message, hints = (
        _refusal(chain, repository, near)
        or _bad_answer(chain, repository)
        or _machine(chain, repository)
        or _no_answer(chain, repository)
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


def _first(chain: tuple[BaseException, ...], kind: type[Kind]) -> Kind | None:
    return next((error for error in chain if isinstance(error, kind)), None)


def _refusal(chain: tuple[BaseException, ...], repository: Repository, near: tuple[str, ...]) -> Explanation | None:
    """The hub said no to this repository or revision. A gated repository's error is a kind of one that is missing."""
    if _first(chain, GatedRepoError):
        accept = f"accept its conditions at {repository.page}"
        if get_token() is None:
            return f"{repository} is gated, and no token is set", (accept, f"then {LOGIN}")
        allow = "a fine-grained token must allow reading gated repositories"
        return f"{repository} is gated, and your token has no access to it", (accept, allow)
    if _first(chain, DisabledRepoError):
        return f"{repository} was disabled by its owner or by the hub", (f"see {repository.page}",)
    if _first(chain, RevisionNotFoundError):
        message = f"{repository} has no revision '{repository.revision or constants.DEFAULT_REVISION}'"
        return message, (f"'revision' is a branch, a tag or a commit; see {repository.page}/tree/main",)
    if _first(chain, RepositoryNotFoundError) or _first(chain, HFValidationError):
        private = LOGIN if get_token() is None else "your token may not be allowed to see it"
        here = f"there is no file or folder '{repository.name}' in {Path.cwd()} either"
        return (
            f"there is no {repository} on {endpoint()}, or it is private",
            ("check the spelling", f"if it is private: {private}", here, *near),
        )
    return None


def _bad_answer(chain: tuple[BaseException, ...], repository: Repository) -> Explanation | None:
    error = _first(chain, HfHubHTTPError)
    if error is None:
        return None
    status = error.response.status_code
    anonymous = get_token() is None
    if status in (401, 403) and anonymous:
        return f"{endpoint()} refuses access to {repository} (HTTP {status}), and no token is set", (LOGIN,)
    if status == 401:
        renew = "make a new one at https://huggingface.co/settings/tokens, then log in with 'hf auth login'"
        order = "a token in HF_TOKEN goes before the one of the login"
        return f"{endpoint()} does not accept your token for {repository} (HTTP 401)", (renew, order)
    if status == 403:
        hint = "check what your token is allowed to read"
        return f"{endpoint()} refuses your token access to {repository} (HTTP 403)", (hint,)
    if status == 429:
        message = f"{endpoint()} answers no more requests for now ({repository}, HTTP 429)"
        return message, ("wait a few minutes", *([LOGIN] if anonymous else []))
    return f"{endpoint()} cannot give {repository} (HTTP {status})", (f"try again later, {LOCAL_COPY}",)


def _machine(chain: tuple[BaseException, ...], repository: Repository) -> Explanation | None:
    cache = constants.HF_HUB_CACHE
    for error in chain:
        if not isinstance(error, OSError):
            continue
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "make room, or set HF_HOME to a larger disk"
            return f"no space is left for the download of {repository} in {cache}", (hint,)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "set HF_HOME to a folder of yours"
            return f"the download cache {cache} cannot be written for {repository}", (hint,)
    return None


def _no_answer(chain: tuple[BaseException, ...], repository: Repository) -> Explanation:
    absent = _first(chain, LocalEntryNotFoundError) is not None
    not_cached = f"{repository} is not (wholly) in the cache {constants.HF_HUB_CACHE}"
    if _first(chain, OfflineModeIsEnabled) or (absent and constants.HF_HUB_OFFLINE):
        return f"{not_cached}, and HF_HUB_OFFLINE is set", (f"unset HF_HUB_OFFLINE, {LOCAL_COPY}",)
    from_network = any(type(error).__module__.partition(".")[0].startswith("http") for error in chain)
    if from_network or absent:
        # What the system said; the words of a library could repeat an address with a password in it.
        said = [error.strerror for error in chain if isinstance(error, OSError) and error.strerror and from_network]
        message = f"{endpoint()} cannot be reached{f' ({said[0]})' if said else ''}, and {not_cached}"
        return message, (f"check the network, HTTPS_PROXY and HF_ENDPOINT, {LOCAL_COPY}",)
    first_line = (str(chain[0]).strip().splitlines() or [""])[0]
    return f"{repository} cannot be fetched: {type(chain[0]).__name__}: {first_line}", ()
