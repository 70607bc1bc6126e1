"""Opens a stream that is still being written or sent: a pipe, a growing file, or the URL of a camera or broadcast.

It is read forward only, so the container must allow that: MPEG-TS, Matroska and WebM, FLV, Ogg, fragmented MP4. A thread
reads the bytes ahead, at most 1 MiB of them, so that waiting for them can be ended at any time.

| source | how it is read | its end |
|---|---|---|
| `-`, a named pipe, a file object | as bytes come; a pause is a warning, and reading goes on after it | when the writer closes it |
| a file | from its beginning, then what is appended | when it has not grown for `silent_seconds` |
| `http://`, `https://` URL | one request; if the connection is lost or silent, a new one from then on | when the server ends it, or after five lost connections without any data |
| `rtsp://`, `rtp://`, `udp://`, `rtmp://`, `srt://`, `tcp://` URL | by FFmpeg, which may open these protocols only | when the sender ends it, or is silent for `silent_seconds` |
"""  # noqa: E501

import contextlib
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
    STANDARD_INPUT,
    TIMEOUT_SECONDS,
    URL_SCHEMES,
    VideoReadError,
    find_local_path,
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
MAX_CHUNKS_AHEAD = 16
MAX_LOST_CONNECTIONS = 5  # one after the other, without any data
POLL_SECONDS = 0.05
FORWARD_ONLY = (
    "Write MPEG-TS, Matroska, WebM, FLV or fragmented MP4 (`ffmpeg -i INPUT -c copy -f mpegts OUTPUT`), or localize "
    "the complete file without live reading."
)


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
        self._chunks: queue.Queue = queue.Queue(MAX_CHUNKS_AHEAD)
        self._rest = b""
        self._is_ended = False
        self._is_stopped = threading.Event()
        # A daemon, never joined: it may be blocked in a pipe from which nothing comes any more.
        threading.Thread(target=self._feed, args=(chunks,), name="ave-clip-live", daemon=True).start()

    def stop(self) -> None:
        """Ends the stream for the reader at once."""
        self._is_stopped.set()

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

    def _feed(self, chunks: Iterator[bytes]) -> None:
        try:
            for chunk in chunks:
                if not self._put(chunk):
                    return
            self._put(b"")
        except BaseException as error:  # raised where the bytes are read
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._is_stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._chunks.put(item, timeout=POLL_SECONDS)
                return True
        return False

    def _next_chunk(self) -> bytes:
        begin, is_told = time.monotonic(), False
        while not self._is_ended and not self._is_stopped.is_set():
            try:
                chunk = self._chunks.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not is_told and time.monotonic() - begin > self.silent_seconds:
                    is_told = True
                    self.num_pauses += 1
                    logger.warning(
                        f"{self.name}: nothing has come for {self.silent_seconds:g} seconds (pause number "
                        f"{self.num_pauses}). Waiting for more; Ctrl-C ends it."
                    )
                continue
            if isinstance(chunk, BaseException):
                self._is_ended = True
                raise chunk
            self._is_ended = not chunk
            return chunk
        return b""


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
        self._file: LiveFile | None = None
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Ends the stream at once, as if the sender had ended it."""
        self._is_stopped.set()
        if self._file is not None:
            self._file.stop()

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """Opens the source for reading.

        Yields:
            `av.container.InputContainer`: The open stream.

        Raises:
            VideoReadError: If it cannot be opened, or is in a container that cannot be read forward only.
            TypeError: If the source is of another type than those in the table above.
        """
        with contextlib.ExitStack() as stack:
            scheme = url_scheme(self.name) if isinstance(self.source, (str, os.PathLike)) else None
            if scheme in LIVE_SCHEMES:
                timeouts = (TIMEOUT_SECONDS, self.silent_seconds)
                yield stack.enter_context(
                    open_with_ffmpeg(self.name, self.name, LIVE_PROTOCOLS, LIVE_FORMATS, timeouts)
                )
                return
            self._file = LiveFile(self._chunks(scheme, stack), self.name, self.silent_seconds)
            stack.callback(self._file.stop)
            _check_forward(self._file)
            yield stack.enter_context(open_with_ffmpeg(self._file, self.name))

    def _chunks(self, scheme: str | None, stack: contextlib.ExitStack) -> Iterator[bytes]:
        source = self.source
        if scheme in URL_SCHEMES:
            return self._download()
        if scheme is not None and scheme != "file":
            raise VideoReadError(
                f"Cannot read {self.name}: the URL scheme {scheme!r} is not supported. Pass a URL with one of "
                f"{', '.join((*URL_SCHEMES, *LIVE_SCHEMES))}, a path, or - for the standard input."
            )
        if source == STANDARD_INPUT and not os.path.exists(STANDARD_INPUT):
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
                return

    def _download(self) -> Iterator[bytes]:
        """Yields what a server sends. A lost connection is made again; what was sent in between is missing."""
        num_lost = 0  # one after the other
        while not self._is_stopped.is_set():
            try:
                request = urllib.request.Request(self.name, headers={"User-Agent": "ave-clip"})
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
            except OSError as error:  # also what urllib raises
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
    def _is_refused(error: OSError) -> bool:
        """Whether the server answered that there is no such stream, or not for this client."""
        return 400 <= getattr(error, "code", 0) < 500


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


__all__ = ["DEFAULT_SILENT_SECONDS", "LiveFile", "LiveInput"]
