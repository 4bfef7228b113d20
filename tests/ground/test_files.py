"""Files appear whole or not at all."""

import errno
import os
import stat

import pytest

from cynosure.ground import files
from cynosure.ground.errors import ExitCode, OutputError, OutputExists
from cynosure.ground.files import atomic_path, write_text


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_interruption_leaves_nothing_and_keeps_the_old(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path, overwrite=True) as temporary:
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "one")
    with pytest.raises(OutputExists) as caught:
        write_text(path, "two")
    assert caught.value.exit_code == ExitCode.OUTPUT_EXISTS
    assert path.read_text() == "one"
    write_text(path, "two", overwrite=True)
    assert path.read_text() == "two"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OutputExists), atomic_path(path) as temporary:
        temporary.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, code):
    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / "a.txt", "x")
    assert os.strerror(code).lower() in str(caught.value)
    assert caught.value.exit_code == ExitCode.OUTPUT_UNWRITABLE
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_and_a_file_for_a_folder(tmp_path):
    with pytest.raises(OutputError, match="no such file or directory"):
        write_text(tmp_path / "none" / "a.txt", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_text(tmp_path / "file" / "a.txt", "x")
