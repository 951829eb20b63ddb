"""`dumbo merge RUN [--output DIR] [--dtype TYPE] [--adapter NAME[=WEIGHT] ...] [--onto quantized] [--no-proof]`."""

from __future__ import annotations

import argparse
from pathlib import Path

_TYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", type=Path, help="a run's folder, a checkpoint of it, or any folder with an adapter")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the new folder; by default 'merged' in the run's")
    parser.add_argument("--dtype", choices=_TYPES, help="type of all numbers; by default each tensor keeps its own")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME[=WEIGHT]",
        help="only this adapter of the run ('default': the one without a name), or the one in a folder; several are "
        "added up, each times its weight (1)",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="merge into this folder or hub name instead of the adapter's own"
    )
    parser.add_argument(
        "--onto",
        choices=("full", "quantized"),
        default="full",
        help="the base model as it is on disk (full), or rounded as quantized training had it",
    )
    parser.add_argument("--no-proof", action="store_true", help="do not compare the logits of both afterwards")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


def run(options: argparse.Namespace) -> int:
    """Merge, and say what came out."""
    import os
    import sys

    # Tensors are merged side by side; NumPy's own threads, which wait for each other, would only be in their way. It
    # reads this when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from dumbo.console import Console
    from dumbo.memory import size
    from dumbo.merging.merge import Request, merge
    from dumbo.merging.numbers import NAMES

    if options.trust_remote_code:
        warning = "warning: --trust-remote-code: Python code that comes with the model may run, with all your rights"
        print(warning, file=sys.stderr, flush=True)
    console = Console()
    merged = merge(
        Request(
            run=options.run,
            output=options.output,
            adapters=tuple(options.adapter),
            dtype=None if options.dtype is None else NAMES[options.dtype],
            base=options.base,
            quantized=options.onto == "quantized",
            proves=not options.no_proof,
            trusted=options.trust_remote_code,
        ),
        console,
    )
    if merged.proof is not None:
        console.say(f"proof: {merged.proof}")
    console.say(f"{merged.folder}: {size(merged.bytes)} of weights, in {merged.seconds:.1f} s")
    return 0
