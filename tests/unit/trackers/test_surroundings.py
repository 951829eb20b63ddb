"""Environment variables for a while, folders that can be written to, files that must stay."""

import os

import pytest

from dumbo.errors import ConfigError
from dumbo.trackers.surroundings import KeptFile, quiet, remove_if_within, variables, writable_folder


def test_variables_are_set_for_a_while_and_the_users_stay(monkeypatch):
    monkeypatch.setenv("DUMBO_MINE", "mine")
    monkeypatch.delenv("DUMBO_NEW", raising=False)
    with variables(DUMBO_MINE="other", DUMBO_NEW="new"):
        assert (os.environ["DUMBO_MINE"], os.environ["DUMBO_NEW"]) == ("mine", "new")
    with pytest.raises(ValueError), variables(replace=True, DUMBO_MINE="other"):
        assert os.environ["DUMBO_MINE"] == "other"
        raise ValueError
    assert os.environ["DUMBO_MINE"] == "mine"
    assert "DUMBO_NEW" not in os.environ


def test_what_is_printed_inside_is_not_seen(capsys):
    with quiet():
        print("chatter")
    print("heard")
    assert capsys.readouterr().out == "heard\n"


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    assert writable_folder(folder, "trainer.x.dir") == folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["file/below", "file", "null\0"])
def test_a_folder_that_cannot_be_had_names_its_key(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="trainer.x.dir: .* cannot be written to: "):
        writable_folder(tmp_path / name, "trainer.x.dir")


def test_only_what_lies_within_is_removed(tmp_path):
    home = tmp_path / "home"
    (home / "a" / "b").mkdir(parents=True)
    (home / "a" / "b" / "file").write_text("")
    outside = tmp_path / "outside"
    outside.mkdir()
    for folder in (outside, home, home / ".." / "outside"):
        remove_if_within(folder, home)
    assert outside.exists()
    assert (home / "a" / "b" / "file").exists()
    (home / "kept").write_text("")
    remove_if_within(home / "a" / "b", home)
    assert [path.name for path in home.iterdir()] == ["kept"]


@pytest.mark.parametrize("deed", ["remove", "replace", "make a folder of it"])
def test_a_file_that_vanished_is_noticed(tmp_path, deed):
    file = tmp_path / "file"
    file.write_text("a")
    kept = KeptFile(file)
    file.write_text("more")
    kept.check()
    file.unlink()
    if deed == "replace":
        file.write_text("other")
    elif deed != "remove":
        file.mkdir()
    with pytest.raises(FileNotFoundError, match="file was removed while the run wrote to it"):
        kept.check()
    kept.close()
