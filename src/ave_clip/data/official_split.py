"""AVE's official split, for copies of the data set without split files and order files.

The authors shuffled the rows of each category and used the last tenth for testing, the tenth before it for validation
and the others for training. The shuffled order is stored in `assets/ave_split_offsets.bin`: one byte per row of
`Annotations.txt`, the offset within its category's block of the row that takes this position.
"""

import hashlib
import itertools
from collections.abc import Sequence
from importlib.resources import files

from .annotations import Annotation

# SHA-256 of AVE's 4,143 annotation lines without header, joined by line feeds.
_ANNOTATIONS_SHA256 = "0d45342df6cff353a964acdde0ec1a770ca5ca8f654c67be903d7a37116f668a"


def official_split(annotations: Sequence[Annotation]) -> dict[str, list[int]] | None:
    """Returns the row numbers of AVE's train, validation and test rows, in the order of its split files.

    Args:
        annotations (`Sequence[Annotation]`): All rows of `Annotations.txt`.

    Returns:
        `dict[str, list[int]]`, or `None` if the rows are not exactly those of AVE.
    """
    text = "\n".join("&".join(map(str, annotation.key)) for annotation in annotations)
    if hashlib.sha256(text.encode()).hexdigest() != _ANNOTATIONS_SHA256:
        return None
    offsets = (files("ave_clip") / "assets" / "ave_split_offsets.bin").read_bytes()
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for _, block in itertools.groupby(annotations, key=lambda annotation: annotation.category):
        rows = [annotation.row for annotation in block]
        shuffled = [rows[0] + offset for offset in offsets[rows[0] : rows[-1] + 1]]
        tenth = len(rows) // 10
        splits["train"] += shuffled[: -2 * tenth]
        splits["validation"] += shuffled[-2 * tenth : -tenth]
        splits["test"] += shuffled[-tenth:]
    return splits
