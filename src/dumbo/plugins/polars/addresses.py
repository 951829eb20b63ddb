"""Addresses of files elsewhere, such as `s3://bucket/rows.jsonl`: which kinds there are, and how they are shown."""

from __future__ import annotations

import difflib
import glob
import importlib.util
from pathlib import PurePosixPath
from types import MappingProxyType
from urllib.parse import urlsplit, urlunsplit

from dumbo.plugins.polars.data_files import SourceMistake

# What to install for protocols whose filesystem is within fsspec, and needs another package (module and distribution).
_NEEDS = MappingProxyType(
    {
        "http": ("aiohttp", "aiohttp"),
        "https": ("aiohttp", "aiohttp"),
        "sftp": ("paramiko", "paramiko"),
        "ssh": ("paramiko", "paramiko"),
        "smb": ("smbclient", "smbprotocol"),
        "hdfs": ("pyarrow", "pyarrow"),
        "github": ("requests", "requests"),
        "webhdfs": ("requests", "requests"),
    }
)
_USUAL = ("s3://", "gs://", "az://", "https://", "sftp://", "hf://datasets/")
_WEB = ("http", "https")


def is_address(path: str) -> bool:
    """Whether `path` is on another filesystem; `file://` and `hf://` are those of this machine and of the hub."""
    return "://" in path and not path.startswith(("file://", "local://", "hf://"))


def protocol_of(address: str) -> str:
    """What stands before `://`."""
    return address.partition("://")[0]


def shown_address(address: str) -> str:
    """`address` without what may be secret: user and password, and on the web what is behind a question mark."""
    protocol, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    if protocol in _WEB:
        parts = urlsplit(address)
        return urlunsplit((protocol, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def name_in(address: str) -> str:
    """The part of `address` whose suffix tells the format."""
    return PurePosixPath(shown_address(address).partition("://")[2]).name


def is_pattern(address: str) -> bool:
    """Whether `address` stands for several files; on the web `?` and brackets are ordinary signs."""
    shown = shown_address(address)
    return "*" in shown if protocol_of(address) in _WEB else glob.has_magic(shown)


def check_address(address: str) -> None:
    """Raise `SourceMistake` for an address that this machine cannot read. No network."""
    from fsspec.registry import known_implementations, registry

    shown = shown_address(address)
    if "::" in address:
        raise SourceMistake("path", f"'{shown}' is an address within an address, which is not read")
    protocol = protocol_of(address)
    if protocol not in known_implementations and protocol not in registry:
        near = difflib.get_close_matches(protocol, [*known_implementations], n=1)
        hints = [f"did you mean '{near[0]}://'?"] if near else []
        raise SourceMistake(
            "path", f"'{shown}' begins with no known protocol", *hints, f"usual ones: {', '.join(_USUAL)}"
        )
    module, package = _package_of(protocol, str(known_implementations.get(protocol, {}).get("class", "fsspec")))
    if importlib.util.find_spec(module) is None:
        raise missing_package(protocol, shown, package)


def missing_package(protocol: str, shown: str, package: str) -> SourceMistake:
    """The error for an address whose filesystem comes with a package that is not there."""
    return SourceMistake(
        "path", f"'{shown}': addresses with {protocol}:// need the package {package}", f"pip install {package}"
    )


def _package_of(protocol: str, implementation: str) -> tuple[str, str]:
    """The module that `protocol` needs, and the name under which it is installed."""
    if protocol in _NEEDS:
        return _NEEDS[protocol]
    module = implementation.partition(":")[0].partition(".")[0]
    return module, module.replace("_", "-")
