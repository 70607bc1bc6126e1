"""Cross-modality localization, AVEL's second task, with AudioCLIP's embeddings: a sound finds its place among the
pictures of its clip, and pictures theirs in the sound.

What it reads: AudioCLIP (or a localizer, for its towers) and videos in AVE's layout, or stage 2's pooled features.
Where the data set has AVE's own split for this task (`test_order_match.h5`), its rows are asked; else the rows of the
split. Events that fill their clip are left out, as AVEL does. The task's test rows are in part training rows of the
supervised task: for towers that were fine-tuned on AVE, pass `--own_split`.
What it writes: for queries of a whole event and of one second, both ways, the share of exact answers, of answers at
most one second away, and what guessing reaches, as JSON; prints a table.

    accelerate launch examples/cross_modality.py --model audioclip --data_dir AVE_Dataset
    python examples/cross_modality.py --features_dir pooled_features --annotations_dir AVE_Dataset
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from ave_clip.categories import labels_with_background
from ave_clip.data import load_ave
from ave_clip.data.source import MATCH_ORDER_FILES, read_source
from ave_clip.data.storage import open_storage
from ave_clip.training.arguments import (
    add_missing_argument,
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    write_json,
)
from ave_clip.training.checkpoints import (
    audioclip_config,
    build_localizer,
    build_processor,
    load_encoder,
    load_feature_extractor,
)
from ave_clip.training.clips import ClipReader
from ave_clip.training.cross_modality import (
    DIRECTIONS,
    QUERIES,
    embed_clips,
    measure_cross_modality,
    read_embeddings,
)
from ave_clip.training.features import FeatureStore

logger = get_logger("cross_modality")
SPLITS = ("train", "validation", "test")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="With --data_dir: AudioCLIP, or a localizer for its towers; folder or Hub id.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_dir", help="Videos in AVE's layout.")
    source.add_argument("--features_dir", help="Output of stage 2 with --visual_feature_type pooled.")
    parser.add_argument("--annotations_dir", help="With --features_dir: where AVE's split for this task lies.")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--own_split", action="store_true", help="The rows of the supervised split, in any case.")
    parser.add_argument("--queries", nargs="+", choices=QUERIES, default=list(QUERIES))
    parser.add_argument("--output", help="JSON file; ./cross-modality-SPLIT.json by default.")
    parser.add_argument("--num_frames_per_segment", type=int, default=16, help="With --data_dir.")
    parser.add_argument("--num_resamples", type=int, default=1000, help="Of the bootstrap; 0 for no intervals.")
    parser.add_argument("--batch_size", type=int, default=1, help="Clips per process.")
    parser.add_argument("--max_clips", type=int, help="Only the first clips, for a trial.")
    add_missing_argument(parser)
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    if bool(args.data_dir) != bool(args.model):
        parser.error("--model goes with --data_dir: it makes the embeddings that --features_dir has already")
    for name in ("batch_size", "num_frames_per_segment", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def has_task_split(args: argparse.Namespace) -> bool:
    """Whether AVE's own split for this task is there and wanted."""
    if args.own_split or args.features_dir:
        return bool(args.annotations_dir) and not args.own_split
    return open_storage(args.data_dir).read(MATCH_ORDER_FILES[args.split]) is not None


def embed_videos(args: argparse.Namespace, accelerator: Accelerator, name: str):
    """Embeddings of the videos' segments, the index of background, and what could not be read."""
    part = f"{args.split}[:{args.max_clips}]" if args.max_clips else args.split
    examples = load_ave(args.data_dir, split=part, name=name, on_missing=args.on_missing)
    encoder = load_encoder(args.model)
    config, id2label = audioclip_config(encoder), labels_with_background(examples.features["category"].names)
    localizer = build_localizer(encoder, id2label, {"visual_feature_type": "pooled"}).to(accelerator.device)
    extractor = load_feature_extractor(args.model, config)
    reader = ClipReader(examples, build_processor(config, extractor, args.num_frames_per_segment))
    clips, unreadable = embed_clips(accelerator, localizer, reader, args.batch_size, args.num_workers)
    for row, reason in unreadable.items():
        logger.warning("row %d could not be read: %s", row, reason)
    return clips, len(id2label) - 1, unreadable


def read_features(args: argparse.Namespace, is_task_split: bool) -> tuple[list[dict[str, torch.Tensor]], int]:
    """Embeddings of stage 2 and the index of background; the task's rows are looked for in all splits.

    Raises:
        ValueError: where none of the task's rows is in the features.
    """
    rows = read_source(args.annotations_dir, cross_modality=True).splits.get(args.split, []) if is_task_split else None
    folders = [Path(args.features_dir) / split for split in (SPLITS if is_task_split else [args.split])]
    stores = [FeatureStore(folder) for folder in folders if folder.exists() or not is_task_split]
    clips = [clip for store in stores for clip in read_embeddings(store, rows)]
    if is_task_split and len(clips) < len(rows):
        missing = sorted(set(rows) - {int(clip["row"]) for clip in clips})
        logger.warning("%d of %d rows of the task lack features, the first: %s", len(missing), len(rows), missing[:8])
    if not clips:
        raise ValueError(
            f"{args.features_dir} holds none of the rows that are asked for: extract the {args.split} split."
        )
    return clips[: args.max_clips], len(stores[0].manifest["id2label"]) - 1


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print exact answers and those within a second, each beside what guessing reaches."""
    titles = ("exact %", "95 % interval", "guessing", "within 1 s", "guessing", "queries", "clips")
    print(f"{'query':<8}{'direction':<18}" + "".join(f"{title:>16}" for title in titles))
    for query, measures in results.items():
        for direction in DIRECTIONS:
            found = measures[direction]
            interval = " to ".join(f"{100 * end:.2f}" for end in found.get("intervals", {}).get("accuracy", ()))
            shares = [f"{100 * found[name]:.2f}" for name in ("accuracy", "chance", "within_one", "chance_within_one")]
            cells = [shares[0], interval, *shares[1:], measures["num_queries"], measures["num_clips"]]
            print(f"{query:<8}{direction:<18}" + "".join(f"{cell:>16}" for cell in cells))


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    is_task_split, unreadable = has_task_split(args), {}
    if args.data_dir:
        name = "cross_modality" if is_task_split else "full"
        clips, background, unreadable = embed_videos(args, accelerator, name)
    else:
        clips, background = read_features(args, is_task_split)
    results = {
        query: measure_cross_modality(clips, background, query, args.num_resamples, args.seed)
        for query in args.queries
    }
    if is_task_split:
        logger.warning("Rows of the task's own split: towers fine-tuned on AVE's train split have seen many of them.")
    if accelerator.is_main_process:
        show(results)
        rows = "of the task's own split" if is_task_split else "of the supervised split"
        content = {"split": args.split, "rows": rows, "unreadable_rows": unreadable, "queries": results}
        write_json(args.output or f"cross-modality-{args.split}.json", {**content, **describe_run(args, argv)})
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
