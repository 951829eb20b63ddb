"""Leave secrets out of what is shown or saved: by the name of their key, in addresses, by the shape of known tokens."""

from __future__ import annotations

import re
from typing import Any

_SECRET_NAME = re.compile(
    r"(^|_)(token|api_key|apikey|secret|password|passwd|webhook|webhook_url|access_key|credentials?)$"
)
_PLAIN_TOKEN_NAME = re.compile(r"^(pad|eos|bos|unk|sep|cls|mask|eot|image|mask)_token$")
_URL_PASSWORD = re.compile(r"(\w+://[^/\s:@]*):[^/\s@]+@")
# As in addresses that were signed for a time: `?X-Amz-Signature=...&X-Amz-Credential=...`, `?sig=...`.
_URL_SECRET = re.compile(
    r"([?&][\w.-]*(?:token|key|secret|passw|signature|sig|credential)[\w.-]*=)[^&\s#'\"]+", re.IGNORECASE
)
_KNOWN_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b"
)

REDACTED = "<redacted>"


def redact(value: Any, name: str = "") -> Any:
    """`value` with secrets replaced; `name` is the key under which it stands. Mappings and lists are copied."""
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if not isinstance(value, str):
        return value
    lowered = name.lower()
    if value and "${env:" not in value and _SECRET_NAME.search(lowered) and not _PLAIN_TOKEN_NAME.match(lowered):
        return REDACTED
    return redact_text(value)


def redact_text(text: str) -> str:
    """`text` without passwords and signatures in addresses, and without tokens of well-known shapes."""
    text = _URL_SECRET.sub(rf"\1{REDACTED}", _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text))
    return _KNOWN_TOKEN.sub(REDACTED, text)
