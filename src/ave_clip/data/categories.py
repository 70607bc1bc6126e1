"""Class names of a data set. AVE's own are passed on from `ave_clip.categories`, where the model finds them, too.

A data set's *categories* are its event classes. Background stands behind the last of them, so its class index is the
number of categories.
"""

import difflib
from collections.abc import Sequence

from ..categories import AVE_CATEGORIES, BACKGROUND_LABEL, labels_with_background


def background_index(categories: Sequence[str]) -> int:
    """Class index of background: the one behind the last category."""
    return len(categories)


def label_names(categories: Sequence[str]) -> list[str]:
    """Names of all classes a model predicts: the categories in index order, background last."""
    return list(labels_with_background(categories).values())


def category_index(name: str, categories: Sequence[str]) -> int:
    """Class index of a category.

    Raises:
        ValueError: if the name is none of the categories; the message offers the closest one.
    """
    if name in categories:
        return list(categories).index(name)
    near = difflib.get_close_matches(name, categories, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The {len(categories)} categories are {list(categories)}."
    raise ValueError(
        f"Got the category {name!r}, which is not in the list. {hint} "
        "A data set with categories of its own names them in a categories.txt, one a line, in index order."
    )


__all__ = [
    "AVE_CATEGORIES",
    "BACKGROUND_LABEL",
    "background_index",
    "category_index",
    "label_names",
    "labels_with_background",
]
