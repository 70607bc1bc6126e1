"""The class names: the one place that knows AVE's 28 categories, their order, and where background stands.

A data set's *categories* are its event classes; its *label names* are the categories with background behind them, so
background is always the last class and its index is the number of categories.
"""

import difflib
from collections.abc import Sequence

BACKGROUND = "background"

# In the order of first appearance in AVE's Annotations.txt, which is the class index of every published label file.
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


def background_index(categories: Sequence[str] = AVE_CATEGORIES) -> int:
    """Index of the background class: the one behind the last category."""
    return len(categories)


def label_names(categories: Sequence[str] = AVE_CATEGORIES) -> list[str]:
    """All class names a model predicts: the categories in index order, background last."""
    return [*categories, BACKGROUND]


def id2label(categories: Sequence[str] = AVE_CATEGORIES) -> dict[int, str]:
    """The `id2label` of a model configuration for these categories."""
    return dict(enumerate(label_names(categories)))


def category_index(name: str, categories: Sequence[str] = AVE_CATEGORIES) -> int:
    """Class index of a category.

    Raises:
        ValueError: if the name is none of the categories; the message offers the closest one.
    """
    try:
        return list(categories).index(name)
    except ValueError:
        pass
    near = difflib.get_close_matches(name, categories, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The {len(categories)} categories are {list(categories)}."
    raise ValueError(
        f"Got the category {name!r}, which is not in the list. {hint} "
        "A data set with categories of its own names them in a categories.txt, one a line, in index order."
    )
