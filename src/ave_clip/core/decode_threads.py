"""Threads that decode the frames of one video and convert them to images, and how many of each are used.

FFmpeg decodes several frames at once (frame threads); a few Python threads convert decoded frames to RGB and resize
them meanwhile. The results do not depend on the number of threads.
"""

import multiprocessing
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

AUTO = "auto"
MAX_DECODE_THREADS = 64
# More frame threads hardly decode faster, but each of them keeps frames in memory.
MAX_AUTO_THREADS = 16
# More than there are CPUs, so that each has a frame to decode while the reading thread is busy with something else.
EXTRA_FRAME_THREADS = 2
MAX_CONVERSION_THREADS = 6
# Bytes of decoded frames that frame threads may keep, and of images that are converted at the same time.
MAX_BYTES_IN_FLIGHT = 2**28
BYTES_PER_DECODED_PIXEL = 3  # 4:2:0 with 10 bits
BYTES_PER_IMAGE_PIXEL = 6  # native RGB and the result of a transform
BYTES_PER_HDR_PIXEL = 48  # tone mapping computes in float


def check_decode_threads(decode_threads: Any) -> None:
    """Raises `ValueError` unless `decode_threads` is "auto" or a number of threads."""
    is_number = isinstance(decode_threads, int) and not isinstance(decode_threads, bool)
    if decode_threads != AUTO and not (is_number and 1 <= decode_threads <= MAX_DECODE_THREADS):
        raise ValueError(
            f'Got decode_threads={decode_threads!r}, expected "auto" or a number of threads from 1 to '
            f"{MAX_DECODE_THREADS}."
        )


def parse_decode_threads(text: str) -> int | str:
    """Returns the value of a command-line option: "auto" or a number of threads; raises `ValueError` for others."""
    value = int(text) if text.isdecimal() else text
    check_decode_threads(value)
    return value


def num_decode_threads(decode_threads: int | str, width: int, height: int) -> int:
    """Returns how many frame threads decode a video with frames of this size.

    Args:
        decode_threads (`int` or `str`): A number; or `"auto"`: two more than the CPUs of this process, which are
            divided among the processes that torchrun or Accelerate started on this machine. One on a single CPU, and
            in child processes of `multiprocessing` (data loader workers), which run beside others.
        width, height (`int`): Size of a frame in pixels. Large frames get fewer threads.
    """
    num_threads = _num_cpus_for(decode_threads)
    if decode_threads == AUTO and num_threads > 1:
        num_threads = min(MAX_AUTO_THREADS, num_threads + EXTRA_FRAME_THREADS)
    by_bytes = MAX_BYTES_IN_FLIGHT // max(1, width * height * BYTES_PER_DECODED_PIXEL)
    return max(1, min(num_threads, max(2, by_bytes)))


def num_conversion_threads(decode_threads: int | str) -> int:
    """Returns how many threads convert frames beside those that decode: half as many as CPUs, 1 to 6."""
    return min(MAX_CONVERSION_THREADS, max(1, _num_cpus_for(decode_threads) // 2))


def _num_cpus_for(decode_threads: int | str) -> int:
    if decode_threads != AUTO:
        return int(decode_threads)
    return 1 if is_child_process() else cpus_per_process()


def cpus_per_process() -> int:
    """Returns the CPUs of this process, divided among those that torchrun or Accelerate started on this machine."""
    return max(1, _num_cpus() // processes_of_machine())


def processes_of_machine() -> int:
    """Returns how many processes torchrun or Accelerate started on this machine; 1 without them."""
    return max(1, _environment_number("LOCAL_WORLD_SIZE"))


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _environment_number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 1


def is_child_process() -> bool:
    """Whether this is a process that another one started to work beside others, such as a data loader worker."""
    # `datasets` starts its workers with the package multiprocess, which has a record of its own.
    other: Any = sys.modules.get("multiprocess")
    return multiprocessing.parent_process() is not None or (
        other is not None and getattr(other, "parent_process", lambda: None)() is not None
    )


class ThreadCheck:
    """Notices frames that frame threads lose at the end of a video.

    An error there ends all threads, and PyAV does not report it if one of them has returned a frame before.
    """

    def __init__(self):
        # Time stamps of the last packets that the threads were given, and of the last frames that they returned.
        self._given: deque[int | None] = deque(maxlen=MAX_DECODE_THREADS)
        self._returned: deque[int | None] = deque(maxlen=2 * MAX_DECODE_THREADS)

    def has_lost_frames(self, packet: Any | None, frames: list[Any], num_threads: int) -> bool:
        """To be called with each packet, `None` after the last one, and the frames that were returned for it."""
        self._returned.extend(frame.pts for frame in frames)
        if packet is not None:
            if not packet.is_discard:
                self._given.append(packet.pts)
            return False
        # Time stamps may repeat.
        return num_threads > 1 and not Counter(list(self._given)[-num_threads:]) <= Counter(self._returned)


class ConversionThreads:
    """Threads that convert decoded frames to images.

    Args:
        num_threads (`int`): Number of threads.
    """

    def __init__(self, num_threads: int):
        self.num_threads = num_threads
        # Its threads end with `close`, with this object, or with the interpreter.
        self._executor = ThreadPoolExecutor(self.num_threads, thread_name_prefix="ave-clip-frames")

    def submit(self, function: Callable, *arguments: Any) -> Future:
        return self._executor.submit(function, *arguments)

    def close(self) -> None:
        """Ends the threads; conversions that have not begun are dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class SegmentImages:
    """Converts the frames of one segment to one array, in other threads if there are any.

    Args:
        capacity (`int`): Largest number of frames.
        convert (`Callable`): Converts a decoded frame to an image `(height, width, 3)`.
        transform (`Callable`, *optional*): `frame_transform` of `iter_segments`. Called in order by the reading
            thread, unless it declares `is_thread_safe`.
        threads (`ConversionThreads`, *optional*): Where frames are converted.
    """

    def __init__(
        self, capacity: int, convert: Callable, transform: Callable | None, threads: ConversionThreads | None
    ):
        self._capacity, self._convert, self._threads = capacity, convert, threads
        is_thread_safe = getattr(transform, "is_thread_safe", False)
        self._transform_there = transform if is_thread_safe else None
        self._transform_here = None if is_thread_safe else transform
        self._images: np.ndarray | None = None
        self._lock = threading.Lock()
        self._number = 0
        self._running: deque[tuple[int, Future]] = deque()

    def add(self, frame: Any, image_bytes: int, at_once: bool = False) -> None:
        """Adds the next frame.

        Args:
            frame: Argument of `convert`.
            image_bytes (`int`): Memory that the conversion needs; limits how many are in flight.
            at_once (`bool`): Whether to convert it in this thread, before returning.
        """
        index, self._number = self._number, self._number + 1
        if self._threads is None or at_once:
            self._finish_all()
            self._finish(index, self._run(index, frame))
            return
        limit = max(1, min(self._threads.num_threads + 1, MAX_BYTES_IN_FLIGHT // max(1, image_bytes)))
        while len(self._running) >= limit:
            self._finish_oldest()
        self._running.append((index, self._threads.submit(self._run, index, frame)))

    def _run(self, index: int, frame: Any) -> np.ndarray | None:
        """Converts a frame; returns the image if it is still to be transformed and stored."""
        image = self._convert(frame)
        if self._transform_here is not None:
            return image
        self._store(index, image if self._transform_there is None else self._transform_there(image))
        return None

    def _store(self, index: int, image: np.ndarray) -> None:
        with self._lock:
            if self._images is None:
                self._images = np.empty((self._capacity, *image.shape), np.uint8)
        self._images[index] = image

    def _finish(self, index: int, image: np.ndarray | None) -> None:
        if image is not None and self._transform_here is not None:
            self._store(index, self._transform_here(image))

    def _finish_oldest(self) -> None:
        index, future = self._running.popleft()
        self._finish(index, future.result())

    def _finish_all(self) -> None:
        while self._running:
            self._finish_oldest()

    def result(self) -> np.ndarray | None:
        """Waits for all frames and returns their images `(number, height, width, 3)`; `None` without a frame."""
        self._finish_all()
        return None if self._images is None else self._images[: self._number]
