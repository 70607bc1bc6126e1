import zipfile

import pytest

from ave_clip.core.video_io import VideoReadError
from ave_clip.data import open_video
from ave_clip.data.storage import FolderStorage, ZipStorage, fingerprint, list_videos_below, open_storage
from tests.helpers.ave_files import PeakMemory


def storage_fingerprint(storage):
    return fingerprint(storage.name, {"Annotations.txt": storage.read("Annotations.txt")}, storage.list_videos())


def test_folder_and_zip_contain_the_same_files(ave, tmp_path):
    folder = open_storage(ave.root)
    archive = open_storage(ave.zip(tmp_path / "AVE.zip"))
    assert isinstance(folder, FolderStorage)
    assert isinstance(archive, ZipStorage)
    assert folder.read("Annotations.txt") == archive.read("Annotations.txt") == ave.annotations.read_bytes()
    assert folder.read("nothing.txt") is archive.read("nothing.txt") is None
    assert folder.list_videos().keys() == archive.list_videos().keys() == {r.split("&")[1] for r in ave.rows}
    assert {i: v.size for i, v in folder.list_videos().items()} == {
        i: v.size for i, v in archive.list_videos().items()
    }


def test_the_folder_one_above_will_do(ave, tmp_path):
    assert open_storage(tmp_path).name == str(ave.root)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Annotations.txt").write_text("x")
    with pytest.raises(ValueError, match=r"2 folders below with one: \['AVE_Dataset', 'other'\]"):
        open_storage(tmp_path)


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_storage(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"contains no Annotations\.txt, and none one level below"):
        open_storage(tmp_path)
    with pytest.raises(ValueError, match="needs data_dir"):
        open_storage(None)


def test_a_zip_at_any_depth_is_found_and_what_macos_adds_is_not(ave, tmp_path):
    path = ave.zip(tmp_path / "AVE.zip", top="backup/AVE_Dataset/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/Annotations.txt", "no")
    assert open_storage(path).read("Annotations.txt") == ave.annotations.read_bytes()


@pytest.mark.parametrize(
    "member", ["../out.mp4", "AVE/../../out.mp4", "/etc/out.mp4", "C:/out.mp4", "AVE\\..\\out.mp4"]
)
def test_a_zip_with_a_member_outside_the_folder_is_refused(ave, tmp_path, member):
    path = ave.zip(tmp_path / "AVE.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(member), "x")
    with pytest.raises(ValueError, match="would be unpacked outside the folder"):
        open_storage(path)


def test_a_zip_with_a_symbolic_link_is_refused(ave, tmp_path):
    path = ave.zip(tmp_path / "AVE.zip")
    link = zipfile.ZipInfo("AVE_Dataset/AVE/link.mp4")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="is a symbolic link"):
        open_storage(path)


def test_an_encrypted_zip_is_refused(ave, tmp_path):
    path = ave.zip(tmp_path / "AVE.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory's first entry
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is encrypted"):
        open_storage(path)


def test_a_file_that_is_no_zip_is_refused(ave, tmp_path):
    with pytest.raises(ValueError, match="is not a readable zip file"):
        open_storage(ave.annotations)
    whole = ave.zip(tmp_path / "AVE.zip")
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="Download it again"):
        open_storage(whole)
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(ValueError, match=r"contains no Annotations\.txt among its 0 files"):
        open_storage(empty)


def test_of_two_files_with_one_name_the_mp4_counts_and_others_are_no_videos(ave):
    for name in ("bell_two__B.mkv", "bell_two__B.txt", "notes.txt"):
        (ave.root / "AVE" / name).write_text("x")
    videos = open_storage(ave.root).list_videos()
    assert videos["bell_two__B"].path == str(ave.video("bell_two__B"))
    assert "notes" not in videos


def test_a_link_that_leads_nowhere_is_no_video(ave):
    ave.video("bell_two__B").unlink()
    ave.video("bell_two__B").symlink_to("/nowhere.mp4")
    assert "bell_two__B" not in open_storage(ave.root).list_videos()


def test_the_fingerprint_depends_on_annotations_videos_and_location(ave, tmp_path):
    before = storage_fingerprint(open_storage(ave.root))
    assert storage_fingerprint(open_storage(ave.root)) == before
    ave.video("bell_two__B").write_bytes(b"other")
    changed = storage_fingerprint(open_storage(ave.root))
    ave.annotations.write_text("\n".join(reversed(ave.rows)))
    reordered = storage_fingerprint(open_storage(ave.root))
    ave.root.rename(tmp_path / "moved")
    moved = storage_fingerprint(open_storage(tmp_path / "moved"))
    assert len({before, changed, reordered, moved}) == 4


def test_videos_are_found_at_any_depth(tmp_path):
    (tmp_path / "train" / "dogs").mkdir(parents=True)
    (tmp_path / "train" / "dogs" / "-one.mp4").write_text("x")
    (tmp_path / "two.webm").write_text("xy")
    found = list_videos_below(tmp_path)
    assert {name: video.size for name, video in found.items()} == {"-one": 1, "two": 2}
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_videos_below(tmp_path / "nowhere")


def test_videos_of_the_layout_do_not_lead_out_of_its_folder(ave, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    ave.video("bell_two__B").unlink()
    ave.video("bell_two__B").symlink_to(secret)
    videos = open_storage(ave.root).list_videos()
    assert [name for name, video in videos.items() if video.outside] == ["bell_two__B"]
    assert videos["bell_two__B"].outside == str(secret)
    assert not any(video.outside for video in open_storage(ave.root, allow_outside=True).list_videos().values())
    (ave.root / "AVE").rename(tmp_path / "elsewhere")
    (ave.root / "AVE").symlink_to(tmp_path / "elsewhere")
    assert all(video.outside for video in open_storage(ave.root).list_videos().values())
    named = open_storage(ave.root).list_videos(str(tmp_path / "elsewhere"))  # this one the user named
    assert [name for name, video in named.items() if video.outside] == ["bell_two__B"]


def write_bomb(path, member, size):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    return path


def test_a_zip_bomb_is_refused_by_the_sizes_that_it_declares(tmp_path):
    bomb = write_bomb(tmp_path / "AVE.zip", "AVE_Dataset/Annotations.txt", 100 * 2**20)
    with (
        PeakMemory() as peak,
        pytest.raises(ValueError, match=r"'AVE_Dataset/Annotations.txt' would unpack .* zip bomb"),
    ):
        open_storage(bomb)
    assert peak.megabytes < 30
    bomb = write_bomb(tmp_path / "video.zip", "clip.mp4", 100 * 2**20)
    with PeakMemory() as peak, pytest.raises(VideoReadError, match="zip bomb"):
        open_video(f"zip://clip.mp4::{bomb}")
    assert peak.megabytes < 30
