"""Opening what the user named as a video: a path, bytes, a file object or an http(s) URL.

Everything but a URL reaches FFmpeg as a Python file object, and FFmpeg may open nothing else by itself. So a path is
only ever a path (`concat:a|b`, `-clip.mp4` and `data:...` are looked up on the disk like any other name), and a
playlist cannot make the reader fetch other files.

| source | how it is read |
|---|---|
| `str`, `Path` | opened and closed here |
| `bytes`, `bytearray`, `memoryview` | read in place |
| binary file object | read from its beginning whatever its position, left open, put back to where it was; what cannot seek (a pipe) is first copied to a temporary file |
| `http://`, `https://` URL | read over the network in pieces where the server allows it (`Accept-Ranges`), else first copied to a temporary file |
| any other `scheme://` | refused |
"""  # noqa: E501

import contextlib
import http.client
import io
import os
import re
import shutil
import ssl
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

URL_SCHEMES = ("http", "https")
TIMEOUT_SECONDS = 30
# Demuxers that are not for recordings: they make a video of any text or picture, or open other files and devices.
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


def source_name(source: Any) -> str:
    """What to call a source in messages: its path, URL, `<bytes>`, or the name of a file object."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if isinstance(os.fspath(source), str) else os.fsdecode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else f"<{type(source).__name__}>"


@contextlib.contextmanager
def open_container(source: Any) -> Iterator[Any]:
    """Open a video for reading and close what was opened, also when reading fails.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): See the table above.

    Yields:
        `av.container.InputContainer`: The open file.

    Raises:
        VideoReadError: If there is no such file, it is empty or a directory, or FFmpeg finds no recording in it.
        TypeError: If `source` is none of the above.
    """
    name = source_name(source)
    with contextlib.ExitStack() as stack:
        target, options = _readable(source, name, stack)
        container = stack.enter_context(_open(target, name, options))
        yield container


def _readable(source: Any, name: str, stack: contextlib.ExitStack) -> tuple[Any, dict[str, str]]:
    """What to hand to FFmpeg (a seekable file object, or a URL), and the options for its protocols."""
    file_options = {"protocol_whitelist": "none"}
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _not_empty(stack.enter_context(io.BytesIO(source)), name), file_options
    if isinstance(source, (str, os.PathLike)):
        scheme = _url_scheme(name)
        if scheme is None:
            return _not_empty(_open_path(source, name, stack), name), file_options
        if scheme not in URL_SCHEMES:
            raise VideoReadError(
                f"Cannot read {name}: the URL scheme {scheme!r} is not supported. "
                "Pass an http or https URL, or a path."
            )
        return _open_url(name, stack)
    if hasattr(source, "read"):
        return _not_empty(_as_seekable(source, name, stack), name), file_options
    raise TypeError(
        f"Got a {type(source).__name__} as video. Pass a path, bytes, a binary file object or an http(s) URL."
    )


def _url_scheme(name: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", name)
    return match.group(1).lower() if match and not os.path.exists(name) else None


def _open_path(source: str | os.PathLike, name: str, stack: contextlib.ExitStack) -> Any:
    try:
        return _as_seekable(stack.enter_context(open(source, "rb")), name, stack)
    except FileNotFoundError:
        raise VideoReadError(f"Cannot read {name}: there is no such file. Check the path.") from None
    except IsADirectoryError:
        raise VideoReadError(f"Cannot read {name}: it is a directory. Pass one video file.") from None
    except (OSError, ValueError) as error:
        raise VideoReadError(f"Cannot read {name}: {error}. Check the path and its permissions.") from error


def _as_seekable(file: Any, name: str, stack: contextlib.ExitStack) -> Any:
    """The file itself, put back to its position at the end; or a temporary copy of what cannot seek."""
    seekable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek") and hasattr(file, "tell")
    if isinstance(file, io.TextIOBase):
        raise VideoReadError(f"Cannot read {name}: the file object is in text mode. Open it with mode 'rb'.")
    if not seekable:
        return _copy(file, name, stack)
    stack.callback(_put_back, file, file.tell())
    file.seek(0)
    return file


def _put_back(file: Any, position: int) -> None:
    if not getattr(file, "closed", False):
        file.seek(position)


def _copy(file: Any, name: str, stack: contextlib.ExitStack) -> Any:
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    try:
        shutil.copyfileobj(file, copy, length=1 << 20)
    except OSError as error:
        raise VideoReadError(
            f"Cannot read {name}: copying it to a temporary file in {tempfile.gettempdir()} failed ({error})."
        ) from error
    copy.seek(0)
    return copy


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


def _open_url(url: str, stack: contextlib.ExitStack) -> tuple[Any, dict[str, str]]:
    """The URL itself when the server can serve pieces of it, else a temporary copy."""
    request = urllib.request.Request(url, headers={"Range": "bytes=0-", "User-Agent": "ave-clip"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            final_url = response.geturl()
            if urllib.parse.urlsplit(final_url).scheme not in URL_SCHEMES:
                raise VideoReadError(f"Cannot read {url}: it leads on to {final_url}, neither http nor https.")
            options = _network_options(final_url)
            if response.status != 206 or options is None:
                return _not_empty(_copy(response, url, stack), url), {"protocol_whitelist": "none"}
            return final_url, options
    except urllib.error.HTTPError as error:
        raise VideoReadError(
            f"Cannot read {url}: the server answered {error.code} {error.reason}. Check the address and your access."
        ) from error
    except VideoReadError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise VideoReadError(f"Cannot read {url}: {reason}. Check the address and the connection.") from error


def _network_options(final_url: str) -> dict[str, str] | None:
    """FFmpeg's options for reading a URL, or `None` if it cannot check the server's certificate."""
    options = {"protocol_whitelist": "http,https,httpproxy,tls,tcp", "user_agent": "ave-clip"}
    if urllib.parse.urlsplit(final_url).scheme == "http":
        return options
    authorities = ssl.get_default_verify_paths().cafile
    return None if authorities is None else options | {"tls_verify": "1", "ca_file": authorities}


def _open(target: Any, name: str, options: dict[str, str]) -> Any:
    import av

    allowed = {
        format_name
        for format_name in av.formats_available
        if format_name not in REFUSED_FORMATS and not format_name.endswith("_pipe")
    }
    options = {**options, "format_whitelist": ",".join(sorted(allowed))}
    timeout = TIMEOUT_SECONDS if isinstance(target, str) else None
    try:
        return av.open(target, container_options=options, metadata_errors="replace", timeout=timeout)
    except av.error.ArgumentError as error:
        raise VideoReadError(
            f"Cannot read {name}: it is a text, a picture or a playlist, not a video or sound recording. Pass the "
            "recording itself."
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoReadError(
            f"Cannot read {name}: no video or sound recording was recognised in it ({reason}). It may be another kind "
            "of file, cut off before its index, or damaged. Check that a player shows it, or convert it with "
            "`ffmpeg -i INPUT OUTPUT.mp4`."
        ) from error
