"""A development set of real sounds and pictures, on which the localizer's default network was chosen.

    pip install cairosvg
    nice python examples/maintenance/development_set.py --media MEDIA --output_dir development
    python examples/run_comparison.py --data development --groups development/groups.csv --folds 4 --seeds 3

The first command downloads the packages of `event_packages.csv` into MEDIA (about 4 GB), unless they are there, and
writes features in the layout of stage 2. The clips are composed of what the encoders of `ave-clip-mini` give for each
sound and picture (`event_bank.py`, `event_clips.py`), reduced to 128 numbers each by principal components of the
media of other classes. With `--dense` a frame has 7 x 7 locations, like the features of previous work on AVE.

The sources of a class, recordings and pictures, are divided into four parts; similar file names of one package count
as one source. All clips of a group have sources of one part only. So no source of a test fold was heard or seen in
training.
"""

import argparse
import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from event_bank import Bank, load_bank
from event_clips import Media, compose_clips
from event_media import Source, fetch_packages, find_sources

from ave_clip.core.categories import labels_with_background
from ave_clip.core.modeling_ave_clip_mini import AVEClipMiniForLocalization
from ave_clip.training.features import FeatureWriter

# Classes with at least four sources of sounds and pictures each.
CLASSES = (
    *("acoustic guitar", "alarm clock", "bell", "car", "cow", "drum", "elephant", "female speech"),
    *("hammer", "horse", "pig", "race car", "saxophone", "sheep", "telephone"),
)
PARTS, CLIPS_PER_PART = 4, 500
HARD_FRACTION = 0.35  # of the clips: a sound alone, a picture alone, both of different classes, or nothing
WIDTH = 128


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, required=True, help="Folder for packages and encoded media.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the features.")
    parser.add_argument("--dense", action="store_true", help="Features of 7 x 7 locations per frame, not their mean.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    fetch_packages(args.media)
    sources = find_sources(args.media)
    model = AVEClipMiniForLocalization.from_pretrained("ave-clip-mini").eval().requires_grad_(False)
    bank = load_bank(model, sources, args.media, args.dense)
    reduce_width(bank, [source for source in sources if source.concept not in CLASSES])
    labels = labels_with_background(CLASSES)
    clips, groups = [], []
    for part, own in enumerate(divide(bank, sources)):
        clips += compose_rows(bank, own, part, len(clips))
        groups += [f"part {part + 1}"] * CLIPS_PER_PART
    identities = {row: hashlib.sha256(clip["labels"].numpy().tobytes()).hexdigest() for row, clip in enumerate(clips)}
    settings = {
        "encoder_fingerprint": hashlib.sha256(json.dumps(sorted(bank.takes)).encode()).hexdigest()[:16],
        "visual_feature_type": "dense" if args.dense else "pooled",
        "image_feature_size": WIDTH,
        "audio_feature_size": WIDTH,
        "num_frames_per_segment": 1,
        "segment_seconds": 1.0,
        "dtype": "float32",
        "problem_type": "single_label",
        "id2label": {str(index): label for index, label in labels.items()},
    }
    writer = FeatureWriter(args.output_dir / "train", settings, identities)
    for number in writer.plan():
        writer.write(number, [clips[row] for row in writer.shards[number]])
    writer.finish("train", {"name": "ave-clip-mini"})
    with (args.output_dir / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("split", "row", "group"))
        rows.writerows(("train", row, group) for row, group in enumerate(groups))


def reduce_width(bank: Bank, sources: Sequence[Source]) -> None:
    """Replace the features of a bank by their first principal components on these sources."""
    keys = {source.key for source in sources}
    takes = [first for key, rows in bank.takes.items() if key in keys for first in rows]
    seconds = [first + second for first in takes + bank.beds for second in range(10)]
    frames = [row for key, shots in bank.shots.items() if key in keys for shot in shots for row in shot]
    frames += [row for shot in bank.other_shots for row in shot]
    bank.audio = project(bank.audio, bank.audio[seconds])
    bank.visual = project(bank.visual, bank.visual[frames])


def project(features: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
    examples = examples.flatten(0, -2)
    mean = examples.mean(dim=0)
    directions = torch.linalg.svd(examples - mean, full_matrices=False).Vh[:WIDTH]
    return (features - mean) @ directions.T


def divide(bank: Bank, sources: Sequence[Source]) -> list[list[Source]]:
    """Divide the sources of the classes into parts; a file of two classes is left out."""
    classes_of = defaultdict(set)
    for source in sources:
        classes_of[source.key].add(source.concept)
    own: dict[tuple[str, str], list[Source]] = defaultdict(list)
    for source in sources:
        is_readable = source.kind == "picture" or source.key in bank.takes
        if source.concept in CLASSES and len(classes_of[source.key].intersection(CLASSES)) == 1 and is_readable:
            own[source.concept, source.kind].append(source)
    parts: list[list[Source]] = [[] for _ in range(PARTS)]
    for members in own.values():
        recordings = sorted({recording(source) for source in members}, key=_hash)
        for source in members:
            parts[recordings.index(recording(source)) % PARTS].append(source)
    return parts


def recording(source: Source) -> tuple[str, str]:
    """Package and name, without the number of a sound: "bark_01" and "bark_02" may be of one recording."""
    name = Path(source.member or source.path.name).stem.lower()
    return source.package, re.sub(r"[\d_\-]+[a-z]?$", "", name) if source.kind == "sound" else name


def _hash(name: tuple[str, str]) -> str:
    return hashlib.sha256(repr(name).encode()).hexdigest()


def compose_rows(bank: Bank, sources: list[Source], part: int, first: int) -> list[dict[str, torch.Tensor]]:
    """Compose the clips of one part: rows of features and labels, numbered from `first`."""
    generator = np.random.default_rng([2026, part])
    clips = compose_clips(generator, CLASSES, Media.of(bank, sources), CLIPS_PER_PART, HARD_FRACTION)
    rows = []
    for number, (heard, seen) in enumerate(zip(clips.heard, clips.seen)):
        names = [sound if sound == picture else None for sound, picture in zip(heard, seen)]
        labels = [len(CLASSES) if name is None else CLASSES.index(name) for name in names]
        rows.append(
            {
                "row": torch.tensor(first + number),
                "labels": torch.tensor(labels),
                "image_features": bank.visual[torch.from_numpy(clips.frames[number])],
                "audio_features": bank.audio[torch.from_numpy(clips.sounds[number])],
            }
        )
    return rows


if __name__ == "__main__":
    main()
