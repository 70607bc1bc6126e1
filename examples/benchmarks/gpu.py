"""Checks the speed and the accuracy on a GPU: one table with what is wanted and what was reached; fails on a miss.

| row | what is measured |
|---|---|
| pipeline | how many times faster than real time a 640x360 video is localized, full-size towers, 16 and 4 frames per segment |
| corpus | the same for many one-minute videos at once |
| towers | items per second in the chosen half type at batch 160, divided by those of the plain towers in float32 |
| cosine | least cosine of half-type embeddings to float32 |
| graphs | speed of small batches with `cuda_graphs`, divided by that without |
| compile | items per second of the compiled towers at four times the batch |
| reader | speed of `iter_segments` without a model, divided by that of bare PyAV with two frame threads, both on two CPUs |
| decoding | how many times faster than real time 1080p and 4K videos are read, with all threads; how fast the GPU's own decoder (NVDEC) is, and how different its pictures |
| training | milliseconds of a training step of the localizer, pooled and dense features, and of PSP |
| start | time from start to the first result, divided by that of importing torch and transformers |
| threads | whether segments and events are the same with one decoding thread and with all |

The plain towers in float32 compute what the original AudioCLIP does; its code is not needed. With
`--original_audioclip` and `--original_psp` (see originals.py), the authors' code is timed on the same device, too. Weights
are random. Nothing is built or downloaded; on a GPU this takes about five minutes. Rows without a wanted value are shown
only.

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
from av.codec.hwaccel import HWAccel
from decoding import decoding_rows, hardware_rows, reader_rows
from encoders import NUM_LABELS, build_model, pictures, waveforms
from originals import original_audioclip, original_psp_step, psp_batch
from recordings import repeat_recording, write_recording
from timing import finish
from torch import nn

from ave_clip import AudioCLIPConfig, AudioCLIPFeatureExtractor, AudioCLIPModel
from ave_clip.core.categories import labels_with_background
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from ave_clip.corpus_videos import localize_videos, plan_reading
from ave_clip.programs import program
from ave_clip.rivals import RivalConfig, build_rival
from ave_clip.training.checkpoints import build_localizer, build_processor

SECONDS_OF_SCENE = 10
TIMES_REAL_TIME = {16: 180, 4: 250}
CORPUS_TIMES_REAL_TIME = 350
GRAPHS_AT_LEAST, GRAPH_BATCHES = 2.0, (10, 40)
# Items per second, as measured before in bfloat16.
COMPILED_AT_LEAST = {"audio": 15_300, "image": 19_600}
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
    parser.add_argument("--original_audioclip", type=Path, metavar="DIR", help="Copy of AudioCLIP's repository.")
    parser.add_argument("--original_psp", type=Path, metavar="FILE", help="fully_model.py of PSP's repository.")
    parser.add_argument("--output", help="JSON file for the results.")
    args = parser.parse_args(argv)
    args.model = None
    if args.quick:
        args.minutes, args.batch_size, args.rounds = 0, 4, 1
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --quick runs the same code on tiny inputs")
    return args


def row(name: str, reached: float, at_least: float | None = None, at_most: float | None = None) -> dict:
    """One row of the table, with one limit or none."""
    wanted, is_reached = "", True
    if at_least is not None:
        wanted, is_reached = f">= {at_least:g}", reached >= at_least
    elif at_most is not None:
        wanted, is_reached = f"<= {at_most:g}", reached <= at_most
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


def tower_inputs(model: AudioCLIPModel, batch_size: int, device: str) -> dict[str, torch.Tensor]:
    return {
        "audio": waveforms(batch_size).to(device),
        "image": pictures(batch_size, model.config.vision_config.image_size).to(device),
    }


def embed(network: AudioCLIPModel, inputs: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    if kind == "audio":
        return network.audio_model(inputs["audio"]).audio_embeds
    return network.vision_model(inputs["image"]).image_embeds


def tower_rows(args: argparse.Namespace, model: AudioCLIPModel) -> Iterator[dict]:
    inputs = tower_inputs(model, args.batch_size, args.device)
    plain = {kind: median_seconds(args, lambda kind=kind: embed(model, inputs, kind)) for kind in inputs}
    for dtype in ("float16", "bfloat16"):
        fast = copy.deepcopy(model).optimize_for_inference(dtype=dtype)
        for kind in inputs:
            embeds, expected = embed(fast, inputs, kind).float(), embed(model, inputs, kind).float()
            cosine = nn.functional.cosine_similarity(embeds, expected).min()
            yield row(f"cosine, {kind}, {dtype}", cosine.item(), at_least=COSINE_AT_LEAST)
            if dtype == args.dtype:
                own = median_seconds(args, lambda kind=kind, fast=fast: embed(fast, inputs, kind))
                name = f"towers, {kind}, {dtype}, batch {args.batch_size}"
                yield row(name, plain[kind] / own, at_least=TOWERS_AT_LEAST)
    if args.original_audioclip is not None:
        for kind, encode in original_audioclip(args.original_audioclip, args.device).items():
            seconds = median_seconds(args, lambda kind=kind, encode=encode: encode(inputs[kind]))
            yield row(f"original AudioCLIP, {kind}, plain towers = 1", plain[kind] / seconds)


def launch_rows(args: argparse.Namespace, model: AudioCLIPModel) -> Iterator[dict]:
    """Yields the rows of what saves kernel launches: CUDA graphs of small batches, and compilation of large ones."""
    fast = copy.deepcopy(model).optimize_for_inference(dtype=args.dtype)
    graphed = copy.deepcopy(model).optimize_for_inference(dtype=args.dtype, cuda_graphs=True)
    for batch_size in GRAPH_BATCHES[: 1 if args.quick else None]:
        inputs = tower_inputs(model, batch_size, args.device)
        for kind in inputs:
            eager, own = (
                median_seconds(args, lambda network=network, batch=inputs, kind=kind: embed(network, batch, kind))
                for network in (fast, graphed)
            )
            yield row(f"graphs, {kind}, {args.dtype}, batch {batch_size}", eager / own, at_least=GRAPHS_AT_LEAST)
    del graphed
    compiled = copy.deepcopy(model).optimize_for_inference(dtype=args.dtype, compile=True)
    batch_size = args.batch_size if args.quick else 4 * args.batch_size
    inputs = tower_inputs(model, batch_size, args.device)
    # Compiling takes longer than everything else, and on the CPU there is nothing to learn from it.
    torch.compiler.set_stance("force_eager" if args.quick else "default")
    for kind, at_least in COMPILED_AT_LEAST.items():
        seconds = median_seconds(args, lambda kind=kind: embed(compiled, inputs, kind))
        name = f"compile, {kind}, {args.dtype}, batch {batch_size}, items per second"
        yield row(name, batch_size / seconds, at_least=at_least)
    torch.compiler.set_stance("default")


def pipeline_rows(args: argparse.Namespace, model: AudioCLIPModel, video: str, seconds: int) -> Iterator[dict]:
    names = labels_with_background(map(str, range(NUM_LABELS - 1)))
    localizer = build_localizer(model, names).eval()
    processor = build_processor(model.config, AudioCLIPFeatureExtractor(), max(TIMES_REAL_TIME))
    localizer.to(args.device).optimize_for_inference(dtype=args.dtype)
    localize = AudioVisualEventLocalizationPipeline(model=localizer, processor=processor, device=args.device)
    yield from corpus_rows(args, localizer, processor, video)
    for count, at_least in TIMES_REAL_TIME.items():
        taken = median_seconds(args, lambda count=count: localize(video, num_frames_per_segment=count))
        yield row(f"pipeline, {count} frames per segment", seconds / taken, at_least=at_least)
    results = [localize(video, num_frames_per_segment=4, decode_threads=number) for number in (1, 4)]
    yield row("threads, same segments and events", float(results[0] == results[1]), at_least=1)


class Copies:
    """One video under many numbers."""

    def __init__(self, video: str) -> None:
        self.video = video

    def open(self, number: int) -> tuple[str, str]:
        return str(number), self.video


def corpus_rows(args: argparse.Namespace, localizer, processor, video: str) -> Iterator[dict]:
    """Yields the rows of many videos, read by as many processes as `localize_corpus.py` chooses."""
    folder = Path(video).parent
    scene, seconds = folder / "scene.mp4", 2 if args.quick else 60
    minute = scene if args.quick else repeat_recording(scene, folder / "minute.mp4", 60 // SECONDS_OF_SCENE)
    for count in TIMES_REAL_TIME:
        options = {"num_frames_per_segment": count, "device": args.device}
        localize = AudioVisualEventLocalizationPipeline(model=localizer, processor=processor, **options)
        plan = plan_reading(localize, 2 if args.quick else 1000)
        num_videos = 2 if args.quick else 3 * max(1, plan.num_workers)
        started = time.perf_counter()
        results = list(localize_videos(localize, Copies(str(minute)), range(num_videos), plan))
        taken = time.perf_counter() - started
        errors = [result["error"] for _, result in results if result["error"]]
        if errors:
            raise RuntimeError(f"{len(errors)} of {num_videos} videos failed, the first one with: {errors[0]}")
        name = f"corpus, {count} frames per segment, {plan.num_workers} reading processes"
        yield row(name, num_videos * seconds / taken, at_least=CORPUS_TIMES_REAL_TIME)


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
    batch = psp_batch(step_args.batch_size, args.device)
    steps = {"PSP of ave_clip.rivals": rival_step(batch)}
    if args.original_psp is not None:
        steps["PSP's own code"] = original_psp_step(args.original_psp, batch)
    for name, step in steps.items():
        milliseconds = 1000 * median_seconds(args, step)
        yield row(f"training step, {name}, batch {step_args.batch_size}", milliseconds)


def rival_step(batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Returns a function that runs one training step of this package's PSP."""
    network = build_rival("psp", RivalConfig()).to(batch["labels"].device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        network(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scene = write_recording(Path(folder) / "scene.mp4", 2 if args.quick else SECONDS_OF_SCENE)
        seconds = 60 * args.minutes or 2
        video = repeat_recording(scene, Path(folder) / "video.mp4", 6 * args.minutes) if args.minutes else scene
        with torch.inference_mode():
            model = encoder(args)
            rows += [*tower_rows(args, model), *launch_rows(args, model)]
            rows += pipeline_rows(args, model, str(video), seconds)
        rows += [row(*measured) for measured in (*reader_rows(args, scene), *decoding_rows(args, Path(folder)))]
        hwaccel = HWAccel("cuda", allow_software_fallback=False) if args.device.startswith("cuda") else None
        rows += [row(*measured) for measured in hardware_rows(args, Path(folder), hwaccel)]
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
