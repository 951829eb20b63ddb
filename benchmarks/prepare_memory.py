"""Peak memory of `dumbo preprocess` for a file and for one of ten times its size: it is to be nearly the same.

What grows with the rows is 44 bytes for each: its place, length, digest and origin. Tokens go to files on their way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streaming import RUN, write_documents, write_tokenizer

RESULT = Path(__file__).parent / "results" / "prepare_memory.json"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the larger file (1000)")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.prepare:
        return prepare(options.prepare)
    runs = [measure(megabytes) for megabytes in (max(options.megabytes // 10, 1), options.megabytes)]
    report = {"runs": runs, "peak_memory_ratio": round(runs[1]["peak_mib"] / runs[0]["peak_mib"], 3)}
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"peak memory of the larger file: {report['peak_memory_ratio']} times that of the smaller")
    print(f"written to {options.output}")
    return 0


def measure(megabytes: int) -> dict[str, Any]:
    """Prepare a file of this size in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        order, file = write_documents(folder, write_tokenizer(folder), megabytes)
        text = (
            RUN.format(folder=folder, file=file).replace("streaming: true, ", "").replace(", shuffle_buffer: 1000", "")
        )
        (folder / "run.yaml").write_text(text, encoding="utf-8")
        began = time.perf_counter()
        command = [sys.executable, __file__, "--prepare", str(folder / "run.yaml")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, end="")
        found = {"megabytes": round(file.stat().st_size / 1e6), "documents": len(order)}
    return {**found, "seconds": round(time.perf_counter() - began), **json.loads(done.stdout.splitlines()[-1])}


def prepare(run: Path) -> int:
    """`dumbo preprocess`, and the most memory that it had."""
    from dumbo.cli.main import main as dumbo

    code = dumbo(["preprocess", str(run), f"trainer.data.cache={run.parent / 'cache'}"])
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(json.dumps({"peak_mib": round(int(status.partition("VmHWM:")[2].split()[0]) / 1024)}))
    return code


if __name__ == "__main__":
    sys.exit(main())
