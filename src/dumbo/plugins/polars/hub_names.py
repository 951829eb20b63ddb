"""How datasets on the hub and files in them are written: `owner/name`, or `hf://datasets/owner/name@revision/file`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from dumbo.plugins.polars.data_files import SourceMistake

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

PROTOCOL = "hf://"
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?(/+(?P<within>.*))?"
)


@dataclass(frozen=True)
class HubPath:
    """A dataset on the hub, or files in it."""

    written: str
    repository: str
    revision: str | None
    within: str
    """File, folder or pattern in it; empty: the files of the dataset, as its card says."""


def parse_hub_path(written: str, options: PolarsOptions) -> HubPath:
    """What `written` stands for. Raises `SourceMistake`."""
    if not written.startswith(PROTOCOL):
        return HubPath(written, written, options.revision, "")
    found = _ADDRESS.fullmatch(written)
    if found is None:
        hint = "write hf://datasets/OWNER/NAME/FILE, or OWNER/NAME for the whole dataset"
        raise SourceMistake("path", f"'{written}' names no dataset on the hub", hint)
    revision, within = found["revision"], (found["within"] or "").strip("/")
    if revision is not None and options.revision is not None:
        raise SourceMistake("revision", f"'{written}' names a revision already", "write it in one of the two places")
    if within and options.name is not None:
        raise SourceMistake("name", f"only whole datasets have a name; '{written}' is a part of one")
    return HubPath(written, found["repository"], unquote(revision) if revision else options.revision, within)
