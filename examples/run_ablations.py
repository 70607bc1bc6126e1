"""Reproduce the paper's Tables 2 to 7: train each row with several seeds and compare the results with the paper's.

What it reads: videos in AVE's layout with `--model`, features of stage 2, or h5 files of previous work (`--data`); for
Table 2 also `--frozen_features` and `--h5_dir`. A row without its features is shown as "not run". The rows are defined
in `configs/table2.yaml` to `table7.yaml`, all other settings of the training in `--stage3_config`.
What it writes: `tableN.json` and `ablations.md`. Each row is selected on the validation split and measured on the test
split.

    python examples/run_ablations.py --table 4 5 --data features --model stage1 --seeds 3 --output_dir ablations

Without `--data` it makes synthetic clips and their features, and trains on those. A run that was killed resumes:
finished rows are kept, and a network that is in several tables is trained once.
"""

import argparse
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import extract_features
import torch
import train_localizer
import yaml
from accelerate.utils import set_seed
from maintenance.ablation_tables import (
    CONFIGS,
    TABLE_NUMBERS,
    Row,
    Table,
    load_table,
    measure_table,
    read_predictions,
    render_card,
)

from ave_clip import AVEClipConfig
from ave_clip.core.configuration_audio_visual_encoder import AudioVisualEncoderConfig
from ave_clip.core.configuration_ave_clip import PRESETS
from ave_clip.data import generate_synthetic_ave
from ave_clip.data.h5 import VISUAL_FILE
from ave_clip.files import atomic_file, new_folder
from ave_clip.programs import process_pool, program, start_logging
from ave_clip.training.arguments import (
    add_run_arguments,
    describe_run,
    parse_arguments,
    parse_overrides,
    plain_values,
    write_json,
)
from ave_clip.training.checkpoints import (
    encoder_config,
    load_audioclip,
    load_encoder,
    load_feature_extractor,
    towers_fingerprint,
)
from ave_clip.training.features import FeatureStore
from ave_clip.training.splits import FeatureSplits, H5Splits

logger = logging.getLogger("run_ablations")
SYNTHETIC_SEED = 0
SYNTHETIC_FRAMES = 4
DEFAULT_MODEL = "ave-clip-tiny"
SETTINGS, RESULTS, PREDICTIONS = "settings.yaml", "results.json", "predictions.safetensors"
# In the folder of a training as long as its weights are still to be deleted.
DELETE_CHECKPOINT = "delete_checkpoint"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*map(str, TABLE_NUMBERS), "all"]
    parser.add_argument("--table", nargs="+", choices=choices, default=["all"], help="Numbers of the paper's tables.")
    parser.add_argument(
        "--data", "--features", help="Videos, features of stage 2, or h5 files. Default: synthetic clips."
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="The encoder of --data: any that stage 2 takes.")
    parser.add_argument("--frozen_features", help="For Table 2: features of the encoder before stage 1.")
    parser.add_argument("--frozen_model", help="The encoder of --frozen_features.")
    parser.add_argument("--h5_dir", help="For Table 2: VGG19 and VGGish features of previous work.")
    parser.add_argument(
        "--annotations_dir", help="With h5 files: folder of annotations and splits. Default: the same folder."
    )
    parser.add_argument("--seeds", type=int, default=3, help="Trainings per row, with seeds from --seed upwards.")
    parser.add_argument(
        "--stage3_config", help="YAML of train_localizer.py. Default with --data: configs/ave/stage3_paper.yaml."
    )
    parser.add_argument("--processes", type=int, help="Parallel trainings. Default: one per GPU, or up to 4 on CPU.")
    parser.add_argument("--output_dir", default="ablations", help="Folder with one subfolder per training.")
    parser.add_argument("--results_dir", help="Folder of tableN.json. Default: OUTPUT_DIR.")
    parser.add_argument("--card", help="File with all tables of RESULTS_DIR. Default: RESULTS_DIR/ablations.md.")
    parser.add_argument("--keep_checkpoints", action="store_true", help="Do not delete the trained weights.")
    parser.add_argument(
        "--num_synthetic", nargs=3, type=int, default=[400, 100, 300], metavar=("TRAIN", "VAL", "TEST")
    )
    parser.add_argument("--synthetic_dir", help="Folder of the synthetic clips. Default: the user's cache.")
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    if args.seeds < 1 or (args.processes is not None and args.processes < 1):
        parser.error(f"--seeds {args.seeds} and --processes {args.processes} must be at least 1")
    if bool(args.frozen_features) != bool(args.frozen_model):
        parser.error("--frozen_features needs --frozen_model, the encoder that made them, and vice versa")
    args.table = list(TABLE_NUMBERS) if "all" in args.table else sorted({int(number) for number in args.table})
    return args


# ── what the rows are trained on ──


@dataclass(frozen=True)
class Source:
    """Features that rows are trained on.

    Args:
        arguments (`dict[str, str]`): Arguments of `train_localizer.py` for them.
        fingerprint (`str`): Hash of the features.
        description (`str`): Description for the card.
    """

    arguments: dict[str, str]
    fingerprint: str
    description: str


def open_sources(args: argparse.Namespace, tables: Sequence[Table]) -> dict[str, Source | str]:
    """Return the features that the tables need, by the name in the rows; or the reason why they are missing."""
    needed = {row.features for table in tables for row in table.rows if not row.not_run}
    sources: dict[str, Source | str] = {
        "frozen": "no --frozen_features were given",
        "h5": "no --h5_dir was given",
    }
    if "data" in needed:
        sources["data"] = open_data(args) if args.data else make_synthetic(args, args.model, "fine-tuned encoders")
    if "frozen" in needed and args.frozen_features:
        sources["frozen"] = feature_source(args.frozen_model, args.frozen_features, "features of frozen encoders")
    elif "frozen" in needed and not args.data and args.model == DEFAULT_MODEL:
        sources["frozen"] = make_synthetic(args, make_untrained_towers(args), "untrained encoders")
    if "h5" in needed and args.h5_dir:
        sources["h5"] = h5_source(args.h5_dir, args.annotations_dir)
    return sources


def open_data(args: argparse.Namespace) -> Source:
    """Return the features of `--data`; videos are encoded first."""
    folder = Path(args.data)
    if (folder / VISUAL_FILE).exists():
        return h5_source(args.data, args.annotations_dir)
    if (folder / "train").is_dir():
        return feature_source(args.model, args.data, "features given by --data")
    features = Path(args.output_dir) / "features"
    extract(args, args.model, folder, features)
    return feature_source(args.model, features, f"videos in {folder.name}")


def feature_source(model: str | Path, folder: str | Path, description: str) -> Source:
    """Return features of stage 2, which must have three splits made by this encoder."""
    encoder = load_encoder(model)
    for split in extract_features.SPLITS:
        FeatureStore(Path(folder) / split).check_encoder(towers_fingerprint(encoder))
    config = encoder_config(encoder)
    if config.model_type == AudioVisualEncoderConfig.model_type:  # the names of the rows say AudioCLIP
        description += f", encoded by {config.vision_config.model_type} and {config.heard_config.model_type}"
    return Source({"model": str(model), "features_dir": str(folder)}, FeatureSplits(folder).fingerprint, description)


def h5_source(folder: str, annotations_dir: str | None) -> Source:
    """Return h5 features of previous work, which must have three splits."""
    splits = H5Splits(folder, annotations_dir=annotations_dir)
    missing = [split for split in extract_features.SPLITS if splits.open(split) is None]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)} split: a row needs splits to train, select and measure."
        )
    arguments = {"h5_dir": folder} | ({"annotations_dir": annotations_dir} if annotations_dir else {})
    return Source(arguments, splits.fingerprint, "h5 files of the peers")


def extract(args: argparse.Namespace, model: str | Path, clips: Path, features: Path, *options: str) -> None:
    """Run stage 2, which resumes if it was stopped."""
    arguments = ["--model", str(model), "--data", str(clips), "--output_dir", str(features), *options]
    arguments += ["--num_workers", str(args.num_workers)] if args.num_workers else []
    extract_features.main([*arguments, *(["--cpu"] if args.cpu else [])])


def synthetic_folder(args: argparse.Namespace) -> Path:
    return Path(args.synthetic_dir or train_localizer.SYNTHETIC_FOLDER)


def make_synthetic(args: argparse.Namespace, model: str | Path, encoders: str) -> Source:
    """Make synthetic clips and their features, unless they exist."""
    name = "-".join(map(str, args.num_synthetic))
    clips = synthetic_folder(args) / f"clips-{name}-seed-{SYNTHETIC_SEED}"
    features = synthetic_folder(args) / f"features-{name}-{towers_fingerprint(load_encoder(model))}"
    if not clips.exists():
        total = sum(args.num_synthetic)
        logger.warning("No --data given: making %d synthetic clips in %s, which takes some minutes.", total, clips)
        fractions = [number / total for number in args.num_synthetic]
        generate_synthetic_ave(clips, num_videos=total, seed=SYNTHETIC_SEED, splits=fractions)
    extract(args, model, clips, features, "--num_frames_per_segment", str(SYNTHETIC_FRAMES))
    train, validation, test = args.num_synthetic
    description = f"synthetic clips ({train} to train, {validation} to choose the epoch, {test} to test), {encoders}"
    return feature_source(model, features, description)


def make_untrained_towers(args: argparse.Namespace) -> Path:
    """Return AudioCLIP of the default model's size with random weights: the start of stage 1 on synthetic clips."""
    folder = synthetic_folder(args) / "untrained-audioclip"
    if not folder.exists():
        config = CONFIGS / "tiny" / "audioclip.json"
        set_seed(SYNTHETIC_SEED)
        audioclip = load_audioclip(config)
        with new_folder(folder) as partial:
            audioclip.save_pretrained(partial)
            load_feature_extractor(config, audioclip.config).save_pretrained(partial)
    return folder


# ── which trainings there are ──


@dataclass(frozen=True)
class Training:
    """One training: a network with a seed.

    Args:
        folder (`Path`): Folder of its results.
        settings (`dict[str, Any]`): Arguments of `train_localizer.py`, as in a YAML file.
        seed (`int`): Seed of the training.
        options (`tuple[str, ...]`): Arguments that do not change the result.
        keep_checkpoint (`bool`): Whether to keep the weights.
    """

    folder: Path
    settings: dict[str, Any]
    seed: int
    options: tuple[str, ...]
    keep_checkpoint: bool

    @property
    def is_finished(self) -> bool:
        """Whether its results exist; both files are written atomically."""
        return all((self.folder / name).exists() for name in (RESULTS, PREDICTIONS))


def settings_file(args: argparse.Namespace) -> Path:
    """Return the YAML file of the settings that all rows share."""
    return Path(args.stage3_config or CONFIGS / ("ave/stage3_paper.yaml" if args.data else "synthetic/stage3.yaml"))


# Fields of AVEClipConfig that a source of features may set (its `overrides`).
SET_BY_FEATURES = frozenset(
    ("use_encoders", "image_feature_size", "audio_feature_size", "visual_feature_type", "normalize_features")
)


def load_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Load the settings that all rows share."""
    settings = yaml.safe_load(settings_file(args).read_text(encoding="utf-8")) or {}
    localizer = settings.get("localizer") or {}
    if not isinstance(localizer, Mapping):
        localizer = parse_overrides(localizer, AVEClipConfig)
    return {**settings, "localizer": dict(localizer)}


def plan_row(args: argparse.Namespace, settings: Mapping[str, Any], row: Row, source: Source) -> list[Training]:
    """Return the trainings of a row, one per seed. Equal networks on equal features have the same folder."""
    defaults = AVEClipConfig(**PRESETS[settings.get("preset", "default")])
    localizer = {**settings["localizer"], **row.localizer}
    merged = {**settings, "localizer": localizer}
    # A field with its default value does not make another network, unless the features would set it to another value.
    telling = {
        name: value
        for name, value in localizer.items()
        if name in SET_BY_FEATURES or plain_values(value) != plain_values(getattr(defaults, name))
    }
    identity = plain_values({**settings, "localizer": telling})
    content = json.dumps([identity, source.fingerprint, args.mixed_precision], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    options = ("--num_workers", str(args.num_workers), "--mixed_precision", args.mixed_precision)
    options += ("--report_to", "none", *(["--cpu"] if args.cpu else []))
    folder = Path(args.output_dir).absolute() / "runs" / key
    return [
        Training(folder / f"seed-{seed}", {**merged, **source.arguments}, seed, options, args.keep_checkpoints)
        for seed in range(args.seed, args.seed + args.seeds)
    ]


def plan_tables(
    args: argparse.Namespace, tables: Sequence[Table], sources: Mapping[str, Source | str]
) -> dict[tuple[int, str], list[Training] | str]:
    """Return the trainings by table and row; or the reason why there are none."""
    settings, plans = load_settings(args), {}
    for table in tables:
        for row in table.rows:
            source = row.not_run or sources[row.features]
            plans[table.number, row.id] = source if isinstance(source, str) else plan_row(args, settings, row, source)
    return plans


# ── running them ──


def train(training: Training) -> None:
    """Train one row with one seed; a training that was killed resumes from its last state."""
    training.folder.mkdir(parents=True, exist_ok=True)
    config = training.folder / SETTINGS
    with atomic_file(config) as partial:
        partial.write_text(yaml.safe_dump(plain_values(training.settings), sort_keys=True), encoding="utf-8")
    if training.keep_checkpoint:
        (training.folder / DELETE_CHECKPOINT).unlink(missing_ok=True)
    else:
        (training.folder / DELETE_CHECKPOINT).touch()
    arguments = ["--config", str(config), "--seed", str(training.seed), "--output_dir", str(training.folder)]
    try:
        train_localizer.main([*arguments, *training.options, "--resume"])
    except SystemExit as error:  # argparse has printed the reason on stderr
        raise ValueError(f"train_localizer.py does not accept the settings in {config}.") from error
    delete_checkpoint(training.folder)


def delete_checkpoint(folder: Path) -> None:
    """Delete the weights and states of a finished training, unless they were to be kept."""
    if not (folder / DELETE_CHECKPOINT).exists():
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (SETTINGS, RESULTS, PREDICTIONS, DELETE_CHECKPOINT):
            path.unlink()
    (folder / DELETE_CHECKPOINT).unlink()


def train_all(args: argparse.Namespace, trainings: Sequence[Training]) -> dict[Path, str]:
    """Run the unfinished trainings, several in parallel; returns errors by folder."""
    waiting = []
    for training in trainings:
        if training.is_finished:
            delete_checkpoint(training.folder)  # the run that trained it may have been killed before it did so
        else:
            waiting.append(training)
    logger.info("%d trainings, %d of them finished already.", len(trainings), len(trainings) - len(waiting))
    failures: dict[Path, str] = {}
    processes = args.processes or torch.cuda.device_count() or min(4, os.cpu_count() or 1)
    processes = min(processes, len(waiting))
    if not waiting:
        return failures
    context, numbers = get_context("spawn"), get_context("spawn").Queue()
    for number in range(processes):
        numbers.put(number)
    workers = (processes, context, start_worker, (numbers, processes, torch.cuda.device_count()))
    with process_pool(*workers) as pool:
        tasks = {pool.submit(train, training): training for training in waiting}
        for done, task in enumerate(as_completed(tasks), start=1):
            folder = tasks[task].folder
            try:
                task.result()
                logger.info("%d of %d trainings done: %s", done, len(waiting), folder)
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "A training process was killed, perhaps because memory was full. Run the same command again with "
                    "fewer --processes: finished rows are kept."
                ) from error
            except Exception as error:  # one row that fails does not stop the others; it is listed at the end
                logger.exception("%s failed.", folder)
                failures[folder] = f"{type(error).__name__}: {error}"
    return failures


def start_worker(numbers: Any, processes: int, num_gpus: int) -> None:
    """Limit this process to its part of the cores, or to one GPU."""
    number = numbers.get()
    if num_gpus > 1:  # takes effect only before CUDA is initialized
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % num_gpus]
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    start_logging(logging.WARNING)


# ── what comes out ──


def collect(
    table: Table, plans: Mapping[tuple[int, str], list[Training] | str], failures: Mapping[Path, str]
) -> dict[str, Any]:
    """Return the test predictions of each seed by row id; or the reason why there are none."""
    predictions: dict[str, Any] = {}
    for row in table.rows:
        plan = plans[table.number, row.id]
        if isinstance(plan, str):
            predictions[row.id] = plan
            continue
        failed = [failures[training.folder] for training in plan if training.folder in failures]
        predictions[row.id] = (
            f"failed: {failed[0]}" if failed else [read_predictions(one.folder / PREDICTIONS) for one in plan]
        )
    return predictions


def describe(args: argparse.Namespace, argv: Sequence[str] | None, sources: Mapping[str, Source | str]) -> dict:
    """Return data, settings and environment of a table."""
    used = {name: source.description for name, source in sources.items() if isinstance(source, Source)}
    lines = settings_file(args).read_text(encoding="utf-8").splitlines()
    # The first lines of the file say what it is for; a command, which is indented, ends them.
    words = itertools.takewhile(lambda line: line.startswith("# ") and not line.startswith("#  "), lines)
    about = " ".join(line.removeprefix("# ") for line in words)
    facts = {"data": used, "seeds": args.seeds, "settings": load_settings(args), "about_settings": about}
    return {**facts, **describe_run(args, argv)}


def main(argv: Sequence[str] | None = None) -> dict[int, dict]:
    args = parse_args(argv)
    start_logging()
    tables = [load_table(number) for number in args.table]
    sources = open_sources(args, tables)
    plans = plan_tables(args, tables, sources)
    trainings = {one.folder: one for plan in plans.values() if not isinstance(plan, str) for one in plan}
    failures = train_all(args, sorted(trainings.values(), key=lambda training: training.seed))
    results_dir = Path(args.results_dir or args.output_dir)
    results = {}
    for table in tables:
        measured = measure_table(table, collect(table, plans, failures))
        results[table.number] = {**measured, **describe(args, argv, sources)}
        write_json(results_dir / f"table{table.number}.json", results[table.number])
    write_card(Path(args.card or results_dir / "ablations.md"), results_dir)
    if failures:
        first, reason = next(iter(failures.items()))
        raise RuntimeError(
            f"{len(failures)} of {len(trainings)} trainings failed; the others are kept. {first}: {reason}"
        )
    return results


def write_card(card: Path, results_dir: Path) -> None:
    """Write all tables of a folder into one card."""
    with atomic_file(card) as partial:
        partial.write_text(card_text(results_dir), encoding="utf-8")
    logger.info("Wrote %s.", card)


def card_text(results_dir: Path) -> str:
    """Return the card of the tables in a folder, with its `remarks.md` if there is one."""
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results_dir.glob("table*.json"))]
    remarks = results_dir / "remarks.md"
    return render_card(tables, remarks.read_text(encoding="utf-8") if remarks.exists() else "")


if __name__ == "__main__":
    with program():
        main()
