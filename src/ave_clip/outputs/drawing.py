"""Colours, text and fonts that timelines and overlays share, so that an event looks the same in both.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which people with any kind of colour blindness can
distinguish; from the eighth label on they are repeated with a pattern. Labels are always written beside the colours.
"""

import functools
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.categories import BACKGROUND_LABEL
from ..core.text import JOINERS, printable

EVENT_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
PATTERNS = ("", "/", "\\", ".", "x")
BACKGROUND_COLOUR = "#8b929a"
# Font files with many scripts, best first. The last is Pillow's own font, with Latin letters only.
FONT_FILES = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
)
WIDE_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Arial Unicode MS",
)

PLOT_SUFFIXES = (".png", ".svg", ".html")  # of the files that `plot_timeline` can write


def check_plot_packages(output: str | os.PathLike) -> None:
    """Refuses to draw an image without matplotlib, which only HTML pages do not need.

    Raises:
        ImportError: naming the extra to install.
    """
    if Path(output).suffix.lower() != ".html" and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            f'Cannot draw {output}: PNG and SVG images need matplotlib: `pip install "ave-clip[viz]"`. '
            "HTML pages do not need it."
        )


@dataclass(frozen=True)
class LabelStyle:
    """Colour and pattern of a label.

    Attributes:
        colour: `#rrggbb`.
        pattern: One of `PATTERNS`; `""` is plain.
    """

    colour: str
    pattern: str = ""

    @property
    def text_colour(self) -> str:
        """Black or white, whichever is easier to read on the colour."""
        return "#000000" if luminance(self.colour) > 0.18 else "#ffffff"


def label_styles(labels: Iterable[str]) -> dict[str, LabelStyle]:
    """Returns a style for each distinct label, in order of appearance; background is grey.

    >>> label_styles(["Bark", "background", "Bell"])["Bell"]
    LabelStyle(colour='#e69f00', pattern='')
    """
    styles = {BACKGROUND_LABEL: LabelStyle(BACKGROUND_COLOUR)}
    for label in labels:
        if label not in styles:
            turn, colour = divmod(len(styles) - 1, len(EVENT_COLOURS))
            styles[label] = LabelStyle(EVENT_COLOURS[colour], PATTERNS[turn % len(PATTERNS)])
    return styles


def rgb(colour: str) -> tuple[int, int, int]:
    """Returns red, green and blue of `#rrggbb`, from 0 to 255."""
    red, green, blue = bytes.fromhex(colour.lstrip("#"))
    return red, green, blue


def luminance(colour: str) -> float:
    """Returns the relative luminance of `#rrggbb` from 0 to 1, as defined by WCAG 2."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (part / 255 for part in rgb(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def one_line(text: str) -> str:
    """Returns a text that any font and file format accepts: no line breaks, control characters or lone surrogates."""
    return " ".join("".join(char if char.isprintable() or char in JOINERS else " " for char in text).split())


def clock(seconds: float) -> str:
    """Formats a time as `m:ss`, or from one hour on as `h:mm:ss`.

    >>> clock(75.2), clock(3661)
    ('1:15', '1:01:01')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def percent(score: float) -> str:
    """Formats a probability for readers, such as `97 %`; values below 1 are never rounded up to `100 %`."""
    return f"{min(int(100 * score + 0.5), 99 if score < 1 else 100)} %"


def check_result(result: Any, name: str) -> None:
    """Checks that a value is a result of the pipeline.

    Raises:
        ValueError: naming the video and what is missing.
    """
    for kind in ("segments", "events"):
        entries = result.get(kind) if isinstance(result, Mapping) else None
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise ValueError(
                f"The result of {printable(name)} has no list of {kind!r}. Pass what the pipeline returned for this "
                "video."
            )
        check_spans(entries, f"{kind} of {printable(name)}", ("start", "end", "label", "score"))


def check_spans(entries: Sequence[Any], what: str, fields: Sequence[str]) -> None:
    """Checks that entries have the fields, and times in order.

    Raises:
        ValueError: naming the entry.
    """
    for entry in entries:
        missing = [field for field in fields if not isinstance(entry, Mapping) or field not in entry]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing from one of the {what}: {entry!r}.")
        if not 0 <= entry["start"] <= entry["end"] < float("inf"):
            raise ValueError(f"One of the {what} goes from {entry['start']} to {entry['end']} s: {entry!r}.")


@functools.lru_cache(maxsize=64)
def load_font(size: int, text: str = "", file: str | None = None) -> Any:
    """Loads a font for a text.

    Args:
        size (`int`): Height of a line in pixels.
        text (`str`): The text to draw. For Chinese, Japanese and Korean, one of the usual fonts is loaded if the
            system has one; for other text DejaVu Sans, if it is installed.
        file (`str`, *optional*): Font file to use instead.

    Returns:
        `PIL.ImageFont.FreeTypeFont`: The font. Characters without a glyph are drawn as boxes.

    Raises:
        ValueError: if `file` is not a font.
    """
    from PIL import ImageFont

    if file is not None:
        try:
            return ImageFont.truetype(file, size)
        except OSError as error:
            raise ValueError(f"Cannot read the font {file}: {error}. Pass a .ttf, .otf or .ttc file.") from error
    needs_wide = any(ord(char) > 0x2E7F for char in text)
    for name in (*FONT_FILES, *_dejavu()) if needs_wide else (*_dejavu(), *FONT_FILES):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue  # not on this system
    return ImageFont.load_default(size)


def _dejavu() -> list[str]:
    """Returns the system's DejaVu Sans, or the copy in matplotlib."""
    found = importlib.util.find_spec("matplotlib")
    bundled = [str(Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")] if found and found.origin else []
    return [*bundled, "DejaVuSans.ttf"]
