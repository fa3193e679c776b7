"""A folder is replaced whole: killed anywhere, the old or the new content is found, never a part."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
from safetensors import SafetensorError

import vidgen
from vidgen.checkpoint import folder as folders
from vidgen.checkpoint import replaced_folder, settled
from vidgen.errors import CheckpointError, VideoError

# Writes NAME anew and is killed at the n-th thing it does to the file system. The module is loaded alone, by
# its file: so many processes have no time to import torch.
CHILD = """
import importlib.util, os, signal, sys
from pathlib import Path
module, folder, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
sys.path.extend(sys.argv[4:])
spec = importlib.util.spec_from_file_location("folder", module)
folders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(folders)
count = 0
events = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}
def hook(event, args):
    global count
    if event in events and str(folder.parent) in str(args[0]):
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
sys.addaudithook(hook)
with folders.replaced_folder(folder) as temporary:
    for name in "abc":
        (temporary / name).write_text("new")
"""


def write(folder: Path, text: str) -> None:
    with replaced_folder(folder) as temporary:
        for name in "abc":
            (temporary / name).write_text(text)


def content(folder: Path) -> str:
    texts = {path.name: path.read_text() for path in settled(folder).iterdir()}
    assert texts.keys() == set("abc"), texts
    (text,) = set(texts.values())
    return text


def killed_at(moment: int, folder: Path) -> bool:
    """Replace ``folder`` in another process; return whether it was killed."""
    homes = [str(Path(str(package.__file__)).parents[1]) for package in (vidgen, safetensors)]
    command = [sys.executable, "-I", "-S", "-c", CHILD, folders.__file__, str(folder), str(moment), *homes]
    code = subprocess.run(command, timeout=600).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
def test_killed_at_any_moment_the_content_is_whole(tmp_path, there):
    seen = []
    for moment in range(100):
        folder = tmp_path / str(moment) / "model"
        if there:
            write(folder, "old")
        killed = killed_at(moment, folder)
        seen.append(content(folder) if settled(folder).exists() else "nothing")
        write(folder, "next")  # whatever was left over is no obstacle
        assert content(folder) == "next"
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        if not killed:
            break
    before = "old" if there else "nothing"
    assert seen == [before] * seen.count(before) + ["new"] * seen.count("new")
    assert seen.count(before) > 5
    assert seen[-1] == "new"


def test_a_writer_that_fails_leaves_the_folder_that_was_set_aside(tmp_path):
    """After a kill between the two renames, a next writer that fails must not lose the only content."""
    folder = tmp_path / "model"
    write(folder, "old")
    folder.rename(tmp_path / ".model.old")
    assert content(folder) == "old"
    with pytest.raises(CheckpointError, match="disk full"), replaced_folder(folder):
        raise OSError("disk full")
    assert folder.is_dir()
    assert content(folder) == "old"


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, SafetensorError(f"I/O error: {FULL}")], ids=["system", "safetensors"])
def test_a_full_disk_is_said_and_leaves_the_old_content(tmp_path, error):
    folder = tmp_path / "model"
    write(folder, "old")
    message = r"model cannot be written: .*No space left on device.*disk with room"
    with pytest.raises(CheckpointError, match=message), replaced_folder(folder):
        raise error
    assert content(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_errors_that_are_of_vidgen_come_through(tmp_path):
    with pytest.raises(VideoError, match="no frames"), replaced_folder(tmp_path / "model"):
        raise VideoError("no frames")
    assert not any(tmp_path.iterdir())


def test_a_new_folder_that_cannot_take_its_name_gives_it_back_to_the_old_one(tmp_path, monkeypatch):
    folder, rename = tmp_path / "model", Path.rename
    write(folder, "old")

    def refuse(path, target):
        if path.name == ".model.tmp":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        write(folder, "new")
    assert content(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_folder_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file is a file; expected a folder"):
        write(tmp_path / "file", "new")
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
        write(tmp_path / "file" / "a" / "model", "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert settled(Path()) == Path()
    with pytest.raises(CheckpointError, match="give a folder by its name"):
        write(Path(), "new")


def test_folder_beats_what_was_set_aside(tmp_path):
    write(tmp_path / "model", "new")
    write(tmp_path / ".model.old", "old")
    assert settled(tmp_path / "model") == tmp_path / "model"
    assert settled(tmp_path / "other") == tmp_path / "other"
