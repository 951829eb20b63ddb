"""A run's folder has one owner: a living one is respected, a dead one replaced, on this machine and on others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dumbo import run_lock
from dumbo.errors import ConfigError
from dumbo.run_folder import claim_folder, discard_folder, hold_folder, refuse_held_folder, remove_if_empty
from dumbo.run_lock import LOCK_NAME, FolderInUse, Owner, RunLock, hold_run, owner_of
from tests import builders

HOLD = """
import sys, time
from pathlib import Path
from dumbo.run_lock import RunLock

lock = RunLock.take(Path(sys.argv[1]), "theirs.yaml")
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""

FORKING = """
import os, sys, time
from pathlib import Path
from dumbo.run_lock import RunLock

lock = RunLock.take(Path(sys.argv[1]))
worker = os.fork()
if not worker:
    sys.stdin.readline()
    lock.release()
    os._exit(0)
print(worker, flush=True)
time.sleep(60)
"""

RACE = """
import sys, time
from pathlib import Path
from dumbo.errors import DumboError
from dumbo.run_folder import claim_folder

wanted = sys.argv[1] if len(sys.argv) > 1 else None
print("ready", flush=True)
sys.stdin.readline()
try:
    lock = claim_folder(wanted, Path("run.yaml"))
except DumboError as error:
    print(f"refused: {error}".splitlines()[0], flush=True)
else:
    print(f"got {lock.folder}", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def start():
    """Starts Python programs that talk through pipes; those that still run at the end are killed."""
    started = []

    def begin(program, *words, cwd=None):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words)],
            cwd=cwd,
            env=builders.clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


def write_lock(folder, *, age=0.0, **changes):
    """The lock file of a process that nothing is known of but this."""
    said = {"pid": 4711, "host": "gpu7", "machine": "another", "user": "anna", "since": "2026-11-21T05:30:00Z"}
    folder.mkdir(exist_ok=True)
    file = folder / LOCK_NAME
    file.write_text(json.dumps({**said, "config": "big.yaml", **changes}))
    os.utime(file, (time.time() - age,) * 2)
    return file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_held_folder_says_who_holds_it_and_a_free_one_says_nothing(tmp_path):
    assert owner_of(tmp_path) is None
    assert owner_of(tmp_path / "nowhere") is None
    with hold_run(tmp_path / "new" / "run", "run.yaml") as lock:
        assert lock.folder == tmp_path / "new" / "run"
        owner = owner_of(lock.folder)
        assert (owner.pid, owner.config, owner.is_here) == (os.getpid(), "run.yaml", True)
        assert names(lock.folder) == [LOCK_NAME]
    assert owner_of(tmp_path / "new" / "run") is None
    assert names(tmp_path / "new" / "run") == []


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path, start):
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(FolderInUse) as caught:
        RunLock.take(tmp_path)
    owner = caught.value.owner
    assert (owner.pid, owner.config) == (process.pid, "theirs.yaml")
    first, second = str(caught.value).splitlines()
    assert first == (
        f"{tmp_path} is in use by process {process.pid} of {owner.user} on {owner.host}, since {owner.since}"
        " (theirs.yaml)"
    )
    assert second == "    wait until it has ended, or stop it; or name another folder"
    assert names(tmp_path) == [LOCK_NAME]
    tell(process)
    assert process.stdout.readline() == "released\n"
    with hold_run(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, start):
    process = start(HOLD, tmp_path)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK_NAME).exists()
    assert owner_of(tmp_path) is None
    with hold_run(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()
        assert names(tmp_path) == [LOCK_NAME]


def test_workers_that_outlive_their_killed_run_do_not_hold_its_folder(tmp_path, start):
    process = start(FORKING, tmp_path)
    worker = int(process.stdout.readline())
    assert owner_of(tmp_path).pid == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(worker, 0)  # It lives.
    with hold_run(tmp_path):
        tell(process)  # It ends as the run would have: by giving free what it does not hold.
        assert process.stdout.read() == "", "its end is seen by the end of its output"
        assert owner_of(tmp_path).pid == os.getpid()


@pytest.mark.parametrize("wanted", ["out", None])
def test_of_processes_that_start_at_once_one_gets_a_folder_that_is_named_and_each_one_of_its_own(
    tmp_path, start, wanted
):
    processes = [start(RACE, *([wanted] if wanted else []), cwd=tmp_path) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        tell(process)
    said = [process.stdout.readline() for process in processes]
    got = [line for line in said if line.startswith("got ")]
    if wanted is None:
        assert len(set(got)) == 4
    else:
        assert got == ["got out\n"], said
        assert sum("trainer.output_dir: out is in use by process " in line for line in said) == 3
        assert names(tmp_path / "out") == [LOCK_NAME]


def test_an_owner_on_another_machine_lives_while_its_heart_beats(tmp_path):
    write_lock(tmp_path, age=90)
    with pytest.raises(
        FolderInUse, match="in use by process 4711 of anna on gpu7, since 2026-11-21T05:30:00Z"
    ) as caught:
        RunLock.take(tmp_path)
    assert "where it died with its machine, start again in 2 minutes" in caught.value.hint
    assert owner_of(tmp_path).host == "gpu7"
    write_lock(tmp_path, age=150)
    assert owner_of(tmp_path) is None
    with hold_run(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()


def test_an_owner_of_this_machine_without_the_systems_lock_is_dead_however_fresh_its_file(tmp_path):
    here = Owner.this_process()
    for machine in (here.machine, ""):  # A system that has no name for its start is known by its host.
        write_lock(tmp_path, host=here.host, machine=machine)
        assert owner_of(tmp_path) is None
        RunLock.take(tmp_path).release()


def test_a_clock_that_jumps_kills_nobody_and_keeps_no_dead_owner_alive(tmp_path, start, monkeypatch):
    process = start(HOLD, tmp_path / "here")
    process.stdout.readline()
    write_lock(tmp_path / "there", age=20)
    write_lock(tmp_path / "dead", age=-9999)
    for offset in (-1e6, 1e6):  # This machine's clock; the file system has one of its own.
        monkeypatch.setattr("time.time", lambda offset=offset: time.clock_gettime(time.CLOCK_REALTIME) + offset)
        assert owner_of(tmp_path / "here").pid == process.pid
        assert owner_of(tmp_path / "there").pid == 4711
        assert owner_of(tmp_path / "dead") is None, "a date of the future is not renewed by anybody"
        os.utime(tmp_path / "here" / LOCK_NAME, (time.time(),) * 2)
    assert owner_of(tmp_path / "here").pid == process.pid, "on one machine dates do not count"


def test_the_heart_beats_without_the_main_thread(tmp_path):
    lock = RunLock.take(tmp_path, beat=0.02)
    try:
        os.utime(tmp_path / LOCK_NAME, (1, 1))
        deadline = time.monotonic() + 30
        while (tmp_path / LOCK_NAME).stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK_NAME).stat().st_mtime > 1e9
    finally:
        lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\x00\xff" * 9])
def test_a_lock_that_nobody_can_read_holds_while_it_is_fresh(tmp_path, text):
    file = tmp_path / LOCK_NAME
    file.write_text(text)
    for call in (RunLock.take, owner_of):
        with pytest.raises(FolderInUse, match="is in use by another process"):
            call(tmp_path)
    os.utime(file, (1, 1))
    assert owner_of(tmp_path) is None
    RunLock.take(tmp_path).release()
    assert names(tmp_path) == []


def test_what_a_lock_says_cannot_write_over_the_terminal(tmp_path):
    write_lock(tmp_path, user="\x1b[2Janna\n")
    assert owner_of(tmp_path).user == "?[2Janna?"


def test_without_locks_of_the_system_the_heartbeat_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "fcntl", None)  # As on Windows.
    here = Owner.this_process()
    with hold_run(tmp_path), pytest.raises(FolderInUse):
        RunLock.take(tmp_path)
    write_lock(tmp_path, host=here.host, machine=here.machine, age=90)
    with pytest.raises(FolderInUse):
        RunLock.take(tmp_path)
    write_lock(tmp_path, host=here.host, machine=here.machine, age=150)
    with hold_run(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()
    assert names(tmp_path) == []


def test_a_file_system_without_links_has_locks_all_the_same(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with hold_run(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()
        with pytest.raises(FolderInUse):
            RunLock.take(tmp_path)
    assert names(tmp_path) == []


def test_a_lock_ends_well_though_its_folder_or_its_file_is_gone_or_somebody_elses(tmp_path):
    lock = hold_folder(tmp_path / "out", Path("run.yaml"))
    discard_folder(lock.folder)
    assert names(lock.folder) == [LOCK_NAME], "what is held stays"
    lock.release()
    lock.release()
    remove_if_empty(lock.folder)
    assert names(tmp_path) == []
    lock = RunLock.take(tmp_path / "out")
    (tmp_path / "out" / LOCK_NAME).unlink()
    (tmp_path / "out").rmdir()
    other = RunLock.take(tmp_path / "out")
    lock.release()
    assert owner_of(tmp_path / "out").pid == os.getpid(), "it is not its own file that it would remove"
    other.release()


def test_a_folder_in_use_is_no_folder_for_a_run_or_for_its_check(tmp_path):
    with hold_run(tmp_path / "out"):
        for call in (claim_folder, lambda folder, file: refuse_held_folder(Path(folder))):
            with pytest.raises(ConfigError, match="trainer.output_dir: .*out is in use by process"):
                call(str(tmp_path / "out"), Path("run.yaml"))
    claim_folder(str(tmp_path / "out"), Path("run.yaml")).release()


def test_what_a_run_left_that_was_killed_before_its_first_step_is_in_nobodys_way(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text('{"outcome": "running"}')
    (out / "run.yaml").write_text("model: {}")
    (out / "metrics.jsonl").write_text("")
    refuse_held_folder(out)
    claim_folder(str(out), tmp_path / "run.yaml").release()
    assert names(out) == []


@pytest.mark.parametrize(
    "files",
    [
        {"summary.json": '{"outcome": "failed"}'},
        {"summary.json": "{"},
        {"run.yaml": "model: {}"},
        {"summary.json": '{"outcome": "running"}', "metrics.jsonl": '{"step": 1}\n'},
        {"summary.json": '{"outcome": "running"}', "samples.jsonl": ""},
        {"summary.json": '{"outcome": "running"}', "checkpoints/step-000001/model.safetensors": ""},
    ],
)
def test_a_folder_with_anything_to_keep_is_refused_and_stays_as_it_is(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="already holds a run") as caught:
        claim_folder(str(tmp_path), Path("run.yaml"))
    hints = caught.value.problems[0].hints
    assert hints[0] == "to go on with it: dumbo train CONFIG --resume"
    assert hints[1].startswith("or name another folder")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_configuration_itself_is_never_taken_for_what_a_run_left(tmp_path):
    (tmp_path / "summary.json").write_text('{"outcome": "running"}')
    (tmp_path / "run.yaml").write_text("model: {}")
    claim_folder(str(tmp_path), tmp_path / "run.yaml").release()
    assert (tmp_path / "run.yaml").read_text() == "model: {}"
