"""Class names of data sets. Those of AVE are defined in `ave_clip.core.categories`, since the model uses them, too.

The *categories* of a data set are its event classes. Background follows the last of them, so its class index is the
number of categories.
"""

import difflib
from collections.abc import Sequence

from ..core.categories import AVE_CATEGORIES, BACKGROUND_LABEL, IGNORED_LABEL, labels_with_background


def background_index(categories: Sequence[str]) -> int:
    """Returns the class index of background, which follows the last category."""
    return len(categories)


def label_names(categories: Sequence[str]) -> list[str]:
    """Returns the names of all classes that a model predicts: the categories in index order, background last."""
    return list(labels_with_background(categories).values())


def category_index(name: str, categories: Sequence[str]) -> int:
    """Returns the class index of a category.

    Raises:
        ValueError: if the name is not a category; the message suggests the closest one.
    """
    if name in categories:
        return list(categories).index(name)
    alike = [category for category in categories if category.casefold() == name.casefold()]
    near = alike or difflib.get_close_matches(name, categories, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The {len(categories)} categories are {list(categories)}."
    raise ValueError(
        f"Got the category {name!r}, which is not in the list. {hint} "
        "A data set with categories of its own lists them in categories.txt, one per line, in index order."
    )


__all__ = [
    "AVE_CATEGORIES",
    "BACKGROUND_LABEL",
    "IGNORED_LABEL",
    "background_index",
    "category_index",
    "label_names",
    "labels_with_background",
]
