"""The data of stage 3: which splits its arguments name, and the loaders of training and validation."""

import argparse
import logging
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..core.configuration_ave_clip import AVEClipConfig
from ..core.label_space import LabelSpace
from ..core.losses import IGNORED_LABEL
from ..core.text import counted
from ..data.h5 import AUDIO_FILE, VISUAL_FILE
from .arguments import add_data_argument, add_video_arguments, video_options
from .class_weights import set_class_weights
from .clip_windows import DEFAULT_WINDOW, ClipWindows, labels_of
from .feature_augmentation import change_features
from .folds import FoldSplits
from .open_vocabulary import Vocabulary, check_unseen, load_label_embeddings
from .sampling import GlobalBatchSampler
from .splits import (
    FeatureSplits,
    H5Splits,
    ReadableBatches,
    SplitError,
    Splits,
    VideoSplits,
    build_prediction_loader,
    build_train_loader,
    check_whole_videos,
    choose_clips,
)

logger = logging.getLogger(__name__)
MAX_SHOWN = 10  # names in a warning
LONGEST_WEAK = 600  # segments of a video under weak supervision, which learns from whole videos, unless configured


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name the training data; `check_source_arguments` checks their values."""
    source = parser.add_argument_group("data").add_mutually_exclusive_group()
    source.add_argument(
        "--features_dir", help="Output of stage 2. Default without this and the next two: synthetic clips."
    )
    source.add_argument("--h5_dir", help="Folder of h5 features of previous work; needs no --model.")
    add_data_argument(source)
    add_video_arguments(parser)
    parser.add_argument("--num_frames_per_segment", type=int, default=16, help="With --data: frames per segment.")
    parser.add_argument(
        "--annotations_dir", help="With --h5_dir: folder of Annotations.txt. Default: the same folder."
    )
    parser.add_argument("--audio_file", default=AUDIO_FILE, help="With --h5_dir.")
    parser.add_argument("--visual_file", default=VISUAL_FILE, help="With --h5_dir.")
    parser.add_argument("--fold", metavar="K/N", help="With --features_dir: one fold of a cross-validation.")
    parser.add_argument("--groups", help="With --fold: CSV of split, row, group; a group is never divided.")
    parser.add_argument(
        "--open_vocabulary", action="store_true", help="Compare segments with the label embeddings of stage 2."
    )
    parser.add_argument(
        "--unseen_labels",
        nargs="+",
        metavar="LABEL",
        help="With --open_vocabulary: classes to hold out of training. Default: those that the data set names.",
    )
    parser.add_argument("--max_train_clips", type=int, help="Train on a seeded subset of this many clips.")


def check_source_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with a usage error if the arguments of `add_source_arguments` contradict each other."""
    # argparse sees the command line only, not the file of --config.
    if sum(path is not None for path in (args.features_dir, args.h5_dir, args.data)) > 1:
        parser.error(
            "pass one of --features_dir (stage 2), --h5_dir (features of previous work) and --data (raw clips)"
        )
    if args.unseen_labels and not args.open_vocabulary:
        parser.error("--unseen_labels can be found by an open vocabulary only: add --open_vocabulary")
    if args.open_vocabulary and not args.features_dir:
        parser.error("--open_vocabulary needs --features_dir: stage 2 stores the embeddings of the class names there")
    if (args.fold and not args.features_dir) or (args.groups and not args.fold):
        parser.error("--fold needs --features_dir, and --groups needs --fold")


def open_source(args: argparse.Namespace, is_weak: bool) -> Splits:
    """Opens the training data that the arguments name.

    Args:
        args (`argparse.Namespace`): With the arguments of `add_source_arguments`, of which one names data.
        is_weak (`bool`): Whether supervision is weak: h5 features then include the noisy clips of that setting.
    """
    if args.h5_dir:
        files = {"audio_file": args.audio_file, "visual_file": args.visual_file}
        return H5Splits(args.h5_dir, is_weak, annotations_dir=args.annotations_dir, **files)
    if args.fold:
        return FoldSplits(args.features_dir, args.fold, args.groups)
    return VideoSplits(args.data, **video_options(args)) if args.data else FeatureSplits(args.features_dir)


def open_vocabulary(args: argparse.Namespace, source: Splits) -> Vocabulary | None:
    """Reads the embeddings of the classes and which of them are unseen; `None` without `--open_vocabulary`.

    Raises:
        FeatureStoreError: If the features have no embedding of a class.
        ValueError: If `--unseen_labels` are not classes of the data, or all of them.
    """
    if not args.open_vocabulary:
        return None
    assert isinstance(source, FeatureSplits)  # `check_source_arguments`
    names = LabelSpace(tuple(source.id2label.values()), source.problem_type).event_names
    embeddings = load_label_embeddings(args.features_dir, names, source.manifest["encoder_fingerprint"])
    unseen = source.manifest.get("unseen_labels", ()) if args.unseen_labels is None else args.unseen_labels
    return Vocabulary(names, embeddings, check_unseen(unseen, names))


def build_loaders(
    args: argparse.Namespace,
    accelerator: Accelerator,
    source: Splits,
    config: AVEClipConfig,
    vocabulary: Vocabulary | None = None,
) -> tuple[DataLoader, ReadableBatches]:
    """Builds the loaders of the training and the validation split, each with this process's part of the clips.

    With `--class_weighting` the class weights of the training clips are set in `config`.

    Raises:
        SplitError: If one of the splits is missing or empty, or a video is too long for weak supervision.
        ValueError: If the changes of features that the arguments ask for do not fit the supervision.
    """
    is_weak = config.supervision == "weak"
    splits: dict[str, Any] = {split: source.open(split) for split in ("train", "validation")}
    for split, clips in splits.items():
        if clips is None or not len(clips):
            raise SplitError(
                f"There is no {split} split, which training needs. Check the data arguments; of data without splits, "
                "--split_fractions 0.8 0.1 0.1 makes them."
            )
    if vocabulary is not None:
        splits = {split: vocabulary.seen_clips(clips, split) for split, clips in splits.items()}
    chosen = choose_clips(splits["train"], args.max_train_clips, args.seed)
    if vocabulary is None and accelerator.is_main_process:
        warn_of_unlearnable(chosen, LabelSpace(tuple(source.id2label.values()), source.problem_type))
    if args.class_weighting is not None:
        set_class_weights(config, chosen, args.class_weighting)
    size = window_size(config)
    if is_weak:
        size = check_whole_videos(chosen, "train", config.max_segments or LONGEST_WEAK)
    # Only the boundary head learns from the events themselves; without a length of segments, windows have none.
    seconds = source.segment_seconds if config.boundary_regression else None
    clips = change_features(args, ClipWindows(chosen, size, args.seed, seconds), config)
    process = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    sampler = GlobalBatchSampler(len(clips), args.batch_size, seed=args.seed, **process)
    train = build_train_loader(clips, sampler, is_weak, args.num_workers)
    options = {**process, "max_segments": window_size(config)}
    return train, build_prediction_loader(splits["validation"], args.batch_size, args.num_workers, **options)


def classes_without_examples(clips: Any, space: LabelSpace) -> list[str]:
    """Returns the classes that occur in no segment of the clips; none if labels of segments are withheld.

    Args:
        clips (`Dataset`): Training clips, of which only the labels are read.
        space ([`LabelSpace`]): Their classes.
    """
    absent = set(range(len(space.event_names)))
    for index in range(len(clips)):
        if not absent:
            break
        labels = np.asarray(labels_of(clips, index))
        if (labels == IGNORED_LABEL).all():
            return []  # the class of such a clip may be known, but not from its segments
        present = np.flatnonzero((labels == 1).any(axis=0)) if labels.ndim == 2 else labels
        absent -= set(present.tolist())
    return [space.event_names[index] for index in sorted(absent)]


def warn_of_unlearnable(clips: Any, space: LabelSpace) -> None:
    """Logs which classes occur in no training clip."""
    absent = classes_without_examples(clips, space)
    if absent:
        shown = ", ".join(absent[:MAX_SHOWN]) + (", ..." if len(absent) > MAX_SHOWN else "")
        logger.warning(
            "%d of %d classes occur in none of the %s: %s. The localizer cannot learn them; add clips of them.",
            *(len(absent), len(space.event_names), counted(len(clips), "training clip"), shown),
        )


def window_size(config: AVEClipConfig) -> int:
    """Returns the largest number of segments that are trained or predicted at once, so that memory is bounded."""
    return config.max_segments or DEFAULT_WINDOW
