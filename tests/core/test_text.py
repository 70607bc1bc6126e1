"""Names and labels as they are shown, and back."""

import random

import pytest

from ave_clip.core.text import csv_cell, is_safe, original, printable, read_csv_cell


@pytest.mark.parametrize(
    "text, shown",
    [
        ("Church bell, 鐘 🔔 ก็ می\u200cخواهم", "Church bell, 鐘 🔔 ก็ می\u200cخواهم"),
        ("C:\\new\\text", "C:\\new\\text"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r", "two\\x0alines\\x0d"),
        ("clip\u202e4pm", "clip\\u202e4pm"),
        ("\U000e0041", "\\U000e0041"),
        ("\udc80", "\\udc80"),
        ("\\x1b", "\\\\x1b"),
    ],
)
def test_unsafe_characters_are_shown_as_escapes(text, shown):
    assert printable(text) == shown
    assert original(shown) == text


def test_any_text_comes_back_from_terminals_and_tables():
    draw = random.Random(0)
    for _ in range(5000):
        text = "".join(draw.choice("\\\\xuU01be\x1b\u202e\n\t\r='+-@ 鐘\U000e0041\udc80\u200d") for _ in range(9))
        assert original(printable(text)) == text
        assert all(map(is_safe, printable(text)))
        assert read_csv_cell(csv_cell(text)) == text
        assert csv_cell(text)[0] not in "=+-@\t\r"
