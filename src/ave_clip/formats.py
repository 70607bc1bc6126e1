"""Results in the formats of people's tools: subtitles, labels for Audacity and ELAN, tables, JSON.

Each function takes what the pipeline returns for one video and gives the text of a file:

    format_srt(result)    SubRip subtitles         format_csv(result, video)    one row an event
    format_vtt(result)    WebVTT subtitles         format_json(result, video)   segments and events
    format_elan(result)   ELAN annotations         format_jsonl(result, video)  the same on one line
    format_audacity(result)   label track of Audacity

`FORMATS` holds them by name. Whatever a label contains, it stays the text of one entry: it never becomes markup, a
line of its own, or another field.
"""

import csv
import io
import json
import mimetypes
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Result = Mapping[str, Sequence[Mapping[str, Any]]]

CSV_COLUMNS = ("video", "start", "end", "label", "score")
SUFFIXES = {
    "json": ".json",
    "jsonl": ".jsonl",
    "csv": ".csv",
    "srt": ".srt",
    "vtt": ".vtt",
    "audacity": ".txt",
    "elan": ".eaf",
}
PER_VIDEO = ("srt", "vtt", "audacity", "elan")  # a file of these belongs to one video

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELAN_DOCUMENT = {
    "FORMAT": "3.0",
    "VERSION": "3.0",
    "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
    "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
}
_OTHER_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # some readers end a line there
_SIDES = ("start", "end")
_SRT_MARKUP = str.maketrans("<>{}", "‹›()")  # SubRip has no escapes, and players read these as markup


def format_srt(result: Result, video: str = "") -> str:
    """SubRip subtitles, one an event. `<`, `>`, `{` and `}` of a label become `‹`, `›`, `(` and `)`.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name; subtitles do not hold it.

    Returns:
        `str`: Content of an `.srt` file; empty without events.
    """
    entries = (
        f"{number}\n{_clock(event['start'], ',')} --> {_clock(event['end'], ',')}\n"
        f"{_one_line(event['label']).translate(_SRT_MARKUP)}\n"
        for number, event in enumerate(_events(result), start=1)
    )
    return "\n".join(entries)


def format_vtt(result: Result, video: str = "") -> str:
    """WebVTT subtitles, one an event, labels escaped as WebVTT asks for.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name; subtitles do not hold it.

    Returns:
        `str`: Content of a `.vtt` file.
    """
    cues = (
        f"\n{_clock(event['start'], '.')} --> {_clock(event['end'], '.')}\n{_escape_cue(_one_line(event['label']))}\n"
        for event in _events(result)
    )
    return "WEBVTT\n" + "".join(cues)


def format_audacity(result: Result, video: str = "") -> str:
    """A label track for Audacity (File > Import > Labels): start, end and label of each event between tabs.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name; label tracks do not hold it.

    Returns:
        `str`: Content of a `.txt` file; empty without events.
    """
    return "".join(
        f"{event['start']:.6f}\t{event['end']:.6f}\t{_one_line(event['label'])}\n" for event in _events(result)
    )


def format_elan(result: Result, video: str = "", folder: str | os.PathLike | None = None) -> str:
    """ELAN annotations: a tier with the events, one with all segments, linked to the video.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its path or URL. Names stand in the file as ELAN writes them, without percent-encoding.
        folder (`str` or `os.PathLike`, *optional*): Where the file will lie, for the video's relative path; the
            working folder when not given.

    Returns:
        `str`: Content of an `.eaf` file (EAF 3.0, UTF-8).
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    document = ElementTree.Element("ANNOTATION_DOCUMENT", {"AUTHOR": "ave-clip", "DATE": date, **_ELAN_DOCUMENT})
    header = ElementTree.SubElement(document, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    if video:
        ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", _media_links(video, folder))
    _add_tiers(document, {"events": _events(result), "segments": result["segments"]})
    ElementTree.SubElement(
        document,
        "LINGUISTIC_TYPE",
        {"LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"},
    )
    ElementTree.indent(document, "    ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(document, encoding="unicode") + "\n"


def format_csv(result: Result, video: str = "", header: bool = True) -> str:
    """A table with a row an event: `video`, `start`, `end`, `label`, `score`.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name.
        header (`bool`): Whether the names of the columns come first.

    Returns:
        `str`: Content of a `.csv` file.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if header:
        writer.writerow(CSV_COLUMNS)
    for event in _events(result):
        times = [_plain_number(event[name]) for name in ("start", "end")]
        writer.writerow([video, *times, event["label"], f"{event['score']:.4f}"])
    # NUL ends the text for many readers, a bare carriage return the row.
    return stream.getvalue().replace("\0", " ").replace("\r", " ")


def format_json(result: Result, video: str = "") -> str:
    """A list with one object: `video`, `segments` and `events`, as the pipeline gives them, without heat maps.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name.

    Returns:
        `str`: Content of a `.json` file.
    """
    return join_json([result_object(result, video)])


def join_json(objects: Iterable[Mapping[str, Any]]) -> str:
    """The JSON file of several videos' [`result_object`]s."""
    return json.dumps(list(objects), indent=2, ensure_ascii=False) + "\n"


def format_jsonl(result: Result, video: str = "") -> str:
    """What [`format_json`] gives, on one line: files of several videos can be joined.

    Args:
        result (`Mapping`): What the pipeline returns for a video.
        video (`str`): Its name.

    Returns:
        `str`: Content of a `.jsonl` file.
    """
    text = json.dumps(result_object(result, video), ensure_ascii=False)
    return _OTHER_LINE_ENDS.sub(lambda match: f"\\u{ord(match.group()):04x}", text) + "\n"


def result_object(result: Result, video: str = "") -> dict[str, Any]:
    """A video's name and its result, without the heat maps."""
    return {"video": video, **{name: value for name, value in result.items() if name != "heatmaps"}}


FORMATS: dict[str, Callable[..., str]] = {
    "json": format_json,
    "jsonl": format_jsonl,
    "csv": format_csv,
    "srt": format_srt,
    "vtt": format_vtt,
    "audacity": format_audacity,
    "elan": format_elan,
}


def _events(result: Result) -> list[Mapping[str, Any]]:
    return sorted(result["events"], key=lambda event: (event["start"], event["end"]))


def _clock(seconds: float, point: str) -> str:
    """`HH:MM:SS` and milliseconds."""
    rest, milliseconds = divmod(_milliseconds(seconds), 1000)
    rest, second = divmod(rest, 60)
    hour, minute = divmod(rest, 60)
    return f"{hour:02}:{minute:02}:{second:02}{point}{milliseconds:03}"


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _plain_number(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _one_line(label: str) -> str:
    """A label without line breaks, tabs and control characters, which would end its entry."""
    return " ".join(_NOT_XML.sub(" ", label).split())


def _escape_cue(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _media_links(video: str, folder: str | os.PathLike | None) -> dict[str, str]:
    """Absolute and relative place of the video."""
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


def _add_tiers(document: ElementTree.Element, tiers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The tiers, and before them the time slots in order: two of its own for each annotation, as ELAN has them."""
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
        ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = _one_line(entry["label"])
