"""What all data sets of events share: their columns, the look for missing videos, and the way to `datasets`.

A reader (`ave`, `custom`) turns its annotation files into examples, one dictionary a row; [`EventBuilder`] checks that
the videos are there, marks videos that come twice, and writes or streams the rows.
"""

import itertools
import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers.utils import logging

from .categories import label_names
from .decoding import VideoProblem, find_problems

logger = logging.get_logger(__name__)

DATA_VERSION = "1.0.0"  # raise it whenever the same files give other rows: caches of older versions are left alone
# A number that many counts of nodes and workers divide: each then streams its own shards and decodes nothing twice.
NUM_STREAMING_SHARDS = 48

Example = dict[str, Any]
LoadedDataset = datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict


class MissingVideoError(ValueError):
    """Videos that are missing, empty or unreadable; `problems` holds every one of them.

    Args:
        message (`str`): What is wrong and what to do.
        problems (`Sequence[VideoProblem]`): The videos concerned.
    """

    def __init__(self, message: str, problems: Sequence[VideoProblem]):
        super().__init__(message)
        self.problems = list(problems)


def event_features(categories: Sequence[str], video_level: bool = False, seen: bool = False) -> datasets.Features:
    """Columns of a data set of events.

    Args:
        categories (`Sequence[str]`): Category names in index order, without background.
        video_level (`bool`): Add `video_label`, the class of the whole video, background among them.
        seen (`bool`): Add `seen`, whether the category occurs in training.

    Returns:
        `datasets.Features`:
            - `row`: number of the row in the annotation file, the key of the example;
            - `video_id`, not unique, and `video`, undecoded: `{"path", "bytes"}`;
            - `category`: class of the event (of the longest, if there are several; none without event or label);
            - `labels`: class id of each segment, background last, -100 where the truth is withheld;
            - `start` of the first and `end` of the last event in seconds, and `events`, every one of them;
            - `duplicate_of`: the first row that shows the same video, or none;
            - `leaks_into`: the other splits that show the same video.
    """
    category = datasets.ClassLabel(names=list(categories))
    columns = {
        "row": datasets.Value("int64"),
        "video_id": datasets.Value("string"),
        "video": datasets.Video(decode=False),
        "category": category,
        "labels": datasets.List(datasets.Value("int64")),
        "start": datasets.Value("float64"),
        "end": datasets.Value("float64"),
        "events": datasets.List(
            {"label": category, "start": datasets.Value("float64"), "end": datasets.Value("float64")}
        ),
        "duplicate_of": datasets.Value("int64"),
        "leaks_into": datasets.List(datasets.Value("string")),
    }
    if video_level:
        columns["video_label"] = datasets.ClassLabel(names=label_names(categories))
    if seen:
        columns["seen"] = datasets.Value("bool")
    return datasets.Features(columns)


@dataclass
class EventConfig(datasets.BuilderConfig, ABC):
    """Settings that every builder of events has.

    Attributes:
        on_missing (`str`): What to do about rows whose video is missing or unreadable: "raise" or "skip".
        probe_videos (`bool`): Open every video while building to find those that cannot be read. Without it only
            missing and empty files are found.
    """

    version: datasets.Version | str | None = DATA_VERSION
    on_missing: str = "raise"
    probe_videos: bool = False

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name of the cache folder: settings and content of the data, so that no two data sets share one."""
        if self.on_missing not in ("raise", "skip"):
            raise ValueError(f'Got on_missing={self.on_missing!r}, wanted "raise" or "skip".')
        return super().create_config_id({**config_kwargs, "content": self.fingerprint()}, custom_features)

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything on disk that the rows are made of."""


class EventBuilder(datasets.GeneratorBasedBuilder, ABC):
    """A `datasets` builder whose rows are videos with events; a subclass says where they come from."""

    BUILDER_CONFIG_CLASS = EventConfig

    @abstractmethod
    def read_examples(self) -> dict[str, list[Example]]:
        """Examples of each split.

        `video` is a [`VideoFile`] or, where there is no such file, `None`; `problem`, where it is there and not
        `None`, says why the video cannot be used.
        """

    @property
    def report(self) -> str:
        """Which rows are left out; empty if none are. Kept with the built rows, at the end of their description."""
        return self.info.description.removeprefix(self.config.description or "").strip()

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        examples, report = drop_problems(self.read_examples(), self.config.on_missing, self.config.probe_videos)
        self.info.description = f"{self.config.description or ''} {report}".strip()
        if not any(examples.values()):
            raise ValueError(f"No row of {self.config.data_dir or 'the annotations'} has a video that can be read.")
        mark_repeated_videos(examples)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"shards": _cut(rows, NUM_STREAMING_SHARDS)})
            for split, rows in examples.items()
            if rows
        ]

    def _generate_examples(self, shards: list[list[Example]]) -> Iterator[tuple[int, Example]]:
        for example in itertools.chain.from_iterable(shards):
            yield example["row"], example


def load_events(builder: EventBuilder, split: str | None, streaming: bool) -> LoadedDataset:
    """Build, unless the cache has it, and open a data set; `split` "val" stands for "validation"."""
    split = None if split is None else re.sub(r"\bval\b", "validation", str(split))
    if streaming:
        dataset = builder.as_streaming_dataset(split=split)
    else:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=split)
    if builder.report:
        logger.warning(builder.report)
    return dataset


def as_text(path: str | os.PathLike | None) -> str | None:
    """A path as the settings of a builder hold it."""
    return None if path is None else os.fspath(path)


def mark_repeated_videos(examples: Mapping[str, Sequence[Example]]) -> None:
    """Fill in `duplicate_of` and `leaks_into`: rows that show one video, within and across splits."""
    rows: dict[str, list[int]] = defaultdict(list)
    splits: dict[str, list[str]] = defaultdict(list)
    for split, members in examples.items():
        for example in members:
            rows[example["video"]].append(example["row"])
            if split not in splits[example["video"]]:
                splits[example["video"]].append(split)
    for split, members in examples.items():
        for example in members:
            first = min(rows[example["video"]])
            example["duplicate_of"] = None if first == example["row"] else first
            example["leaks_into"] = [other for other in splits[example["video"]] if other != split]


def drop_problems(
    examples: Mapping[str, Sequence[Example]], on_missing: str, probe_videos: bool
) -> tuple[dict[str, list[Example]], str]:
    """The examples whose video can be read, `video` now its path, and a report of the others, empty without any.

    Raises:
        MissingVideoError: if there are others and `on_missing` is "raise".
    """
    problems = find_problems(itertools.chain.from_iterable(examples.values()), probe_videos)
    report = _describe(problems, sum(map(len, examples.values()))) if problems else ""
    if problems and on_missing == "raise":
        message = f'{report} Mend them, or pass on_missing="skip" to do without these rows.'
        raise MissingVideoError(message, problems)
    lost = {problem.row for problem in problems}
    for example in itertools.chain.from_iterable(examples.values()):
        example.pop("problem", None)
    kept = {
        split: [{**example, "video": example["video"].path} for example in rows if example["row"] not in lost]
        for split, rows in examples.items()
    }
    return kept, f"{report} These rows are left out." if report else ""


def _describe(problems: Sequence[VideoProblem], num_rows: int) -> str:
    shown = "; ".join(f"{problem.video_id} (row {problem.row}): {problem.reason}" for problem in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"The videos of {len(problems)} of {num_rows} rows cannot be read: {shown}{more}."


def _cut(rows: list[Example], num_shards: int) -> list[list[Example]]:
    """Cut rows into at most `num_shards` runs, in order, the longer ones (by one row) first.

    Nodes take every n-th run, so their numbers of rows differ by one at most where n divides `num_shards`.
    """
    num_shards = max(1, min(num_shards, len(rows)))
    length, longer = divmod(len(rows), num_shards)
    lengths = [length + (index < longer) for index in range(num_shards)]
    bounds = itertools.accumulate(lengths, initial=0)
    return [rows[start:end] for start, end in itertools.pairwise(bounds)]
