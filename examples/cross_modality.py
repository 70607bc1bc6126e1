"""Cross-modality localization, AVEL's second task, with embeddings: locate an audio segment in the frames of its clip,
and frames in the audio.

What it reads: an encoder with one space for images and audio, such as AudioCLIP or PE-AV (or a localizer, for its
encoder), and labelled videos of any kind (`--data`, with one label per segment), or stage 2's pooled features.
If the data set has AVE's split for this task (`test_order_match.h5`), its rows are used; otherwise the rows of the
supervised split. Events that fill their clip are left out, as in AVEL. Some test rows of the task are training rows
of the supervised task: for encoders that were fine-tuned on AVE, pass `--own_split`.
What it writes: for queries of a whole event and of one second, in both directions, the fraction of exact answers, of
answers at most one second away, and of random guessing, as JSON; prints a table.

    accelerate launch examples/cross_modality.py --model audioclip --data AVE_Dataset
    python examples/cross_modality.py --features_dir pooled_features --annotations_dir AVE_Dataset
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from ave_clip.core.categories import labels_with_background
from ave_clip.core.encoders import shared_space_of
from ave_clip.core.similarity import SharedSpace
from ave_clip.data.readers import find_reader
from ave_clip.data.source import MATCH_ORDER_FILES, read_source
from ave_clip.data.splitting import SPLITS
from ave_clip.data.storage import open_storage
from ave_clip.outputs.text_table import align_columns
from ave_clip.programs import program, start_logging
from ave_clip.training.arguments import (
    add_data_argument,
    add_run_arguments,
    add_video_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    video_options,
    write_json,
)
from ave_clip.training.checkpoints import (
    build_localizer,
    encoder_config,
    load_encoder,
    load_processor,
)
from ave_clip.training.clips import ClipReader
from ave_clip.training.cross_modality import (
    DIRECTIONS,
    QUERIES,
    embed_clips,
    measure_cross_modality,
    read_embeddings,
    space_of_store,
)
from ave_clip.training.features import FeatureStore
from ave_clip.training.splits import open_split

logger = get_logger("cross_modality")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="With --data: encoder with one space for images and audio, or a localizer.")
    source = parser.add_mutually_exclusive_group(required=True)
    add_data_argument(source)
    source.add_argument("--features_dir", help="Output of stage 2 with --visual_feature_type pooled.")
    parser.add_argument("--annotations_dir", help="With --features_dir: folder of AVE's split for this task.")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument(
        "--own_split",
        action="store_true",
        help="Use the rows of the supervised split, even if the data set has a split for this task.",
    )
    parser.add_argument("--queries", nargs="+", choices=QUERIES, default=list(QUERIES))
    parser.add_argument("--output", help="JSON file for the results. Default: none.")
    parser.add_argument("--num_frames_per_segment", type=int, default=16, help="With --data: frames per segment.")
    parser.add_argument(
        "--num_resamples", type=int, default=1000, help="Resamples of the bootstrap; 0 for no intervals."
    )
    parser.add_argument("--batch_size", type=int, default=1, help="Clips per process.")
    parser.add_argument("--max_clips", type=int, help="Use only the first clips, for a trial run.")
    add_video_arguments(parser, segment_seconds=False)
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    if bool(args.data) != bool(args.model):
        parser.error("--model needs --data, and --data needs --model; --features_dir contains embeddings already")
    for name in ("batch_size", "num_frames_per_segment", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def has_task_split(args: argparse.Namespace) -> bool:
    """Whether to use AVE's split for this task."""
    if args.own_split or args.features_dir:
        return bool(args.annotations_dir) and not args.own_split
    path = Path(args.data).expanduser()
    reader = find_reader(path) if path.exists() else None
    if reader is None or reader.name != "ave":  # only AVE has such a split
        return False
    return open_storage(args.data).read(MATCH_ORDER_FILES[args.split]) is not None


def embed_videos(args: argparse.Namespace, accelerator: Accelerator, name: str):
    """Embed the videos; returns clips, the index of background, the space, and the reason for each unreadable row.

    Raises:
        ValueError: if images and audio have no space in common, or the data set does not have the split.
    """
    encoder = load_encoder(args.model)
    space = shared_space_of(encoder_config(encoder), args.model)
    options = {"name": name} if name != "full" else {}
    examples = open_split(args.data, args.split, **video_options(args, problem_type="single_label", **options))
    examples = examples.select(range(min(len(examples), args.max_clips or len(examples))))
    id2label = labels_with_background(examples.features["category"].names)
    localizer = build_localizer(encoder, id2label, {"visual_feature_type": "pooled"}).to(accelerator.device)
    reader = ClipReader(examples, load_processor(args.model, encoder, args.num_frames_per_segment))
    clips, unreadable = embed_clips(accelerator, localizer, reader, args.batch_size, args.num_workers)
    for row, reason in unreadable.items():
        logger.warning("row %d could not be read: %s", row, reason)
    return clips, len(id2label) - 1, space, unreadable


def read_features(
    args: argparse.Namespace, is_task_split: bool
) -> tuple[list[dict[str, torch.Tensor]], int, SharedSpace]:
    """Read embeddings of stage 2, the index of background and the space; the task's rows are searched in all splits.

    Raises:
        ValueError: if none of the rows is in the features, or images and audio have no space in common.
    """
    rows = read_source(args.annotations_dir, cross_modality=True).splits.get(args.split, []) if is_task_split else None
    folders = [Path(args.features_dir) / split for split in (SPLITS if is_task_split else [args.split])]
    stores = [open_store(folder) for folder in folders if folder.exists() or not is_task_split]
    clips = [clip for store in stores for clip in read_embeddings(store, rows)]
    if is_task_split and len(clips) < len(rows):
        missing = sorted(set(rows) - {int(clip["row"]) for clip in clips})
        logger.warning(
            "%d of %d rows of the task have no features, the first: %s", len(missing), len(rows), missing[:8]
        )
    if not clips:
        raise ValueError(f"{args.features_dir} contains none of the requested rows: extract the {args.split} split.")
    return clips[: args.max_clips], len(stores[0].manifest["id2label"]) - 1, space_of_store(stores[0])


def open_store(folder: Path) -> FeatureStore:
    """Open stage 2's features of one split.

    Raises:
        FeatureStoreError: if segments have several labels: a query is an event of one class.
    """
    store = FeatureStore(folder)
    store.check_settings(problem_type="single_label")
    return store


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print exact answers and those within one second, each with the result of random guessing."""
    titles = ("exact %", "95 % interval", "guessing", "within 1 s", "guessing", "queries", "clips")
    rows = [("query", "direction", *titles)]
    for query, measures in results.items():
        for direction in DIRECTIONS:
            found = measures[direction]
            interval = " to ".join(f"{100 * end:.2f}" for end in found.get("intervals", {}).get("accuracy", ()))
            fractions = [
                f"{100 * found[name]:.2f}" for name in ("accuracy", "chance", "within_one", "chance_within_one")
            ]
            counts = (measures["num_queries"], measures["num_clips"])
            rows.append((query, direction, fractions[0], interval, *fractions[1:], *counts))
    print(align_columns(rows, num_text_columns=2))


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    args = parse_args(argv)
    start_logging()
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    is_task_split, unreadable = has_task_split(args), {}
    if args.data:
        name = "cross_modality" if is_task_split else "full"
        clips, background, space, unreadable = embed_videos(args, accelerator, name)
    else:
        clips, background, space = read_features(args, is_task_split)
    results = {
        query: measure_cross_modality(
            clips, background, query, args.num_resamples, args.seed, is_cosine=space.is_cosine
        )
        for query in args.queries
    }
    if is_task_split:
        logger.warning(
            "These rows are the task's own split: encoders fine-tuned on AVE's train split have seen many of them."
        )
    if accelerator.is_main_process:
        show(results)
        rows = "of the task's own split" if is_task_split else "of the supervised split"
        content = {"split": args.split, "rows": rows, "unreadable_rows": unreadable, "queries": results}
        if args.output:
            write_json(args.output, {**content, **describe_run(args, argv)})
    accelerator.end_training()
    return results


if __name__ == "__main__":
    with program():
        main()
