"""Measures the time and memory of a video besides its encoding: decoding, long videos, start-up, and stage 2.

| part | reference | what is measured |
|---|---|---|
| localize | the towers alone, on the same frames and audio | the pipeline at full size, from a 10-s 640x360 file |
| length | a minute of a 1-minute video | a minute of longer ones, with the embedded model; peak memory |
| start | the imports alone | `import ave_clip`, and the first result of the embedded model |
| mini | `ave-clip-mini` without fast inference | the default model, from a 1-minute 640x360 file |
| extraction | the towers alone, on the same clips | `extract_features.py` with its decoding workers |

`ratio` is the time (or memory) of the reference divided by the measured one, so higher is better; `at_least` is the
target. Weights are random unless `--model` names a converted AudioCLIP; the frames are drawn.

    python examples/benchmarks/pipeline.py --output pipeline.json
    python examples/benchmarks/pipeline.py --quick --parts localize start
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from encoders import build_model
from recordings import repeat_recording, write_recording
from timing import REFERENCE, finish, interleaved, own_peak_megabytes, parse, parser_for
from transformers import AutoProcessor
from transformers.utils import logging

import ave_clip
from ave_clip import AudioCLIPFeatureExtractor, AVEClipForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.core.modeling_ave_clip_mini import AVEClipMiniForLocalization
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from ave_clip.data.synthetic.clips import generate_synthetic_ave
from ave_clip.programs import program
from ave_clip.training.checkpoints import build_localizer, build_processor

PARTS = ("localize", "length", "start", "mini", "extraction")
EXTRACTION = Path(__file__).resolve().parents[1] / "extract_features.py"
SAMPLE = Path(ave_clip.DEFAULT_CHECKPOINT).with_name("synthetic_sample.mp4")
CLIP_SECONDS, MINI_SECONDS = 10, 60
# Short videos are localized repeatedly, for a more stable median.
STREAMS_AT_MOST, STREAM_SECONDS = 5, 20
NUM_LABELS = 29
AT_LEAST = {
    "localize": round(1 / 1.15, 3),
    "time": round(1 / 1.1, 3),
    "import": round(1 / 1.15, 3),
    "extraction": 0.9,
}
MEGABYTES_MORE_AT_MOST = 300
SECONDS_ABOVE_IMPORTS_AT_MOST = 2
TIMES_REAL_TIME_AT_LEAST = 30
IMPORTS = "import torch, transformers"
PIPELINE_IMPORTS = "import torch; from transformers import pipeline"
FIRST_RESULT = (
    "import torch, ave_clip; from transformers import pipeline; "
    f"pipeline('audio-visual-event-localization')({str(SAMPLE)!r})"
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_for(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help="Folder of a converted AudioCLIP. Default: random weights.")
    parser.add_argument("--frames", type=int, nargs="+", help="Frames per segment. Default: 4 and 16, with --quick 4.")
    parser.add_argument(
        "--minutes", type=int, nargs="+", help="Lengths of videos. Default: 1, 10 and 60, with --quick 1 and 5."
    )
    parser.add_argument("--clips", type=int, help="Clips of the extraction. Default: 12, with --quick 6.")
    parser.add_argument("--num_workers", type=int, default=2, help="Processes that decode in the extraction.")
    parser.add_argument("--stream", metavar="VIDEO", help="Only localize this video, and print time and memory.")
    args = parse(parser, argv)
    args.frames = args.frames or ([4] if args.quick else [4, 16])
    args.minutes = sorted(args.minutes or ([1, 5] if args.quick else [1, 10, 60]))
    args.clips = args.clips or (6 if args.quick else 12)
    # A round is several seconds long here.
    args.rounds = -(-args.rounds // 2)
    return args


class FullSize:
    """A localizer with AudioCLIP's towers, built on first use, and one clip."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self._encoder = args, folder, None

    @property
    def encoder(self):
        if self._encoder is None:
            self._encoder = build_model(self.args)
        return self._encoder

    def clip(self) -> Path:
        path = self.folder / "clip.mp4"
        return path if path.exists() else write_recording(path, CLIP_SECONDS)

    def localizer(self) -> AVEClipForLocalization:
        names = labels_with_background(map(str, range(NUM_LABELS - 1)))
        return build_localizer(self.encoder, names).eval().optimize_for_inference()

    def processor(self, num_frames: int):
        return build_processor(self.encoder.config, AudioCLIPFeatureExtractor(), num_frames)

    def save(self) -> Path:
        folder = self.folder / "audioclip"
        self.encoder.save_pretrained(folder)
        AudioCLIPFeatureExtractor().save_pretrained(folder)
        return folder


def measure_localize(args: argparse.Namespace, full: FullSize) -> list[dict]:
    """Measures the whole pipeline against the towers, which get decoded and normalized frames."""
    localizer = full.localizer()
    return [_localize(args, full, localizer, count) for count in args.frames]


def _localize(args: argparse.Namespace, full: FullSize, localizer: AVEClipForLocalization, count: int) -> dict:
    clip, processor = str(full.clip()), full.processor(count)
    localize = AudioVisualEventLocalizationPipeline(model=localizer, processor=processor, device=localizer.device)
    inputs = processor(videos=clip, return_tensors="pt")
    with torch.no_grad():
        times = interleaved(
            {REFERENCE: lambda: localizer.encode(**inputs), "pipeline": lambda: localize(clip)}, args.rounds
        )
    return {
        "row": f"localize, {CLIP_SECONDS} s, {count} frames a segment",
        **times["pipeline"],
        "encoder_milliseconds": times[REFERENCE]["milliseconds"],
        "at_least": AT_LEAST["localize"],
    }


def measure_length(args: argparse.Namespace, full: FullSize) -> list[dict]:
    """Measures the time per minute of videos of several lengths, each in its own process.

    These cannot be interleaved, so their ratio is of processor time, which other programs disturb less.
    """
    minute = repeat_recording(full.clip(), full.folder / "minute.mp4", 60 // CLIP_SECONDS)
    facts = {minutes: _stream_in_process(minute, full.folder / "long.mp4", minutes) for minutes in args.minutes}
    shortest, longest = args.minutes[0], args.minutes[-1]
    reference, rows = facts[shortest], []
    for minutes, fact in facts.items():
        ratio = reference["processor_seconds"] / shortest * minutes / fact["processor_seconds"]
        row = {"row": f"video of {minutes} minutes, time a minute", "ratio": round(ratio, 3), **fact}
        rows.append({**row, "at_least": AT_LEAST["time"]})
    more = facts[longest]["peak_megabytes"] - reference["peak_megabytes"]
    memory = {
        "row": f"video of {longest} minutes, peak memory",
        "ratio": round(reference["peak_megabytes"] / facts[longest]["peak_megabytes"], 3),
        "megabytes_more": round(more, 1),
        "megabytes_more_at_most": MEGABYTES_MORE_AT_MOST,
    }
    return [*rows, memory]


def _stream_in_process(minute: Path, path: Path, minutes: int) -> dict[str, float]:
    video = repeat_recording(minute, path, minutes)
    command = [sys.executable, __file__, "--stream", str(video), "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def stream(video: str) -> dict[str, float]:
    """Localizes one video with the embedded model after a warm-up; returns medians of times and peak memory."""
    localize = AudioVisualEventLocalizationPipeline(
        model=AVEClipForLocalization.from_pretrained("ave-clip-tiny"),
        processor=AutoProcessor.from_pretrained("ave-clip-tiny"),
        device="cpu",
    )
    localize(str(SAMPLE))
    times = [_stream_once(localize, video)]
    while len(times) < STREAMS_AT_MOST and sum(total for total, _, _ in times) < STREAM_SECONDS:
        times.append(_stream_once(localize, video))
    names = ("seconds", "processor_seconds", "seconds_to_first_segments")
    medians = (round(statistics.median(values), 3) for values in zip(*times))
    return {**dict(zip(names, medians)), "peak_megabytes": round(own_peak_megabytes(), 1)}


def _stream_once(localize: AudioVisualEventLocalizationPipeline, video: str) -> tuple[float, float, float]:
    started, used = time.perf_counter(), time.process_time()
    results = localize.stream(video)
    next(results)
    first = time.perf_counter() - started
    for _ in results:
        pass
    return time.perf_counter() - started, time.process_time() - used, first


def measure_start(args: argparse.Namespace, full: FullSize) -> list[dict]:
    """Measures the start of new interpreters, interleaved."""
    imports = {REFERENCE: IMPORTS, "package": f"{IMPORTS}, ave_clip"}
    package = _time_programs(imports, args.rounds)
    first = _time_programs({REFERENCE: PIPELINE_IMPORTS, "result": FIRST_RESULT}, args.rounds)
    above = (first["result"]["milliseconds"] - first[REFERENCE]["milliseconds"]) / 1000
    return [
        {"row": "import ave_clip beside torch and transformers", **package["package"], "at_least": AT_LEAST["import"]},
        {
            "row": "first result of the embedded model",
            **first["result"],
            "seconds_above_imports": round(above, 2),
            "seconds_above_imports_at_most": SECONDS_ABOVE_IMPORTS_AT_MOST,
        },
    ]


def _time_programs(programs: dict[str, str], rounds: int) -> dict[str, dict[str, float]]:
    def run(program: str) -> None:
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

    return interleaved({name: lambda code=code: run(code) for name, code in programs.items()}, rounds)


def measure_mini(args: argparse.Namespace, full: FullSize) -> list[dict]:
    """Measures the default model with decoding, with and without its fast towers, and compares the scores."""
    video = str(repeat_recording(full.clip(), full.folder / "mini.mp4", MINI_SECONDS // CLIP_SECONDS))
    localizers = {}
    for name in (REFERENCE, "mini"):
        model = AVEClipMiniForLocalization.from_pretrained("ave-clip-mini").eval()
        processor = AutoProcessor.from_pretrained("ave-clip-mini")
        localizers[name] = AudioVisualEventLocalizationPipeline(model=model, processor=processor, device="cpu")
    localizers[REFERENCE].model.undo_inference_optimization()
    times = interleaved(
        {name: lambda localize=localize: localize(video) for name, localize in localizers.items()}, args.rounds
    )
    scores = [[segment["score"] for segment in localize(video)["segments"]] for localize in localizers.values()]
    return [
        {
            "row": f"ave-clip-mini, {MINI_SECONDS} s",
            **times["mini"],
            "times_real_time": round(1000 * MINI_SECONDS / times["mini"]["milliseconds"], 1),
            "times_real_time_at_least": TIMES_REAL_TIME_AT_LEAST,
            "max_difference": max(abs(own - plain) for own, plain in zip(*scores, strict=True)),
        }
    ]


def measure_extraction(args: argparse.Namespace, full: FullSize) -> list[dict]:
    """Measures stage 2 on copies of one clip, between two measurements of the towers on the same frames."""
    data, count = full.folder / "data", args.frames[-1]
    generate_synthetic_ave(data, num_videos=args.clips, num_workers=1)
    for video in data.glob("AVE/*.mp4"):
        shutil.copyfile(full.clip(), video)
    localizer, model = full.localizer(), full.save()
    inputs = full.processor(count)(videos=full.clip(), return_tensors="pt")
    before = _encoded_per_second(localizer, inputs, args.clips)
    results = _extract(args, data, model, full.folder / "features", count)
    after = _encoded_per_second(localizer, inputs, args.clips)
    bare = statistics.mean([before, after])
    return [
        {
            "row": f"stage 2, {count} frames a segment, {args.num_workers} workers",
            "ratio": round(results["clips_per_second"] / bare, 3),
            "clips_per_second": round(results["clips_per_second"], 3),
            "encoder_clips_per_second": round(bare, 3),
            "waited_share": round(results["waited_share"], 3),
            "at_least": AT_LEAST["extraction"],
        }
    ]


@torch.no_grad()
def _encoded_per_second(localizer: AVEClipForLocalization, inputs: dict, num_clips: int) -> float:
    localizer.encode(**inputs)
    started = time.perf_counter()
    for _ in range(num_clips // 2):
        localizer.encode(**inputs)
    return num_clips // 2 / (time.perf_counter() - started)


def _extract(args: argparse.Namespace, data: Path, model: Path, output: Path, count: int) -> dict:
    command = [sys.executable, str(EXTRACTION), "--cpu", "--model", str(model), "--data_dir", str(data)]
    command += ["--output_dir", str(output), "--num_workers", str(args.num_workers)]
    command += ["--num_frames_per_segment", str(count)]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


MEASURES = dict(zip(PARTS, (measure_localize, measure_length, measure_start, measure_mini, measure_extraction)))


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    logging.disable_progress_bar()
    if args.stream:
        fact = stream(args.stream)
        print(json.dumps(fact))
        return fact
    with tempfile.TemporaryDirectory() as folder:
        full, rows = FullSize(args, Path(folder)), []
        for part in args.parts:
            rows += MEASURES[part](args, full)
    return finish(rows, args, argv)


if __name__ == "__main__":
    with program():
        main()
