"""Runs the tour of docs/overlapping.md with several seeds, and writes what its page states.

    python examples/maintenance/overlapping_tour.py --work_dir tour --output model_cards/results/overlapping.json

makes 20 synthetic videos of 60 s with overlapping events, extracts features, and trains localizers with several labels
per segment and, for comparison, with one. All are measured once on ten videos of another seed. The settings of the
training were chosen on the validation videos. With `--boundaries` it also trains localizers with a boundary head, on
the features with several labels, and measures them in the same way.
"""

import argparse
import sys
import time
from pathlib import Path

import yaml

sys.path.append(str(Path(__file__).parents[1]))

import evaluate_localizer
import extract_features
import train_localizer

from ave_clip.data import generate_overlapping_videos
from ave_clip.programs import program
from ave_clip.training.arguments import describe_run, write_json

CONFIG = Path(__file__).parents[1] / "configs" / "overlapping" / "stage3.yaml"
BOUNDARIES_CONFIG = CONFIG.with_name("stage3_boundaries.yaml")
MODEL = ["--cpu", "--model", "ave-clip-tiny"]
FRAMES = ["--num_frames_per_segment", "4"]  # as its towers were trained
HELD_OUT_SEED = 77
# The class that covers most of a segment is its only label.
LABELS = {"multi_label": [], "single_label": ["--overlap", "longest"]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", required=True, help="New folder for videos, features and localizers.")
    parser.add_argument("--output", default="model_cards/results/overlapping.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_videos", type=int, default=20)
    parser.add_argument("--num_held_out", type=int, default=10)
    parser.add_argument("--boundaries", action="store_true", help="Also train localizers with boundary_regression.")
    parser.add_argument("--num_epochs", help="Shorter training, for a trial.")
    return parser.parse_args(argv)


def train(args: argparse.Namespace, folder: Path, problem_type: str, seed: int, has_boundaries: bool = False) -> str:
    """Trains a localizer with one seed; returns its folder."""
    path = BOUNDARIES_CONFIG if has_boundaries else CONFIG
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["localizer"]["problem_type"] = problem_type
    name = "boundaries" if has_boundaries else problem_type
    config, output = folder / f"{name}.yaml", str(folder / f"{name}-{seed}")
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    options = ["--features_dir", str(folder / problem_type), "--output_dir", output, "--report_to", "none"]
    options += ["--num_epochs", args.num_epochs] if args.num_epochs else []
    train_localizer.main([*MODEL, "--config", str(config), "--seed", str(seed), *options])
    return output


def evaluate(folder: Path, models: list[str]) -> dict:
    """Measures localizers that differ in their seed on the held-out videos."""
    held_out = ["--data", str(folder / "held-out" / "annotations.csv"), "--problem_type", "multi_label"]
    return evaluate_localizer.main(["--cpu", "--model", *models, *held_out])


def main(argv: list[str] | None = None) -> dict:
    """Returns the content of the results file."""
    args = parse_args(argv)
    folder, results, seconds = Path(args.work_dir), {}, {}
    started = time.perf_counter()
    generate_overlapping_videos(folder / "videos", args.num_videos)
    seconds["synthesize"] = time.perf_counter() - started
    generate_overlapping_videos(folder / "held-out", args.num_held_out, seed=HELD_OUT_SEED, splits=(0, 0, 1))
    for problem_type, options in LABELS.items():
        data = ["--data", str(folder / "videos" / "annotations.csv"), "--problem_type", problem_type, *options]
        started = time.perf_counter()
        extract_features.main([*MODEL, *data, "--output_dir", str(folder / problem_type), *FRAMES])
        seconds[f"{problem_type}: stage 2"] = time.perf_counter() - started
        started = time.perf_counter()
        models = [train(args, folder, problem_type, seed) for seed in args.seeds]
        seconds[f"{problem_type}: stage 3, per seed"] = (time.perf_counter() - started) / len(models)
        results[problem_type] = evaluate(folder, models)
    if args.boundaries:
        models = [train(args, folder, "multi_label", seed, has_boundaries=True) for seed in args.seeds]
        results["boundaries"] = evaluate(folder, models)
    content = {"held_out": results, "seconds": seconds, **describe_run(args, argv)}
    write_json(args.output, content)
    return content


if __name__ == "__main__":
    with program():
        main()
