"""The time grid: which frames and which samples belong to segment `t`. Plain numpy, no file access.

A video of `T` segments covers `[0, T * segment_seconds)`. Segment `t` covers `[t, t + 1) * segment_seconds` and owns

* the samples `[round(t * segment_seconds * sampling_rate), + round(segment_seconds * sampling_rate))`;
* the frames on display at the centres of `num_frames_per_segment` equal parts of it.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

# Containers round time stamps (Matroska: to 1 ms; 30 fps has no finite decimal). A frame that starts this little after
# a wanted time counts as on display at it.
TIME_TOLERANCE_SECONDS = 1e-6

# Fewer frames than this show no rate. In frames at a constant rate there is no longer pause.
MIN_FRAMES_OF_A_RATE = 5
MAX_PAUSE_SECONDS = 0.5


def num_segments_for(duration_seconds: float, segment_seconds: float = 1.0) -> int:
    """Number of segments of a recording; a last partial segment counts when at least half a segment long.

    Args:
        duration_seconds (`float`): Length of the recording, 0 or more.
        segment_seconds (`float`): Length of one segment.

    Returns:
        `int`: At least 1.

    Raises:
        ValueError: If `segment_seconds` is not positive, or `duration_seconds` is negative or not finite.

    >>> num_segments_for(10.04), num_segments_for(10.5), num_segments_for(0.2)
    (10, 11, 1)
    """
    check_positive("segment_seconds", segment_seconds)
    if not (math.isfinite(duration_seconds) and duration_seconds >= 0):
        raise ValueError(f"Got duration_seconds={duration_seconds}, expected a finite number of seconds, 0 or more.")
    # The tolerance keeps 9.4999999999 (the float next to 9.5) from losing its half segment.
    return max(1, math.floor(duration_seconds / segment_seconds + 0.5 + TIME_TOLERANCE_SECONDS))


def frame_times(segment_index: int, num_frames_per_segment: int, segment_seconds: float = 1.0) -> np.ndarray:
    """Times at which a segment's frames are wanted: the centres of equal parts.

    Args:
        segment_index (`int`): Which segment, 0 or more.
        num_frames_per_segment (`int`): How many frames (K).
        segment_seconds (`float`): Length of one segment.

    Returns:
        `np.ndarray` of shape `(num_frames_per_segment,)`, float64: Seconds after the start of segment 0, ascending.

    >>> frame_times(2, 4).tolist()
    [2.125, 2.375, 2.625, 2.875]
    """
    parts = (np.arange(num_frames_per_segment, dtype=np.float64) + 0.5) / num_frames_per_segment
    return (segment_index + parts) * segment_seconds


def next_frame_time(time: float, num_frames_per_segment: int, segment_seconds: float = 1.0) -> float:
    """Returns the first of all `frame_times` at or after a time, within rounding; in seconds after the same start.

    >>> next_frame_time(2.2, 4), next_frame_time(-1.0, 4)
    (2.375, 0.125)
    """
    step = segment_seconds / num_frames_per_segment
    return (max(0, math.ceil(time / step - 0.5)) + 0.5) * step


def samples_per_segment(sampling_rate: int, segment_seconds: float = 1.0) -> int:
    """Number of audio samples in one segment, the same for every segment."""
    return round(segment_seconds * sampling_rate)


def first_sample(segment_index: int, sampling_rate: int, segment_seconds: float = 1.0) -> int:
    """Index of a segment's first sample. Rounded from the start each time, so that segments never drift."""
    return round(segment_index * segment_seconds * sampling_rate)


def cut_waveform(
    waveform: np.ndarray, num_segments: int, sampling_rate: int, segment_seconds: float = 1.0, start_sample: int = 0
) -> np.ndarray:
    """Cuts a waveform into segments.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Mono audio.
        num_segments (`int`): How many segments (T).
        sampling_rate (`int`): Samples per second.
        segment_seconds (`float`): Length of one segment.
        start_sample (`int`): Where segment 0 begins in `waveform`; negative if the audio starts later.

    Returns:
        `np.ndarray` of shape `(num_segments, samples_per_segment)`: A copy of the same dtype, zero outside `waveform`.

    Raises:
        ValueError: If `waveform` is not 1-dimensional.
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise ValueError(
            f"Got a waveform of shape {waveform.shape}, expected (num_samples,). Mix the channels down to one first, "
            "for example with `waveform.mean(axis=0)` for (channels, samples)."
        )
    length = samples_per_segment(sampling_rate, segment_seconds)
    segments = np.zeros((num_segments, length), dtype=waveform.dtype)
    for index in range(num_segments):
        start = start_sample + first_sample(index, sampling_rate, segment_seconds)
        copy_overlap(segments[index], start, waveform, 0)
    return segments


def audio_windows(waveforms: Iterable[np.ndarray], window_samples: int) -> Iterator[np.ndarray]:
    """Yields the audio around each segment, as segments arrive; it reads ahead by what a window contains after them.

    Args:
        waveforms (`Iterable[np.ndarray]`): Waveform `(samples_per_segment,)` of each segment in order.
        window_samples (`int`): Number of samples of a window, at least as many as those of a segment.

    Yields:
        `np.ndarray` of shape `(num_samples,)`: The window with the segment in its middle; shorter at both ends of the
        video, where there is no more audio.
    """
    kept: list[np.ndarray] = []
    position = side = 0  # place in `kept` of the next segment to yield; samples of a window before and after it
    for waveform in waveforms:
        kept.append(waveform)
        side = (window_samples - len(waveform)) // 2
        around = -(-side // len(waveform))  # number of segments that a window reaches into on either side
        if position + around < len(kept):
            yield _window(kept, position, side, window_samples)
            position += 1
            if position > around:  # the first one is out of reach
                del kept[0]
                position -= 1
    for index in range(position, len(kept)):
        yield _window(kept, index, side, window_samples)


def _window(waveforms: list[np.ndarray], index: int, side: int, window_samples: int) -> np.ndarray:
    start = sum(map(len, waveforms[:index])) - side
    return np.concatenate(waveforms)[max(0, start) : start + window_samples]


def copy_overlap(target: np.ndarray, target_start: int, samples: np.ndarray, samples_start: int) -> None:
    """Write into `target` the part of `samples` that falls inside it; both positions are on one common sample axis."""
    start = max(target_start, samples_start)
    end = min(target_start + len(target), samples_start + len(samples))
    if start < end:
        target[start - target_start : end - target_start] = samples[start - samples_start : end - samples_start]


def select_frames(display_times: np.ndarray, wanted: np.ndarray, end: float) -> np.ndarray:
    """Pick the frame on display at each wanted time, each frame once.

    Args:
        display_times (`np.ndarray` of shape `(num_frames,)`): When each frame appears, in seconds, ascending.
        wanted (`np.ndarray` of shape `(num_wanted,)`): Times asked for, ascending.
        end (`float`): When the last frame disappears; nothing is on display from then on.

    Returns:
        `np.ndarray` of shape `(num_selected,)`, int64: Ascending indices into `display_times`. A wanted time before
        the first frame, or at or after `end`, selects nothing; a frame on display at several of them comes once.
    """
    display_times, wanted = np.asarray(display_times, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    wanted = wanted[wanted < end]
    indices = np.searchsorted(display_times, wanted + TIME_TOLERANCE_SECONDS, side="right") - 1
    return np.unique(indices[indices >= 0])


def last_frame_stays(display_times: np.ndarray) -> bool:
    """Returns whether a video's last frame is displayed until the audio ends, as in players.

    This is the case if frames are stored only when something changes: a single image, a slide show, a screen
    recording. If frames at a constant rate stop before the audio, the video ends there. Single frames may be missing
    in it, and the time stamps of phones vary by a few milliseconds.

    Args:
        display_times (`np.ndarray` of shape `(num_frames,)`): When each frame appears, in seconds, ascending.

    >>> last_frame_stays(np.array([0.0])), last_frame_stays(np.arange(50) / 25)
    (True, False)
    """
    if len(display_times) < MIN_FRAMES_OF_A_RATE:
        return True
    steps = np.diff(display_times)
    usual = np.median(steps)
    is_even = np.mean(np.abs(steps - usual) <= usual / 2) >= 0.9
    return bool(not is_even or steps.max() > max(MAX_PAUSE_SECONDS, 3 * usual))


def check_positive(name: str, value: float) -> None:
    """Raises `ValueError` unless `value` is a finite number above 0."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"Got {name}={value!r}, expected a finite number above 0.")
