"""The rules for single Python files: each a function from a path to the violations that it finds, one text each."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.house.tree import PACKAGE, parse, short, source_files

FILE_LINES = 400
FUNCTION_LINES = 60
KERNEL_LINES = 100
"""For methods of autograd functions and for Triton kernels, whose steps share too much to be taken apart."""

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
FORBIDDEN_PARAMETERS = {"cfg", "args"}
MUTABLE_CALLS = {
    "list",
    "dict",
    "set",
    "bytearray",
    "sorted",
    "defaultdict",
    "deque",
    "local",
    "field",
    "import_module",
}
FROZEN_TYPES = {"Path", "PurePath", "PurePosixPath", "MappingProxyType", "JSONDecoder", "JSONEncoder", "Fraction"} | {
    "ContextVar",
    "TypeVar",
    "ParamSpec",
    "NewType",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def file_size(path: Path) -> list[str]:
    """Files of at most `FILE_LINES` lines."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    return [f"{short(path)}: {lines} lines; at most {FILE_LINES}"] if lines > FILE_LINES else []


def function_sizes(path: Path) -> list[str]:
    """Functions of at most `FUNCTION_LINES` lines, kernels and autograd functions of `KERNEL_LINES`."""
    return [
        f"{short(path)}:{function.lineno}: {function.name} has {lines} lines; at most {limit}"
        for function, limit in _functions_with_limits(parse(path))
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > limit
    ]


def vague_module_name(path: Path) -> list[str]:
    """No module whose name says only that there are things in it."""
    vague = VAGUE_NAMES & {word for part in (path.stem, path.parent.name) for word in part.split("_")}
    return [f"{short(path)}: '{min(vague)}' says nothing; name it after its job"] if vague else []


def module_docstring(path: Path) -> list[str]:
    """A docstring whose first line is a sentence."""
    docstring = ast.get_docstring(parse(path))
    if not docstring:
        return [f"{short(path)}: no docstring"]
    first = docstring.splitlines()[0]
    return (
        []
        if first.endswith((".", "?", "!"))
        else [f"{short(path)}: the docstring's first line is no sentence: {first}"]
    )


def dynamic_code(path: Path) -> list[str]:
    """No `exec`, no `eval`, no reading of another function's source."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"exec", "eval"}:
            found.append((node.lineno, node.func.id))
        names = [node.attr] if isinstance(node, ast.Attribute) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        found += [(node.lineno, name) for name in names if name.startswith("getsource") and name != "getsourcefile"]
    return [f"{short(path)}:{line}: {name} is not used here" for line, name in found]


def parameter_names(path: Path) -> list[str]:
    """`config` is the whole run and `options` a plugin's section: nobody has to guess what a `cfg` is.

    The rooms of `bridge/` override other libraries' methods, and keep the names that these are called with.
    """
    if PACKAGE / "bridge" in path.parents:
        return []
    return [
        f"{short(path)}:{argument.lineno}: parameter '{argument.arg}'; write 'config', 'options' or what it is"
        for node in ast.walk(parse(path))
        if isinstance(node, Function | ast.Lambda)
        for argument in _parameters(node.args)
        if argument.arg in FORBIDDEN_PARAMETERS
    ]


def module_state(path: Path) -> list[str]:
    """Nothing at module level that can change: no lists, dicts, sets or other changeable objects, no `global`."""
    violations = [
        f"{short(path)}:{node.lineno}: 'global {', '.join(node.names)}'; pass the value instead"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Global)
    ]
    for name, value in _module_assignments(parse(path).body):
        if name != "__all__" and _can_change(value, path):
            hint = "write a tuple, frozenset or MappingProxyType, or make it in a function"
            violations.append(f"{short(path)}:{value.lineno}: '{name}' can be changed by anybody; {hint}")
    return violations


def _functions_with_limits(tree: ast.Module) -> Iterator[tuple[Function, int]]:
    kernel_methods = {
        id(method)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Function") for base in node.bases)
        for method in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, Function):
            is_kernel = any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)
            yield node, KERNEL_LINES if is_kernel or id(node) in kernel_methods else FUNCTION_LINES


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    several = [arguments.vararg, arguments.kwarg]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *(a for a in several if a)]


def _module_assignments(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names and values that are assigned when the module is imported, also under `if`, `try` and `with`."""
    for statement in statements:
        if isinstance(statement, ast.Assign):
            yield from ((ast.unparse(target), statement.value) for target in statement.targets)
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            yield ast.unparse(statement.target), statement.value
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            yield from _module_assignments(statement.body)
            yield from _module_assignments(getattr(statement, "orelse", []))
            for handler in getattr(statement, "handlers", []):
                yield from _module_assignments(handler.body)


def _can_change(value: ast.expr, path: Path) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp | ast.GeneratorExp):
        return True
    if isinstance(value, ast.Tuple):
        return any(_can_change(item, path) for item in value.elts)
    if isinstance(value, ast.IfExp):
        return _can_change(value.body, path) or _can_change(value.orelse, path)
    if isinstance(value, ast.BoolOp):
        return any(_can_change(item, path) for item in value.values)
    if not isinstance(value, ast.Call):
        return False
    name = ast.unparse(value.func).rpartition(".")[2]
    if not name.lstrip("_")[:1].isupper():
        return name in MUTABLE_CALLS
    return name not in FROZEN_TYPES and not any(name in _frozen_classes(file) for file in [*source_files(), path])


@cache
def _frozen_classes(path: Path) -> frozenset[str]:
    """The classes of a file whose instances cannot change: frozen dataclasses, named tuples, enums."""
    return frozenset(
        node.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef)
        and (
            any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list)
            or any(ast.unparse(base) in {"NamedTuple", "Enum", "IntEnum", "StrEnum"} for base in node.bases)
        )
    )


def newcomer_files() -> list[Path]:
    """The three files that teach everything."""
    return [PACKAGE / "pipeline.py", PACKAGE / "plugin_loader.py", PACKAGE / "config" / "schema.py"]
