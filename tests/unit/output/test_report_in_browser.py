"""The pages in a real browser: on a phone, in the dark, printed; skipped where no Chromium is installed."""

import json
import re

import pytest

from dumbo.output.comparison import write_comparison
from dumbo.output.report import write_report
from dumbo.output.run_reading import read_run
from tests.browser import browser, find_chromium
from tests.unit.output.fake_runs import metrics_rows, sample_rows, write_fake_run

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed, which shows the pages")

LONG = "W" * 400
CONTRAST = """
(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const UNSEEN = "script, style, title, details:not([open]) > :not(summary)";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = []; let count = 0;
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.textContent.trim() || e.closest(UNSEEN) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [parse(e.closest("svg") ? style.fill : style.color), behind(e)].map(light).sort((x, y) => y - x);
    count += 1;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([node.textContent.trim().slice(0, 40), style.color, ratio]);
  }
  return { count, poor };
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A usual run, one full of what is long and strange, and a comparison."""
    folder = tmp_path_factory.mktemp("runs")
    usual = write_fake_run(folder / "usual")
    rows = [{**row, f"train/{LONG}": float(i), "eval/x_y": float("nan")} for i, row in enumerate(metrics_rows(60))]
    evil = "<script>document.title = 'broken'</script><img src='http://example.invalid/x.png'>"
    samples = [
        {"step": step, "prompt": LONG + evil, "reference": LONG, "output": f"{LONG}\0\n\t{evil}"} for step in (0, 5, 9)
    ]
    facts = {"error": LONG, LONG: {LONG: LONG}, "outcome": "failed", "chosen": {LONG: LONG}}
    facts |= {"data": [{"source": LONG, "rows": 3, "tokens": 10**12, "trained": 10**11, LONG: 1}]}
    strange = write_fake_run(folder / f"strange-{LONG[:150]}", rows=rows, samples=samples + sample_rows(), **facts)
    runs = [read_run(usual), read_run(strange)]
    compared = write_comparison(runs, folder / "comparison.html", folder / "comparison.png")
    return {"usual": write_report(usual), "strange": write_report(strange), "comparison": compared}


kinds = pytest.mark.parametrize("kind", ["usual", "strange", "comparison"])


@kinds
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(chromium, pages, kind, width):
    chromium.open(pages[kind], width=width, height=800)
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run("document.querySelectorAll('figure.chart').length") >= 5


@kinds
def test_the_page_asks_for_nothing_and_the_console_is_silent(chromium, pages, kind):
    chromium.open(pages[kind])
    assert [address.partition(":")[0] for address in chromium.requests()] == ["file"]
    assert chromium.complaints() == []
    assert chromium.run("document.title") != "broken"


@kinds
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(chromium, pages, kind, dark):
    chromium.open(pages[kind], dark=dark)
    found = chromium.run(CONTRAST)
    assert found["count"] > 50 and found["poor"] == []
    assert (chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 26)") is dark


def test_values_are_read_out_under_the_pointer_and_with_keys(chromium, pages):
    chromium.open(pages["usual"])
    chromium.run("document.querySelector('.plot > svg').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = chromium.run("document.querySelector('.plot > svg').getBoundingClientRect().toJSON()")
    read = "document.querySelector('.read-out').textContent"
    assert chromium.run(read) == ""
    middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", **middle)
    assert re.fullmatch(r"step 45\d  ·  training 0\.\d+  ·  evaluation 0\.\d+", chromium.run(read))
    assert chromium.run("document.querySelectorAll('.pointer circle').length") == 2
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert chromium.run(read) == ""
    key = "document.querySelector('.plot > svg').dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}))"
    chromium.run(key % "Home")
    assert chromium.run(read).startswith("step 1 ")
    chromium.run(key % "ArrowRight")
    assert chromium.run(read).startswith("step 2 ")


def test_the_switches_change_the_curves(chromium, pages):
    chromium.open(pages["usual"])
    shown = "[...document.querySelectorAll('.plot')].filter((e) => e.getClientRects().length).map((e) => e.className)"
    smooth = "getComputedStyle(document.querySelector('.plot.log path.smooth')).display"
    before = chromium.run(shown)
    assert "plot linear" in before and "plot log" not in before
    chromium.run("document.querySelector('#log').click()")
    after = chromium.run(shown)
    assert "plot log" in after and "plot linear" not in after and len(after) == len(before)
    assert chromium.run(smooth) != "none"
    chromium.run("document.querySelector('#smooth').click()")
    assert chromium.run(smooth) == "none"


@kinds
def test_it_prints_light_and_without_what_only_works_on_a_screen(chromium, pages, kind):
    chromium.open(pages[kind], width=700, dark=True, media="print")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    visible = "[...document.querySelectorAll('nav, input, details')].filter((e) => e.getClientRects().length).length"
    assert chromium.run(visible) == 0
    assert chromium.run("document.documentElement.scrollWidth") <= 700
    assert chromium.run(CONTRAST)["poor"] == []
    assert chromium.pdf().startswith(b"%PDF")


def test_a_complaint_would_be_seen(chromium, tmp_path):
    """The checks above can fail: a page that breaks the rules is caught."""
    bad = tmp_path / "bad.html"
    style = "width: 900px; color: #999; background: #fff"
    bad.write_text(f"<p style='{style}'>pale</p><img src='x.png'><script>throw new Error({json.dumps('no')})</script>")
    chromium.open(bad, width=360)
    assert chromium.run("document.documentElement.scrollWidth") > 360
    assert chromium.complaints() and len(chromium.requests()) == 2
    assert len(chromium.run(CONTRAST)["poor"]) == 1
