"""`dumbo generate RUN [PROMPT ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from dumbo.cli.generation import add_generation_arguments, run_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    run_argument(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to ask; without any, lines of the input")
    add_generation_arguments(parser, temperature=0.0)


def run(options: argparse.Namespace) -> int:
    """Answer every prompt, each on its own; answers go to standard output."""
    from dumbo.cli.generation import check_seed, open_for, sampling_of, stream_answer, to_stdout
    from dumbo.errors import DumboError

    sampling_of(options)
    opened = open_for(options)
    system = [{"role": "system", "content": options.system}] if options.system else []
    count = 0
    prompts = options.prompts or _lines()
    if options.seed is not None and options.temperature == 0:
        prompts = list(prompts)  # all of them are to be known: one may draw
        check_seed(opened, options, prompts)
    for prompt in prompts:
        stream_answer(opened, [*system, {"role": "user", "content": prompt}], options, to_stdout)
        to_stdout("\n")
        count += 1
    if not count:
        raise DumboError('there is nothing to ask\n    write dumbo generate RUN "a prompt", or give lines on the input')
    return 0


def _lines() -> Iterator[str]:
    """The lines of standard input that are not empty."""
    if sys.stdin.isatty():
        print("one prompt per line; Ctrl-D ends", file=sys.stderr)
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")
