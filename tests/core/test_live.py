"""Videos that are still being written: pipes, growing files, lost connections; causal windows and open events."""

import http.server
import itertools
import os
import threading
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from transformers import pipeline

from ave_clip.core import live_events, live_source
from ave_clip.core.label_space import LabelSpace
from ave_clip.core.live_events import CausalLogits, LiveEvents
from ave_clip.core.live_source import LiveInput
from ave_clip.core.recording import Recording
from tests.helpers.media import write_recording
from tests.helpers.models import tiny_localizer, tiny_processor

TASK = "audio-visual-event-localization"
NO_TIMEOUT = 1000.0  # seconds; no test waits for it
LABELS = ("Bark", "Horn", "background")


@pytest.fixture(scope="module")
def localizer(checkpoint):
    return pipeline(TASK, model=checkpoint, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("live") / "clip.ts", 6.0)


def seconds_of(path) -> list[bytes]:
    """The bytes of an MPEG-TS file, cut where the frames of the next second begin."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    times = [float((packet.pts - packets[0].pts) * packet.time_base) for packet in packets]
    firsts = [next(i for i, time in enumerate(times) if time >= second) for second in range(1, int(times[-1]) + 1)]
    cuts = [packets[first].pos for first in firsts]
    content = path.read_bytes()
    return [content[start:end] for start, end in itertools.pairwise([0, *cuts, len(content)])]


def spans(entries) -> list[tuple[str, float, float]]:
    return [(entry["label"], entry["start"], entry["end"]) for entry in entries]


class Recorder:
    """Writes one second after the other into a pipe, but only while the reader is at most `max_behind` behind."""

    def __init__(self, seconds: list[bytes], max_behind: int) -> None:
        self.num_read = 0
        self.changed = threading.Condition()
        self.is_late = False
        end, self.pipe = os.pipe()
        self.reader = os.fdopen(end, "rb")
        self.thread = threading.Thread(target=self._write, args=(seconds, max_behind))
        self.thread.start()

    def _write(self, seconds: list[bytes], max_behind: int) -> None:
        with open(self.pipe, "wb", buffering=0) as pipe, self.changed:
            for number, content in enumerate(seconds):
                if not self.changed.wait_for(lambda: self.num_read >= number - max_behind, timeout=60):  # noqa: B023
                    self.is_late = True
                    return
                pipe.write(content)

    def has_come(self) -> None:
        with self.changed:
            self.num_read += 1
            self.changed.notify()


def test_segments_come_one_second_after_their_end_while_the_stream_goes_on(localizer, clip):
    whole = localizer(str(clip), num_segments=1)
    recorder = Recorder(seconds_of(clip), max_behind=1)  # segment t comes before second t + 2 is written
    segments, events = [], []
    for part in localizer.stream(recorder.reader, live=True, live_timeout=NO_TIMEOUT, num_segments=1):
        segments += part["segments"]
        events += part["events"]
        if part["segments"]:
            recorder.has_come()
    recorder.thread.join()
    recorder.reader.close()
    assert not recorder.is_late
    single = localizer(str(clip), num_segments=1, decoder="none")["segments"]
    assert spans(segments) == spans(single)
    assert [segment["score"] for segment in segments] == pytest.approx([one["score"] for one in single], abs=1e-5)
    assert spans(events) == spans(whole["events"])


def test_an_interrupted_stream_tells_its_open_event_although_its_writer_goes_on(checkpoint, clip):
    localizer = pipeline(TASK, model=checkpoint, device="cpu")
    with torch.no_grad():
        localizer.model.category_head.classifier.bias[1] = 100  # one event throughout
    end, pipe = os.pipe()
    content = clip.read_bytes()
    writer = threading.Thread(target=os.write, args=(pipe, content))
    writer.start()
    with os.fdopen(end, "rb") as reader:
        parts = localizer.stream(reader, live=True, live_timeout=NO_TIMEOUT)
        assert [next(parts)["events"] for _ in range(4)] == [[]] * 4
        rest = parts.throw(KeyboardInterrupt())
        assert [(event["start"], event["end"], event["label"]) for event in rest["events"]] == [(0, 4, "Bark")]
        with pytest.raises(KeyboardInterrupt):
            next(parts)
        os.close(pipe)
    writer.join()


def test_a_growing_file_is_followed_until_it_no_longer_grows(localizer, clip, tmp_path, monkeypatch, caplog):
    seconds, path = seconds_of(clip), tmp_path / "growing.ts"
    path.write_bytes(b"".join(seconds[:3]))
    is_complete = threading.Event()
    clock = itertools.count()  # time stands still until everything is written
    fake = SimpleNamespace(monotonic=lambda: next(clock) if is_complete.is_set() else 0)
    monkeypatch.setattr(live_source, "time", fake)
    num_segments = 0
    for part in localizer.stream(path, live=True, live_timeout=20):
        num_segments += len(part["segments"])
        if not is_complete.is_set():
            with path.open("ab") as file:
                file.write(b"".join(seconds[3:]))
            is_complete.set()
    assert num_segments == 6
    assert "growing.ts has not grown for 20 seconds and counts as ended; a longer --live-timeout" in caplog.text


def test_streams_that_cannot_be_localized_live_are_refused(localizer, clip, tmp_path):
    plain = write_recording(tmp_path / "plain.mp4", 1.0)
    silent = write_recording(tmp_path / "silent.ts", 1.0, sound=None)
    for source, options, message in (
        (plain, {}, r"plain\.mp4 while it is written: it is an MP4 whose index comes at its end\. Write MPEG-TS"),
        (silent, {"live_timeout": 0.01}, r"silent\.ts live: it has no audio track"),
        (tmp_path / "none.ts", {}, "No such file"),
        ("ftp://example.org/a.ts", {}, "URL scheme 'ftp' is not supported"),
        (clip, {"overlap": 0.5}, "overlap=0.5"),
        (clip, {"decoder": "single_event"}, "needs the whole video"),
        (clip, {"live_timeout": 0}, "live_timeout=0"),
    ):
        with pytest.raises(ValueError, match=message):
            list(localizer.stream(source, live=True, **options))


def test_live_events_of_a_localizer_with_a_boundary_head_are_those_of_its_segments(clip, caplog):
    labels = {"id2label": {0: "Bark", 1: "Horn"}, "problem_type": "multi_label"}
    model = tiny_localizer(boundary_regression=True, **labels)
    localizer = pipeline(TASK, model=model, processor=tiny_processor(), device="cpu")
    with torch.no_grad():
        localizer.model.category_head.classifier.bias[1] = 100  # one event throughout
    with caplog.at_level("WARNING"):
        parts = list(localizer.stream(clip, live=True, live_timeout=0.01))
    events = [event for part in parts for event in part["events"]]
    assert ("Horn", 0, 6) in spans(events)
    assert all(time == int(time) for event in events for time in (event["start"], event["end"]))
    assert caplog.text.count("Live events start and end with a segment") == 1


def test_a_fragmented_mp4_is_read_forward(localizer, tmp_path):
    path = write_recording(tmp_path / "a.mp4", 2.0, options={"movflags": "frag_keyframe+empty_moov"})
    parts = list(localizer.stream(path, live=True, live_timeout=0.01))
    assert sum(len(part["segments"]) for part in parts) == 2


def test_a_track_that_stops_does_not_hold_up_the_other(localizer, tmp_path, monkeypatch):
    path = write_recording(tmp_path / "a.ts", 14.0, sound_seconds=1.0, frame_rate=10)
    warnings = []
    monkeypatch.setattr(Recording, "warn_once", lambda self, message: warnings.append(message))
    parts = list(localizer.stream(path, live=True, live_timeout=0.01))
    assert sum(len(part["segments"]) for part in parts) == 14
    assert any("its audio has sent nothing since" in warning for warning in warnings)


def test_a_lost_connection_is_made_again_and_counted():
    answers = iter([b"first", b"second"])

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            content = next(answers)
            self.send_response(200)
            self.send_header("Content-Length", str(6))
            self.end_headers()
            self.wfile.write(content)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    live = LiveInput(f"http://127.0.0.1:{server.server_port}/a.ts", 0.01 + 30)
    live._is_stopped = SimpleNamespace(is_set=lambda: False, wait=lambda seconds: False)  # does not wait
    try:
        assert b"".join(live._download()) == b"firstsecond"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert live.num_lost_connections == 1


def test_a_pause_of_a_pipe_is_counted_and_reading_goes_on():
    is_told = threading.Event()

    def chunks():
        yield b"a"
        is_told.wait(60)
        yield b"b"

    file = live_source.LiveFile(chunks(), "pipe", 0.1)
    assert file.read(10) == b"a"

    def wait_for_the_pause() -> None:
        while not file.num_pauses:
            is_told.wait(0.01)
        is_told.set()

    threading.Thread(target=wait_for_the_pause).start()
    assert file.read(10) == b"b"
    assert file.num_pauses == 1
    assert file.read(10) == file.read(10) == b""


def test_each_window_ends_with_its_segment_and_is_run_once():
    windows = []

    def localize(visual, audio):
        windows.append(visual[0, :, 0].tolist())
        return SimpleNamespace(logits=visual.cumsum(dim=1))

    causal = CausalLogits(SimpleNamespace(device="cpu", localize=localize), window=3)
    features = torch.arange(5.0).view(5, 1)
    logits = [causal.add(features[start:end], features[start:end])[0] for start, end in ((0, 1), (1, 4), (4, 5))]
    assert windows == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert torch.cat(logits)[:, 0].tolist() == [0, 1, 3, 6, 9]


def rows(text: str) -> np.ndarray:
    """Probabilities `(T, 3)` in which Bark (B), Horn (H) or background (.) is most probable."""
    return np.array([[0.8 if letter == kind else 0.1 for kind in "BH."] for letter in text])


def live_spans(events: LiveEvents, probabilities: np.ndarray) -> list[list[tuple]]:
    told = [events.add(row[None], None, index + 1.0) for index, row in enumerate(probabilities)]
    told.append(events.finish())
    return [spans(part) for part in told]


@pytest.mark.parametrize(
    ("decoder", "bark_at"),
    [("viterbi", 6), ("merge", 7)],  # `merge` first takes a single segment of background for a part of the event
)
def test_an_event_is_told_once_when_it_is_over(decoder, bark_at):
    told = live_spans(LiveEvents(LabelSpace(LABELS), 1.0, decoder, 2), rows("..BBB...HHHBBBB"))
    assert {index: part for index, part in enumerate(told) if part} == {
        bark_at: [("Bark", 2, 5)],
        13: [("Horn", 8, 11)],  # at first the second Bark might have begun one segment earlier
        15: [("Bark", 11, 15)],
    }


def test_overlapping_events_are_told_one_by_one():
    space = LabelSpace(("Bark", "Horn"), "multi_label")
    active = np.array([[0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1]]).T * 0.8 + 0.1
    told = live_spans(LiveEvents(space, 1.0, "viterbi", 1), active)
    assert {index: part for index, part in enumerate(told) if part} == {6: [("Bark", 2, 6)], 8: [("Horn", 1, 8)]}


def test_what_is_kept_does_not_grow_with_a_long_event_or_a_long_pause(monkeypatch):
    monkeypatch.setattr(live_events, "MAX_OPEN_SEGMENTS", 8)
    events = LiveEvents(LabelSpace(LABELS), 1.0, "viterbi", 2)
    told = live_spans(events, rows("." * 30 + "B" * 12))
    assert [part for part in told if part] == [[("Bark", 30, 36)], [("Bark", 36, 42)]]
    assert len(events.probabilities) <= 8
