"""Measures the time of the localizer for one clip of ten seconds with cached features.

The reference is the same localizer with its fusions computed block by block, see `fusion.py`.

    python examples/benchmarks/localizer.py --output localizer.json
"""

import argparse
import copy
from collections.abc import Sequence

import torch
from fusion import BlockByBlockFusion, paper_network
from timing import REFERENCE, finish, interleaved, parse, parser_for

from ave_clip import AVEClipForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.programs import program

NUM_SEGMENTS = 10
NUM_LOCATIONS = 49
NUM_LABELS = 29
CALLS_PER_ROUND = 5


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_for(__doc__)
    parser.add_argument("--hidden_size", type=int, default=256)
    return parse(parser, argv)


def build_localizer(args: argparse.Namespace, visual_feature_type: str) -> AVEClipForLocalization:
    torch.manual_seed(0)
    names = labels_with_background(map(str, range(NUM_LABELS - 1)))
    options = {"visual_feature_type": visual_feature_type, "hidden_size": args.hidden_size, "id2label": names}
    return AVEClipForLocalization(paper_network(**options)).eval()


def random_features(localizer: AVEClipForLocalization) -> dict[str, torch.Tensor]:
    config, generator = localizer.config, torch.Generator().manual_seed(0)
    locations = () if config.visual_feature_type == "pooled" else (NUM_LOCATIONS,)
    shape = (1, NUM_SEGMENTS, *locations, config.resolved_image_feature_size)
    return {
        "image_features": torch.randn(shape, generator=generator),
        "audio_features": torch.randn(1, NUM_SEGMENTS, config.resolved_audio_feature_size, generator=generator),
    }


def measure(args: argparse.Namespace, visual_feature_type: str) -> dict:
    localizer = build_localizer(args, visual_feature_type)
    loop = copy.deepcopy(localizer)
    loop.fusion, loop.refiner = BlockByBlockFusion(loop.fusion), BlockByBlockFusion(loop.refiner)
    features = random_features(localizer)
    difference = (localizer(**features).logits - loop(**features).logits).abs().max().item()

    def call(model: AVEClipForLocalization) -> None:
        for _ in range(CALLS_PER_ROUND):
            model(**features)

    calls = {REFERENCE: lambda: call(loop), "package": lambda: call(localizer)}
    times = interleaved(calls, 3 * args.rounds)  # the calls are short
    return {
        "row": f"localizer, one clip, {visual_feature_type} features",
        "milliseconds": round(times["package"]["milliseconds"] / CALLS_PER_ROUND, 2),
        "ratio": times["package"]["ratio"],
        "reference_milliseconds": round(times[REFERENCE]["milliseconds"] / CALLS_PER_ROUND, 2),
        "max_difference": float(f"{difference:.2e}"),
    }


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    return finish([measure(args, kind) for kind in ("pooled", "dense")], args, argv)


if __name__ == "__main__":
    with program():
        main()
