"""The page of a run: everything that is known is in it, nothing that it holds can do harm, and it is small."""

import html
import re
from html.parser import HTMLParser

import pytest

from dumbo.output.comparison import comparison_html, labels_of
from dumbo.output.report import report_html, write_report
from dumbo.output.run_reading import read_run
from tests.unit.output import fake_runs
from tests.unit.output.fake_runs import metrics_rows, write_fake_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "link", "br", "img", "input"}
SVG_ALONE = {"path", "line", "circle"}


class Page(HTMLParser):
    """The elements of a page, with a check that each is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        here = self.open[-1] if self.open else ""
        self.texts.setdefault(here, []).append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report_of(folder, **parts):
    return report_html(read_run(write_fake_run(folder, **parts)))


def words(text):
    """What a reader sees."""
    text = re.sub(r"<(style|script).*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def test_everything_that_is_known_is_in_the_page(tmp_path):
    page = words(report_of(tmp_path / "quick"))
    for shown in (
        "✓ Finished", "21 November 2026", "A new llama was trained on 4,372 rows for 900 steps",
        "Exact match 97%", "2m 51s", "Learning rate", "Gradient norm", "Tokens per second", "epoch 2",
        "What is 17 + 25?", "✓ equals the reference", "✗ differs", "references at the end: 3 of 4; at first: 0.",
        "trainer.arguments.learning_rate", "Highest learning rate of the schedule.", "0.002", "5e-05",
        "data/more.jsonl", "45.4%", "1,179,648", "gradient checkpointing", "off (activations need about 212 MiB",
        "q_proj, v_proj", "2.13.0+cpu", "cpu cores", "Secrets were left out",
    ):  # fmt: skip
        assert shown in page, shown
    folder = tmp_path / "quick"
    assert f"dumbo {folder}/run.yaml trainer.output_dir={folder}-again" in page
    assert f"dumbo chat {folder}" in page and f'from_pretrained("{folder}/model")' in page
    assert "hf_abcdef" not in page


def test_it_is_one_document_that_asks_for_nothing(tmp_path):
    text = report_of(tmp_path / "r")
    page = Page(text)
    assert page.named("html") == [{"lang": "en"}]
    addresses = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href", "action", "data") and v]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|url\(", text)
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_it_can_be_read_without_eyes(tmp_path):
    page = Page(report_of(tmp_path / "r"))
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))
    pictures = [a for a in page.named("svg") if a.get("role") == "img"]
    assert len(pictures) >= 5 and all(len(a["aria-label"]) > 20 for a in pictures)
    assert pictures[0]["aria-label"].startswith("Loss over steps. training: from 4.")
    identifiers = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(identifiers) == len(set(identifiers))
    assert all(a["href"].removeprefix("#") in identifiers for a in page.named("a"))


def test_whatever_a_run_holds_is_text(tmp_path):
    samples = [{"step": step, "prompt": EVIL, "reference": EVIL, "output": EVIL} for step in (0, 5, 9)]
    rows = [{"step": i, f"train/{EVIL}": i, "train/loss": 1.0} for i in range(5)]
    config = fake_runs.CONFIG | {EVIL: {EVIL: EVIL}}
    facts = {"error": EVIL, "outcome": EVIL, EVIL: {EVIL: [EVIL, {EVIL: EVIL}]}, "chosen": {EVIL: EVIL}}
    folder = tmp_path / "<b>evil & 'name"
    text = report_of(folder, rows=rows, samples=samples, config=config, **facts)
    page = Page(text)
    assert page.named("img") == []
    assert len([a for a in page.named("script") if a.get("type") != "application/json"]) == 1
    assert not [k for _, a in page.elements for k in a if k.startswith("on")]
    assert "alert(1)" in words(text)


def test_whatever_compared_runs_hold_is_text(tmp_path):
    rows = [{"step": i, f"train/{EVIL}": i, "train/loss": 1.0} for i in range(5)]
    config = fake_runs.CONFIG | {EVIL: {EVIL: EVIL}}
    samples = [{"step": 0, "prompt": EVIL, "reference": EVIL, "output": EVIL}]
    names = ("<img src=x onerror=alert(1)>", "javascript:alert(1)")
    folders = [write_fake_run(tmp_path / name, rows=rows, samples=samples, config=config) for name in names]
    runs = [read_run(folder) for folder in folders]
    page = Page(comparison_html(runs, labels_of(runs)))
    assert page.named("img") == []
    assert len([a for a in page.named("script") if a.get("type") != "application/json"]) <= 1
    assert not [k for _, a in page.elements for k in a if k.startswith("on")]
    assert not [a for a in page.named("a") if not a["href"].startswith("#")]


def test_control_characters_are_made_visible(tmp_path):
    samples = [{"step": 0, "prompt": "p", "output": "a\0b\x1b[31mc\td\r\ne\x85f"}]
    text = report_of(tmp_path / "r", samples=samples)
    assert "a␀b␛[31mc\td\ne�f" in text


def test_a_lone_surrogate_can_be_written(tmp_path):
    folder = write_fake_run(tmp_path / "r")
    (folder / "samples.jsonl").write_text('{"step": 0, "prompt": "p\\ud800", "output": "x"}\n')
    assert "p�" in write_report(folder).read_text(encoding="utf-8")


def test_secrets_in_texts_are_left_out(tmp_path):
    samples = [{"step": 0, "prompt": "hf_" + "a" * 30, "output": "x"}]
    assert "hf_a" not in report_of(tmp_path / "r", samples=samples)


def test_values_that_are_no_numbers_are_marked(tmp_path):
    rows = metrics_rows(100)
    for row in rows[50:53]:
        row["train/loss"] = float("nan")
    text = report_of(tmp_path / "r", rows=rows)
    assert "3 values are no number (×)" in words(text)
    assert text.count('class="gap') == 2 * 3  # on the linear and on the logarithmic scale
    path = re.findall(r'<path class="raw c0 d0" d="([^"]*)"', text)[0]
    assert path.count("M") == 2 and "nan" not in path.lower()


def test_a_metric_without_any_number_is_told(tmp_path):
    rows = [{"step": i, "train/loss": 1.0 * i, "eval/loss": float("nan"), "train/x": float("inf")} for i in range(3)]
    seen = words(report_of(tmp_path / "r", rows=rows))
    assert "Evaluation: 3 values are no number (×)" in seen and "No value is a number." in seen


def test_a_long_configuration_is_shown_to_its_end(tmp_path):
    datasets = [{**fake_runs.CONFIG["datasets"][0], "path": f"data/part-{i:03}.jsonl"} for i in range(60)]
    page = report_of(tmp_path / "r", config={**fake_runs.CONFIG, "datasets": datasets})
    assert "path: data/part-059.jsonl" in page and "jinja_formatter\n</code>" in page


def test_metrics_of_plugins_have_charts(tmp_path):
    rows = [
        {"step": i, "train/reward": i / 10, "eval/reward": 1.0, "deep/er/thing": 3, "perf/memory_gib": 2.5}
        for i in range(9)
    ]
    page = Page(report_of(tmp_path / "r", rows=rows))
    assert {"Memory (GiB)", "Reward", "Deep / er / thing"} <= set(page.texts["h3"])


def test_one_logged_step_is_a_report(tmp_path):
    assert "for 1 step ." in words(
        report_of(tmp_path / "r", rows=[{"step": 1, "train/loss": 2.5}], steps=1, total_steps=1)
    )


@pytest.mark.parametrize("missing", ["metrics.jsonl", "samples.jsonl", "run.yaml", "summary.json"])
def test_a_report_without_one_of_the_files(tmp_path, missing):
    folder = write_fake_run(tmp_path / "r")
    (folder / missing).unlink()
    file = write_report(folder)
    Page(file.read_text(encoding="utf-8"))
    assert (folder / "loss.png").exists() is (missing != "metrics.jsonl")
    assert "could not be made" not in file.read_text(encoding="utf-8")


def test_a_report_of_nothing(tmp_path):
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Nothing was logged." in words(text) and "Outcome unknown" in words(text)


STRANGE = [
    {"data": "x", "parameters": [1, {"part": None, "trainable": "many"}], "versions": [], "machine": 3, "chosen": []},
    {"data": [{"source": ["a"], "rows": "3"}, {}], "started": 7, "seconds": "long", "steps": None, "total_steps": "x"},
    {"data": [{"tokens": 0, "trained": 0, "new key": {"a": [1, {"b": 2}]}}], "model": 3, "plugins": None},
]


@pytest.mark.parametrize("facts", STRANGE)
def test_facts_of_a_strange_shape_cost_no_part_of_the_report(tmp_path, facts):
    text = report_of(tmp_path / "r", **facts)
    Page(text)
    assert "could not be made" not in text


def test_a_part_that_fails_is_told_and_the_others_stay(tmp_path, monkeypatch):
    from dumbo.output import report

    def failing(run):
        raise KeyError("surprise")

    monkeypatch.setattr(report, "_SECTIONS", (failing, *report._SECTIONS))
    page = words(report_of(tmp_path / "r"))
    assert "could not be made" in page and "Gradient norm" in page


def test_a_part_of_a_comparison_that_fails_is_told_and_the_others_stay(tmp_path):
    """One run has a list of plugins that is none, which nobody expects."""
    runs = [read_run(write_fake_run(tmp_path / name)) for name in "ab"]
    assert "could not be made" not in comparison_html(runs, labels_of(runs))
    runs[1].config["plugins"] = 3
    page = words(comparison_html(runs, labels_of(runs)))
    assert "could not be made" in page and "Final metrics" in page


def test_a_long_run_makes_a_small_page_with_its_spikes(tmp_path):
    others = [f"plugin/m{n}" for n in range(8)]
    rows = [{"step": i, "train/loss": float(i % 7), **dict.fromkeys(others, i % 11)} for i in range(30_000)]
    rows[17_777]["train/loss"] = 900.0
    text = report_of(tmp_path / "r", rows=rows)
    assert len(text) < 1_500_000
    assert "17777" in re.findall(r'type="application/json">(.*?)</script>', text)[0]


def test_hundreds_of_metrics_stay_within_bounds(tmp_path):
    rows = [{"step": i, **{f"plugin/m{n}": i % 11 for n in range(300)}} for i in range(2_000)]
    text = report_of(tmp_path / "r", rows=rows)
    assert len(text) < 2_500_000 and "220 more metrics are in metrics.jsonl" in text


def test_the_same_prompt_twice_in_a_step_is_two(tmp_path):
    samples = [{"step": step, "prompt": "same", "output": f"text {step} {n}"} for step in (0, 9) for n in (1, 2)]
    page = Page(report_of(tmp_path / "r", samples=samples))
    assert len(page.named("article")) == 2


def test_the_picture_is_one(tmp_path):
    from PIL import Image

    write_report(write_fake_run(tmp_path / "r"))
    with Image.open(tmp_path / "r" / "loss.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
        assert len(set(picture.convert("RGB").resize((200, 100)).get_flattened_data())) > 20
    assert not list((tmp_path / "r").glob("*.partial"))


def test_the_picture_needs_no_home_and_leaves_the_global_state_of_matplotlib(tmp_path, monkeypatch):
    import os

    import matplotlib

    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    monkeypatch.setenv("HOME", str(home))
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    before = dict(matplotlib.rcParams)
    write_report(write_fake_run(tmp_path / "$\\frac{ _odd", outcome="interrupted"))
    assert (tmp_path / "$\\frac{ _odd" / "loss.png").exists()
    assert dict(matplotlib.rcParams) == before and "MPLCONFIGDIR" not in os.environ


def comparison(tmp_path, **parts):
    changed = {**fake_runs.CONFIG, "trainer": {"arguments": {"learning_rate": 1e-4, "max_steps": 5}}}
    one = write_fake_run(tmp_path / "one", rows=metrics_rows(50, seed=1))
    two = write_fake_run(tmp_path / "two", rows=metrics_rows(80, seed=2, floor=1.0), config=changed, **parts)
    runs = [read_run(one), read_run(two)]
    return comparison_html(runs, labels_of(runs))


def test_a_comparison_shows_both_runs_and_what_differs(tmp_path):
    text = comparison(tmp_path)
    page, seen = Page(text), words(text)
    assert page.texts["title"] == ["2 runs compared: one, two"]
    assert "trainer.arguments.learning_rate 0.002 0.0001" in seen
    assert "trainer.arguments.max_steps null 5" in seen and "trainer.arguments.batch_size 32 8" in seen
    assert "trainer.output_dir" not in seen and "model.architecture" not in seen
    assert re.search(r"eval/loss , lowest ★ 0\.\d+ 1\.\d+", seen)
    legend = re.findall(r'<ul class="legend">(.*?)</ul>', text)[0]
    assert "c0 d0" in legend and "c1 d1" in legend and "one" in legend and "two" in legend


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_fake_run(tmp_path / parent / "run", rows=metrics_rows(20)) for parent in "ab"]
    assert labels_of([read_run(folder) for folder in folders]) == [str(folder) for folder in folders]


def test_a_metric_that_one_run_has_is_shown(tmp_path):
    one = write_fake_run(tmp_path / "one", rows=[{"step": 1, "train/loss": 1.0}])
    two = write_fake_run(tmp_path / "two", rows=[{"step": 1, "other/thing": 1.0}])
    assert "other/thing – 1" in words(comparison_html([read_run(one), read_run(two)], ["one", "two"])).replace(
        " , last", ""
    )
