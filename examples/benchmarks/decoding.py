"""Speed of the reader alone: `iter_segments` compared with bare PyAV, and videos in 1080p and 4K."""

import argparse
import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from recordings import write_recording
from timing import REFERENCE, interleaved

from ave_clip.core.decode_threads import cpus_per_process
from ave_clip.core.video_io import iter_segments

# Frames per segment, and the fraction of bare PyAV's speed that is wanted.
READER_AT_LEAST = {1: 0.85, 4: 0.85, 16: 0.7}
SIZES = {"1080p": (1080, 1920), "4K": (2160, 3840)}
QUICK_SIZES = {"1080p": (54, 96), "4K": (108, 192)}
SECONDS = 5
COMPARED_FRAMES = 10


def decode(video: Path, hwaccel: HWAccel | None = None) -> None:
    """Decodes all frames with PyAV, a frame thread per CPU or a GPU's decoder, and does nothing with them."""
    with av.open(str(video), hwaccel=hwaccel) as container:
        context = container.streams.video[0].codec_context
        context.thread_type, context.thread_count = "FRAME", cpus_per_process()
        for _ in container.decode(video=0):
            pass


def read(video: Path, num_frames_per_segment: int, decode_threads: int | str) -> None:
    """Reads all segments, and does nothing with them."""
    options = {"num_frames_per_segment": num_frames_per_segment, "decode_threads": decode_threads}
    for _ in iter_segments(str(video), **options):
        pass


def seconds_of(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextlib.contextmanager
def on_two_cpus() -> Iterator[None]:
    """Keeps this thread, and those that it starts, on two CPUs."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cpus)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def reader_rows(args: argparse.Namespace, video: Path) -> Iterator[tuple[str, float, float]]:
    """Yields name, ratio and wanted ratio for each number of frames per segment; all are run in turns on two CPUs."""
    calls: dict[str, Callable[[], None]] = {REFERENCE: lambda: decode(video)}
    for count in READER_AT_LEAST:
        calls[str(count)] = lambda count=count: read(video, count, "auto")
    with on_two_cpus():
        times = interleaved(calls, args.rounds)
    for count, at_least in READER_AT_LEAST.items():
        yield f"reader, {count} frames per segment", times[str(count)]["ratio"], at_least


def decoding_rows(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float]]:
    """Yields name and speed, in times real time, of large videos with 4 frames per segment."""
    for name, size in (QUICK_SIZES if args.quick else SIZES).items():
        length = 1 if args.quick else SECONDS
        video = write_recording(folder / f"{name}.mp4", length, size=size)
        seconds = statistics.median(seconds_of(lambda video=video: read(video, 4, "auto")) for _ in range(args.rounds))
        yield f"decoding, {name}, 4 frames per segment", length / seconds


def hardware_rows(args: argparse.Namespace, folder: Path, hwaccel: HWAccel | None) -> Iterator[tuple[str, float]]:
    """Yields how much faster a GPU's decoder is than the CPUs, on the videos of `decoding_rows`, and its difference.

    Decoded frames are copied to the CPU, as the reader needs them there.
    """
    for name in QUICK_SIZES if args.quick else SIZES:
        video = folder / f"{name}.mp4"
        times = interleaved(
            {REFERENCE: lambda video=video: decode(video), "GPU": lambda video=video: decode(video, hwaccel)},
            args.rounds,
        )
        yield f"decoding, {name}, the GPU's decoder, CPUs = 1", times["GPU"]["ratio"]
        frames, others = first_images(video, None), first_images(video, hwaccel)
        yield f"decoding, {name}, largest difference in grey levels", float(np.abs(frames - others).max())


def first_images(video: Path, hwaccel: HWAccel | None) -> np.ndarray:
    """Returns the first frames as RGB, `(number, height, width, 3)` int16."""
    with av.open(str(video), hwaccel=hwaccel) as container:
        frames = itertools.islice(container.decode(video=0), COMPARED_FRAMES)
        return np.stack([frame.to_ndarray(format="rgb24").astype(np.int16) for frame in frames])
