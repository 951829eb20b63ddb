"""Every Python file of the package is small, documented, and free of hidden state."""

import pytest

from tests.house import rules
from tests.house.tree import ROOT, short, source_files

RULES = (
    rules.file_size,
    rules.function_sizes,
    rules.vague_module_name,
    rules.module_docstring,
    rules.dynamic_code,
    rules.parameter_names,
    rules.module_state,
)


@pytest.mark.parametrize("path", source_files(), ids=short)
def test_a_file_keeps_the_rules(path):
    violations = [violation for rule in RULES for violation in rule(path)]
    assert not violations, "\n" + "\n".join(violations)


def test_three_files_teach_everything():
    lines = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in rules.newcomer_files()}
    assert sum(lines.values()) <= 500, f"what every newcomer reads has grown too long: {lines}"


LONG_FUNCTION = "def long():\n" + "    x = 1\n" * 60
LONG_KERNEL = "class Loss(torch.autograd.Function):\n    def forward(ctx):\n" + "        x = 1\n" * 98


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (rules.file_size, "x = 1\n" * 401),
        (rules.function_sizes, LONG_FUNCTION),
        (rules.function_sizes, LONG_KERNEL + "        x = 1\n" * 2),
        (rules.module_docstring, "x = 1\n"),
        (rules.module_docstring, '"""things"""\n'),
        (rules.dynamic_code, "exec('x = 1')\n"),
        (rules.dynamic_code, "def f(x):\n    return eval(x)\n"),
        (rules.dynamic_code, "import inspect\ninspect.getsource(print)\n"),
        (rules.dynamic_code, "from inspect import getsourcelines\n"),
        (rules.parameter_names, "def f(cfg): ...\n"),
        (rules.parameter_names, "def f(*args): ...\n"),
        (rules.parameter_names, "f = lambda x, *, args: x\n"),
        (rules.module_state, "CACHE = {}\n"),
        (rules.module_state, "CACHE: dict[str, int] = {}\n"),
        (rules.module_state, "SEEN = set()\n"),
        (rules.module_state, "NAMES = [name for name in 'abc']\n"),
        (rules.module_state, "TABLE = (1, {'a': 2})\n"),
        (rules.module_state, "if True:\n    CONSOLE = Console()\n"),
        (rules.module_state, "try:\n    import x\nexcept ImportError:\n    FALLBACK = []\n"),
        (rules.module_state, "class Open:\n    pass\nOPEN = Open()\n"),
        (rules.module_state, "def f():\n    global x\n    x = 1\n"),
    ],
)
def test_a_rule_catches_a_planted_violation(tmp_path, rule, text):
    planted = tmp_path / "planted.py"
    planted.write_text(text)
    assert len(rule(planted)) == 1


@pytest.mark.parametrize("name", ["utils.py", "data_utils.py", "common/loading.py"])
def test_a_vague_name_is_caught(name):
    assert rules.vague_module_name(ROOT / "src" / "dumbo" / name)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (rules.function_sizes, LONG_KERNEL),
        (rules.function_sizes, "@triton.jit\n" + LONG_FUNCTION),
        (rules.dynamic_code, "model.eval()\nspec.loader.exec_module(module)\n"),
        (rules.module_state, "__all__ = ['a']\nNAMES = ('a',)\nSET = frozenset({'a'})\nTABLE = MappingProxyType({})\n"),
        (rules.module_state, "from enum import Enum\nclass Kind(Enum):\n    A = 1\nKIND = Kind(1)\n"),
        (rules.module_state, "import re\nWORD = re.compile('a')\nText = Annotated[str, Field(min_length=1)]\n"),
        (rules.module_state, "def f():\n    seen = {}\n    return seen\n"),
    ],
)
def test_a_rule_lets_good_code_pass(tmp_path, rule, text):
    good = tmp_path / "good.py"
    good.write_text(text)
    assert rule(good) == []
