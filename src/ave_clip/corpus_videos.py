"""Localizes many videos: several are read at the same time, in processes of their own, and encoded together.

```text
numbers of videos ──> reading processes, one video each ──> blocks ──> the process with the model ──> results
```

A GPU encodes faster than one Python process reads, whatever its number of threads: about 0.2 ms of the work per frame
can only be done by one thread at a time. On a GPU, segments of several videos share a tower batch. On a CPU larger
batches are not faster: each block is encoded alone, and the results are the same bit by bit as those of a call of the
pipeline.

Blocks reach the process with the model through shared memory. Each reading process keeps at most three of them, and
the number of these processes on the machine is limited so that their blocks take at most half of the free shared
memory.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset

from .core.decode_threads import AUTO, cpus_per_process, processes_of_machine
from .core.pipeline_base import VideoPipeline
from .core.streaming import ahead

logger = logging.getLogger(__name__)

MAX_WORKERS_FOR_GPU, MAX_WORKERS_FOR_CPU = 32, 8
BLOCKS_AHEAD = 2  # of each reading process, which wait for the process with the model; it prepares one more meanwhile
SHARED_MEMORY = Path("/dev/shm")
POLL_SECONDS = 0.5  # after which a waiting reading process checks that the process with the model still runs


class Videos(Protocol):
    """A numbered sequence of videos, such as `Corpus`."""

    def open(self, number: int) -> tuple[str, Any]:
        """Returns the name of a video and what the pipeline takes."""
        ...


@dataclass(frozen=True)
class ReadingPlan:
    """How many videos are read at the same time.

    Attributes:
        num_workers (`int`): Number of reading processes; 0 reads one video at a time, in a thread.
        decode_threads (`int` or `str`): Decoding threads of each video.
    """

    num_workers: int = 0
    decode_threads: int | str = AUTO


def plan_reading(
    localizer: VideoPipeline,
    num_videos: int,
    num_workers: int | None = None,
    decode_threads: int | str = AUTO,
    num_processes: int = 1,
) -> ReadingPlan:
    """Chooses how many videos are read at once, from the CPUs, the device and the free shared memory.

    Args:
        localizer ([`VideoPipeline`]): The pipeline.
        num_videos (`int`): Number of videos to read.
        num_workers (`int`, *optional*): Number of reading processes. Default for a model on a GPU: the CPUs less one;
            for one on the CPU: half of the CPUs, because the model needs them, too. At most one per video.
        decode_threads (`int` or `str`): Threads per video. Default: the CPUs divided among the videos.
        num_processes (`int`): Number of processes on this machine that share its CPUs, apart from those that torchrun
            or Accelerate started.
    """
    cpus = max(1, cpus_per_process() // num_processes)
    if num_workers is None:
        is_cpu = localizer.device.type == "cpu"
        num_workers = min(MAX_WORKERS_FOR_CPU, cpus // 2) if is_cpu else min(MAX_WORKERS_FOR_GPU, cpus - 1)
        num_workers = max(1, num_workers)
    num_workers = min(num_workers, num_videos, _most_workers(localizer, num_processes * processes_of_machine()))
    if decode_threads == AUTO and num_workers:
        decode_threads = max(1, cpus // num_workers)
    return ReadingPlan(num_workers, decode_threads)


def _most_workers(localizer: VideoPipeline, num_processes: int) -> int:
    """Returns how many reading processes the free shared memory allows each process with a model."""
    # The processes are forked, so they need not load the processor again. Other systems than Linux cannot fork, or not
    # safely.
    if sys.platform != "linux" or not SHARED_MEMORY.is_dir():
        return 0
    free = os.statvfs(SHARED_MEMORY)
    return free.f_bavail * free.f_frsize // (2 * num_processes * (BLOCKS_AHEAD + 1) * _block_bytes(localizer))


def _block_bytes(localizer: VideoPipeline) -> int:
    """Returns the bytes of the largest block: its frames as uint8, and its audio as float32."""
    processor = localizer.segmenter.video_processor
    count = localizer.stage_options({})[0].get("num_frames_per_segment") or processor.num_frames_per_segment
    size = processor.crop_size if processor.do_center_crop else processor.size
    side = max(getattr(size, name, None) or 1 for name in ("height", "width", "shortest_edge", "longest_edge"))
    segment_bytes = 3 * side * side * count + 4 * localizer.segmenter.window_samples
    return localizer.block_segments(count) * segment_bytes


@dataclass
class ReadBlock:
    """A part of a video, as its reader returns it.

    Attributes:
        number (`int`): Number of the video.
        name (`str`): Its name.
        inputs (`dict`, *optional*): A block of `read_blocks`; `None` if the video cannot be read any further.
        error (`str`, *optional*): Why it cannot be read.
    """

    number: int
    name: str
    inputs: dict[str, Any] | None = None
    error: str | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing of this video follows."""
        return self.inputs is None or self.inputs["is_last"]

    @property
    def must_be_encoded(self) -> bool:
        """Whether its video has both tracks; without one of them, all segments are background."""
        return self.inputs is not None and self.inputs["info"]["missing"] is None

    def pin_memory(self) -> "ReadBlock":
        """Copies its tensors into memory from which a GPU copies fastest; called by the data loader."""
        inputs = self.inputs and {
            name: value.pin_memory() if isinstance(value, torch.Tensor) else value
            for name, value in self.inputs.items()
        }
        return ReadBlock(self.number, self.name, inputs, self.error)


def localize_videos(
    localizer: VideoPipeline, videos: Videos, numbers: Iterable[int], plan: ReadingPlan
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Yields number and result of each video, in the order in which they are done.

    Args:
        localizer ([`VideoPipeline`]): The pipeline.
        videos ([`Videos`]): Gives each video by its number.
        numbers (`Iterable[int]`): Numbers of the videos; the next one is taken only when a reader needs it soon.
        plan ([`ReadingPlan`]): How they are read.

    Yields:
        `tuple[int, dict]`: The number; and `video` (the name), `error` (`None` if it worked), `segments` and `events`
        (both `None` with an error).

    Raises:
        MemoryError, torch.OutOfMemoryError: if memory is exhausted, which would stop the other videos as well.
    """
    _, forward, postprocess = localizer.stage_options({})
    parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    errors: dict[int, str] = {}
    with contextlib.closing(_read(localizer, videos, numbers, plan)) as blocks:
        for batch in _batches(blocks, localizer):
            for block, part in zip(batch, _encode(localizer, batch, forward)):
                if isinstance(part, str):
                    errors.setdefault(block.number, part)
                else:
                    parts[block.number].append(part)
                if not block.is_last:
                    continue
                result: dict[str, Any] = {"segments": None, "events": None}
                done, error = parts.pop(block.number, []), errors.pop(block.number, None)
                if error is None:
                    try:
                        # pyrefly: ignore[bad-argument-type]  (transformers declares the output of one block)
                        result = localizer.postprocess(done, **postprocess)
                    except Exception as failure:
                        error = _reason(failure)
                if error is not None:
                    logger.warning("%s: %s", block.name, error)
                yield block.number, {"video": block.name, "error": error, **result}


def _reason(error: Exception) -> str:
    """Returns the message of an error of one video; raises a fault of the machine again."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        raise error
    return str(error) or type(error).__name__


def _batches(blocks: Iterable[ReadBlock], localizer: VideoPipeline) -> Iterator[list[ReadBlock]]:
    """Yields blocks in groups that fill a tower batch of the device, in the order in which they come."""
    batch: list[ReadBlock] = []
    num_segments = 0
    for block in blocks:
        batch.append(block)
        if block.inputs is not None and block.must_be_encoded:
            num_segments += int(block.inputs["segment_mask"].sum())
        if num_segments >= _joined_segments(localizer, block) or not num_segments:
            yield batch
            batch, num_segments = [], 0
    if batch:
        yield batch


def _joined_segments(localizer: VideoPipeline, block: ReadBlock) -> int:
    """Returns the number of segments that fill a batch."""
    if localizer.device.type == "cpu" or block.inputs is None:
        return 1
    return localizer.block_segments(block.inputs["frame_mask"].shape[-1])


def _encode(localizer: VideoPipeline, batch: list[ReadBlock], options: dict[str, Any]) -> list[dict[str, Any] | str]:
    """Returns for each block what `postprocess` takes, or the error."""
    inputs = [block.inputs for block in batch if block.inputs is not None and block.must_be_encoded]
    try:
        encoded = iter(localizer.encode_together(inputs, **options) if inputs else [])
    except Exception as error:
        reason = _reason(error)
        if len(batch) == 1:
            return [reason]
        # Each block alone: the error is then only that of the blocks that cause it.
        return [part for block in batch for part in _encode(localizer, [block], options)]
    found: list[dict[str, Any] | str] = []
    for block in batch:
        if block.inputs is None:
            found.append(block.error or "")
        else:
            found.append(next(encoded) if block.must_be_encoded else {"info": block.inputs["info"]})
    return found


def _read(
    localizer: VideoPipeline, videos: Videos, numbers: Iterable[int], plan: ReadingPlan
) -> Generator[ReadBlock, None, None]:
    """Yields the blocks of all videos; those of one video are in order, with blocks of others between them."""
    options = {**localizer.stage_options({})[0], "decode_threads": plan.decode_threads}
    if plan.num_workers == 0:
        for number in numbers:
            yield from ahead(_read_video(localizer, videos, number, options))
        return
    waiting: Any = multiprocessing.get_context("fork").Queue()
    # Each reader has one more number waiting, so that it can go on while this process encodes. A single reader has
    # none: it reads blocks ahead anyway, and no other process can compute a video whose number is taken early.
    most_open = plan.num_workers if plan.num_workers == 1 else 2 * plan.num_workers
    num_open, following = 0, iter(numbers)
    try:
        # Starts the processes. Numbers are taken afterwards, so that no process inherits the claims of their parts.
        blocks = iter(_reading_processes(_Reader(localizer, videos, options, waiting), plan.num_workers))
        _leave_lost_readers_to_the_loader()
        while True:
            while following is not None and num_open < most_open:
                number = next(following, None)
                if number is None:
                    following = None
                    _end_readers(waiting, plan)
                else:
                    waiting.put(number)
                    num_open += 1
            block = next(blocks, None)
            if block is None:
                return
            num_open -= block.is_last
            yield block
    finally:
        _end_readers(waiting, plan)
        waiting.close()


def _reading_processes(reader: "_Reader", num_workers: int) -> DataLoader:
    """Returns a loader that runs the reader in that many processes and yields their blocks as they come."""
    return DataLoader(
        reader,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=BLOCKS_AHEAD,
        in_order=False,  # a slow video must not hold up the others
        pin_memory=reader.localizer.device.type == "cuda",
        multiprocessing_context="fork",
        worker_init_fn=_leave_interrupts,
    )


def _end_readers(waiting: Any, plan: ReadingPlan) -> None:
    for _ in range(plan.num_workers):
        waiting.put(None)


def _leave_interrupts(_: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the process with the model: it ends the readers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave_lost_readers_to_the_loader() -> None:
    """Removes torch's handler of SIGCHLD, which raises an error if a reader was killed, wherever this process is.

    In the code for one video, that video would get the error, although another one was lost. The loader notices a lost
    reader itself, when nothing else is left to do.
    """
    if threading.current_thread() is threading.main_thread():  # in others torch sets none, and Python allows none
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class _Reader(IterableDataset):
    """Yields the blocks of the videos whose numbers it takes from a queue, until it takes `None`."""

    def __init__(self, localizer: VideoPipeline, videos: Videos, options: dict[str, Any], waiting: Any) -> None:
        self.localizer, self.videos, self.options, self.waiting = localizer, videos, options, waiting
        self.parent = os.getpid()

    def __iter__(self) -> Iterator[ReadBlock]:
        while (number := self._next_number()) is not None:
            yield from _read_video(self.localizer, self.videos, number, self.options)

    def _next_number(self) -> int | None:
        while os.getppid() == self.parent:  # otherwise the process with the model was killed
            with contextlib.suppress(queue.Empty):
                return self.waiting.get(timeout=POLL_SECONDS)
        return None


def _read_video(
    localizer: VideoPipeline, videos: Videos, number: int, options: dict[str, Any]
) -> Generator[ReadBlock, None, None]:
    """Yields the blocks of one video, the last one with the error if it cannot be read."""
    name = f"video {number}"
    try:
        name, video = videos.open(number)
        for block in localizer.read_blocks(video, **options):
            yield ReadBlock(number, name, block)
    except Exception as error:  # decoders raise errors of many kinds; the other videos must still be localized
        yield ReadBlock(number, name, error=_reason(error))
