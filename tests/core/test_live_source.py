"""Streams that FFmpeg opens by their URL: silent, refused and stopped ones."""

import contextlib
import socket
import threading
from types import SimpleNamespace

import pytest

from ave_clip.core import live_source
from ave_clip.core.live_source import LiveInput
from ave_clip.core.streaming import LiveSource
from ave_clip.core.video_clip import ReadOptions
from ave_clip.core.video_decoding import Demuxer
from ave_clip.core.video_io import iter_segments
from ave_clip.core.video_source import VideoReadError, source_name
from tests.helpers.media import write_recording

URL = "rtsp://me:secret@camera.invalid/stream"
NO_TIMEOUT = 1000.0  # seconds; no test waits for it
STREAMS = [SimpleNamespace(index=0), SimpleNamespace(index=1)]


class Sender:
    """In place of FFmpeg: opens a stream, sends three packets and then nothing, until the test is over."""

    def __init__(self, monkeypatch, answers: bool = True) -> None:
        self.answers, self.events = answers, []
        self.is_waiting, self.is_over = threading.Event(), threading.Event()
        monkeypatch.setattr(live_source, "open_with_ffmpeg", self.open)

    @contextlib.contextmanager
    def open(self, url, *options):
        assert url == URL  # with the password
        assert options[-1] == {"rtsp_flags": "prefer_tcp"}
        if not self.answers:
            self.wait()
        try:
            yield SimpleNamespace(demux=self.demux, format="rtsp")
        finally:
            self.events.append("closed")

    def demux(self):
        yield from (SimpleNamespace(stream_index=number % 2, number=number) for number in range(3))
        self.wait()

    def wait(self) -> None:
        self.is_waiting.set()
        assert self.is_over.wait(60)


@pytest.fixture
def sender(monkeypatch):
    sender = Sender(monkeypatch)
    yield sender
    sender.is_over.set()


def test_a_sender_that_becomes_silent_is_an_error_after_its_packets(sender):
    with LiveInput(URL, 0.01).open() as container:
        assert container.format == "rtsp"
        packets = container.demux(STREAMS[:1])
        assert [next(packets).number, next(packets).number] == [0, 2]
        with pytest.raises(TimeoutError, match=r"nothing has come for 0\.01 seconds"):
            next(packets)
        sender.is_over.set()


def test_a_stream_that_is_waiting_for_its_sender_can_be_stopped(sender):
    live = LiveInput(URL, NO_TIMEOUT)
    with live.open() as container:
        packets = container.demux(STREAMS)
        assert [next(packets).number for _ in range(3)] == [0, 1, 2]
        assert sender.is_waiting.wait(60)
        live.stop()
        assert list(packets) == []
        sender.is_over.set()
        sender.events.append("reader is done")  # decoders use the container's streams until then
    assert sender.events == ["reader is done", "closed"]


def test_a_sender_that_never_answers_is_an_error(monkeypatch):
    sender = Sender(monkeypatch, answers=False)
    monkeypatch.setattr(live_source, "TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(live_source, "CLOSE_SECONDS", 0)
    with pytest.raises(VideoReadError, match=r"me:\*\*\*@camera.*no video or audio has come within 0\.02 seconds"):
        LiveInput(URL, 0.02).open().__enter__()
    sender.is_over.set()


def test_opening_can_be_stopped(monkeypatch):
    sender, live = Sender(monkeypatch, answers=False), LiveInput(URL, NO_TIMEOUT)
    monkeypatch.setattr(live_source, "CLOSE_SECONDS", 0)
    threading.Thread(target=lambda: sender.is_waiting.wait(60) and live.stop()).start()
    with pytest.raises(VideoReadError, match="stopped before it began"):
        live.open().__enter__()
    sender.is_over.set()


def test_a_refused_connection_is_told_without_the_password():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # but does not listen
        url = f"rtsp://me:sec@ret@127.0.0.1:{free.getsockname()[1]}/x"
        with pytest.raises(VideoReadError, match=r"me:\*\*\*@127.*Connection refused\. Check the address") as caught:
            LiveInput(url).open().__enter__()
    assert "ret@" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rtsp://me:a@b@host:554/x?tcp", "rtsp://me:***@host:554/x?tcp"),
        ("rtsp://:key@host/x", "rtsp://:***@host/x"),
        ("rtsp://me@host:554/x", "rtsp://me@host:554/x"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("a:b@c.mp4", "a:b@c.mp4"),
    ],
)
def test_names_of_sources_hide_only_passwords(source, name):
    assert source_name(source) == name


def test_a_stream_that_ffmpeg_opens_has_the_segments_of_its_file(tmp_path):
    path, options = write_recording(tmp_path / "clip.ts", 3.0), ReadOptions(num_frames_per_segment=4, size=(16, 16))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(path.read_bytes())

        thread = threading.Thread(target=send)
        thread.start()
        sent = list(LiveSource(f"tcp://127.0.0.1:{server.getsockname()[1]}", options, NO_TIMEOUT))
        thread.join()
    stored = list(LiveSource(path, options, 0.01))
    assert len(sent) == len(stored) == 3
    for one, other in zip(sent, stored):
        assert one.frame_times.tolist() == other.frame_times.tolist()
        assert (one.frames == other.frames).all()
        assert (one.waveform == other.waveform).all()


def test_a_first_frame_without_a_time_comes_right_before_the_second(tmp_path, monkeypatch):
    path, frames = write_recording(tmp_path / "clip.ts", 3.0, frame_rate=10), Demuxer.frames

    def late_video(self, stream):
        for number, (time, frame) in enumerate(frames(self, stream)):
            yield (time if stream.type == "audio" else time + 1 if number else None), frame

    monkeypatch.setattr(Demuxer, "frames", late_video)
    segments = list(iter_segments(path, num_frames_per_segment=10, size=(16, 16)))
    assert [len(segment.frame_times) for segment in segments[:2]] == [0, 10]
    assert segments[1].frame_times[0] == pytest.approx(1.0, abs=0.05)
