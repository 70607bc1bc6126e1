"""Speed of the reader alone: `iter_segments` compared with bare PyAV, and videos in 1080p and 4K."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
from recordings import write_recording
from timing import REFERENCE, interleaved

from ave_clip.core.decode_threads import cpus_per_process
from ave_clip.core.video_io import iter_segments

# Frames per segment, and the fraction of bare PyAV's speed that is wanted.
READER_AT_LEAST = {1: 0.85, 4: 0.85, 16: 0.7}
SIZES = {"1080p": (1080, 1920), "4K": (2160, 3840)}
QUICK_SIZES = {"1080p": (54, 96), "4K": (108, 192)}
SECONDS = 5


def decode(video: Path) -> None:
    """Decodes all frames with PyAV and a frame thread per CPU, and does nothing with them."""
    with av.open(str(video)) as container:
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


def reader_rows(args: argparse.Namespace, video: Path) -> Iterator[tuple[str, float, float]]:
    """Yields name, ratio and wanted ratio for each number of frames per segment; all are run in turns."""
    calls: dict[str, Callable[[], None]] = {REFERENCE: lambda: decode(video)}
    for count in READER_AT_LEAST:
        calls[str(count)] = lambda count=count: read(video, count, "auto")
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
