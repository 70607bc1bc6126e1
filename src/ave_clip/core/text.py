"""Escaping of names and labels for display: no characters that move the cursor, hide text or reorder it."""

import re
import unicodedata
from collections.abc import Sequence

JOINERS = "\u200c\u200d"  # invisible, but parts of words and emoji
# Control, format (bidirectional marks among them), half of a surrogate pair, line and paragraph separator.
UNSAFE_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
_ESCAPE = r"(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
_TO_ESCAPE = re.compile(rf"(?P<slashes>\\*)(?P<char>[^ -~])|(?P<literal>\\+)(?={_ESCAPE})")
_ESCAPED = re.compile(rf"(?P<slashes>\\+)(?P<escape>{_ESCAPE})")

# A spreadsheet evaluates a cell that starts like this. Leading apostrophes are included: such a text needs one more,
# so that reading removes the right one.
_FORMULA = re.compile("'*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")


def is_safe(char: str) -> bool:
    """Whether a character can be shown unchanged."""
    return char in JOINERS or unicodedata.category(char) not in UNSAFE_CATEGORIES


def printable(text: str, keep: str = "") -> str:
    r"""Escapes a text for terminals and tables: unsafe characters become `\x1b`, `\u202e` or `\U000e0041`.

    [`original`] restores the text. For this, backslashes before an escape, or before something that looks like one,
    are doubled; all others are not.

    Args:
        text (`str`): A name or label.
        keep (`str`): Unsafe characters that are not escaped, such as line breaks if the format quotes them.

    >>> print(printable("\x1b[31mred \u202etxt.mp4"))
    \x1b[31mred \u202etxt.mp4
    """

    def escape(match: re.Match) -> str:
        if match["literal"]:
            return match["literal"] * 2
        char = match["char"]
        if is_safe(char) or char in keep:
            return match.group()
        code = ord(char)
        escaped = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        return match["slashes"] * 2 + escaped

    return _TO_ESCAPE.sub(escape, text)


def original(text: str) -> str:
    """Restores the text that [`printable`] escaped."""

    def restore(match: re.Match) -> str:
        half, is_escape = divmod(len(match["slashes"]), 2)
        code = int(match["escape"][1:], 16)
        if is_escape and code > 0x10FFFF:  # not a code point
            return match.group()
        return "\\" * half + (chr(code) if is_escape else match["escape"])

    return _ESCAPED.sub(restore, text)


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, which takes an "s" unless the number is 1.

    >>> counted(1, "video"), counted(2, "video")
    ('1 video', '2 videos')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_few(texts: Sequence[str], limit: int) -> str:
    """Joins texts with semicolons; of more than `limit`, the first ones and the number of the others.

    >>> first_few(["a", "b", "c"], limit=2)
    'a; b; and 1 more'
    """
    rest = [f"and {len(texts) - limit} more"] if len(texts) > limit else []
    return "; ".join([*texts[:limit], *rest])


def csv_cell(text: str) -> str:
    """Converts a name or label to a CSV cell that is safe in spreadsheets; [`read_csv_cell`] restores the text.

    A text that a spreadsheet would evaluate as a formula (it starts with `=`, `+`, `-`, `@`, or a tab) gets an
    apostrophe in front, which spreadsheets treat as the mark of a text. Control characters and bidirectional marks are
    escaped as by [`printable`]; line feeds and tabs are kept.

    >>> csv_cell("=1+1"), csv_cell("'=1"), csv_cell("'t is a dog")
    ("'=1+1", "''=1", "'t is a dog")
    """
    text = printable(text, keep="\n\t")
    return f"'{text}" if _FORMULA.match(text) else text


def read_csv_cell(cell: str) -> str:
    """Restores the text that [`csv_cell`] converted.

    >>> read_csv_cell("'=1+1"), read_csv_cell("-1"), read_csv_cell("'t is a dog")
    ('=1+1', '-1', "'t is a dog")
    """
    return original(cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell)
