"""Stage 3: train the localizer on features (of stage 2, or h5 files of previous work), or on raw clips.

What it learns: the event that is both seen and heard in each segment, or background (hybrid loss, eq. 17). With
`--localizer supervision=weak` it learns from one label per video, as AVEL and PSP define it; it is evaluated in the
same way. The towers are frozen.
What it reads: `--features_dir` of stage 2 with the `--model` that made them; or `--h5_dir`, features of any kind in
the layout of AVE's h5 files; or `--data`, labelled videos of any kind that `ave_clip.data.open_dataset` reads. Of long
videos it draws windows of `max_segments` segments (a field of the localizer), others in each epoch.
With `--open_vocabulary` it learns to compare segments with the embeddings of the class names, which stage 2 stored if
its encoder takes texts; `--unseen_labels` are held out of training, and measured by themselves at the end.
What it writes: the best localizer on the validation split (by segment accuracy or, with several labels per segment, by
segment mAP) with its processor, `results.json`,
`predictions.safetensors` (validation and test), a model card, `metrics.jsonl`, and a state to `--resume` from. The
test split, if there is one, is used once, at the end.

    accelerate launch examples/train_localizer.py --model stage1 --features_dir features --output_dir localizer

Without arguments it makes synthetic clips, encodes them with the towers of the checkpoint in the package, and trains
on them.
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
from transformers import get_cosine_schedule_with_warmup

from ave_clip import AVEClipConfig, AVEClipForLocalization, AVEClipProcessor
from ave_clip.checkpoints.cards import write_localizer_card
from ave_clip.checkpoints.push import add_hub_arguments, create_repository, push_folder
from ave_clip.core.categories import AVE_CATEGORIES, MULTI_LABEL, SINGLE_LABEL
from ave_clip.core.configuration_ave_clip import PRESETS
from ave_clip.core.events import decoders_of
from ave_clip.core.label_space import LabelSpace
from ave_clip.core.losses import IGNORED_LABEL
from ave_clip.data import generate_synthetic_ave
from ave_clip.data.synthetic.clips import GENERATOR_VERSION
from ave_clip.programs import program, start_logging
from ave_clip.training.arguments import (
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    parse_overrides,
    write_json,
)
from ave_clip.training.averaging import ExponentialAverage
from ave_clip.training.checkpoints import (
    build_localizer,
    load_encoder,
    load_processor,
    load_trained_weights,
    save_checkpoint,
    towers_fingerprint,
)
from ave_clip.training.class_weights import CLASS_WEIGHTINGS
from ave_clip.training.clip_windows import truth_of
from ave_clip.training.dropout import KeyedDropout, use_keyed_dropout
from ave_clip.training.feature_augmentation import ChangedFeatures, add_augmentation_arguments
from ave_clip.training.feature_statistics import fit_feature_norms
from ave_clip.training.localizer_data import (
    add_source_arguments,
    build_loaders,
    check_source_arguments,
    open_source,
    open_vocabulary,
    window_size,
)
from ave_clip.training.metrics import segment_accuracy
from ave_clip.training.multi_label_evaluation import validation_segment_map
from ave_clip.training.networks import build_network, network_config
from ave_clip.training.open_vocabulary import Vocabulary
from ave_clip.training.prediction import SplitPredictions, predict_clips, save_predictions
from ave_clip.training.run_state import STATE_FOLDER, RunState, add_resume_arguments, check_output, run_settings
from ave_clip.training.seen_unseen import measure_seen_unseen
from ave_clip.training.splits import (
    FeatureSplits,
    H5Splits,
    ReadableBatches,
    VideoSplits,
    build_prediction_loader,
)
from ave_clip.training.tracking import add_tracking_arguments, build_trackers, start_trackers

logger = get_logger("train_localizer")
SYNTHETIC_FOLDER = Path.home() / ".cache" / "ave_clip" / f"synthetic-{GENERATOR_VERSION}"
NUM_SYNTHETIC = 400
# By which measure of the validation split the best epoch is chosen.
SELECTION = {SINGLE_LABEL: "validation_accuracy", MULTI_LABEL: "validation_segment_map"}
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# Compared by content, so that a run can be resumed after they were moved.
PATHS = ("model", "features_dir", "h5_dir", "annotations_dir", "audio_file", "visual_file", "data", "video_dir")
PATHS += ("groups",)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser)
    parser.add_argument("--model", default="ave-clip-tiny", help="AudioCLIP, or a localizer for its towers.")
    parser.add_argument("--output_dir", default="localizer", help="Folder of the best localizer.")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="default", help="The default network, or exactly the paper's."
    )
    parser.add_argument("--localizer", nargs="*", default=[], metavar="FIELD=VALUE", help="Fields of AVEClipConfig.")
    parser.add_argument("--network", help="Train this network of `run_comparison.py` on features, without --model.")
    parser.add_argument("--blank_modality", choices=("audio", "video"), help="Set one modality's features to zero.")
    add_training_arguments(parser)
    add_augmentation_arguments(parser)
    add_resume_arguments(parser)
    add_tracking_arguments(parser)
    add_hub_arguments(parser)
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    check_source_arguments(parser, args)
    if args.network and not (args.features_dir or args.h5_dir):
        parser.error("--network is trained on features: pass --features_dir or --h5_dir")
    if args.network and (args.push_to_hub or args.open_vocabulary):
        parser.error("--network is for comparisons: leave --push_to_hub and --open_vocabulary out")
    for name in ("num_epochs", "batch_size", "patience", "max_steps", "save_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--num_epochs", type=int, default=300)
    group.add_argument("--batch_size", type=int, default=128, help="Clips per step, over all processes.")
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="adam")
    group.add_argument("--learning_rate", type=float, default=5e-4)
    group.add_argument("--weight_decay", type=float, default=0.0)
    group.add_argument("--warmup_epochs", type=float, default=1.0, help="Followed by a cosine decay to zero.")
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument(
        "--ema", type=float, metavar="DECAY", help="Evaluate and save an exponential moving average of the weights."
    )
    group.add_argument(
        "--class_weighting",
        choices=tuple(CLASS_WEIGHTINGS),
        help="With several labels per segment: weigh the loss of active classes by their frequency in the training "
        "split: by its inverse, or by the inverse of the effective number of segments (Cui et al. 2019).",
    )
    group.add_argument("--patience", type=int, default=40, help="Stop after this many epochs without improvement.")
    group.add_argument("--max_steps", type=int, help="Limit the steps per epoch, for a trial run.")


def use_synthetic_features(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Make synthetic clips and their features, unless they exist, and set `--features_dir` to them."""
    import extract_features

    logger.warning(
        "No --features_dir given: training on synthetic clips, which are not about real events. For AVE, run "
        "extract_features.py --model AUDIOCLIP --data AVE_Dataset --output_dir features, then this script with "
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
    extract_features.main(["--model", args.model, "--data", str(clips), "--output_dir", str(features), *options])
    args.features_dir = str(features)


def localizer_fields(args: argparse.Namespace) -> dict[str, object]:
    """Return the fields of the network's configuration that the arguments set."""
    if args.network:
        return parse_overrides(args.localizer, network_config(args.network))
    return {**PRESETS[args.preset], **parse_overrides(args.localizer, AVEClipConfig)}


def build_localizer_and_processor(args: argparse.Namespace, source, vocabulary: Vocabulary | None):
    """Build the localizer on the frozen towers of `--model` and its processor; h5 features need no towers."""
    if args.network:
        return build_network(args.network, source, localizer_fields(args)), None
    overrides = {**source.overrides, **localizer_fields(args)}
    if vocabulary is not None:
        overrides["label_embedding_size"] = vocabulary.embeddings.shape[1]
    if isinstance(source, H5Splits):
        return AVEClipForLocalization(AVEClipConfig(id2label=source.id2label, **overrides)), None
    encoder = load_encoder(args.model)
    localizer = build_localizer(encoder, source.id2label, overrides)
    grid = (args.num_frames_per_segment, args.segment_seconds)
    if isinstance(source, FeatureSplits):
        grid = (source.manifest["num_frames_per_segment"], source.manifest["segment_seconds"])
    processor = load_processor(args.model, encoder, *grid, localizer.config)
    if isinstance(source, VideoSplits):
        source.processor = processor
    return localizer, processor


@dataclass
class Run:
    """The objects of a training run, as Accelerate prepared them."""

    args: argparse.Namespace
    accelerator: Accelerator
    localizer: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    dropout: KeyedDropout
    average: ExponentialAverage | None
    state: RunState
    vocabulary: Vocabulary | None = None

    @property
    def model(self) -> AVEClipForLocalization:
        """The localizer without wrapping."""
        return self.accelerator.unwrap_model(self.localizer)


def build_run(
    args: argparse.Namespace, accelerator: Accelerator, localizer, steps_per_epoch: int, settings: dict
) -> Run:
    """Prepare the localizer and its optimizer; the frozen towers have no gradients and are not saved in states."""
    dropout = use_keyed_dropout(localizer)
    trained = [parameter for parameter in localizer.parameters() if parameter.requires_grad]
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": True}
    optimizer = OPTIMIZERS[args.optimizer](trained, **options)
    warmup, num_steps = round(args.warmup_epochs * steps_per_epoch), args.num_epochs * steps_per_epoch
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, num_steps)
    localizer, optimizer = accelerator.prepare(localizer, optimizer)
    accelerator.register_for_checkpointing(scheduler)  # not prepared: it would step once per process
    average = None
    if args.ema is not None:
        average = ExponentialAverage(accelerator.unwrap_model(localizer), args.ema)
        accelerator.register_for_checkpointing(average)
    state = RunState(accelerator, Path(args.output_dir) / STATE_FOLDER, settings)
    return Run(args, accelerator, localizer, optimizer, scheduler, dropout, average, state)


def model_inputs(batch: dict[str, torch.Tensor], blank_modality: str | None) -> dict[str, torch.Tensor]:
    """Return the model's inputs from a batch, with one modality set to zero if requested."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("rows", "first")}
    blanked = {"audio": ("audio_features", "input_values"), "video": ("image_features", "pixel_values")}
    for name in blanked.get(blank_modality, ()):
        if name in inputs:
            inputs[name] = torch.zeros_like(inputs[name])
    return inputs


def weigh_loss(
    accelerator: Accelerator, loss: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the global loss, and this process's loss weighted so that its mean over processes is the global one."""
    if accelerator.num_processes == 1:
        return loss.detach(), loss
    count = (labels != IGNORED_LABEL).sum()
    total, total_count = accelerator.reduce(torch.stack([loss.detach() * count, count]), "sum")
    total_count = total_count.clamp(min=1)  # all labels of the batch may be unknown
    return total / total_count, loss * count * accelerator.num_processes / total_count


def check_finite(run: Run, name: str, value: float, progress: dict, rows: torch.Tensor) -> None:
    """Stop all processes before a NaN or infinite value reaches the weights."""
    if math.isfinite(value):
        return
    output = Path(run.args.output_dir)
    kept = f"{output / STATE_FOLDER} keeps the last good state" if progress["history"] or run.args.save_steps else ""
    best = f"{output} the best localizer so far" if progress["history"] else "No epoch was finished yet"
    raise RuntimeError(
        f"The {name} is {value} at step {progress['step']} (epoch {progress['epoch']}, batch {progress['batch']}), "
        f"rows {sorted(gather_object(rows.tolist()))}. {' and '.join(filter(None, [kept, best]))}. Check the "
        "features of those rows; when they are repaired, continue with --resume. Or start from scratch with "
        "--overwrite and a lower --learning_rate."
    )


def train_epoch(run: Run, loader: DataLoader, progress: dict) -> None:
    """Train for one epoch, from the batch in `progress` on, and update `loss_sum` and `batch` in it."""
    args, accelerator = run.args, run.accelerator
    steps_per_epoch = count_steps(args, loader)
    loader.batch_sampler.set_epoch(progress["epoch"], progress["batch"])
    loader.dataset.set_epoch(progress["epoch"])
    run.localizer.train()
    for batch in loader:
        if progress["batch"] >= steps_per_epoch:
            break
        batch = send_to_device(batch, accelerator.device)
        run.dropout.set(args.seed, progress["epoch"], batch["rows"])
        loss = run.localizer(**model_inputs(batch, args.blank_modality)).loss
        global_loss, loss = weigh_loss(accelerator, loss, batch["labels"])
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(run.localizer.parameters(), args.max_grad_norm)
        # Reading a value waits for the GPU, so this comes after all work before the optimizer's step is queued.
        global_loss = global_loss.item()
        check_finite(run, "loss", global_loss, progress, batch["rows"])
        if accelerator.scaler is None:  # with fp16 the scaler skips such steps
            check_finite(run, "gradient's norm", float(norm), progress, batch["rows"])
        rate = run.scheduler.get_last_lr()[0]
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad()
        if run.average is not None:
            run.average.update()
        progress["step"] += 1
        progress["batch"] += 1
        progress["loss_sum"] += global_loss
        accelerator.log({"loss": global_loss, "learning_rate": rate}, step=progress["step"])
        if args.save_steps and progress["step"] % args.save_steps == 0:
            run.state.save(progress)


def count_steps(args: argparse.Namespace, loader: DataLoader) -> int:
    """Return the number of steps per epoch."""
    return min(len(loader.batch_sampler.global_sizes), args.max_steps or math.inf)


def evaluate(run: Run, loader: DataLoader) -> SplitPredictions:
    """Predict the clips of a split."""

    def prepare(inputs):
        return model_inputs(inputs, run.args.blank_modality)

    found = predict_clips(run.accelerator, run.localizer, loader, prepare)
    found.truth = truth_of(loader.loader.dataset)
    return found


def train(run: Run, train_loader: DataLoader, validation_loader: DataLoader, processor, progress: dict) -> None:
    """Train for the remaining epochs; saves the state after each, and the localizer if it is the best."""
    args, history = run.args, progress["history"]
    for epoch in range(progress["epoch"], args.num_epochs):
        if history and history[-1]["epoch"] - best_epoch(history) >= args.patience:
            break
        train_epoch(run, train_loader, progress)
        with run.average.applied() if run.average is not None else nullcontext():
            found = evaluate(run, validation_loader)
            score = validation_score(found)
            loss = progress["loss_sum"] / progress["batch"]
            history.append({"epoch": epoch, "loss": loss, **score})
            if best_epoch(history) == epoch and run.accelerator.is_main_process:
                with run.vocabulary.all_labels(run.model) if run.vocabulary is not None else nullcontext():
                    save_checkpoint(args.output_dir, run.model, processor)
        for name, value in score.items():
            title = name.removeprefix("validation_").replace("_", " ")
            logger.info("epoch %d  loss %.3f  %s %.4f", epoch, loss, title, value)
        run.accelerator.log({"epoch": epoch, "epoch_loss": loss, **score}, progress["step"])
        progress.update(epoch=epoch + 1, batch=0, loss_sum=0.0)
        run.state.save(progress)


def validation_score(found: SplitPredictions) -> dict[str, float]:
    """Return the measure by which the best epoch is chosen, with its name in the history."""
    if found.problem_type == MULTI_LABEL:
        return {SELECTION[MULTI_LABEL]: validation_segment_map(found)}
    accuracy = segment_accuracy([clip.argmax(axis=1) for clip in found.probabilities], found.labels)
    return {SELECTION[SINGLE_LABEL]: accuracy}


def best_epoch(history: Sequence[dict]) -> int:
    """Return the first epoch with the highest accuracy or, with several labels per segment, segment mAP."""
    name = next(name for name in SELECTION.values() if name in history[0])
    # Without any event in the validation split, segment mAP is NaN, which a file stores as null.
    values = [-math.inf if record[name] is None or math.isnan(record[name]) else record[name] for record in history]
    return history[values.index(max(values))]["epoch"]


def measure(run: Run, source, validation_loader: ReadableBatches) -> tuple[dict, dict[str, SplitPredictions]]:
    """Evaluate the best localizer on the validation and, for the first time, the test split, with all classes.

    Returns:
        The measures by split, with the rows that could not be read in `"unreadable"`, and the predictions by split.
    """
    model = run.model
    if run.accelerator.num_processes > 1:
        run.accelerator.wait_for_everyone()
    process = {"process_index": run.accelerator.process_index, "num_processes": run.accelerator.num_processes}
    process["max_segments"] = window_size(model.config)
    loaders, unopened = {"validation": validation_loader}, ["test"]
    if run.vocabulary is not None:
        run.vocabulary.use_all(model)
        unopened.insert(0, "validation")  # with the clips that training left out
    load_trained_weights(model, run.args.output_dir)
    for split in unopened:
        clips = source.open(split)
        if clips is not None:
            loaders[split] = build_prediction_loader(clips, run.args.batch_size, run.args.num_workers, **process)
    predictions = {split: evaluate(run, loader) for split, loader in loaders.items()}
    shortest, decoders = [model.config.min_event_segments], decoders_of(model.config.problem_type)
    options = {"names": LabelSpace.of(model.config).event_names, "segment_seconds": source.segment_seconds}
    options["unseen"] = run.vocabulary.unseen if run.vocabulary is not None else ()
    results = {
        split: measure_seen_unseen(found, decoders, shortest, **options) for split, found in predictions.items()
    }
    results["unreadable"] = {
        split: source.unreadable(split) | dict(gather_object(list(loader.unreadable.items())))
        for split, loader in loaders.items()
    }
    return results, predictions


def write_results(run: Run, argv, results: dict, history: list, predictions: dict) -> None:
    """Write the results next to the localizer, and push the folder if requested."""
    folder, args = Path(run.args.output_dir), run.args
    content = {**results, "history": history, "best_epoch": best_epoch(history), **describe_run(args, argv)}
    save_predictions(folder / "predictions.safetensors", predictions)
    write_json(folder / "results.json", content)
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))  # the card needs null instead of NaN
    if args.network:  # a network for a comparison, which no pipeline loads
        logger.info("Wrote %s.", folder)
        return
    write_localizer_card(folder, content, model_name=args.push_to_hub or folder.name, dataset_name=data_name(run))
    if args.push_to_hub:
        logger.info("Pushed to %s", push_folder(folder, args.push_to_hub, private=args.private))
    following = f"ave-clip localize VIDEO --model {folder}"
    if not run.model.config.use_encoders:  # it takes features only
        following = f"python examples/evaluate_localizer.py --model {folder} --h5_dir {args.h5_dir}"
    logger.info("Wrote %s. Next: %s", folder, following)


def data_name(run: Run) -> str:
    """Return the name of the training data for the model card."""
    categories = list(LabelSpace.of(run.model.config).event_names)
    path = Path(run.args.features_dir or run.args.h5_dir or run.args.data)
    return "AVE" if categories == list(AVE_CATEGORIES) else path.resolve().name


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    start_logging()
    check_output(args)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs each file of each state
    # AGVA gets no gradient from features with a single location; the frozen towers' statistics never change.
    handler = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    options = {"kwargs_handlers": [handler], **build_trackers(args)}
    accelerator = build_accelerator(args.cpu, args.mixed_precision, **options)
    if not (args.features_dir or args.h5_dir or args.data):
        use_synthetic_features(args, accelerator)
    set_seed(args.seed)
    source = open_source(args, is_weak=localizer_fields(args).get("supervision") == "weak")
    vocabulary = open_vocabulary(args, source)
    localizer, processor = build_localizer_and_processor(args, source, vocabulary)
    towers = towers_fingerprint(localizer) if localizer.config.use_encoders else None
    if isinstance(source, FeatureSplits) and not args.network:
        source.expect(localizer.config, towers)
    if vocabulary is not None:
        vocabulary.use_seen(localizer)
    train_loader, validation_loader = build_loaders(args, accelerator, source, localizer.config, vocabulary)
    if isinstance(localizer, AVEClipForLocalization):
        clips = train_loader.dataset
        fit_feature_norms(localizer, clips.windows if isinstance(clips, ChangedFeatures) else clips, args.seed)
    settings = {**run_settings(args, PATHS), "data": source.fingerprint, "towers": towers}
    run = build_run(args, accelerator, localizer, count_steps(args, train_loader), settings)
    run.vocabulary = vocabulary
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
    with program():
        main()
        PartialState().destroy_process_group()
