"""Stage 3: train the localizer on features (stage 2's, or peers' h5), or on raw clips with frozen towers.

What it learns: for every segment, the event that is both seen and heard, or background (hybrid loss, eq. 17). With
`--localizer supervision=weak` it learns from one label a video, as AVEL and PSP define it, and is measured the same.
What it reads: stage 2's `--features_dir` with the `--model` that made them; or `--h5_dir`, features of any kind in the
layout of AVE's h5 files; or `--data_dir`, videos in AVE's layout.
What it writes: the localizer that is best on the validation split, with its processor, `results.json`,
`predictions.safetensors` (validation and test), a card, `metrics.jsonl`, and a state to `--resume` from. The test
split, where there is one, is opened once, at the end.

    accelerate launch examples/train_localizer.py --model stage1 --features_dir features --output_dir localizer

Without arguments it makes synthetic clips, encodes them with the towers of the checkpoint that ships with the package,
and trains on those.
"""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.state import PartialState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, send_to_device, set_seed
from torch.utils.data import DataLoader

import ave_clip
from ave_clip import AVEClipConfig, AVEClipForLocalization, AVEClipProcessor
from ave_clip.categories import AVE_CATEGORIES
from ave_clip.data import generate_synthetic_ave
from ave_clip.data.annotations import IGNORED_LABEL
from ave_clip.data.h5 import AUDIO_FILE, VISUAL_FILE
from ave_clip.data.synthetic import GENERATOR_VERSION
from ave_clip.training.arguments import (
    add_missing_argument,
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    parse_overrides,
    write_json,
)
from ave_clip.training.averaging import ExponentialAverage
from ave_clip.training.cards import write_localizer_card
from ave_clip.training.checkpoints import (
    audioclip_config,
    build_localizer,
    build_processor,
    load_encoder,
    load_feature_extractor,
    load_trained_weights,
    save_checkpoint,
    towers_fingerprint,
)
from ave_clip.training.dropout import KeyedDropout, use_keyed_dropout
from ave_clip.training.feature_statistics import fit_feature_norms
from ave_clip.training.hub import add_hub_arguments, create_repository, push_folder
from ave_clip.training.metrics import segment_accuracy
from ave_clip.training.prediction import measure_decoders, predict_clips, save_predictions
from ave_clip.training.run_state import STATE_FOLDER, RunState, add_resume_arguments, check_output, run_settings
from ave_clip.training.sampling import GlobalBatchSampler
from ave_clip.training.splits import (
    FeatureSplits,
    H5Splits,
    ReadableBatches,
    SplitError,
    VideoSplits,
    build_prediction_loader,
    build_train_loader,
    choose_clips,
)
from ave_clip.training.tracking import add_tracking_arguments, build_trackers, start_trackers

logger = get_logger("train_localizer")
SYNTHETIC_FOLDER = Path.home() / ".cache" / "ave_clip" / f"synthetic-{GENERATOR_VERSION}"
NUM_SYNTHETIC = 400
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# Identified by what they hold, so that a run can go on after they were moved.
PATHS = ("model", "features_dir", "h5_dir", "annotations_dir", "audio_file", "visual_file", "data_dir")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data").add_mutually_exclusive_group()
    data.add_argument("--features_dir", help="Output of stage 2; synthetic clips without this and the next two.")
    data.add_argument("--h5_dir", help="Folder of peers' h5 features; needs no --model.")
    data.add_argument("--data_dir", help="Videos in AVE's layout, to train on raw clips.")
    parser.add_argument(
        "--model", default=ave_clip.DEFAULT_CHECKPOINT, help="AudioCLIP, or a localizer for its towers."
    )
    parser.add_argument("--output_dir", default="localizer", help="Where the best localizer goes.")
    add_missing_argument(parser)
    parser.add_argument("--localizer", nargs="*", default=[], metavar="FIELD=VALUE", help="Fields of AVEClipConfig.")
    parser.add_argument("--num_frames_per_segment", type=int, default=16, help="With --data_dir.")
    parser.add_argument("--segment_seconds", type=float, default=1.0, help="With --data_dir: 1, as the labels are.")
    parser.add_argument("--annotations_dir", help="With --h5_dir; the same folder by default.")
    parser.add_argument("--audio_file", default=AUDIO_FILE, help="With --h5_dir.")
    parser.add_argument("--visual_file", default=VISUAL_FILE, help="With --h5_dir.")
    parser.add_argument("--blank_modality", choices=("audio", "video"), help="Set one modality's features to zero.")
    parser.add_argument("--max_train_clips", type=int, help="Train on a seeded subset of so many clips.")
    add_training_arguments(parser)
    add_resume_arguments(parser)
    add_tracking_arguments(parser)
    add_hub_arguments(parser)
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    if sum(path is not None for path in (args.features_dir, args.h5_dir, args.data_dir)) > 1:
        parser.error("pass one of --features_dir (stage 2), --h5_dir (peers' features) and --data_dir (raw clips)")
    for name in ("num_epochs", "batch_size", "patience", "max_steps", "save_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--num_epochs", type=int, default=300)
    group.add_argument("--batch_size", type=int, default=128, help="Clips of a step, over all processes together.")
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="adam")
    group.add_argument("--learning_rate", type=float, default=5e-4)
    group.add_argument("--weight_decay", type=float, default=0.0)
    group.add_argument("--warmup_epochs", type=float, default=1.0, help="Then cosine to zero.")
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--ema", type=float, metavar="DECAY", help="Evaluate and save averaged weights.")
    group.add_argument("--patience", type=int, default=40, help="Stop after so many epochs without improvement.")
    group.add_argument("--max_steps", type=int, help="Per epoch, for a trial.")


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


def open_source(args: argparse.Namespace) -> FeatureSplits | H5Splits | VideoSplits:
    """What the arguments say to learn from."""
    if args.h5_dir:
        files = {"audio_file": args.audio_file, "visual_file": args.visual_file}
        weak = parse_overrides(args.localizer, AVEClipConfig).get("supervision") == "weak"
        return H5Splits(args.h5_dir, weak, annotations_dir=args.annotations_dir, **files)
    return VideoSplits(args.data_dir, args.on_missing) if args.data_dir else FeatureSplits(args.features_dir)


def build_localizer_and_processor(args: argparse.Namespace, source):
    """The untrained localizer on the frozen towers of `--model`, with its processor; h5 features need neither."""
    overrides = {**source.overrides, **parse_overrides(args.localizer, AVEClipConfig)}
    if isinstance(source, H5Splits):
        return AVEClipForLocalization(AVEClipConfig(id2label=source.id2label, **overrides)), None
    encoder = load_encoder(args.model)
    localizer = build_localizer(encoder, source.id2label, overrides)
    config = audioclip_config(encoder)
    grid = (args.num_frames_per_segment, args.segment_seconds)
    if isinstance(source, FeatureSplits):
        grid = (source.manifest["num_frames_per_segment"], source.manifest["segment_seconds"])
    processor = build_processor(config, load_feature_extractor(args.model, config), *grid, localizer.config)
    if isinstance(source, VideoSplits):
        source.processor = processor
    return localizer, processor


def build_dataloaders(args, accelerator: Accelerator, source, is_weak: bool) -> tuple[DataLoader, DataLoader]:
    """Loaders of the training and the validation split, each with this process's part."""
    splits = {split: source.open(split) for split in ("train", "validation")}
    for split, clips in splits.items():
        if clips is None or not len(clips):
            raise SplitError(f"There is no {split} split: it is needed to train. Check what you passed as data.")
    clips = choose_clips(splits["train"], args.max_train_clips, args.seed)
    process = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    sampler = GlobalBatchSampler(len(clips), args.batch_size, seed=args.seed, **process)
    train = build_train_loader(clips, sampler, is_weak, args.num_workers)
    return train, build_prediction_loader(splits["validation"], args.batch_size, args.num_workers, **process)


@dataclass
class Run:
    """Everything a training step works on, as Accelerate prepared it."""

    args: argparse.Namespace
    accelerator: Accelerator
    localizer: torch.nn.Module
    optimizer: torch.optim.Optimizer
    dropout: KeyedDropout
    average: ExponentialAverage | None
    state: RunState

    @property
    def model(self) -> AVEClipForLocalization:
        """The localizer without wrapping."""
        return self.accelerator.unwrap_model(self.localizer)


def build_run(args: argparse.Namespace, accelerator: Accelerator, localizer, settings: dict) -> Run:
    """Prepare the localizer and its optimizer; towers are frozen and have neither gradients nor a place in states."""
    dropout = use_keyed_dropout(localizer)
    trained = [parameter for parameter in localizer.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[args.optimizer](trained, lr=args.learning_rate, weight_decay=args.weight_decay)
    localizer, optimizer = accelerator.prepare(localizer, optimizer)
    average = None
    if args.ema is not None:
        average = ExponentialAverage(accelerator.unwrap_model(localizer), args.ema)
        accelerator.register_for_checkpointing(average)
    state = RunState(accelerator, Path(args.output_dir) / STATE_FOLDER, settings)
    return Run(args, accelerator, localizer, optimizer, dropout, average, state)


def share_of_learning_rate(args: argparse.Namespace, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up under a cosine to zero, by the number of steps made."""
    warmup, total = max(1, args.warmup_epochs * steps_per_epoch), args.num_epochs * steps_per_epoch
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1, step / total))))


def model_inputs(batch: dict[str, torch.Tensor], blank_modality: str | None) -> dict[str, torch.Tensor]:
    """What the model takes of a batch, one modality's features or raw values set to zero where asked for."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "rows"}
    blanked = {"audio": ("audio_features", "input_values"), "video": ("image_features", "pixel_values")}
    for name in blanked.get(blank_modality, ()):
        if name in inputs:
            inputs[name] = torch.zeros_like(inputs[name])
    return inputs


def weigh_loss(accelerator: Accelerator, loss: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss of the batch over all processes, and this process's loss weighted so that DDP's mean is the former."""
    if accelerator.num_processes == 1:
        return loss.item(), loss
    count = (labels != IGNORED_LABEL).sum()
    total, total_count = accelerator.reduce(torch.stack([loss.detach() * count, count]), "sum")
    return (total / total_count.clamp(min=1)).item(), loss * count * accelerator.num_processes / total_count.clamp(
        min=1
    )


def check_finite(run: Run, name: str, value: float, progress: dict, rows: torch.Tensor) -> None:
    """Stop all processes where a number is none, before it reaches the weights."""
    if math.isfinite(value):
        return
    output = Path(run.args.output_dir)
    kept = f"{output / STATE_FOLDER} keeps the last good state" if progress["history"] or run.args.save_steps else ""
    best = f"{output} the best localizer so far" if progress["history"] else "No epoch was finished yet"
    raise RuntimeError(
        f"The {name} is {value} at step {progress['step']} (epoch {progress['epoch']}, batch {progress['batch']}), "
        f"rows {sorted(gather_object(rows.tolist()))}. {' and '.join(filter(None, [kept, best]))}. Look at the "
        "features of those rows; when they are repaired, go on with --resume. Or start anew with --overwrite and a "
        "lower --learning_rate."
    )


def train_epoch(run: Run, loader: DataLoader, progress: dict) -> None:
    """Go through the training clips, from where `progress` stands; its `loss_sum` and `batch` are kept up to date."""
    args, accelerator = run.args, run.accelerator
    steps_per_epoch = count_steps(args, loader)
    loader.batch_sampler.set_epoch(progress["epoch"], progress["batch"])
    run.localizer.train()
    for batch in loader:
        if progress["batch"] >= steps_per_epoch:
            break
        batch = send_to_device(batch, accelerator.device)
        for group in run.optimizer.param_groups:
            group["lr"] = args.learning_rate * share_of_learning_rate(args, progress["step"], steps_per_epoch)
        run.dropout.set(args.seed, progress["epoch"], batch["rows"])
        loss = run.localizer(**model_inputs(batch, args.blank_modality)).loss
        global_loss, loss = weigh_loss(accelerator, loss, batch["labels"])
        check_finite(run, "loss", global_loss, progress, batch["rows"])
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(run.localizer.parameters(), args.max_grad_norm)
        if accelerator.scaler is None:  # with fp16 the scaler skips such steps
            check_finite(run, "gradient's norm", float(norm), progress, batch["rows"])
        run.optimizer.step()
        run.optimizer.zero_grad()
        if run.average is not None:
            run.average.update()
        progress["step"] += 1
        progress["batch"] += 1
        progress["loss_sum"] += global_loss
        rate = run.optimizer.param_groups[0]["lr"]
        accelerator.log({"loss": global_loss, "learning_rate": rate}, step=progress["step"])
        if args.save_steps and progress["step"] % args.save_steps == 0:
            run.state.save(progress)


def count_steps(args: argparse.Namespace, loader: DataLoader) -> int:
    """Steps of an epoch."""
    return min(len(loader.batch_sampler.global_sizes), args.max_steps or math.inf)


def evaluate(run: Run, loader: DataLoader) -> tuple[list, list, list]:
    """Run over a split; the probabilities `(T, C)` and labels `(T,)` of every clip, and the rows."""

    def prepare(inputs):
        return model_inputs(inputs, run.args.blank_modality)

    return predict_clips(run.accelerator, run.localizer, loader, prepare)


def train(run: Run, train_loader: DataLoader, validation_loader: DataLoader, processor, progress: dict) -> None:
    """All epochs, from where `progress` stands; the best localizer and the state are written after each."""
    args, history = run.args, progress["history"]
    for epoch in range(progress["epoch"], args.num_epochs):
        if history and history[-1]["epoch"] - best_epoch(history) >= args.patience:
            break
        train_epoch(run, train_loader, progress)
        with run.average.applied() if run.average is not None else nullcontext():
            probabilities, labels, _ = evaluate(run, validation_loader)
            accuracy = segment_accuracy([clip.argmax(axis=1) for clip in probabilities], labels)
            loss = progress["loss_sum"] / progress["batch"]
            history.append({"epoch": epoch, "loss": loss, "validation_accuracy": accuracy})
            if best_epoch(history) == epoch and run.accelerator.is_main_process:
                save_checkpoint(args.output_dir, run.model, processor)
        logger.info("epoch %d  loss %.3f  accuracy %.4f", epoch, loss, accuracy)
        run.accelerator.log({"epoch": epoch, "epoch_loss": loss, "validation_accuracy": accuracy}, progress["step"])
        progress.update(epoch=epoch + 1, batch=0, loss_sum=0.0)
        run.state.save(progress)


def best_epoch(history: Sequence[dict]) -> int:
    """The first of the epochs with the highest accuracy."""
    return max(history, key=lambda record: record["validation_accuracy"])["epoch"]


def measure(run: Run, source, validation_loader: ReadableBatches) -> tuple[dict[str, dict], dict[str, tuple]]:
    """Measures and predictions of the chosen localizer on validation and, this once, on the test split.

    The measures also say which rows are missing in them because they could not be read.
    """
    model = run.model
    if run.accelerator.num_processes > 1:
        run.accelerator.wait_for_everyone()
    load_trained_weights(model, run.args.output_dir)
    loaders, test = {"validation": validation_loader}, source.open("test")
    if test is not None:
        process = {"process_index": run.accelerator.process_index, "num_processes": run.accelerator.num_processes}
        loaders["test"] = build_prediction_loader(test, run.args.batch_size, run.args.num_workers, **process)
    predictions = {split: evaluate(run, loader) for split, loader in loaders.items()}
    shortest = model.config.min_event_segments
    results = {split: measure_decoders(*found[:2], shortest) for split, found in predictions.items()}
    results["unreadable"] = {
        split: source.unreadable(split) | dict(gather_object(list(loader.unreadable.items())))
        for split, loader in loaders.items()
    }
    return results, predictions


def write_results(run: Run, argv, results: dict, history: list, predictions: dict) -> None:
    """Write what was measured beside the localizer; push the folder where asked for."""
    folder, args = Path(run.args.output_dir), run.args
    content = {**results, "history": history, "best_epoch": best_epoch(history), **describe_run(args, argv)}
    save_predictions(folder / "predictions.safetensors", predictions)
    write_json(folder / "results.json", content)
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))  # without NaN, as the card wants it
    write_localizer_card(folder, content, model_name=args.push_to_hub or folder.name, dataset_name=data_name(run))
    if args.push_to_hub:
        logger.info("Pushed to %s", push_folder(folder, args.push_to_hub, private=args.private))


def data_name(run: Run) -> str:
    """The training data, as people call it."""
    categories = [run.model.config.id2label[index] for index in range(run.model.config.num_labels - 1)]
    path = Path(run.args.features_dir or run.args.h5_dir or run.args.data_dir)
    return "AVE" if categories == list(AVE_CATEGORIES) else path.resolve().name


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    check_output(args)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # else it names every file of every state
    # AGVA gets no gradient from features with a single location; the frozen towers' statistics never change.
    handler = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    options = {"kwargs_handlers": [handler], **build_trackers(args)}
    accelerator = build_accelerator(args.cpu, args.mixed_precision, **options)
    if not (args.features_dir or args.h5_dir or args.data_dir):
        use_synthetic_features(args, accelerator)
    set_seed(args.seed)
    source = open_source(args)
    localizer, processor = build_localizer_and_processor(args, source)
    towers = towers_fingerprint(localizer) if localizer.config.use_encoders else None
    if isinstance(source, FeatureSplits):
        source.expect(localizer.config, towers)
    is_weak = localizer.config.supervision == "weak"
    train_loader, validation_loader = build_dataloaders(args, accelerator, source, is_weak)
    fit_feature_norms(localizer, train_loader.dataset, args.seed)
    settings = {**run_settings(args, PATHS), "data": source.fingerprint, "towers": towers}
    run = build_run(args, accelerator, localizer, settings)
    results = run.state.finished() if args.resume else None
    if results is None:
        progress = run.state.begin(args.resume, args.overwrite)
        progress = progress or {"epoch": 0, "batch": 0, "step": 0, "loss_sum": 0.0, "history": []}
        if args.push_to_hub and accelerator.is_main_process:
            create_repository(args.push_to_hub, private=args.private)
        start_trackers(accelerator, args, progress["step"])
        train(run, train_loader, validation_loader, processor, progress)
        results, predictions = measure(run, source, validation_loader)
        if accelerator.is_main_process:
            write_results(run, argv, results, progress["history"], predictions)
        run.state.finish(results)
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
