"""Measure a localizer on labelled videos, the whole way: video files in, events after post-processing out.

What it reads: a localizer with its processor, and videos in AVE's layout.
What it writes: every measure of `ave_clip.training.metrics` for each decoder, as JSON; prints the main ones.

    accelerate launch examples/evaluate_localizer.py --model localizer --data_dir AVE_Dataset --split test
"""

import argparse
import logging
from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.utils.data import DataLoader

import ave_clip
from ave_clip import AVEClipForLocalization, AVEClipProcessor
from ave_clip.data import load_ave
from ave_clip.events import DECODERS
from ave_clip.training.arguments import (
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    write_json,
)
from ave_clip.training.clips import ClipReader
from ave_clip.training.features import collate_clips
from ave_clip.training.prediction import measure_decoders, predict_clips

logger = get_logger("evaluate_localizer")
COLUMNS = {
    "segment_accuracy": "accuracy",
    "background_recall": "bg recall",
    "background_precision": "bg precision",
    "segment_f1": "segment F1",
    "event_f1": "event F1",
    "video_accuracy": "video acc.",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ave_clip.DEFAULT_CHECKPOINT, help="Localizer: folder or Hub id.")
    parser.add_argument("--data_dir", required=True, help="Videos in AVE's layout.")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--output", help="JSON file; ./evaluation-SPLIT.json by default.")
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--min_event_segments", type=int, help="The model's own by default.")
    parser.add_argument("--batch_size", type=int, default=4, help="Clips per process.")
    parser.add_argument("--max_clips", type=int, help="Only the first clips, for a trial.")
    add_run_arguments(parser)
    return parse_arguments(parser, argv)


def build_dataloaders(args: argparse.Namespace, processor: AVEClipProcessor, id2label: dict[int, str]) -> DataLoader:
    """The clips of the split, decoded as they are asked for."""
    split = f"{args.split}[:{args.max_clips}]" if args.max_clips else args.split
    examples = load_ave(args.data_dir, split=split)
    categories = examples.features["category"].names
    known = [id2label[index] for index in range(len(id2label) - 1)]
    if categories != known:
        raise ValueError(
            f"The data set has the {len(categories)} categories {categories}, the model {len(known)}: {known}. "
            "They must be the same, in the same order."
        )
    return DataLoader(
        ClipReader(examples, processor), args.batch_size, collate_fn=collate_clips, num_workers=args.num_workers
    )


def evaluate(args, accelerator: Accelerator, localizer, loader: DataLoader) -> tuple[dict[str, dict], int]:
    """Run over the split; the measures of each decoder, and how many clips could not be read."""
    shortest = args.min_event_segments or accelerator.unwrap_model(localizer).config.min_event_segments
    probabilities, labels, rows = predict_clips(accelerator, localizer, loader)
    missing = len(loader.dataset) - len(rows)
    if missing:
        logger.warning("%d of %d clips could not be read and count nowhere.", missing, len(loader.dataset))
    return measure_decoders(probabilities, labels, shortest, args.decoders), missing


def show(results: dict[str, dict]) -> None:
    """Print the main measures of each decoder."""
    print(" ".join([f"{'decoder':<14}", *(f"{title:>13}" for title in COLUMNS.values())]))
    for decoder, metrics in results.items():
        print(" ".join([f"{decoder:<14}", *(f"{metrics[name]:>13.4f}" for name in COLUMNS)]))
    points = next(iter(results.values()))["reference_points"]
    print(
        f"Localising nothing scores: {points['never_background']:.4f} with the right class everywhere, "
        f"{points['all_background']:.4f} with background everywhere."
    )


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    localizer = AVEClipForLocalization.from_pretrained(args.model)
    processor = AVEClipProcessor.from_pretrained(args.model)
    loader = build_dataloaders(args, processor, localizer.config.id2label)
    localizer, loader = accelerator.prepare(localizer, loader)
    results, missing = evaluate(args, accelerator, localizer, loader)
    if accelerator.is_main_process:
        show(results)
        content = {"split": args.split, "unreadable": missing, "decoders": results, **describe_run(args, argv)}
        write_json(args.output or f"evaluation-{args.split}.json", content)
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
