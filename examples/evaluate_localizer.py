"""Evaluate localizers on a labelled split with several decoders.

What it reads: one localizer, or several that differ in their seed, and one of
- labelled videos of any kind that `ave_clip.data.open_dataset` reads (`--data`): the whole pipeline, from video files
  to events, with segments and kind of labels as the model has them;
- features of stage 2 (`--features_dir`), from the same towers;
- h5 files of other publications (`--h5_dir`), for a localizer that was trained on them.

What it writes: all measures of `ave_clip.training.metrics` for each decoder, with bootstrap intervals over the videos
and, for several localizers, mean and standard deviation, as JSON; prints the main ones as a table.
Several events at once (`ave_clip.training.multi_label_metrics`) are measured if the localizer or the labels have them.
Of localizers with an open vocabulary, seen and unseen classes are measured by themselves, too, with the F1 scores of
OV-AVEBench. With `--problem_type multi_label`, localizers with one label per segment are measured on the same events:

    accelerate launch examples/evaluate_localizer.py --model localizer --data AVE_Dataset --split test
    python examples/evaluate_localizer.py --model localizer --data unav100_annotations.json --video_dir videos
    python examples/evaluate_localizer.py --model seed0 seed1 seed2 --features_dir features --table markdown
    python examples/evaluate_localizer.py --model localizer --features_dir features --min_event_segments 1 2 3 4 5
    python examples/evaluate_localizer.py --model one several --data videos.csv --problem_type multi_label --per_class
    torchrun --nproc_per_node 2 examples/evaluate_localizer.py --cpu --model localizer --data AVE_Dataset
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.utils.data import Dataset, Subset
from transformers import AutoConfig

from ave_clip import AVEClipConfig, AVEClipForLocalization, AVEClipProcessor
from ave_clip.core.builtin_checkpoints import find_checkpoint, limits_of, resolve_checkpoint
from ave_clip.core.categories import MULTI_LABEL, SINGLE_LABEL
from ave_clip.core.events import DECODERS
from ave_clip.core.label_encoder import LabelEncoder
from ave_clip.core.label_space import LabelSpace
from ave_clip.data.splitting import SPLITS
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
from ave_clip.training.checkpoints import towers_fingerprint
from ave_clip.training.clip_windows import DEFAULT_WINDOW
from ave_clip.training.clips import ClipReader
from ave_clip.training.evaluation import (
    GATE_DECODER,
    choose_decoders,
    columns_of,
    render_classes,
    render_table,
    result_rows,
    state_baselines,
    summary_rows,
)
from ave_clip.training.features import FeatureStore
from ave_clip.training.metrics import summarize_runs
from ave_clip.training.multi_label_evaluation import with_several_labels
from ave_clip.training.open_vocabulary import check_unseen, set_data_labels
from ave_clip.training.prediction import SplitPredictions, predict_split
from ave_clip.training.seen_unseen import measure_seen_unseen
from ave_clip.training.splits import H5Splits, check_labelled, open_split

logger = get_logger("evaluate_localizer")

DEFAULT_MODEL = "ave-clip-tiny"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[DEFAULT_MODEL], help="Localizers: folders or Hub ids.")
    source = parser.add_mutually_exclusive_group(required=True)
    add_data_argument(source)
    source.add_argument("--features_dir", help="Output of stage 2.")
    source.add_argument("--h5_dir", help="Folder of audio_feature.h5 and visual_feature.h5.")
    parser.add_argument(
        "--annotations_dir", help="With --h5_dir: folder of Annotations.txt. Default: the same folder."
    )
    parser.add_argument(
        "--visual_file", default="visual_feature.h5", help="With --h5_dir: file of the visual features."
    )
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--output", help="JSON file for the results. Default: none.")
    add_measure_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=4, help="Clips per process.")
    parser.add_argument("--max_clips", type=int, help="Use only the first clips, for a trial run.")
    add_video_arguments(parser, segment_seconds=False)
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    check_arguments(parser, args)
    return args


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", choices=("text", "markdown"), default="text", help="Style of the printed table.")
    parser.add_argument(
        "--decoders",
        nargs="+",
        choices=(*DECODERS, GATE_DECODER),
        help="Default: every decoder the model supports.",
    )
    parser.add_argument(
        "--problem_type",
        choices=(SINGLE_LABEL, MULTI_LABEL),
        help="Labels to measure on. Default: several per segment if a localizer or the features have them.",
    )
    parser.add_argument(
        "--event_threshold",
        type=float,
        help="Probability from which one of several labels is active. Default: the processor's.",
    )
    parser.add_argument(
        "--unseen_labels",
        nargs="*",
        metavar="LABEL",
        help="Classes to measure as unseen. Default: those that a localizer with an open vocabulary did not train.",
    )
    parser.add_argument(
        "--label_encoder",
        help="With --data: the encoder with a text tower, for classes that an open vocabulary has no embeddings of.",
    )
    parser.add_argument("--per_class", action="store_true", help="Also print a table of the classes.")
    parser.add_argument(
        "--min_event_segments",
        type=int,
        nargs="+",
        help="Minimum lengths of events to compare. Default: the model's setting.",
    )
    parser.add_argument(
        "--num_resamples", type=int, default=1000, help="Resamples of the bootstrap; 0 for no intervals."
    )


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if len(set(args.model)) < len(args.model):
        parser.error(f"--model contains a localizer twice: {args.model}")
    for name in ("batch_size", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.min_event_segments and min(args.min_event_segments) < 1:
        parser.error(f"--min_event_segments are numbers of segments from 1, got {args.min_event_segments}")
    if args.event_threshold is not None and not 0 < args.event_threshold < 1:
        parser.error(f"--event_threshold is a probability between 0 and 1, got {args.event_threshold}")


def load_localizer(name: str) -> AVEClipForLocalization:
    """Load a localizer.

    Raises:
        OSError: if there is none of that name.
        ValueError: if the checkpoint is another model.
    """
    found = AutoConfig.from_pretrained(find_checkpoint(name)).model_type
    if found != AVEClipConfig.model_type:
        raise ValueError(
            f"{name} is a checkpoint of {found!r}, but a localizer ({AVEClipConfig.model_type!r}) is needed. "
            "Train one with train_localizer.py."
        )
    return AVEClipForLocalization.from_pretrained(name)


def load_processor(name: str) -> AVEClipProcessor:
    """Load the processor of a localizer.

    Raises:
        ValueError: if it has none.
    """
    try:
        return AVEClipProcessor.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"{name} has no processor, which reads the videos of --data ({error}). Save one next to the localizer "
            "(processor.save_pretrained), or evaluate on features: --features_dir or --h5_dir."
        ) from error


def time_grid(name: str) -> dict[str, Any]:
    """Return the time grid of a localizer's processor; empty without a processor."""
    try:
        video_processor = load_processor(name).video_processor
    except ValueError:
        return {}
    return {key: getattr(video_processor, key) for key in ("num_frames_per_segment", "segment_seconds")}


def check_categories(found: Sequence[str], localizer: AVEClipForLocalization) -> None:
    """Check that data set and model have the same classes.

    Raises:
        ValueError: if they do not.
    """
    known = list(LabelSpace.of(localizer.config).event_names)
    if list(found) != known:
        raise ValueError(
            f"The data set has the {len(found)} categories {list(found)}, the model {len(known)}: {known}. "
            "They must be the same, in the same order."
        )


def has_several_labels(names: Sequence[str]) -> bool:
    """Whether one of the localizers predicts several labels per segment."""
    configs = [AutoConfig.from_pretrained(find_checkpoint(name)) for name in names]
    return any(getattr(config, "problem_type", SINGLE_LABEL) == MULTI_LABEL for config in configs)


def open_clips(args: argparse.Namespace, name: str, localizer: AVEClipForLocalization) -> Dataset:
    """Open the clips of the split, which are read lazily.

    Raises:
        ValueError: if the split has no labels, other categories, or was made by other towers.
    """
    if args.data:
        return open_videos(args, name, localizer)
    if args.features_dir:
        clips = FeatureStore(Path(args.features_dir) / args.split)
        clips.check_labels()
        clips.check_encoder(towers_fingerprint(localizer))
        names = LabelSpace(tuple(clips.manifest["id2label"].values()), clips.problem_type).event_names
        if localizer.takes_labels:
            set_data_labels(localizer, names, args.features_dir)
        check_categories(names, localizer)
        grid = {key: value for key, value in time_grid(name).items() if key in clips.manifest}
        clips.check_settings(visual_feature_type=localizer.config.visual_feature_type, **grid)
    else:
        splits = H5Splits(args.h5_dir, annotations_dir=args.annotations_dir, visual_file=args.visual_file)
        check_categories(LabelSpace(tuple(splits.id2label.values())).event_names, localizer)
        clips = splits.open(args.split)
        if clips is None:
            raise ValueError(f"{args.h5_dir} has no {args.split} split, only {list(splits.splits)}.")
    return Subset(clips, range(min(args.max_clips, len(clips)))) if args.max_clips else clips


def open_videos(args: argparse.Namespace, name: str, localizer: AVEClipForLocalization) -> ClipReader:
    """Open the videos of the split, as in `open_clips`."""
    processor = load_processor(name)
    labels = {
        "problem_type": args.problem_type or SINGLE_LABEL,
        "segment_seconds": processor.video_processor.segment_seconds,
    }
    examples = open_split(args.data, args.split, **video_options(args, **labels))
    if localizer.takes_labels:
        if args.label_encoder is not None:
            localizer.label_encoder = LabelEncoder.from_pretrained(args.label_encoder)
        set_data_labels(localizer, examples.features["category"].names, None)
    check_categories(examples.features["category"].names, localizer)
    check_labelled(args.split, examples)
    return ClipReader(examples.select(range(min(len(examples), args.max_clips or len(examples)))), processor)


def evaluate(
    args: argparse.Namespace, accelerator: Accelerator, name: str
) -> tuple[dict[str, dict], SplitPredictions]:
    """Evaluate one localizer on the split; returns its measures by decoder, and its predictions."""
    localizer = load_localizer(name)
    clips = open_clips(args, name, localizer)
    has_gate = localizer.config.use_event_attention
    space = LabelSpace.of(localizer.config)
    names, trained = space.event_names, localizer.config.trained_labels
    decoders = choose_decoders(args.decoders, has_gate, space.problem_type)
    shortest = list(dict.fromkeys(args.min_event_segments or [localizer.config.min_event_segments]))
    longest = localizer.config.max_segments or DEFAULT_WINDOW
    localizer = accelerator.prepare_model(localizer, evaluation_mode=True)
    predictions = predict_split(accelerator, localizer, clips, args.batch_size, args.num_workers, longest)
    if args.features_dir:  # rows that stage 2 could not read
        predictions.unreadable |= FeatureStore(Path(args.features_dir) / args.split).failed
    num_clips = len(predictions.rows) + len(predictions.unreadable)
    if predictions.unreadable:
        logger.warning("%d of %d clips could not be read and are left out:", len(predictions.unreadable), num_clips)
        for row, reason in predictions.unreadable.items():
            logger.warning("row %d: %s", row, reason)
    if args.problem_type == MULTI_LABEL:
        predictions = with_several_labels(predictions)
    options = {"names": names, "unseen": unseen_labels(args, trained, names), **event_settings(args, name, clips)}
    return measure_seen_unseen(predictions, decoders, shortest, args.num_resamples, **options), predictions


def unseen_labels(args: argparse.Namespace, trained: Sequence[str] | None, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes to measure as unseen, of a localizer that was trained on `trained`."""
    if args.unseen_labels is not None:
        return check_unseen(args.unseen_labels, names)
    return () if trained is None else tuple(name for name in names if name not in trained)


def event_settings(args: argparse.Namespace, name: str, clips: Dataset) -> dict[str, float]:
    """Return the length of a segment and the threshold of a localizer; features may come without a processor."""
    while isinstance(clips, Subset):
        clips = clips.dataset
    default = clips.manifest.get("segment_seconds", 1.0) if isinstance(clips, FeatureStore) else 1.0
    seconds = time_grid(name).get("segment_seconds", default)
    try:
        threshold = args.event_threshold or load_processor(name).event_threshold
    except ValueError:
        threshold = 0.5
    return {"segment_seconds": seconds, "threshold": threshold}


def summarize(args: argparse.Namespace, models: dict[str, dict[str, dict]]) -> dict[str, Any]:
    """Return the content of the results file: measures by decoder of one model, or of each and their summary."""
    first = next(iter(models.values()))
    points = next(iter(first.values()))["baselines"]
    content = {"baselines": {**points, "statement": state_baselines(points)}}
    if len(models) == 1:
        content["decoders"] = first
    else:
        shared = [setting for setting in first if all(setting in results for results in models.values())]
        summary = {setting: summarize_runs([results[setting] for results in models.values()]) for setting in shared}
        content |= {"models": models, "summary": {"count": len(models), "metrics": summary}}
    return content


def show(args: argparse.Namespace, content: dict[str, Any], models: dict[str, dict[str, dict]]) -> None:
    """Print the main measures, the baselines and, if requested, those of the first decoder for each class."""
    short = {name: Path(name).name for name in models}
    titles = short if len(set(short.values())) == len(short) else {name: name for name in models}
    rows = [row for name, results in models.items() for row in result_rows(titles[name], results)]
    if "summary" in content:
        rows += summary_rows(content["summary"]["metrics"])
    print(render_table(rows, args.table, columns_of(next(iter(models[args.model[0]].values())))))
    print(f"\n{content['baselines']['statement']}")
    for name, results in models.items() if args.per_class else ():
        decoder, metrics = next(iter(results.items()))
        names = LabelSpace.of(AutoConfig.from_pretrained(name)).event_names
        print(f"\n{titles[name]}, {decoder}:\n\n{render_classes(metrics, args.table, names)}")


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Returns measures by decoder: of one model, or mean and standard deviation over several."""
    args = parse_args(argv)
    start_logging()
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    models, unreadable = {}, {}
    if args.problem_type is None and has_several_labels(args.model):
        args.problem_type = MULTI_LABEL
    if args.model == [DEFAULT_MODEL]:
        logger.warning("no --model given: the built-in %s", limits_of(resolve_checkpoint(DEFAULT_MODEL)))
    for name in args.model:
        models[name], predictions = evaluate(args, accelerator, name)
        unreadable |= predictions.unreadable
    content = summarize(args, models)
    if accelerator.is_main_process:
        show(args, content, models)
        facts = {"split": args.split, "unreadable": len(unreadable), "unreadable_rows": unreadable}
        facts["num_processes"] = accelerator.num_processes
        if args.output:
            write_json(args.output, {**facts, **content, **describe_run(args, argv)})
    accelerator.end_training()
    return content["decoders"] if len(models) == 1 else content["summary"]["metrics"]


if __name__ == "__main__":
    with program():
        main()
