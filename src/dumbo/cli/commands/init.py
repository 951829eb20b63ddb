"""`dumbo init [FILE]`: a first configuration, from a few questions or from flags."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("file", nargs="?", type=Path, default=Path("run.yaml"), help="what to write (run.yaml)")
    parser.add_argument("--yes", action="store_true", help="ask nothing: what no flag says is taken by default")
    parser.add_argument("--model", metavar="NAME", help="a folder, a hub name, or 'random' for a new small model")
    parser.add_argument("--data", metavar="PATH", help="a file of rows (jsonl, json, csv, parquet), or a hub data set")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--lora", dest="lora", action="store_const", const=True, help="train LoRA")
    weights.add_argument("--full", dest="lora", action="store_const", const=False, help="train all weights")
    parser.add_argument("--held-out", metavar="SHARE", help="rows to evaluate on: 10%%, 0.1, 200, or 0 for none")
    parser.add_argument("--tracker", metavar="NAME", help="where the curves go beside the run's folder, or 'none'")


def run(options: argparse.Namespace) -> int:
    """Ask, check what comes of it, and write it."""
    import sys

    from dumbo.starting.questions import Flags, gather
    from dumbo.starting.rows import require_reader
    from dumbo.starting.starter import starter_yaml
    from dumbo.starting.writing import require_new_file, require_valid, write_new

    file: Path = options.file
    require_new_file(file)
    require_reader()
    asks = sys.stdin.isatty() and not options.yes
    if asks:
        import readline  # noqa: F401 (gives `input` the arrow keys)

        print(f"A few questions, and {file} is written. Enter takes what is in brackets; Ctrl-C writes nothing.")
    flags = Flags(options.model, options.data, options.lora, options.held_out, options.tracker)
    answers = gather(flags, asks)
    text = starter_yaml(answers, file)
    require_valid(text)
    write_new(file, text)
    model = answers.model.name if answers.model else "random weights"
    print(f"\n{file} is written: {model}, {answers.data.path}, {'LoRA' if answers.lora else 'all weights'}")
    print(f"  dumbo check {file} --rows    reads some rows; nothing is trained")
    print(f"  dumbo {file}                 trains")
    return 0
