"""Text formats for results: subtitles, labels for Audacity and ELAN, tables, JSON.

A format function takes what the pipeline returns for one video, and returns the text of a file. `FORMATS` lists all of
them: the command line, the writers, the Space and the documentation take their choices from it. To add a format, write
the function and its entry in `FORMATS`.

Whatever a label contains, it stays the text of one entry: it never becomes markup, a line of its own, or another
field. Control characters and bidirectional marks are never written as they are. Subtitles and label tracks contain a
space instead; JSON and ELAN use their own escapes, which every reader decodes; CSV uses those of
[`~ave_clip.core.text.csv_cell`], which `ave_clip.data.load_videos` decodes.
"""

import csv
import html
import io
import itertools
import json
import mimetypes
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..core.events import SENSES
from ..core.text import csv_cell, is_safe
from ..core.video_source import STANDARD_INPUT, source_name
from .drawing import one_line

Result = Mapping[str, Sequence[Mapping[str, Any]]]

CSV_COLUMNS = ("video", "start", "end", "label", "score")

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_ASCII = re.compile("[^ -~\n]")
_ELAN_DOCUMENT = {
    "FORMAT": "3.0",
    "VERSION": "3.0",
    "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
    "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
}
_SIDES = ("start", "end")
_VTT_HEADER = "WEBVTT\n"
_SRT_MARKUP = str.maketrans("<>{}", "‹›()")  # SubRip has no escapes, and players read these as markup


def format_srt(result: Result, video: str = "", first_number: int = 1) -> str:
    """Formats SubRip subtitles, one per event. `<`, `>`, `{` and `}` of a label become `‹`, `›`, `(` and `)`.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Not used: subtitles do not contain it.
        first_number (`int`): Number of the first subtitle.

    Returns:
        `str`: Content of an `.srt` file; empty without events.
    """
    entries = (
        f"{number}\n{_clock(event['start'], ',')} --> {_clock(event['end'], ',')}\n"
        f"{one_line(event['label']).translate(_SRT_MARKUP)}\n"
        for number, event in enumerate(_events(result), start=first_number)
    )
    return "\n".join(entries)


def format_vtt(result: Result, video: str = "") -> str:
    """Formats WebVTT subtitles, one per event, with the labels escaped as WebVTT requires.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Not used: subtitles do not contain it.

    Returns:
        `str`: Content of a `.vtt` file.
    """
    cues = []
    for event in _events(result):
        label = html.escape(one_line(event["label"]), quote=False)
        cues.append(f"\n{_clock(event['start'], '.')} --> {_clock(event['end'], '.')}\n{label}\n")
    return _VTT_HEADER + "".join(cues)


def format_audacity(result: Result, video: str = "") -> str:
    """Formats a label track for Audacity (File > Import > Labels): start, end and label per event, separated by tabs.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Not used: label tracks do not contain it.

    Returns:
        `str`: Content of a `.txt` file; empty without events.
    """
    return "".join(
        f"{event['start']:.6f}\t{event['end']:.6f}\t{one_line(event['label'])}\n" for event in _events(result)
    )


def format_elan(result: Result, video: str = "", folder: str | os.PathLike | None = None) -> str:
    """Formats ELAN annotations: a tier with the events and one with all segments, linked to the video.

    A tier of ELAN cannot hold annotations that overlap: events that do are in one tier per label, `events: LABEL`.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its path or URL. Names are written as ELAN writes them, without percent-encoding.
        folder (`str` or `os.PathLike`, *optional*): Folder of the file, for the relative path of the video; the
            working folder by default.

    Returns:
        `str`: Content of an `.eaf` file (EAF 3.0, UTF-8).
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    document = ElementTree.Element("ANNOTATION_DOCUMENT", {"AUTHOR": "ave-clip", "DATE": date, **_ELAN_DOCUMENT})
    header = ElementTree.SubElement(document, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    if video not in ("", STANDARD_INPUT):
        ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", _media_links(video, folder))
    _add_tiers(document, {**_event_tiers(_events(result)), "segments": result["segments"]})
    ElementTree.SubElement(
        document,
        "LINGUISTIC_TYPE",
        {"LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"},
    )
    ElementTree.indent(document, "    ")
    text = ElementTree.tostring(document, encoding="unicode")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + _escape_unsafe(text, lambda char: f"&#{ord(char)};") + "\n"


def csv_columns(result: Result) -> tuple[str, ...]:
    """Returns the columns of [`format_csv`] for a result: `heard`, `seen` and `both` only if it contains them."""
    entries = [*result["events"], *result["segments"]]
    return CSV_COLUMNS + tuple(name for name in SENSES if any(name in entry for entry in entries))


def format_csv(result: Result, video: str = "", header: bool = True, columns: Sequence[str] | None = None) -> str:
    """Formats a table with one row per event: `video`, `start`, `end`, `label`, `score`.

    If the result contains them, `heard`, `seen` and `both` follow; a cell is empty where the model cannot tell. Video
    and label are written by [`~ave_clip.core.text.csv_cell`]; standard input is called `<stdin>`.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name.
        header (`bool`): Whether the names of the columns come first.
        columns (`Sequence[str]`, *optional*): Those of the file that the rows are for; by default [`csv_columns`].

    Returns:
        `str`: Content of a `.csv` file.
    """
    columns = csv_columns(result) if columns is None else columns
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if header:
        writer.writerow(columns)
    shown = csv_cell(source_name(video))
    for event in _events(result):
        times = [f"{event[name]:.3f}".rstrip("0").rstrip(".") for name in ("start", "end")]  # 2, 2.5, 2.125
        known = [event.get(name) for name in columns[len(CSV_COLUMNS) :]]
        senses = ["" if value is None else f"{value:.4f}" for value in known]
        writer.writerow([shown, *times, csv_cell(event["label"]), f"{event['score']:.4f}", *senses])
    return stream.getvalue()


def format_json(result: Result, video: str = "") -> str:
    """Formats a list with one object: `video`, `segments` and `events` of the pipeline, without heat maps.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name.

    Returns:
        `str`: Content of a `.json` file.
    """
    return join_json([result_object(result, video)])


def join_json(objects: Iterable[Mapping[str, Any]]) -> str:
    """Returns the text of a JSON file with the [`result_object`]s of several videos."""
    return _escape_json(json.dumps(list(objects), indent=2, ensure_ascii=False)) + "\n"


def format_jsonl(result: Result, video: str = "") -> str:
    """Formats the object of [`format_json`] on one line, so that the lines of several videos can follow each other.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name.

    Returns:
        `str`: Content of a `.jsonl` file.
    """
    return _escape_json(json.dumps(result_object(result, video), ensure_ascii=False)) + "\n"


def result_object(result: Result, video: str = "") -> dict[str, Any]:
    """Returns the name of a video, as [`source_name`] gives it, and its result, without the heat maps."""
    return {"video": source_name(video), **{name: value for name, value in result.items() if name != "heatmaps"}}


@dataclass(frozen=True)
class Part:
    """A part of the result of a live video, which is written before the next one is known.

    Args:
        result (`Mapping`): New segments and events.
        video (`str`): Name of the video.
        num_before (`int`): Number of events in earlier parts.
        is_first (`bool`): Whether it is the first part.
    """

    result: Result
    video: str = ""
    num_before: int = 0
    is_first: bool = True


def _part_of_srt(part: Part) -> str:
    text = format_srt(part.result, first_number=part.num_before + 1)
    return f"\n{text}" if text and part.num_before else text


def _part_of_vtt(part: Part) -> str:
    text = format_vtt(part.result)
    return text if part.is_first else text.removeprefix(_VTT_HEADER)


@dataclass(frozen=True)
class Format:
    """An entry of `FORMATS`.

    Args:
        format (`Callable`): Takes a result, the name of its video and, if `links_to_video`, the folder of the file;
            returns the text of a file with this video alone.
        suffix (`str`): Suffix of its files.
        title (`str`): Readable name of the format.
        use (`str`): Its use, in a few words.
        is_per_video (`bool`): Whether each file contains one video, as with subtitles.
        is_for_programs (`bool`): Whether programs read it, so that no other text may be written to the same stream.
        has_top_k (`bool`): Whether it contains the most probable labels per segment.
        links_to_video (`bool`): Whether it refers to the video by its path relative to the file.
        columns (`Callable`, *optional*): For tables: returns the columns of a result. `format` then takes `header`
            and `columns`, so that a file with several videos has one header, with the columns of the first.
        join (`Callable`, *optional*): Makes a file with several videos from all their [`result_object`]s, for formats
            in which the parts cannot simply follow each other.
        format_part (`Callable`, *optional*): Takes a [`Part`] and returns its text, for formats that can be written
            while a live video goes on.
    """

    format: Callable[..., str]
    suffix: str
    title: str
    use: str
    is_per_video: bool = False
    is_for_programs: bool = False
    has_top_k: bool = False
    links_to_video: bool = False
    columns: Callable[[Result], Sequence[str]] | None = None
    join: Callable[[Iterable[Mapping[str, Any]]], str] | None = None
    format_part: Callable[[Part], str] | None = None


FORMATS = {
    "json": Format(
        format_json,
        ".json",
        "JSON",
        "programs: all segments and events",
        is_for_programs=True,
        has_top_k=True,
        join=join_json,
    ),
    "jsonl": Format(
        format_jsonl,
        ".jsonl",
        "JSON Lines",
        "programs: one line per video",
        is_for_programs=True,
        has_top_k=True,
        format_part=lambda part: format_jsonl(part.result, part.video),
    ),
    "csv": Format(
        format_csv,
        ".csv",
        "CSV",
        "spreadsheets: one row per event",
        is_for_programs=True,
        columns=csv_columns,
        format_part=lambda part: format_csv(part.result, part.video, header=part.is_first),
    ),
    "srt": Format(
        format_srt, ".srt", "SRT", "subtitles in video players", is_per_video=True, format_part=_part_of_srt
    ),
    "vtt": Format(format_vtt, ".vtt", "WebVTT", "subtitles in browsers", is_per_video=True, format_part=_part_of_vtt),
    "audacity": Format(
        format_audacity,
        ".txt",
        "Audacity",
        "label tracks in Audacity (File > Import > Labels)",
        is_per_video=True,
        format_part=lambda part: format_audacity(part.result),
    ),
    "elan": Format(format_elan, ".eaf", "ELAN", "annotation tiers in ELAN", is_per_video=True, links_to_video=True),
}


def _events(result: Result) -> list[Mapping[str, Any]]:
    return sorted(result["events"], key=lambda event: (event["start"], event["end"]))


def _clock(seconds: float, point: str) -> str:
    """Formats a time as `HH:MM:SS` and milliseconds."""
    rest, milliseconds = divmod(_milliseconds(seconds), 1000)
    rest, second = divmod(rest, 60)
    hour, minute = divmod(rest, 60)
    return f"{hour:02}:{minute:02}:{second:02}{point}{milliseconds:03}"


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _escape_json(text: str) -> str:
    return _escape_unsafe(text, lambda char: json.dumps(char)[1:-1])


def _escape_unsafe(text: str, escape: Callable[[str], str]) -> str:
    """Escapes the unsafe characters of a document, except its line breaks."""
    return _NOT_ASCII.sub(lambda match: match[0] if is_safe(match[0]) else escape(match[0]), text)


def _media_links(video: str, folder: str | os.PathLike | None) -> dict[str, str]:
    """Returns the absolute and the relative URL of the video."""
    kind = mimetypes.guess_type(video)[0] or "unknown"
    name = _NOT_XML.sub("\ufffd", video)
    if re.match(r"[a-zA-Z][\w+.-]+://", video):
        return {"MEDIA_URL": name, "MIME_TYPE": kind}
    path = Path(name).absolute()
    links = {"MEDIA_URL": "file:///" + path.as_posix().lstrip("/"), "MIME_TYPE": kind}
    if path.drive == Path(folder or ".").absolute().drive:
        relative = Path(os.path.relpath(path, Path(folder or ".").absolute())).as_posix()
        links["RELATIVE_MEDIA_URL"] = relative if relative.startswith("../") else f"./{relative}"
    return links


def _event_tiers(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    if all(before["end"] <= after["start"] for before, after in itertools.pairwise(events)):
        return {"events": list(events)}
    tiers: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        tiers.setdefault(f"events: {one_line(event['label'])}", []).append(event)
    return tiers


def _add_tiers(document: ElementTree.Element, tiers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Adds the tiers, and before them the sorted time slots: two per annotation, as in ELAN's own files."""
    entries = [(tier, entry) for tier, spans in tiers.items() for entry in spans]
    times = [(_milliseconds(entry[side]), index, side) for index, (_, entry) in enumerate(entries) for side in _SIDES]
    order = ElementTree.SubElement(document, "TIME_ORDER")
    slots = {}
    for number, (time, index, side) in enumerate(sorted(times), start=1):
        slots[index, side] = f"ts{number}"
        ElementTree.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": f"ts{number}", "TIME_VALUE": str(time)})
    parents = {
        name: ElementTree.SubElement(document, "TIER", {"LINGUISTIC_TYPE_REF": "default-lt", "TIER_ID": name})
        for name in tiers
    }
    for index, (tier, entry) in enumerate(entries):
        start, end = (slots[index, side] for side in _SIDES)
        identity = {"ANNOTATION_ID": f"a{index + 1}", "TIME_SLOT_REF1": start, "TIME_SLOT_REF2": end}
        holder = ElementTree.SubElement(parents[tier], "ANNOTATION")
        annotation = ElementTree.SubElement(holder, "ALIGNABLE_ANNOTATION", identity)
        ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = one_line(entry["label"])
