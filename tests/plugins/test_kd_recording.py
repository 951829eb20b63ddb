"""What a teacher said, recorded: going on, looking again, whose recording it is, and training on it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dumbo.plugins.kd.options import KdOptions
from dumbo.plugins.kd.recording import Recording, is_same_teacher, teacher_name
from tests import builders
from tests.plugins.kd_parts import config_of, make_parts, serving
from tests.run.whole_runs import losses_of, metrics_of, printed_by, run_here


@pytest.fixture(scope="module")
def parts(tmp_path_factory, model_folder):
    return make_parts(tmp_path_factory.mktemp("kd"), model_folder)


def test_a_recording_goes_on_where_it_was_and_trains_as_its_teacher_does(parts, tmp_path, capsys):
    recorded = {"folder": str(tmp_path / "said"), "top_k": 512, "dtype": "float32"}
    kd = {"teacher": {"path": str(parts.teacher)}, "recorded": recorded, "outside": "ignored"}
    file = config_of(parts, tmp_path, kd)
    said = printed_by(capsys, 2, "train", str(file)).err
    assert "there is no recording in" in said and "dumbo teacher-logprobs" in said
    words = ("teacher-logprobs", str(file), "--shard-tokens", "200", "--batch-tokens", "256")
    assert "20 rows" in printed_by(capsys, 0, *words).out
    shards = sorted((tmp_path / "said").glob("*.teacher_ids"))
    assert len(shards) > 2
    before = {shard: shard.read_bytes() for shard in shards}
    shards[1].write_bytes(b"half")
    assert "is not whole: 1 of" in printed_by(capsys, 2, "train", str(file)).err
    assert f"going on: {len(shards) - 1} of {len(shards)}" in printed_by(capsys, 0, *words).out
    assert {shard: shard.read_bytes() for shard in shards} == before
    assert "it was whole already, and checked" in printed_by(capsys, 0, *words).out
    live = config_of(parts, tmp_path / "live", {"teacher": kd["teacher"]})
    ours, theirs = (
        [row["train/kd_loss"] for row in metrics_of(run_here(one)) if "train/kd_loss" in row] for one in (file, live)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)
    for change, message in (
        ("trainer.seed=8", "what a teacher said of other rows"),
        ("trainer.kd.recorded.top_k=4", "has 512"),
    ):
        elsewhere = f"trainer.output_dir={tmp_path / 'elsewhere'}"
        assert message in printed_by(capsys, 2, "train", str(file), change, elsewhere).err
    assert "of another temperature" in printed_by(capsys, 2, *words, "trainer.kd.temperature=2.0").err
    facts = tmp_path / "said" / "recording.json"
    facts.write_text(facts.read_text().replace('"vocabulary": "', '"vocabulary": "0'))
    assert "of another tokenizer's tokens" in printed_by(capsys, 2, "train", str(file), elsewhere).err


def test_a_recording_that_the_teacher_does_not_repeat_is_never_trained_on(parts, tmp_path, capsys, monkeypatch):
    """Neither at once, nor when the same is asked for again; until what is wrong with it is gone."""
    # With opinions: what was said of another place is far from what is said of this one.
    teacher = builders.save_tiny_model(tmp_path / "teacher", builders.build_tokenizer(), initializer_range=0.5)
    kd = {"teacher": {"path": str(teacher)}, "recorded": {"folder": str(tmp_path / "said"), "top_k": 4}}
    file = config_of(parts, tmp_path, kd)
    words = ("teacher-logprobs", str(file), "--shard-tokens", "800")
    with monkeypatch.context() as patches:
        write = Recording.write
        moved = lambda values: {name: np.roll(found, 1, axis=0) for name, found in values.items()}  # noqa: E731
        patches.setattr(Recording, "write", lambda self, number, values: write(self, number, moved(values)))
        assert "says something else of row 0, token 1" in printed_by(capsys, 2, *words).err
    assert len(list((tmp_path / "said").glob("*.teacher_ids"))) == 3, "it is whole"
    said = printed_by(capsys, 2, "train", str(file)).err
    assert "was not checked to its end" in said and "dumbo teacher-logprobs" in said
    again = printed_by(capsys, 2, *words)
    assert "says something else of row 0" in again.err and "whole" not in again.out
    for shard in (tmp_path / "said").glob("0000*"):
        shard.unlink()
    assert "whole" not in printed_by(capsys, 0, *words).out
    # What is no number is not near to anything.
    shard = tmp_path / "said" / "00001.teacher_logprobs"
    good, size = shard.read_bytes(), shard.stat().st_size
    facts = tmp_path / "said" / "recording.json"
    facts.write_text(facts.read_text().replace('"is_checked": true', '"is_checked": false'))
    shard.write_bytes(np.full(size // 2, np.nan, np.float16).tobytes())
    assert "says something else of row" in printed_by(capsys, 2, *words).err
    shard.write_bytes(good)
    assert "it was whole, and is checked now" in printed_by(capsys, 0, *words).out
    assert "it was whole already, and checked" in printed_by(capsys, 0, *words).out
    assert losses_of(run_here(file, "trainer.arguments.max_steps=1"), "train/kd_loss")[0] > 0


def test_what_is_written_anew_is_not_checked_before_it_was_looked_at(parts, tmp_path, capsys, monkeypatch):
    """A file that was lost is written by a process that is killed before it looks."""
    kd = {"teacher": {"path": str(parts.teacher)}, "recorded": {"folder": str(tmp_path / "said"), "top_k": 2}}
    file = config_of(parts, tmp_path, kd)
    words = ("teacher-logprobs", str(file), "--shard-tokens", "800")
    printed_by(capsys, 0, *words)
    assert Recording.open(tmp_path / "said").is_checked
    (tmp_path / "said" / "00001.teacher_ids").unlink()

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr("dumbo.plugins.kd.command._look_again", killed)
        printed_by(capsys, 130, *words)
    assert not Recording.open(tmp_path / "said").is_checked
    assert "was not checked" in printed_by(capsys, 2, "train", str(file)).err


def test_a_recording_of_a_server_is_what_it_says_in_16_bits_and_trains_without_it(parts, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(parts.teacher, dtype=torch.float32)
    recorded = {"folder": str(tmp_path / "served"), "top_k": 6}
    with serving(model) as server:
        file = config_of(parts, tmp_path, {"server": {"url": f"{server.address}/v1/"}, "recorded": recorded})
        printed_by(capsys, 0, "teacher-logprobs", str(file))
        assert all(request["prompt_logprobs"] == 6 for request in server.asked)
        number = len(server.asked)
        assert losses_of(run_here(file, "trainer.arguments.max_steps=1"), "train/kd_loss")[0] > 0
        assert len(server.asked) == number, "nobody is asked any more"
    exact = {"folder": str(tmp_path / "exact"), "top_k": 6, "dtype": "float32"}
    live = config_of(parts, tmp_path / "live", {"teacher": {"path": str(parts.teacher)}, "recorded": exact})
    printed_by(capsys, 0, "teacher-logprobs", str(live))
    ours, theirs = (tmp_path / name / "00000.teacher_logprobs" for name in ("served", "exact"))
    logs, same = np.fromfile(ours, np.float16), np.fromfile(theirs, np.float32)
    assert len(logs) == len(same) > 2000 * 6 and Recording.open(tmp_path / "served").facts.dtype == "float16"
    assert np.allclose(np.exp(logs.astype(float)), np.exp(same), rtol=1e-2) and np.isfinite(logs).mean() > 0.9
    elsewhere = ("trainer.kd.server.url=http://127.0.0.1:9", f"trainer.output_dir={tmp_path / 'elsewhere'}")
    said = printed_by(capsys, 2, "train", str(file), *elsewhere).err
    assert f"is what another teacher said: {server.address}" in said and "remove trainer.kd.server" in said


def test_a_recording_of_another_teacher_is_refused(parts, tmp_path, capsys):
    """And not one of the same folder by another name, or of one that is gone."""
    teacher, second = tmp_path / "teacher", tmp_path / "second"
    for folder in (teacher, second):
        shutil.copytree(parts.teacher, folder)
    recorded = {"folder": str(tmp_path / "said"), "top_k": 2}
    file = config_of(parts, tmp_path, {"teacher": {"path": str(teacher)}, "recorded": recorded})
    printed_by(capsys, 0, "teacher-logprobs", str(file))
    said = printed_by(capsys, 2, "train", str(file), f"trainer.kd.teacher.path={second}").err
    assert f"is what another teacher said: {teacher}" in said
    assert "remove trainer.kd.teacher" in said and "trainer.kd.teacher.path" in said
    assert (
        f"of another teacher ({teacher})"
        in printed_by(capsys, 2, "teacher-logprobs", str(file), f"trainer.kd.teacher.path={second}").err
    )
    shutil.rmtree(teacher)
    run_here(file, f"trainer.kd.teacher.path={teacher}/", "trainer.arguments.max_steps=1")
    run_here(file, "trainer.kd.teacher=null", "trainer.arguments.max_steps=1", f"trainer.output_dir={tmp_path / 'own'}")


def test_a_teacher_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "models" / "big").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("HOME", str(tmp_path))
    name = lambda path: teacher_name(KdOptions(teacher={"path": path}))  # noqa: E731
    ways = ["big", "big/", "./big", "../models/big", "~/models/big", str(tmp_path / "models" / "big")]
    assert {name(way) for way in ways} == {ways[-1]}
    Path("big").rmdir()
    assert all(is_same_teacher(name(way), ways[-1]) for way in ways)
    assert not is_same_teacher(name("other"), ways[-1]) and not is_same_teacher(name("org/big"), name("org/bigger"))
    server = lambda url, model=None: teacher_name(KdOptions(server={"url": url, "model": model}))  # noqa: E731
    assert server("http://here:1/v1/") == server("http://here:1") != server("http://here:1", "big")
    assert "pass" not in str(server("http://me:password@here:1"))
