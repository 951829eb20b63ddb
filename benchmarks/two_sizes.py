"""What the measurements of memory share: a file and one of ten times its size, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def compare_sizes(
    words: Sequence[str] | None,
    description: str | None,
    result: Path,
    measure: Callable[[int], Mapping[str, Any]],
    child: Callable[[Path], int],
    **facts: Any,
) -> int:
    """Measure a tenth of the megabytes and all of them, print the ratio of their `peak_mib`, and write the JSON file.

    `child` is what a process does that was started with `--run FILE`; `facts` go into the file.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the larger file (1000)")
    parser.add_argument("--output", type=Path, default=result, help=f"where to write the result ({result})")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.run:
        return child(options.run)
    runs = [measure(megabytes) for megabytes in (max(options.megabytes // 10, 1), options.megabytes)]
    report = {
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        **facts,
        "runs": runs,
        "peak_memory_ratio": round(runs[1]["peak_mib"] / runs[0]["peak_mib"], 3),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"peak memory of the larger file: {report['peak_memory_ratio']} times that of the smaller")
    print(f"written to {options.output}")
    return 0
