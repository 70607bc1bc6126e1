"""Stage 1: fine-tune an encoder's image and audio towers with contrastive learning on event segments.

What it learns: symmetric InfoNCE (eq. 1) between one frame and one second of audio of the same event segment of the
training split. Segments of the same class (or video) are not used as negatives of each other; background segments of
the same videos can be added as negatives. Encoders that were trained with a pairwise sigmoid loss, such as PE-AV, keep
that loss, so that their scale and bias keep their meaning.
What it reads: an encoder with one space for images and audio (AudioCLIP, PE-AV, or a folder that this stage wrote; or
a .json configuration of AudioCLIP to start from random weights), and labelled videos of any kind that
`ave_clip.data.open_dataset` reads. Each clip is decoded once, into `--cache_dir`.
What it writes: the best encoder by retrieval on the validation split, its processor, a model card, training curves
(`metrics.jsonl`) and `results.json`. A run that was killed resumes with `--resume`.

    accelerate launch examples/finetune_audioclip.py --model AudioCLIP --data AVE_Dataset --output_dir stage1
    accelerate launch examples/finetune_audioclip.py --model facebook/pe-av-small --data AVE_Dataset --output_dir pe
    torchrun --nproc_per_node 2 examples/finetune_audioclip.py --cpu ...   # the same run on two processes

Without a data set and a download, from small towers with random weights (`--batch_size` suits these few clips):

    ave-clip synthesize my-clips --videos 8 --seed 1
    python examples/finetune_audioclip.py --config examples/configs/tiny/stage1.yaml \\
        --model examples/configs/tiny/audioclip.json --batch_size 16 --data my-clips --output_dir my-stage1

`--batch_size` and the negatives include all processes, so the curves do not depend on the number of processes. If a
batch does not fit into memory, `--chunk_size` computes the same gradient with the memory of a chunk.
AudioCLIP's own recipe: --train audio --optimizer sgd --learning_rate 5e-5 --weight_decay 5e-4 --schedule exponential.
"""

import argparse
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.state import PartialState
from accelerate.utils import DistributedDataParallelKwargs, send_to_device, set_seed
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from ave_clip.checkpoints.cards import write_audioclip_card, write_encoder_card
from ave_clip.checkpoints.push import add_hub_arguments, create_repository, push_folder
from ave_clip.core.categories import AVE_CATEGORIES
from ave_clip.core.modeling_audioclip import AudioCLIPModel
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
    load_processor,
    load_shared_encoder,
    processor_to_save,
    save_checkpoint,
    towers_fingerprint,
)
from ave_clip.training.clips import build_clip_cache
from ave_clip.training.gradients import (
    UnscaledSpectrogram,
    backward_in_chunks,
    use_shared_batch_norm,
    use_unscaled_spectrogram,
)
from ave_clip.training.losses import FALSE_NEGATIVE_MASKS, gather_segments, gather_with_gradient
from ave_clip.training.metrics import retrieval_metrics
from ave_clip.training.pairs import (
    SegmentPairs,
    augment_frames,
    augment_sounds,
    check_sound_augmentation,
    collate_pairs,
)
from ave_clip.training.run_state import STATE_FOLDER, RunState, add_resume_arguments, check_output, run_settings
from ave_clip.training.sampling import GlobalBatchSampler
from ave_clip.training.shared_space import limit_scale, loss_of, scales_of, space_of
from ave_clip.training.splits import open_split
from ave_clip.training.tracking import add_tracking_arguments, build_trackers, start_trackers

logger = get_logger("finetune_audioclip")

# Fields of `SharedSpace` whose modules `--train` selects; scale and bias have their own option. The text tower is not
# trained.
TRAINED = {"both": ("image", "audio"), "image": ("image",), "audio": ("audio",), "heads": ("heads",)}
SELECTION = {"pair": r"(audio_to_image|image_to_audio)_r\d+", "class": r".*_class_r1"}


@dataclass
class Run:
    """The objects of a training run, as Accelerate prepared them."""

    args: argparse.Namespace
    accelerator: Accelerator
    model: torch.nn.Module
    spectrogram: UnscaledSpectrogram | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    loaders: dict[str, DataLoader]
    processor: Any
    saved_processor: Any
    state: RunState

    @property
    def encoder(self) -> torch.nn.Module:
        return self.accelerator.unwrap_model(self.model)

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        required=True,
        help="Encoder with one space for images and audio: folder, Hub id, or AudioCLIP's .json configuration.",
    )
    add_data_argument(parser, required=True)
    add_video_arguments(parser)
    parser.add_argument("--output_dir", required=True, help="Folder of the best model.")
    parser.add_argument("--cache_dir", help="Folder of the decoded clips. Default: OUTPUT_DIR/cache.")
    parser.add_argument(
        "--num_frames_per_segment", type=int, default=4, help="Frames per segment, of which one is chosen."
    )
    add_loss_arguments(parser)
    add_training_arguments(parser)
    add_augmentation_arguments(parser)
    for add_arguments in (add_resume_arguments, add_tracking_arguments, add_hub_arguments, add_run_arguments):
        add_arguments(parser)
    args = parse_arguments(parser, argv)
    check_arguments(args)
    return args


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--false_negative_mask",
        choices=FALSE_NEGATIVE_MASKS,
        default="class",
        help="Pairs that are not used as negatives: same class, same video, or none.",
    )
    group.add_argument(
        "--background_negatives",
        action="store_true",
        help="Add a background segment of its video to each pair as a negative.",
    )
    group.add_argument(
        "--temperature",
        choices=("learned", "frozen"),
        default="learned",
        help="Scale of similarities, and PE-AV's bias.",
    )
    group.add_argument(
        "--select_by",
        choices=SELECTION,
        default="pair",
        help="Measure of the best epoch: R@1 and R@5 of pairs, or R@1 of classes.",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--train", choices=TRAINED, default="both", help="Parts of the model to train.")
    group.add_argument(
        "--train_spectrogram",
        action=argparse.BooleanOptionalAction,
        help="Also train AudioCLIP's fbsp parameters. Default: unless they are untrained (order 0: noisy gradients).",
    )
    group.add_argument(
        "--batch_norm", choices=("eval", "train"), default="eval", help="Pass 'train' to train from scratch."
    )
    group.add_argument("--num_epochs", type=int, default=20)
    group.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="Pairs per step, over all processes; a smaller last batch is left out.",
    )
    group.add_argument(
        "--chunk_size", type=int, help="Segments per forward pass of a process; does not change the gradient."
    )
    group.add_argument(
        "--optimizer", choices=("adamw", "sgd"), default="adamw", help="sgd uses Nesterov momentum of 0.9."
    )
    group.add_argument("--learning_rate", type=float, default=1e-5)
    group.add_argument(
        "--weight_decay", type=float, default=1e-4, help="Applied to weights with at least two dimensions."
    )
    group.add_argument(
        "--schedule", choices=("cosine", "exponential"), default="cosine", help="Learning rate after the warm-up."
    )
    group.add_argument("--gamma", type=float, default=0.96, help="Factor of the exponential schedule per epoch.")
    group.add_argument("--warmup_share", type=float, default=0.05, help="Fraction of all steps used for the warm-up.")
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--patience", type=int, default=5, help="Stop after this many epochs without improvement.")
    group.add_argument("--max_steps", type=int, help="Limit the steps per epoch, for a trial run.")


def add_augmentation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--max_shift", type=float, default=0.0, help="Largest shift of the audio within its event, in segments."
    )
    group.add_argument("--shift_pixels", type=int, default=0, help="Largest shift of a frame, in pixels.")
    group.add_argument(
        "--picture_gain",
        type=float,
        default=0.0,
        help="Largest relative change of contrast (brightness and colours change less).",
    )
    group.add_argument("--sound_gain_db", type=float, default=0.0, help="Largest change of loudness, in decibels.")


def check_arguments(args: argparse.Namespace) -> None:
    """Check combinations and ranges of arguments before anything is loaded."""
    if args.chunk_size is not None and args.batch_norm == "train":
        raise ValueError(
            f"Got --chunk_size {args.chunk_size} with --batch_norm train: embeddings would depend on their chunk, and "
            "the gradient would not be that of the batch. Pass --batch_norm eval, or leave --chunk_size out."
        )
    for name in ("num_epochs", "batch_size", "chunk_size", "save_steps", "max_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"Got --{name} {getattr(args, name)}: it must be at least 1.")


def build_dataloaders(args: argparse.Namespace, processor, accelerator: Accelerator) -> tuple[dict, dict]:
    """Decode both splits once and pair their event segments; the test split is not touched.

    Returns:
        `(loaders, data)`: a loader for each split, each giving this process's share of the batches of all, and what
        `results.json` says about the data.
    """
    folder = args.cache_dir or Path(args.output_dir) / "cache"
    loaders, data = {}, {"left_out": {}, "num_pairs": {}, "clips": {}}
    for split in ("train", "validation"):
        is_train = split == "train"
        with accelerator.main_process_first():
            examples = open_split(args.data, split, **video_options(args))
            data["categories"] = examples.features["category"].names
            examples, leaking = leave_out_leaks(examples) if is_train else (examples, [])
            cache = build_clip_cache(folder, examples, processor, args.num_workers)
        options = {
            "seed": args.seed,
            "is_random": is_train,
            "max_shift": args.max_shift,
            "one_per_video": not is_train,
        }
        negatives = is_train and args.background_negatives
        pairs = SegmentPairs(cache, examples, len(data["categories"]), **options, background_negatives=negatives)
        loaders[split] = build_dataloader(args, pairs, accelerator, is_train)
        data["left_out"][split] = {"num_leaking": len(leaking), "leaking_rows": leaking, "unreadable": cache.failed}
        data["num_pairs"][split], data["clips"][split] = len(pairs), cache.folder.name
    return loaders, data


def leave_out_leaks(examples) -> tuple[Any, list[int]]:
    """Leave out the training rows whose video is also in another split; returns the rest and the row numbers."""
    leaks = examples["leaks_into"]
    leaking = [row for row, others in zip(examples["row"], leaks) if others]
    if leaking:
        logger.info("Left out %d training rows whose video is also in another split.", len(leaking))
    return examples.select([index for index, others in enumerate(leaks) if not others]), leaking


def build_dataloader(args, pairs: SegmentPairs, accelerator: Accelerator, is_train: bool) -> DataLoader:
    """Build a loader; do not pass it to `accelerator.prepare`, since its sampler divides the batches already."""
    num_processes = accelerator.num_processes
    batch_size = args.batch_size
    if not is_train and args.chunk_size:
        batch_size = min(batch_size, args.chunk_size * num_processes)
    sampler = GlobalBatchSampler(
        len(pairs),
        batch_size,
        seed=args.seed,
        shuffle=is_train,
        drop_last=is_train,
        process_index=accelerator.process_index,
        num_processes=num_processes,
    )
    return DataLoader(pairs, batch_sampler=sampler, collate_fn=collate_pairs, num_workers=args.num_workers)


def freeze(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Freeze all parameters except those that `--train`, `--train_spectrogram` and `--temperature` select."""
    space = space_of(model)
    trained = tuple(f"{name}." for part in TRAINED[args.train] for name in getattr(space, part))
    fixed = tuple(f"{name}." for name in space.fixed)
    for name, parameter in model.named_parameters():
        if name in (space.scale, space.bias):
            is_trained = args.temperature == "learned"
        else:
            is_trained = name.startswith(trained) and not name.startswith(fixed)
            is_trained = is_trained and (args.train_spectrogram or ".fbsp." not in name)
        parameter.requires_grad_(is_trained)


def build_optimizer(args: argparse.Namespace, model: torch.nn.Module, steps_per_epoch: int):
    """Build optimizer and schedule; vectors and scalars (biases, norms, fbsp, temperature) have no weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=args.learning_rate, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    steps_per_epoch = min(steps_per_epoch, args.max_steps or steps_per_epoch)
    num_steps = args.num_epochs * steps_per_epoch
    warmup = round(args.warmup_share * num_steps)
    if args.schedule == "cosine":
        return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, num_steps)

    def exponential(step: int) -> float:
        return step / warmup if step < warmup else args.gamma ** (step // steps_per_epoch)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, exponential)


def set_training_mode(model: torch.nn.Module, batch_norm: str) -> None:
    """Switch the spectrogram to training mode, and batch norm unless its layer is pretrained or frozen.

    The rest stays in evaluation mode, without dropout: with `--chunk_size` each segment is encoded twice, with the
    same result.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, UnscaledSpectrogram):
            module.train()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train(batch_norm == "train" and module.weight.requires_grad)


def train_epoch(run: Run, progress: dict[str, Any]) -> float:
    """Train for one epoch, from the batch in `progress` on; returns the mean loss."""
    args, accelerator, loader = run.args, run.accelerator, run.loaders["train"]
    set_training_mode(run.model, args.batch_norm)
    loader.dataset.set_epoch(progress["epoch"])
    loader.batch_sampler.set_epoch(progress["epoch"], progress["batch"])
    for batch in loader:
        if args.max_steps and progress["batch"] >= args.max_steps:
            break
        batch = send_to_device(batch, accelerator.device)
        loss = backward(run, batch, progress["step"]).item()
        clip_gradients(run, batch, progress["step"])
        learning_rate = run.scheduler.get_last_lr()[0]
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad()
        limit_scale(run.encoder)
        progress["batch"] += 1
        progress["step"] += 1
        progress["loss_sum"] += loss
        values = dict(zip(("logit_scale", "logit_bias"), (scale.item() for scale in scales_of(run.encoder))))
        accelerator.log({"loss": loss, "learning_rate": learning_rate, **values}, step=progress["step"])
        if args.save_steps and progress["step"] % args.save_steps == 0:
            run.state.save(progress)
    return progress["loss_sum"] / progress["batch"]


def backward(run: Run, batch: dict[str, Any], step: int) -> torch.Tensor:
    """Compute the loss of the segments of all processes and its gradients; returns the loss."""
    num_pairs = batch["num_pairs"]
    class_ids, video_ids = (gather_segments(batch[name], num_pairs) for name in ("class_ids", "video_ids"))
    options = {"mask": run.args.false_negative_mask, "num_pairs": len(gather_with_gradient(batch["rows"][:num_pairs]))}

    contrastive_loss = loss_of(run.encoder)

    def loss_function(audio: torch.Tensor, image: torch.Tensor, *scales: torch.Tensor) -> torch.Tensor:
        embeds = [gather_segments(tensor, num_pairs) for tensor in (audio, image)]
        loss = contrastive_loss(*embeds, *scales, class_ids, video_ids, **options)
        check_finite(run, batch, step, "loss", loss)
        return loss

    encode_part = partial(encode, run, batch, True)
    scales = scales_of(run.encoder)
    if run.args.chunk_size:
        sizes = (len(batch["rows"]), run.args.chunk_size)
        return backward_in_chunks(run.accelerator, run.model, encode_part, loss_function, scales, *sizes)
    loss = loss_function(*encode_part(slice(None)), *scales)
    run.accelerator.backward(loss)
    return loss.detach()


def encode(run: Run, batch: dict[str, Any], is_augmented: bool, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed the audio and frames of a part of a batch."""
    args, frames, sounds = run.args, batch["frames"][part], batch["input_values"][part]
    if is_augmented:
        draws = batch["draws"][part]
        frames = augment_frames(frames, draws, args.shift_pixels, args.picture_gain)
        sounds = augment_sounds(sounds, draws, args.sound_gain_db)
    pixel_values = run.processor.video_processor.normalize_pixels(frames)
    output = run.model(pixel_values=pixel_values, input_values=sounds)
    return output.audio_embeds, output.image_embeds


def clip_gradients(run: Run, batch: dict[str, Any], step: int) -> None:
    """Clip the norm of all gradients except the spectrogram's, which AudioCLIP scales in its own way."""
    named = run.model.named_parameters()
    clipped = [parameter for name, parameter in named if parameter.requires_grad and ".fbsp." not in name]
    norm = run.accelerator.clip_grad_norm_(clipped, run.args.max_grad_norm)
    if run.accelerator.scaler is None:  # with fp16 the scaler skips such a step and reduces its factor
        of_spectrogram = [
            parameter.grad.abs().max()
            for name, parameter in run.model.named_parameters()
            if ".fbsp." in name and parameter.grad is not None
        ]
        check_finite(run, batch, step, "gradient", torch.stack([norm, *of_spectrogram]).max())
    if run.spectrogram is not None:
        run.spectrogram.scale_gradients()


def check_finite(run: Run, batch: dict[str, Any], step: int, name: str, value: torch.Tensor) -> None:
    """Stop before a NaN or infinite loss or gradient reaches the weights."""
    if torch.isfinite(value):
        return
    rows = sorted(set(gather_with_gradient(batch["rows"]).tolist()))
    raise RuntimeError(
        f"The {name} is {value.item()} at step {step + 1}, rows {rows} of Annotations.txt. The last state in "
        f"{run.state.folder} and the best model so far in {run.output_dir} are kept. Check those rows, or start "
        f"from scratch with a --learning_rate below {run.args.learning_rate}."
    )


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Measure retrieval between the audio and frames of different validation videos, and the loss over all of them."""
    run.model.eval()
    gathered = []
    for batch in run.loaders["validation"]:
        batch = send_to_device(batch, run.accelerator.device)
        results = (*encode(run, batch, False, slice(None)), batch["class_ids"], batch["video_ids"])
        gathered.append([gather_with_gradient(tensor).cpu() for tensor in results])
    audio, image, class_ids, video_ids = (torch.cat(parts) for parts in zip(*gathered))
    scales, mask = [scale.cpu() for scale in scales_of(run.encoder)], run.args.false_negative_mask
    loss = loss_of(run.encoder)(audio, image, *scales, class_ids, video_ids, mask=mask)
    embeds = (audio.float().numpy(), image.float().numpy())
    metrics = retrieval_metrics(*embeds, class_ids.numpy(), is_cosine=space_of(run.encoder).is_cosine)
    score = selection_score(metrics, run.args.select_by)
    return {"score": score, "validation_loss": loss.item(), **metrics}


def selection_score(metrics: dict[str, float], select_by: str) -> float:
    """Return the measure of the best epoch: the mean recall of partners (or of the class) in both directions."""
    recalls = [value for name, value in metrics.items() if re.fullmatch(SELECTION[select_by], name)]
    return sum(recalls) / len(recalls)


def best_epoch(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the record of the best epoch; on ties the one with the lower loss, then the earlier one."""
    return max(history, key=lambda record: (record["score"], -record["validation_loss"]))


def train(run: Run, progress: dict[str, Any]) -> list[dict[str, float]]:
    """Train for the remaining epochs; returns a record per epoch."""
    history, started = progress["history"], time.perf_counter()
    while progress["epoch"] < run.args.num_epochs:
        epoch = progress["epoch"]
        loss = train_epoch(run, progress)
        metrics = evaluate(run)
        history.append({"epoch": epoch, "loss": loss, **metrics})
        run.accelerator.log({"epoch": epoch, "epoch_loss": loss, **metrics}, step=progress["step"])
        seconds = time.perf_counter() - started
        logger.info("epoch %d  loss %.3f  retrieval %.3f  %.0f s", epoch, loss, metrics["score"], seconds)
        best = best_epoch(history)["epoch"]
        if best == epoch and run.accelerator.is_main_process:
            save_checkpoint(run.output_dir, run.encoder, run.saved_processor)
        is_over = epoch - best >= run.args.patience
        progress.update(epoch=run.args.num_epochs if is_over else epoch + 1, batch=0, loss_sum=0.0)
        run.state.save(progress)
    return history


def finish(run: Run, argv: Sequence[str] | None, history: list[dict[str, float]], data: dict) -> dict[str, float]:
    """Write the results and the model card next to the best model; returns the record of the best epoch."""
    best = best_epoch(history)
    if run.accelerator.is_main_process:
        results = {"validation": best, "history": history, **data, **describe_run(run.args, argv)}
        write_json(run.output_dir / "results.json", results)
        is_ave = data["categories"] == list(AVE_CATEGORIES)
        dataset_name = "AVE" if is_ave else Path(run.args.data).resolve().name
        model_name = run.args.push_to_hub or run.output_dir.resolve().name
        write_card = write_audioclip_card if isinstance(run.encoder, AudioCLIPModel) else write_encoder_card
        write_card(run.output_dir, results, model_name=model_name, dataset_name=dataset_name)
    run.state.finish(best)
    return best


def build_run(args: argparse.Namespace, accelerator: Accelerator) -> tuple[Run, dict]:
    """Build model, data and optimizer for any number of processes; returns the run and facts about the data."""
    set_seed(args.seed)
    model = load_shared_encoder(args.model)
    processor = load_processor(args.model, model, args.num_frames_per_segment, args.segment_seconds)
    check_sound_augmentation(processor, args.max_shift, args.sound_gain_db)
    saved_processor = processor_to_save(args.model, model)
    loaders, data = build_dataloaders(args, processor, accelerator)
    spectrogram = use_unscaled_spectrogram(model)
    if args.train_spectrogram is None:
        args.train_spectrogram = spectrogram is not None and bool(spectrogram.m.any())
    settings = run_settings(args, without=("model", "data", "video_dir", "cache_dir"))
    settings |= {"towers": towers_fingerprint(model), "clips": data["clips"]}
    freeze(args, model)
    limit_scale(model)
    if args.batch_norm == "train" and accelerator.num_processes > 1:
        use_shared_batch_norm(model)
    optimizer, scheduler = build_optimizer(args, model, len(loaders["train"]))
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)  # not prepared: it would step once for each process
    state = RunState(accelerator, Path(args.output_dir) / STATE_FOLDER, settings)
    parts = (model, spectrogram, optimizer, scheduler, loaders, processor, saved_processor, state)
    return Run(args, accelerator, *parts), data


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    start_logging()
    check_output(args)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs each file of each state
    handler = DistributedDataParallelKwargs(broadcast_buffers=False)  # they are equal in all processes anyway
    accelerator = build_accelerator(args.cpu, args.mixed_precision, kwargs_handlers=[handler], **build_trackers(args))
    if args.push_to_hub and accelerator.is_main_process:
        create_repository(args.push_to_hub, private=args.private)
    run, data = build_run(args, accelerator)
    best = run.state.finished() if args.resume else None
    if best is None:
        progress = run.state.begin(args.resume, args.overwrite)
        progress = progress or {"epoch": 0, "batch": 0, "step": 0, "loss_sum": 0.0, "history": []}
        start_trackers(accelerator, args, progress["step"])
        best = finish(run, argv, train(run, progress), data)
    if args.push_to_hub and accelerator.is_main_process:
        logger.info("Pushed to %s", push_folder(args.output_dir, args.push_to_hub, private=args.private))
    for tracker in accelerator.trackers:
        tracker.finish()
    return best


if __name__ == "__main__":
    with program():
        main()
        PartialState().destroy_process_group()
