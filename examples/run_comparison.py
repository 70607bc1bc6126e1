"""Compare AVE-CLIP with networks of previous work on the same features, with the same budget, in one table.

What it reads: features of stage 2 (`--data`, output of `extract_features.py`), or h5 files of previous work. With
`--folds` all clips are divided again, and over the folds each of them is tested once. `--groups` names the clips that
belong together, such as those with the same recording: a group is always in one part, and the intervals are computed
over groups.
What it writes: `comparison.json`, `comparison.md` and `comparison.png`: accuracy, background recall and precision,
event F1, the paired differences to the reference with intervals, parameters, training clips per second and memory. The
epoch is chosen on validation clips; test clips are used once.

    python examples/run_comparison.py --data features --seeds 3 --folds 4 --output_dir comparison

Without `--data` it makes synthetic clips and their features, and compares on those. A run that was killed resumes:
finished trainings are kept. `--models` selects networks and variants of them.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import train_localizer
from maintenance.ablation_tables import CONFIGS, Counts, count_seeds, describe_test, read_predictions
from maintenance.comparison_tables import draw, measure_networks, render
from maintenance.network_costs import measure_costs
from run_ablations import (
    PREDICTIONS,
    Source,
    Training,
    h5_source,
    load_settings,
    make_synthetic,
    settings_file,
    train_all,
)

from ave_clip.core.categories import SINGLE_LABEL
from ave_clip.data.h5 import VISUAL_FILE
from ave_clip.data.splitting import SPLITS
from ave_clip.files import atomic_file
from ave_clip.programs import program, start_logging
from ave_clip.training.arguments import add_run_arguments, describe_run, parse_arguments, plain_values, write_json
from ave_clip.training.feature_augmentation import FeatureChanges
from ave_clip.training.folds import FoldSplits, groups_of_test, parse_fold
from ave_clip.training.networks import NETWORKS, network_title, supports
from ave_clip.training.splits import FeatureSplits, H5Splits

logger = logging.getLogger("run_comparison")
NAME = "comparison"
COSTS = "costs.json"
REFERENCE = "ave-clip"
# Options of train_localizer.py that one network of a comparison can have by itself.
TRAINING_FIELDS = ("feature_noise", "mix_clips", "drop_modality", "swap_sounds", "ema", "weight_decay")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", "--features", help="Features of stage 2, or h5 files. Default: synthetic clips.")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="Networks, with changed fields behind the name, of the configuration (ave-clip:dropout=0.5) or the "
        f"training (ave-clip:feature_noise=0.3): {', '.join(TRAINING_FIELDS)}. Default: all that are defined for "
        "--supervision.",
    )
    parser.add_argument("--reference", default=REFERENCE, help="Network to compare with.")
    parser.add_argument("--seeds", type=int, default=3, help="Trainings per network and fold, from --seed upwards.")
    parser.add_argument("--folds", type=int, help="Number of folds, at least 3. Default: the splits of the features.")
    parser.add_argument("--groups", help="CSV file with split, row and group of each clip. Default: each clip is one.")
    parser.add_argument(
        "--supervision", choices=("full", "weak"), default="full", help="Labels of segments or videos."
    )
    parser.add_argument(
        "--min_event_segments", type=int, default=1, help="Post-processing of all networks (W); 1 is none."
    )
    parser.add_argument("--stage3_config", help="YAML of train_localizer.py. Default: configs/comparison.yaml.")
    parser.add_argument("--num_epochs", type=int, help="Of all networks. Default: that of --stage3_config.")
    parser.add_argument("--batch_size", type=int, help="Of all networks. Default: that of --stage3_config.")
    parser.add_argument("--annotations_dir", help="With h5 files: folder of annotations. Default: the same folder.")
    parser.add_argument("--processes", type=int, help="Parallel trainings. Default: one per GPU, or up to 4 on CPU.")
    parser.add_argument("--rounds", type=int, default=7, help="Measured steps per network, in turns, for the speed.")
    parser.add_argument("--output_dir", default=NAME, help="Folder with one subfolder per training.")
    parser.add_argument("--results_dir", help="Folder of comparison.json. Default: OUTPUT_DIR.")
    parser.add_argument("--card", help="File of the table; the figure is beside it. Default: in RESULTS_DIR.")
    parser.add_argument("--keep_checkpoints", action="store_true", help="Do not delete the trained weights.")
    parser.add_argument("--model", default="ave-clip-tiny", help="Without --data: encoder of the synthetic clips.")
    parser.add_argument(
        "--num_synthetic", nargs=3, type=int, default=[300, 100, 200], metavar=("TRAIN", "VAL", "TEST")
    )
    parser.add_argument("--synthetic_dir", help="Folder of the synthetic clips. Default: the user's cache.")
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    args.stage3_config = args.stage3_config or str(CONFIGS / f"{NAME}.yaml")
    models = args.models or [name for name in NETWORKS if supports(name, args.supervision)]
    # The reference comes first, and each network is there once.
    args.models = list(dict.fromkeys([args.reference, *models]))
    check_arguments(parser, args)
    return args


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("seeds", "processes", "num_epochs", "batch_size", "rounds", "min_event_segments"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.folds is not None and args.folds < 3:
        parser.error(f"--folds must be at least 3 (test, validation, training), got {args.folds}")
    for name in args.models:
        try:
            network, training = split_name(name)
            check_training(training)
            is_defined = supports(network, args.supervision)
        except ValueError as error:
            parser.error(str(error))
        if not is_defined:
            parser.error(f"{name} is not defined for --supervision {args.supervision}: leave it out of --models")


def split_name(name: str) -> tuple[str, dict[str, float]]:
    """Divide a name of `--models` into the network with its fields, and the options of its training.

    >>> split_name("ave-clip:dropout=0.5:feature_noise=0.3")
    ('ave-clip:dropout=0.5', {'feature_noise': 0.3})
    """
    kept, options = [], {}
    for part in name.split(":"):
        field, _, value = part.partition("=")
        if field not in TRAINING_FIELDS:
            kept.append(part)
            continue
        try:
            options[field] = float(value)
        except ValueError:
            raise ValueError(f"{part!r} of {name} needs a number, such as {field}=0.3.") from None
    return ":".join(kept), options


def check_training(options: Mapping[str, float]) -> None:
    """Raise `ValueError` for a value that every training of the row would fail with, after those of other rows."""
    limits = {"ema": 1.0, "weight_decay": float("inf")}
    for name, limit in limits.items():
        if not 0 <= options.get(name, 0.0) < limit:
            raise ValueError(f"`{name}` must be at least 0 and below {limit:g}, got {options[name]:g}.")
    FeatureChanges(**{name.removeprefix("feature_"): options[name] for name in options if name not in limits})


def row_title(name: str) -> str:
    """Return the name of a row in tables."""
    network, options = split_name(name)
    return ", ".join([network_title(network), *(f"{field}={value:g}" for field, value in options.items())])


def open_data(args: argparse.Namespace) -> Source:
    """Return the features of `--data`, which no encoder is needed for; or of synthetic clips."""
    if not args.data:
        source = make_synthetic(args, args.model, f"encoders of {args.model}")
        folder = source.arguments["features_dir"]
        return Source({"features_dir": folder}, source.fingerprint, source.description)
    folder = Path(args.data)
    if (folder / VISUAL_FILE).exists():
        if args.folds or args.groups:
            raise ValueError(
                f"{folder} contains h5 files, which have the splits of AVE: leave --folds and --groups out."
            )
        return h5_source(args.data, args.annotations_dir)
    splits = FeatureSplits(folder)  # says what is wrong with a folder without features
    if splits.problem_type != SINGLE_LABEL:
        raise ValueError(
            f"{folder} has several labels per segment; the networks of previous work give each segment one."
        )
    missing = [split for split in SPLITS if not (folder / split).exists()]
    if missing and not args.folds:
        raise ValueError(f"{folder} has no {' and no '.join(missing)} split. Extract it, or pass --folds 4.")
    return Source({"features_dir": str(folder)}, splits.fingerprint, f"features in {folder.resolve().name}")


def open_splits(source: Source, fold: str | None, groups: str | None) -> FeatureSplits | H5Splits:
    """Open the splits of a fold; without folds, those of the features."""
    if "h5_dir" in source.arguments:
        return H5Splits(source.arguments["h5_dir"], annotations_dir=source.arguments.get("annotations_dir"))
    folder = source.arguments["features_dir"]
    return FoldSplits(folder, fold, groups) if fold else FeatureSplits(folder)


def fold_names(args: argparse.Namespace) -> list[str | None]:
    """Return the names of the folds; one `None` without folds."""
    return [f"{number}/{args.folds}" for number in range(1, args.folds + 1)] if args.folds else [None]


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `train_localizer.py` that all networks share."""
    settings = load_settings(args)
    for name in ("num_epochs", "batch_size"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    settings.setdefault("batch_size", train_localizer.parse_args(["--features_dir", "-"]).batch_size)
    if args.supervision != "full":
        settings["localizer"]["supervision"] = args.supervision
    return settings


def plan(args: argparse.Namespace, source: Source) -> dict[str, list[list[Training]]]:
    """Return the trainings of each network, by seed and fold."""
    settings = shared_settings(args)
    groups = hashlib.sha256(Path(args.groups).read_bytes()).hexdigest() if args.groups else None
    options = ("--num_workers", str(args.num_workers), "--mixed_precision", args.mixed_precision)
    options += ("--report_to", "none", *(["--cpu"] if args.cpu else []))
    plans = {}
    for name in args.models:
        plans[name] = [[] for _ in range(args.seeds)]
        for fold in fold_names(args):
            network, training_fields = split_name(name)
            own = {"network": network, **training_fields} | ({"fold": fold} if fold else {})
            content = json.dumps(plain_values([settings, own, source.fingerprint, groups, args.mixed_precision]))
            folder = (
                Path(args.output_dir).absolute() / "runs" / name / hashlib.sha256(content.encode()).hexdigest()[:12]
            )
            own |= {"groups": str(Path(args.groups).absolute())} if fold and args.groups else {}
            for number in range(args.seeds):
                seed = args.seed + number
                merged = {**settings, **source.arguments, **own}
                plans[name][number].append(
                    Training(folder / f"seed-{seed}", merged, seed, options, args.keep_checkpoints)
                )
    return plans


def collect(trainings: Sequence[Sequence[Training]], failures: Mapping[Path, str]) -> list[Any] | str:
    """Return the test predictions of each seed, over all folds; or the reason why there are none."""
    failed = [failures[one.folder] for seed in trainings for one in seed if one.folder in failures]
    if failed:
        return f"failed: {failed[0]}"
    runs = []
    for seed in trainings:
        folds = [read_predictions(one.folder / PREDICTIONS) for one in seed]
        runs.append(tuple([clip for fold in folds for clip in fold[part]] for part in range(3)))
    return runs


def group_numbers(args: argparse.Namespace, source: Source, rows: Sequence[int]) -> list[int]:
    """Return the number of the group of each tested clip; without groups, its row."""
    if not args.groups:
        return list(rows)
    folder = source.arguments["features_dir"]
    if args.folds:  # the features may have a single split
        names: Any = FoldSplits(folder, f"1/{args.folds}", args.groups).group_of
    else:
        names = groups_of_test(folder, args.groups)
    numbers = {name: number for number, name in enumerate(sorted({names[row] for row in rows}))}
    return [numbers[names[row]] for row in rows]


def by_group(counts: Counts, groups: Sequence[int]) -> Counts:
    """Add up the counts of the clips of each group."""
    names, places = np.unique(groups, return_inverse=True)
    values = np.zeros((len(counts.values), len(names), counts.values.shape[2]), dtype=counts.values.dtype)
    np.add.at(values, (slice(None), places), counts.values)
    return Counts(names, values)


def costs_of(args: argparse.Namespace, source: Source, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters, speed and memory of each network by its name; measured once."""
    options = (settings["batch_size"], settings["localizer"], args.rounds, args.cpu)
    networks = list(dict.fromkeys(split_name(name)[0] for name in args.models))
    asked = {"models": networks, "batch_size": options[0], "localizer": options[1]}
    asked |= {"data": source.fingerprint, "rounds": args.rounds, "cpu": args.cpu}
    path = Path(args.output_dir) / COSTS
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["asked"] == plain_values(asked):
            return known["costs"]
    splits = open_splits(source, fold_names(args)[0], args.groups)
    costs = measure_costs(networks, splits, *options)
    write_json(path, {"asked": asked, "costs": costs})
    return costs


def measure(args: argparse.Namespace, source: Source, collected: Mapping[str, list[Any] | str]) -> dict[str, Any]:
    """Return the content of `comparison.json` but for the facts about the run."""
    counts, rows, described = {}, None, {}
    for name, runs in collected.items():
        if isinstance(runs, str):
            continue
        counts[name] = count_seeds(runs, args.min_event_segments)
        if rows is not None and list(counts[name].rows) != rows:
            raise ValueError(f"{name} was tested on other clips than the reference: delete OUTPUT_DIR/runs.")
        probabilities, labels, rows = runs[0]
        described = described or describe_test(labels, probabilities[0].shape[1], [args.min_event_segments])
    groups = group_numbers(args, source, rows or [])
    grouped = {name: by_group(found, groups) for name, found in counts.items()}
    reasons = {name: runs for name, runs in collected.items() if isinstance(runs, str)}
    content = measure_networks({name: row_title(name) for name in args.models}, grouped, reasons, args.reference)
    return {**content, "test_clips": described, "num_groups": len(set(groups))}


def describe(args: argparse.Namespace, argv: Sequence[str] | None, source: Source) -> dict[str, Any]:
    """Return data, settings and environment of the comparison."""
    facts = {"data": source.description, "seeds": args.seeds, "folds": args.folds, "has_groups": bool(args.groups)}
    facts |= {"supervision": args.supervision, "min_event_segments": args.min_event_segments}
    return {
        **facts,
        "settings": shared_settings(args),
        "settings_file": settings_file(args).name,
        **describe_run(args, argv),
    }


def write(args: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Write the results, the table and the figure."""
    results_dir = Path(args.results_dir or args.output_dir)
    write_json(results_dir / f"{NAME}.json", content)
    card = Path(args.card or results_dir / f"{NAME}.md")
    saved = json.loads((results_dir / f"{NAME}.json").read_text(encoding="utf-8"))
    figure = card.with_suffix(".png")
    with atomic_file(figure) as partial:
        draw(saved, partial)
    with atomic_file(card) as partial:
        partial.write_text(render(saved, figure.name), encoding="utf-8")
    logger.info("Wrote %s and %s.", card, figure)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    start_logging()
    source = open_data(args)
    for fold in fold_names(args):  # a mistake in the data or the groups is found before any training
        if fold:
            parse_fold(fold)
        open_splits(source, fold, args.groups).open("train")
    plans = plan(args, source)
    trainings = {one.folder: one for seeds in plans.values() for seed in seeds for one in seed}
    failures = train_all(args, list(trainings.values()))
    content = measure(args, source, {name: collect(seeds, failures) for name, seeds in plans.items()})
    costs = costs_of(args, source, shared_settings(args))
    for row in content["rows"]:
        # Rows that differ only in their training share the costs of a network, which the first of them shows.
        row["costs"] = costs.pop(split_name(row["name"])[0], None)
    content |= describe(args, argv, source)
    write(args, content)
    if failures:
        first, reason = next(iter(failures.items()))
        raise RuntimeError(
            f"{len(failures)} of {len(trainings)} trainings failed; the others are kept. {first}: {reason}"
        )
    return content


if __name__ == "__main__":
    with program():
        main()
