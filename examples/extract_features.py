"""Stage 2: encode each clip once with AudioCLIP's towers, or a composite encoder, and store the features.

What it reads: AudioCLIP (from stage 1, pretrained, or inside a localizer) and labelled videos of any length (`--data`:
AVE's layout, a table of your own videos, UnAV-100 and others), decoded in `--num_workers` processes while the encoder
works. Memory does not grow with the length of a video.
What it writes: one folder per split with features in safetensors shards and a manifest, see
`ave_clip.training.features`; the embeddings of the class names, if the encoder takes texts; and `results.json`. A run
that was stopped resumes. Clips that cannot be read are listed at the end, and the exit code is then 1;
`--retry_failed` tries them again when they are repaired.

    accelerate launch examples/extract_features.py --model stage1 --data AVE_Dataset --output_dir features
    python examples/extract_features.py --model stage1 --data annotations.csv --problem_type multi_label \
        --split_fractions 0.8 0.1 0.1 --output_dir features

On two processes of one machine without a GPU:

    torchrun --nproc_per_node 2 examples/extract_features.py --cpu --model stage1 --data AVE_Dataset \
        --output_dir features
"""

import argparse
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
from ave_clip.core.builtin_checkpoints import resolve_checkpoint
from ave_clip.core.label_encoder import LabelEncoder
from ave_clip.core.label_space import LabelSpace
from ave_clip.core.streaming import ahead
from ave_clip.core.text import counted
from ave_clip.core.video_source import VideoReadError
from ave_clip.data.builder import left_out_rows, problem_type_of
from ave_clip.data.splitting import SPLITS
from ave_clip.programs import exit_code, program, start_logging
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
    load_encoder,
    load_processor,
    towers_fingerprint,
)
from ave_clip.training.clips import ClipReader, clips_fingerprint
from ave_clip.training.feature_shards import BLOCK_SEGMENTS
from ave_clip.training.features import FeatureStoreError, FeatureWriter, collate_clips
from ave_clip.training.open_vocabulary import save_label_embeddings, unseen_of_data
from ave_clip.training.splits import class_names_of, open_videos

logger = get_logger("extract_features")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
LOG_SECONDS = 30
FRAME_SETTINGS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="AudioCLIP, composite encoder or localizer: folder or Hub id.")
    add_data_argument(parser, required=True)
    add_video_arguments(parser)
    parser.add_argument("--output_dir", required=True, help="Folder with one subfolder per split; one run at a time.")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, help="Default: all splits of the data set.")
    parser.add_argument("--num_frames_per_segment", type=int, default=16)
    parser.add_argument("--visual_feature_type", choices=("dense", "layer4", "pooled"), default="dense")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="Data type of the features on disk.")
    parser.add_argument("--rows_per_shard", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=1, help="Clips per batch; more can be faster on a GPU.")
    parser.add_argument("--max_clips", type=int, help="Use only the first clips of each split, for a trial run.")
    parser.add_argument("--retry_failed", action="store_true", help="Make shards with unreadable clips again.")
    parser.add_argument("--update", action="store_true", help="Make shards whose clips or labels changed again.")
    parser.add_argument("--verify", action="store_true", help="Read all shards and make damaged ones again.")
    parser.add_argument(
        "--resume", action="store_true", help="Accepted as in the other stages; this stage always resumes."
    )
    add_run_arguments(parser)
    parser.set_defaults(num_workers=2)
    args = parse_arguments(parser, argv)
    for name in ("batch_size", "rows_per_shard", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


class Progress:
    """Progress of this process: clips, rate, time left, and how long the encoder waited for decoded clips."""

    def __init__(self, total: int, is_shown: bool):
        self.total, self.done, self.waited = total, 0, 0.0
        self.started = self.logged = time.perf_counter()
        self.bar = tqdm(total=total, unit="clip", disable=None if is_shown else True)  # None: only on a terminal

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def wait(self, clips: Iterator[dict]) -> dict:
        """Return the next clip, and count the time until it is available as waiting."""
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
        rate, waited = self.done / self.seconds, self.waited / self.seconds
        return f"{self.done} of {self.total} clips, {rate:.2f} clips/s, {left} left, waited {waited:.0%} for decoding"


def build_encoder(args: argparse.Namespace, data):
    """Build a localizer with the towers, its processor, the model's description for the manifest, and embeddings."""
    encoder = load_encoder(args.model)
    features = next(iter(data.values())).features
    overrides = {"visual_feature_type": args.visual_feature_type, "problem_type": problem_type_of(features)}
    localizer = build_localizer(encoder, class_names_of(features), overrides)
    grid = (args.num_frames_per_segment, args.segment_seconds)
    processor = load_processor(args.model, encoder, *grid, localizer.config)
    config_file = cached_file(resolve_checkpoint(args.model), CONFIG_NAME)
    revision = extract_commit_hash(config_file, None)  # None for an ordinary folder
    model = {"name": args.model, "revision": revision, "config": localizer.config.encoder_config.to_dict()}
    embeddings = embed_labels(args.model, encoder, LabelSpace.of(localizer.config).event_names)
    return localizer.eval().optimize_for_inference(), processor, model, embeddings


def embed_labels(source: str, encoder, names: Sequence[str]) -> torch.Tensor | None:
    """Return the text embeddings of the class names; `None`, with a note in the log, if the encoder takes no texts."""
    try:
        return LabelEncoder.from_pretrained(source, encoder)(names)
    except (OSError, ValueError) as error:
        # An encoder without texts is no error here, so the library's words for it are shown to developers only.
        logger.debug("no label embeddings: %s", error)
        logger.info(
            "%s has no text tower or no tokenizer, so train_localizer.py cannot use --open_vocabulary with these "
            "features; everything else works.",
            source,
        )
        return None


def describe_settings(args: argparse.Namespace, localizer, processor, mixed_precision: str) -> dict:
    """Return the settings that determine the features; stores with other settings are not mixed."""
    frames, audio = processor.video_processor.to_dict(), processor.feature_extractor.to_dict()
    return {
        "encoder_fingerprint": towers_fingerprint(localizer),
        "visual_feature_type": args.visual_feature_type,
        "image_feature_size": localizer.config.resolved_image_feature_size,
        "audio_feature_size": localizer.config.resolved_audio_feature_size,
        "num_frames_per_segment": args.num_frames_per_segment,
        "segment_seconds": args.segment_seconds,
        "dtype": args.dtype,
        "mixed_precision": mixed_precision,
        "pictures": {name: frames.get(name) for name in FRAME_SETTINGS},
        "sound": {
            **{name: audio[name] for name in ("sampling_rate", "amplitude") if name in audio},
            **describe_encoder(localizer, processor),
        },
        "problem_type": localizer.config.problem_type,
        "id2label": {str(index): label for index, label in localizer.config.id2label.items()},
    }


def describe_encoder(localizer, processor) -> dict:
    """Return what identifies a composite encoder in addition to its weights, and how much audio it gets."""
    if not localizer.config.is_composite:
        return {}
    config = localizer.config.encoder_config
    names = ("vision_id", "vision_revision", "audio_id", "audio_revision")
    return {
        **{name: getattr(config, name) for name in names},
        "window_seconds": processor.window_seconds,
        "options": processor.audio_options,
    }


def describe_tools(processor) -> dict:
    """Return versions and methods of decoding and resizing for the manifest."""
    import av

    libraries = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    resize = Resampling(processor.video_processor.resample).name.lower()
    decoder = {"name": "PyAV", "version": av.__version__, "ffmpeg": libraries, "resize": f"{resize}, antialiased"}
    return {"ave_clip": ave_clip.__version__, "torch": torch.__version__, "decoder": decoder}


def open_splits(args: argparse.Namespace, data, settings: dict, processor) -> dict:
    """Return the writer and the clip reader of each split; frames stay integers until they are encoded."""
    splits = {}
    missing = [split for split in args.splits or () if split not in data]
    if missing:
        raise ValueError(f"{args.data} has the splits {sorted(data)}, but not {missing} of --splits.")
    for split in args.splits or (split for split in SPLITS if split in data):
        examples = data[split].select(range(min(len(data[split]), args.max_clips or len(data[split]))))
        reader = ClipReader(examples, processor, do_rescale=False, do_normalize=False)
        clips = {example["row"]: clips_fingerprint([example]) for example in examples}
        lengths = dict(zip(clips, reader.lengths))
        folder = Path(args.output_dir) / split
        writer = FeatureWriter(folder, settings, clips, args.rows_per_shard, describe_tools(processor), lengths)
        splits[split] = writer, reader
    return splits


def plan_shards(args: argparse.Namespace, accelerator: Accelerator, splits: dict) -> list[tuple[str, int]]:
    """Return split and number of the shards to make, which the main process decides before any is written."""
    plan: list[tuple[str, int]] = []
    if accelerator.is_main_process:
        for split, (writer, _) in splits.items():
            numbers = writer.plan(args.retry_failed, args.update, args.verify)
            logger.info("%s: %d of %d shards to make", split, len(numbers), len(writer.shards))
            plan += [(split, number) for number in numbers]
        for split, (writer, _) in splits.items():
            writer.remove_leftovers()
            if any(split == planned for planned, _ in plan):
                writer.withdraw_manifest()
    return broadcast_object_list([plan])[0]


def build_dataloader(args: argparse.Namespace, splits: dict, shards: Sequence[tuple[str, int]], pin: bool):
    """Build one loader for the clips of all these shards, so that decoding does not pause between shards.

    Long videos are not among them: they are decoded block by block while they are encoded.
    """
    places = {split: {row: place for place, row in enumerate(writer.clips)} for split, (writer, _) in splits.items()}
    parts = []
    for split, number in shards:
        writer, reader = splits[split]
        rows = [] if writer.is_long(number) else writer.shards[number]
        parts.append(Subset(reader, [places[split][row] for row in rows]))
    return DataLoader(ConcatDataset(parts), batch_size=None, num_workers=args.num_workers, pin_memory=pin)


@torch.no_grad()
def encode_batch(args: argparse.Namespace, accelerator: Accelerator, localizer, processor, clips: list[dict]):
    """Encode readable clips as one batch; returns image and audio features in the dtype on disk."""
    batch = collate_clips(clips)
    names = ("pixel_values", "input_values", "frame_mask", "segment_mask")
    pixel_values, *others = (batch[name].to(accelerator.device, non_blocking=True) for name in names)
    with accelerator.autocast():
        features = localizer.encode(pixel_values, *others, prepare_pixels=processor.video_processor.normalize_pixels)
    return [keep(tensor, args.dtype, batch["rows"].tolist()) for tensor in features]


def encode_clips(args: argparse.Namespace, accelerator: Accelerator, localizer, processor, reader, clips: list[dict]):
    """Encode readable clips as one batch; yields each as a row of the feature store."""
    kept = encode_batch(args, accelerator, localizer, processor, clips)
    for clip, image_features, audio_features in zip(clips, *kept):
        length, known = len(clip["labels"]), reader.truth[int(clip["row"])]
        features = {"image_features": image_features[:length], "audio_features": audio_features[:length]}
        yield {"row": clip["row"], "labels": clip["labels"], **known, **features}


def encode_long(args: argparse.Namespace, accelerator: Accelerator, localizer, processor, reader, place: int):
    """Decode and encode a long video block by block; yields the features of each block, and then forgets it."""
    row = torch.tensor(reader.examples[place]["row"])
    # A thread decodes the next block while this one is encoded.
    for block in ahead(reader.blocks(place, BLOCK_SEGMENTS)):
        clip = {"row": row, "labels": torch.zeros(len(block["frame_mask"]), dtype=torch.long), **block}
        image_features, audio_features = encode_batch(args, accelerator, localizer, processor, [clip])
        yield {"image_features": image_features[0], "audio_features": audio_features[0]}


def keep(features: torch.Tensor, dtype: str, rows: Sequence[int]) -> torch.Tensor:
    """Convert features to the dtype on disk.

    Raises:
        FeatureStoreError: if a value is not finite, or too large for that dtype.
    """
    kept = features.to("cpu", DTYPES[dtype])
    bad = ~kept.isfinite().flatten(1).all(dim=1)
    if bad.any():
        index = int(bad.nonzero()[0])
        largest = features[index].abs().max().item()
        raise FeatureStoreError(
            f"Row {rows[index]} has features up to {largest:g}, but {dtype} has finite values up to "
            f"{torch.finfo(DTYPES[dtype]).max:g}. Extract with --dtype float32 to another folder; if the value is nan "
            "or inf, the encoder itself failed (try --mixed_precision no)."
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
        writer, reader = splits[split]
        rows, encoded, failed = writer.shards[number], [], {}
        if writer.is_long(number):
            make_long_shard(args, accelerator, localizer, processor, writer, reader, number)
            progress.advance(1)
            continue
        for start in range(0, len(rows), args.batch_size):
            batch = [progress.wait(clips) for _ in rows[start : start + args.batch_size]]
            failed |= {int(clip["row"]): clip["error"] for clip in batch if "error" in clip}
            readable = [clip for clip in batch if "error" not in clip]
            if readable:
                encoded += encode_clips(args, accelerator, localizer, processor, reader, readable)
            progress.advance(len(batch))
        writer.write(number, encoded, failed)
    progress.bar.close()
    return progress


def make_long_shard(args, accelerator: Accelerator, localizer, processor, writer, reader, number: int) -> None:
    """Decode, encode and write the shard of one long video, or the reason why it cannot be read."""
    (row,) = writer.shards[number]
    place = list(writer.clips).index(row)
    example = reader.examples[place]
    clip = {"row": row, "labels": torch.tensor(example["labels"]), **reader.truth[row]}
    try:
        writer.write_long(number, clip, encode_long(args, accelerator, localizer, processor, reader, place))
    except VideoReadError as error:
        writer.write(number, [], {row: f"{example['video'].get('path')}: {error}"})


def finish(args, argv, accelerator: Accelerator, splits: dict, model: dict, shards: list, facts: list[dict]) -> dict:
    """Write manifests and `results.json`, and list failed clips; returns the summary of each split."""
    summary = {}
    for split, (writer, _) in splits.items():
        manifest = writer.finish(split, model)
        made = sum(split == planned for planned, _ in shards)
        clips = sum(len(shard["rows"]) for shard in manifest["shards"])
        # Left out by --on_missing.
        missing = [] if args.max_clips else left_out_rows(splits[split][1].examples).get(split, [])
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
        logger.warning(
            "Exit code 1 because %s failed; all other features are complete. Repair the clips and run again with "
            "--retry_failed.",
            counted(num_failed, "clip"),
        )
    following = f"train_localizer.py --model {args.model} --features_dir {args.output_dir} --output_dir LOCALIZER"
    logger.info("Wrote %s. Next: python examples/%s", args.output_dir, following)
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    start_logging()
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    with accelerator.main_process_first():
        data = open_videos(args.data, **video_options(args))
        localizer, processor, model, embeddings = build_encoder(args, data)
        settings = describe_settings(args, localizer, processor, accelerator.mixed_precision)
        unseen = unseen_of_data(data)
        settings |= {} if unseen is None else {"unseen_labels": unseen}
        splits = open_splits(args, data, settings, processor)
    localizer.to(accelerator.device)
    shards = plan_shards(args, accelerator, splits)
    with logging_redirect_tqdm():
        own = shards[accelerator.process_index :: accelerator.num_processes]
        progress = make_shards(args, accelerator, localizer, processor, splits, own)
    fact = {"clips": progress.done, "seconds": progress.seconds, "waited": progress.waited}
    facts = gather_object([fact])
    summary = None
    if accelerator.is_main_process:
        if embeddings is not None:
            names = LabelSpace.of(localizer.config).event_names
            save_label_embeddings(args.output_dir, names, embeddings, settings["encoder_fingerprint"])
        summary = finish(args, argv, accelerator, splits, model, shards, facts)
    return broadcast_object_list([summary])[0]


if __name__ == "__main__":
    with program():
        sys.exit(exit_code(sum(len(facts["failed"]) + len(facts["missing"]) for facts in main().values())))
