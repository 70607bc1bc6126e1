"""Measure localizers on a labelled split under several decoders.

What it reads: one localizer, or several that differ in their seed, and one of
- videos in AVE's layout (`--data_dir`): the whole way, video files in, events after post-processing out;
- features of stage 2 (`--features_dir`), by the same towers;
- the h5 files of other publications (`--h5_dir`), for a localizer that was trained on them.

What it writes: every measure of `ave_clip.training.metrics` for each decoder, with bootstrap intervals over the videos
and, for several localizers, mean and deviation, as JSON; prints the main ones as a table.

    accelerate launch examples/evaluate_localizer.py --model localizer --data_dir AVE_Dataset --split test
    python examples/evaluate_localizer.py --model seed0 seed1 seed2 --features_dir features --table markdown
    python examples/evaluate_localizer.py --model localizer --features_dir features --min_event_segments 1 2 3 4 5
    torchrun --nproc_per_node 2 examples/evaluate_localizer.py --cpu --model localizer --data_dir AVE_Dataset
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.utils.data import Dataset, Subset
from transformers import AutoConfig

import ave_clip
from ave_clip import AVEClipConfig, AVEClipForLocalization, AVEClipProcessor
from ave_clip.data import load_ave
from ave_clip.data.annotations import IGNORED_LABEL
from ave_clip.training.arguments import (
    add_missing_argument,
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    write_json,
)
from ave_clip.training.checkpoints import towers_fingerprint
from ave_clip.training.clips import ClipReader
from ave_clip.training.evaluation import (
    EVALUATION_DECODERS,
    SplitPredictions,
    best_test_epoch,
    choose_decoders,
    measure_settings,
    predict_split,
    render_table,
    result_rows,
    state_reference_points,
    summary_rows,
)
from ave_clip.training.features import FeatureStore
from ave_clip.training.metrics import summarize_runs
from ave_clip.training.splits import H5Splits

logger = get_logger("evaluate_localizer")
RESULTS_FILE = "results.json"  # of a training run, beside its localizer


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", default=[ave_clip.DEFAULT_CHECKPOINT], help="Localizers: folders or Hub ids."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_dir", help="Videos in AVE's layout.")
    source.add_argument("--features_dir", help="Output of stage 2.")
    source.add_argument("--h5_dir", help="Folder of audio_feature.h5 and visual_feature.h5.")
    parser.add_argument("--annotations_dir", help="With --h5_dir: where Annotations.txt lies; the same folder if not.")
    parser.add_argument("--visual_file", default="visual_feature.h5", help="With --h5_dir.")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--output", help="JSON file; ./evaluation-SPLIT.json by default.")
    parser.add_argument("--table", choices=("text", "markdown"), default="text", help="Style of what is printed.")
    parser.add_argument("--decoders", nargs="+", choices=EVALUATION_DECODERS, help="All that the model allows if not.")
    parser.add_argument(
        "--min_event_segments", type=int, nargs="+", help="Shortest events to compare; the model's own by default."
    )
    parser.add_argument("--num_resamples", type=int, default=1000, help="Of the bootstrap; 0 for no intervals.")
    parser.add_argument("--batch_size", type=int, default=4, help="Clips per process.")
    parser.add_argument("--max_clips", type=int, help="Only the first clips, for a trial.")
    add_missing_argument(parser)
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    if len(set(args.model)) < len(args.model):
        parser.error(f"--model names a localizer twice: {args.model}")
    for name in ("batch_size", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.min_event_segments and min(args.min_event_segments) < 1:
        parser.error(f"--min_event_segments are numbers of segments from 1, got {args.min_event_segments}")
    return args


def load_localizer(name: str) -> AVEClipForLocalization:
    """Load a localizer.

    Raises:
        ValueError: where the checkpoint is another model.
    """
    found = AutoConfig.from_pretrained(name).model_type
    if found != AVEClipConfig.model_type:
        raise ValueError(
            f"{name} is a checkpoint of {found!r}, but a localizer ({AVEClipConfig.model_type!r}) is measured here. "
            "Train one with train_localizer.py."
        )
    return AVEClipForLocalization.from_pretrained(name)


def load_processor(name: str) -> AVEClipProcessor:
    """Load a localizer's processor.

    Raises:
        ValueError: where it has none.
    """
    try:
        return AVEClipProcessor.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"{name} has no processor, which reads the videos of --data_dir ({error}). Save one beside the localizer "
            "(processor.save_pretrained), or measure on features: --features_dir or --h5_dir."
        ) from error


def time_grid(name: str) -> dict[str, Any]:
    """How a localizer's processor cuts videos; nothing where it has none."""
    try:
        video_processor = load_processor(name).video_processor
    except ValueError:
        return {}
    return {key: getattr(video_processor, key) for key in ("num_frames_per_segment", "segment_seconds")}


def event_names(id2label: dict[int, str]) -> list[str]:
    """The classes in order, without background, the last."""
    return [id2label[index] for index in range(len(id2label) - 1)]


def check_categories(found: Sequence[str], localizer: AVEClipForLocalization) -> None:
    """Make sure that data set and model count the same classes.

    Raises:
        ValueError: where they do not.
    """
    known = event_names(localizer.config.id2label)
    if list(found) != known:
        raise ValueError(
            f"The data set has the {len(found)} categories {list(found)}, the model {len(known)}: {known}. "
            "They must be the same, in the same order."
        )


def open_clips(args: argparse.Namespace, name: str, localizer: AVEClipForLocalization) -> Dataset:
    """The clips of the split, read as they are asked for.

    Raises:
        ValueError: where the split has no labels, other categories, or was made by other towers.
    """
    if args.data_dir:
        return open_videos(args, name, localizer)
    if args.features_dir:
        clips = FeatureStore(Path(args.features_dir) / args.split)
        clips.check_labels()
        clips.check_encoder(towers_fingerprint(localizer))
        id2label = {int(index): label for index, label in clips.manifest["id2label"].items()}
        check_categories(event_names(id2label), localizer)
        grid = {key: value for key, value in time_grid(name).items() if key in clips.manifest}
        clips.check_settings(visual_feature_type=localizer.config.visual_feature_type, **grid)
    else:
        splits = H5Splits(args.h5_dir, annotations_dir=args.annotations_dir, visual_file=args.visual_file)
        check_categories(event_names(splits.id2label), localizer)
        clips = splits.open(args.split)
        if clips is None:
            raise ValueError(f"{args.h5_dir} has no {args.split} split, only {list(splits.splits)}.")
    return Subset(clips, range(min(args.max_clips, len(clips)))) if args.max_clips else clips


def open_videos(args: argparse.Namespace, name: str, localizer: AVEClipForLocalization) -> ClipReader:
    """The videos of the split, as `open_clips`."""
    processor = load_processor(name)
    part = f"{args.split}[:{args.max_clips}]" if args.max_clips else args.split
    examples = load_ave(args.data_dir, split=part, on_missing=args.on_missing)
    check_categories(examples.features["category"].names, localizer)
    if all(label == IGNORED_LABEL for labels in examples["labels"] for label in labels):
        raise ValueError(f"The {args.split} split of {args.data_dir} has no labels, so nothing can be measured.")
    return ClipReader(examples, processor)


def evaluate(
    args: argparse.Namespace, accelerator: Accelerator, name: str
) -> tuple[dict[str, dict], SplitPredictions]:
    """Run one localizer over the split; its measures by decoder, and what it predicted."""
    localizer = load_localizer(name)
    clips = open_clips(args, name, localizer)
    has_gate = localizer.config.use_event_attention
    decoders = choose_decoders(args.decoders, has_gate)
    shortest = list(dict.fromkeys(args.min_event_segments or [localizer.config.min_event_segments]))
    localizer = accelerator.prepare_model(localizer, evaluation_mode=True)
    predictions = predict_split(accelerator, localizer, clips, args.batch_size, args.num_workers)
    if args.features_dir:  # stage 2 may have left rows out
        predictions.unreadable |= FeatureStore(Path(args.features_dir) / args.split).failed
    num_clips = len(predictions.rows) + len(predictions.unreadable)
    if predictions.unreadable:
        logger.warning("%d of %d clips could not be read and count nowhere:", len(predictions.unreadable), num_clips)
        for row, reason in predictions.unreadable.items():
            logger.warning("row %d: %s", row, reason)
    return measure_settings(predictions, decoders, shortest, args.num_resamples), predictions


def find_best_test_epoch(name: str) -> dict[str, float] | None:
    """What the training run that made a localizer says about its test split, where it looked at it every epoch."""
    path = Path(name) / RESULTS_FILE
    history = json.loads(path.read_text(encoding="utf-8")).get("history", []) if path.is_file() else []
    return best_test_epoch(history)


def summarize(args: argparse.Namespace, models: dict[str, dict[str, dict]]) -> dict[str, Any]:
    """What the results file says: measures by decoder of the one model, or of each and their mean and deviation."""
    first = next(iter(models.values()))
    points = next(iter(first.values()))["reference_points"]
    content = {"reference_points": {**points, "statement": state_reference_points(points)}}
    if len(models) == 1:
        content["decoders"] = first
    else:
        shared = [setting for setting in first if all(setting in results for results in models.values())]
        summary = {setting: summarize_runs([results[setting] for results in models.values()]) for setting in shared}
        content |= {"models": models, "summary": {"count": len(models), "metrics": summary}}
    best = {name: find_best_test_epoch(name) for name in models} if args.split == "test" else {}
    if any(best.values()):
        content["best_test_epoch"] = {name: epoch for name, epoch in best.items() if epoch}
    return content


def show(content: dict[str, Any], models: dict[str, dict[str, dict]], style: str) -> None:
    """Print the main measures, and what to read them against."""
    short = {name: Path(name).name for name in models}
    titles = short if len(set(short.values())) == len(short) else {name: name for name in models}
    rows = [row for name, results in models.items() for row in result_rows(titles[name], results)]
    if "summary" in content:
        rows += summary_rows(content["summary"]["metrics"])
    print(render_table(rows, style))
    print(f"\n{content['reference_points']['statement']}")
    for name, best in content.get("best_test_epoch", {}).items():
        print(
            f"Best test epoch of {name}, chosen on the test split itself and so too high: "
            f"{best['segment_accuracy']:.2%} at epoch {best['epoch']}."
        )


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Returns measures by decoder: of the one model, or mean and deviation over several."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    models, unreadable = {}, {}
    for name in args.model:
        models[name], predictions = evaluate(args, accelerator, name)
        unreadable |= predictions.unreadable
    content = summarize(args, models)
    if accelerator.is_main_process:
        show(content, models, args.table)
        facts = {"split": args.split, "unreadable": len(unreadable), "unreadable_rows": unreadable}
        facts["num_processes"] = accelerator.num_processes
        write_json(args.output or f"evaluation-{args.split}.json", {**facts, **content, **describe_run(args, argv)})
    accelerator.end_training()
    return content["decoders"] if len(models) == 1 else content["summary"]["metrics"]


if __name__ == "__main__":
    main()
