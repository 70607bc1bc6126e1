"""Checks the speed and the accuracy on a GPU: one table with what is wanted and what was reached; fails on a miss.

| row | what is measured |
|---|---|
| pipeline | how many times faster than real time a 640x360 video is localized, full-size towers, 16 and 4 frames per segment |
| towers | items per second in the chosen half type at batch 160, divided by those of the plain towers in float32 |
| cosine | least cosine of half-type embeddings to float32 |
| training | milliseconds of a training step of the localizer, pooled and dense features |
| start | time from start to the first result, divided by that of importing torch and transformers |
| threads | whether segments and events are the same with one decoding thread and with all |

The plain towers in float32 compute what the original AudioCLIP does; its code is not needed. Weights are random. Nothing
is built or downloaded; on a GPU this takes less than five minutes.

    python examples/benchmarks/gpu.py
    python examples/benchmarks/gpu.py --device cpu --quick        (the same code on tiny inputs; nothing is judged)
"""  # noqa: E501

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import train_step
from encoders import NUM_LABELS, build_model, pictures, waveforms
from recordings import repeat_recording, write_recording
from timing import finish
from torch import nn

from ave_clip import AudioCLIPConfig, AudioCLIPFeatureExtractor, AudioCLIPModel
from ave_clip.core.categories import labels_with_background
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from ave_clip.programs import program
from ave_clip.training.checkpoints import build_localizer, build_processor

SECONDS_OF_SCENE = 10
TIMES_REAL_TIME = {16: 180, 4: 250}
TOWERS_AT_LEAST, COSINE_AT_LEAST = 2.0, 0.9995
STEP_MILLISECONDS_AT_MOST, START_AT_MOST = 6.0, 1.5
QUICK_VISION = {"image_size": 32, "width": 8, "depths": (1, 1, 1, 1), "num_attention_heads": 4}
QUICK_AUDIO = {"width": 8, "depths": (1, 1, 1, 1), "groups": 2, "width_per_group": 32}
IMPORTS = "import torch, transformers"
FIRST_RESULT = (
    "import torch, ave_clip; from transformers import pipeline; "
    "pipeline('audio-visual-event-localization', device={device!r})({video!r})"
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"), help="Half type of the towers.")
    parser.add_argument("--minutes", type=int, default=10, help="Length of the video.")
    parser.add_argument("--batch_size", type=int, default=160, help="Items of the towers' rows.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="Tiny towers and inputs; misses are not an error.")
    parser.add_argument("--output", help="JSON file for the results.")
    args = parser.parse_args(argv)
    args.model = None
    if args.quick:
        args.minutes, args.batch_size, args.rounds = 0, 4, 1
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --quick runs the same code on tiny inputs")
    return args


def row(name: str, reached: float, at_least: float | None = None, at_most: float | None = None) -> dict:
    """One row of the table; exactly one of the two limits is given."""
    is_reached = reached >= at_least if at_least is not None else at_most is not None and reached <= at_most
    wanted = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    return {"row": name, "reached": float(f"{reached:.5g}"), "wanted": wanted, "is_reached": is_reached}


def median_seconds(args: argparse.Namespace, call: Callable[[], object]) -> float:
    """Median time of a call with all its work on the device, after one call that is not counted."""
    seconds = []
    for _ in range(args.rounds + 1):
        started = time.perf_counter()
        call()
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def encoder(args: argparse.Namespace) -> AudioCLIPModel:
    if not args.quick:
        return build_model(args).to(args.device)
    torch.manual_seed(0)
    config = AudioCLIPConfig(towers=("vision", "audio"), vision_config=QUICK_VISION, audio_config=QUICK_AUDIO)
    return AudioCLIPModel(config).eval().to(args.device)


def tower_rows(args: argparse.Namespace, model: AudioCLIPModel) -> Iterator[dict]:
    inputs = {
        "audio": waveforms(args.batch_size).to(args.device),
        "image": pictures(args.batch_size, model.config.vision_config.image_size).to(args.device),
    }

    def embed(network: AudioCLIPModel, kind: str) -> torch.Tensor:
        if kind == "audio":
            return network.audio_model(inputs["audio"]).audio_embeds
        return network.vision_model(inputs["image"]).image_embeds

    for dtype in ("float16", "bfloat16"):
        fast = copy.deepcopy(model).optimize_for_inference(dtype=dtype)
        for kind in inputs:
            cosine = nn.functional.cosine_similarity(embed(fast, kind).float(), embed(model, kind).float()).min()
            yield row(f"cosine, {kind}, {dtype}", cosine.item(), at_least=COSINE_AT_LEAST)
            if dtype == args.dtype:
                plain = median_seconds(args, lambda kind=kind: embed(model, kind))
                ratio = plain / median_seconds(args, lambda kind=kind, fast=fast: embed(fast, kind))
                yield row(f"towers, {kind}, {dtype}, batch {args.batch_size}", ratio, at_least=TOWERS_AT_LEAST)


def pipeline_rows(args: argparse.Namespace, model: AudioCLIPModel, video: str, seconds: int) -> Iterator[dict]:
    names = labels_with_background(map(str, range(NUM_LABELS - 1)))
    localizer = build_localizer(model, names).eval()
    processor = build_processor(model.config, AudioCLIPFeatureExtractor(), max(TIMES_REAL_TIME))
    localizer.to(args.device).optimize_for_inference(dtype=args.dtype)
    localize = AudioVisualEventLocalizationPipeline(model=localizer, processor=processor, device=args.device)
    for count, at_least in TIMES_REAL_TIME.items():
        taken = median_seconds(args, lambda count=count: localize(video, num_frames_per_segment=count))
        yield row(f"pipeline, {count} frames per segment", seconds / taken, at_least=at_least)
    results = [localize(video, num_frames_per_segment=4, decode_threads=number) for number in (1, 4)]
    yield row("threads, same segments and events", float(results[0] == results[1]), at_least=1)


def start_row(args: argparse.Namespace, video: str) -> dict:
    programs = IMPORTS, FIRST_RESULT.format(device=args.device, video=video)
    seconds = []
    for text in programs * min(2, args.rounds):  # in turns; the first ones fill the file cache
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", text], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return row("start to first result, imports = 1", seconds[-1] / seconds[-2], at_most=START_AT_MOST)


def training_rows(args: argparse.Namespace) -> Iterator[dict]:
    options = ["--device", args.device, "--batch_size", str(args.batch_size if args.quick else 128)]
    options += ["--quick", "--hidden_size", "16"] if args.quick else []
    step_args = train_step.parse_args(options)
    for kind in train_step.FEATURE_TYPES:
        measured = train_step.measure(step_args, kind)
        yield row(measured["row"], measured["milliseconds"], at_most=STEP_MILLISECONDS_AT_MOST)


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scene = write_recording(Path(folder) / "scene.mp4", 2 if args.quick else SECONDS_OF_SCENE)
        seconds = 60 * args.minutes or 2
        video = repeat_recording(scene, Path(folder) / "video.mp4", 6 * args.minutes) if args.minutes else scene
        with torch.inference_mode():
            model = encoder(args)
            rows += [*tower_rows(args, model), *pipeline_rows(args, model, str(video), seconds)]
        rows += training_rows(args)
        if not args.quick:
            rows.append(start_row(args, str(scene)))
    args.accelerator = torch.cuda.get_device_name() if args.device.startswith("cuda") else None
    content = finish(rows, args, argv)
    for entry in rows:
        verdict = "ok" if entry["is_reached"] else "MISS"
        print(f"{verdict:4} {entry['reached']:>10g} {entry['wanted']:>10}  {entry['row']}")
    missed = sum(not entry["is_reached"] for entry in rows)
    if missed and not args.quick:
        raise SystemExit(f"{missed} of {len(rows)} rows miss what is wanted.")
    return content


if __name__ == "__main__":
    with program():
        main()
