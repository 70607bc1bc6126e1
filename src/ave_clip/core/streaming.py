"""Streaming of videos: sources of segments, reading ahead in a thread, and averages over overlapping windows."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .live_source import LiveInput
from .processing_ave_clip import AVEClipProcessor
from .recording import Recording
from .segments import audio_windows, num_segments_for
from .video_clip import ReadOptions, Segment
from .video_io import SegmentReader
from .video_processing_ave_clip import is_file
from .video_source import VideoReadError, open_container, source_name

logger = logging.get_logger(__name__)

_WINDOWS_PER_CALL = 64


class VideoSource:
    """One input of the pipeline: an iterator over its segments, whose attributes are updated during the iteration.

    Attributes:
        name (`str`): Name for messages.
        num_segments (`int`): Number of segments by the declared length of the file; the actual number may differ.
        duration (`float`): Seconds read so far.
        missing (`str`, *optional*): `"audio"` or `"video"` if the file has no such track.
    """

    def __init__(self, name: str, segments: Iterable[Segment] = (), duration: float = 0.0) -> None:
        self.name, self.segments, self.duration = name, segments, duration
        self.num_segments = 0
        self.missing: str | None = None

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    @property
    def is_resized(self) -> bool:
        """Whether the frames read so far have the processor's size."""
        return True


class FileSource(VideoSource):
    """A video file, which is opened at the first segment and read in one pass."""

    def __init__(self, file: Any, options: ReadOptions) -> None:
        super().__init__(source_name(file))
        self.file, self.options = file, options

    @property
    def is_resized(self) -> bool:
        transform = self.options.frame_transform
        return not isinstance(transform, LargeFramesOnly) or transform.was_applied

    def __iter__(self) -> Iterator[Segment]:
        with open_container(self.file, self.options.download_limits) as container:
            recording = Recording(container, self.name, self.options.audio_track)
            self.num_segments = num_segments_for(recording.duration_seconds, self.options.segment_seconds)
            if recording.audio is None or recording.video is None:
                self.missing = "video" if recording.video is None else "audio"
                logger.warning(
                    f"{self.name} has no {self.missing} track, so it has no audio-visual event: all background."
                )
            options = self.options
            if self.missing:  # only the length is needed: decode as little as possible
                options = replace(options, num_frames_per_segment=1, size=(2, 2), frame_transform=None)
            reader = SegmentReader(recording, options)
            for segment in reader:
                self.duration = reader.duration_seconds
                yield segment
            self.duration = reader.duration_seconds


class LiveSource(FileSource):
    """A stream that is still being written, read forward only; [`stop`] ends it from another thread.

    Args:
        source: See `live_source.py`.
        options (`ReadOptions`): Options for reading.
        silent_seconds (`float`): See [`LiveInput`].
    """

    def __init__(self, source: Any, options: ReadOptions, silent_seconds: float) -> None:
        super().__init__(source, options)
        self.input = LiveInput(source, silent_seconds)

    def stop(self) -> None:
        """Ends the stream at once."""
        self.input.stop()

    def __iter__(self) -> Iterator[Segment]:
        with self.input.open() as container:
            recording = Recording(container, self.name, self.options.audio_track, is_live=True)
            if recording.audio is None or recording.video is None:
                missing = "video" if recording.video is None else "audio"
                raise VideoReadError(
                    f"Cannot localize {self.name} live: it has no {missing} track, so it never has an audio-visual "
                    f"event. Check that the sender sends {missing} from the beginning."
                )
            reader = SegmentReader(recording, self.options)
            for segment in reader:
                self.duration = reader.duration_seconds
                yield segment
            self.duration = reader.duration_seconds


class LargeFramesOnly:
    """A frame transform that leaves small frames to a GPU, which resizes them faster than the CPU decodes them.

    Frames of one video all have the same size, so it is applied to all of them or to none.

    Args:
        transform (`Callable`): Resizes a frame `(height, width, 3)`.
        max_bytes (`int`): Largest frame that is left as it is.
    """

    is_thread_safe = True

    def __init__(self, transform: Callable[[np.ndarray], np.ndarray], max_bytes: int) -> None:
        self.transform, self.max_bytes = transform, max_bytes
        self.was_applied = False

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.was_applied = frame.nbytes > self.max_bytes
        return self.transform(frame) if self.was_applied else frame


def open_source(
    inputs: Any,
    processor: AVEClipProcessor,
    num_frames_per_segment: int,
    segment_seconds: float,
    max_native_bytes: int = 0,
    live_timeout: float | None = None,
    **reading: Any,
) -> VideoSource:
    """Opens a file or decoded arrays for streaming.

    Args:
        inputs: A path, bytes, file object or URL; or `{"frames", "frame_rate", "audio", "sampling_rate"}`.
        processor ([`AVEClipProcessor`]): Gives the sampling rate and cuts decoded arrays.
        num_frames_per_segment (`int`), segment_seconds (`float`): The time grid.
        max_native_bytes (`int`): Frames of a file up to this size are not resized; the `is_resized` of the source
            tells.
        live_timeout (`float`, *optional*): Reads `inputs` as a [`LiveSource`] with this number of silent seconds.
        reading: `audio_track`, `max_download_bytes`, `max_download_seconds` and `decode_threads` of `iter_segments`.

    Raises:
        ValueError: If `inputs` is neither, or a dictionary with other keys.
    """
    if isinstance(inputs, dict) and not is_file(inputs) and live_timeout is None:
        return _open_arrays(inputs, processor, num_frames_per_segment, segment_seconds)
    if not is_file(inputs):
        raise ValueError(
            f"Got a {type(inputs).__name__} as video. Pass a path, bytes, a binary file object or a URL, or decoded "
            'frames as {"frames": array, "frame_rate": 25, "audio": waveform, "sampling_rate": 44100}.'
        )
    options = ReadOptions(
        sampling_rate=processor.feature_extractor.sampling_rate,
        num_frames_per_segment=num_frames_per_segment,
        segment_seconds=segment_seconds,
        **reading,
        frame_transform=LargeFramesOnly(processor.video_processor.frame_transform(), max_native_bytes),
    )
    return FileSource(inputs, options) if live_timeout is None else LiveSource(inputs, options, live_timeout)


def _open_arrays(inputs: dict[str, Any], processor: AVEClipProcessor, count: int, seconds: float) -> VideoSource:
    known = {"frames", "frame_rate", "audio", "sampling_rate"}
    if "frames" not in inputs or set(inputs) - known:
        raise ValueError(
            f"A decoded video is a dictionary with `frames` and some of {sorted(known)}; got {sorted(inputs)}."
        )
    options = {
        "num_frames_per_segment": count,
        "segment_seconds": seconds,
        "frame_rate": inputs.get("frame_rate"),
        "frame_transform": processor.video_processor.frame_transform(),
    }
    clip = processor.cut(inputs["frames"], inputs.get("audio"), inputs.get("sampling_rate"), **options)
    segments = [
        Segment(index, *parts) for index, parts in enumerate(zip(clip.frames, clip.frame_times, clip.waveforms))
    ]
    source = VideoSource("decoded video", segments, min(clip.duration_seconds, clip.num_segments * seconds))
    if inputs.get("audio") is None:
        source.missing = "audio"
        logger.warning("The decoded video has no `audio`, so it has no audio-visual event: all background.")
    return source


def with_audio_windows(segments: Iterable[Segment], window_samples: int) -> Iterator[Segment]:
    """Yields the segments with the audio around each in place of its own, see [`audio_windows`]."""
    segments, waveforms = itertools.tee(segments)  # keeps the few segments that a window reaches ahead
    windows = audio_windows((segment.waveform for segment in waveforms), window_samples)
    for segment, window in zip(segments, windows):
        yield replace(segment, waveform=window)


def find_frame_sources(pixels: torch.Tensor, frame_mask: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Finds the frames of a block that are near-identical to the last encoded frame.

    Args:
        pixels (`torch.Tensor` of shape `(1, num_segments, num_frames, 3, height, width)`): uint8, on the CPU.
        frame_mask (`torch.BoolTensor` of shape `(1, num_segments, num_frames)`): Which frames are real.
        tolerance (`float`): Largest mean absolute difference, in grey levels.

    Returns:
        `torch.LongTensor` like `frame_mask`: for each real frame the number of the frame whose encoding it uses.
    """
    sources = torch.arange(frame_mask.numel())
    # In numpy, because this runs in the reading thread and must not take torch's threads from the model.
    frames, encoded = pixels.flatten(0, 2).numpy(), None
    for number in frame_mask.flatten().nonzero()[:, 0].tolist():
        if encoded is None or _difference(frames[number], frames[encoded]) > tolerance:
            encoded = number
        sources[number] = encoded
    return sources.view(frame_mask.shape)


def _difference(frame: np.ndarray, other: np.ndarray) -> float:
    larger, smaller = np.maximum(frame, other), np.minimum(frame, other)  # stays uint8, unlike a signed difference
    return float(np.mean(larger - smaller))


def ahead(items: Generator[Any, None, None], stop: Callable[[], None] | None = None) -> Generator[Any, None, None]:
    """Yields items that a thread produces one ahead of the caller.

    An error in the thread is raised in place of the next item. Closing this iterator stops the thread, with the help
    of `stop` if the thread may wait for something without end.
    """
    buffer: queue.Queue = queue.Queue(maxsize=1)
    is_closed = threading.Event()

    def put(item: Any, error: BaseException | None, is_end: bool) -> None:
        # With a timeout: a thread that waits for space would never see that the caller has closed the iterator.
        while not is_closed.is_set():
            try:
                return buffer.put((item, error, is_end), timeout=0.05)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item, None, False)
                if is_closed.is_set():
                    break
            put(None, None, True)
        except BaseException as error:  # raised in the caller's thread
            put(None, error, True)
        finally:
            items.close()

    thread = threading.Thread(target=make, name="ave-clip-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = buffer.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item
    finally:
        is_closed.set()
        if stop is not None:
            stop()
        thread.join()


class WindowLogits:
    """Runs the temporal part over overlapping windows as segments arrive, and averages where windows overlap.

    Args:
        model ([`AVEClipForLocalization`]): Its `localize` is called with up to 64 windows at once.
        window (`int`): Segments of a window.
        overlap (`float`): Fraction of a window that the next one repeats.
    """

    def __init__(self, model: Any, window: int, overlap: float) -> None:
        self.model, self.window = model, window
        self.width = model.config.num_labels
        # The boundary head runs once over the whole video, on averages of what it sees in each window.
        self.keeps_hidden = getattr(model.config, "boundary_regression", False)
        if self.keeps_hidden:
            self.width += model.config.hidden_size
        self.stride = max(1, window - round(window * overlap))
        self.next_start = 0  # start of the next regular window
        self.kept_from = 0  # segments before this one are final and no longer kept
        self.kept: list[torch.Tensor] = []  # visual, audio, sum of logits, number of windows

    def add(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Processes the next segments.

        Args:
            visual (`torch.Tensor` of shape `(num_segments, width)`), audio (same): Results of `attend` and `encode`.

        Returns:
            `torch.Tensor` of shape `(num_final, num_labels)`: Averaged logits of the next segments that no later
            window will contain. With `boundary_regression`, the averaged last hidden state follows the logits:
            `(num_final, num_labels + hidden_size)`.
        """
        visual, audio = visual.to(self.model.device), audio.to(self.model.device)
        total = torch.zeros(len(visual), self.width, device=self.model.device)
        fresh = [visual, audio, total, total[:, :1].clone()]
        self.kept = [torch.cat(pair) for pair in zip(self.kept, fresh)] if self.kept else fresh
        seen = self.kept_from + len(self.kept[0])
        starts = list(range(self.next_start, seen - self.window + 1, self.stride))
        if starts:
            self._run(starts, self.window)
            self.next_start = starts[-1] + self.stride
        # The last window ends with the video, whose end is not known yet: it may contain the latest `window` segments.
        return self._release(max(self.kept_from, min(self.next_start, seen - self.window)))

    def finish(self) -> torch.Tensor:
        """Returns the averaged logits of the remaining segments, after the end of the video."""
        seen = self.kept_from + len(self.kept[0])
        last = max(0, seen - self.window)
        if last > self.next_start - self.stride:  # not a regular window, which has been run already
            self._run([last], min(self.window, seen))
        return self._release(seen)

    @torch.no_grad()
    def _run(self, starts: list[int], length: int) -> None:
        visual, audio, total, number = self.kept
        first = torch.tensor(starts, device=visual.device) - self.kept_from
        for rows in (first[:, None] + torch.arange(length, device=visual.device)).split(_WINDOWS_PER_CALL):
            output = self.model.localize(visual[rows], audio[rows])
            values = output.logits.float()
            if self.keeps_hidden:
                values = torch.cat([values, output.hidden_states[-1].float()], dim=-1)
            total.index_add_(0, rows.flatten(), values.flatten(0, 1))
            number.index_add_(0, rows.flatten(), torch.ones_like(values[..., :1]).flatten(0, 1))

    def _release(self, end: int) -> torch.Tensor:
        count = end - self.kept_from
        total, number = self.kept[2][:count], self.kept[3][:count]
        self.kept_from, self.kept = end, [tensor[count:] for tensor in self.kept]
        return (total / number).cpu()


__all__ = ["VideoSource", "WindowLogits", "ahead", "find_frame_sources", "open_source", "with_audio_windows"]
