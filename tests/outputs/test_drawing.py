"""What the pictures share: colours that everybody tells apart, and texts that nothing trips over."""

import itertools

import numpy as np
import pytest

from ave_clip.outputs.drawing import (
    EVENT_COLOURS,
    LabelStyle,
    check_result,
    clock,
    label_styles,
    load_font,
    luminance,
    one_line,
    percent,
    rgb,
)

# Machado, Oliveira and Fernandes 2009, severity 1: how linear RGB looks to people who lack one kind of cone.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, vision: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as seen with that vision."""
    value = np.array(rgb(colour)) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.asarray(vision) @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_event_colours_look_different_to_everybody(vision):
    distances = {
        pair: np.linalg.norm(lab(pair[0], VISIONS[vision]) - lab(pair[1], VISIONS[vision]))
        for pair in itertools.combinations(EVENT_COLOURS, 2)
    }
    assert min(distances.values()) > 10, min(distances, key=distances.get)  # 2.3 is just noticeable


@pytest.mark.parametrize("colour", EVENT_COLOURS)
def test_text_on_an_event_has_the_contrast_of_wcag_aa(colour):
    light, dark = sorted([luminance(colour), luminance(LabelStyle(colour).text_colour)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_labels_beyond_the_colours_differ_by_pattern():
    styles = label_styles([f"label {index}" for index in range(35)])
    assert len(set(styles.values())) == 36
    assert styles["label 7"] == LabelStyle(EVENT_COLOURS[0], "/")
    assert styles["background"].colour not in EVENT_COLOURS


def test_texts_keep_their_letters_and_lose_what_breaks_files():
    assert one_line("bell\n\x00 and\tdog\udc80") == "bell and dog"
    assert one_line("звон 鐘 ก็ می\u200cخواهم") == "звон 鐘 ก็ می\u200cخواهم"


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (59.9, "0:59"), (60, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock_counts_minutes_and_from_an_hour_on_hours(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("score, text", [(0.0, "0 %"), (0.935, "94 %"), (0.9999, "99 %"), (1.0, "100 %")])
def test_scores_are_never_rounded_up_to_certainty(score, text):
    assert percent(score) == text


def test_a_font_writes_what_it_has_no_letters_for():
    assert load_font(20, "鐘").getlength("鐘 \U0001f514") > 0
    with pytest.raises(ValueError, match=r"Cannot read the font nowhere\.ttf"):
        load_font(20, "", "nowhere.ttf")


@pytest.mark.parametrize(
    "result, message",
    [
        (None, "has no list of 'segments'"),
        ({"segments": []}, "has no list of 'events'"),
        (
            {"segments": [{"start": 0.0, "end": 1.0, "label": "a"}], "events": []},
            "score is missing from one of the segments of x",
        ),
        (
            {"segments": [], "events": [{"start": 2.0, "end": 1.0, "label": "a", "score": 1.0}]},
            "goes from 2.0 to 1.0 s",
        ),
    ],
)
def test_what_is_no_result_is_refused(result, message):
    with pytest.raises(ValueError, match=message):
        check_result(result, "x")
