"""`make faults`: stops every kind of training in every way, lets it go on, and writes `docs/reliability.md`."""

import contextlib
import io
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import assert_same_run, run_forked, write_stoppable
from tests.faults.test_kill import killing
from tests.faults.test_resume import AVERAGE, LONG, SCENARIOS

OUTPUT = Path(__file__).parents[2] / "docs" / "reliability.md"
SAVES = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 2}
TRAININGS = {
    "all weights, padded rows": ({}, ()),
    "dropout and checkpointed activations": ({"trainer.arguments.gradient_checkpointing": True}, ()),
    **{
        name: (SCENARIOS | LONG)[name][:2]
        for name in (
            "an adapter with dropout",
            "packed",
            "joined rows",
            "a stream",
            "early stopping",
            "the best weights",
            "a plugin with a state",
            "weights in bfloat16",
            "another optimizer",
        )
    },
}


def signal_at(name: str, step: int) -> Callable[[], None]:
    """Send this process a signal when that step begins."""

    def prepare() -> None:
        os.environ["DUMBO_STOP"] = f"{name}@{step}"

    return prepare


def faults() -> dict[str, Callable[[], None]]:
    """What is done to a run in a process of its own."""
    from dumbo.bridge import checkpoints, resuming
    from dumbo.checkpoint import folder
    from dumbo.checkpoint.manifest import Manifest

    return {
        "Ctrl-C": signal_at("SIGINT", 5),
        "SIGTERM": signal_at("SIGTERM", 4),
        "kill -9 in a step": signal_at("SIGKILL", 6),
        "kill -9 while tensors are written": killing(checkpoints, "write_tree", 7),
        "kill -9 before the manifest": killing(Manifest, "write", 2),
        "kill -9 before the rename": killing(folder, "put_in_place", 2),
        "kill -9 after the rename": killing(folder, "put_in_place", 2, after=True),
        "kill -9 while the model is saved": killing(resuming, "put_in_place", 1),
    }


def verdict(folder: Path, file: Path, whole: Path, fault: Callable[[], None]) -> str:
    """How a run ends that the fault has stopped, and that goes on."""
    with (folder / "output.txt").open("w") as stream:
        code = run_forked(
            ["train", str(file)], lambda: (os.dup2(stream.fileno(), 1), os.dup2(stream.fileno(), 2), fault())
        )
    if code == 0:
        return "not stopped"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        resumed = main(["train", str(file), "--resume"])
    if resumed:
        return f"FAILED: {said.getvalue().splitlines()[0]}"
    try:
        assert_same_run(file.parent / "out", whole)
    except AssertionError:
        return "OTHER"
    return "same"


def run() -> int:
    """Fill the table, print it and write the page."""
    lines, bad = [], 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["DUMBO_CACHE"] = str(root / "cache")
        model = builders.save_tiny_model(root / "model", attention_dropout=0.1)
        rows = builders.write_rows(root / "rows.jsonl", builders.alpaca_rows(26))
        columns = faults()
        for number, (training, (changes, plugins)) in enumerate(TRAININGS.items()):
            found = []
            for place, fault in enumerate([None, *columns.values()]):
                folder = root / f"{number}-{place}"
                file = write_stoppable(folder, model, rows, {**changes, **SAVES}, plugins)
                (folder / "average.py").write_text(AVERAGE)
                if fault is None:
                    whole = folder / "out"
                    with contextlib.redirect_stdout(io.StringIO()):
                        assert main(["train", str(file)]) == 0
                    continue
                found.append(verdict(folder, file, whole, fault))
                print(f"{training}: {list(columns)[place - 1]}: {found[-1]}", flush=True)
            bad += sum(word != "same" for word in found)
            lines.append(f"| {training} | {' | '.join(found)} |")
    OUTPUT.write_text(page(list(columns), lines), encoding="utf-8")
    print(f"written to {OUTPUT}")
    return 1 if bad else 0


def page(columns: list[str], lines: list[str]) -> str:
    """The page around the table."""
    table = "\n".join([f"| Training | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}", *lines])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"""# Reliability

`make faults` stops every kind of training in every way, lets it go on with `--resume`, and compares it with a
run that nobody stopped. `same`: all weights and all logged numbers (but for `perf/*`) are equal, bit by bit.
Runs of 12 to 18 steps with a checkpoint every two, on a CPU with Python {platform.python_version()}, {versions}.

{table}

`make test-full` does more of the kind: it kills a run thirty times at random moments, stops one after every
step, damages every file of a checkpoint in five ways (more than fifty cases, each of which is seen), fills the
disk, lets steps hang, readers and plugins raise, and memory run out. Those tests are in `tests/faults`.
"""


if __name__ == "__main__":
    sys.exit(run())
