"""Stage 2: run AudioCLIP's towers once over every clip and keep what they say.

What it reads: AudioCLIP (from stage 1, pretrained, or inside a localizer) and videos in AVE's layout, decoded in
`--num_workers` processes.
What it writes: one folder per split with features in safetensors shards and a manifest, see
`ave_clip.training.features`. A run that was stopped goes on where it was. Clips that cannot be read are listed at the
end, and the exit code is then 1.

    accelerate launch examples/extract_features.py --model stage1 --data_dir AVE_Dataset --output_dir features
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.utils.data import DataLoader, Subset

from ave_clip.categories import labels_with_background
from ave_clip.data import load_ave
from ave_clip.training.arguments import (
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
    towers_fingerprint,
)
from ave_clip.training.clips import ClipReader, clips_fingerprint
from ave_clip.training.features import FeatureWriter

logger = get_logger("extract_features")
SPLITS = ("train", "validation", "test")
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="AudioCLIP, or a localizer: folder or Hub id.")
    parser.add_argument("--data_dir", required=True, help="Videos in AVE's layout.")
    parser.add_argument("--output_dir", required=True, help="Gets one folder per split.")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--num_frames_per_segment", type=int, default=16)
    parser.add_argument("--segment_seconds", type=float, default=1.0)
    parser.add_argument("--visual_feature_type", choices=("dense", "layer4", "pooled"), default="dense")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="Of the features on disk.")
    parser.add_argument("--rows_per_shard", type=int, default=64)
    parser.add_argument("--max_clips", type=int, help="Only the first clips of each split, for a trial.")
    add_run_arguments(parser)
    return parse_arguments(parser, argv)


def build_dataloaders(args: argparse.Namespace, processor, writer: FeatureWriter, examples, accelerator: Accelerator):
    """One loader per shard that is still to be made, dealt out over the processes; each clip is one batch."""
    place = {row: index for index, row in enumerate(examples["row"])}
    reader = ClipReader(examples, processor)
    for shard, rows in enumerate(writer.shards):
        if shard % accelerator.num_processes == accelerator.process_index and not writer.is_done(shard):
            clips = Subset(reader, [place[row] for row in rows])
            yield shard, DataLoader(clips, batch_size=None, num_workers=args.num_workers)


@torch.no_grad()
def extract_clip(localizer, clip: dict, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Encode one clip; its features in the dtype they are kept in."""
    pixel_values, input_values, frame_mask = (
        clip[name].unsqueeze(0).to(device) for name in ("pixel_values", "input_values", "frame_mask")
    )
    image_features, audio_features = localizer.encode(pixel_values, input_values, frame_mask)
    features = {"image_features": image_features[0], "audio_features": audio_features[0]}
    return {
        "row": clip["row"],
        "labels": clip["labels"],
        **{name: value.to("cpu", dtype) for name, value in features.items()},
    }


def extract_split(args: argparse.Namespace, split: str, localizer, processor, accelerator: Accelerator) -> dict:
    """Make the missing shards of a split and then its manifest, which is returned."""
    examples = load_ave(args.data_dir, split=f"{split}[:{args.max_clips}]" if args.max_clips else split)
    description = describe(args, localizer, examples)
    writer = FeatureWriter(Path(args.output_dir) / split, description, examples["row"], args.rows_per_shard)
    started, done = time.perf_counter(), 0
    for shard, loader in build_dataloaders(args, processor, writer, examples, accelerator):
        clips, failed = [], {}
        for clip in loader:
            if "error" in clip:
                failed[int(clip["row"])] = clip["error"]
            else:
                clips.append(extract_clip(localizer, clip, accelerator.device, DTYPES[args.dtype]))
        writer.write(shard, clips, failed)
        done += len(clips)
        rate = done / (time.perf_counter() - started)
        logger.info("%s: shard %d of %d, %.1f clips/s", split, shard + 1, len(writer.shards), rate)
    accelerator.wait_for_everyone()
    manifest = writer.finish(split) if accelerator.is_main_process else {}
    accelerator.wait_for_everyone()
    return manifest


def describe(args: argparse.Namespace, localizer, examples) -> dict:
    """What makes the features: whatever changes here makes another store."""
    return {
        "encoder_fingerprint": towers_fingerprint(localizer),
        "clips_fingerprint": clips_fingerprint(examples),
        "visual_feature_type": args.visual_feature_type,
        "image_feature_size": localizer.config.resolved_image_feature_size,
        "audio_feature_size": localizer.config.resolved_audio_feature_size,
        "num_frames_per_segment": args.num_frames_per_segment,
        "segment_seconds": args.segment_seconds,
        "dtype": args.dtype,
        "id2label": {str(index): label for index, label in localizer.config.id2label.items()},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    encoder = load_encoder(args.model)
    categories = load_ave(args.data_dir, split=args.splits[0]).features["category"].names
    id2label = labels_with_background(categories)
    localizer = build_localizer(encoder, id2label, {"visual_feature_type": args.visual_feature_type})
    localizer.to(accelerator.device).eval()
    processor = build_processor(
        audioclip_config(encoder),
        load_feature_extractor(args.model, audioclip_config(encoder)),
        args.num_frames_per_segment,
        args.segment_seconds,
        localizer.config,
    )
    started = time.perf_counter()
    manifests = {split: extract_split(args, split, localizer, processor, accelerator) for split in args.splits}
    if not accelerator.is_main_process:
        return {}
    summary = {
        split: {"clips": sum(len(shard["rows"]) for shard in manifest["shards"]), "failed": manifest["failed"]}
        for split, manifest in manifests.items()
    }
    seconds = round(time.perf_counter() - started, 1)
    write_json(Path(args.output_dir) / "results.json", {"splits": summary, "seconds": seconds, **describe_run(args)})
    for split, facts in summary.items():
        for row, reason in facts["failed"].items():
            logger.warning("%s: row %s could not be read: %s", split, row, reason)
    return summary


if __name__ == "__main__":
    sys.exit(any(facts["failed"] for facts in main().values()))
