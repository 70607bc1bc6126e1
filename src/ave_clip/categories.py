"""Names of the classes: AVE's 28 categories in index order, and background behind the last of any data set."""

from collections.abc import Iterable

BACKGROUND_LABEL = "background"

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
    """The `id2label` of a localizer: the categories in their order, then background.

    >>> labels_with_background(["Bell", "Bark"])
    {0: 'Bell', 1: 'Bark', 2: 'background'}
    """
    return dict(enumerate([*categories, BACKGROUND_LABEL]))


__all__ = ["AVE_CATEGORIES", "BACKGROUND_LABEL", "labels_with_background"]
