"""Printed tables: columns stay apart whatever is in them."""

import pytest

from ave_clip.outputs.text_table import align_columns


@pytest.mark.parametrize(
    "cell", ["100.00", "100.00 to 100.00 and more", 12345678901234567890, "鐘の音", "a\tb\x1b[31m"]
)
def test_columns_never_run_together(cell):
    lines = align_columns([("name", "first", "second"), ("one", cell, 100), ("three", 1, cell)]).splitlines()
    assert [len(line.split("  ")) >= 3 for line in lines] == [True] * 3
    assert all(line == line.rstrip() and line.isprintable() for line in lines)


def test_text_is_aligned_at_the_left_and_numbers_at_the_right():
    assert align_columns([("a", "b"), ("long", 5), ("x", 123)]).splitlines() == ["a       b", "long    5", "x     123"]
    assert align_columns([("鐘", 1), ("ab", 22)]).splitlines() == ["鐘   1", "ab  22"]
