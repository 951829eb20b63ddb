"""Which files of a hub dataset belong to a subset and split: as its card declares, or as its folders are named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dumbo.plugins.polars.data_files import SourceMistake, data_files_among, group_by_split, pick_split

_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Subset:
    """A subset that a dataset's card declares."""

    name: str
    is_default: bool
    folder: str
    """Folder of its files, '' for the root."""
    patterns: tuple[tuple[str, str], ...]
    """Split and glob of its files; none: the names of the files say."""


def declared_subsets(card: str) -> list[Subset]:
    """The subsets under `configs:` at the head of a dataset's README. A head that is not YAML declares none."""
    head = _FRONT_MATTER.match(card)
    try:
        declared = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []
    entries = declared.get("configs") if isinstance(declared, dict) else None
    return [_subset(entry) for entry in entries or [] if isinstance(entry, dict)] if isinstance(entries, list) else []


def choose_files(files: Sequence[str], card: str, name: str | None, split: str, format: str, owner: str) -> list[str]:
    """The files of `owner` to read for `split` of the subset `name`; none when it holds no data files at all.

    Raises `SourceMistake` listing the subsets or splits that there are.
    """
    candidates = data_files_among(files, format)
    subsets = declared_subsets(card)
    if not candidates:
        return []
    if not subsets:
        groups = group_by_split(_in_folder(candidates, name, owner) if name else candidates)
        return pick_split(groups, split, owner)
    subset = _pick_subset(subsets, name, owner)
    where = f"{owner}, subset '{subset.name}'," if len(subsets) > 1 else owner
    within = [path for path in candidates if path.startswith(subset.folder)]
    if not subset.patterns:
        return pick_split(group_by_split(within), split, where)
    groups = {}
    for declared, pattern in subset.patterns:
        matcher = glob_pattern(subset.folder + pattern)
        groups.setdefault(declared, []).extend(path for path in within if matcher.fullmatch(path))
    return list(dict.fromkeys(pick_split(groups, split, where)))


def choose_converted_files(files: Sequence[str], name: str | None, split: str, owner: str) -> list[str]:
    """The same in the Parquet copy that the hub makes of datasets: `SUBSET/SPLIT/0000.parquet`."""
    groups: dict[str, dict[str, list[str]]] = {}
    for path in data_files_among(files, "parquet"):
        subset, _, rest = path.partition("/")
        groups.setdefault(subset, {}).setdefault(rest.partition("/")[0], []).append(path)
    if not groups:
        return []
    subsets = [Subset(subset, subset == "default", "", ()) for subset in groups]
    return pick_split(groups[_pick_subset(subsets, name, owner).name], split, owner)


def _subset(entry: dict[str, Any]) -> Subset:
    folder = str(entry.get("data_dir") or "").strip("/").removeprefix("./")
    name = str(entry.get("config_name", "default"))
    patterns = tuple(_patterns(entry.get("data_files")))
    return Subset(name, name == "default" or entry.get("default") is True, f"{folder}/" if folder else "", patterns)


def _patterns(declared: Any) -> Iterable[tuple[str, str]]:
    """Split and glob pairs of `data_files`: a glob, a list of globs, `{split: globs}`, or a list of `{split, path}`."""
    if isinstance(declared, dict):
        pairs = list(declared.items())
    else:
        items = declared if isinstance(declared, list) else [declared] if declared else []
        pairs = [
            (item.get("split", "train"), item.get("path")) if isinstance(item, dict) else ("train", item)
            for item in items
        ]
    for split, globs in pairs:
        for glob in globs if isinstance(globs, list) else [globs]:
            yield str(split), str(glob).removeprefix("./")


def _pick_subset(subsets: Sequence[Subset], name: str | None, owner: str) -> Subset:
    listed = f"subsets: {', '.join(sorted(subset.name for subset in subsets))}"
    if name is not None:
        for subset in subsets:
            if subset.name == name:
                return subset
        raise SourceMistake("name", f"{owner} has no subset '{name}'", listed)
    defaults = [subset for subset in subsets if subset.is_default] or subsets
    if len(defaults) > 1:
        raise SourceMistake(
            "name", f"{owner} has several subsets and no default", listed, "choose one with `name: SUBSET`"
        )
    return defaults[0]


def _in_folder(paths: Sequence[str], name: str, owner: str) -> list[str]:
    """The paths of a subset that no card declares: those in the folder called `name`."""
    within = [path for path in paths if name in path.split("/")[:-1]]
    if not within:
        folders = sorted({folder for path in paths for folder in path.split("/")[:-1]})
        listed = f"its folders: {', '.join(folders)}" if folders else "it has no subsets: leave `name` out"
        raise SourceMistake("name", f"{owner} has no subset '{name}'", listed)
    return within


def glob_pattern(glob: str) -> re.Pattern[str]:
    """The glob as a pattern of paths: `*` and `?` stay within a folder, `**/` is any folders, `[...]` a character."""
    pattern = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob):
        special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        is_class = part.startswith("[") and part.endswith("]")
        pattern += special or (part.replace("[!", "[^") if is_class else re.escape(part))
    return re.compile(pattern)
