"""Opens a stream that is still being written or sent: a pipe, a growing file, or the URL of a camera or broadcast.

It is read forward only, so the container must allow that: MPEG-TS, Matroska and WebM, FLV, Ogg, fragmented MP4. A thread
reads ahead, at most 1 MiB of bytes or 1024 packets, so that waiting for a writer or sender can be ended at any time.

| source | how it is read | its end |
|---|---|---|
| `-`, a named pipe, a file object | as bytes come; a pause is a warning, and reading goes on after it | when the writer closes it |
| a file | from its beginning, then what is appended | with a warning, when it has not grown for `silent_seconds` |
| `http://`, `https://` URL | one request; if the connection is lost or silent, a new one from then on | when the server ends it, or after five lost connections without any data |
| `rtsp://`, `rtp://`, `udp://`, `rtmp://`, `srt://`, `tcp://` URL | by FFmpeg, which may open these protocols only | when the sender ends it, closes the connection, or is silent for `silent_seconds`; an error if it has not begun after that time, or 30 s if that is longer |
"""  # noqa: E501

import contextlib
import http.client
import math
import os
import queue
import stat
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from transformers.utils import logging

from .video_source import (
    COPY_BYTES,
    TIMEOUT_SECONDS,
    URL_SCHEMES,
    VideoReadError,
    find_local_path,
    is_standard_input,
    open_with_ffmpeg,
    source_name,
    url_scheme,
)

logger = logging.get_logger(__name__)

DEFAULT_SILENT_SECONDS = 10.0
# What FFmpeg may open by itself, and only if the URL itself begins with one of these.
LIVE_SCHEMES = ("rtsp", "rtsps", "rtp", "udp", "rtmp", "rtmps", "srt", "tcp")
LIVE_PROTOCOLS = (*LIVE_SCHEMES, "srtp", "tls", "crypto")
LIVE_FORMATS = ("rtsp", "rtp", "sdp")
# TCP first: it loses nothing, and where a firewall holds up UDP, FFmpeg would wait for it without end.
LIVE_OPTIONS = {scheme: {"rtsp_flags": "prefer_tcp"} for scheme in ("rtsp", "rtsps")}
MAX_CHUNKS_AHEAD = 16
MAX_PACKETS_AHEAD = 1024
# How long the end of a stream waits for FFmpeg to take leave of the sender; a silent sender may hold it for longer.
CLOSE_SECONDS = 1.0
MAX_LOST_CONNECTIONS = 5  # one after the other, without any data
POLL_SECONDS = 0.05
FORWARD_ONLY = (
    "Write MPEG-TS, Matroska, WebM, FLV or fragmented MP4 (`ffmpeg -i INPUT -c copy -f mpegts OUTPUT`), or localize "
    "the complete file without live reading."
)


class _Silence(Exception):
    """Nothing has come for the time that was allowed."""


class _Ahead:
    """Items that a thread produces ahead of the reader, whose waiting for them can be ended at any time.

    Args:
        items (`Iterator`): May block, and runs in the thread. An exception that it raises or yields is raised where
            the items are read.
        max_items (`int`): How many items the thread is ahead at most.
    """

    def __init__(self, items: Iterator[Any], max_items: int) -> None:
        self._items: queue.Queue = queue.Queue(max_items)
        self._is_ended = False
        self._is_stopped = threading.Event()
        # A daemon, never joined without a limit: it may be blocked where nothing comes any more.
        self._thread = threading.Thread(target=self._feed, args=(items,), name="ave-clip-live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the items for the reader at once."""
        self._is_stopped.set()

    def join(self, seconds: float) -> None:
        """Waits for the end of the thread, but not longer than some seconds."""
        self._thread.join(seconds)

    def next(self, seconds: float) -> Any | None:
        """Returns the next item; `None` at the end, or if it was stopped.

        Raises:
            _Silence: If none has come after `seconds`.
        """
        begin = time.monotonic()
        while not self._is_ended and not self._is_stopped.is_set():
            try:
                item = self._items.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if time.monotonic() - begin > seconds:
                    raise _Silence from None
                continue
            self._is_ended = item is None or isinstance(item, BaseException)
            if isinstance(item, BaseException):
                raise item
            return item
        return None

    def _feed(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # raised where the items are read
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._is_stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=POLL_SECONDS)
                return True
        return False


class LiveFile:
    """Bytes as they arrive, as a file object for FFmpeg that can only be read forward.

    Args:
        chunks (`Iterator[bytes]`): Yields bytes, and may block; ends with the stream. Runs in a thread of its own.
        name (`str`): Name for messages.
        silent_seconds (`float`): A longer pause is logged.

    Attributes:
        num_pauses (`int`): Number of pauses so far.
    """

    def __init__(self, chunks: Iterator[bytes], name: str, silent_seconds: float) -> None:
        self.name, self.silent_seconds, self.num_pauses = name, silent_seconds, 0
        self._chunks = _Ahead(chunks, MAX_CHUNKS_AHEAD)
        self._rest = b""

    def stop(self) -> None:
        """Ends the stream for the reader at once."""
        self._chunks.stop()

    def read(self, num_bytes: int) -> bytes:
        """Returns the next bytes as soon as there are any, at most `num_bytes`; none at the end of the stream."""
        if not self._rest:
            self._rest = self._next_chunk()
        part, self._rest = self._rest[:num_bytes], self._rest[num_bytes:]
        return part

    def peek(self, num_bytes: int) -> bytes:
        """Returns the next bytes without taking them; fewer than `num_bytes` at the end of the stream."""
        while len(self._rest) < num_bytes and (chunk := self._next_chunk()):
            self._rest += chunk
        return self._rest[:num_bytes]

    def _next_chunk(self) -> bytes:
        try:
            return self._chunks.next(self.silent_seconds) or b""
        except _Silence:
            self.num_pauses += 1
            logger.warning(
                f"{self.name}: nothing has come for {self.silent_seconds:g} seconds (pause number "
                f"{self.num_pauses}). Waiting for more; Ctrl-C ends it."
            )
            return self._chunks.next(math.inf) or b""


class LiveContainer:
    """A container that FFmpeg opens and reads from the network, in a thread. All but `demux` is PyAV's container.

    FFmpeg can be interrupted only after a time that is set before it begins to wait.

    Args:
        url (`str`): What FFmpeg opens.
        name (`str`): Name for messages.
        silent_seconds (`float`): How long the sender may be silent.
    """

    def __init__(self, url: str, name: str, silent_seconds: float) -> None:
        self.name, self.silent_seconds = name, silent_seconds
        # A camera may need longer to begin than to go on.
        self.opening_seconds = max(TIMEOUT_SECONDS, silent_seconds)
        self._is_wanted, self._is_released = threading.Event(), threading.Event()
        self._packets = _Ahead(self._read(url), MAX_PACKETS_AHEAD)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def __enter__(self) -> "LiveContainer":
        message = "it was stopped before it began."
        try:
            container = self._packets.next(self.opening_seconds)
        except _Silence:
            container = None
            message = (
                f"no video or audio has come within {self.opening_seconds:g} seconds. Check the address, the sender "
                "and the connection."
            )
        if container is None:
            self.__exit__()
            raise VideoReadError(f"Cannot read {self.name}: {message}")
        self._container = container
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()
        self._is_released.set()
        self._packets.join(CLOSE_SECONDS)

    def stop(self) -> None:
        """Ends the stream for the reader at once."""
        self._packets.stop()
        self._is_wanted.set()

    def demux(self, streams: list[Any]) -> Iterator[Any]:
        """Yields the packets of some streams as they come.

        Raises:
            TimeoutError: If the sender is silent for longer than allowed.
        """
        self._is_wanted.set()
        indices = {stream.index for stream in streams}
        try:
            while (packet := self._packets.next(self.silent_seconds)) is not None:
                if packet.stream_index in indices:
                    yield packet
        except _Silence:
            raise TimeoutError(f"nothing has come for {self.silent_seconds:g} seconds") from None

    def _read(self, url: str) -> Iterator[Any]:
        """Yields the open container, then its packets or an error, then `None`; closes it when the reader is done."""
        # FFmpeg's own limits only end a thread that nobody waits for any more. They must not come first: interrupted,
        # FFmpeg returns what its parsers still have, and would then wait once more.
        timeouts = (self.opening_seconds + CLOSE_SECONDS, self.silent_seconds + CLOSE_SECONDS)
        options = LIVE_OPTIONS.get(url_scheme(url) or "")
        with open_with_ffmpeg(url, self.name, LIVE_PROTOCOLS, LIVE_FORMATS, timeouts, options) as container:
            try:
                yield container
                self._is_wanted.wait()  # until the reader has looked at the streams, which FFmpeg changes as it reads
                yield from container.demux()
                yield None
            except Exception as error:
                yield error
            finally:
                self._is_released.wait()  # the decoders use the streams, which are freed with the container


class LiveInput:
    """A live source; [`stop`] ends it from another thread, also while it is waiting for data.

    Args:
        source (`str`, `os.PathLike` or file object): See the table above.
        silent_seconds (`float`): How long a growing file may stop growing, and a sender may be silent.

    Raises:
        ValueError: If `silent_seconds` is not a number above 0.
    """

    def __init__(self, source: Any, silent_seconds: float = DEFAULT_SILENT_SECONDS) -> None:
        if isinstance(silent_seconds, bool) or not isinstance(silent_seconds, (int, float)) or not silent_seconds > 0:
            raise ValueError(f"Got live_timeout={silent_seconds!r}, expected a number of seconds above 0.")
        self.source, self.name, self.silent_seconds = source, source_name(source), silent_seconds
        self.num_lost_connections = 0
        self._opened: LiveFile | LiveContainer | None = None
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Ends the stream at once, as if the sender had ended it."""
        self._is_stopped.set()
        if self._opened is not None:
            self._opened.stop()

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """Opens the source for reading.

        Yields:
            `av.container.InputContainer` or `LiveContainer`: The open stream.

        Raises:
            VideoReadError: If it cannot be opened, or is in a container that cannot be read forward only.
            TypeError: If the source is of another type than those in the table above.
        """
        with contextlib.ExitStack() as stack:
            url = os.fsdecode(self.source) if isinstance(self.source, (str, os.PathLike)) else ""
            scheme = url_scheme(url)
            if scheme in LIVE_SCHEMES:
                container = LiveContainer(url, self.name, self.silent_seconds)
                self._set_opened(container)
                yield stack.enter_context(container)
                return
            file = LiveFile(self._chunks(scheme, stack), self.name, self.silent_seconds)
            self._set_opened(file)
            stack.callback(file.stop)
            _check_forward(file)
            yield stack.enter_context(open_with_ffmpeg(file, self.name))

    def _set_opened(self, opened: LiveFile | LiveContainer) -> None:
        self._opened = opened
        if self._is_stopped.is_set():  # by another thread, before there was anything to stop
            opened.stop()

    def _chunks(self, scheme: str | None, stack: contextlib.ExitStack) -> Iterator[bytes]:
        source = self.source
        if scheme in URL_SCHEMES:
            return self._download()
        if scheme is not None and scheme != "file":
            raise VideoReadError(
                f"Cannot read {self.name}: the URL scheme {scheme!r} is not supported. Pass a URL with one of "
                f"{', '.join((*URL_SCHEMES, *LIVE_SCHEMES))}, a path, or - for the standard input."
            )
        if is_standard_input(source):
            return _read_on(sys.stdin.buffer)
        if hasattr(source, "read"):
            return _read_on(source)
        if not isinstance(source, (str, os.PathLike)):
            raise TypeError(
                f"Got a {type(source).__name__} as a live video. Pass a path, a pipe, a binary file object or a URL."
            )
        try:
            # Without a buffer, which would wait until it is full. Opening a pipe waits for its writer.
            file = stack.enter_context(open(find_local_path(source), "rb", buffering=0))  # noqa: SIM115
        except OSError as error:
            raise VideoReadError(f"Cannot read {self.name}: {error.strerror or error}. Check the path.") from error
        return self._follow(file) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else _read_on(file)

    def _follow(self, file: Any) -> Iterator[bytes]:
        """Yields what a file contains and what is appended to it, until it has not grown for `silent_seconds`."""
        grown = time.monotonic()
        while not self._is_stopped.wait(POLL_SECONDS):
            if chunk := file.read(COPY_BYTES):
                while chunk:
                    yield chunk
                    chunk = file.read(COPY_BYTES)
                grown = time.monotonic()
            elif time.monotonic() - grown >= self.silent_seconds:
                # Its writer may only be slow: FFmpeg writes files in blocks of 256 KiB.
                logger.warning(
                    f"{self.name} has not grown for {self.silent_seconds:g} seconds and counts as ended; a longer "
                    "--live-timeout (live_timeout=) waits longer."
                )
                return

    def _download(self) -> Iterator[bytes]:
        """Yields what a server sends. A lost connection is made again; what was sent in between is missing."""
        num_lost = 0  # one after the other
        while not self._is_stopped.is_set():
            try:
                request = urllib.request.Request(os.fsdecode(self.source), headers={"User-Agent": "ave-clip"})
                with urllib.request.urlopen(request, timeout=self.silent_seconds) as response:
                    if urllib.parse.urlsplit(response.geturl()).scheme not in URL_SCHEMES:
                        raise VideoReadError(f"Cannot read {self.name}: it redirects to {response.geturl()}.")
                    length = response.headers.get("Content-Length")
                    position = 0
                    while chunk := response.read1(COPY_BYTES):
                        yield chunk
                        position, num_lost = position + len(chunk), 0
                    if length is None or position >= int(length):
                        return
                    raise OSError(f"only {position} of {length} bytes came")
            except (OSError, http.client.HTTPException) as error:  # also what urllib raises
                num_lost += 1
                self.num_lost_connections += 1
                reason = getattr(error, "reason", None) or error
                if num_lost > MAX_LOST_CONNECTIONS or self._is_refused(error):
                    raise VideoReadError(
                        f"Cannot read {self.name}: {reason}. Check the address, your access and the connection."
                    ) from error
                logger.warning(
                    f"{self.name}: the connection was lost ({reason}); connecting again. Lost so far: "
                    f"{self.num_lost_connections}. What was sent in between is missing."
                )
                self._is_stopped.wait(min(num_lost, self.silent_seconds))

    @staticmethod
    def _is_refused(error: Exception) -> bool:
        """Whether the URL is not valid, or the server answered that there is no such stream or no access to it."""
        return isinstance(error, http.client.InvalidURL) or 400 <= getattr(error, "code", 0) < 500


def _read_on(file: Any) -> Iterator[bytes]:
    """Yields the bytes of a pipe or file object as they come."""
    read: Callable[[int], Any] = getattr(file, "read1", None) or file.read
    with contextlib.suppress(OSError, AttributeError, ValueError):
        # Not through the object's buffer: at its end Python waits for a thread that reads from a buffered stdin.
        number = file.fileno()
        if not stat.S_ISREG(os.fstat(number).st_mode):
            read = lambda num_bytes: os.read(number, num_bytes)  # noqa: E731
    while chunk := read(COPY_BYTES):
        if not isinstance(chunk, bytes):
            raise VideoReadError(
                f"Cannot read {source_name(file)}: its read() returned {type(chunk).__name__}, not bytes. Open it in "
                "binary mode."
            )
        yield chunk


def _check_forward(file: LiveFile) -> None:
    """Raises if the stream is empty, or an MP4 with its index behind the recording, which is not there yet."""
    if not file.peek(1):
        raise VideoReadError(f"Cannot read {file.name}: it ended before anything came. Check what writes it.")
    position, kind = 0, file.peek(8)[4:]
    while kind in (b"ftyp", b"free", b"wide", b"skip"):
        size = int.from_bytes(file.peek(position + 4)[position:], "big")
        if size < 8 or size > COPY_BYTES:
            return
        position += size
        kind = file.peek(position + 8)[position + 4 :]
    if kind == b"mdat":
        raise VideoReadError(
            f"Cannot read {file.name} while it is written: it is an MP4 whose index comes at its end. {FORWARD_ONLY}"
        )


__all__ = ["DEFAULT_SILENT_SECONDS", "LiveContainer", "LiveFile", "LiveInput"]
