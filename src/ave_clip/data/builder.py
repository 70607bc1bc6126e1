"""The `datasets` builder that all data sets of events share: columns, missing and repeated videos, streaming.

A subclass (in `ave` and `custom`) turns annotation files into examples, one dictionary per row. [`EventBuilder`]
checks that their videos exist, marks videos that occur more than once, and writes or streams the rows.
"""

import itertools
import json
import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from transformers.utils import logging

from ..core.categories import MULTI_LABEL, SINGLE_LABEL, check_problem_type
from ..core.text import first_few, printable
from .categories import label_names
from .decoding import VideoProblem, find_problems
from .splitting import assign_splits
from .targets import check_segment_seconds

logger = logging.get_logger(__name__)

# Increase it whenever the same files give other rows: then caches of older versions are not used.
DATA_VERSION = "1.1.0"
# Divisible by most numbers of nodes and workers. `datasets` then gives each of them shards of its own; otherwise every
# node reads all rows and skips those of the others.
NUM_STREAMING_SHARDS = 48

LEFT_OUT = "Rows left out: "  # start of the line of a description that lists them, which `left_out_rows` reads

Example = dict[str, Any]
LoadedDataset = datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict


class MissingVideoError(ValueError):
    """Videos that are missing, empty or unreadable; `problems` lists all of them.

    Args:
        message (`str`): The message.
        problems (`Sequence[VideoProblem]`): One entry per row.
    """

    def __init__(self, message: str, problems: Sequence[VideoProblem]):
        super().__init__(message)
        self.problems = list(problems)


def event_features(
    categories: Sequence[str], video_level: bool = False, seen: bool = False, problem_type: str = SINGLE_LABEL
) -> datasets.Features:
    """Returns the columns of a data set of events.

    Args:
        categories (`Sequence[str]`): Category names in index order, without background.
        video_level (`bool`): Add `video_label`, the class of the whole video, which may be background; with several
            labels, 0 or 1 for each category.
        seen (`bool`): Add `seen`, whether the category occurs in training.
        problem_type (`str`): "single_label", or "multi_label" for several events at once.

    Returns:
        `datasets.Features`:
            - `row`: number of the row in the annotation file, the key of the example;
            - `video_id`, not unique, and `video`, undecoded: `{"path", "bytes"}`;
            - `category`: class of the event, or of the longest of several; `None` without an event or its label;
            - `labels`: class id of each segment, background last, -100 where the truth is withheld; with several
              labels, 0 or 1 for each category instead (background is a segment without any);
            - `start` of the first and `end` of the last event in seconds, and the list of all `events`;
            - `duration`: seconds of the video that the segments divide;
            - `duplicate_of`: the first row that shows the same video, or `None`;
            - `leaks_into`: the other splits that show the same video.
    """
    category = datasets.ClassLabel(names=list(categories))
    flags = datasets.List(datasets.Value("int8"))  # 0 or 1 per category; int8 has room for -100
    check_problem_type(problem_type)
    is_multi = problem_type == MULTI_LABEL
    columns = {
        "row": datasets.Value("int64"),
        "video_id": datasets.Value("string"),
        "video": datasets.Video(decode=False),
        "category": category,
        "labels": datasets.List(flags if is_multi else datasets.Value("int64")),
        "start": datasets.Value("float64"),
        "end": datasets.Value("float64"),
        "events": datasets.List(
            {"label": category, "start": datasets.Value("float64"), "end": datasets.Value("float64")}
        ),
        "duration": datasets.Value("float64"),
        "duplicate_of": datasets.Value("int64"),
        "leaks_into": datasets.List(datasets.Value("string")),
    }
    if video_level:
        columns["video_label"] = flags if is_multi else datasets.ClassLabel(names=label_names(categories))
    if seen:
        columns["seen"] = datasets.Value("bool")
    return datasets.Features(columns)


def problem_type_of(features: datasets.Features) -> str:
    """Returns "multi_label" if segments have a list of labels, else "single_label"."""
    return SINGLE_LABEL if isinstance(features["labels"].feature, datasets.Value) else MULTI_LABEL


@dataclass
class EventConfig(datasets.BuilderConfig, ABC):
    """Settings that all builders of events have.

    Attributes:
        on_missing (`str`): What to do about rows whose video is missing or unreadable: "raise" or "skip".
        probe_videos (`bool`): Open every video to find those that cannot be read. Without it, only missing and empty
            files are found.
        allow_outside (`bool`): Whether videos may be outside the data folder: paths with `..`, absolute paths, links.
        problem_type (`str`): "single_label" for one label per segment, or "multi_label" for several events at once.
        segment_seconds (`float`): Duration of a segment.
        split_files (`dict[str, str]`, *optional*): A file per split with one video per line; see `assign_splits`.
        split_fractions (`tuple[float, ...]`, *optional*): Fractions of train, validation and test videos.
        split_seed (`int`): Seed of the split by `split_fractions`.
    """

    if TYPE_CHECKING:  # fields of `BuilderConfig`, whose library declares no types
        name: str = "default"
        description: str | None = None

    version: datasets.Version | str | None = DATA_VERSION
    on_missing: str = "raise"
    probe_videos: bool = False
    allow_outside: bool = False
    problem_type: str = SINGLE_LABEL
    segment_seconds: float = 1.0
    split_files: dict[str, str] | None = None
    split_fractions: tuple[float, ...] | None = None
    split_seed: int = 0

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Returns the name of the cache folder, which depends on the settings and on the content of the data."""
        if self.on_missing not in ("raise", "skip"):
            raise ValueError(f'Got on_missing={self.on_missing!r}, wanted "raise" or "skip".')
        check_problem_type(self.problem_type)
        check_segment_seconds(self.segment_seconds)
        content = [self.fingerprint(), *(Path(path).read_bytes() for path in (self.split_files or {}).values())]
        return super().create_config_id({**config_kwargs, "content": content}, custom_features)

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a hash of all files that the rows are made from."""


class EventBuilder(datasets.GeneratorBasedBuilder, ABC):
    """A `datasets` builder whose rows are videos with events; subclasses implement `read_examples`."""

    BUILDER_CONFIG_CLASS = EventConfig
    notes: Sequence[str] = ()  # about the annotations; `read_examples` sets them

    @abstractmethod
    def read_examples(self) -> dict[str, list[Example]]:
        """Returns the examples of each split, and sets `notes`: what users should know about the annotations.

        `video` is a [`VideoFile`], or `None` if the file is missing. `problem` is optional; if it is set, it says why
        the video cannot be used.
        """

    @property
    def report(self) -> list[str]:
        """Messages about rows that were left out and about events that the labels do not show."""
        # The description is the one free text that `datasets` keeps in the cache with the built rows.
        text = self.info.description.removeprefix(self.config.description or "").strip()
        return [line for line in text.splitlines() if not line.startswith(LEFT_OUT)]

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        config = self.config
        examples, split_notes = assign_splits(
            self.read_examples(), config.split_files, config.split_fractions, config.split_seed
        )
        examples, report, left_out = drop_problems(examples, config.on_missing, config.probe_videos)
        lines = [config.description or "", *report, *split_notes, *self.notes]
        if left_out:
            lines.append(LEFT_OUT + json.dumps(left_out))
        self.info.description = "\n".join(filter(None, lines))
        if not any(examples.values()):
            raise ValueError(f"No row of {config.data_dir or 'the annotations'} has a video that can be read.")
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
    """Builds a data set unless it is in the cache, and opens it; "val" in `split` means "validation"."""
    split = None if split is None else re.sub(r"\bval\b", "validation", str(split))
    if streaming:
        dataset = builder.as_streaming_dataset(split=split)
    else:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=split)
    for line in builder.report:
        logger.warning(line)
    return dataset


def left_out_rows(dataset: datasets.Dataset) -> dict[str, list[int]]:
    """Returns the numbers of the rows of each split that `on_missing="skip"` left out of a data set."""
    lines = (dataset.info.description or "").splitlines()
    return next((json.loads(line.removeprefix(LEFT_OUT)) for line in lines if line.startswith(LEFT_OUT)), {})


def as_text(path: str | os.PathLike | None) -> str | None:
    """Returns a path as text, which the settings of a builder require."""
    return None if path is None else os.fspath(path)


def mark_repeated_videos(examples: Mapping[str, Sequence[Example]]) -> None:
    """Sets `duplicate_of` and `leaks_into` of rows that show the same video, within and across splits."""
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
) -> tuple[dict[str, list[Example]], list[str], dict[str, list[int]]]:
    """Returns the examples whose video can be read, with its path as `video`; a report of the others; and their rows.

    Raises:
        MissingVideoError: if there are others and `on_missing` is "raise".
    """
    problems = find_problems(itertools.chain.from_iterable(examples.values()), probe_videos)
    report = _describe(problems, sum(map(len, examples.values()))) if problems else ""
    if problems and on_missing == "raise":
        message = f'{report} Repair them, or pass on_missing="skip" to leave these rows out.'
        raise MissingVideoError(message, problems)
    lost = {problem.row for problem in problems}
    for example in itertools.chain.from_iterable(examples.values()):
        example.pop("problem", None)  # not a column
    kept = {
        split: [{**example, "video": example["video"].path} for example in rows if example["row"] not in lost]
        for split, rows in examples.items()
    }
    left_out = {split: [e["row"] for e in rows if e["row"] in lost] for split, rows in examples.items()}
    left_out = {split: rows for split, rows in left_out.items() if rows}
    return kept, [f"{report} These rows are left out."] if report else [], left_out


def _describe(problems: Sequence[VideoProblem], num_rows: int) -> str:
    reasons = [printable(f"{problem.video_id} (row {problem.row}): {problem.reason}") for problem in problems]
    return f"The videos of {len(problems)} of {num_rows} rows cannot be read: {first_few(reasons, limit=5)}."


def _cut(rows: list[Example], num_shards: int) -> list[list[Example]]:
    """Cuts rows into at most `num_shards` runs in order; the first runs may be longer by one row.

    Node k of n takes the runs k, k + n, k + 2 n, ... If n divides `num_shards`, the nodes' numbers of rows therefore
    differ by at most one.
    """
    num_shards = max(1, min(num_shards, len(rows)))
    length, longer = divmod(len(rows), num_shards)
    lengths = [length + (index < longer) for index in range(num_shards)]
    bounds = itertools.accumulate(lengths, initial=0)
    return [rows[start:end] for start, end in itertools.pairwise(bounds)]
