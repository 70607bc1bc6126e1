"""Benchmark of stage 3: one training step (forward, backward, clipping, AdamW) of the paper's localizer on features.

It prints clips per second, time per step and peak memory, for pooled and for dense features (49 x 1024) with ten
segments per clip. `--output` also writes them as JSON with the machine and the versions. The features are random: only
their shapes affect the speed.

    python examples/benchmarks/train_step.py --output train_step.json
    python examples/benchmarks/train_step.py --threads 1 --batch_size 16 --quick
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from timing import finish, own_peak_megabytes

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.programs import program
from ave_clip.training.dropout import use_keyed_dropout

NUM_SEGMENTS = 10
NUM_LABELS = 29
NUM_LOCATIONS = 49
WARM_UP_STEPS = 2
# Pooled features come first, because peak memory never decreases.
FEATURE_TYPES = ("pooled", "dense")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help=f"Measured steps, after {WARM_UP_STEPS} warm-up steps.")
    parser.add_argument("--threads", type=int, help="Number of threads of torch. Default: one per core.")
    parser.add_argument("--device", default="cpu", help="Device, for example cuda.")
    parser.add_argument("--quick", action="store_true", help="Measure three steps only.")
    parser.add_argument("--output", help="JSON file for the results.")
    args = parser.parse_args(argv)
    for name in ("batch_size", "hidden_size", "steps", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def build_step(args: argparse.Namespace, visual_feature_type: str) -> Callable[[], None]:
    """Returns a function that runs one training step of the paper's localizer on a fixed batch."""
    names = labels_with_background(map(str, range(NUM_LABELS - 1)))
    options = {"visual_feature_type": visual_feature_type, "hidden_size": args.hidden_size, "id2label": names}
    localizer = AVEClipForLocalization(AVEClipConfig.paper(use_encoders=False, **options)).to(args.device).train()
    dropout = use_keyed_dropout(localizer)
    batch = random_batch(args, localizer.config)
    trained = [parameter for parameter in localizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4)
    rows = torch.arange(args.batch_size, device=args.device)

    def step() -> None:
        dropout.set(0, 0, rows)
        localizer(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_batch(args: argparse.Namespace, config: AVEClipConfig) -> dict[str, torch.Tensor]:
    """Returns random features and labels of `--batch_size` clips."""
    generator = torch.Generator().manual_seed(0)
    clips = (args.batch_size, NUM_SEGMENTS)
    locations = () if config.visual_feature_type == "pooled" else (NUM_LOCATIONS,)
    batch = {
        "image_features": torch.randn(*clips, *locations, config.resolved_image_feature_size, generator=generator),
        "audio_features": torch.randn(*clips, config.resolved_audio_feature_size, generator=generator),
        "labels": torch.randint(NUM_LABELS, clips, generator=generator),
        "segment_mask": torch.ones(clips, dtype=torch.bool),
    }
    return {name: tensor.to(args.device) for name, tensor in batch.items()}


def measure(args: argparse.Namespace, visual_feature_type: str) -> dict[str, str | float]:
    """Measures the steps with one kind of features."""
    step, seconds = build_step(args, visual_feature_type), []
    for _ in range(WARM_UP_STEPS + (3 if args.quick else args.steps)):
        started = time.perf_counter()
        step()
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    measured = seconds[WARM_UP_STEPS:]
    median = statistics.median(measured)
    return {
        "row": f"training step, {visual_feature_type} features, batch {args.batch_size}",
        "milliseconds": round(1000 * median, 1),
        "slowest_milliseconds": round(1000 * max(measured), 1),
        "clips_per_second": round(args.batch_size / median, 1),
        "peak_megabytes": round(own_peak_megabytes(), 1),
    }


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return finish([measure(args, kind) for kind in FEATURE_TYPES], args, argv)


if __name__ == "__main__":
    with program():
        main()
