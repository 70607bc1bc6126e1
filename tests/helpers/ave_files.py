"""Writes data sets in AVE's layout into a folder of the test."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

ROWS = [
    "Church bell&-bell_one-A&good&0&10",
    "Church bell&bell_two__B&good&6&8",
    "Church bell&bell_none_C&good&0&0",
    "Male speech, man speaking&talker____D&good&2&10",
    "Male speech, man speaking&both_talk__E&good&1&4",
    "Female speech, woman speaking&both_talk__E&good&1&4",
    "Frying (food)&_frying____F&good&0&3",
    "Banjo&strings____G&good&0&10",
    "Mandolin&strings____G&good&0&10",
]
SPLITS = {"train": [5, 0, 3, 8], "validation": [1, 6], "test": [7, 4, 2]}
SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}
HEADER = "Category&VideoID&Quality&StartTime&EndTime"


@dataclass
class AveFiles:
    """A data set on disk and what was written."""

    root: Path
    rows: list[str] = field(default_factory=lambda: list(ROWS))

    @property
    def annotations(self) -> Path:
        return self.root / "Annotations.txt"

    def video(self, video_id: str) -> Path:
        return self.root / "AVE" / f"{video_id}.mp4"

    def zip(self, path: Path, top: str = "AVE_Dataset/") -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(self.root.rglob("*")):
                if file.is_file():
                    archive.write(file, f"{top}{file.relative_to(self.root)}")
        return path


def write_ave(root: Path, rows: list[str] = ROWS, splits: dict[str, list[int]] = SPLITS, **annotations) -> AveFiles:
    """Write annotation, split and (placeholder) video files."""
    (root / "AVE").mkdir(parents=True, exist_ok=True)
    write_lines(root / "Annotations.txt", rows, **annotations)
    for split, members in splits.items():
        write_lines(root / f"{SPLIT_NAMES[split]}Set.txt", [rows[row] for row in members])
    for row in rows:
        video_id = row.split("&")[1]
        (root / "AVE" / f"{video_id}.mp4").write_bytes(f"video of {video_id}".encode())
    return AveFiles(root, list(rows))


def write_lines(path: Path, lines: list[str], header: bool = False, end: str = "\n", last: str | None = None) -> None:
    lines = [HEADER, *lines] if header else lines
    path.write_bytes((end.join(lines) + (end if last is None else last)).encode())


def write_orders(root: Path, splits: dict[str, list[int]] = SPLITS, suffix: str = "") -> None:
    """Write order files in the form that AVE's authors published."""
    for split, rows in splits.items():
        write_array(root / f"{SPLIT_NAMES[split]}_order{suffix}.h5", np.array(rows), key="order")


class PeakMemory:
    """How many megabytes of resident memory the block needed on top, at its worst (Linux only)."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
        self._before = self._peak()
        return self

    def __exit__(self, *error):
        self.megabytes = self._peak() - self._before

    def _peak(self) -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def write_array(path: Path, array: np.ndarray, key: str = "avadataset") -> None:
    with h5py.File(path, "w") as file:
        file[key] = array
