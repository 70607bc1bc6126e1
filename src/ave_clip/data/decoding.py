"""Opens the videos of rows, in folders, zips, data sets or remote storage, and decodes them when a row is accessed.

A row names its video as `{"path", "bytes"}`. [`decode_videos`] returns a data set whose rows the processor decodes on
access, frames and audio in one pass. Reading only labels decodes nothing.
"""

import functools
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from .storage import check_unpacked_size

FIRST_SEGMENT = "first_segment"  # column of a window's place in its video
_VIDEO_ROW = "video_row"  # column of the row that has the window's video

if TYPE_CHECKING:
    import datasets

    from ..core.processing_ave_clip import AVEClipProcessor
    from ..core.video_io import VideoClip


@dataclass(frozen=True)
class VideoProblem:
    """A row whose video cannot be read.

    Attributes:
        row (`int`): Number of the row.
        video_id (`str`): The video's id.
        reason (`str`): What is wrong with it.
    """

    row: int
    video_id: str
    reason: str


def open_video(video: str | Mapping[str, Any]) -> str | BinaryIO:
    """Returns a video in a form that the processor and `read_video` accept: a path, a URL or a file object.

    Args:
        video (`str` or `Mapping`): A path or URL, or a row's `video` of `path` and `bytes`.

    Returns:
        `str` or file object: The path of a local file or the URL. Members of a zip, files that need `fsspec` (such as
        `hf://`) and embedded videos are read into memory.

    Raises:
        VideoReadError: if the member of the zip is missing or damaged.
        ValueError: if the row has neither path nor bytes.
    """
    path, content = (video, None) if isinstance(video, str) else (video.get("path"), video.get("bytes"))
    if content is not None:
        return _NamedBytes(content, path or "<embedded video>")
    if path is None:
        raise ValueError(f"Got the video {video!r}, which has neither a path nor bytes.")
    member, separator, archive = path.removeprefix("zip://").partition("::")
    if path.startswith("zip://") and separator and "://" not in archive:
        return _NamedBytes(_read_member(archive, member), path)
    if "://" not in path or (path.startswith(("http://", "https://")) and "::" not in path):
        return path
    import fsspec

    with fsspec.open(path, "rb") as file:
        # pyrefly: ignore[missing-attribute]  (fsspec has no types; only `open_files` gives a list)
        return _NamedBytes(file.read(), path)


def open_row_video(dataset: Any, row: int) -> str | BinaryIO:
    """Opens the video of one row of a data set as [`open_video`]; an embedded video is read in place, without a copy.

    Args:
        dataset (`datasets.Dataset` or `Sequence[Mapping]`): Rows with `video`.
        row (`int`): Position of the row.
    """
    if not hasattr(dataset, "with_format"):
        return open_video(dataset[row]["video"])
    video = dataset.select_columns(["video"]).with_format("arrow")[row]["video"][0]
    content, path = video["bytes"], video["path"].as_py()
    if not content.is_valid:
        return open_video({"path": path})
    return io.BufferedReader(_EmbeddedVideo(memoryview(content.as_buffer()).cast("B"), path or "<embedded video>"))


def identify_video(video: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a key that identifies a video and changes when its file changes, without reading the file.

    Args:
        video (`Mapping`): A row's `video` of `path` and `bytes`.

    Returns:
        `tuple[str, ...]`: Name, size and modification time of a file; name, size and checksum of a member of a zip; a
        hash of the bytes of an embedded video; otherwise only the path or URL. The folder is not part of the key, so
        a data set may be moved.
    """
    path, content = video.get("path"), video.get("bytes")
    if content is not None:
        return (hashlib.sha256(content).hexdigest(),)
    path = path or ""
    member, separator, archive = path.removeprefix("zip://").partition("::")
    try:
        if path.startswith("zip://") and separator:
            info = _open_archive(archive, os.stat(archive).st_mtime_ns, os.getpid()).getinfo(member)
            return member, str(info.file_size), f"{info.CRC:08x}"
        facts = os.stat(path)
    except (KeyError, OSError, zipfile.BadZipFile):
        return (path,)
    return os.path.basename(path), str(facts.st_size), str(facts.st_mtime_ns)


def find_problems(examples: Iterable[Mapping[str, Any]], probe_videos: bool = False) -> list[VideoProblem]:
    """Returns the rows whose video is missing or empty, and with `probe_videos` those whose video cannot be opened.

    Args:
        examples (`Iterable[Mapping]`): Rows with `row`, `video_id`, `video` (a [`VideoFile`] or `None`) and, if a
            problem is known already, `problem`.
        probe_videos (`bool`): Open every video and look for a video stream, which takes a few milliseconds per video.

    Returns:
        `list[VideoProblem]`: In the order of the rows.
    """
    # Rows may share a video, which is then opened once.
    check = functools.cache(functools.partial(_reason, probe_videos=probe_videos))
    reasons = ((example, example.get("problem") or check(example["video"])) for example in examples)
    return [VideoProblem(example["row"], example["video_id"], reason) for example, reason in reasons if reason]


class _NamedBytes(io.BytesIO):
    """The bytes of a video, with a name for error messages."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


class _EmbeddedVideo(io.RawIOBase):
    """Bytes that belong to a data set as an unbuffered file, with a name for error messages."""

    def __init__(self, content: memoryview, name: str):
        self.content, self.name, self.position = content, name, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: len(self.content)}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        part = self.content[self.position : self.position + len(buffer)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)


class DecodeVideos:
    """Transform of rows that replaces `video` by the model's inputs; rows without `video` are not changed.

    Args:
        processor ([`AVEClipProcessor`]): Makes the model's inputs.
        augmentation (`Callable`, *optional*): Takes a `VideoClip` and returns another, as [`ClipAugmentation`] does.
        max_segments (`int`, *optional*): Rows are windows of this many segments, see [`decode_videos`].
        videos (`datasets.Dataset`, *optional*): The rows that have the windows' videos, unless the windows have them.
        **options: Passed to the processor, such as `num_frames_per_segment`.
    """

    def __init__(
        self,
        processor: "AVEClipProcessor",
        augmentation: "Callable[[VideoClip], VideoClip] | None" = None,
        max_segments: int | None = None,
        videos: "datasets.Dataset | None" = None,
        **options: Any,
    ):
        self.processor = processor
        self.augmentation = augmentation
        self.max_segments = max_segments
        self.videos = videos
        self.options: dict[str, Any] = {"return_tensors": "pt", **options}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Decodes a batch of rows.

        Args:
            batch (`Mapping[str, Sequence]`): Columns of equal length.

        Returns:
            `dict[str, Sequence]`: The other columns, and one tensor per row for each of the processor's outputs:
            `pixel_values` `(num_segments, num_frames, 3, height, width)`, `frame_mask` `(num_segments, num_frames)`,
            `input_values` `(num_segments, num_samples)` and `segment_mask` `(num_segments,)`. Within one call, videos
            are padded to the largest number of segments.
        """
        columns = {name: values for name, values in batch.items() if name not in ("video", _VIDEO_ROW)}
        if "video" not in batch and _VIDEO_ROW not in batch:
            return columns
        if self.max_segments is not None and FIRST_SEGMENT in batch:
            return {**columns, **self._windows(batch)}
        clips = [self._clip(open_video(video)) for video in batch["video"]]
        inputs = self.processor(videos=clips, **self.options)
        return {**columns, **{name: list(tensor) for name, tensor in inputs.items()}}

    def _windows(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Reads the windows of a batch of rows, each with the labels of its segments."""
        from .windows import read_window

        size = self.max_segments or 0
        if self.videos is not None:
            videos = [open_row_video(self.videos, row) for row in batch[_VIDEO_ROW]]
        else:
            videos = [open_video(video) for video in batch["video"]]
        firsts = batch[FIRST_SEGMENT]
        labels = [row[first : first + size] for row, first in zip(batch["labels"], firsts)]
        places = zip(videos, firsts, labels)
        windows = [read_window(video, self.processor, first, len(own)) for video, first, own in places]
        return {"labels": labels, **{name: [window[name] for window in windows] for name in windows[0]}}

    def _clip(self, source: str | BinaryIO) -> "str | BinaryIO | VideoClip":
        if self.augmentation is None:
            return source  # the processor decodes it
        from ..core.video_io import read_video

        video_processor = self.processor.video_processor
        clip = read_video(
            source,
            sampling_rate=self.processor.feature_extractor.sampling_rate,
            num_frames_per_segment=self.options.get("num_frames_per_segment", video_processor.num_frames_per_segment),
            segment_seconds=self.options.get("segment_seconds", video_processor.segment_seconds),
        )
        return self.augmentation(clip)


def decode_videos(
    dataset: "datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict",
    processor: "AVEClipProcessor",
    augmentation: "Callable[[VideoClip], VideoClip] | None" = None,
    *,
    max_segments: int | None = None,
    **options: Any,
) -> "datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict":
    """Returns a data set whose rows are decoded on access, in the process that reads them.

    Args:
        dataset: A data set with the column `video`, one split or all of them, built or streamed.
        processor ([`AVEClipProcessor`]): Makes the model's inputs.
        augmentation (`Callable`, *optional*): Changes the decoded clip, as [`ClipAugmentation`] does. Of several
            splits, only "train" is augmented.
        max_segments (`int`, *optional*): For long videos: each row becomes windows of at most this many segments, with
            their labels and the column `first_segment`. Their frames are uint8, which
            `processor.video_processor.normalize_pixels` normalizes on the model's device, and memory is bounded by the
            window. The processor's settings apply; `augmentation` and `options` cannot be given.
        **options: Passed to the processor, such as `num_frames_per_segment`.

    Returns:
        The same kind of data set, with the processor's tensors instead of `video`. To read only labels, call
        `select_columns` first or use the original data set: `datasets` applies a transform to whole rows.

    Examples:
        >>> train = decode_videos(load_ave("AVE_Dataset.zip", split="train"), processor)  # doctest: +SKIP
        >>> loader = DataLoader(train, batch_size=8, num_workers=4, collate_fn=collate_rows)  # doctest: +SKIP
    """
    if isinstance(dataset, dict):
        return type(dataset)(
            {
                split: decode_videos(
                    part, processor, augmentation if split == "train" else None, max_segments=max_segments, **options
                )
                for split, part in dataset.items()
            }
        )
    # A data set that was read back from an export would decode its videos with torchcodec.
    if getattr((dataset.features or {}).get("video"), "decode", False):
        import datasets

        dataset = dataset.cast_column("video", datasets.Video(decode=False))
    videos = None
    if max_segments is not None:
        if augmentation is not None or options or max_segments < 1:
            raise ValueError(
                f"Got max_segments={max_segments} with augmentation={augmentation} and {options}. It must be at least "
                "1 and comes alone; set the processor's own fields instead."
            )
        videos = dataset if hasattr(dataset, "select") else None
        dataset = _cut_windows(dataset, max_segments)
    transform = DecodeVideos(processor, augmentation, max_segments, videos, **options)
    if hasattr(dataset, "with_transform"):
        return dataset.with_transform(transform)
    # Streamed data sets have no transforms, but `map` is lazy there.
    return dataset.map(transform, batched=True, batch_size=1, remove_columns=["video"])


def _cut_windows(dataset: Any, size: int) -> Any:
    """Returns a data set with one row per window, whose first segment is a column; nothing is decoded."""
    if not hasattr(dataset, "select"):  # streamed

        def cut(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
            lengths = map(len, batch["labels"])
            rows = [(row, first) for row, length in enumerate(lengths) for first in range(0, length, size)]
            columns = {name: [values[row] for row, _ in rows] for name, values in batch.items()}
            return {**columns, FIRST_SEGMENT: [first for _, first in rows]}

        return dataset.map(cut, batched=True, batch_size=1)
    rows = [(row, first) for row, length in enumerate(label_counts(dataset)) for first in range(0, length, size)]
    # Without the videos: an embedded one would be copied for each of its windows.
    windows = dataset.remove_columns("video").select([row for row, _ in rows])
    firsts, numbers = [first for _, first in rows], [row for row, _ in rows]
    return windows.add_column(FIRST_SEGMENT, firsts).add_column(_VIDEO_ROW, numbers)


def label_counts(dataset: "datasets.Dataset") -> list[int]:
    """Returns the number of labelled segments of each row, without a Python object for each label."""
    import pyarrow.compute

    # pyrefly: ignore[missing-attribute]  (pyarrow makes these functions when it is imported)
    return pyarrow.compute.list_value_length(dataset.with_format("arrow")["labels"][:]).to_pylist()


def _read_member(archive: str, member: str) -> bytes:
    from ..core.video_io import VideoReadError

    try:
        file = _open_archive(archive, os.stat(archive).st_mtime_ns, os.getpid())
        check_unpacked_size(file.getinfo(member), archive)
        return file.read(member)
    except (KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        message = f"The video {member!r} in {archive} cannot be read ({error}). Load the data set again if it changed."
        raise VideoReadError(message) from error


@functools.lru_cache(maxsize=4)
def _open_archive(archive: str, modified: int, process_id: int) -> zipfile.ZipFile:
    """Returns an open zip, cached: reading the directory of AVE's zip takes 100 times as long as reading a video.

    `modified` and `process_id` are part of the cache's key, because a file may change, and because a file descriptor
    that was opened before a fork has one position for all processes.
    """
    return zipfile.ZipFile(archive)


def _reason(video: Any, probe_videos: bool) -> str | None:
    """Returns why a [`VideoFile`] cannot be read, or `None` if it can."""
    if video is None:
        return "missing"
    if video.outside is not None:
        return (
            f"leads out of the data folder to {video.outside}, which only allow_outside=True (--allow_outside) allows"
        )
    if video.size == 0:
        return "empty"
    if not probe_videos:
        return None
    from ..core.video_io import VideoReadError, probe_video

    try:
        return None if probe_video(open_video(video.path)).has_video else "no video stream"
    except VideoReadError as error:
        return str(error)
