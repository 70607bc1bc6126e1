"""Decodes the audio of an open container to mono samples, positioned by time stamp."""

from collections import deque
from typing import Any

import numpy as np

from .audio_mixing import MonoMixer
from .segments import copy_overlap
from .video_decoding import Demuxer

# A lost packet of the usual codecs causes a gap of 20 ms or more; rounded time stamps (Matroska, FLV) are off by 1 ms.
AUDIO_JITTER_SECONDS = 0.01


class AudioTrack:
    """Audio of a recording: mono float32 at one sampling rate, positioned by time stamp.

    Args:
        demuxer (`Demuxer`): Source of the packets.
        sampling_rate (`int`): Samples per second of the result.
    """

    def __init__(self, demuxer: Demuxer, sampling_rate: int):
        self.recording = demuxer.recording
        self.sampling_rate = sampling_rate
        self._demuxer = demuxer
        self.num_decoded = 0
        self._frames = demuxer.frames(self.recording.audio)
        self._chunks: deque[tuple[int, np.ndarray]] = deque()  # first sample, samples
        self._mixer: MonoMixer | None = None
        self._format: tuple | None = None
        self._expected = 0.0  # time at which the next frame should start
        self._next_sample = 0  # index of the next resampled sample
        self._finished = False

    @property
    def known_end(self) -> float:
        """End of the audio in seconds, as far as known."""
        return self._next_sample / self.sampling_rate if self.num_decoded else 0.0

    def samples(self, start: int, length: int) -> np.ndarray:
        """Returns samples `[start, start + length)` from time zero, zeros in gaps. Earlier samples are dropped."""
        while not self._finished and self._next_sample < start + length:
            self._decode_next()
        out = np.zeros(length, np.float32)
        for chunk_start, chunk in self._chunks:
            copy_overlap(out, start, chunk, chunk_start)
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= start + length:
            self._chunks.popleft()
        return out

    def _decode_next(self) -> None:
        import av

        time, frame = next(self._frames, (None, None))
        if frame is None:
            self._finished = True
            self._flush()
            return
        self.num_decoded += 1
        time = self._expected if time is None else time
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        frame.pts = None
        try:
            is_placed = frame_format == self._format and abs(time - self._expected) <= AUDIO_JITTER_SECONDS
            if self._mixer is None or not is_placed:
                self._mixer = self._begin_run(time, frame, frame_format)
            self._append(self._mixer.push(frame), self._mixer)
            self._expected += frame.samples / frame.sample_rate
        except (
            av.FFmpegError,
            ValueError,
            ZeroDivisionError,
        ) as error:  # a damaged packet declared an impossible format
            self._demuxer.count_error(self.recording.audio, error)
            self._mixer = self._format = None

    def _begin_run(self, time: float, frame: Any, frame_format: tuple) -> MonoMixer:
        """Starts a run of audio without gaps at `time`; between two runs there is silence."""
        self._flush()
        mixer = MonoMixer(frame, self.recording.channel_names, self.sampling_rate)
        self._format = frame_format
        self._expected = time
        self._next_sample = round(time * self.sampling_rate)
        return mixer

    def _flush(self) -> None:
        if self._mixer is not None:
            self._append(self._mixer.push(None), self._mixer)
            self._mixer = None

    def _append(self, mixed: list[np.ndarray], mixer: MonoMixer) -> None:
        for samples in mixed:
            self._chunks.append((self._next_sample, np.clip(samples, -1.0, 1.0)))
            self._next_sample += len(samples)
        if mixer.has_cancelled:
            self.recording.warn_once(
                "the channels of its audio cancel each other out when they are mixed to mono (one of them is "
                "inverted), so the loudest channel is used there."
            )
