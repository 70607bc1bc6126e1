"""Stage 3: train the localizer on the features of stage 2 (or on raw clips, with frozen towers).

What it learns: for every segment, the event that is both seen and heard, or background (hybrid loss, eq. 17).
What it reads: stage 2's `--features_dir` with the `--model` that made them, or `--data_dir` with videos in AVE's
layout.
What it writes: the localizer that is best on the validation split, with its processor and `results.json`. The test
split, where there is one, is opened once, at the end.

    accelerate launch examples/train_localizer.py --model stage1 --features_dir features --output_dir localizer

Without arguments it makes synthetic clips, encodes them with the towers of the checkpoint that ships with the package,
and trains on those.
"""

import argparse
import copy
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch.utils.data import DataLoader, Dataset

import ave_clip
from ave_clip import AVEClipConfig, AVEClipProcessor
from ave_clip.categories import labels_with_background
from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training.arguments import (
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    parse_overrides,
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
from ave_clip.training.clips import ClipReader
from ave_clip.training.features import FeatureStore, collate_clips
from ave_clip.training.metrics import segment_accuracy
from ave_clip.training.prediction import measure_decoders, predict_clips

logger = get_logger("train_localizer")
SYNTHETIC_FOLDER = Path.home() / ".cache" / "ave_clip" / "synthetic"
NUM_SYNTHETIC = 400


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=ave_clip.DEFAULT_CHECKPOINT, help="AudioCLIP, or a localizer for its towers."
    )
    parser.add_argument("--features_dir", help="Output of stage 2; synthetic features without this and --data_dir.")
    parser.add_argument("--data_dir", help="Videos in AVE's layout, to train on raw clips.")
    parser.add_argument("--output_dir", default="localizer", help="Where the best localizer goes.")
    parser.add_argument("--localizer", nargs="*", default=[], metavar="FIELD=VALUE", help="Fields of AVEClipConfig.")
    parser.add_argument("--num_frames_per_segment", type=int, default=16, help="With --data_dir.")
    parser.add_argument("--segment_seconds", type=float, default=1.0, help="With --data_dir.")
    parser.add_argument("--blank_modality", choices=("audio", "video"), help="Set one modality's features to zero.")
    parser.add_argument("--num_epochs", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=128, help="Clips per process.")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--warmup_epochs", type=float, default=1.0, help="Then cosine to zero.")
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--patience", type=int, default=40, help="Stop after so many epochs without improvement.")
    parser.add_argument("--max_steps", type=int, help="Per epoch, for a trial.")
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    if args.features_dir and args.data_dir:
        parser.error("pass --features_dir (cached features) or --data_dir (raw clips), not both")
    return args


def use_synthetic_features(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Make synthetic clips and their features, once, and train on those."""
    import extract_features

    logger.warning(
        "No --features_dir given: training on synthetic clips, which teach nothing about real events. For AVE, run "
        "extract_features.py --model AUDIOCLIP --data_dir AVE_Dataset --output_dir features, then this script with "
        "--model AUDIOCLIP --features_dir features."
    )
    clips = SYNTHETIC_FOLDER / f"clips-{NUM_SYNTHETIC}"
    features = SYNTHETIC_FOLDER / f"features-{NUM_SYNTHETIC}-{towers_fingerprint(load_encoder(args.model))}"
    with accelerator.main_process_first():
        if not clips.exists():
            logger.warning("Making %d synthetic clips in %s: some minutes, once.", NUM_SYNTHETIC, clips)
            generate_synthetic_ave(clips, num_videos=NUM_SYNTHETIC)
    num_frames = AVEClipProcessor.from_pretrained(args.model).video_processor.num_frames_per_segment
    options = ["--num_frames_per_segment", str(num_frames), *(["--cpu"] if args.cpu else [])]
    extract_features.main(["--model", args.model, "--data_dir", str(clips), "--output_dir", str(features), *options])
    args.features_dir = str(features)


def open_split(args: argparse.Namespace, split: str, processor, fingerprint: str) -> Dataset | None:
    """The clips of one split; none where there is no such split of features."""
    if args.data_dir:
        return ClipReader(load_ave(args.data_dir, split=split), processor)
    if split == "test" and not (Path(args.features_dir) / split).exists():
        return None
    store = FeatureStore(Path(args.features_dir) / split)
    store.check_encoder(fingerprint)
    return store


def build_dataloaders(args: argparse.Namespace, processor, fingerprint: str) -> dict[str, DataLoader]:
    """Loaders of the training and the validation split."""
    return {
        split: build_dataloader(args, open_split(args, split, processor, fingerprint), split == "train")
        for split in ("train", "validation")
    }


def build_dataloader(args: argparse.Namespace, clips: Dataset, is_train: bool) -> DataLoader:
    return DataLoader(clips, args.batch_size, shuffle=is_train, collate_fn=collate_clips, num_workers=args.num_workers)


def build_localizer_and_processor(args: argparse.Namespace):
    """The untrained localizer on the frozen towers of `--model`, and the processor that goes with it."""
    encoder = load_encoder(args.model)
    overrides = parse_overrides(args.localizer, AVEClipConfig)
    if args.data_dir:
        categories = load_ave(args.data_dir, split="train").features["category"].names
        id2label = labels_with_background(categories)
        grid = (args.num_frames_per_segment, args.segment_seconds)
    else:
        manifest = FeatureStore(Path(args.features_dir) / "train").manifest
        id2label = manifest["id2label"]
        grid = (manifest["num_frames_per_segment"], manifest["segment_seconds"])
        overrides = {"visual_feature_type": manifest["visual_feature_type"], **overrides}
    localizer = build_localizer(encoder, id2label, overrides)
    config = audioclip_config(encoder)
    extractor = load_feature_extractor(args.model, config)
    return localizer, build_processor(config, extractor, *grid, localizer.config)


def build_optimizer(args: argparse.Namespace, localizer, steps_per_epoch: int):
    """AdamW over the localizer alone, warm-up and cosine."""
    trained = [parameter for parameter in localizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=args.weight_decay)
    warmup, total = max(1, args.warmup_epochs * steps_per_epoch), args.num_epochs * steps_per_epoch

    def share_of_learning_rate(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1, step / total))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_learning_rate)


def model_inputs(batch: dict[str, torch.Tensor], blank_modality: str | None) -> dict[str, torch.Tensor]:
    """What the model takes of a batch, one modality's features or raw values set to zero where asked for."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "rows"}
    blanked = {"audio": ("audio_features", "input_values"), "video": ("image_features", "pixel_values")}
    for name in blanked.get(blank_modality, ()):
        if name in inputs:
            inputs[name] = torch.zeros_like(inputs[name])
    return inputs


def train_epoch(args, accelerator: Accelerator, localizer, optimizer, scheduler, loader: DataLoader) -> float:
    """One pass over the training clips; returns the mean loss."""
    localizer.train()
    losses = []
    for batch in loader:
        loss = localizer(**model_inputs(batch, args.blank_modality)).loss
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"The loss is {loss.item()} at step {len(losses)} of this epoch, rows {batch['rows'].tolist()}. "
                "The best localizer so far is kept. Look at those rows, or lower --learning_rate."
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(localizer.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if args.max_steps and len(losses) >= args.max_steps:
            break
    return float(np.mean(losses))


def evaluate(args, accelerator: Accelerator, localizer, loader: DataLoader) -> tuple[list, list]:
    """Run over a split; the probabilities `(T, C)` and labels `(T,)` of every clip."""

    def prepare(inputs):
        return model_inputs(inputs, args.blank_modality)

    return predict_clips(accelerator, localizer, loader, prepare)[:2]


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # AGVA gets no gradient from features with a single location.
    handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = build_accelerator(args.cpu, args.mixed_precision, kwargs_handlers=[handler])
    if not (args.features_dir or args.data_dir):
        use_synthetic_features(args, accelerator)
    set_seed(args.seed)
    localizer, processor = build_localizer_and_processor(args)
    fingerprint = towers_fingerprint(localizer)
    loaders = build_dataloaders(args, processor, fingerprint)
    optimizer, scheduler = build_optimizer(args, localizer, len(loaders["train"]))
    localizer, optimizer, scheduler, *prepared = accelerator.prepare(
        localizer, optimizer, scheduler, *loaders.values()
    )
    loaders = dict(zip(loaders, prepared))

    history, best_state, started = [], None, time.perf_counter()
    for epoch in range(args.num_epochs):
        loss = train_epoch(args, accelerator, localizer, optimizer, scheduler, loaders["train"])
        probabilities, labels = evaluate(args, accelerator, localizer, loaders["validation"])
        accuracy = segment_accuracy([clip.argmax(axis=1) for clip in probabilities], labels)
        history.append({"epoch": epoch, "loss": loss, "validation_accuracy": accuracy})
        logger.info("epoch %d  loss %.3f  accuracy %.4f  %.0f s", epoch, loss, accuracy, time.perf_counter() - started)
        best_epoch = max(range(len(history)), key=lambda index: history[index]["validation_accuracy"])
        if best_epoch == epoch:
            best_state = copy.deepcopy(accelerator.unwrap_model(localizer).state_dict())
            save(args.output_dir, accelerator, localizer, processor)
        elif epoch - best_epoch >= args.patience:
            break
    accelerator.unwrap_model(localizer).load_state_dict(best_state)
    return finish(args, argv, accelerator, localizer, loaders, history, processor, fingerprint)


def save(folder: str, accelerator: Accelerator, localizer, processor) -> None:
    """Write the localizer (safetensors) and its processor."""
    if accelerator.is_main_process:
        accelerator.unwrap_model(localizer).save_pretrained(folder)
        processor.save_pretrained(folder)
    accelerator.wait_for_everyone()


def finish(
    args, argv, accelerator: Accelerator, localizer, loaders, history, processor, fingerprint
) -> dict[str, dict]:
    """Measure the chosen localizer on validation and, this once, on the test split; write and return the results."""
    shortest = accelerator.unwrap_model(localizer).config.min_event_segments
    predictions = evaluate(args, accelerator, localizer, loaders["validation"])
    results = {"validation": measure_decoders(*predictions, shortest)}
    test = open_split(args, "test", processor, fingerprint)
    if test is not None:
        loader = accelerator.prepare(build_dataloader(args, test, False))
        results["test"] = measure_decoders(*evaluate(args, accelerator, localizer, loader), shortest)
    if accelerator.is_main_process:
        content = {**results, "history": history, **describe_run(args, argv)}
        write_json(Path(args.output_dir) / "results.json", content)
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
