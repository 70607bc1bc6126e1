"""The labels that the default model knows, and how each can be known: the command `ave-clip labels`."""

import json
from dataclasses import dataclass
from pathlib import Path

from .core.concepts import ConceptMatch, ConceptTable
from .outputs.text_table import align_columns
from .registration import DEFAULT_CHECKPOINT


@dataclass(frozen=True)
class KnownLabel:
    """A label and how it can be known.

    Args:
        label (`str`): Its name.
        synonyms (`tuple[str, ...]`): Other names of it.
        heard (`bool`), seen (`bool`): Whether the audio and the image classifier have a class for it.
    """

    label: str
    synonyms: tuple[str, ...]
    heard: bool
    seen: bool

    @property
    def senses(self) -> str:
        """How it can be known, in words."""
        if self.heard and self.seen:
            return "heard and seen"
        return "heard only" if self.heard else "seen only"


def default_table() -> ConceptTable:
    """Returns the table of concepts of the default model, read from its configuration."""
    config = json.loads((Path(DEFAULT_CHECKPOINT) / "config.json").read_text(encoding="utf-8"))
    names = [list(config[part]["id2label"].values()) for part in ("audio_config", "image_config")]
    return ConceptTable(config["concepts"], *names)


def known_labels(table: ConceptTable, search: str = "") -> list[KnownLabel]:
    """Returns the concepts of a table in alphabetical order.

    Args:
        table (`ConceptTable`): The table.
        search (`str`): Only concepts of which the name or a synonym contains this text; case does not count.
    """
    wanted = search.strip().casefold()
    labels = [
        _known(match, synonyms)
        for match, synonyms in zip(table.concepts, table.synonyms, strict=True)
        if any(wanted in name.casefold() for name in (match.concept, *synonyms))
    ]
    return sorted(labels, key=lambda known: known.label.casefold())


def nothing_found(table: ConceptTable, search: str) -> str:
    """Returns a message for a search without results. The word may still be a label: one that the table matches."""
    try:
        match = table.match(search)
    except ValueError as error:
        return str(error)
    if match.concept == match.label:  # a class of a classifier, outside the table
        return f"{search!r} is in no name or synonym, but a class of that name exists ({_known(match).senses})."
    return f"{search!r} is in no name or synonym; as a label it means {match.concept!r} ({_known(match).senses})."


def as_text(labels: list[KnownLabel]) -> str:
    """Formats one line per label: its name, how it can be known, and its synonyms."""
    return align_columns([(known.label, known.senses, ", ".join(known.synonyms)) for known in labels], 3)


def as_json(labels: list[KnownLabel]) -> str:
    """Formats a list of objects with `label`, `synonyms`, `heard` and `seen`, one per line."""
    lines = [
        json.dumps({"label": one.label, "synonyms": one.synonyms, "heard": one.heard, "seen": one.seen})
        for one in labels
    ]
    return "[" + ",".join(f"\n  {line}" for line in lines) + "\n]" if lines else "[]"


def _known(match: ConceptMatch, synonyms: list[str] | tuple[str, ...] = ()) -> KnownLabel:
    return KnownLabel(match.concept, tuple(synonyms), bool(match.audio_classes), bool(match.image_classes))
