"""Files and folders that are there when they are whole."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from ave_clip.files import FolderInUseError, atomic_file, new_folder, remove_leftovers_in, workshop_beside


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_the_old_one_at_the_end_and_not_before(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert (partial.name, path.read_text()) == ("a.json", "old")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def test_a_failure_keeps_the_old_file_and_the_old_folder(tmp_path):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a.json") as partial:
        partial.write_text(str(1 / 0))
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "set", overwrite=True) as folder:
        (folder / "new").write_text(str(1 / 0))
    assert (tmp_path / "a.json").read_text() == "old"
    assert names(tmp_path) == ["a.json", "set"]
    assert names(tmp_path / "set") == ["old"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_takes_a_free_name_and_has_the_usual_rights(tmp_path, exists):
    target = tmp_path / "parent" / "set"
    (target if exists else tmp_path / "usual").mkdir(parents=True)
    with new_folder(target) as folder:
        (folder / "a").touch()
    assert names(target) == ["a"]
    assert names(target.parent) == ["set"]
    assert target.stat().st_mode == target.parent.stat().st_mode


def test_a_folder_in_use_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for name in ("file", "full"):
        with (
            pytest.raises(FolderInUseError, match=rf"{name} exists and is not an empty folder"),
            new_folder(tmp_path / name),
        ):
            pytest.fail("the block was run")
    assert names(tmp_path) == ["file", "full"]


def test_a_folder_filled_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(FolderInUseError, match="is not an empty folder"), new_folder(tmp_path / "set") as folder:
        (folder / "new").touch()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "other").touch()
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["other"]


def test_a_folder_that_cannot_be_opened_for_its_lock_says_why(tmp_path, monkeypatch):
    def refuse(path, flags):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr("ave_clip.files.os.open", refuse)
    with pytest.raises(OSError, match="Too many open files"), new_folder(tmp_path / "a"):
        pass


def test_overwriting_replaces_the_existing_folder(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    with new_folder(tmp_path / "set", overwrite=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path / "set") == ["new"]
    assert names(tmp_path) == ["set"]


def test_the_previous_folder_is_restored_when_the_new_one_cannot_replace_it(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    with pytest.raises(OSError), new_folder(tmp_path / "set", overwrite=True) as folder:
        os.rmdir(folder)
    assert names(tmp_path / "set") == ["old"]
    assert names(tmp_path) == ["set"]


WRITES = """
import signal, sys, time
sys.argv[0] = "ave-clip"  # such a process imports no torch at the start
from ave_clip.files import atomic_file, new_folder
from ave_clip.programs import program
how, target = sys.argv[1:]
with program("writer"):
    with atomic_file(target) if how == "file" else new_folder(target, overwrite=True) as partial:
        partial.write_text("half") if how == "file" else (partial / "half").touch()
        print("ready", flush=True)
        time.sleep(60)
"""


def stopped_while_writing(how, target, number):
    """A process that was stopped by a signal while it wrote; its exit code and its output."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, how, str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("how", ["file", "folder"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_leaves_no_files(tmp_path, how, name):
    number = signal.Signals[name]
    assert stopped_while_writing(how, tmp_path / "new", number) == (128 + number, f"writer: stopped by {name}.\n")
    assert names(tmp_path) == []


@pytest.mark.parametrize("how", ["file", "folder"])
@pytest.mark.parametrize("name", ["new", "n" * 255, "鐘" * 85, "old"])
def test_the_next_write_removes_what_a_killed_process_left(tmp_path, how, name):
    assert stopped_while_writing(how, tmp_path / name, signal.SIGKILL)[0] == -signal.SIGKILL
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].startswith(".")
    with atomic_file(tmp_path / "other") as partial:
        partial.touch()
    assert len(names(tmp_path)) == 2  # of other targets it is nobody's business
    with atomic_file(tmp_path / name) if how == "file" else new_folder(tmp_path / name) as partial:
        partial.touch() if how == "file" else (partial / "whole").touch()
    assert names(tmp_path) == sorted([name, "other"])


def test_what_another_process_writes_now_is_left_alone(tmp_path):
    target = tmp_path / "new"
    with workshop_beside(target) as first, workshop_beside(target) as second:
        stopped_while_writing("folder", target, signal.SIGKILL)
        assert names(tmp_path) == [".new.ave-clip-0", ".new.ave-clip-1", ".new.ave-clip-2"]
        with atomic_file(target) as partial:
            partial.touch()
        remove_leftovers_in(tmp_path)
        assert names(tmp_path) == [".new.ave-clip-0", ".new.ave-clip-1", "new"]
        assert (first.name, second.name) == (".new.ave-clip-0", ".new.ave-clip-1")
    assert names(tmp_path) == ["new"]


def test_a_folder_that_only_looks_like_a_leftover_is_kept(tmp_path):
    for name in (".new-original", ".new.ave-clip-0.txt", ".newer.ave-clip-0"):
        (tmp_path / name).mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / ".new.ave-clip-0").symlink_to(tmp_path / "real")
    with atomic_file(tmp_path / "new") as partial:
        partial.touch()
    expected = [".new-original", ".new.ave-clip-0", ".new.ave-clip-0.txt", ".newer.ave-clip-0", "new", "real"]
    assert names(tmp_path) == expected


def test_the_previous_folder_is_restored_after_a_kill_between_the_two_renamings(tmp_path):
    (tmp_path / ".set.ave-clip-0" / ".replaced").mkdir(parents=True)
    (tmp_path / ".set.ave-clip-0" / ".replaced" / "old").touch()
    (tmp_path / ".set.ave-clip-0" / "new").mkdir()
    with pytest.raises(FolderInUseError), new_folder(tmp_path / "set"):
        pytest.fail("the block was run")
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["old"]


def test_an_error_names_the_target_and_not_the_hidden_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/nowhere/a\.json'$"), atomic_file(tmp_path / "nowhere" / "a.json"):
        pytest.fail("the block was run")
    with pytest.raises(IsADirectoryError, match=r"/a\.json'$"), atomic_file(tmp_path / "a.json") as partial:
        partial.mkdir()
        partial.write_text("x")
    with (
        pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] No such file or directory: '\S*/set'$"),
        new_folder(tmp_path / "set") as folder,
    ):
        (folder / "missing").rename(folder / "b")
