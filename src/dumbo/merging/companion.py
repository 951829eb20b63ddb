"""A process beside the merge, which has Transformers: it is asked for the names of weights, and for the proof."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from dumbo.errors import RunError

MODULE = "dumbo.bridge.merge_companion"


class Companion:
    """The process. It starts to import when this is made, and answers one question at a time."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        # Threads that look for work keep the writer from its own. Weights of a layer that was left go back to the
        # system at once: by itself the C library keeps what is smaller than 32 MiB.
        quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
        environment = {**quiet, "MALLOC_MMAP_THRESHOLD_": "1048576", **os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )

    def ask(self, question: str, **details: Any) -> dict[str, Any]:
        """The answer, as plain values.

        Raises:
            RunError: with what the process says, or when it has died.
        """
        self.send(question, **details)
        return self.answer()

    def send(self, question: str, **details: Any) -> None:
        """Ask, and wait for the answer later."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"question": question, **details}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to what was sent."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: Mapping[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(str(answer["error"]))
        return dict(answer)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> Companion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _died(self) -> RunError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        why = "it was killed, perhaps for want of memory" if code < 0 else last
        return RunError(f"the process with Transformers ended ({code}): {why}\n    --no-proof merges without it")
