"""Leave secrets out of what is shown or saved: by the name of their key, by their shape, and those that are known."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

REDACTED = "<redacted>"

_SECRET_NAME = re.compile(
    r"(^|_)(token|api_?keys?|secrets?|passwords?|passwd|passphrase|pwd|webhooks?|webhook_(ur[il]s?|address|endpoint)"
    r"|access_?keys?|access_?key_id|authorization|o?auth|auth(orization)?_headers?|cookies?|pat|credentials?"
    r"|connection_string|jwt"
    r"|(private|signing|encryption|account|storage|master|license|secret|client|service|session|shared|deploy"
    r"|ssh|gpg|pgp|hf|hub|hugging_?face|wandb|openai|anthropic|mistral|cohere|gemini|groq|openrouter|google|azure|aws|gcp|s3|github"
    r"|gitlab)_keys?"
    r"|(api|access|auth|bearer|hf|hub|hugging_?face|github|gitlab|personal|refresh|secret|session)_?tokens?)$"
)
_NUMBERED = re.compile(r"_?\d+$")
"""As in `password2` and `api_key_1`."""
_PLAIN_TOKEN_NAME = re.compile(r"(pad|eos|bos|unk|sep|cls|mask|eot|image|video|audio|end|start|per)_token$")
_MARKER = re.compile(r"<.*>|\[.*\]|\{.*\}", re.DOTALL)
"""Values of keys such as `stop_token` that are tokens of a vocabulary."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET_VARIABLE = re.compile(
    r"TOKEN(?!IZER|S?_)|API_?KEY|_KEY$|SECRET|PASSW|PASSPHRASE|_PWD$|CREDENTIAL|WEBHOOK|CONNECTION_STRING|SAS_|_JWT$|_DSN$"
    r"|_PAT$|_COOKIES?$"
)
_PATH = re.compile(r"~?/[\w./ -]*|\.{1,2}/.*|[A-Za-z]:\\.*|\d{1,12}|true|false", re.IGNORECASE)
"""Values of such variables that are no secrets: `GOOGLE_APPLICATION_CREDENTIALS=/home/me/key.json`."""

_SHORTEST = 8
"""Characters of a known secret: what is shorter would be found in the middle of other words."""

# All repetitions within these have ends, as a text may be long and written to be slow to search.
# A password may hold `/` and `@`, but `host:8080/path` is none.
_URL_PASSWORD = re.compile(
    r"(\w{1,20}://)([^/\s:@'\"<>]{0,200}):"
    r"((?:[^/\s'\"<>]{0,500}|(?!\d{1,5}(?:[/?#,;.)\s'\"]|$))[^\s@'\"<>]{1,500}))@"
)
_URL_USER = re.compile(r"\b(https?|wss?|git\+https?|redis|amqps?)://[^/\s:@'\"<>]{8,500}@")
# As in addresses that were signed for a time: `?X-Amz-Signature=...&X-Amz-Credential=...`, `?sig=...`.
_URL_SECRET = re.compile(
    r"([?&#;][\w.-]{0,60}(?:token|key|secret|passw|pwd|signature|sig|credential|auth(?!or)|jwt)[\w.-]{0,60}=)([^&\s#'\"]+)",
    re.IGNORECASE,
)
_WEBHOOK = re.compile(
    r"(https?://(?:hooks\.slack\.com/(?:services|workflows|triggers)/|(?:\w+\.)?discord(?:app)?\.com/api/webhooks/"
    r"|api\.telegram\.org/bot|[\w.-]+\.webhook\.office\.com/))[^\s'\"<>]+"
)
_ASSIGNED = re.compile(
    r"(?P<name>(?:api[_-]?key|secret|password|passwd|passphrase|pwd|access[_-]?key|private[_-]?key|credential"
    r"|connection[_-]?string|webhook(?:[_-]?url)?|(?:access|api|app|auth|bearer|bot|client|hf|hub|id|personal|refresh"
    r"|sas|session|user)[_-]?token)s?['\"]?\s{0,9}[:=]\s{0,9}['\"]?)(?P<value>[^\s'\",;&}\]<$]{6,})",
    re.IGNORECASE,
)
# Messages also speak of the tokens of texts: a secret one has letters and digits, and is long.
_ASSIGNED_TOKEN = re.compile(
    r"(\btoken['\"]?\s{0,9}[:=]\s{0,9}['\"]?)(?=[^\s'\"]{0,99}\d)(?=[^\s'\"]{0,99}[A-Za-z])[\w./+=-]{16,}",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(Bearer|Basic)(\s{1,9})[A-Za-z0-9._~+/=-]{12,}")
_KNOWN_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}"
    r"|wandb_v\d_\w{20,}|eyJ[\w-]{10,500}\.eyJ[\w-]{10,4000}\.[\w-]+)"
)
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----).*?(-----END|\Z)", re.DOTALL)

_LEARNED: ContextVar[frozenset[str]] = ContextVar("secrets of the configuration", default=frozenset())


def redact(value: Any, name: str = "") -> Any:
    """`value` with secrets replaced; `name` is the key under which it stands. Mappings and lists are copied."""
    known = _pattern_of(_known_secrets())  # once for all of its texts
    return _replaced(value, name, lambda text: _without(known, _without_shapes(text)))


def redact_shapes(value: Any) -> Any:
    """As `redact`, by names and shapes alone: the same on every machine, whatever its environment."""
    return _replaced(value, "", _without_shapes)


def redact_text(text: str) -> str:
    """`text` without passwords and signatures in addresses, without tokens of well-known shapes, and without the
    secrets of the environment and of the configuration."""
    return _without_known(_without_shapes(text))


def redact_own_words(text: str) -> str:
    """As `redact_text`, for a text that we have made of cleaned pieces: what stands behind `password:` in it is what we
    say of that key."""
    return _without_known(_without_tokens(text))


def redactor() -> Callable[[str], str]:
    """`redact_text` with the secrets that are known here, for other threads too: a new one knows no configuration."""
    learned = _LEARNED.get()

    def clean(text: str) -> str:
        if not learned <= _LEARNED.get():
            _LEARNED.set(_LEARNED.get() | learned)
        return redact_text(text)

    return clean


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds a secret: `api_key`, `hubToken`, `X-Api-Key`, `password2`."""
    plain = _NUMBERED.sub("", _CAMEL.sub("_", name).lower().replace("-", "_").replace(" ", "_"))
    return _SECRET_NAME.search(plain) is not None and not _PLAIN_TOKEN_NAME.search(plain)


def learn_secrets(tree: Any) -> None:
    """Take the secrets that stand in a configuration for such from now on, wherever a library repeats them."""
    _LEARNED.set(_LEARNED.get() | frozenset(secret for secret in _secrets_in(tree, "") if len(secret) >= _SHORTEST))


def _replaced(value: Any, name: str, clean: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        inner = name if is_secret_name(name) else ""
        return {_clean_key(key, clean): _replaced(item, inner or str(key), clean) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, name, clean) for item in value]
    if _is_secret(value, name):
        return REDACTED
    return clean(value) if isinstance(value, str) else value


def _clean_key(key: Any, clean: Callable[[str], str]) -> Any:
    return clean(key) if isinstance(key, str) else key


def _is_secret(value: Any, name: str) -> bool:
    """Whether the plain value of the key `name` is one; the name of a variable in its place is not."""
    if value is None or isinstance(value, bool) or value == "" or not is_secret_name(name):
        return False
    if not isinstance(value, str):
        return True
    return "${env:" not in value and not (name.lower().endswith("token") and _MARKER.fullmatch(value))


def _without_known(text: str) -> str:
    return _without(_pattern_of(_known_secrets()), text)


def _without(known: re.Pattern[str] | None, text: str) -> str:
    return text if known is None else known.sub(REDACTED, text)


def _without_shapes(text: str) -> str:
    text = _without_tokens(text)
    if ":" in text or "=" in text:  # To look first for what a pattern needs costs a tenth of looking for the pattern.
        text = _ASSIGNED.sub(rf"\g<name>{REDACTED}", text)
        text = _ASSIGNED_TOKEN.sub(rf"\1{REDACTED}", text)
    return text


def _without_tokens(text: str) -> str:
    """Without what shows by itself that it is a secret, whatever stands before it."""
    if "://" in text:
        text = _WEBHOOK.sub(rf"\1{REDACTED}", _URL_SECRET.sub(rf"\1{REDACTED}", _URL_PASSWORD.sub(_user, text)))
        text = _URL_USER.sub(rf"\1://{REDACTED}@", text)
    if "Bearer" in text or "Basic" in text:
        text = _HEADER.sub(rf"\1\2{REDACTED}", text)
    text = _KNOWN_TOKEN.sub(REDACTED, text)
    return _PRIVATE_KEY.sub(rf"\1{REDACTED}\2", text) if "-----BEGIN" in text else text


def _user(match: re.Match[str]) -> str:
    """The address up to its host; where there is no real password, the user is the secret."""
    protocol, user, password = match.groups()
    if user and password in ("", "x-oauth-basic"):
        return f"{protocol}{REDACTED}@"
    return f"{protocol}{user}:{REDACTED}@"


def _secrets_in(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets_in(item, name if is_secret_name(name) else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item, name)
    elif _is_secret(value, name):
        yield str(value)
    elif isinstance(value, str) and "://" in value:
        yield from _secrets_in_address(value)


def _secrets_in_address(text: str) -> Iterator[str]:
    found = [match[3] for match in _URL_PASSWORD.finditer(text)] + [match[2] for match in _URL_SECRET.finditer(text)]
    for secret in found:
        yield from {secret, unquote(secret)}


def _known_secrets() -> tuple[str, ...]:
    # What the environment is made of, where Python has it so: to go through it by its front costs ten times as much,
    # and this is asked of every line that is written.
    plain = getattr(os.environ, "_data", None)
    variables = frozenset(plain.items()) if isinstance(plain, dict) else frozenset(os.environ.items())
    return (*_LEARNED.get(), *_secrets_of(variables))


@lru_cache(maxsize=8)
def _secrets_of(variables: frozenset[tuple[Any, Any]]) -> tuple[str, ...]:
    """The secrets of the environment that has these variables now."""
    named = (value for name, value in os.environ.items() if _is_secret_variable(name) and not _PATH.fullmatch(value))
    passwords = (secret for value in os.environ.values() if "@" in value for secret in _secrets_in_address(value))
    return tuple(sorted(value.strip() for value in (*named, *passwords)))


@lru_cache(maxsize=1024)
def _is_secret_variable(name: str) -> bool:
    return _SECRET_VARIABLE.search(name.upper()) is not None


@lru_cache(maxsize=16)
def _pattern_of(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of all of them in all their forms, the longest first; None where there are none."""
    known = {secret.strip() for secret in secrets}
    forms = {form for secret in known if len(secret) >= _SHORTEST for form in _forms(secret)}
    return re.compile("|".join(map(_anyhow_spaced, sorted(forms, key=len, reverse=True)))) if forms else None


def _forms(secret: str) -> set[str]:
    """A secret as it is, and as addresses, Python's `repr` and JSON write it within a longer text."""
    # Whether `repr` escapes a quote depends on the quotes around the secret; in no piece there is one.
    pieces = [repr(piece)[1:-1] for piece in secret.split("'")]
    in_json = {json.dumps(secret, ensure_ascii=plain)[1:-1] for plain in (True, False)}
    return {secret, quote(secret, safe=""), "'".join(pieces), "\\'".join(pieces), *in_json}


def _anyhow_spaced(form: str) -> str:
    """A pattern of a secret whose lines may be joined, wrapped, or indented as in the traceback of a group."""
    return r"[\s|]+".join(map(re.escape, form.split()))
