"""Opens a video given as a path, bytes, a file object or an http(s) URL.

FFmpeg reads everything, URLs included, through a Python file object, and cannot open anything else by itself. So a path
is always a file name (`concat:a|b`, `-clip.mp4` and `data:...` are looked up on the disk like any other name), and a
playlist cannot make the reader fetch other files.

| source | how it is read |
|---|---|
| `str`, `Path` | opened and closed here; `~` is the home folder |
| `file://` URL | like its path |
| `-` | standard input, unless there is a file of this name |
| `bytes`, `bytearray`, `memoryview` | read in place |
| `{"path": ..., "bytes": ...}` of `datasets.Video(decode=False)` | the bytes if there are any, else the path |
| binary file object | read from its beginning, left open, then put back to its position; if it cannot seek (a pipe), it is first copied to a temporary file |
| `http://`, `https://` URL | read over the network in pieces if the server allows it (`Range`), else first copied to a temporary file |
| any other `scheme://` | refused |

Downloads and pipes are limited by `DownloadLimits`. An interrupted download is an error and not a shorter video.
Temporary files have no name, so they are always deleted when the process ends.
"""  # noqa: E501

import contextlib
import http.client
import io
import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .text import printable

URL_SCHEMES = ("http", "https")
STANDARD_INPUT = "-"
TIMEOUT_SECONDS = 30
# A server that sends less than this on average over `TIMEOUT_SECONDS` is considered stalled.
MIN_BYTES_PER_SECOND = 1024
# A shorter seek forward reads and discards the bytes between: this is faster than a new request.
MAX_SKIPPED_BYTES = 2**18
COPY_BYTES = 2**16
# Demuxers that are not for recordings: they make a video of any text or image, or open other files and devices.
REFUSED_FORMATS = {
    "concat",
    "concatf",
    "dash",
    "ffmetadata",
    "hls",
    "image2",
    "image2pipe",
    "imf",
    "lavfi",
    "rtp",
    "rtsp",
    "sap",
    "sdp",
    "tty",
}


class VideoReadError(ValueError):
    """A video that cannot be read. The message names the file, what is wrong with it, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class DownloadLimits:
    """Limits of what is read from the network, or from a pipe, for one video.

    Attributes:
        max_bytes: Maximum number of bytes in total.
        max_seconds: Maximum time of waiting for the network in total, without the time of decoding and of the model.
    """

    max_bytes: int = 4 * 2**30
    max_seconds: float = 1800.0

    def __post_init__(self):
        for name, value in (("bytes", self.max_bytes), ("seconds", self.max_seconds)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"Got max_download_{name}={value!r}, expected a number above 0.")


def is_video_dictionary(source: Any) -> bool:
    """Returns whether a source is a dictionary of `datasets.Video(decode=False)`: `{"path": ..., "bytes": ...}`."""
    return (
        isinstance(source, dict) and "frames" not in source and 0 < len(source) <= len(set(source) & {"path", "bytes"})
    )


def is_standard_input(source: Any) -> bool:
    """Whether a source is `-`, and no file has that name."""
    return isinstance(source, str) and source == STANDARD_INPUT and not os.path.exists(STANDARD_INPUT)


def source_name(source: Any) -> str:
    """Returns the name of a source for messages and results.

    It is a path, a URL without its password, `<stdin>`, `<bytes>`, or the name of a file object.
    """
    if is_video_dictionary(source):
        return source_name(source.get("path") or source.get("bytes") or "<empty dictionary>")
    if is_standard_input(source):
        return "<stdin>"  # not "-", which a spreadsheet takes for a formula; it is also Python's name for it
    if isinstance(source, (str, os.PathLike)):
        return re.sub(r"^(\w[\w+.-]*://[^/?#@:]*):[^/?#]*@", r"\1:***@", os.fsdecode(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else f"<{type(source).__name__}>"


@contextlib.contextmanager
def open_container(source: Any, limits: DownloadLimits | None = None) -> Iterator[Any]:
    """Opens a video for reading, and closes it at the end or if reading fails.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): See the table above.
        limits (`DownloadLimits`, *optional*): Limits for a URL or a pipe.

    Yields:
        `av.container.InputContainer`: The open file.

    Raises:
        VideoReadError: If there is no such file, it is empty or a directory, FFmpeg finds no recording in it, or a
            download is interrupted or exceeds the limits.
        TypeError: If `source` is none of the above.
    """
    name = source_name(source)
    with contextlib.ExitStack() as stack:
        file = _not_empty(_readable(source, name, limits or DownloadLimits(), stack), name)
        yield stack.enter_context(open_with_ffmpeg(file, name))


def reopen_container(container: Any, name: str) -> Any:
    """Opens the file of an open container once more, from its beginning; the container must not be read any more."""
    file = container.file.file
    file.seek(0)
    return open_with_ffmpeg(file, name)


def is_downloaded(container: Any) -> bool:
    """Whether a container is read over the network in pieces."""
    return isinstance(getattr(container.file.file, "raw", None), _RemoteFile)


def _readable(source: Any, name: str, limits: DownloadLimits, stack: contextlib.ExitStack) -> Any:
    """Returns a seekable file object for FFmpeg."""
    if is_video_dictionary(source):
        content, path = source.get("bytes"), source.get("path")
        if content is None and path is None:
            raise VideoReadError("Cannot read a video dictionary whose `path` and `bytes` are both None. Give one.")
        source = path if content is None else content
    if isinstance(source, (bytes, bytearray, memoryview)):
        return stack.enter_context(io.BytesIO(source))
    if is_standard_input(source):
        return _as_seekable(sys.stdin.buffer, name, limits, stack)
    if isinstance(source, (str, os.PathLike)):
        source = find_local_path(source)
        scheme = url_scheme(os.fsdecode(source))
        if scheme is None:
            return _open_path(source, name, limits, stack)
        if scheme not in URL_SCHEMES:
            raise VideoReadError(
                f"Cannot read {name}: the URL scheme {scheme!r} is not supported. "
                "Pass an http or https URL, or a path. An rtsp, udp or similar stream can only be localized live "
                "(`--live`, `stream(url, live=True)`)."
            )
        return _open_url(os.fsdecode(source), limits, stack)
    if hasattr(source, "read"):
        return _as_seekable(source, name, limits, stack)
    raise TypeError(
        f"Got a {type(source).__name__} as video. Pass a path, bytes, a binary file object or an http(s) URL."
    )


def find_local_path(source: str | os.PathLike) -> str | os.PathLike:
    """Resolves a `file://` URL, or a name that begins with `~`, to its path; returns any other name unchanged."""
    name = os.fsdecode(source)
    if os.path.exists(name):
        return source
    if name.startswith("~"):
        return os.path.expanduser(name)
    parts = urllib.parse.urlsplit(name) if name.lower().startswith("file://") else None
    return urllib.request.url2pathname(parts.path) if parts and parts.netloc in ("", "localhost") else source


def url_scheme(name: str) -> str | None:
    """Returns the scheme of a URL in lower case; `None` for a path, and for any name that exists as a file."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", name)
    return match.group(1).lower() if match and not os.path.exists(name) else None


def _open_path(source: str | os.PathLike, name: str, limits: DownloadLimits, stack: contextlib.ExitStack) -> Any:
    try:
        return _as_seekable(stack.enter_context(open(source, "rb")), name, limits, stack)
    except VideoReadError:
        raise
    except FileNotFoundError:
        raise VideoReadError(f"Cannot read {name}: there is no such file. Check the path.") from None
    except IsADirectoryError:
        raise VideoReadError(f"Cannot read {name}: it is a directory. Pass one video file.") from None
    except (OSError, ValueError) as error:
        raise VideoReadError(f"Cannot read {name}: {error}. Check the path and its permissions.") from error


def _as_seekable(file: Any, name: str, limits: DownloadLimits, stack: contextlib.ExitStack) -> Any:
    """Returns the file itself, to be put back to its position at the end, or a temporary copy if it cannot seek."""
    seekable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek") and hasattr(file, "tell")
    if isinstance(file, io.TextIOBase):
        raise VideoReadError(f"Cannot read {name}: the file object is in text mode. Open it with mode 'rb'.")
    if not seekable:
        return _copy(file.read, name, limits, stack)
    stack.callback(_put_back, file, file.tell())
    file.seek(0)
    return file


def _put_back(file: Any, position: int) -> None:
    if not getattr(file, "closed", False):
        file.seek(position)


def _copy(read: Callable[[int], bytes], name: str, limits: DownloadLimits, stack: contextlib.ExitStack) -> Any:
    """Copies everything that `read` returns to a temporary file."""
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    num_bytes = 0
    while content := read(COPY_BYTES):
        num_bytes += len(content)
        _check_size(num_bytes, name, limits)
        try:
            copy.write(content)
        except OSError as error:
            raise VideoReadError(
                f"Cannot read {name}: copying it to a temporary file in {tempfile.gettempdir()} failed ({error})."
            ) from error
    copy.seek(0)
    return copy


def _check_size(num_bytes: int, name: str, limits: DownloadLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise VideoReadError(
            f"Cannot read {name}: it is larger than the limit of {limits.max_bytes} bytes for downloads and pipes. "
            "Raise max_download_bytes, or save it to a file first."
        )


def _not_empty(file: Any, name: str) -> Any:
    first = file.read(1)
    if not isinstance(first, bytes):
        raise VideoReadError(
            f"Cannot read {name}: its read() returned {type(first).__name__}, not bytes. Open it in binary mode."
        )
    if not first:
        raise VideoReadError(f"Cannot read {name}: it is empty (0 bytes). Download or record it again.")
    file.seek(0)
    return file


def _open_url(url: str, limits: DownloadLimits, stack: contextlib.ExitStack) -> Any:
    """Returns a file object that requests pieces from the server if it supports this, else a temporary copy."""
    remote = _RemoteFile(url, limits)
    stack.callback(remote.close)
    if remote.connect():
        return io.BufferedReader(remote, COPY_BYTES)
    return _copy(remote.read_on, url, limits, stack)


class _RemoteFile(io.RawIOBase):
    """A file at a URL. Bytes and time are counted over all requests.

    FFmpeg could read the URL itself, but without limits, and it treats an interrupted connection as the end of the
    file.
    """

    def __init__(self, url: str, limits: DownloadLimits):
        super().__init__()
        self._name, self._url = source_name(url), url
        self._limits = limits
        self._response: Any = None
        self._position = 0  # of the next byte of the response
        self._wanted = 0  # of the next byte that the reader gets
        self._size: int | None = None  # where the server tells it
        self._end = 0  # the size, where the server gives pieces
        self._num_bytes = 0
        self._seconds = self._window_seconds = 0.0
        self._window_bytes = 0

    def connect(self) -> bool:
        """Requests the file; returns whether the server supports requests for pieces and declares the file's size."""
        self._request(0)
        match = re.fullmatch(r"bytes 0-\d+/(\d+)", self._response.headers.get("Content-Range", ""))
        if self._response.status == 206 and match is not None:
            self._size = self._end = int(match.group(1))
            return True
        length = self._response.headers.get("Content-Length", "")
        if length.isdecimal():
            self._size = int(length)
            _check_size(self._size, self._name, self._limits)
        return False

    def _request(self, start: int) -> None:
        self._disconnect()
        request = urllib.request.Request(self._url, headers={"Range": f"bytes={start}-", "User-Agent": "ave-clip"})
        self._response = self._wait(lambda: urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS))
        self._url = self._response.geturl()  # after redirects
        if urllib.parse.urlsplit(self._url).scheme not in URL_SCHEMES:
            raise VideoReadError(
                f"Cannot read {self._name}: it redirects to {self._url}, which is neither http nor https."
            )
        if start and self._response.status != 206:
            raise VideoReadError(f"Cannot read {self._name}: the server no longer sends pieces of it. Try again.")
        self._position = start

    def _wait(self, call: Callable[[], Any]) -> Any:
        """Returns the result of a call to the network. Its time is counted, and its errors become `VideoReadError`."""
        begin = time.monotonic()
        try:
            result = call()
        except urllib.error.HTTPError as error:
            error.close()
            raise VideoReadError(
                f"Cannot read {self._name}: the server answered {error.code} {error.reason}. Check the address and "
                "your access."
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise VideoReadError(
                f"Cannot read {self._name}: {reason}. Check the address and the connection."
            ) from error
        seconds = time.monotonic() - begin
        self._seconds += seconds
        self._window_seconds += seconds
        if self._seconds > self._limits.max_seconds:
            raise VideoReadError(
                f"Cannot read {self._name}: {self._num_bytes} bytes took more than the limit of "
                f"{self._limits.max_seconds:g} seconds. Raise max_download_seconds, or save it to a file first."
            )
        return result

    def read_on(self, num_bytes: int) -> bytes:
        """Returns the next bytes from the server, at most `num_bytes`; none at the end of the file."""
        content = self._wait(lambda: self._response.read1(num_bytes))
        self._position += len(content)
        self._num_bytes += len(content)
        self._window_bytes += len(content)
        _check_size(self._num_bytes, self._name, self._limits)
        if self._window_seconds > TIMEOUT_SECONDS:
            if self._window_bytes < MIN_BYTES_PER_SECOND * self._window_seconds:
                raise VideoReadError(
                    f"Cannot read {self._name}: the server sends less than {MIN_BYTES_PER_SECOND} bytes per second. "
                    "Try again later, or save it to a file first."
                )
            self._window_seconds, self._window_bytes = 0.0, 0
        if not content and self._size is not None and self._position < self._size:
            raise VideoReadError(
                f"Cannot read {self._name}: the download broke off after {self._position} of {self._size} bytes. "
                "Try again."
            )
        return content

    def readinto(self, buffer: Any) -> int:
        if self._wanted >= self._end:
            return 0
        if self._response is None or not 0 <= self._wanted - self._position <= MAX_SKIPPED_BYTES:
            self._request(self._wanted)
        while self._position < self._wanted:
            self.read_on(self._wanted - self._position)
        content = self.read_on(len(buffer))
        buffer[: len(content)] = content
        self._wanted = self._position
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._wanted = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._wanted, io.SEEK_END: self._end}[whence])
        return self._wanted

    def tell(self) -> int:
        return self._wanted

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def close(self) -> None:
        self._disconnect()
        super().close()


def open_with_ffmpeg(
    file: Any,
    name: str,
    protocols: Iterable[str] = ("none",),
    more_formats: Iterable[str] = (),
    timeout: tuple[float, float] | None = None,
    more_options: Mapping[str, str] | None = None,
) -> Any:
    """Opens a container.

    Args:
        file (`Any`): A file object; or a URL, if FFmpeg may open its protocol.
        name (`str`): Name for messages.
        protocols (`Iterable[str]`): What FFmpeg may open by itself: nothing, by default.
        more_formats (`Iterable[str]`): Formats that are allowed although they are in `REFUSED_FORMATS`.
        timeout (`tuple[float, float]`, *optional*): Seconds that FFmpeg waits to open a URL, and for each read.
        more_options (`Mapping[str, str]`, *optional*): Options of FFmpeg's protocol.

    Raises:
        VideoReadError: If FFmpeg finds no recording in it.
    """
    import av

    allowed = {
        format_name
        for format_name in av.formats_available
        if format_name not in REFUSED_FORMATS and not format_name.endswith("_pipe")
    }
    allowed.update(more_formats)
    options = {"protocol_whitelist": ",".join(protocols), "format_whitelist": ",".join(sorted(allowed))}
    options.update(more_options or {})
    try:
        return av.open(file, container_options=options, metadata_errors="replace", timeout=timeout)
    except VideoReadError:  # raised by a download
        raise
    except av.error.ArgumentError as error:
        raise VideoReadError(
            f"Cannot read {name}: it is a text, an image or a playlist, not a video or audio recording. Pass the "
            "recording itself."
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(file, str) and not isinstance(error, av.error.InvalidDataError):  # refused, or not reached
            raise VideoReadError(
                f"Cannot read {name}: {reason}. Check the address, your access and the connection."
            ) from error
        raise VideoReadError(
            f"Cannot read {name}: no video or audio recording was recognised in it ({reason}). It may be another kind "
            "of file, cut off before its index, or damaged. Check that a player shows it, or convert it with "
            "`ffmpeg -i INPUT OUTPUT.mp4`."
        ) from error
