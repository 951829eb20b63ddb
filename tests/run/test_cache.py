"""Tokens and labels are made once: what makes others misses the cache, what does not hits it, and nothing breaks it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from dumbo.cli.main import main
from dumbo.config.schema import DatasetEntry, FormatOptions
from dumbo.data.fingerprints import entry_options, moment_of
from dumbo.data.store import Store
from dumbo.plugins.jinja_formatter.data_options import ColumnsOptions
from tests import builders

PLUGIN = '''
import hashlib, os, pathlib, signal

from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.data.records import Example, Origin, Row, Text
from dumbo.plugin_loader import DataFormatPlugin, ReaderPlugin, TrainFormatPlugin

class Words(Section):
    path: str
    """A file with a row in each line."""

class Plain(FormatOptions):
    """No options."""

class WordsPlugin(ReaderPlugin, DataFormatPlugin, TrainFormatPlugin):
    readers = {"words": Words}
    data_formats = {"plain": Plain}
    train_formats = {"plain": Plain}
    cache_version = "1"

    def fingerprint(self, options):
        return hashlib.sha256(pathlib.Path(options.path).read_bytes()).hexdigest()

    def read(self, options):
        for number, line in enumerate(pathlib.Path(options.path).read_text().splitlines(), start=1):
            yield Row({"text": line}, Origin(options.path, number))

    def build_data_format(self, options):
        return lambda row: Text(row.values["text"], row.origin)

    def build_train_format(self, options, tokenizer):
        def encode(record):
            with open("encoded.txt", "a") as log:
                log.write(f"{record.origin.row}\\\\n")
            if os.environ.get("DIE_AT") == str(record.origin.row):
                os.kill(os.getpid(), signal.SIGKILL)
            if record.text == "bad":
                raise record.origin.error("there is nothing in it")
            ids = [int(word) for word in record.text.split()]
            return Example(ids, ids, record.origin, {"met": 1})
        return encode
'''.replace("\\\\n", "\\n")


@pytest.fixture
def words(tmp_path, model_folder, monkeypatch):
    """A configuration whose plugin writes down which rows it makes tokens of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "words.py").write_text(PLUGIN)
    (tmp_path / "rows.txt").write_text("".join(f"{n} {n + 1} {n + 2}\n" for n in range(1, 41)))
    changes = {
        "datasets.0": {"type": "words", "path": "rows.txt", "data_format": "plain", "train_format": "plain"},
        "plugins": ["transformers", "transformers_trainer", "./words.py:WordsPlugin"],
    }
    return builders.write_config(tmp_path, model_folder, tmp_path / "rows.txt", changes)


@pytest.fixture
def encoded(tmp_path):
    """The rows that tokens were made of since the last call."""

    def since():
        log = tmp_path / "encoded.txt"
        rows = [int(line) for line in log.read_text().split()] if log.exists() else []
        log.unlink(missing_ok=True)
        return rows

    return since


ALL = list(range(1, 41))


def preprocess(file, *words, code=0):
    assert main(["preprocess", str(file), *words]) == code


def test_what_changes_no_token_hits_and_what_does_misses(words, encoded, tmp_path):
    preprocess(words)
    assert encoded() == ALL
    same = ("trainer.data.val_set_size=3", "trainer.seed=5", "trainer.data.sequence_length=3", "datasets.0.weight=0.5")
    preprocess(words, *same, "trainer.data.packing=true")
    assert encoded() == []
    preprocess(words, changed_plugin(tmp_path, 'cache_version = "1"', 'cache_version = "2"'))
    assert encoded() == ALL
    (tmp_path / "rows.txt").write_text("7 8 9\n")
    preprocess(words)
    assert encoded() == [1]
    preprocess(words, "trainer.data.cache=other")
    assert encoded() == [1]


def changed_plugin(folder, old, new):
    """What puts the plugin with `new` for `old` in its place."""
    (folder / "changed.py").write_text(PLUGIN.replace(old, new))
    return "plugins.2=./changed.py:WordsPlugin"


def test_without_a_version_nothing_of_a_plugin_is_kept(words, encoded, tmp_path):
    plugin = changed_plugin(tmp_path, 'cache_version = "1"', "")
    for _ in range(2):
        preprocess(words, plugin)
        assert encoded() == ALL


def test_a_run_finds_what_was_prepared_and_says_the_same(words, encoded, capsys):
    preprocess(words)
    first = capsys.readouterr().out
    assert main([str(words)]) == 0
    second = capsys.readouterr().out
    assert encoded() == ALL
    assert "rows.txt: 40 rows from the cache" in second
    table = re.search(r"  source .*\n  rows.txt .*\n", first).group()
    assert table in second and "met" in table
    steps = re.search(r"10 steps per epoch, 2 in all; 120 tokens per epoch; 0% padding", first).group()
    assert steps in second


def test_bad_rows_that_were_dropped_are_errors_where_they_are_asked_to_be(words, encoded, tmp_path, capsys):
    with (tmp_path / "rows.txt").open("a") as file:
        file.write("bad\n")
    preprocess(words, "trainer.data.on_bad_row=drop")
    said = capsys.readouterr().out
    assert "dropped 1 bad row; the first: rows.txt:41: there is nothing in it" in said
    encoded()
    preprocess(words, "trainer.data.on_bad_row=drop")
    again = capsys.readouterr().out
    assert encoded() == [] and "dropped 1 bad row; the first: rows.txt:41: there is nothing in it" in again
    preprocess(words, code=2)
    assert "rows.txt:41: there is nothing in it" in capsys.readouterr().err


SMALL_BLOCKS = """
import sys
import dumbo.data.encoded as encoded
encoded.BLOCK_TOKENS = 9
from dumbo.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def in_small_blocks(file, *words, **environment):
    """`preprocess` in a process of its own, blocks of which hold three rows."""
    command = [sys.executable, "-c", SMALL_BLOCKS, "preprocess", str(file), *words]
    changed = builders.clean_environment(**environment)
    return subprocess.run(command, env=changed, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.full
@pytest.mark.parametrize("output", [(), ("--output", "prepared")])
def test_what_was_done_before_a_kill_is_not_done_again(words, encoded, tmp_path, output):
    killed = in_small_blocks(words, *output, DIE_AT="20")
    assert killed.returncode == -signal.SIGKILL
    assert encoded() == ALL[:20]
    said = in_small_blocks(words, *output)
    assert said.returncode == 0, said.stderr
    assert "rows.txt: going on behind the first 18 rows, which are there already" in said.stdout
    assert encoded() == ALL[18:]
    assert "rows.txt    40     120" in said.stdout
    folder = tmp_path / ("prepared" if output else "cache")
    (found,) = Store(folder).entries()
    rows = Store(folder).find(found.key)
    assert [rows.dataset[index]["input_ids"].tolist() for index in range(40)] == [[n, n + 1, n + 2] for n in ALL]
    assert [rows.origin(index).row for index in range(40)] == ALL
    assert rows.counts == {"met": 40}
    assert len(Store(folder).entries()) == 1


@pytest.mark.parametrize("name", ["rows", "00000.tokens", "rows.json", "about.json"])
def test_what_is_damaged_is_made_again(words, encoded, tmp_path, name):
    preprocess(words)
    encoded()
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:-3])
    preprocess(words)
    assert encoded() == ALL or name == "about.json"
    preprocess(words)
    assert encoded() == []


@pytest.mark.full
def test_two_processes_make_the_tokens_once(words, encoded, tmp_path):
    command = [sys.executable, "-m", "dumbo", "preprocess", str(words)]
    both = [subprocess.Popen(command, env=builders.clean_environment(), stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert encoded() == ALL
    assert sum("40 rows from the cache" in text for text in outputs) == 1


def test_a_source_that_changes_under_way_is_not_kept(words, tmp_path, capsys):
    touch = 'open("rows.txt", "a").write("9") if record.origin.row == 40 else None'
    plugin = changed_plugin(tmp_path, "ids = [", f"{touch}\n            ids = [")
    preprocess(words, plugin, code=2)
    assert capsys.readouterr().err == "rows.txt was changed while it was read; start again\n"
    assert Store(tmp_path / "cache").entries() == []


def test_a_change_under_way_leaves_nothing_of_it_behind(words, encoded, tmp_path):
    touch = 'open("rows.txt", "a").write("9") if record.origin.row == 40 else None'
    plugin = changed_plugin(tmp_path, "ids = [", f"{touch}\n            ids = [")
    before = (tmp_path / "rows.txt").read_text()
    preprocess(words, plugin, code=2)
    (tmp_path / "rows.txt").write_text(before)
    encoded()
    preprocess(words)
    assert encoded() == ALL
    assert Store(tmp_path / "cache").entries()[0].source == "rows.txt"


@pytest.mark.parametrize(
    ("template", "is_kept"),
    [("{{ strftime_now('%d %b %Y') }}", True), ("{{ strftime_now('%H:%M:%S') }}", False)],
)
def test_templates_that_write_a_time_are_kept_for_no_longer_than_it(words, template, is_kept):
    class Tokenizer:
        chat_template = template

    moments = []
    for _ in range(2):
        moments.append(moment_of({"train_format": {}}, Tokenizer()))
        time.sleep(1.1)
    assert all(moments) and (moments[0] == moments[1]) == is_kept
    assert moment_of({"train_format": {"template": "{{ messages }}"}}, type("Plain", (), {"chat_template": None})) == ""


def test_texts_of_a_format_that_look_like_secrets_count(words):
    def options(system):
        data_format = ColumnsOptions(type="columns", system_prompt=f"See https://host/?api_key={system}")
        return entry_options(DatasetEntry(type="x", data_format=data_format, train_format=FormatOptions(type="y")))

    assert options("ONE") != options("TWO")


@pytest.mark.parametrize(
    ("name", "text"),
    [("about.json", "{}"), ("about.json", "[]"), ("rows.json", "[]"), ("rows.json", '{"records": 40}')],
)
def test_entries_of_another_shape_are_as_if_they_were_not_there(words, encoded, tmp_path, capsys, name, text):
    preprocess(words)
    encoded()
    for file in (tmp_path / "cache").rglob(f"*{name}"):
        file.write_text(text)
    assert main(["cache"]) == 0
    preprocess(words)
    assert set(encoded()) <= set(ALL)


@pytest.mark.full
def test_a_failed_write_is_one_line(words, tmp_path):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "from dumbo.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-B", "-c", code, "preprocess", str(words)]
    failed = subprocess.run(command, env=builders.clean_environment(), capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert len(failed.stderr.splitlines()) == 1 and "File too large" in failed.stderr


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"format": 0}', "not json"])
def test_a_folder_of_another_shape_is_refused(words, tmp_path, capsys, manifest):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "prepared.json").write_text(manifest)
    assert main([str(words), "trainer.data.prepared=prepared"]) == 2
    assert capsys.readouterr().err.startswith("command line: trainer.data.prepared: prepared")


@pytest.mark.parametrize("elsewhere", ["../secret", "/etc", "a/../../secret", ""])
def test_a_folder_that_names_another_one_is_refused(words, tmp_path, capsys, elsewhere):
    preprocess(words, "--output", "prepared")
    manifest = tmp_path / "prepared" / "prepared.json"
    facts = json.loads(manifest.read_text())
    (tmp_path / "prepared" / facts["sources"][0]["folder"]).rename(tmp_path / "secret")
    facts["sources"][0]["folder"] = elsewhere
    manifest.write_text(json.dumps(facts))
    capsys.readouterr()
    assert main([str(words), "trainer.data.prepared=prepared"]) == 2
    assert "prepared.json cannot be read" in capsys.readouterr().err


def test_preparing_again_leaves_nothing_old_behind(words, tmp_path):
    preprocess(words, "--output", "prepared")
    (tmp_path / "rows.txt").write_text("7 8 9\n")
    preprocess(words, "--output", "prepared")
    assert [entry.rows for entry in Store(tmp_path / "prepared").entries()] == [1]


@pytest.mark.parametrize("verb", [["check", "--rows"], ["inspect"]])
def test_prepared_data_has_no_rows_to_look_at(words, capsys, verb):
    preprocess(words, "--output", "prepared")
    capsys.readouterr()
    assert main([verb[0], str(words), *verb[1:], "trainer.data.prepared=prepared"]) == 2
    assert "there are tokens, and no rows to look at" in capsys.readouterr().err


def test_prepared_data_is_trained_from_where_its_sources_are_not(words, encoded, tmp_path, capsys):
    assert main([str(words), "trainer.data.cache=false", "trainer.output_dir=from-rows"]) == 0
    encoded()
    preprocess(words, "--output", "prepared")
    assert encoded() == ALL
    moved = shutil.move("prepared", "elsewhere")
    (tmp_path / "rows.txt").unlink()
    capsys.readouterr()
    assert main([str(words), f"trainer.data.prepared={moved}", "trainer.output_dir=from-prepared"]) == 0
    assert encoded() == []
    assert "rows.txt: 40 rows from elsewhere" in capsys.readouterr().out
    losses = [
        [json.loads(line)["train/loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("from-rows", "from-prepared")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["datasets.0.path=other.txt"], 'another datasets.0: path (then "rows.txt", now "other.txt")'),
        (['model.tokenizer.special_tokens=["<x>"]'], "another datasets.0: tokenizer (then "),
        (["trainer.data.prepared=nowhere"], "there is no whole set of prepared data in nowhere"),
    ],
)
def test_other_data_than_was_prepared_is_refused(words, tmp_path, capsys, changes, expected):
    preprocess(words, "--output", "prepared")
    capsys.readouterr()
    assert main([str(words), "trainer.data.prepared=prepared", *changes]) == 2
    said = capsys.readouterr().err
    assert said.startswith("command line: trainer.data.prepared: ") and expected in said


def test_more_sources_than_were_prepared_are_refused(words, tmp_path, capsys):
    preprocess(words, "--output", "prepared")
    tree = yaml.safe_load(words.read_text())
    tree["datasets"] *= 2
    words.write_text(yaml.safe_dump(tree))
    assert main([str(words), "trainer.data.prepared=prepared"]) == 2
    assert "prepared has 1 sources, and there are 2 under datasets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words_given", "expected"),
    [
        (["trainer.data.cache=false"], "without a cache there is no place for what is prepared"),
        (["trainer.data.prepared=x"], "the data is prepared already"),
    ],
)
def test_preparing_what_cannot_be_kept_is_refused(words, capsys, words_given, expected):
    preprocess(words, *words_given, code=2)
    assert expected in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_to_is_said(words, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    preprocess(words, "trainer.data.cache=file/cache", code=2)
    said = capsys.readouterr().err
    assert "the folder of prepared data file/cache cannot be written to" in said and "trainer.data.cache: false" in said


def test_the_cache_is_listed_and_pruned(words, encoded, tmp_path, capsys):
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}: nothing is kept\n"
    preprocess(words)
    (tmp_path / "rows.txt").write_text("7 8 9\n")
    preprocess(words)
    old = next(entry for entry in Store(tmp_path / "cache").entries() if entry.rows == 40)
    os.utime(tmp_path / "cache" / old.key / "about.json", (time.time() - 40 * 86400,) * 2)
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"rows.txt +1 +3 .* just now\n  rows.txt +40 +120 .* 40 days ago\n", said)
    assert main(["cache", "prune", "--older-than", "30"]) == 0
    assert re.search(r": 1 removed, 1\.\d KB; \d+ B are left", capsys.readouterr().out)
    encoded()
    preprocess(words)
    assert encoded() == []
    assert main(["cache", "prune", "--over", "10K"]) == 0
    assert ": 0 removed" in capsys.readouterr().out
    assert main(["cache", "prune", "--over", "1"]) == 0
    assert Store(tmp_path / "cache").entries() == []
    assert main(["cache", "prune", "--all"]) == 0
    preprocess(words)
    assert encoded() == [1]


@pytest.mark.parametrize(
    ("words_given", "expected"),
    [
        (["prune"], "say what is to go"),
        (["--all"], "to remove something, write dumbo cache prune"),
    ],
)
def test_what_cannot_be_pruned_is_said(capsys, words_given, expected):
    assert main(["cache", *words_given]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words_given", "expected"),
    [
        (["--over", "much"], "'much' is no size; write for example 500M or 20G"),
        (["--older-than", "-1"], "'-1' is no number of days"),
    ],
)
def test_sizes_and_days_are_numbers(capsys, words_given, expected):
    with pytest.raises(SystemExit, match="2"):
        main(["cache", "prune", *words_given])
    assert expected in capsys.readouterr().err
