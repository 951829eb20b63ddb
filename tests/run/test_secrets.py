"""Secrets are planted wherever a user may write one, everything is run that there is, and every output is searched."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import pytest
import yaml

from dumbo.cli.main import main
from tests import builders
from tests.plugins.test_trackers import surroundings, trackio_folder  # noqa: F401 (fixtures)

NUMBERS = count(1)
TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")
VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY")
PLUGIN = '''
import os
from typing import Any

from pydantic import Field
from transformers import TrainerCallback

from dumbo.config.section import Section
from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import CallbackPlugin, LoggingPlugin


class LeakyOptions(Section):
    """Options with secrets in them."""

    api_key: str | None = None
    """A key."""
    hubToken: str | None = None
    """A key."""
    password: str | int | None = None
    """A key."""
    webhook_url: str | None = None
    """A key."""
    credentials: dict[str, Any] = Field(default_factory=dict)
    """Keys."""
    endpoint: str | None = None
    """Where to."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers."""
    fails_in: str = "nothing"
    """Which hook raises."""


class Collector(MetricsCollector):
    def __init__(self, words, fails):
        self.words, self.fails = words, fails

    def log_metrics(self, metrics, step):
        if self.fails:
            raise ConnectionError(self.words)


class LeakyPlugin(LoggingPlugin, CallbackPlugin):
    """Repeats all that it knows wherever it can."""

    name = "leaky"
    section = "trainer.leaky"
    options_type = LeakyOptions

    def words(self):
        return f"{self.options!r} {self.options.model_dump()} {dict(os.environ)} {self.config!r}"

    def check(self, config):
        if self.options.fails_in == "check":
            raise ValueError(self.words())

    def get_metrics_collector(self):
        return Collector(self.words(), self.options.fails_in == "collector")

    def get_callbacks(self, config):
        self.services.say(self.words())
        self.services.note("leaky", {"words": self.words(), "options": self.options.model_dump()})
        plugin = self

        class Callback(TrainerCallback):
            def on_step_end(self, arguments, state, control, **_):
                if plugin.options.fails_in == "step":
                    raise ConnectionError(plugin.words())

        return [Callback()]
'''


@pytest.fixture
def secrets():
    """The canaries of a test by the places where they were planted."""
    return {}


@pytest.fixture
def plant(secrets):
    """Makes a secret that is like no other text."""

    def make(place):
        secrets[place] = f"Canary{next(NUMBERS):03}x{len(place) * 7919:06}Zq"
        return secrets[place]

    return make


@pytest.fixture
def server():
    """Serves rows to whoever asks, whatever name and signature they give."""
    data = "".join(json.dumps(row) + "\n" for row in builders.alpaca_rows()).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_HEAD(self):
            self.do_GET(body=False)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def write(tmp_path, model_folder, plant, monkeypatch, server):
    """Writes a configuration full of secrets, apart from where anything else is written; returns its file."""
    (tmp_path / "written").mkdir()
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path / "outputs")
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "outputs" / "cache"))
    for name in VARIABLES:
        monkeypatch.setenv(name, plant(f"variable {name}"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{plant('proxy')}@127.0.0.1:1")
    monkeypatch.setenv("MY_SERVICE_KEY", plant("variable that the configuration names"))
    monkeypatch.setenv("MY_ADDRESS", f"https://me:{plant('address in a variable')}@example.org/")

    def write_file(*trackers, **changes):
        (tmp_path / "written" / "leaky.py").write_text(PLUGIN)
        address = f"http://me:{plant('path')}@{server}/rows.jsonl?X-Amz-Signature={plant('signature')}"
        leaky = {
            "api_key": "${env:MY_SERVICE_KEY}",
            "hubToken": plant("token"),
            "webhook_url": f"https://example.org/hook/{plant('webhook')}",
            "credentials": {"user": plant("user"), "pin": [plant("pin")]},
            "endpoint": "${env:MY_ADDRESS}",
            "headers": {"Authorization": f"Bearer {plant('header')}", "X-Api-Key": plant("own header")},
        }
        changes = {
            "trainer.leaky": leaky | changes.pop("leaky", {}),
            "datasets.0.path": address,
            "trainer.arguments.max_steps": 2,
            "plugins": [*SHIPPED_HERE, *trackers, "./leaky.py:LeakyPlugin"],
            "trainer.output_dir": "out",
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        if "wandb" in trackers:
            changes["trainer.wandb"] = {"mode": "offline", "notes": f"see https://me:{plant('notes')}@example.org"}
            changes["trainer.mlflow.tags"] = {
                "from": f"https://me:{plant('tag')}@example.org",
                "secret": plant("a tag"),
            }
            changes["trainer.trackio.group"] = f"https://me:{plant('group')}@example.org"
            changes["trainer.trackio.project"] = tmp_path.name
        return builders.write_config(tmp_path / "written", model_folder, Path("unused"), changes)

    return write_file


SHIPPED_HERE = ("transformers", "transformers_trainer", "polars", "jinja_formatter")


@pytest.fixture
def search(tmp_path, secrets, capfd, trackio_folder):  # noqa: F811
    """Looks for every secret in all that was written and said; returns what was said."""

    def find():
        said = capfd.readouterr()
        folders = [tmp_path / "outputs", tmp_path / "home", trackio_folder]
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        contents = {str(file): file.read_bytes() for file in files}
        contents |= {"standard output": said.out.encode(), "standard error": said.err.encode()}
        contents |= {f"name of {file}": str(file).encode() for file in files}
        found = {
            (place, name) for place, text in secrets.items() for name, data in contents.items() if text.encode() in data
        }
        assert found == set()
        return said

    return find


def test_a_run_with_four_trackers_keeps_every_secret(write, search, plant, monkeypatch, tmp_path):
    file = write(*TRACKERS)
    words = [
        "train",
        str(file),
        f"trainer.leaky.password={plant('override')}",
        f"trainer.wandb.tags=[https://me:{plant('address in an override')}@example.org]",
    ]
    monkeypatch.setattr("sys.argv", ["dumbo", *words])
    assert main(words) == 0
    said = search().out
    assert "trained 2 steps" in said and "<redacted>" in said
    run = yaml.safe_load(Path("out/run.yaml").read_text())
    assert run["trainer"]["leaky"]["api_key"] == "${env:MY_SERVICE_KEY}"
    assert run["trainer"]["leaky"]["password"] == "<redacted>"
    assert run["datasets"][0]["path"].startswith("http://me:<redacted>@127.0.0.1")
    for more in (["report", "out"], ["cache"], ["generate", "out", "Hi", "--max-new-tokens", "1"]):
        assert main(more) == 0
    search()


@pytest.mark.parametrize(
    ("place", "debug"), [("step", []), ("step", ["--debug"]), ("check", ["--debug"]), ("collector", [])]
)
def test_what_a_plugin_raises_keeps_every_secret(place, debug, write, search):
    file = write(leaky={"fails_in": place})
    status = main(["train", str(file), *debug])
    said = search()
    assert (status == 0) is (place == "collector")
    assert "<redacted>" in said.err and "Error" in said.err
    assert ("Traceback" in said.err) is (bool(debug) and place != "collector")


def test_every_verb_keeps_every_secret(write, search, plant):
    file = str(write())
    more = [f"trainer.leaky.password={plant('override')}"]
    assert main(["check", file, *more]) == 0
    assert main(["check", file, "--rows", *more]) == 0
    assert main(["train", file, "--plan", *more]) == 0
    assert main(["inspect", file, "--html", "page.html", *more]) in (0, 1)
    assert main(["preprocess", file, *more]) == 0
    assert main(["preprocess", file, "--output", "prepared", *more]) == 0
    main(["doctor", file])
    said = search()
    assert "me:<redacted>@127.0.0.1" in said.out
    assert main(["train", file, "trainer.data.prepared=prepared", *more]) == 0
    search()


def test_complaints_about_a_configuration_keep_every_secret(write, search, plant, tmp_path):
    file = write(trainer__leakyy={"api_key": plant("unknown section")}, leaky={"api_token": plant("unknown option")})
    wrong = [
        [f"trainer.leaky.hubToken=[{plant('a list')}]"],
        [
            f"trainer.leaky.headers={{X-Api-Key: {plant('long') * 9}}}",
            f"trainer.leaky.webhook_url: {plant('no equals')}",
        ],
        [f"trainer.leaky.api_key=[{plant('not YAML')}"],
        [f"trainer.leaky.api_key={{a: {plant('a mapping')}}}"],
        [f"trainer.leaky.fails_in=[https://me:{plant('elsewhere')}@example.org]"],
        [f"trainer.arguments.max_steps=https://me:{'a' * 60}{plant('cut')}@example.org"],
        [f"datasets.0.path=s3://me:{plant('bucket')}@bucket/rows.jsonl"],
        [f"datasets.0.path=https://me:{plant('nowhere')}@127.0.0.1:1/rows.jsonl?sig={plant('nowhere signed')}"],
        [f"model.base_model=https://me:{plant('model')}@example.org/name"],
        [f"model.tokenizer.path=https://me:{plant('tokenizer')}@example.org/name"],
        [f"trainer.data.prepared=https://me:{plant('prepared')}@example.org/name"],
    ]
    for words in wrong:
        assert main(["train", str(file), *words]) == 2
        assert main(["train", str(file), *words, "--debug"]) == 2
    good = yaml.safe_load(file.read_text())
    del good["trainer"]["leakyy"], good["trainer"]["leaky"]["api_token"]
    file.write_text(yaml.safe_dump(good))
    for words in wrong:
        assert main(["train", str(file), *words]) == 2
    text = file.read_text()
    for line in (
        f"api_key: {plant('a')}: b",
        f"password: '{plant('b')}",
        f"hub_token: [{plant('c')}",
        f"\tsecret: {plant('d')}",
    ):
        file.write_text(text + line + "\n")
        assert main(["check", str(file)]) == 2
    said = search()
    assert "run.yaml" in said.err


def test_a_library_that_repeats_a_secret_of_the_environment_is_not_believed(write, search, monkeypatch):
    def refuse(*words, **named):
        import os

        raise RuntimeError(f"401 for {os.environ['HF_TOKEN']} at {os.environ['MY_ADDRESS']}")

    file = write()
    monkeypatch.setattr("dumbo.pipeline._train", refuse)
    assert main(["train", str(file)]) == 1
    said = search().err
    assert "Traceback" in said and "RuntimeError: 401 for <redacted> at https://me:<redacted>@example.org/" in said


def test_data_may_hold_what_it_likes(tmp_path, model_folder, capfd, monkeypatch):
    """What looks like a secret in the rows is trained, and shown by `inspect` as it is."""
    monkeypatch.chdir(tmp_path)
    rows = builders.write_rows(
        tmp_path / "rows.jsonl", [{"instruction": "Say it", "output": "password=abcdefgh12345"}] * 4
    )
    assert main(["inspect", str(builders.write_config(tmp_path, model_folder, rows))]) in (0, 1)
    assert "password=abcdefgh12345" in capfd.readouterr().out
