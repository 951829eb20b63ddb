"""The files of the repository, as the rules of the house see them."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PACKAGE = SRC / "dumbo"
PLUGINS = PACKAGE / "plugins"


def repository_files() -> list[Path]:
    """What git tracks or would track; without git (a source archive) everything outside of hidden and built folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        built = {"build", "dist", "runs", "__pycache__"}
        files = [path for path in ROOT.rglob("*") if not built & set(path.parts) and "/." not in str(path)]
    return sorted(path for path in files if path.is_file())


def source_files() -> list[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def plugin_folders() -> list[Path]:
    """The folders of the shipped plugins."""
    return sorted(file.parent for file in PLUGINS.glob("*/plugin.py"))


def short(path: Path) -> str:
    """A path as test ids and messages show it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def module_name(path: Path) -> str:
    """`src/dumbo/config/schema.py` -> `dumbo.config.schema`."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
