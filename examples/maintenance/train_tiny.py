"""Trains `ave-clip-tiny` from scratch: synthetic clips, the three stages, and the evaluation on new clips.

    python examples/maintenance/train_tiny.py --output_dir ave-clip-tiny

The audio of most clips for training and validation is made quieter and encoded again (`poor_recordings.py`), so that
the model does not depend on level and codec. The localizer is trained with `--seeds` seeds on the same towers; the
checkpoint is always that of the first seed. The localizers of all seeds are evaluated on fresh clips of a seed that is
used for nothing else, from mp4 files to events.

It writes the localizer with its processor for `from_pretrained`, and `results.json` with the settings, the measures on
validation and test clips, those of each seed on the fresh clips with mean and standard deviation, and those of the
same network with one modality blanked. The files from which the model card is made go to `--results_dir`: `NAME.json`
and, for each seed, `NAME-fresh-seedN.json`. Everything else goes to `--work_dir`, into a folder for these clips and
this seed, and can be deleted afterwards. An interrupted run is resumed from this folder.
"""

import argparse
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ave_clip.data import generate_synthetic_ave
from ave_clip.data.synthetic.clips import GENERATOR_VERSION, METADATA_FILE
from ave_clip.programs import program, start_logging
from ave_clip.training.arguments import add_run_arguments, describe_run, parse_arguments, write_json
from ave_clip.training.metrics import summarize_runs

EXAMPLES = Path(__file__).parents[1]
sys.path.insert(0, str(EXAMPLES))  # the stage scripts are not a package

import evaluate_localizer  # noqa: E402
import extract_features  # noqa: E402
import finetune_audioclip  # noqa: E402
import train_localizer  # noqa: E402
from maintenance.poor_recordings import make_poor_recordings  # noqa: E402
from maintenance.project_cards import FRESH_SEED  # noqa: E402

logger = logging.getLogger("train_tiny")
CONFIGS = EXAMPLES / "configs" / "tiny"
SPLITS = (1500 / 1900, 200 / 1900, 200 / 1900)
CHECKPOINT_FILES = ("config.json", "model.safetensors", "processor_config.json")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Folder of the finished checkpoint.")
    parser.add_argument("--work_dir", help="Folder of clips, features and stage 1. Default: OUTPUT_DIR-work.")
    parser.add_argument("--results_dir", help="Folder of the results for the model card. Default: OUTPUT_DIR/results.")
    parser.add_argument(
        "--seeds", type=int, default=3, help="Number of seeds, from --seed upwards; the first is kept."
    )
    parser.add_argument(
        "--num_videos", type=int, default=1900, help="Number of synthetic clips in all splits together."
    )
    parser.add_argument(
        "--num_fresh", type=int, default=200, help=f"Number of clips of seed {FRESH_SEED} for the evaluation."
    )
    parser.add_argument("--data_seed", type=int, default=0, help="Seed of the clips for training.")
    parser.add_argument(
        "--controls", action=argparse.BooleanOptionalAction, default=True, help="Also train with one modality blanked."
    )
    parser.add_argument(
        "--max_steps", type=int, help="Maximum number of steps per epoch of both trainings, for a trial run."
    )
    parser.add_argument("--num_epochs", type=int, help="Number of epochs of both trainings, for a trial run.")
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    for name in ("seeds", "num_videos", "num_fresh"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.data_seed == FRESH_SEED:
        parser.error(f"--data_seed {FRESH_SEED} is the seed of the fresh clips: use another one")
    return args


def work_folder(args: argparse.Namespace) -> Path:
    """Returns the work folder for these clips and this seed."""
    work = Path(args.work_dir or f"{args.output_dir}-work")
    return work / f"clips-{args.num_videos}-seed-{args.data_seed}-training-seed-{args.seed}"


def make_clips(folder: Path, num_videos: int, seed: int, splits: Sequence[float]) -> None:
    """Render synthetic clips, unless they exist.

    Raises:
        ValueError: if the folder contains other clips.
    """
    if not folder.exists():
        generate_synthetic_ave(folder, num_videos=num_videos, seed=seed, splits=splits)
    found = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    facts = (sum(found["num_videos"].values()), found["seed"], found["generator_version"])
    if facts != (num_videos, seed, GENERATOR_VERSION):
        raise ValueError(
            f"{folder} contains {facts[0]} clips of seed {facts[1]}, made by version {facts[2]} of the generator, but "
            f"{num_videos} of seed {seed} by version {GENERATOR_VERSION} were asked for. Delete it, or pass another "
            "--work_dir."
        )


def stage_arguments(args: argparse.Namespace, stage: int, **values: object) -> list[str]:
    """Returns the arguments of one stage: its YAML file, the settings of the run, and the given ones."""
    values = {"seed": args.seed, "num_workers": args.num_workers, **values}
    if stage in (1, 3):
        values |= {"max_steps": args.max_steps, "num_epochs": args.num_epochs}
    pairs = [(f"--{name}", str(value)) for name, value in values.items() if value is not None]
    arguments = ["--config", str(CONFIGS / f"stage{stage}.yaml"), *(text for pair in pairs for text in pair)]
    return [*arguments, "--resume", *(["--cpu"] if args.cpu else [])]


@contextmanager
def called_as(script: ModuleType) -> Iterator[None]:
    """Sets the script as `sys.argv[0]`, so that its results file contains a command that repeats it."""
    own = sys.argv[0]
    sys.argv[0] = f"examples/{Path(script.__file__).name}"
    try:
        yield
    finally:
        sys.argv[0] = own


class Stages:
    """Runs scripts one after the other and records the duration of each.

    Attributes:
        seconds (`dict[str, float]`): By name of the step.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, script: ModuleType, arguments: Sequence[str]) -> Any:
        """Calls a script's `main` and returns its result."""
        started = time.perf_counter()
        with called_as(script):
            result = script.main(arguments)
        self.note(name, started)
        return result

    def note(self, name: str, started: float) -> None:
        """Records the time since `started`."""
        self.seconds[name] = round(time.perf_counter() - started, 1)
        logger.info("%s took %.0f s", name, self.seconds[name])


def train(args: argparse.Namespace, work: Path, stages: Stages) -> dict[str, Any]:
    """Makes all clips, runs all stages in order, and returns the results by name."""
    clips, stage1, features = work / "clips", work / "stage1", work / "features"
    started = time.perf_counter()
    make_clips(work / "rendered", args.num_videos, args.data_seed, SPLITS)
    if not clips.exists():
        make_poor_recordings(work / "rendered", clips, args.data_seed)
    stages.note("clips", started)
    folders = {"data_dir": clips, "output_dir": stage1, "cache_dir": work / "decoded"}
    arguments = stage_arguments(args, 1, model=CONFIGS / "audioclip.json", **folders)
    stages.run("stage1", finetune_audioclip, arguments)
    results = {"stage1": json.loads((stage1 / "results.json").read_text(encoding="utf-8"))["history"]}
    arguments = stage_arguments(args, 2, model=stage1, data_dir=clips, output_dir=features)
    stages.run("stage2", extract_features, arguments)
    localizer = {"model": stage1, "features_dir": features}
    for seed in range(args.seed, args.seed + args.seeds):
        name = "stage3" if seed == args.seed else f"stage3_seed{seed}"
        arguments = stage_arguments(args, 3, **localizer, seed=seed, output_dir=work / f"localizer-seed{seed}")
        results[name] = stages.run(name, train_localizer, arguments)
    for blanked in ("audio", "video") if args.controls else ():
        arguments = stage_arguments(args, 3, **localizer, output_dir=work / f"no-{blanked}", blank_modality=blanked)
        results[f"no_{blanked}"] = stages.run(f"no_{blanked}", train_localizer, arguments)
    return results


def measure(args: argparse.Namespace, work: Path, stages: Stages, results_dir: Path) -> dict[str, Any]:
    """Evaluates the kept localizer on its test clips, and the localizer of each seed on the fresh clips."""
    common = ["--num_workers", str(args.num_workers), *(["--cpu"] if args.cpu else [])]

    def evaluate(name: str, seed: int, clips: Path, output: Path) -> dict[str, dict]:
        arguments = ["--model", str(work / f"localizer-seed{seed}"), "--data_dir", str(clips), "--split", "test"]
        return stages.run(name, evaluate_localizer, [*arguments, "--output", str(output), *common])

    results = {"test": evaluate("test", args.seed, work / "clips", work / "evaluation-test.json")}
    fresh = work.parent / f"fresh-{args.num_fresh}"
    started = time.perf_counter()
    make_clips(fresh, args.num_fresh, FRESH_SEED, (0, 0, 1))
    stages.note("fresh_clips", started)
    model_name = Path(args.output_dir).resolve().name
    results_dir.mkdir(parents=True, exist_ok=True)
    seeds = {
        seed: evaluate(f"fresh_seed{seed}", seed, fresh, results_dir / f"{model_name}-fresh-seed{seed}.json")
        for seed in range(args.seed, args.seed + args.seeds)
    }
    decoders = next(iter(seeds.values()))
    summary = {decoder: summarize_runs([one[decoder] for one in seeds.values()]) for decoder in decoders}
    return {**results, "fresh": seeds, "fresh_summary": {"count": len(seeds), "metrics": summary}}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    start_logging()
    work, output, stages = work_folder(args), Path(args.output_dir), Stages()
    results_dir = Path(args.results_dir or output / "results")
    results = {**train(args, work, stages), **measure(args, work, stages, results_dir)}
    output.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINT_FILES:
        shutil.copyfile(work / f"localizer-seed{args.seed}" / name, output / name)
    content = {"seconds": stages.seconds, "results": results, **describe_run(args, argv)}
    write_json(output / "results.json", content)
    write_json(results_dir / f"{output.resolve().name}.json", content)
    return results


if __name__ == "__main__":
    with program():
        main()
