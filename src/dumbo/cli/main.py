"""`dumbo VERB ...`: parses the command line, runs the verb, and turns errors into one message and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType

from dumbo import __version__
from dumbo.cli.flags import Parser, refuse_strange_flags
from dumbo.stdio import complain, lead_nowhere, let_go_of_errors, open_closed_streams

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "init": "write a first configuration, from a few questions",
        "train": "train what a configuration file describes (the verb may be left out)",
        "check": "check a configuration without training; --rows makes tokens of some data too",
        "preprocess": "make tokens and labels of all rows; --output writes them for another machine",
        "cache": "list or remove the tokens and labels that are kept",
        "inspect": "show rows as they are trained, and what is strange about them",
        "generate": "let the model of a run write after a prompt",
        "chat": "talk with the model of a run",
        "merge": "put an adapter into the weights of its base model, and prove it",
        "runs": "list runs, how they stand and how far they came",
        "report": "write the report of a run again, or compare several runs",
        "schema": "print the JSON Schema of configurations, for editors",
        "explain": "explain a key of the configuration",
        "plugins": "list the installed plugins, and the verbs that they bring",
        "docs": "read the documentation",
        "doctor": "say what is installed, what is missing, and how to mend it",
    }
)
"""Verb -> its line in the help. The module of a verb is imported when it is used."""

_WORKING = ("train", "preprocess", "merge")
"""Verbs that do more than print: they are not done when nobody reads on."""

_PATIENCE = 60.0
"""Seconds that the other ranks give the first one to report an error."""

_EPILOG = """\
examples:
  dumbo init
  dumbo run.yaml
  dumbo run.yaml trainer.arguments.learning_rate=3e-4
  dumbo check run.yaml --rows
  dumbo inspect run.yaml
  dumbo explain trainer.arguments.batch_size
  torchrun --nproc-per-node 8 -m dumbo run.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 rows are strange (`inspect`) or something of ours is
    wrong, 2 the user has something to mend, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    works = False
    open_closed_streams()
    try:
        if not words or words[0].startswith("-"):
            return _top_level(words)
        from dumbo.log_redaction import redacting_logs

        act, works = _verb(words)
        with redacting_logs():
            code = act()
            sys.stdout.flush()  # Python's own, at its end, would give another exit code.
        return code
    except BrokenPipeError as error:
        if works:
            return _report_error(error, debug)
        # Whoever read the output has enough; without this Python would complain once more at exit.
        lead_nowhere(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return _report("stopped", 130)
    except Exception as error:
        return _report_error(error, debug)
    finally:
        let_go_of_errors()


def _verb(words: Sequence[str]) -> tuple[Callable[[], int], bool]:
    """What runs the verb, and whether it works, and does not only print; that of training may be left out."""
    if words[0] not in VERBS and not _looks_like_file(words[0]):
        return lambda: _run_plugin_verb(words[0], words[1:]), False
    verb, rest = (words[0], words[1:]) if words[0] in VERBS else ("train", words)
    module = importlib.import_module(f"dumbo.cli.commands.{verb}")
    parser = verb_parser(verb, module)
    refuse_strange_flags(rest, parser.flags(), verb)
    options = parser.parse_intermixed_args(rest)
    return lambda: int(module.run(options)), verb in _WORKING and not getattr(options, "plan", False)


def _top_level(words: Sequence[str]) -> int:
    """`dumbo`, `dumbo --help`, `dumbo --version`."""
    verbs = "\n".join(f"  {verb:<12}{summary}" for verb, summary in VERBS.items())
    parser = Parser(
        prog="dumbo",
        usage="dumbo VERB ...  |  dumbo CONFIG.yaml [KEY=VALUE ...]",
        description=f"Fine-tune language models from one YAML file.\n\nverbs:\n{verbs}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dumbo {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks; with every verb")
    refuse_strange_flags(words, parser.flags(), "train")
    parser.parse_args(words)
    parser.print_help()
    return 2


def verb_parser(verb: str, module: ModuleType) -> Parser:
    """The parser of one verb; the other verbs stay unimported."""
    parser = Parser(prog=f"dumbo {verb}", description=f"{VERBS[verb]}.")
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _looks_like_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) or os.sep in word or os.path.exists(word)  # noqa: PTH110 (pathlib is slow)


def _run_plugin_verb(verb: str, words: Sequence[str]) -> int:
    """A verb that is not the core's: perhaps a plugin brings it."""
    from dumbo.cli.plugin_verbs import run_plugin_verb

    return run_plugin_verb(verb, words, tuple(VERBS))


def _report_error(error: Exception, debug: bool) -> int:
    """Print the error, or all of its traceback, without secrets; Python itself would print them."""
    from dumbo.errors import ConfigError, DataError, DumboError, Interrupted
    from dumbo.redact import redact_text

    if debug or not isinstance(error, DumboError):
        return _report_traceback(error)
    rank = os.environ.get("RANK", "0")
    if rank != "0" and isinstance(error, ConfigError | DataError | Interrupted):
        # Every rank finds these, and the first one reports them. A launcher kills all processes as soon as one has
        # failed, perhaps the first before it has spoken: the others wait to be killed. After Ctrl-C it waits for all.
        if not isinstance(error, Interrupted):
            time.sleep(_PATIENCE)
        return error.exit_code
    if isinstance(error, ConfigError):
        message = "\n".join(str(problem.cleaned(redact_text)) for problem in error.problems)
    else:
        message = redact_text(str(error))
    return _report(message, error.exit_code, f"rank {rank}: " if rank != "0" else "")


def _report_traceback(error: Exception) -> int:
    import traceback

    from dumbo.redact import redact_text

    lines = "".join(traceback.format_exception(error)).rstrip("\n")
    return _report(redact_text(lines), getattr(error, "exit_code", 1))


def _report(message: str, exit_code: int, prefix: str = "") -> int:
    from dumbo.visible import made_visible

    complain(f"{prefix}{made_visible(message)}")
    return exit_code
