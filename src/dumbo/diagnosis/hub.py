"""The hub: where its cache is, whether somebody is logged in, and whether it may be asked at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dumbo.diagnosis.findings import Finding
from dumbo.local_paths import entries
from dumbo.redact import redact_text
from dumbo.starting.models import hub_cache, hub_home


def hub_findings() -> Iterator[Finding]:
    """What the environment says; no network, and no token is shown."""
    kept = [folder.name for folder in entries(hub_cache()) if folder.name.startswith(("models--", "datasets--"))]
    models = sum(name.startswith("models--") for name in kept)
    set_by = "HF_HOME" if os.environ.get("HF_HOME") else "HF_HOME is not set"
    yield Finding("home", f"{hub_home()} ({set_by})")
    yield Finding("cache", f"{hub_cache()}: {models} models, {len(kept) - models} data sets")
    yield Finding("logged in", "yes" if is_logged_in() else "no (private and gated models need `hf auth login`)")
    yield Finding("offline mode", "yes: nothing is downloaded" if is_offline() else "no")
    if endpoint := os.environ.get("HF_ENDPOINT"):
        yield Finding("endpoint", redact_text(endpoint))


def is_logged_in() -> bool:
    """Whether there is a token, in a variable or in the file that `hf auth login` writes."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    file = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
    try:
        return bool(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False


def is_offline() -> bool:
    """Whether the hub's library is told to stay off the network."""
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in switches)
