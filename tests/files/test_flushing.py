"""What is flushed to disk, and in which order, so that a power loss leaves the former files or the new ones."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from skipdit_cli import files, media

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are read in /proc")


@pytest.fixture
def done(tmp_path, monkeypatch):
    """What was flushed and renamed, in order, as paths in the folder of the test: ``flush a``, ``rename a``."""
    done, fsync, rename = [], os.fsync, os.replace

    def note(word, path):
        path = os.path.relpath(path, tmp_path)
        done.append(f"{word} {'a temporary file' if '.tmp-' in path and word == 'flush' else path}")

    monkeypatch.setattr(os, "fsync", lambda file: (note("flush", os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (note("rename", new), rename(old, new)))
    return done


def test_a_file_that_a_resumed_run_reads_is_flushed_before_its_rename_and_the_rename_after(done, tmp_path):
    files.write_checked(tmp_path / "a.json", {"a": 1})
    assert done == ["flush a temporary file", "rename a.json", "flush ."]


def test_a_picture_is_flushed_and_its_folder_is_not(done, tmp_path):
    media.save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", {})
    media.save_video(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "b.gif", 8, {})
    assert done == [word for name in ("a.png", "b.gif", "b.json")
                    for word in ("flush a temporary file", f"rename {name}")]  # fmt: skip


def test_the_file_that_marks_others_as_complete_moves_when_those_are_flushed(done, tmp_path):
    with files.install(tmp_path, last="index.json") as part:
        (part / "unet" / "more").mkdir(parents=True)
        for name in ("index.json", "unet/more/weights", "card.md"):
            (part / name).write_text(name)
        done.clear()
    at = done.index("rename index.json")
    assert done[at - 3 :] == ["flush unet/more", "flush unet", "flush .", "rename index.json", *done[at - 3 : at]]
    assert {"rename unet/more/weights", "rename card.md"} < {*done[: at - 3]}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_written_all_the_same(number, tmp_path, monkeypatch):
    def fail(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    files.write_checked(tmp_path / "a.json", {"a": 1})
    assert files.read_checked(tmp_path / "a.json", 1000, "") == {"a": 1}


def test_a_failed_flush_leaves_the_former_file(tmp_path, monkeypatch):
    files.write_checked(tmp_path / "a.json", {"a": 1})

    def fail(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_checked(tmp_path / "a.json", {"a": 2})
    assert files.read_checked(tmp_path / "a.json", 1000, "") == {"a": 1} and len([*tmp_path.iterdir()]) == 1


def test_a_folder_that_cannot_be_listed_is_written_all_the_same(tmp_path, monkeypatch):
    opens = os.open

    def refuse(path, *rest, **names):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opens(path, *rest, **names)

    monkeypatch.setattr(os, "open", refuse)
    files.write_checked(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").is_file()
