"""Plain-text tables for terminals and log files, with columns that are always separated."""

from collections.abc import Sequence
from typing import Any

from ..core.text import printable

GAP = "  "


def align_columns(rows: Sequence[Sequence[Any]], num_text_columns: int = 1) -> str:
    """Aligns rows in columns that are as wide as their widest cell, with two spaces between them.

    Args:
        rows (`Sequence[Sequence]`): Cells of any kind; the first row may contain titles.
        num_text_columns (`int`): Number of columns, from the left, that contain text and are left-aligned; the others
            contain numbers and are right-aligned.

    >>> print(align_columns([["label", "score"], ["Bark", "9 %"]]))
    label  score
    Bark     9 %
    """
    from rich.cells import cell_len  # Chinese characters and emoji are two cells wide

    table = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        room = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths)]
        cells = [
            cell + space if place < num_text_columns else space + cell
            for place, (cell, space) in enumerate(zip(row, room))
        ]
        lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)
