"""From a row to a decoded clip: opening videos wherever they lie, and decoding them when a row is read.

A row names its video as `{"path", "bytes"}`. [`decode_videos`] makes a data set whose rows are decoded on access,
frames and sound in one pass, by the processor; reading only labels decodes nothing.
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

if TYPE_CHECKING:
    import datasets

    from ..processing_ave_clip import AVEClipProcessor
    from ..video_io import VideoClip


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
    """What the processor and `read_video` take: the path or URL of the video, otherwise its content as a file object.

    Args:
        video (`str` or `Mapping`): A path or address, or a row's `video` of `path` and `bytes`.

    Returns:
        `str` or file object: Local files and URLs are not read here; members of a zip, files that need `fsspec`
        (such as `hf://`) and embedded videos are.

    Raises:
        VideoReadError: if the zip has no such member, or a damaged one.
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
        return _NamedBytes(file.read(), path)


def identify_video(video: Mapping[str, Any]) -> tuple[str, ...]:
    """Tell a video from others, and from itself once its file has changed, without reading it.

    Args:
        video (`Mapping`): A row's `video` of `path` and `bytes`.

    Returns:
        `tuple[str, ...]`: of a file its name, size and time of change; of a member of a zip its name in the archive,
        size and checksum; of an embedded video a hash of its bytes; the path or address alone of anything else.
        A data set that moves as a whole stays the same.
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
    """The rows whose video is missing or empty, and with `probe_videos` those whose video cannot be opened.

    Args:
        examples (`Iterable[Mapping]`): Rows with `row`, `video_id`, `video` (a [`VideoFile`] or `None`) and, if a
            problem is known already, `problem`.
        probe_videos (`bool`): Open every video and look for a video stream; some milliseconds each.

    Returns:
        `list[VideoProblem]` in the order of the rows.
    """
    check = functools.cache(functools.partial(_reason, probe_videos=probe_videos))
    reasons = ((example, example.get("problem") or check(example["video"])) for example in examples)
    return [VideoProblem(example["row"], example["video_id"], reason) for example, reason in reasons if reason]


class _NamedBytes(io.BytesIO):
    """Bytes of a video that know where they come from, for messages about it."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


class DecodeVideos:
    """Transform of rows: `video` goes, the model's inputs come; rows without `video` stay as they are.

    Args:
        processor ([`AVEClipProcessor`]): Cuts, samples and normalises.
        augmentation (`Callable`, *optional*): Takes a `VideoClip` and returns another, as [`ClipAugmentation`] does.
        **options: Passed on to the processor, such as `num_frames_per_segment`.
    """

    def __init__(
        self,
        processor: "AVEClipProcessor",
        augmentation: "Callable[[VideoClip], VideoClip] | None" = None,
        **options: Any,
    ):
        self.processor = processor
        self.augmentation = augmentation
        self.options = options

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Decode a batch of rows.

        Args:
            batch (`Mapping[str, Sequence]`): Columns of equal length, `video` among them if anything is to be done.

        Returns:
            `dict[str, Sequence]`: The other columns, and one tensor a row for each of the processor's outputs:
            `pixel_values` `(num_segments, num_frames, 3, height, width)`, `frame_mask` `(num_segments, num_frames)`,
            `input_values` `(num_segments, num_samples)` and `segment_mask` `(num_segments,)`. The videos of one call
            have equally many segments, the shorter ones padded.
        """
        columns = {name: values for name, values in batch.items() if name != "video"}
        if "video" not in batch:
            return columns
        clips = [self._clip(open_video(video)) for video in batch["video"]]
        inputs = self.processor(videos=clips, return_tensors="pt", **self.options)
        return {**columns, **{name: list(tensor) for name, tensor in inputs.items()}}

    def _clip(self, source: str | BinaryIO) -> "str | BinaryIO | VideoClip":
        if self.augmentation is None:
            return source
        from ..video_io import read_video

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
    **options: Any,
) -> "datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict":
    """Let the rows of a data set be decoded when they are read, in whatever process reads them.

    Args:
        dataset: A data set with the column `video`, one split or all of them, built or streamed.
        processor ([`AVEClipProcessor`]): Makes the model's inputs.
        augmentation (`Callable`, *optional*): Changes the decoded clip, as [`ClipAugmentation`] does. Of several
            splits only "train" is augmented.
        **options: Passed on to the processor, such as `num_frames_per_segment`.

    Returns:
        The same kind of data set. Its rows hold the processor's tensors instead of `video`. To read labels alone take
        `select_columns` first, or the data set this one was made of: `datasets` applies a transform to whole rows.

    Example:
        >>> train = decode_videos(load_ave("AVE_Dataset.zip", split="train"), processor)  # doctest: +SKIP
        >>> loader = DataLoader(train, batch_size=8, num_workers=4, collate_fn=collate_rows)  # doctest: +SKIP
    """
    if isinstance(dataset, dict):
        return type(dataset)(
            {
                split: decode_videos(part, processor, augmentation if split == "train" else None, **options)
                for split, part in dataset.items()
            }
        )
    dataset = _keep_undecoded(dataset)
    transform = DecodeVideos(processor, augmentation, **options)
    if hasattr(dataset, "with_transform"):
        return dataset.with_transform(transform)
    return dataset.map(transform, batched=True, batch_size=1, remove_columns=["video"])


def _keep_undecoded(dataset: Any) -> Any:
    """A data set read back from an export decodes its videos itself, by torchcodec; the transform wants them raw."""
    import datasets

    if getattr((dataset.features or {}).get("video"), "decode", False):
        return dataset.cast_column("video", datasets.Video(decode=False))
    return dataset


def _read_member(archive: str, member: str) -> bytes:
    from ..video_io import VideoReadError

    try:
        return _open_archive(archive, os.stat(archive).st_mtime_ns, os.getpid()).read(member)
    except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        message = f"The video {member!r} in {archive} cannot be read ({error}). Load the data set again if it changed."
        raise VideoReadError(message) from error


@functools.lru_cache(maxsize=4)
def _open_archive(archive: str, modified: int, process_id: int) -> zipfile.ZipFile:
    """An open zip, for a file as it is now and for each process: forked workers would share a file position.

    Reading the directory of AVE's zip anew takes a hundred times as long as reading a video from it.
    """
    return zipfile.ZipFile(archive)


def _reason(video: Any, probe_videos: bool) -> str | None:
    """Why a [`VideoFile`] cannot be read, `None` if it can."""
    if video is None:
        return "missing"
    if video.size == 0:
        return "empty"
    if not probe_videos:
        return None
    from ..video_io import VideoReadError, probe_video

    try:
        return None if probe_video(open_video(video.path)).has_video else "no video stream"
    except VideoReadError as error:
        return str(error)
