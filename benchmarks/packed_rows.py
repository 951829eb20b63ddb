"""What the benchmarks of packed rows share: their options, the lengths of documents, and the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Case = dict[str, Any]


def measure_packed(
    words: Sequence[str] | None,
    description: str,
    output: Path,
    tokens: int,
    medians: Sequence[int],
    measure: Callable[[tuple[int, ...], int, int], Sequence[Case]],
    table: Callable[[Sequence[Case]], str],
) -> int:
    """Call `measure` with the lengths of documents, their median and the repetitions, for each median; print the cases,
    and write them to the JSON file, which gives the benchmark its name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=tokens, help=f"tokens of a packed row ({tokens})")
    parser.add_argument("--medians", type=int, nargs="+", default=medians, help="lengths of documents")
    parser.add_argument("--spread", type=float, default=0.8, help="standard deviation of the lengths' logarithm (0.8)")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each, by turns (5)")
    parser.add_argument("--output", type=Path, default=output, help=f"where to write the result ({output})")
    options = parser.parse_args(words)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cases = [
        case
        for median in options.medians
        for case in measure(draw_lengths(options.tokens, median, options.spread), median, options.repeat)
    ]
    report = {
        "benchmark": output.stem,
        "tokens": options.tokens,
        "cases": cases,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    print(table(cases))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output}")
    return 0


def draw_lengths(tokens: int, median: int, spread: float) -> tuple[int, ...]:
    """Lengths of documents that fill a row; the last is cut."""
    draw, lengths = random.Random(median), list[int]()
    while sum(lengths) < tokens:
        length = max(2, round(draw.lognormvariate(0, spread) * median))
        lengths.append(min(length, tokens - sum(lengths)))
    return tuple(lengths)
