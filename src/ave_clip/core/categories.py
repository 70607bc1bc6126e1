"""Names of the classes: the 28 categories of AVE in index order, and background as the last class of any data set."""

from collections.abc import Iterable, Mapping
from typing import Any

BACKGROUND_LABEL = "background"
IGNORED_LABEL = -100  # label of segments that no loss or metric counts: unknown or withheld (torch ignores it, too)
# A larger number comes from a damaged or hostile file; it is refused before a dictionary of that size is created.
MAX_LABELS = 100_000
# Whether a segment has exactly one class, of which the last is background, or any number of classes.
SINGLE_LABEL, MULTI_LABEL = "single_label", "multi_label"

# The order is the class index of every AVE label file: first appearance in Annotations.txt, background last.
AVE_CATEGORIES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)


def labels_with_background(categories: Iterable[str]) -> dict[int, str]:
    """Returns the `id2label` of a localizer: the categories in their order, then background.

    >>> labels_with_background(["Bell", "Bark"])
    {0: 'Bell', 1: 'Bark', 2: 'background'}
    """
    return dict(enumerate([*categories, BACKGROUND_LABEL]))


def class_names(config: Any) -> list[str]:
    """Returns the names of the classes of a model's configuration in the order of its logits."""
    return [config.id2label[index] for index in range(len(config.id2label))]


def check_problem_type(problem_type: Any) -> None:
    """Raises `ValueError` unless `problem_type` is "single_label" or "multi_label"."""
    if problem_type not in (SINGLE_LABEL, MULTI_LABEL):
        raise ValueError(
            f'`problem_type` must be "{SINGLE_LABEL}" (one class per segment, or background) or "{MULTI_LABEL}" '
            f"(several events at once), got {problem_type!r}."
        )


def check_labels(id2label: Any, problem_type: str = SINGLE_LABEL) -> dict[int, str]:
    """Checks an `id2label` and returns it with sorted integer keys.

    >>> check_labels({"1": "background", "0": "Bell"})
    {0: 'Bell', 1: 'background'}

    Raises:
        ValueError: If it is not a dictionary, its keys are not 0 to the number of classes minus one, a name is not a
            text or appears twice (ignoring case), or background is not the last class (`"single_label"`) or one of
            the classes (`"multi_label"`).
    """
    if not isinstance(id2label, Mapping):
        raise ValueError(
            f"`id2label` must be a dictionary from index to name, got {id2label!r}. "
            "`labels_with_background(categories)` creates one."
        )
    check_num_labels(len(id2label), problem_type)
    keys = {key: _index(key) for key in id2label}
    if sorted(keys.values()) != list(range(len(id2label))):
        raise ValueError(f"`id2label` must have the keys 0..{len(id2label) - 1}, got {list(id2label)}.")
    labels = {index: id2label[key] for key, index in sorted(keys.items(), key=lambda item: item[1])}
    nameless = [name for name in labels.values() if not isinstance(name, str) or not name.strip()]
    if nameless:
        raise ValueError(f"Every class of `id2label` needs a name, got {nameless[0]!r}.")
    names = [name.strip().casefold() for name in labels.values()]
    twice = [name for index, name in labels.items() if names.index(names[index]) < index]
    if twice:
        raise ValueError(
            f"`id2label` contains a class twice: {twice[0]!r} (upper and lower case are not distinguished)."
        )
    if problem_type == MULTI_LABEL:
        if BACKGROUND_LABEL in names:
            raise ValueError(
                f"`id2label` contains {BACKGROUND_LABEL!r}, which is no class of a multi-label localizer: segments "
                "without any event are background. Remove it, or use problem_type='single_label'."
            )
    elif names[-1] != BACKGROUND_LABEL:
        where = f"at index {names.index(BACKGROUND_LABEL)}" if BACKGROUND_LABEL in names else "missing"
        raise ValueError(
            f"Background must be the last class of `id2label`, under the name {BACKGROUND_LABEL!r}. Here it is "
            f"{where}, and the last of {len(names)} classes is {labels[len(names) - 1]!r}. Use "
            "`labels_with_background(categories)`."
        )
    return labels


def check_num_labels(number: Any, problem_type: str = SINGLE_LABEL) -> None:
    """Raises `ValueError` unless `number` is a plausible number of classes, including background if it is one."""
    lowest = 1 if problem_type == MULTI_LABEL else 2
    if isinstance(number, bool) or not isinstance(number, int) or number < lowest:
        needed = "event class" if lowest == 1 else "event class and background, so 2 or more labels"
        raise ValueError(f"A localizer needs at least one {needed}; got {number!r}.")
    if number > MAX_LABELS:
        raise ValueError(f"A localizer can have at most {MAX_LABELS} labels, got {number}.")


def _index(key: Any) -> int:
    """Returns a key of `id2label` as a number (keys in JSON are texts), or -1 if it is not an index."""
    if isinstance(key, str):
        return int(key) if key.isascii() and key.isdecimal() else -1
    return -1 if isinstance(key, bool) or not isinstance(key, int) else key


__all__ = [
    "AVE_CATEGORIES",
    "BACKGROUND_LABEL",
    "IGNORED_LABEL",
    "MULTI_LABEL",
    "SINGLE_LABEL",
    "check_labels",
    "check_num_labels",
    "check_problem_type",
    "class_names",
    "labels_with_background",
]
