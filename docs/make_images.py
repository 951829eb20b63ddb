"""Makes the pictures of the documentation: trains the quickstart in a terminal, and looks at it and at its report.

Needs tmux and Chromium. `make images` runs it; the pictures go to `docs/images`.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import Browser, browser, find_chromium  # noqa: E402 (the path is set above)

IMAGES = ROOT / "docs" / "images"
COLUMNS, ROWS = 104, 38
SESSION = "dumbo-images"
PAGE = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0; background: {background}; }}
pre {{ margin: 0; padding: 18px 22px; font: 15px/1.35 "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
pre {{ color: {foreground}; display: inline-block; }}</style><pre>{code}</pre>"""


def main() -> int:
    """Make all pictures."""
    program = find_chromium()
    if program is None or shutil.which("tmux") is None:
        print("the pictures need chromium and tmux", file=sys.stderr)
        return 2
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "quickstart"
        screens = train_in_terminal(run)
        with browser(program, folder) as page:
            for title, screen in screens.items():
                picture_of_screen(page, screen, folder / f"{title}.html", IMAGES / f"{title}.png")
            page.open(run / "report.html", width=1200, height=1500)
            page.picture(IMAGES / "report.png", whole=False)
            page.open(run / "report.html", width=390, height=844, dark=True)
            page.picture(IMAGES / "report_phone.png", whole=False)
    print("\n".join(str(path.relative_to(ROOT)) for path in sorted(IMAGES.glob("*.png"))))
    return 0


def train_in_terminal(run: Path) -> dict[str, str]:
    """Train the quickstart in a terminal of its own; return what stood there halfway and at the end."""
    dumbo = Path(sys.executable).with_name("dumbo")
    command = f"clear; OMP_NUM_THREADS=1 {dumbo} examples/quickstart.yaml trainer.output_dir={run}; sleep 600"
    subprocess.run(
        ["tmux", "new-session", "-d", "-s", SESSION, "-x", str(COLUMNS), "-y", str(ROWS), "-c", str(ROOT), command],
        check=True,
    )
    try:
        wait_for(lambda: reached(run) > 0.5)
        time.sleep(2)
        screens = {"terminal_running": screen(run)}
        wait_for(lambda: (run / "report.html").exists())
        time.sleep(3)
        return screens | {"terminal_finished": screen(run)}
    finally:
        subprocess.run(["tmux", "kill-session", "-t", SESSION], check=False)


def reached(run: Path) -> float:
    """The share of the training that is logged."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if not lines:
        return 0.0
    epochs = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["trainer"]["arguments"]["num_train_epochs"]
    return json.loads(lines[-1]).get("train/epoch", 0) / epochs


def wait_for(happened, patience: float = 1800.0) -> None:  # noqa: ANN001 (any function without arguments)
    """Wait until `happened()`."""
    until = time.monotonic() + patience
    while not happened():
        if time.monotonic() > until:
            raise TimeoutError("the quickstart does not come to its end")
        time.sleep(0.5)


def screen(run: Path) -> str:
    """What stands in the terminal, with its colours; the temporary folder is called as the quickstart's own."""
    done = subprocess.run(
        ["tmux", "capture-pane", "-e", "-p", "-t", SESSION], check=True, capture_output=True, text=True
    )
    return done.stdout.rstrip().replace(str(run), "runs/quickstart")


def picture_of_screen(page: Browser, text: str, html: Path, image: Path) -> None:
    """Draw a terminal's text."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text), soft_wrap=True)
    html.write_text(console.export_html(theme=MONOKAI, inline_styles=True, code_format=PAGE), encoding="utf-8")
    page.open(html, width=COLUMNS * 9 + 60, height=400)
    page.picture(image)


if __name__ == "__main__":
    sys.exit(main())
