"""Peak memory of `dumbo preprocess` for a file and for one of ten times its size: it is to be nearly the same.

What grows with the rows is 44 bytes for each: its place, length, digest and origin. Tokens go to files on their way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clock import peak_memory
from streaming import RUN, write_documents, write_tokenizer
from two_sizes import compare_sizes

RESULT = Path(__file__).parent / "results" / "prepare_memory.json"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file."""
    return compare_sizes(words, __doc__, RESULT, measure, prepare)


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
        command = [sys.executable, __file__, "--run", str(folder / "run.yaml")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, end="")
        found = {"megabytes": round(file.stat().st_size / 1e6), "documents": len(order)}
    return {**found, "seconds": round(time.perf_counter() - began), **json.loads(done.stdout.splitlines()[-1])}


def prepare(run: Path) -> int:
    """`dumbo preprocess`, and the most memory that it had."""
    from dumbo.cli.main import main as dumbo

    code = dumbo(["preprocess", str(run), f"trainer.data.cache={run.parent / 'cache'}"])
    print(json.dumps({"peak_mib": round(peak_memory())}))
    return code


if __name__ == "__main__":
    sys.exit(main())
