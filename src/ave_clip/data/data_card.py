"""Data cards of exported data sets: contents per split and per class, duplicates, leaks and licence."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ..core.categories import MULTI_LABEL, SINGLE_LABEL
from ..core.tasks import LOCALIZATION_TASK
from .builder import problem_type_of
from .categories import background_index

TEMPLATE = """---
{metadata}
---

# {name}

Videos with audio-visual events: for each segment, {labels}.
Exported by ave-clip as {form}.

## Loading

```python
from datasets import Video, load_dataset

dataset = load_dataset("this/folder/or/repository")
dataset = dataset.cast_column("{video_column}", Video(decode=False))  # as paths or bytes; decoding needs torchcodec
```

{columns}

## Splits

| split | rows | videos | segments | background |
|---|---|---|---|---|
{splits}

## Classes

| index | class | {split_names} |
|---|---|{rules}
{classes}
| {background} | background | {background_counts} |

The count of a class is the number of rows whose main event it is; that of background is its number of segments.

## Duplicates and leaks

{repeats}

## Licence

The videos belong to those who made them; AVE's come from YouTube by way of AudioSet, whose annotations are under
CC BY 4.0. AVE's authors published their annotations without stating a licence. Make sure that you may share the videos
before you make this data set public.
"""

_LABELS = {
    SINGLE_LABEL: "the class of the event that is both seen and heard, or background",
    MULTI_LABEL: "the classes of all events that are both seen and heard",
}
_MEANING = (
    "`row` is the row's number in the annotation file and its key, `video_id` is not unique, `category` is the class "
    "of the event, `labels` has a class index per segment with background last, or 0 and 1 for each class (-100 where "
    "it is withheld), `start`, `end`, `events` and `duration` are in seconds, `duplicate_of` is the first row that "
    "shows the same video, `leaks_into` names the other splits that show it."
)


@dataclass
class _SplitFacts:
    """The numbers of one split."""

    num_rows: int
    num_videos: int
    num_segments: int
    num_background: int
    rows_per_class: Counter
    num_duplicates: int
    leaking_ids: list[str]


def build_data_card(
    splits: Mapping[str, "datasets.Dataset"],
    name: str,
    form: str,
    patterns: Mapping[str, str],
    video_column: str = "video",
    json_column: str | None = None,
) -> str:
    """Returns the text of a card, with the metadata that lets `load_dataset` find splits and column types.

    Args:
        splits (`Mapping[str, datasets.Dataset]`): The data set.
        name (`str`): Its name.
        form (`str`): Name of the export format.
        patterns (`Mapping[str, str]`): The files of each split.
        video_column (`str`): The column that contains the video in the export.
        json_column (`str`, *optional*): The column that contains all others in the export, if there is one.

    Returns:
        `str`: Content of the `README.md`.
    """
    categories = next(iter(splits.values())).features["category"].names
    background = background_index(categories)
    facts = {split: _count(rows, background) for split, rows in splits.items()}
    return TEMPLATE.format(
        metadata=_metadata(splits, name, form, patterns, video_column, json_column),
        name=name,
        form=form,
        labels=_LABELS[problem_type_of(next(iter(splits.values())).features)],
        video_column=video_column,
        columns=(f"The column `{json_column}` contains everything but the video: " if json_column else "") + _MEANING,
        splits="\n".join(
            f"| {split} | {fact.num_rows} | {fact.num_videos} | {fact.num_segments} "
            f"| {fact.num_background / max(1, fact.num_segments):.2%} |"
            for split, fact in facts.items()
        ),
        split_names=" | ".join(facts),
        rules="---|" * len(facts),
        classes="\n".join(
            f"| {index} | {category} | {_join(fact.rows_per_class[index] for fact in facts.values())} |"
            for index, category in enumerate(categories)
        ),
        background=background,
        background_counts=_join(fact.num_background for fact in facts.values()),
        repeats=_describe_repeats(facts),
    )


def _count(rows: "datasets.Dataset", background: int) -> _SplitFacts:
    columns = rows.select_columns(["video_id", "category", "labels", "duplicate_of", "leaks_into"]).with_format(None)
    facts = _SplitFacts(0, 0, 0, 0, Counter(), 0, [])
    video_ids = set()
    for row in columns:
        facts.num_rows += 1
        facts.num_segments += len(row["labels"])
        facts.num_background += sum(
            label == background if isinstance(label, int) else not any(label) for label in row["labels"]
        )
        facts.rows_per_class[row["category"]] += 1
        facts.num_duplicates += row["duplicate_of"] is not None
        video_ids.add(row["video_id"])
        if row["leaks_into"]:
            facts.leaking_ids.append(f"`{row['video_id']}` (also in {', '.join(row['leaks_into'])})")
    facts.num_videos = len(video_ids)
    return facts


def _describe_repeats(facts: Mapping[str, _SplitFacts]) -> str:
    duplicates = sum(fact.num_duplicates for fact in facts.values())
    lines = [f"{duplicates} rows show a video that an earlier row shows, with another event."]
    for split, fact in facts.items():
        if fact.leaking_ids:
            leaking = list(dict.fromkeys(fact.leaking_ids))
            lines.append(f"- {len(leaking)} videos of {split} occur in another split: {', '.join(leaking)}.")
    if len(lines) == 1:
        lines.append("No video occurs in two splits.")
    return "\n".join(lines)


def _join(values: Iterable[Any]) -> str:
    return " | ".join(map(str, values))


def _metadata(
    splits: Mapping[str, "datasets.Dataset"],
    name: str,
    form: str,
    patterns: Mapping[str, str],
    video_column: str,
    json_column: str | None,
) -> str:
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    data_files = [{"split": split, "path": pattern} for split, pattern in patterns.items()]
    data = DatasetCardData(
        pretty_name=name,
        license="other",
        task_categories=["video-classification"],
        tags=[LOCALIZATION_TASK, "video", "audio", form],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    if json_column is not None:
        # `load_dataset` would infer the types of the JSON from the first rows. Parquet files store their own types.
        features = next(iter(splits.values())).features
        stored = {
            "__key__": datasets.Value("string"),
            "__url__": datasets.Value("string"),
            video_column: datasets.Video(decode=False),
            json_column: {column: feature for column, feature in features.items() if column != "video"},
        }
        info = datasets.DatasetInfo(features=datasets.Features(stored))
        DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    return data.to_yaml()
