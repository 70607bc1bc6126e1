"""URLs and pipes: limits of size and time, servers that stall, downloads that break off."""

import contextlib
import http.server
import io
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ave_clip.core import video_source
from ave_clip.core.video_io import iter_segments, read_video
from ave_clip.core.video_source import DownloadLimits, VideoReadError, open_container

from ..helpers.media import write_recording

OPTIONS = {"sampling_rate": 8000, "num_frames_per_segment": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_recording(tmp_path_factory.mktemp("downloads") / "clip.ts", 4)


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@contextlib.contextmanager
def server(content: bytes, *, pieces: bool, declared: int | None = None, sent: int | None = None, pause: float = 0.0):
    """Sends `content`, or only `sent` bytes of it, or one byte at a time with a `pause` before each.

    `declared` is what the server says the length is, 0 for nothing; `sent=-1` repeats the content endlessly.
    """
    declared = len(content) if declared is None else declared

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if pieces else 0
            self.send_response(206 if pieces else 200)
            if pieces:
                self.send_header("Content-Range", f"bytes {start}-{declared - 1}/{declared}")
            if declared:
                self.send_header("Content-Length", str(declared - start))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while sent == -1 and not stopped.is_set():
                    self.wfile.write(content)
                for position in range(start, sent or len(content)) if pause else ():
                    if stopped.wait(pause):
                        break
                    self.wfile.write(content[position : position + 1])
                if sent != -1 and not pause:
                    self.wfile.write(content[start:sent])

    stopped = threading.Event()
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http_server.server_port}/clip.ts"
    finally:
        stopped.set()
        http_server.shutdown()
        thread.join()
        http_server.server_close()


@pytest.mark.parametrize("pieces", [True, False])
def test_a_url_gives_what_the_file_gives(clip, pieces):
    with server(clip.read_bytes(), pieces=pieces) as url:
        video = read_video(url, **OPTIONS)
    expected = read_video(clip, **OPTIONS)
    np.testing.assert_array_equal(video.waveforms, expected.waveforms)
    np.testing.assert_array_equal(np.concatenate(video.frames), np.concatenate(expected.frames))


def test_of_a_file_in_pieces_only_what_is_needed_is_read(tmp_path):
    path = write_recording(tmp_path / "clip.mp4", 4)
    padding = (2**24).to_bytes(4, "big") + b"free" + bytes(2**24 - 8)
    padded = path.read_bytes() + padding
    with server(padded, pieces=True) as url:
        video = read_video(url, **OPTIONS, max_download_bytes=2**22)
    np.testing.assert_array_equal(video.waveforms, read_video(path, **OPTIONS).waveforms)


@pytest.mark.parametrize("read", [read_video, lambda *args, **kwargs: list(iter_segments(*args, **kwargs))])
def test_an_endless_stream_stops_at_the_limit_of_size(clip, read):
    with (
        server(clip.read_bytes(), pieces=False, declared=0, sent=-1) as url,
        pytest.raises(VideoReadError, match=r"larger than the limit of 1000000 bytes.*max_download_bytes"),
    ):
        read(url, **OPTIONS, max_download_bytes=1_000_000)


def test_a_declared_size_above_the_limit_is_refused_at_once(clip):
    with (
        server(clip.read_bytes(), pieces=False, declared=10**12) as url,
        pytest.raises(VideoReadError, match=f"larger than the limit of {4 * 2**30} bytes"),
    ):
        read_video(url, **OPTIONS)


def test_the_limit_of_size_counts_the_pieces_that_are_read(clip):
    with (
        server(clip.read_bytes(), pieces=True) as url,
        pytest.raises(VideoReadError, match="larger than the limit of 5000 bytes"),
    ):
        read_video(url, **OPTIONS, max_download_bytes=5000)


@pytest.mark.parametrize("pieces", [True, False])
def test_one_byte_at_a_time_stops_at_the_limit_of_time(clip, pieces):
    with server(clip.read_bytes(), pieces=pieces, pause=0.05) as url:
        begin = time.monotonic()
        with pytest.raises(VideoReadError, match=r"took more than the limit of 0\.5 seconds.*max_download_seconds"):
            read_video(url, **OPTIONS, max_download_seconds=0.5)
        assert time.monotonic() - begin < 20


def test_a_server_that_stalls_is_given_up_long_before_the_limit(clip, monkeypatch):
    monkeypatch.setattr(video_source, "TIMEOUT_SECONDS", 0.5)
    with (
        server(clip.read_bytes(), pieces=False, pause=0.05) as url,
        pytest.raises(VideoReadError, match="sends less than 1024 bytes per second"),
    ):
        read_video(url, **OPTIONS)
    with server(clip.read_bytes(), pieces=False, pause=30) as url, pytest.raises(VideoReadError, match="timed out"):
        read_video(url, **OPTIONS)


@pytest.mark.parametrize("pieces", [True, False])
def test_a_download_that_breaks_off_is_no_shorter_video(clip, pieces):
    size = clip.stat().st_size
    with (
        server(clip.read_bytes(), pieces=pieces, sent=size // 2) as url,
        pytest.raises(VideoReadError, match=f"broke off after .* of {size} bytes"),
    ):
        read_video(url, **OPTIONS)


def test_a_pipe_stops_at_the_limit_of_size(clip):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = bytes(len(buffer))
            return len(buffer)

    with pytest.raises(VideoReadError, match="larger than the limit of 1000000 bytes"):
        read_video(Endless(), **OPTIONS, max_download_bytes=1_000_000)


@pytest.mark.parametrize("options", [{"max_download_bytes": 0}, {"max_download_seconds": -1.0}])
def test_limits_are_checked(clip, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        read_video(clip, **options)


def test_the_defaults_are_those_that_the_documents_name():
    assert DownloadLimits() == DownloadLimits(max_bytes=4 * 2**30, max_seconds=1800)


def test_what_is_on_the_disk_has_no_limit(clip):
    with open_container(clip, DownloadLimits(max_bytes=1, max_seconds=1e-6)) as container:
        assert len(container.streams) == 2
