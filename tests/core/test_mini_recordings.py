"""`ave-clip-mini` on real recordings and photographs, composed into clips of ten seconds.

Needs `fixtures/audioclip/demo` of the shared folder.
"""

import os
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

SHARED = Path(os.environ.get("AVE_CLIP_SHARED", Path(__file__).parents[3] / "shared"))
DEMO = SHARED / "fixtures" / "audioclip" / "demo"
pytestmark = pytest.mark.skipif(not DEMO.is_dir(), reason="AVE_CLIP_SHARED holds no recordings")

SAMPLING_RATE = 16000
START, END = 2, 8
LABELS = ["cat", "car horn", "alarm clock", "cough", "thunder"]


@pytest.fixture(scope="module")
def localizer():
    return pipeline("audio-visual-event-localization", model="ave-clip-mini")


def recording(name: str) -> np.ndarray:
    """A recording at 16 kHz, without its pauses at both ends."""
    with wave.open(str(next(DEMO.glob(f"{name}*.wav")))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        times = np.arange(0, len(samples) / file.getframerate(), 1 / SAMPLING_RATE)
        sound = np.interp(times, np.arange(len(samples)) / file.getframerate(), samples.mean(axis=1) / 32768)
    loud = np.flatnonzero(np.abs(sound) > 0.05 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + 1].astype(np.float32)


def photograph(name: str) -> np.ndarray:
    with Image.open(DEMO / f"{name}.jpg") as picture:
        return np.asarray(picture.convert("RGB").resize((320, 240)))


def clip(sound: str, picture: str) -> dict:
    """Ten seconds of grey and silence with a recording and a photograph from second 2 to 8."""
    frames = np.full((10, 240, 320, 3), 90, dtype=np.uint8)
    frames[START:END] = photograph(picture)
    audio = np.zeros(10 * SAMPLING_RATE, dtype=np.float32)
    length = (END - START) * SAMPLING_RATE
    audio[START * SAMPLING_RATE : END * SAMPLING_RATE] = np.resize(recording(sound), length)
    return {"frames": frames, "frame_rate": 1, "audio": audio, "sampling_rate": SAMPLING_RATE}


@pytest.mark.parametrize(
    ("sound", "picture", "label"),
    [
        ("cat", "cat_1", "cat"),
        ("cat", "cat_2", "cat"),
        ("car_horn", "cars_1", "car horn"),
        ("car_horn", "cars_2", "car horn"),
        ("alarm_clock", "clock_1", "alarm clock"),
        ("alarm_clock", "clock_2", "alarm clock"),
    ],
)
def test_event_is_found_within_a_second(localizer, sound, picture, label) -> None:
    events = localizer(clip(sound, picture), candidate_labels=LABELS, decoder="viterbi")["events"]
    assert [event["label"] for event in events] == [label]
    assert abs(events[0]["start"] - START) <= 1 and abs(events[0]["end"] - END) <= 1
    assert events[0]["heard"] > 0.5 and events[0]["seen"] > 0.5 and events[0]["both"] > 0.5


@pytest.mark.parametrize(
    ("sound", "picture"),
    [
        ("car_horn", "cat_1"),
        ("car_horn", "clock_1"),
        ("alarm_clock", "cat_1"),
        ("alarm_clock", "cat_2"),
        # The sound is clear, and the image classifier denies the label.
        ("cat", "cars_1"),
        ("cat", "clock_1"),
        ("cat", "coughing_1"),
    ],
)
def test_audio_of_one_thing_and_image_of_another_is_no_event(localizer, sound, picture) -> None:
    assert localizer(clip(sound, picture), candidate_labels=LABELS, decoder="viterbi")["events"] == []


@pytest.mark.parametrize(
    ("sound", "picture", "label"), [("coughing", "coughing_1", "cough"), ("thunder", "lightning_1", "thunder")]
)
def test_labels_without_an_image_class_are_heard_and_have_no_seen_score(localizer, sound, picture, label) -> None:
    events = localizer(clip(sound, picture), candidate_labels=LABELS, decoder="viterbi")["events"]
    assert {event["label"] for event in events} == {label}
    assert all(event["heard"] > 0.5 and event["seen"] is None and event["both"] is None for event in events)


def test_labels_hold_for_one_call(localizer) -> None:
    with_labels = localizer(clip("cat", "cat_1"), candidate_labels="cat, dog")["segments"]
    assert {segment["label"] for segment in with_labels} <= {"cat", "dog", "background"}
    own = localizer(clip("cat", "cat_1"))["events"]
    assert own and own[0]["label"] == "Cat"


def test_unknown_label_is_told_before_reading(localizer) -> None:
    with pytest.raises(ValueError, match="for the label 'qqqq'"):
        localizer("missing.mp4", candidate_labels=["cat", "qqqq"])


def test_heat_map_is_of_the_label_that_is_heard(localizer) -> None:
    heatmaps = localizer(clip("cat", "cat_1"), candidate_labels=LABELS, return_heatmaps=True)["heatmaps"]
    assert heatmaps.shape == (10, 7, 7)
    np.testing.assert_allclose(heatmaps.sum(axis=(1, 2)), 1, atol=1e-4)
