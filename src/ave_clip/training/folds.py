"""Cross-validation on the features of stage 2: other splits of the same clips, without a copy of the features.

With K folds, fold k tests on part k, chooses the epoch on part k + 1, and trains on the others. Over all folds each
clip is tested once. The clips of one group, such as all that contain the same recording, are always in one part.
"""

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from ..data.splitting import SPLITS
from .clip_windows import labels_of
from .features import FeatureStore
from .sampling import item_rng
from .splits import FeatureSplits, LabelledClips, SplitError

logger = logging.get_logger(__name__)

FOLD_KEY = 0xF01D5  # makes the folds independent of the order of the epochs


def parse_fold(text: str) -> tuple[int, int]:
    """Parses `"2/4"` to the number of the fold, from 0, and the number of folds.

    Raises:
        ValueError: If it is not of this form, or there are fewer than three folds.
    """
    number, slash, total = text.partition("/")
    if not (slash and number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total) and int(total) > 2):
        raise ValueError(
            f"Got fold {text!r}: write the number of the fold and of all folds, at least 3, such as 1/4. One part of "
            "the clips is for the test, one for the choice of the epoch, the others are for training."
        )
    return int(number) - 1, int(total)


def read_groups(path: str | os.PathLike) -> dict[tuple[str, int], str]:
    """Reads which clips belong together.

    Args:
        path (`str` or `os.PathLike`): CSV file with the columns `split`, `row` and `group`.

    Returns:
        `dict[tuple[str, int], str]`: the group of each split and row.

    Raises:
        ValueError: If a column is missing, or a row is not a number.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"split", "row", "group"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has the columns {reader.fieldnames}; it needs split, row and group.")
        try:
            return {(line["split"], int(line["row"])): line["group"] for line in reader}
        except ValueError as error:
            raise ValueError(f"{path} has a row that is not a number: {error}.") from error


class FoldClips(Dataset):
    """Clips of several splits, numbered through.

    Args:
        splits (`Sequence[LabelledClips]`): The splits.
        places (`Sequence[tuple[int, int]]`): Index of the split and of the clip in it, by number.
        truth (`dict[int, dict]`): The annotated `events` and the `duration`, by number, of the clips of this part.
    """

    def __init__(
        self,
        splits: Sequence[LabelledClips],
        places: Sequence[tuple[int, int]],
        truth: dict[int, dict[str, Any]],
    ):
        self.splits, self.places, self.truth = splits, places, truth
        self.numbers = list(truth)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.window(index)

    @property
    def lengths(self) -> list[int]:
        """Number of segments of each clip."""
        known = [split.lengths or [] for split in self.splits]
        return [known[split][index] for split, index in (self.places[number] for number in self.numbers)]

    def labels_of(self, index: int) -> Any:
        """Returns the labels of a clip without reading its features."""
        split, place = self.places[self.numbers[index]]
        return labels_of(self.splits[split], place)

    def window(self, index: int, first: int = 0, length: int | None = None) -> dict[str, Any]:
        """Returns a window of a clip; its `row` is the clip's number."""
        number = self.numbers[index]
        split, place = self.places[number]
        return {**self.splits[split].window(place, first, length), "row": torch.tensor(number)}


class FoldSplits(FeatureSplits):
    """The splits of one fold of stage 2's features.

    Args:
        folder (`str` or `os.PathLike`): Output of `extract_features.py`; all of its splits are used.
        fold (`str`): Such as `"1/4"`, see `parse_fold`.
        groups (`str` or `os.PathLike`, *optional*): File for `read_groups`. By default each clip is a group.

    Raises:
        SplitError: If a clip has no group, or there are fewer groups than folds.
    """

    def __init__(self, folder: str | os.PathLike, fold: str, groups: str | os.PathLike | None = None):
        super().__init__(folder)
        self.fold, self.num_folds = parse_fold(fold)
        self.groups_file = groups
        failed = sum(len(FeatureStore(self.folder / split).failed) for split in self._names)
        if failed:
            logger.warning(f"{failed} clips of {folder} could not be read by stage 2, so they are in no fold.")

    @property
    def _names(self) -> list[str]:
        return [split for split in SPLITS if (self.folder / split).exists()]

    @cached_property
    def _rows(self) -> list[tuple[str, int]]:
        """Split and row of each clip, by number."""
        return [(split, row) for split in self._names for row in FeatureStore(self.folder / split).rows]

    @cached_property
    def group_of(self) -> list[str]:
        """Group of each clip, by number."""
        if self.groups_file is None:
            return [f"{split} {row}" for split, row in self._rows]
        known = read_groups(self.groups_file)
        missing = [place for place in self._rows if place not in known]
        if missing:
            raise SplitError(
                f"{self.groups_file} names no group for {len(missing)} of {len(self._rows)} clips, such as split "
                f"{missing[0][0]}, row {missing[0][1]}. Add a line for each."
            )
        return [known[place] for place in self._rows]

    @cached_property
    def _truth(self) -> list[dict[str, Any]]:
        """The annotated `events` and the `duration` of each clip, by number."""
        stores = {split: FeatureStore(self.folder / split).truth for split in self._names}
        return [stores[split][row] for split, row in self._rows]

    @cached_property
    def parts(self) -> list[int]:
        """Part of each clip, by number. Groups are dealt out class by class, so that the parts are alike."""
        classes: dict[str, int] = {}
        for group, truth in zip(self.group_of, self._truth):
            classes.setdefault(group, truth["events"][0]["label"] if truth["events"] else -1)
        if len(classes) < self.num_folds:
            raise SplitError(f"There are {len(classes)} groups of clips, too few for {self.num_folds} folds.")
        names = list(classes)
        shuffled = [names[index] for index in item_rng(0, FOLD_KEY).permutation(len(names))]
        dealt = {
            group: index % self.num_folds for index, group in enumerate(sorted(shuffled, key=classes.__getitem__))
        }
        return [dealt[group] for group in self.group_of]

    @property
    def fingerprint(self) -> str:
        """Hash of the features and labels, and of this fold."""
        content = json.dumps([super().fingerprint, self.fold, self.num_folds, self.group_of])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def unreadable(self, split: str) -> dict[int, str]:
        """Returns no rows: those that stage 2 could not read are in no fold."""
        return {}

    def open(self, split: str) -> FoldClips:
        """Returns the clips of "train", "validation" or "test" of this fold."""
        wanted = {"test": {self.fold}, "validation": {(self.fold + 1) % self.num_folds}}
        wanted["train"] = set(range(self.num_folds)) - wanted["test"] - wanted["validation"]
        splits = [LabelledClips(store, len(self.id2label) - 1) for store in map(self._store, self._names)]
        places = [(index, place) for index, clips in enumerate(splits) for place in range(len(clips))]
        truth = {number: self._truth[number] for number, part in enumerate(self.parts) if part in wanted[split]}
        return FoldClips(splits, places, truth)

    def _store(self, split: str) -> FeatureStore:
        store = FeatureStore(self.folder / split)
        store.check_settings(**self.expected)
        store.check_labels()
        return store


def groups_of_test(folder: str | os.PathLike, groups: str | os.PathLike) -> dict[int, str]:
    """Returns the group of each row of the test split, for a run without folds."""
    known = read_groups(groups)
    rows = FeatureStore(Path(folder) / "test").rows
    missing = [row for row in rows if ("test", row) not in known]
    if missing:
        raise SplitError(f"{groups} names no group for row {missing[0]} of the test split, and {len(missing)} in all.")
    return {row: known["test", row] for row in rows}
