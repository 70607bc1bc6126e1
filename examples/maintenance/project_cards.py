"""Writes the model cards of this repository, `model_cards/*.md`, from `model_cards/results/*.json`.

python examples/maintenance/project_cards.py model_cards
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ave_clip import AudioCLIPConfig, AVEClipConfig
from ave_clip.checkpoints.cards import (
    build_audioclip_card,
    build_localizer_card,
    card_metadata,
    count_parameters,
    describe_environment,
    localizer_facts,
    main_metrics,
    measures_by_split,
    render_card,
)
from ave_clip.core.builtin_checkpoints import builtin_checkpoints
from ave_clip.files import atomic_file
from ave_clip.programs import program
from ave_clip.training.metrics import summarize_runs

FRESH_SEED = 20261122  # of the clips on which ave-clip-tiny is evaluated


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def build_recipe_card(recipe: Mapping[str, Any]) -> str:
    """Returns the text of the card that describes how to train the paper's model; all its accuracies are the paper's.

    Args:
        recipe (`Mapping[str, Any]`): Content of `model_cards/results/ave-clip.json`.

    Returns:
        `str`: Markdown with metadata that contains no results.
    """
    config = AVEClipConfig.paper()
    facts = localizer_facts(config, recipe["num_frames_per_segment"], recipe["segment_seconds"])
    return render_card(
        "recipe_card.md",
        Path(__file__).parent,
        card_data=card_metadata("ave-clip", "AVE", None, "ave", "video-classification", []),
        model_name="ave-clip",
        num_parameters=count_parameters(config),
        splits=recipe["splits"],
        references=recipe["baselines"],
        stages=recipe["stages"],
        tables=recipe["paper"],
        commands=recipe["commands"],
        environment=describe_environment(recipe),
        **facts,
    )


def summarize_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the mean and the sample standard deviation of every measure over runs with different seeds.

    Args:
        results (`Sequence[Mapping[str, Any]]`): Contents of at least two result files of `evaluate_localizer.py`.

    Returns:
        `dict[str, Any]`: `"count"`, and in `"metrics"` the `mean` and `deviation` of each measure.
    """
    runs = [main_metrics(next(iter(measures_by_split(result).values()))) for result in results]
    return {"count": len(runs), "metrics": summarize_runs(runs)}


def project_cards(folder: str | os.PathLike) -> dict[str, str]:
    """Returns the text of each file that this script writes, by its name in `model_cards/`.

    Args:
        folder (`str` or `os.PathLike`): `model_cards/`, with its `results/`.
    """
    results = Path(folder) / "results"
    summary = summarize_seeds([read_json(path) for path in sorted(results.glob("ave-clip-tiny-fresh-seed*.json"))])
    converted, recipe = read_json(results / "audioclip.json"), read_json(results / "ave-clip.json")
    return {
        "results/ave-clip-tiny-summary.json": json.dumps(summary, indent=2) + "\n",
        "ave-clip-tiny.md": tiny_card(results, summary),
        "audioclip.md": build_audioclip_card(
            AudioCLIPConfig(),
            converted,
            model_name="audioclip",
            dataset_name="AudioSet",
            commands=converted["commands"],
        ),
        "ave-clip.md": build_recipe_card(recipe),
    }


def tiny_card(results: Path, summary: Mapping[str, Any]) -> str:
    made, measured = read_json(results / "ave-clip-tiny.json"), read_json(results / "ave-clip-tiny-fresh-seed0.json")
    num_videos = main_metrics(measured["decoders"])["num_videos"]
    render = (
        'python -c "from ave_clip.data import generate_synthetic_ave as g; '
        f"g('fresh-clips', num_videos={num_videos}, seed={FRESH_SEED}, splits=(0, 0, 1))\""
    )
    return build_localizer_card(
        builtin_checkpoints()["ave-clip-tiny"],
        {**measured, "arguments": made["arguments"]},
        model_name="ave-clip-tiny",
        dataset_name="Synthetic AVE",
        commands=[f"python {made['command']}", render, f"python {measured['command']}"],
        source="ave-clip-tiny",
        evaluation=f"clips of seed {FRESH_SEED}, which is used for nothing else, from the mp4 files to the events",
        seeds=summary,
        controls=made["results"],
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="model_cards", help="Folder that contains results/*.json.")
    folder = Path(parser.parse_args(argv).folder)
    for name, text in project_cards(folder).items():
        with atomic_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with program():
        main()
