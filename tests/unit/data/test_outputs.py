"""Outputs appear whole or not at all, and one run at a time writes them."""

import errno
import json
import os
import socket

import pytest
from filelock import FileLock

from flip_ctr.data import outputs
from flip_ctr.data.outputs import beside, claimed, naming_limits, new_file, new_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path):
    with claimed(tmp_path / "out"):
        with pytest.raises(FileExistsError, match=rf"out is being written by process {os.getpid()} on .*, since 20"):
            with claimed(tmp_path / "out"):
                pass
        with claimed(tmp_path / "other"):
            pass
    assert names(tmp_path) == []
    with claimed(tmp_path / "out"):
        pass


def test_workers_of_a_killed_run_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "ORPHANS_LIVE", 0.01)
    lock = tmp_path / ".out.lock"
    held = FileLock(lock)
    held.acquire()
    (tmp_path / ".out.lock-owner").write_text(
        json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "since": "then"})
    )  # no such process
    with pytest.raises(FileExistsError, match="process 4194305"), claimed(tmp_path / "out"):
        pass
    monkeypatch.setattr(outputs, "is_alive", lambda pid: held.release())
    with claimed(tmp_path / "out"):
        assert json.loads((tmp_path / ".out.lock-owner").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("steps", ["one", "two"])
def test_a_folder_takes_the_place_of_another_whole(tmp_path, steps, monkeypatch):
    if steps == "two":  # where the system cannot exchange names
        monkeypatch.setattr(outputs, "_exchange", lambda *names: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as folder:
        folder.mkdir()
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]
    with new_folder(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "new").write_text("new")
        assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_what_appears_meanwhile_stays(tmp_path):
    with pytest.raises(FileExistsError, match="out appeared while"), new_folder(tmp_path / "out", False) as folder:
        folder.mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["theirs"]
    with (
        pytest.raises(FileExistsError, match=r"out\.csv appeared while"),
        new_file(tmp_path / "out.csv", False) as file,
    ):
        file.write_text("ours")
        (tmp_path / "out.csv").write_text("theirs")
    assert (tmp_path / "out.csv").read_text() == "theirs" and len(names(tmp_path)) == 2
    with new_file(tmp_path / "out.csv") as file:
        file.write_text("ours")
    assert (tmp_path / "out.csv").read_text() == "ours"
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o666 & ~outputs._umask()


def test_what_a_killed_run_left_is_removed_and_said(tmp_path, caplog):
    left = tmp_path / f"{beside(tmp_path / 'out')}abc"
    (left / "old").mkdir(parents=True)
    (left / "old" / "rows").write_text("rows")
    with new_folder(tmp_path / "out") as folder:
        assert (tmp_path / "out" / "rows").read_text() == "rows"  # the killed run had moved it aside
        folder.mkdir()
    assert names(tmp_path) == ["out"]
    assert "out was brought back" in caplog.text and f"removed {left}, which a killed run left" in caplog.text


def test_limits_name_the_file(tmp_path):
    for code in (errno.ENOSPC, errno.EFBIG):
        with pytest.raises(OSError, match=f"out.csv could not be written: {os.strerror(code)}"):
            with naming_limits(tmp_path / "out.csv"):
                raise OSError(code, os.strerror(code))
