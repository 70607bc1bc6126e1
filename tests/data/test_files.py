"""Files and folders that are there when they are whole."""

import os

import pytest

from ave_clip.files import FolderInUseError, atomic_file, new_folder


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


def test_overwriting_replaces_what_is_there(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    with new_folder(tmp_path / "set", overwrite=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path / "set") == ["new"]
    assert names(tmp_path) == ["set"]


def test_what_was_to_be_replaced_comes_back_when_the_new_folder_cannot_take_its_place(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    with pytest.raises(OSError), new_folder(tmp_path / "set", overwrite=True) as folder:
        os.rmdir(folder)
    assert names(tmp_path / "set") == ["old"]
    assert names(tmp_path) == ["set"]
