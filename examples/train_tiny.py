"""Make `ave-clip-tiny` from nothing: synthetic clips, the three stages, and its measures on clips it never saw.

    python examples/train_tiny.py --output_dir ave-clip-tiny

What it writes: the localizer with its processor, ready for `from_pretrained`, and `results.json`: the settings, the
measures on validation and test clips, and those of the same network with one modality blanked. Everything else goes to
`--work_dir` and can be deleted afterwards; the clips, stage 1 and features that stand there are not made again.
"""

import argparse
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import evaluate_localizer
import extract_features
import finetune_audioclip
import train_localizer

from ave_clip.data import generate_synthetic_ave
from ave_clip.training.arguments import add_run_arguments, describe_run, parse_arguments, write_json

logger = logging.getLogger("train_tiny")
CONFIGS = Path(__file__).parent / "configs" / "tiny"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Where the finished checkpoint goes.")
    parser.add_argument("--work_dir", help="Clips, features and stage 1; OUTPUT_DIR-work by default.")
    parser.add_argument("--num_videos", type=int, default=1900, help="Synthetic clips, over all splits.")
    parser.add_argument("--data_seed", type=int, default=0, help="Seed of the clips.")
    parser.add_argument(
        "--controls", action=argparse.BooleanOptionalAction, default=True, help="Also blank one modality."
    )
    parser.add_argument("--max_steps", type=int, help="Of each epoch of both trainings, for a trial.")
    parser.add_argument("--num_epochs", type=int, help="Of both trainings, for a trial.")
    add_run_arguments(parser)
    return parse_arguments(parser, argv)


def make_clips(args: argparse.Namespace, folder: Path) -> None:
    """Render the synthetic clips, unless they stand."""
    if not folder.exists():
        splits = (1500 / 1900, 200 / 1900, 200 / 1900)
        generate_synthetic_ave(folder, num_videos=args.num_videos, seed=args.data_seed, splits=splits)


def stage_arguments(args: argparse.Namespace, stage: int, **values: object) -> list[str]:
    """The arguments of one stage: its YAML file, the run's own settings, and the given ones."""
    values = {"seed": args.seed, "num_workers": args.num_workers, **values}
    if stage in (1, 3):
        values |= {"max_steps": args.max_steps, "num_epochs": args.num_epochs}
    pairs = [(f"--{name}", str(value)) for name, value in values.items() if value is not None]
    arguments = ["--config", str(CONFIGS / f"stage{stage}.yaml"), *(text for pair in pairs for text in pair)]
    return [*arguments, "--cpu"] if args.cpu else arguments


def train(args: argparse.Namespace, work: Path, seconds: dict[str, float]) -> dict[str, dict]:
    """All stages in order; `seconds` gets the time of each. Returns the results by name."""

    def timed(name: str, run, *arguments):
        started = time.perf_counter()
        result = run(*arguments)
        seconds[name] = round(time.perf_counter() - started, 1)
        logger.info("%s took %.0f s", name, seconds[name])
        return result

    clips, stage1, features = work / "clips", work / "stage1", work / "features"
    localizer = {"model": stage1, "features_dir": features}
    timed("clips", make_clips, args, clips)
    if not (stage1 / "results.json").exists():
        folders = {"data_dir": clips, "output_dir": stage1, "cache_dir": work / "decoded"}
        arguments = stage_arguments(args, 1, model=CONFIGS / "audioclip.json", **folders)
        timed("stage1", finetune_audioclip.main, arguments)
    results = {"stage1": json.loads((stage1 / "results.json").read_text())["history"]}
    timed("stage2", extract_features.main, stage_arguments(args, 2, model=stage1, data_dir=clips, output_dir=features))
    arguments = stage_arguments(args, 3, **localizer, output_dir=work / "localizer")
    results["stage3"] = timed("stage3", train_localizer.main, arguments)
    for blanked in ("audio", "video") if args.controls else ():
        arguments = stage_arguments(args, 3, **localizer, output_dir=work / f"no-{blanked}", blank_modality=blanked)
        results[f"no_{blanked}"] = timed(f"no_{blanked}", train_localizer.main, arguments)
    common = ["--num_workers", str(args.num_workers), *(["--cpu"] if args.cpu else [])]
    arguments = ["--model", str(work / "localizer"), "--data_dir", str(clips), "--split", "test", *common]
    arguments += ["--output", str(work / "evaluation-test.json")]
    results["test"] = timed("test", evaluate_localizer.main, arguments)
    return results


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work = Path(args.work_dir or f"{args.output_dir}-work")
    seconds: dict[str, float] = {}
    results = train(args, work, seconds)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for path in (work / "localizer").iterdir():
        if path.name in ("config.json", "model.safetensors", "processor_config.json"):
            shutil.copyfile(path, output / path.name)
    write_json(output / "results.json", {"seconds": seconds, "results": results, **describe_run(args, argv)})
    return results


if __name__ == "__main__":
    main()
