"""The page in a real browser: on a phone, in the dark; skipped where no Chromium is installed."""

import pytest

from dumbo.data.records import IGNORED, Example, Origin
from dumbo.data.train_format import Explanation, MessageTokens
from dumbo.errors import Place, Problem
from dumbo.inspection.anomalies import Anomaly
from dumbo.inspection.page import write_page
from dumbo.inspection.shown import ShownRow, show_row
from dumbo.inspection.tables import Table
from tests.browser import browser, find_chromium
from tests.unit.output.test_report_in_browser import CONTRAST

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed, which shows the page")

LONG = "W" * 400
EVIL = "<script>document.title = 'broken'</script><img src='http://example.invalid/x.png'>"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    texts = ("<s>", "a", "", EVIL, LONG, "\n", "</s>")
    labels = [IGNORED, IGNORED, IGNORED, IGNORED, 4, 5, 6]
    messages = (MessageTokens(0, "user", 0, 3), MessageTokens(1, LONG, 3, 7))
    example = Example(list(range(7)), labels, Origin(LONG, 1))
    row = show_row(example.origin, Explanation(example, texts, messages, frozenset({1}), (EVIL,)), frozenset({0, 6}))
    bad = ShownRow(f"{LONG}:2", problems=(Problem(LONG, place=Place(LONG, 2), hints=(EVIL, LONG)),))
    table = Table("Sources", ("source", "rows"), ((LONG, 3),))
    file = tmp_path_factory.mktemp("page") / "rows.html"
    write_page(file, file, [row, bad], [table], [Anomaly(LONG, EVIL, (LONG,))])
    return file


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(chromium, page, width):
    chromium.open(page, width=width, height=800)
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run("document.querySelectorAll('.tokens span').length") == 6, "a token goes on with the one before"


def test_the_page_asks_for_nothing_and_runs_nothing(chromium, page):
    chromium.open(page)
    assert chromium.requests() == [page.resolve().as_uri()]
    assert chromium.complaints() == [] and chromium.run("document.title").endswith("rows as they are trained")
    assert chromium.run("document.querySelector('.tokens').textContent").startswith(f"<s>a{EVIL}{LONG}⏎\n</s>")


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read(chromium, page, dark):
    chromium.open(page, dark=dark)
    seen = chromium.run(CONTRAST)
    assert seen["count"] > 20 and seen["poor"] == []
