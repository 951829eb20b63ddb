"""Who imports what: read from the source, and measured in a process of its own."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.house.tree import PACKAGE, PLUGINS, parse, short

OTHERS_OBJECT_MODELS = {"deepspeed", "peft", "transformers", "trl"}
"""Libraries that only `dumbo.bridge` and plugins talk to, so that a new version of theirs changes few files."""

LABELS = "dumbo.data.records"
"""Where the number stands that marks a token as not trained on: all that a loss knows of the data."""

LOSSES_KNOW = {"__future__", "collections", "dataclasses", "functools", "itertools", "math", "torch", "typing"}


@dataclass(frozen=True)
class Import:
    """A module that a file imports when it runs: at the top, or `lazily` inside a function."""

    module: str
    line: int
    lazily: bool

    @property
    def package(self) -> str:
        """Its first part."""
        return self.module.partition(".")[0]


def imports(path: Path) -> list[Import]:
    """What the file imports, without what stands under `if TYPE_CHECKING`."""
    return list(_imports(parse(path), False))


def _imports(node: ast.AST, lazily: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, lazily) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield Import("." * node.level + (node.module or ""), node.lineno, lazily)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from _imports(child, lazily)
    else:
        inside = lazily or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, inside)


def others_object_models(path: Path) -> list[str]:
    """Outside of `bridge/` and the plugins nothing imports Transformers and its kin, not even lazily."""
    if PACKAGE / "bridge" in path.parents or PLUGINS in path.parents:
        return []
    return [
        f"{short(path)}:{found.line}: imports {found.module}; only dumbo.bridge and plugins do"
        for found in imports(path)
        if found.package in OTHERS_OBJECT_MODELS
    ]


def pure_losses(path: Path) -> list[str]:
    """Losses are functions of tensors: they import torch and each other, and know no model, configuration or logger."""
    return [
        f"{short(path)}:{found.line}: a loss imports {found.module}"
        for found in imports(path)
        if not (found.package in LOSSES_KNOW or found.module == LABELS or found.module.startswith("dumbo.losses"))
    ]


def relative_imports(path: Path) -> list[str]:
    """Imports say where from, so that a search finds them."""
    return [
        f"{short(path)}:{found.line}: relative import; write 'from dumbo...'"
        for found in imports(path)
        if found.module.startswith(".")
    ]


def loaded_by(statement: str, *suspects: str, cwd: Path | None = None) -> list[str]:
    """Which of the packages `suspects` are loaded after `statement` ran in a fresh process."""
    program = f"{statement}\nimport sys\nprint(*[name for name in {suspects!r} if name in sys.modules])"
    return _last_line(program, cwd).split()


def first_to_load(modules: Sequence[str], *suspects: str) -> dict[str, str]:
    """Which of the packages `suspects` are loaded when `modules` are imported one after the other, and by which."""
    program = f"""
import importlib, json, sys
found = {{}}
for module in {list(modules)!r}:
    importlib.import_module(module)
    for name in {suspects!r}:
        if name in sys.modules:
            found.setdefault(name, module)
print(json.dumps(found))
"""
    found: dict[str, str] = json.loads(_last_line(program, None))
    return found


def _last_line(program: str, cwd: Path | None) -> str:
    """What a fresh process prints last."""
    result = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise AssertionError(f"{program}\n{result.stderr}")
    return result.stdout.splitlines()[-1]
