import itertools
import random

import pytest

from ave_clip.core.events import group_segments
from ave_clip.data.annotations import (
    AnnotationError,
    LabelledSpan,
    check_disjoint,
    label_segments,
    match_split,
    parse_annotations,
    parse_categories,
)
from ave_clip.data.categories import AVE_CATEGORIES
from tests.helpers.ave_files import HEADER, ROWS

TEXT = "\n".join(ROWS)


def parse(text, **options):
    data = text if isinstance(text, bytes) else text.encode()
    return parse_annotations(data, AVE_CATEGORIES, 10, **options)


@pytest.mark.parametrize(
    "variant",
    [
        TEXT,
        f"{TEXT}\n",
        f"{TEXT}\n\n",
        f"{HEADER}\n{TEXT}",
        TEXT.replace("\n", "\r\n"),
        f"{HEADER}\n{TEXT}\n".replace("\n", "\r\n"),
        f"\ufeff{HEADER}\n{TEXT}",
    ],
    ids=["no final newline", "plain", "empty last line", "header", "CRLF", "header and CRLF", "byte order mark"],
)
def test_every_variant_of_the_file_gives_the_same_rows(variant):
    rows = parse(variant)
    assert [row.key for row in rows] == [row.key for row in parse(TEXT)]
    assert [row.row for row in rows] == list(range(len(ROWS)))


def test_categories_with_commas_and_parentheses_and_ids_with_dashes_are_not_split():
    rows = parse(TEXT)
    assert rows[3].category == "Male speech, man speaking"
    assert rows[6].key == ("Frying (food)", "_frying____F", "good", 0, 3)
    assert rows[0].video_id == "-bell_one-A"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Bark&abc&good&5&3", "ends at 3 s, before its start at 5 s"),
        ("Bark&abc&good&5&11", "ends at 11 s, but a clip has 10 s"),
        ("Bark&abc&good&-1&3", "times '-1' and '3', wanted whole seconds"),
        ("Bark&abc&good&0&2.5", "times '0' and '2.5', wanted whole seconds"),
        ("Bark&abc&good&&3", "wanted whole seconds"),
        ("Barks&abc&good&0&3", "Did you mean 'Bark'"),
        ("Bark&abc&good&0", "4 fields in"),
        ("Male speech, man speaking&abc&good&0&3&", "6 fields in"),
        ("Bark&../abc&good&0&3", r"video id '\.\./abc'"),
        ("Bark&a/b&good&0&3", "path separators"),
        ("Bark&a\\b&good&0&3", "path separators"),
        ("Bark&C:b&good&0&3", "video id 'C:b'"),
        ("Bark&a b&good&0&3", "white space"),
        ("Bark&&good&0&3", "video id ''"),
        ("", "1 fields in ''"),
        (ROWS[1], "repeats line {second}"),
        ("Church bell&bell_two__B&good&7&9", "overlaps 6 to 8 s in line {second}"),
    ],
)
@pytest.mark.parametrize("header", [True, False])
def test_a_row_that_cannot_be_used_is_refused_with_file_and_line(row, message, header):
    lines = [HEADER] * header + [*ROWS[:3], row, *ROWS[3:]]
    with pytest.raises(
        AnnotationError, match=rf"here/A\.txt, line {4 + header}: .*{message.format(second=2 + header)}"
    ):
        parse("\n".join(lines), file="here/A.txt")


def test_one_video_may_have_two_categories_at_the_same_time():
    rows = parse(TEXT)
    assert rows[4].video_id == rows[5].video_id
    assert (rows[4].start, rows[4].end) == (rows[5].start, rows[5].end)


def test_a_header_of_other_columns_is_refused():
    with pytest.raises(AnnotationError, match="line 1: the header is 'Category&Start&VideoID"):
        parse(f"Category&Start&VideoID&Quality&End\n{TEXT}")


def test_text_in_another_encoding_is_refused_with_its_line():
    with pytest.raises(AnnotationError, match=r"Annotations.txt, line 2: byte 0xe9 is not UTF-8"):
        parse(b"Bark&abc&good&0&3\nBark&caf\xe9&good&0&3\n")
    with pytest.raises(AnnotationError, match="not UTF-8"):
        parse(TEXT.encode("utf-16"))
    with pytest.raises(AnnotationError, match="line 1: a zero byte, as in UTF-16"):
        parse(TEXT.encode("utf-16-le"))


def test_an_empty_file_is_refused():
    for text in ("", "\n", HEADER):
        with pytest.raises(AnnotationError, match="there are no rows"):
            parse(text)


def test_categories_are_one_name_a_line():
    assert parse_categories(b"Bell\r\nBark\n\n") == ("Bell", "Bark")
    for text, message in (
        (b"", "there are no categories"),
        (b"Bell\n\nBark", "line 2: an empty line"),
        (b"Bell\nBark\nBell", "line 3: the category 'Bell' is in line 1 already"),
        (b"Bell\nBackground", "line 2: background is added"),
    ):
        with pytest.raises(AnnotationError, match=message):
            parse_categories(text)


def test_a_split_file_gives_row_numbers_in_its_order():
    rows = parse(TEXT)
    assert match_split("\r\n".join([ROWS[8], ROWS[0], ROWS[4]]).encode(), rows, "trainSet.txt") == [8, 0, 4]
    assert match_split(b"", rows, "valSet.txt") == []


def test_a_split_that_names_an_unknown_row_is_refused_with_its_line():
    text = f"{ROWS[0]}\nBanjo&strings____G&good&0&9\n"
    with pytest.raises(
        AnnotationError, match=r"testSet\.txt, line 2: no row of Annotations\.txt reads 'Banjo&strings____G"
    ):
        match_split(text.encode(), parse(TEXT), "testSet.txt")
    with pytest.raises(AnnotationError, match=r"testSet\.txt, line 3: repeats line 1"):
        match_split("\n".join([ROWS[0], ROWS[1], ROWS[0]]).encode(), parse(TEXT), "testSet.txt")


def test_a_row_in_two_splits_is_refused():
    check_disjoint({"train": [0, 1], "test": [2]}, "here")
    with pytest.raises(AnnotationError, match="here: row 1 is in the train split and in the test split"):
        check_disjoint({"train": [0, 1], "test": [2, 1]}, "here")


def test_whole_seconds_are_labelled_exactly():
    assert label_segments([LabelledSpan(3, 2.0, 5.0)], 6, background=28) == [28, 28, 3, 3, 3, 28]
    assert label_segments([], 3, background=28) == [28, 28, 28]
    assert label_segments([LabelledSpan(0, 0.0, 0.0)], 3, background=28) == [28, 28, 28]


def test_a_segment_takes_the_class_that_covers_at_least_half_of_it():
    spans = [LabelledSpan(3, 1.0, 2.6), LabelledSpan(5, 2.6, 3.4), LabelledSpan(7, 4.5, 5.0)]
    assert label_segments(spans, 5, background=9) == [9, 3, 3, 9, 7]


def test_of_overlapping_events_the_one_that_covers_more_wins_then_the_earlier():
    assert label_segments([LabelledSpan(1, 0.0, 0.8), LabelledSpan(2, 0.1, 1.0)], 1, background=9) == [2]
    assert label_segments([LabelledSpan(2, 0.0, 1.0), LabelledSpan(1, 0.0, 1.0)], 1, background=9) == [1]
    assert label_segments([LabelledSpan(2, 0.0, 3.0), LabelledSpan(1, 1.0, 2.0)], 3, background=9) == [2, 2, 2]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        # Class 0 was there before, but the event of it that ties with class 1 began later.
        ([(0, 0, 1), (1, 2, 6), (0, 4, 6)], [0, 9, 1, 1, 1, 1]),
        ([(1, 0, 1), (0, 2, 6), (1, 4, 6)], [1, 9, 0, 0, 0, 0]),
        ([(0, 4, 6), (1, 2, 6)], [9, 9, 1, 1, 1, 1]),
        ([(1, 2, 4), (0, 3, 6), (1, 4, 6)], [9, 9, 1, 1, 0, 0]),
        ([(2, 0, 2), (1, 1, 3), (0, 1, 3)], [2, 2, 0, 9, 9, 9]),
        # An event of no length began first, but covers nothing.
        ([(0, 1, 1), (0, 1.5, 3), (1, 1.2, 3)], [9, 1, 1, 9, 9, 9]),
        # Two events of one class in one segment: the first of them counts for the tie.
        ([(0, 0.2, 0.5), (1, 0.3, 0.9), (0, 0.5, 0.8)], [0, 9, 9, 9, 9, 9]),
        # Overlapping events of one class cover a second once.
        ([(1, 0, 3), (1, 1, 2), (1, 1.5, 3), (0, 0, 3)], [0, 0, 0, 9, 9, 9]),
        # 0.7 s each, although the second sum is 0.7000000000000001 in floats.
        ([(1, 0.0, 0.7), (0, 0.1, 0.2), (0, 0.2, 0.8)], [1, 9, 9, 9, 9, 9]),
        # Half of the segment is enough, and two halves tie.
        ([(1, 0.0, 0.5), (0, 0.5, 1.0)], [1, 9, 9, 9, 9, 9]),
        ([(1, 0.0, 0.5), (0, 0.4, 1.0)], [0, 9, 9, 9, 9, 9]),
    ],
)
def test_a_tie_goes_to_the_event_that_starts_first_in_the_segment(spans, expected):
    events = [LabelledSpan(label, float(start), float(end)) for label, start, end in spans]
    for order in itertools.permutations(events):
        assert label_segments(order, 6, background=9) == expected


def test_two_events_of_one_class_count_together_and_overlaps_only_once():
    assert label_segments([LabelledSpan(1, 0.0, 0.3), LabelledSpan(1, 0.6, 0.9)], 1, background=9) == [1]
    assert label_segments([LabelledSpan(1, 0.0, 0.4), LabelledSpan(1, 0.2, 0.4)], 1, background=9) == [9]


def test_half_second_segments_are_cut_as_finely():
    assert label_segments([LabelledSpan(1, 0.5, 1.2)], 4, background=9, segment_seconds=0.5) == [9, 1, 9, 9]


def test_events_to_labels_to_events_is_the_identity():
    draw = random.Random(0)
    for _ in range(50):
        labels = [draw.randrange(4) for _ in range(12)]
        spans = [LabelledSpan(label, float(start), float(end)) for label, start, end in group_segments(labels, 3)]
        draw.shuffle(spans)
        assert label_segments(spans, 12, background=3) == labels
