"""Stage 2: run AudioCLIP's towers once over every clip and keep what they say.

What it reads: AudioCLIP (from stage 1, pretrained, or inside a localizer) and videos in AVE's layout, decoded in
`--num_workers` processes while the encoder works.
What it writes: one folder per split with features in safetensors shards and a manifest, see
`ave_clip.training.features`, and `results.json`. A run that was stopped goes on where it was. Clips that cannot be
read are listed at the end, and the exit code is then 1; `--retry_failed` tries them again once they are repaired.

    accelerate launch examples/extract_features.py --model stage1 --data_dir AVE_Dataset --output_dir features

On two processes of one machine without a GPU:

    torchrun --nproc_per_node 2 examples/extract_features.py --cpu --model stage1 --data_dir AVE_Dataset \
        --output_dir features
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from PIL.Image import Resampling
from torch.utils.data import ConcatDataset, DataLoader, Subset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

import ave_clip
from ave_clip.categories import labels_with_background
from ave_clip.data import load_ave
from ave_clip.data.source import read_source
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
    towers_fingerprint,
)
from ave_clip.training.clips import ClipReader, clips_fingerprint
from ave_clip.training.features import FeatureStoreError, FeatureWriter, collate_clips

logger = get_logger("extract_features")
SPLITS = ("train", "validation", "test")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
LOG_SECONDS = 30
PICTURE_SETTINGS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="AudioCLIP, or a localizer: folder or Hub id.")
    parser.add_argument("--data_dir", required=True, help="Videos in AVE's layout.")
    add_missing_argument(parser)
    parser.add_argument("--output_dir", required=True, help="Gets one folder per split; one run at a time.")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, help="All that the data set has, by default.")
    parser.add_argument("--num_frames_per_segment", type=int, default=16)
    parser.add_argument("--segment_seconds", type=float, default=1.0, help="1, as the labels are of seconds.")
    parser.add_argument("--visual_feature_type", choices=("dense", "layer4", "pooled"), default="dense")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="Of the features on disk.")
    parser.add_argument("--rows_per_shard", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=1, help="Clips encoded at once; more may help a GPU.")
    parser.add_argument("--max_clips", type=int, help="Only the first clips of each split, for a trial.")
    parser.add_argument("--retry_failed", action="store_true", help="Make shards with unreadable clips again.")
    parser.add_argument("--update", action="store_true", help="Make shards whose clips or labels changed again.")
    parser.add_argument("--verify", action="store_true", help="Read all shards, make damaged ones again.")
    parser.add_argument("--resume", action="store_true", help="As in the other stages; here it is always so.")
    add_run_arguments(parser)
    parser.set_defaults(num_workers=2)
    args = parse_arguments(parser, argv)
    for name in ("batch_size", "rows_per_shard", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


class Progress:
    """Clips done by this process, their rate, the time left, and how long the encoder waited for decoded clips."""

    def __init__(self, total: int, is_shown: bool):
        self.total, self.done, self.waited = total, 0, 0.0
        self.started = self.logged = time.perf_counter()
        self.bar = tqdm(total=total, unit="clip", disable=None if is_shown else True)  # None: only on a terminal

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def wait(self, clips: Iterator[dict]) -> dict:
        """Take the next clip; the time until it comes counts as waiting."""
        started = time.perf_counter()
        clip = next(clips)
        self.waited += time.perf_counter() - started
        return clip

    def advance(self, num_clips: int) -> None:
        self.done += num_clips
        self.bar.update(num_clips)
        if time.perf_counter() - self.logged > LOG_SECONDS or self.done == self.total:
            self.logged = time.perf_counter()
            logger.info("%s", self)

    def __str__(self) -> str:
        left = timedelta(seconds=round((self.total - self.done) * self.seconds / max(1, self.done)))
        rate, share = self.done / self.seconds, self.waited / self.seconds
        return f"{self.done} of {self.total} clips, {rate:.2f} clips/s, {left} left, waited {share:.0%} for decoding"


def build_encoder(args: argparse.Namespace):
    """A localizer that holds the towers, its processor, and what the manifest says about the model."""
    encoder = load_encoder(args.model)
    config = audioclip_config(encoder)
    categories = read_source(args.data_dir).categories
    overrides = {"visual_feature_type": args.visual_feature_type}
    localizer = build_localizer(encoder, labels_with_background(categories), overrides)
    extractor = load_feature_extractor(args.model, config)
    grid = (args.num_frames_per_segment, args.segment_seconds)
    processor = build_processor(config, extractor, *grid, localizer.config)
    revision = extract_commit_hash(cached_file(args.model, CONFIG_NAME), None)  # None for an ordinary folder
    model = {"name": args.model, "revision": revision, "config": localizer.config.audioclip_config.to_dict()}
    return localizer.eval().optimize_for_inference(), processor, model


def describe_settings(args: argparse.Namespace, localizer, processor, mixed_precision: str) -> dict:
    """What makes the features: whatever changes here makes another store."""
    pictures, sound = processor.video_processor.to_dict(), processor.feature_extractor.to_dict()
    return {
        "encoder_fingerprint": towers_fingerprint(localizer),
        "visual_feature_type": args.visual_feature_type,
        "image_feature_size": localizer.config.resolved_image_feature_size,
        "audio_feature_size": localizer.config.resolved_audio_feature_size,
        "num_frames_per_segment": args.num_frames_per_segment,
        "segment_seconds": args.segment_seconds,
        "dtype": args.dtype,
        "mixed_precision": mixed_precision,
        "pictures": {name: pictures.get(name) for name in PICTURE_SETTINGS},
        "sound": {name: sound[name] for name in ("sampling_rate", "amplitude")},
        "id2label": {str(index): label for index, label in localizer.config.id2label.items()},
    }


def describe_tools(processor) -> dict:
    """What decoded and resized; kept in the manifest."""
    import av

    libraries = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    resize = Resampling(processor.video_processor.resample).name.lower()
    decoder = {"name": "PyAV", "version": av.__version__, "ffmpeg": libraries, "resize": f"{resize}, antialiased"}
    return {"ave_clip": ave_clip.__version__, "torch": torch.__version__, "decoder": decoder}


def open_splits(args: argparse.Namespace, settings: dict, processor) -> dict[str, tuple[FeatureWriter, ClipReader]]:
    """The writer of each split, and the reader of its clips: frames stay whole numbers until they are encoded."""
    data, splits = load_ave(args.data_dir, on_missing=args.on_missing), {}
    lacking = [split for split in args.splits or () if split not in data]
    if lacking:
        raise ValueError(f"{args.data_dir} has the splits {sorted(data)}, but --splits asks for {lacking}, too.")
    for split in args.splits or (split for split in SPLITS if split in data):
        examples = data[split].select(range(min(len(data[split]), args.max_clips or len(data[split]))))
        clips = {example["row"]: clips_fingerprint([example]) for example in examples}
        folder = Path(args.output_dir) / split
        writer = FeatureWriter(folder, settings, clips, args.rows_per_shard, describe_tools(processor))
        splits[split] = writer, ClipReader(examples, processor, do_rescale=False, do_normalize=False)
    return splits


def plan_shards(args: argparse.Namespace, accelerator: Accelerator, splits: dict) -> list[tuple[str, int]]:
    """The shards to be made, by split and number; decided by the main process before any is written."""
    plan: list = [None]
    if accelerator.is_main_process:
        plan = [[]]
        for split, (writer, _) in splits.items():
            numbers = writer.plan(args.retry_failed, args.update, args.verify)
            logger.info("%s: %d of %d shards to make", split, len(numbers), len(writer.shards))
            plan[0] += [(split, number) for number in numbers]
        for split, (writer, _) in splits.items():
            writer.remove_leftovers()
            if any(split == planned for planned, _ in plan[0]):
                writer.withdraw_manifest()
    return broadcast_object_list(plan)[0]


def build_dataloader(args: argparse.Namespace, splits: dict, shards: Sequence[tuple[str, int]], pin: bool):
    """The clips of these shards one after the other, so that decoding never pauses between shards."""
    places = {split: {row: place for place, row in enumerate(writer.clips)} for split, (writer, _) in splits.items()}
    parts = []
    for split, number in shards:
        writer, reader = splits[split]
        parts.append(Subset(reader, [places[split][row] for row in writer.shards[number]]))
    return DataLoader(ConcatDataset(parts), batch_size=None, num_workers=args.num_workers, pin_memory=pin)


@torch.no_grad()
def encode_clips(args: argparse.Namespace, accelerator: Accelerator, localizer, processor, clips: list[dict]):
    """Encode readable clips together; each one's features in the dtype they are kept in."""
    batch = collate_clips(clips)
    names = ("pixel_values", "input_values", "frame_mask", "segment_mask")
    pixel_values, *others = (batch[name].to(accelerator.device, non_blocking=True) for name in names)
    with accelerator.autocast():
        features = localizer.encode(pixel_values, *others, prepare_pixels=processor.video_processor.normalize_pixels)
    kept = [keep(tensor, args.dtype, batch["rows"].tolist()) for tensor in features]
    for clip, image_features, audio_features in zip(clips, *kept):
        length = len(clip["labels"])
        features = {"image_features": image_features[:length], "audio_features": audio_features[:length]}
        yield {"row": clip["row"], "labels": clip["labels"], **features}


def keep(features: torch.Tensor, dtype: str, rows: Sequence[int]) -> torch.Tensor:
    """Bring features to the dtype on disk.

    Raises:
        FeatureStoreError: where one is not finite, or too large for that dtype.
    """
    kept = features.to("cpu", DTYPES[dtype])
    bad = ~kept.isfinite().flatten(1).all(dim=1)
    if bad.any():
        index = int(bad.nonzero()[0])
        largest = features[index].abs().max().item()
        raise FeatureStoreError(
            f"Row {rows[index]} has features up to {largest:g}, but {dtype} holds finite values up to "
            f"{torch.finfo(DTYPES[dtype]).max:g}. Extract with --dtype float32 to another folder; if the value is nan "
            "or inf, the encoder itself is at fault (try --mixed_precision no)."
        )
    return kept


def make_shards(args, accelerator: Accelerator, localizer, processor, splits: dict, shards: list) -> Progress:
    """Decode, encode and write this process's shards."""
    total = sum(len(splits[split][0].shards[number]) for split, number in shards)
    progress = Progress(total, accelerator.is_main_process)
    if not shards:
        return progress
    clips = iter(build_dataloader(args, splits, shards, accelerator.device.type == "cuda"))
    for split, number in shards:
        writer = splits[split][0]
        rows, encoded, failed = writer.shards[number], [], {}
        for start in range(0, len(rows), args.batch_size):
            batch = [progress.wait(clips) for _ in rows[start : start + args.batch_size]]
            failed |= {int(clip["row"]): clip["error"] for clip in batch if "error" in clip}
            readable = [clip for clip in batch if "error" not in clip]
            if readable:
                encoded += encode_clips(args, accelerator, localizer, processor, readable)
            progress.advance(len(batch))
        writer.write(number, encoded, failed)
    progress.bar.close()
    return progress


def finish(args, argv, accelerator: Accelerator, splits: dict, model: dict, shards: list, facts: list[dict]) -> dict:
    """Write manifests and `results.json`, list what failed; returns the summary of each split."""
    summary, all_rows = {}, read_source(args.data_dir).splits
    for split, (writer, _) in splits.items():
        manifest = writer.finish(split, model)
        made = sum(split == planned for planned, _ in shards)
        clips = sum(len(shard["rows"]) for shard in manifest["shards"])
        missing = (
            [] if args.max_clips else sorted(set(all_rows[split]) - set(writer.clips))
        )  # left out by --on_missing
        summary[split] = {"clips": clips, "failed": manifest["failed"], "missing": missing}
        summary[split] |= {"shards": len(writer.shards), "made": made}
    seconds, clips = max(fact["seconds"] for fact in facts), sum(fact["clips"] for fact in facts)
    speed = {
        "clips_encoded": clips,
        "seconds": round(seconds, 1),
        "clips_per_second": clips / seconds,
        "waited_share": sum(fact["waited"] for fact in facts) / sum(fact["seconds"] for fact in facts),
        "num_processes": accelerator.num_processes,
    }
    num_failed = sum(len(facts["failed"]) + len(facts["missing"]) for facts in summary.values())
    results = {"complete": not num_failed, "num_failed": num_failed, "splits": summary, **speed}
    write_json(Path(args.output_dir) / "results.json", {**results, **describe_run(args, argv)})
    for split, facts in summary.items():
        for row, reason in facts["failed"].items():
            logger.warning("%s: row %s could not be read: %s", split, row, reason)
        if facts["missing"]:
            logger.warning("%s: rows %s have no video", split, facts["missing"])
    if num_failed:
        logger.warning("%d clips lack features. Repair them and run again with --retry_failed.", num_failed)
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    with accelerator.main_process_first():
        localizer, processor, model = build_encoder(args)
        settings = describe_settings(args, localizer, processor, accelerator.mixed_precision)
        splits = open_splits(args, settings, processor)
    localizer.to(accelerator.device)
    shards = plan_shards(args, accelerator, splits)
    with logging_redirect_tqdm():
        own = shards[accelerator.process_index :: accelerator.num_processes]
        progress = make_shards(args, accelerator, localizer, processor, splits, own)
    fact = {"clips": progress.done, "seconds": progress.seconds, "waited": progress.waited}
    facts = gather_object([fact])
    summary = [None]
    if accelerator.is_main_process:
        summary = [finish(args, argv, accelerator, splits, model, shards, facts)]
    return broadcast_object_list(summary)[0]


if __name__ == "__main__":
    sys.exit(any(facts["failed"] or facts["missing"] for facts in main().values()))
