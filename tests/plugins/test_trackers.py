"""The trackers, with their libraries: what a run sends is read back from what they wrote; no network, no server."""

import io
import json
import re
import shutil
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from dumbo.cli.main import main
from dumbo.errors import RunError
from dumbo.metrics import Metrics, RunInfo
from dumbo.plugin_finder import find_plugin
from dumbo.trackers.tracker import TrackerError
from tests import builders
from tests.house import imports
from tests.run.whole_runs import SHIPPED, metrics_of

TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory):
    """Trackio reads its folder once per process: all tests here share it, with projects of their own."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        import trackio.utils

        if Path(trackio.utils.TRACKIO_DIR) != folder:
            patch.setattr("trackio.utils.TRACKIO_DIR", folder)
            patch.setattr("trackio.sqlite_storage.TRACKIO_DIR", folder)
        yield folder


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch, trackio_folder):
    """A working folder of its own, nobody's accounts and settings, and a fresh session of wandb."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.chdir(tmp_path)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def write(folder, model_folder, rows_file, *names, **changes):
    """A configuration with the trackers `names`; wandb is offline."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    if "wandb" in names:
        changes = {"trainer.wandb.mode": "offline"} | changes
    if "trackio" in names:
        changes = {"trainer.trackio.project": folder.name} | changes
    return builders.write_config(folder, model_folder, rows_file, {"plugins": [*SHIPPED, *names], **changes})


def wandb_records(folder):
    """The records of the one run under `folder`: a log of blocks of 32 KiB, as LevelDB's, behind 7 bytes of head."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/*run-*/run-*.wandb")
    position, parts = 7, b""
    sys.modules["wandb"].teardown()  # its process may still be writing when a run's `finish` returns
    data, records = file.read_bytes(), []
    while position + 7 <= len(data):
        rest = 32768 - position % 32768
        if rest < 7:
            position += rest
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def wandb_items(items):
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def wandb_history(folder):
    """One row per step, as `metrics.jsonl` has them once lines of one step are joined."""
    rows = [wandb_items(record.history.item) for record in wandb_records(folder) if record.HasField("history")]
    return [{"step": row.pop("_step")} | {k: v for k, v in row.items() if k[0] != "_"} for row in rows]


def wandb_config(folder):
    (run,) = [record.run for record in wandb_records(folder) if record.HasField("run")]
    return {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}


def by_name(rows):
    """Metric -> list of (step, value), the way most stores have it."""
    found = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, []).append((row["step"], value))
    return found


def joined(rows):
    """Rows of one step as one."""
    steps = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    return list(steps.values())


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def texts_of(events, tag):
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]


def hyperparameters_of(events):
    from tensorboard.plugins.hparams import metadata

    content = events.summary_metadata
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG].plugin_data.content)
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG].plugin_data.content)
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}, end.status


@pytest.fixture
def mlflow_client(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    def client(folder):
        return MlflowClient(tracking_uri=folder.absolute().as_uri())

    return client


def mlflow_run(client, experiment="dumbo"):
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def mlflow_metrics(client, run):
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def trackio_logs(project, name):
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(project, name)
    return [{key: value for key, value in row.items() if key != "timestamp"} for row in rows]


SECRET = "hf_" + "Planted0" * 4
PASSWORD = "pass4711word"


def files_with(text, *folders):
    """Every file under `folders` in whose bytes `text` stands."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert files
    return [str(file) for file in files if text.encode() in file.read_bytes()]


def test_four_trackers_have_the_run_as_it_was_and_no_secret(
    tmp_path, model_folder, rows_file, trackio_folder, mlflow_client, monkeypatch, capfd
):
    rows = builders.write_rows(tmp_path / "rows.jsonl")
    file = write(
        tmp_path,
        model_folder,
        rows,
        *TRACKERS,
        trainer__data__val_set_size=4,
        trainer__arguments__max_steps=3,
        trainer__arguments__eval_strategy="steps",
        trainer__arguments__eval_steps=1,
        trainer__wandb__notes=f"data from https://me:{PASSWORD}@example.org/data",
        trainer__mlflow__tags={"origin": f"https://me:{PASSWORD}@example.org", "token": SECRET},
        trainer__trackio__group=f"https://me:{PASSWORD}@example.org",
    )
    word = f"model.tokenizer.path=https://me:{PASSWORD}@example.org"
    words = ["train", str(file), f"trainer.wandb.tags=[a, {SECRET}]"]
    monkeypatch.setattr(sys, "argv", ["dumbo", *words, word])
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert main(words) == 0
    said = capfd.readouterr()
    out, project = tmp_path / "out", tmp_path.name
    ours = metrics_of(out, timing=True)
    assert {"train/loss", "eval/loss", "perf/tokens_per_second"} <= by_name(ours).keys()
    assert len(ours) > len(joined(ours)) == 3, "training and evaluation are two calls at one step"

    assert wandb_history(out) == joined(ours)
    config = wandb_config(out)
    assert config["trainer.arguments.learning_rate"] == 1e-3
    assert config["datasets.0.path"] == str(rows)
    assert config["trainer.wandb.tags"] == ["a", "<redacted>"]
    records = wandb_records(out)
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    summary = {k: v for r in records if r.HasField("summary") for k, v in wandb_items(r.summary.update).items()}
    assert (summary["outcome"], summary["steps"]) == ("finished", 3)

    events = events_of(out / "tensorboard")
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    single = {tag: [(step, float(np.float32(x))) for step, x in values] for tag, values in by_name(ours).items()}
    assert scalars == single, "TensorBoard has 32 bits for a number"
    hyperparameters, status = hyperparameters_of(events)
    assert hyperparameters["trainer.arguments.learning_rate"] == 1e-3
    assert hyperparameters["trainer.arguments.use_cpu"] is True
    assert status == 1  # success
    assert texts_of(events, "outcome") == ["finished after 3 steps"]
    assert "    learning_rate: 0.001" in texts_of(events, "config")[0].replace("  " * 3, "  ")

    client = mlflow_client(tmp_path / "mlruns")
    run = mlflow_run(client)
    assert mlflow_metrics(client, run) == by_name(ours)
    assert run.data.params["trainer.arguments.learning_rate"] == "0.001"
    assert run.info.status == "FINISHED"
    assert (run.data.tags["outcome"], run.data.tags["steps"]) == ("finished", "3")

    from trackio.sqlite_storage import SQLiteStorage

    assert trackio_logs(project, "out") == ours
    kept = SQLiteStorage.get_run_config(project, "out")
    assert kept["_Username"] is None, "it is asked of the hub, which the token is for"
    assert kept["trainer.arguments.learning_rate"] == 1e-3
    (alert,) = SQLiteStorage.get_alerts(project)
    assert (alert["title"], alert["level"]) == ("finished after 3 steps", "info")

    written = [out, tmp_path / "mlruns", trackio_folder, tmp_path / "home"]
    assert files_with(SECRET, *written) == []
    assert files_with(PASSWORD, *written) == []
    assert files_with("<redacted>", out / "wandb", tmp_path / "mlruns", trackio_folder) != []
    for name in TRACKERS:
        assert len([line for line in said.out.splitlines() if line.startswith(f"{name}:")]) == 1
    assert said.err == ""
    assert "\x1b" not in said.out and "* " not in said.out


def make(name, folder, said=None, /, **options):
    """The collector of a plugin, as the run makes it; its run's folder is `folder/out`."""
    plugin = find_plugin(name, folder).type()
    defaults = {"wandb": {"mode": "offline"}, "trackio": {"project": folder.name}}
    plugin.options = type(plugin).options_type(**(defaults.get(name, {}) | options))
    plugin.services = SimpleNamespace(say=(said if said is not None else []).append)
    return plugin.get_metrics_collector()


def opened(name, folder, said=None, /, *, config=MappingProxyType({}), **options):
    out = folder / "out"
    out.mkdir(exist_ok=True)
    collector = make(name, folder, said, **options)
    collector.open(RunInfo("out", out, config))
    return collector


def end_state(name, folder, mlflow_client):
    """How the tracker says that the run ended, and after which step."""
    if name == "wandb":
        records = wandb_records(folder / "out")
        (code,) = [record.exit.exit_code for record in records if record.HasField("exit")]
        summary = {k: v for r in records if r.HasField("summary") for k, v in wandb_items(r.summary.update).items()}
        return code, summary["outcome"], summary["steps"]
    if name == "tensorboard":
        events = events_of(folder / "out" / "tensorboard")
        (text,) = texts_of(events, "outcome")
        return hyperparameters_of(events)[1], text
    if name == "mlflow":
        run = mlflow_run(mlflow_client(folder / "mlruns"))
        return run.info.status, run.data.tags["outcome"], run.data.tags["steps"]
    from trackio.sqlite_storage import SQLiteStorage

    (alert,) = SQLiteStorage.get_alerts(folder.name)
    return alert["level"], alert["title"], alert["step"]


ENDS = {
    ("wandb", "interrupted"): (255, "interrupted", 7),
    ("wandb", "failed"): (1, "failed", 7),
    ("tensorboard", "interrupted"): (0, "interrupted after 7 steps"),
    ("tensorboard", "failed"): (2, "failed after 7 steps"),
    ("mlflow", "interrupted"): ("KILLED", "interrupted", "7"),
    ("mlflow", "failed"): ("FAILED", "failed", "7"),
    ("trackio", "interrupted"): ("warn", "interrupted after 7 steps", 7),
    ("trackio", "failed"): ("error", "failed after 7 steps", 7),
}


@pytest.mark.parametrize(("name", "outcome"), ENDS)
def test_each_end_of_a_run_has_its_state(name, outcome, tmp_path, mlflow_client):
    collector = opened(name, tmp_path)
    collector.log_metrics({"train/loss": 1.0}, 7)
    collector.close(outcome)
    assert end_state(name, tmp_path, mlflow_client) == ENDS[name, outcome]


@pytest.mark.parametrize("name", TRACKERS)
def test_values_that_are_no_numbers_are_kept_as_they_are(name, tmp_path, mlflow_client):
    collector = opened(name, tmp_path)
    collector.log_metrics({"train/loss": float("nan"), "train/grad_norm": float("inf")}, 1)
    collector.log_metrics({"train/loss": float("-inf"), "train/grad_norm": 0.5}, 2)
    collector.close("finished")
    if name == "wandb":
        found = by_name(wandb_history(tmp_path / "out"))
    elif name == "tensorboard":
        events = events_of(tmp_path / "out" / "tensorboard")
        found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    elif name == "mlflow":
        client = mlflow_client(tmp_path / "mlruns")
        found = mlflow_metrics(client, mlflow_run(client))
    else:
        found = by_name(trackio_logs(tmp_path.name, "out"))
    assert repr(found["train/loss"]) == "[(1, nan), (2, -inf)]"
    assert repr(found["train/grad_norm"]) == "[(1, inf), (2, 0.5)]"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_that_measured_nothing_leaves_nothing_in_its_folder(name, tmp_path):
    collector = opened(name, tmp_path)
    assert name in ("mlflow", "trackio") or any((tmp_path / "out").iterdir())
    collector.close("failed")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_what_others_keep_in_that_folder_stays(name, tmp_path):
    kept = tmp_path / "out" / name / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("")
    opened(name, tmp_path).close("failed")
    assert kept.exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_was_not_opened_is_closed_without_a_word(name, tmp_path, capfd):
    make(name, tmp_path).close("failed")
    assert capfd.readouterr() == ("", "")
    assert name not in ("wandb", "tensorboard") or not (tmp_path / "out").exists()


# What is in the way, in a way natural to each tracker: (tracker, environment, options, what is said).
CLOSED_PORT = "127.0.0.1:9"
IN_THE_WAY = {
    "wandb without a key": (
        "wandb",
        {},
        {"mode": "online"},
        "wandb: no API key; run 'wandb login', set WANDB_API_KEY, or write trainer.wandb.mode: offline\n",
    ),
    "wandb without its server": (
        "wandb",
        {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://{CLOSED_PORT}", "WANDB_INIT_TIMEOUT": "1"},
        {"mode": "online"},
        "connection refused.*; write trainer.wandb.mode: offline to keep the run on disk and send it later\n",
    ),
    "wandb with a key of another kind": (
        "wandb",
        {"WANDB_API_KEY": "short"},
        {"mode": "online"},
        "wandb: .*API key.*\n",
    ),
    "wandb without its folder": (
        "wandb",
        {},
        {"dir": "file/x"},
        "trainer.wandb.dir: file/x cannot be written to",
    ),
    "tensorboard without its folder": (
        "tensorboard",
        {},
        {"log_dir": "file/x"},
        r"run.yaml:\d+:\d+: trainer.tensorboard.log_dir: file/x/out cannot be written to: Not a directory",
    ),
    "tensorboard in the cloud": ("tensorboard", {}, {"log_dir": "s3://a/b"}, "written into a folder on this machine"),
    "mlflow without its server": (
        "mlflow",
        {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        {"tracking_uri": f"http://me:{PASSWORD}@{CLOSED_PORT}"},
        "mlflow: .*Connection refused.*; is trainer.mlflow.tracking_uri .*right",
    ),
    "mlflow without its server in the environment": (
        "mlflow",
        {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_TRACKING_URI": f"http://{CLOSED_PORT}"},
        {},
        "mlflow: .*; is trainer.mlflow.tracking_uri .*MLFLOW_TRACKING_URI.* right",
    ),
    "mlflow without its folder": (
        "mlflow",
        {},
        {"tracking_uri": "file/x/mlruns"},
        "trainer.mlflow.tracking_uri: .*cannot be written to: Not a directory",
    ),
    "trackio elsewhere": ("trackio", {}, {"dir": "other"}, "trackio: this process uses Trackio with the folder "),
    "trackio on a server": ("trackio", {"TRACKIO_SERVER_URL": "http://x"}, {}, "trackio: TRACKIO_SERVER_URL is set"),
    "trackio with a name that it keeps": (
        "trackio",
        {},
        {"project": "registry-x"},
        "trackio: ValueError: Project",
    ),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_a_tracker_that_cannot_open_stops_the_run_before_the_model_loads(
    case, tmp_path, model_folder, rows_file, monkeypatch, capfd
):
    name, variables, options, message = IN_THE_WAY[case]
    (tmp_path / "file").write_text("")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)  # a person could be asked, and is not
    changes = {f"trainer__{name}__{key}": value for key, value in options.items()}
    before = {file.name for file in tmp_path.iterdir()} | {"run.yaml"}
    file = write(tmp_path, model_folder, rows_file, name, **changes)
    began = time.monotonic()
    assert main([str(file)]) == 2
    assert time.monotonic() - began < 60, "it waits for minutes where nobody limits it"
    said = capfd.readouterr()
    assert re.search(message, said.err), said
    assert len(said.err.splitlines()) <= 2, "a line, and perhaps a hint"
    assert "model:" not in said.out
    assert PASSWORD not in said.out + said.err
    assert {file.name for file in tmp_path.iterdir()} - before <= {"other"}


SABOTEUR = """
import os, shutil, subprocess
from pathlib import Path

from dumbo.plugin_loader import CallbackPlugin


class SaboteurPlugin(CallbackPlugin):
    def get_callbacks(self, config):
        from transformers import TrainerCallback

        class Break(TrainerCallback):
            def on_step_end(self, args, state, control, **more):
                if state.global_step == 2:
                    shutil.rmtree("out/tensorboard")
                    shutil.rmtree("mlruns")
                    for file in Path("tracks").iterdir():
                        file.unlink()
                    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
                    for line in listed.splitlines():
                        pid, parent, program = line.split(None, 2)
                        if int(parent) == os.getpid() and "wandb-core" in program:
                            os.kill(int(pid), 9)

        return [Break()]
"""


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_store_that_is_removed_in_the_middle_is_an_error(name, tmp_path, trackio_folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    collector = opened(name, tmp_path, **({"flush_secs": 0} if name == "tensorboard" else {}))
    collector.log_metrics({"train/loss": 1.0}, 1)
    if name == "trackio":
        for file in trackio_folder.glob(f"{tmp_path.name}.*"):
            file.unlink()
    else:
        shutil.rmtree(tmp_path / ("mlruns" if name == "mlflow" else "out/tensorboard"))
    with pytest.raises(TrackerError):
        collector.log_metrics({"train/loss": 1.0}, 2)


@pytest.mark.full
def test_trackers_that_die_in_the_middle_are_told_of_once_and_the_run_goes_on(tmp_path, model_folder, rows_file):
    """In a process of its own, for what libraries do when Python ends."""
    (tmp_path / "saboteur.py").write_text(SABOTEUR)
    plugins = [*SHIPPED, *TRACKERS, "./saboteur.py:SaboteurPlugin"]
    changes = {"trainer.arguments.max_steps": 5, "plugins": plugins, "trainer.wandb.mode": "offline"}
    changes |= {"trainer.trackio.dir": "tracks", "trainer.output_dir": "out", "trainer.tensorboard.flush_secs": 0}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    result = builders.dumbo(file, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert sorted(re.findall(r"^dumbo: '(\w+)' failed in log_metrics", result.stderr, re.M)) == sorted(TRACKERS)
    assert len(lines) == len(TRACKERS), result.stderr
    assert [row["step"] for row in metrics_of(tmp_path / "out")] == [1, 2, 3, 4, 5]
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def wandb_run(folder):
    (run,) = [record.run for record in wandb_records(folder) if record.HasField("run")]
    return run


WANDB_OPTIONS = {
    "project": ("p", lambda run: run.project, "dumbo"),
    "name": ("n", lambda run: run.display_name, "out"),
    "entity": ("team", lambda run: run.entity, ""),
    "group": ("g", lambda run: run.run_group, ""),
    "tags": (("a", "b"), lambda run: tuple(run.tags), ()),
    "notes": ("words", lambda run: run.notes, ""),
}


@pytest.mark.parametrize("written", [True, False])
def test_options_of_wandb(written, tmp_path):
    options = {key: value for key, (value, _, _) in WANDB_OPTIONS.items()} if written else {}
    if written:
        options["dir"] = "elsewhere"
    said = []
    opened("wandb", tmp_path, said, **options).close("finished")
    run = wandb_run(tmp_path / ("elsewhere" if written else "out"))
    for key, (value, read, default) in WANDB_OPTIONS.items():
        assert read(run) == (value if written else default), key
    (folder,) = (tmp_path / ("elsewhere" if written else "out") / "wandb").glob("offline-run-*")
    shown = folder.relative_to(tmp_path)
    assert said == [f"wandb: offline run in {shown}; 'wandb sync {shown}' uploads it"]


def test_what_is_not_written_for_wandb_comes_from_its_variables(tmp_path, monkeypatch):
    for name, value in {"WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_ENTITY": "e", "WANDB_RUN_GROUP": "g"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    opened("wandb", tmp_path, mode=None).close("finished")
    run = wandb_run(tmp_path / "out")
    assert (run.project, run.display_name, run.entity, run.run_group) == ("p", "n", "e", "g")


def test_wandb_that_the_user_switched_off_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said = []
    collector = opened("wandb", tmp_path, said, mode=None)
    collector.log_metrics({"train/loss": 1.0}, 1)
    collector.close("finished")
    assert said == ["wandb: switched off by WANDB_MODE: nothing is kept"]
    assert list((tmp_path / "out").iterdir()) == []


def test_wandb_takes_no_step_that_is_over(tmp_path):
    collector = opened("wandb", tmp_path)
    collector.log_metrics({"train/loss": 1.0}, 5)
    with pytest.raises(TrackerError, match="no metrics of step 3 after those of step 5"):
        collector.log_metrics({"train/loss": 1.0}, 3)


def test_wandb_leaves_the_program_s_exit_alone(tmp_path):
    leave, hook = sys.exit, sys.excepthook
    collector = opened("wandb", tmp_path)
    assert (sys.exit, sys.excepthook) == (leave, hook)
    collector.close("finished")
    assert (sys.exit, sys.excepthook) == (leave, hook)


def test_options_of_tensorboard(tmp_path):
    said = []
    for flush_secs in (0, 3600):
        folder = tmp_path / str(flush_secs)
        collector = opened("tensorboard", tmp_path, said, log_dir=str(folder), flush_secs=flush_secs)
        (file,) = folder.glob("out/events.out.tfevents.*")
        before = file.stat().st_size
        collector.log_metrics({"train/loss": 1.0}, 1)
        assert (file.stat().st_size > before) is (flush_secs == 0)
        collector.close("finished")
        assert events_of(folder / "out").Scalars("train/loss")[0].value == 1.0
        assert said.pop() == f"tensorboard: tensorboard --logdir {folder} shows the run"


def test_options_of_mlflow(tmp_path, mlflow_client):
    options = {"experiment": "e", "name": "n", "tags": {"a": "b"}, "notes": "words", "tracking_uri": "store"}
    said = []
    opened("mlflow", tmp_path, said, **options).close("finished")
    run = mlflow_run(mlflow_client(tmp_path / "store"), "e")
    assert (run.info.run_name, run.data.tags["a"], run.data.tags["mlflow.note.content"]) == ("n", "b", "words")
    assert not (tmp_path / "mlruns").exists()
    shown = f"'mlflow ui --backend-store-uri {tmp_path}/store', with MLFLOW_ALLOW_FILE_STORE=true, shows it"
    assert said == [f"mlflow: run 'n' in experiment 'e', {shown}"]
    assert run.info.user_id in (None, "", "unknown")


def test_what_is_not_written_for_mlflow_comes_from_its_variables(tmp_path, mlflow_client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "e")
    opened("mlflow", tmp_path).close("finished")
    assert mlflow_run(mlflow_client(tmp_path / "elsewhere"), "e").info.run_name == "out"


def test_mlflow_takes_every_key_and_long_values(tmp_path, mlflow_client):
    config = {"a#b": 1, "a?b": 2, "c/d": "", "long": "x" * 7000, "list": ["é", None], "nested": [{"on": True}]}
    collector = opened("mlflow", tmp_path, config=config)
    collector.log_metrics({"eval/exact@1": 1.0}, 1)
    collector.close("finished")
    run = mlflow_run(mlflow_client(tmp_path / "mlruns"))
    long = run.data.params.pop("long")
    assert len(long) == 6000
    assert long.endswith("... (7000 characters)")
    expected = {"a_b": "1", "a_b_2": "2", "c_d": "", "list": '["é", null]', "nested.0.on": "true"}
    assert run.data.params == expected
    assert run.data.metrics == {"eval/exact_1": 1.0}


def test_an_experiment_that_was_deleted_is_refused(tmp_path, mlflow_client):
    opened("mlflow", tmp_path).close("finished")
    client = mlflow_client(tmp_path / "mlruns")
    client.delete_experiment(client.get_experiment_by_name("dumbo").experiment_id)
    with pytest.raises(RunError, match="the experiment 'dumbo' was deleted; restore it, or name another"):
        opened("mlflow", tmp_path)


def test_mlflow_in_a_database_needs_its_package(tmp_path, model_folder, rows_file, monkeypatch, capsys):
    if find_spec("sqlalchemy"):
        pytest.skip("SQLAlchemy is installed")
    file = write(tmp_path, model_folder, rows_file, "mlflow", trainer__mlflow__tracking_uri="sqlite:///x.db")
    assert main(["check", str(file)]) == 2
    assert "trainer.mlflow.tracking_uri: MLflow opens databases with the package SQLAlchemy" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:word@host/db")
    with pytest.raises(RunError, match="mlflow: postgresql.psycopg2://me:<redacted>@host/db needs the package"):
        opened("mlflow", tmp_path)


def test_options_of_trackio(tmp_path, trackio_folder):
    said = []
    project = f"{tmp_path.name}-p"
    collector = opened("trackio", tmp_path, said, project=project, name="n", group="g", dir=str(trackio_folder))
    collector.log_metrics({"train/loss": 1.0}, 1)
    collector.close("finished")
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs(project) == ["n"]
    assert SQLiteStorage.get_run_config(project, "n")["_Group"] == "g"
    show = f"'TRACKIO_DIR={trackio_folder} trackio show --project {project}' shows it"
    assert said == [f"trackio: run 'n' in {trackio_folder}; {show}"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_can_be_listed_alone(name, tmp_path, model_folder, rows_file, monkeypatch, capsys):
    file = builders.write_config(tmp_path, model_folder, rows_file, {"plugins": [*SHIPPED, name]})
    assert main(["check", str(file)]) == 0, capsys.readouterr()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_is_imported_when_its_tracker_opens_and_not_before(name):
    modules = imports.loaded_by(f"import dumbo.plugins.{name}.tracking", *TRACKERS, "torch")
    assert modules == []


def wandb_answer(path, body):
    asked = json.loads(body or "{}") if path == "/graphql" else {}
    said = asked.get("variables", {})
    if "upsertBucket" in asked.get("query", ""):
        project = {"id": "1", "name": "dumbo", "entity": {"id": "2", "name": "me"}}
        bucket = {"id": "3", "name": said["name"], "displayName": "n", "project": project, "historyLineCount": 0}
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
    if "createRunFiles" in asked.get("query", ""):
        return {"data": {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": []}}}
    return {"data": {}}


def mlflow_answer(path, body):
    if "get-by-name" in path:
        return {"experiment": {"experiment_id": "1", "name": "dumbo", "lifecycle_stage": "active"}}
    return {"run": {"info": {"run_id": "a" * 32, "experiment_id": "1", "status": "RUNNING"}, "data": {}}}


@pytest.fixture
def serve():
    """Start a server that answers as little as a tracker needs; returns it, and the list of what it was sent."""
    servers = []

    def start(answer):
        sent = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                sent.append((self.path, body))
                reply = json.dumps(answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_PUT = do_POST  # noqa: N815 (the names are http.server's)

            def log_message(self, *words):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, sent

    yield start
    for server in servers:
        stop(server)


def stop(server):
    server.shutdown()
    server.server_close()


def online(tracker, serve, monkeypatch):
    server, sent = serve(wandb_answer if tracker == "wandb" else mlflow_answer)
    address = f"127.0.0.1:{server.server_port}"
    if tracker == "wandb":
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{address}")
        monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
        return server, sent, {"mode": "online"}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return server, sent, {"tracking_uri": f"http://me:{PASSWORD}@{address}"}


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_server_gets_the_run_and_its_end(tracker, tmp_path, serve, monkeypatch):
    _, sent, options = online(tracker, serve, monkeypatch)
    said = []
    collector = opened(tracker, tmp_path, said, config={"a": {"b": 1}}, **options)
    collector.log_metrics({"train/loss": 1.5}, 1)
    collector.log_metrics({"eval/loss": 2.5}, 1)
    collector.log_metrics({"train/loss": float("nan")}, 2)
    collector.close("interrupted")
    bodies = [json.loads(body) for _, body in sent if body.startswith("{")]
    if tracker == "mlflow":
        metrics = [metric for body in bodies for metric in body.get("metrics", ())]
        found = [(metric["key"], str(metric["value"]), int(metric["step"])) for metric in metrics]
        assert found == [("train/loss", "1.5", 1), ("eval/loss", "2.5", 1), ("train/loss", "NaN", 2)]
        assert [body["params"] for body in bodies if "params" in body] == [[{"key": "a.b", "value": "1"}]]
        assert [body["status"] for body in bodies if "status" in body] == ["KILLED"]
    else:
        streams = [body for body in bodies if "files" in body and "query" not in body]
        parts = [body["files"]["wandb-history.jsonl"] for body in streams if "wandb-history.jsonl" in body["files"]]
        rows = [json.loads(row) for part in parts for row in part["content"]]
        rows = [{key: value for key, value in row.items() if "/" in key or key == "_step"} for row in rows]
        assert rows[0] == {"_step": 1, "train/loss": 1.5, "eval/loss": 2.5}
        assert (rows[1]["_step"], str(rows[1]["train/loss"])) == (2, "nan")
        assert streams[-1]["exitcode"] == 255
        upserts = [body for body in bodies if "upsertBucket" in body.get("query", "")]
        config = json.loads(upserts[0]["variables"]["config"])
        assert config["a.b"]["value"] == 1
    assert len(said) == 1
    assert PASSWORD not in said[0]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_server_that_goes_away_is_told_of_once_and_nobody_waits_for_it(tracker, tmp_path, serve, monkeypatch, capfd):
    server, _, options = online(tracker, serve, monkeypatch)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    metrics = Metrics([(tracker, make(tracker, tmp_path, **options))])
    (tmp_path / "out").mkdir()
    metrics.open(RunInfo("out", tmp_path / "out", {}))
    metrics.log({"train/loss": 1.0}, 1)
    stop(server)
    began = time.monotonic()
    for step in range(2, 5):
        metrics.log({"train/loss": 1.0}, step)
    metrics.close("finished")
    assert time.monotonic() - began < 30
    (line,) = capfd.readouterr().err.splitlines()
    place = {"wandb": "close", "mlflow": "log_metrics"}[tracker]
    assert line.startswith(f"dumbo: '{tracker}' failed in {place} and gets no more metrics: ")
    assert ("'wandb sync " if tracker == "wandb" else "Connection refused") in line
    assert PASSWORD not in line
    if tracker == "wandb":
        assert [(row["step"], row["train/loss"]) for row in wandb_history(tmp_path / "out")] == [
            (step, 1.0) for step in range(1, 5)
        ]
