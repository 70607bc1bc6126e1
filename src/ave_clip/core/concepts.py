"""Matches free labels with the classes of an audio and an image classifier, by a table of concepts; plain Python.

The rules are tried in this order, and the first rule that matches decides:

1. It is the name of a concept, or one of its synonyms.
2. It is a name or synonym in another form: capitals, punctuation, articles, plural, "-ing" and the order of the words
   do not count ("bells of a church" is not such a form, "Ringing church bells" is a form of "church bell ringing"),
   nor do spaces ("door bell" is "doorbell").
3. It is the name of a class of either classifier, in any form as above ("Hyena" is an image class; no audio class
   has that name, so its audio cannot be recognised).
4. All words of a name or synonym occur in it with their usual meaning: no other noun follows ("old church bell in the
   distance", but not "cat flap", which is a flap), and they are not part of a phrase with another meaning ("sea
   horse"). The name with the most words is chosen, then the first of the table. Words for people alone are not
   enough: a "man dancing" makes no sound of the concept "man", which is speech.
5. All its words occur in the name of an audio class, or of an image class.

A concept without a class in one modality cannot be recognised in it. This is not the same as absent.
"""

import csv
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("name", "synonyms", "audio_tags", "image_classes")
SEPARATOR, RANGE = "|", ".."
_UNCOUNTED_WORDS = {"a", "an", "the", "of", "in", "sound", "noise"}
_MAX_NEAR_NAMES = 5
# Words that may follow a name without changing its meaning, besides forms with "-ing" and "-ly", and its own words.
_FOLLOWING_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an the and or of in on at by to from with without near under over behind inside outside through
        during while is are was far away nearby alone sound sounds noise noises music solo song songs
        call calls cry cries voice voices tune melody concert performance player players engine engines
        beat beats rhythm recording clip video event passes plays rings runs starts stops
        """,
    )
)
# Words that say who makes a sound or is seen, but not what is heard.
_PEOPLE = "man men woman women person people human lady child children kid boy girl"
# Phrases that end with a name but mean something else.
_OTHER_THINGS = (
    *("hot dog", "corn dog", "prairie dog", "sea dog", "sun dog", "sea horse", "clothes horse", "rocking horse"),
    *("hobby horse", "pommel horse", "vaulting horse", "saw horse", "trojan horse", "sea cow", "sea lion", "sea wolf"),
    *("ant lion", "computer mouse", "optical mouse", "wireless mouse", "flying fox", "water bear"),
    *("woolly bear", "teddy bear", "rubber duck", "koala bear", "dumb bell", "blue bell", "kettle bell"),
    *("diving bell", "ear drum", "oil drum", "brake drum", "cable drum", "shoe horn", "cable car", "side car"),
    *("weather cock", "stop cock", "welsh rabbit", "paper plane", "block plane", "smoothing plane"),
    *("biological clock", "body clock", "lady bird", "early bird", "spelling bee"),
    *("copy cat", "fat cat", "hep cat", "meer cat", "pole cat", "scape goat", "road hog"),
)


@dataclass(frozen=True)
class ConceptMatch:
    """The classes of both classifiers that match a label.

    Args:
        label (`str`): The label.
        concept (`str`): Name of the concept or class that was matched.
        audio_classes (`tuple[int, ...]`), image_classes (`tuple[int, ...]`):
            Class indices, any of which counts; empty if the classifier has no such class.
        is_by_words (`bool`): Whether the label is no name or synonym in any form, but shares words with one (rules 4
            and 5), so that it may have been meant otherwise. [`ConceptTable.note`] says what it is looked for as.
    """

    label: str
    concept: str
    audio_classes: tuple[int, ...]
    image_classes: tuple[int, ...]
    is_by_words: bool = False


class ConceptTable:
    """Finds the classes that a label means.

    Args:
        rows (`Sequence[Mapping[str, str]]`):
            Per concept `name`, `synonyms`, `audio_tags` and `image_classes`, several separated by `|`. Image classes
            that follow each other may be written as `first..last`.
        audio_names (`Sequence[str]`), image_names (`Sequence[str]`):
            Names of the classifiers' classes, in index order.

    Raises:
        ValueError: If a row names an unknown class, or two rows share a name or synonym.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, str]], audio_names: Sequence[str], image_names: Sequence[str]
    ) -> None:
        audio_index = {name: index for index, name in enumerate(audio_names)}
        image_index = {name: index for index, name in enumerate(image_names)}
        self.concepts: list[ConceptMatch] = []
        self.synonyms: list[list[str]] = []  # of each concept
        self._exact: dict[str, int] = {}  # lower-case name or synonym to the concept's number
        self._forms: dict[tuple[str, ...], int] = {}  # its words, in any form and order
        for row in rows:
            name, number = row["name"], len(self.concepts)
            audio = _indices(row["audio_tags"], audio_index, name)
            image = _indices(row["image_classes"], image_index, name)
            self.concepts.append(ConceptMatch(name, name, audio, image))
            self.synonyms.append(_split(row["synonyms"]))
            for alias in (name, *self.synonyms[-1]):
                other = self._exact.setdefault(alias.lower(), number)
                if other != number:
                    raise ValueError(
                        f"{alias!r} is in two rows of the table of concepts: {self.concepts[other].concept!r} and "
                        f"{name!r}. Leave it in one of them."
                    )
                for form in _forms_of(alias):
                    self._forms.setdefault(form, number)
        self._audio_forms = [_class_forms(name) for name in audio_names]
        self._image_forms = [_class_forms(name) for name in image_names]
        self._audio_names, self._image_names = tuple(audio_names), tuple(image_names)

    def match(self, label: str) -> ConceptMatch:
        """Returns the classes that match a label, by the rules at the top of this file.

        Raises:
            ValueError: If nothing matches; the message lists similar names.
        """
        words, is_by_words = words_of(label), False
        number = self._exact.get(label.strip().lower())
        for form in _forms_of(label):
            number = self._forms.get(form) if number is None else number
        if number is None:
            by_class = self._match_class(label)
            if by_class is not None:
                return by_class
            number, is_by_words = self._most_words_within(label), True
        if number is not None:
            found = self.concepts[number]
            return ConceptMatch(label, found.concept, found.audio_classes, found.image_classes, is_by_words)
        audio, image = _containing(self._audio_forms, words), _containing(self._image_forms, words)
        if audio or image:
            return ConceptMatch(label, label, audio, image, is_by_words=True)
        raise ValueError(self._unknown(label))

    def note(self, match: ConceptMatch) -> str:
        """Returns a sentence for the user on what a label is looked for as, or `""` if it is a name or synonym."""
        if not match.is_by_words:
            return ""
        names = [match.concept]
        if match.concept == match.label:  # rule 5
            names = [self._audio_names[index] for index in match.audio_classes]
            names += [self._image_names[index] for index in match.image_classes]
        shown = ", ".join(repr(name) for name in names[:_MAX_NEAR_NAMES])
        more = f" and {len(names) - _MAX_NEAR_NAMES} more" if len(names) > _MAX_NEAR_NAMES else ""
        return f"{match.label!r} is looked for as {shown}{more}: it is no name or synonym, but shares words with it."

    def _match_class(self, label: str) -> ConceptMatch | None:
        """Rule 3. A class may have several names, separated by commas: "Fly, housefly"."""
        wanted = set(_forms_of(label))
        audio = tuple(index for index, forms in enumerate(self._audio_forms) if wanted & forms)
        image = tuple(index for index, forms in enumerate(self._image_forms) if wanted & forms)
        return ConceptMatch(label, label, audio, image) if audio or image else None

    def _most_words_within(self, label: str) -> int | None:
        """Rule 4."""
        tokens = _tokens(label)
        stems = [_stem(token) for token in tokens]
        for phrase in _OTHER_THINGS:
            first, second = map(_stem, phrase.split())
            for index in range(1, len(stems)):
                if stems[index - 1 : index + 1] == [first, second]:
                    stems[index - 1 : index + 1] = ["", ""]
        people = set(map(_stem, _PEOPLE.split()))
        inside = []
        for form, number in self._forms.items():
            if set(form) <= set(stems) and not set(form) <= people:
                after = max(index for index, stem in enumerate(stems) if stem in form) + 1
                if after == len(tokens) or self._may_follow(tokens[after], stems[after], number):
                    inside.append((len(form), -number))
        return -max(inside)[1] if inside else None

    def _may_follow(self, token: str, stem: str, number: int) -> bool:
        """Whether a word may follow the concept's name without changing its meaning."""
        is_form = re.search("[aeiouy].*ing$|ly$", token) is not None  # barking, but not string
        return (
            token in _FOLLOWING_WORDS
            or is_form
            or any(stem in form for form, other in self._forms.items() if other == number)
        )

    def _unknown(self, label: str) -> str:
        known = {name.lower(): name for name in (*self._audio_names, *self._image_names)}
        known |= {alias: alias for alias in self._exact}
        near = difflib.get_close_matches(label.strip().lower(), known, n=_MAX_NEAR_NAMES, cutoff=0.55)
        message = f"Neither the audio nor the image classifier has a class for the label {label!r}."
        if near:
            message += f" Similar names: {', '.join(repr(known[name]) for name in near)}."
        if not self.concepts:
            return f"{message} Use the name of a class."
        return (
            f"{message} Use any of the {len(self.concepts)} concepts, for example {self.concepts[0].concept!r}; "
            "`ave-clip labels` lists those of the default model."
        )


def read_concepts(path: str | Path) -> list[dict[str, str]]:
    """Reads the rows of a table of concepts, a CSV file with the columns of [`ConceptTable`]."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} must have the columns {list(COLUMNS)}, got {reader.fieldnames}.")
        return list(reader)


def words_of(text: str) -> tuple[str, ...]:
    """Returns the words of a label, independent of form, order and repetition.

    >>> words_of("The barking Dogs") == words_of("dog, bark")
    True
    """
    return tuple(sorted({_stem(token) for token in _tokens(text) if token not in _UNCOUNTED_WORDS}))


def _tokens(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower().replace("'s", "").replace("-", " "))


def _forms_of(text: str) -> list[tuple[str, ...]]:
    """Returns the words of a text, and all of them joined to one word; empty if no word counts."""
    words = words_of(text)
    return [words, (_stem("".join(_tokens(text))),)] if words else []


def _stem(word: str) -> str:
    """Removes plural and "-ing" from a word: barking, barks and bark are equal. Consistent, but not a correct stem."""
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("ches", "shes", "sses", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    if word.endswith("ing") and len(word) > 5:
        word = word[:-3]
        if word[-1] == word[-2] and word[-1] not in "lsz":  # running, but not calling
            word = word[:-1]
    return word[:-1] if word.endswith("e") and len(word) > 4 else word  # whistle and whistling


def _indices(names: str, index: Mapping[str, int], concept: str) -> tuple[int, ...]:
    found: list[int] = []
    for entry in _split(names):
        ends = [part.strip() for part in entry.split(RANGE)]
        unknown = [end for end in ends if end not in index]
        if unknown:
            near = difflib.get_close_matches(unknown[0], index, n=3)
            raise ValueError(
                f"The concept {concept!r} names the class {unknown[0]!r}, which is unknown; near: {near}."
            )
        found += range(index[ends[0]], index[ends[-1]] + 1)
    return tuple(dict.fromkeys(found))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def _class_forms(name: str) -> set[tuple[str, ...]]:
    """Returns the forms of a class's name, and of each part between commas."""
    return {form for part in (name, *name.split(",")) for form in _forms_of(part)}


def _containing(forms: Sequence[set[tuple[str, ...]]], words: tuple[str, ...]) -> tuple[int, ...]:
    """Rule 5."""
    if not words:
        return ()
    return tuple(index for index, names in enumerate(forms) if any(set(words) <= set(name) for name in names))


__all__ = ["ConceptMatch", "ConceptTable", "read_concepts"]
