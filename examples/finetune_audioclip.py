"""Stage 1: fine-tune AudioCLIP's image and audio towers so that a sound and a picture of one event come together.

What it learns: InfoNCE of eq. 1, both ways, between one frame and one second of sound of the same event segment of the
training split. Segments of one class (or video) do not count as each other's negatives.
What it reads: AudioCLIP (a checkpoint, or a .json configuration to start from random weights) and videos in AVE's
layout. Every clip is decoded once, into `--cache_dir`.
What it writes: the best AudioCLIP by retrieval on the validation split, its feature extractor, and `results.json`.

    accelerate launch examples/finetune_audioclip.py --model AudioCLIP --data_dir AVE_Dataset --output_dir stage1
    accelerate launch examples/finetune_audioclip.py --config examples/configs/tiny/stage1.yaml ...   # from scratch
"""

import argparse
import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from ave_clip.data import load_ave
from ave_clip.training.arguments import (
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    write_json,
)
from ave_clip.training.checkpoints import build_processor, load_audioclip, load_feature_extractor
from ave_clip.training.clips import build_clip_cache, normalize_frames
from ave_clip.training.losses import FALSE_NEGATIVE_MASKS, audio_image_contrastive_loss, gather_with_gradient
from ave_clip.training.metrics import retrieval_metrics
from ave_clip.training.pairs import SegmentPairs, augment_frames, augment_sounds

logger = get_logger("finetune_audioclip")

# The text tower and its temperatures take no part; the learned spectrogram follows --train_spectrogram.
UNUSED = r"text_model|logit_scale$|logit_scale_at$"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="AudioCLIP: folder, Hub id, or .json configuration.")
    parser.add_argument("--data_dir", required=True, help="Videos in AVE's layout.")
    parser.add_argument("--output_dir", required=True, help="Where the best model goes.")
    parser.add_argument("--cache_dir", help="Where decoded clips are kept; OUTPUT_DIR/cache by default.")
    parser.add_argument("--num_frames_per_segment", type=int, default=4, help="Frames of each segment to draw from.")
    parser.add_argument("--segment_seconds", type=float, default=1.0)
    parser.add_argument("--num_epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64, help="Pairs per process.")
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--weight_decay", type=float, default=1e-4, help="Of weights with two dimensions or more.")
    parser.add_argument("--warmup_share", type=float, default=0.05, help="Share of all steps; then cosine to zero.")
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--patience", type=int, default=5, help="Stop after so many epochs without improvement.")
    parser.add_argument("--false_negative_mask", choices=FALSE_NEGATIVE_MASKS, default="class")
    parser.add_argument("--batch_norm", choices=("eval", "train"), default="eval", help="'train' when from scratch.")
    parser.add_argument("--train_spectrogram", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max_shift", type=float, default=0.0, help="Shift of the sound within its event, segments.")
    parser.add_argument("--shift_pixels", type=int, default=0, help="Augmentation: largest shift of a picture.")
    parser.add_argument("--picture_gain", type=float, default=0.0, help="Augmentation: contrast, brightness, colours.")
    parser.add_argument("--sound_gain_db", type=float, default=0.0, help="Augmentation: largest change of loudness.")
    parser.add_argument("--max_steps", type=int, help="Stop early, for a trial.")
    add_run_arguments(parser)
    return parse_arguments(parser, argv)


def build_dataloaders(args: argparse.Namespace, processor, accelerator: Accelerator) -> dict[str, DataLoader]:
    """Decode both splits once and pair their event segments; the test split is not touched."""
    folder = args.cache_dir or Path(args.output_dir) / "cache"
    loaders = {}
    for split in ("train", "validation"):
        examples = load_ave(args.data_dir, split=split)
        background = examples.features["category"].num_classes
        if split == "train":
            examples = leave_out_leaks(examples)
        with accelerator.main_process_first():
            cache = build_clip_cache(folder, examples, processor, args.num_workers)
        is_train = split == "train"
        pairs = SegmentPairs(cache, examples, background, is_train, args.max_shift, one_per_video=not is_train)
        loaders[split] = DataLoader(pairs, args.batch_size, shuffle=is_train, drop_last=is_train)
    if len(loaders["train"]) == 0:
        raise ValueError(
            f"The training split has {len(loaders['train'].dataset)} event segments, fewer than one batch of "
            f"{args.batch_size}. Lower --batch_size."
        )
    return loaders


def leave_out_leaks(examples):
    """Leave out the training rows whose video also stands in another split."""
    kept = [index for index, others in enumerate(examples["leaks_into"]) if not others]
    if len(kept) < len(examples):
        logger.info("Left out %d training rows whose video is also in another split.", len(examples) - len(kept))
    return examples.select(kept)


def build_optimizer(args: argparse.Namespace, model: torch.nn.Module, num_steps: int):
    """AdamW; vectors and scalars (biases, norms, fbsp parameters, temperature) get no weight decay."""
    for name, parameter in model.named_parameters():
        unused = re.search(UNUSED, name) or (not args.train_spectrogram and ".fbsp." in name)
        parameter.requires_grad_(not unused)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    warmup = max(1, round(args.warmup_share * num_steps))

    def share_of_learning_rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_learning_rate)


def set_training_mode(model: torch.nn.Module, batch_norm: str) -> None:
    """Switch to training, but keep the statistics of BatchNorm where a pretrained model has them."""
    model.train()
    if batch_norm == "eval":
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


def clipped_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """All but the spectrogram's: AudioCLIP sets the scale of their gradients itself, far above all others."""
    return [parameter for name, parameter in model.named_parameters() if ".fbsp." not in name]


def train_epoch(args, accelerator: Accelerator, model, optimizer, scheduler, loader: DataLoader, video_processor):
    """One pass over all event segments; returns the mean loss."""
    set_training_mode(model, args.batch_norm)
    total, steps = 0.0, 0
    for batch in loader:
        frames = augment_frames(batch["frames"], args.shift_pixels, args.picture_gain)
        output = model(
            pixel_values=normalize_frames(frames, video_processor),
            input_values=augment_sounds(batch["input_values"], args.sound_gain_db),
        )
        audio, image = gather_with_gradient(output.audio_embeds), gather_with_gradient(output.image_embeds)
        ids = [gather_with_gradient(batch[name]) for name in ("class_ids", "video_ids")]
        scale = temperature(accelerator, model)
        loss = audio_image_contrastive_loss(audio, image, scale, *ids, mask=args.false_negative_mask)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(clipped_parameters(model), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        total, steps = total + loss.item(), steps + 1
        if args.max_steps and steps >= args.max_steps:
            break
    return total / steps


@torch.no_grad()
def evaluate(args, accelerator: Accelerator, model, loader: DataLoader, video_processor) -> dict[str, float]:
    """Retrieval between the sounds and pictures of different validation videos, and the loss over all of them."""
    model.eval()
    gathered = []
    for batch in loader:
        output = model(
            pixel_values=normalize_frames(batch["frames"], video_processor), input_values=batch["input_values"]
        )
        results = (output.audio_embeds, output.image_embeds, batch["class_ids"], batch["video_ids"])
        gathered.append(accelerator.gather_for_metrics(results))
    audio, image, class_ids, video_ids = (torch.cat(parts).cpu() for parts in zip(*gathered))
    scale = temperature(accelerator, model).cpu()
    mask = args.false_negative_mask
    loss = audio_image_contrastive_loss(audio, image, scale, class_ids, video_ids, mask=mask)
    metrics = retrieval_metrics(audio.float().numpy(), image.float().numpy(), class_ids.numpy())
    return {"validation_loss": loss.item(), **metrics}


def temperature(accelerator: Accelerator, model) -> torch.Tensor:
    """The factor of the similarities, as AudioCLIP bounds it."""
    return accelerator.unwrap_model(model).logit_scale_ai.exp().clamp(1, 100)


def selection_score(metrics: dict[str, float], false_negative_mask: str) -> float:
    """What the best epoch is chosen by: finding the partner, or with the class mask a partner of the class."""
    suffix = "class_r1" if false_negative_mask == "class" else "r1"
    return (metrics[f"audio_to_image_{suffix}"] + metrics[f"image_to_audio_{suffix}"]) / 2


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    set_seed(args.seed)
    model = load_audioclip(args.model)
    feature_extractor = load_feature_extractor(args.model, model.config)
    processor = build_processor(model.config, feature_extractor, args.num_frames_per_segment, args.segment_seconds)
    loaders = build_dataloaders(args, processor, accelerator)
    optimizer, scheduler = build_optimizer(args, model, args.num_epochs * len(loaders["train"]))
    model, optimizer, scheduler, *prepared = accelerator.prepare(model, optimizer, scheduler, *loaders.values())
    loaders = dict(zip(loaders, prepared))

    history, started = [], time.perf_counter()
    for epoch in range(args.num_epochs):
        loss = train_epoch(args, accelerator, model, optimizer, scheduler, loaders["train"], processor.video_processor)
        metrics = evaluate(args, accelerator, model, loaders["validation"], processor.video_processor)
        score = selection_score(metrics, args.false_negative_mask)
        history.append({"epoch": epoch, "loss": loss, "score": score, **metrics})
        logger.info("epoch %d  loss %.3f  retrieval %.3f  %.0f s", epoch, loss, score, time.perf_counter() - started)
        best = max(history, key=lambda record: (record["score"], -record["validation_loss"]))
        if best["epoch"] == epoch:
            save(args.output_dir, accelerator, model, feature_extractor)
        elif epoch - best["epoch"] >= args.patience:
            break
    if accelerator.is_main_process:
        write_json(Path(args.output_dir) / "results.json", {"history": history, **describe_run(args, argv)})
    accelerator.end_training()
    return best


def save(folder: str, accelerator: Accelerator, model, feature_extractor) -> None:
    """Write the model (safetensors) and its feature extractor."""
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(folder)
        feature_extractor.save_pretrained(folder)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
