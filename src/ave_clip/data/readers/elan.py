"""Reader of ELAN's annotation files (`.eaf`): the time-aligned annotations of one tier.

The format: https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf
"""

from pathlib import Path
from xml.etree import ElementTree

from ..annotations import AnnotationError
from .base import AnnotationReader, NamedSpan, ReaderOptions, VideoAnnotation, check_event, has_suffix

# In the files that this package writes; overlapping events are in one tier per label, "events: LABEL".
EVENTS_TIER = "events"


def read_elan(path: Path, options: ReaderOptions) -> tuple[list[VideoAnnotation], None]:
    """Reads the events of one tier, and the links to the video.

    The tier is `options.tier`; by default the one named "events", else the only one with time-aligned annotations.

    Raises:
        AnnotationError: if the file is not an ELAN file, the tier cannot be chosen, or an annotation has no times.
    """
    document = _parse_document(path)
    times = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in document.iter("TIME_SLOT")}
    events: list[NamedSpan] = []
    tiers = _chosen_tiers(document, str(path), options.tier)
    for annotation in (annotation for tier in tiers for annotation in tier.iter("ALIGNABLE_ANNOTATION")):
        label = annotation.findtext("ANNOTATION_VALUE") or ""
        # A time slot may have no value: ELAN then orders it between its neighbours, but its time is unknown.
        start, end = (times.get(annotation.get(f"TIME_SLOT_REF{side}")) for side in (1, 2))
        if start is None or end is None or not label.strip():
            message = f"the annotation {annotation.get('ANNOTATION_ID')} ({label!r}) needs a text and two times."
            raise AnnotationError(message, str(path))
        events.append(check_event(label, str(int(start) / 1000), str(int(end) / 1000), str(path)))
    # The relative URL comes first: it still holds after the folder was moved.
    media = document.iter("MEDIA_DESCRIPTOR")
    links = [link for entry in media for name in ("RELATIVE_MEDIA_URL", "MEDIA_URL") if (link := entry.get(name))]
    return [VideoAnnotation(path.stem, "train", tuple(events), links=tuple(links))], None


def _parse_document(path: Path) -> ElementTree.Element:
    try:
        document = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise AnnotationError(f"not readable as XML: {error}.", str(path)) from error
    if document.tag != "ANNOTATION_DOCUMENT":
        raise AnnotationError(f"the document is a {document.tag}, wanted ELAN's ANNOTATION_DOCUMENT.", str(path))
    header = document.find("HEADER")
    # The format also allows frames of NTSC and PAL video, which ELAN itself does not write.
    if header is not None and header.get("TIME_UNITS", "milliseconds") != "milliseconds":
        raise AnnotationError(f"times are in {header.get('TIME_UNITS')}, wanted milliseconds.", str(path))
    return document


def _chosen_tiers(document: ElementTree.Element, file: str, wanted: str | None) -> list[ElementTree.Element]:
    tiers = {tier.get("TIER_ID", ""): tier for tier in document.iter("TIER")}
    aligned = [name for name, tier in tiers.items() if tier.find("*/ALIGNABLE_ANNOTATION") is not None]
    name = wanted or (EVENTS_TIER if EVENTS_TIER in tiers else aligned[0] if len(aligned) == 1 else None)
    if name in tiers:
        return [tiers[name]]
    overlapping = [tier for name, tier in tiers.items() if name.startswith(f"{EVENTS_TIER}: ")]
    if wanted is None and (overlapping or not aligned):
        return overlapping  # without any, nothing is annotated: a video without events
    asked = f"there is no tier {wanted!r}" if wanted else "several tiers have annotations"
    raise AnnotationError(f"{asked}. Pass tier= with one of {list(tiers)}.", file)


READER = AnnotationReader(
    name="elan",
    summary=".eaf: ELAN's annotations of one video",
    recognizes=has_suffix(".eaf"),
    read=read_elan,
    videos_by="file",
)
