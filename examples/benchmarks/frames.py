"""Measures speed and results of resizing methods, numbers of frames, and encodings shared by similar frames.

| part | reference | what is measured |
|---|---|---|
| resize | exact: bicubic with antialiasing, after decoding at native size | FFmpeg's bicubic, while decoding |
| number | 16 frames per segment | 1 to 8 frames per segment |
| sharing | each frame encoded | similar neighbours share one (`frame_tolerance`) |

`ratio` is the time of the reference divided by that of the choice. Cosines compare image features, per frame or
segment, with those of the reference; `neighbours_cosine` compares frames one second apart. Accuracy is that of the
embedded model on the segments of new synthetic clips. Full-size weights are random unless `--model` names a converted
AudioCLIP; the embedded model is always measured.

    python examples/benchmarks/frames.py --output frames.json
    python examples/benchmarks/frames.py --quick --parts resize --data_dir folder/of/ave-clip/synthesize
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders import build_model
from recordings import SCENES, write_recording
from timing import REFERENCE, finish, interleaved, parse, parser_for
from transformers import AutoProcessor
from transformers.utils import logging

from ave_clip import AudioCLIPFeatureExtractor, AVEClipForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from ave_clip.core.video_io import VideoClip, probe_video, read_video
from ave_clip.data import load_ave
from ave_clip.data.synthetic.clips import generate_synthetic_ave
from ave_clip.programs import program
from ave_clip.training.checkpoints import build_localizer, build_processor
from ave_clip.training.metrics import segment_accuracy

PARTS = ("resize", "number", "sharing")
MODELS = ("embedded", "full")
COUNTS = (1, 2, 4, 8, 16)
TOLERANCES = (0.0, 1.0, 2.0, 4.0)
SHARING_FRAMES = 4
NUM_LABELS = 29
# Not a seed of the clips that the embedded model was trained and validated on.
SYNTHETIC_SEED = 20261123


@dataclass
class Subject:
    """A localizer to measure; `seconds` of video are read for it."""

    name: str
    localize: AudioVisualEventLocalizationPipeline
    seconds: int
    rounds: int

    @property
    def side(self) -> int:
        return self.localize.processor.video_processor.size["shortest_edge"]

    def pixels(self, clip: VideoClip) -> torch.Tensor:
        """Returns all frames of a clip as inputs of the image tower."""
        processor = self.localize.processor.video_processor
        count = max(len(frames) for frames in clip.frames)
        inputs = processor.preprocess_segments([clip.frames], num_frames_per_segment=count)
        return inputs["pixel_values"][inputs["frame_mask"]]

    @torch.no_grad()
    def features(self, **inputs: Any) -> torch.Tensor:
        """Image features of segments, `(number, locations, width)`."""
        return self.localize.model.encode(**inputs)[0].flatten(0, 1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_for(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--model", help="Folder of a converted AudioCLIP; random weights by default.")
    parser.add_argument("--data_dir", help="Clips made by `ave-clip synthesize`; some are drawn by default.")
    parser.add_argument("--clips", type=int, help="How many of them; 100, with --quick 10.")
    args = parse(parser, argv)
    args.clips = args.clips or (10 if args.quick else 100)
    return args


def build_subject(name: str, args: argparse.Namespace) -> Subject:
    if name == "embedded":
        localizer = AVEClipForLocalization.from_pretrained("ave-clip-tiny")
        processor = AutoProcessor.from_pretrained("ave-clip-tiny")
        localize = AudioVisualEventLocalizationPipeline(model=localizer, processor=processor, device="cpu")
        return Subject(name, localize, 10, args.rounds)
    encoder = build_model(args)
    localizer = build_localizer(encoder, labels_with_background(map(str, range(NUM_LABELS - 1)))).eval()
    processor = build_processor(encoder.config, AudioCLIPFeatureExtractor(), COUNTS[-1])
    localize = AudioVisualEventLocalizationPipeline(model=localizer, processor=processor, device="cpu")
    return Subject(name, localize, 2 if args.quick else 5, 1 if args.quick else 3)


def compare(features: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Mean and least cosine of features `(number, ..., width)`, averaged over locations first."""
    cosines = torch.nn.functional.cosine_similarity(features, reference, dim=-1).reshape(len(features), -1).mean(dim=1)
    return {"mean_cosine": round(cosines.mean().item(), 4), "min_cosine": round(cosines.min().item(), 4)}


def fast_size(video: Path, side: int) -> tuple[int, int]:
    """Height and width with `side` as the shorter one, rounded as the exact resize does."""
    info = probe_video(video)
    shorter = min(info.height, info.width)
    return int(side * info.height / shorter), int(side * info.width / shorter)


def measure_resize(args: argparse.Namespace, subject: Subject, folder: Path) -> list[dict]:
    """Time of reading and resizing; how far embeddings and, for the embedded model, accuracy move."""
    video = write_recording(folder / f"resize-{subject.name}.mp4", subject.seconds)
    rows = [_resize_row(subject, video, count) for count in (COUNTS[2], COUNTS[-1])]
    if subject.name == "embedded":
        rows.append(_resize_accuracy(args, subject, folder))
    return rows


def _resize_row(subject: Subject, video: Path, count: int) -> dict:
    options = {"num_frames_per_segment": count, "read_audio": False}
    fast = {**options, "size": fast_size(video, subject.side)}

    def pixels(settings: dict) -> torch.Tensor:
        return subject.pixels(read_video(video, **settings))

    times = interleaved({REFERENCE: lambda: pixels(options), "fast": lambda: pixels(fast)}, subject.rounds)
    exact, shrunk = (pixels(settings)[::count] for settings in (options, fast))  # one frame per segment
    tower = subject.localize.model.vision_model
    with torch.no_grad():
        embeds, fast_embeds = (tower(frames).image_embeds for frames in (exact, shrunk))
    grey_levels = subject.localize.processor.video_processor.image_std[0] * 255
    return {
        "row": f"fast resize, {subject.name}, {count} frames a segment",
        **times["fast"],
        "exact_milliseconds": times[REFERENCE]["milliseconds"],
        "grey_levels_apart": round((exact - shrunk).abs().mean().item() * grey_levels, 2),
        **compare(fast_embeds, embeds),
        "neighbours_cosine": compare(embeds[1:], embeds[:-1])["mean_cosine"],
    }


def synthetic_clips(args: argparse.Namespace, folder: Path) -> tuple[list[str], list[list[int]]]:
    """Paths and labels of `--clips` clips."""
    data = Path(args.data_dir) if args.data_dir else folder / "synthetic"
    if not data.exists():
        generate_synthetic_ave(data, num_videos=args.clips, seed=SYNTHETIC_SEED, num_workers=1)
    examples = [example for split in load_ave(data).values() for example in split][: args.clips]
    return [example["video"]["path"] for example in examples], [list(example["labels"]) for example in examples]


def accuracy(subject: Subject, videos: Sequence, labels: Sequence[Sequence[int]], **options) -> float:
    """Share of segments that get their label."""
    results = (subject.localize(video, **options)["segments"] for video in videos)
    numbers = subject.localize.model.config.label2id
    predicted = [[numbers[segment["label"]] for segment in segments] for segments in results]
    return round(segment_accuracy(predicted, labels), 4)


def _resize_accuracy(args: argparse.Namespace, subject: Subject, folder: Path) -> dict:
    paths, labels = synthetic_clips(args, folder)
    count = subject.localize.processor.video_processor.num_frames_per_segment
    rate = subject.localize.processor.feature_extractor.sampling_rate

    def decoded(path: str, **options) -> dict:
        clip = read_video(path, num_frames_per_segment=count, sampling_rate=rate, **options)
        return {
            "frames": np.concatenate(clip.frames),
            "audio": clip.waveforms.reshape(-1),
            "sampling_rate": rate,
        }

    exact = accuracy(subject, map(decoded, paths), labels)
    shrunk = (decoded(path, size=fast_size(Path(path), subject.side)) for path in paths)
    return {
        "row": f"fast resize, {subject.name}, accuracy",
        "ratio": 1.0,
        "accuracy": accuracy(subject, shrunk, labels),
        "exact_accuracy": exact,
        "clips": len(paths),
    }


def measure_number(args: argparse.Namespace, subject: Subject, folder: Path) -> list[dict]:
    """The whole pipeline with few frames a segment beside 16."""
    video = str(write_recording(folder / f"number-{subject.name}.mp4", subject.seconds))
    most = COUNTS[-1]
    calls = {REFERENCE: lambda: subject.localize(video, num_frames_per_segment=most)}
    calls |= {
        str(count): lambda count=count: subject.localize(video, num_frames_per_segment=count) for count in COUNTS[:-1]
    }
    times = interleaved(calls, subject.rounds)
    times[str(most)] = times.pop(REFERENCE)
    prepare = subject.localize.processor
    features = {
        count: subject.features(**prepare(videos=video, num_frames_per_segment=count, return_tensors="pt"))
        for count in COUNTS
    }
    paths, labels = synthetic_clips(args, folder) if subject.name == "embedded" else ([], [])
    rows = []
    for count in COUNTS:
        row = {"row": f"{count} frames a segment, {subject.name}", **times[str(count)]}
        row |= compare(features[count], features[most])
        if paths:
            row["accuracy"] = accuracy(subject, paths, labels, num_frames_per_segment=count)
        rows.append(row)
    return rows


def measure_sharing(args: argparse.Namespace, subject: Subject, folder: Path) -> list[dict]:
    """Scenes with much and with little movement, at several tolerances."""
    return [row for scene in SCENES for row in _sharing_rows(subject, scene, folder)]


def _sharing_rows(subject: Subject, scene: str, folder: Path) -> list[dict]:
    video = str(write_recording(folder / f"{scene}-{subject.name}.mp4", subject.seconds, scene))
    options = {"num_frames_per_segment": SHARING_FRAMES}
    calls = {REFERENCE: lambda: subject.localize(video, **options)}
    calls |= {
        str(tolerance): lambda tolerance=tolerance: subject.localize(video, **options, frame_tolerance=tolerance)
        for tolerance in TOLERANCES
    }
    times = interleaved(calls, subject.rounds)
    every, _ = _shared_features(subject, video, options)
    rows = []
    for tolerance in TOLERANCES:
        features, share = _shared_features(subject, video, {**options, "frame_tolerance": tolerance})
        row = {"row": f"{scene} picture, tolerance {tolerance:g}, {subject.name}", **times[str(tolerance)]}
        rows.append({**row, "encoded_share": round(share, 3), **compare(features, every)})
    return rows


def _shared_features(subject: Subject, video: str, options: dict) -> tuple[torch.Tensor, float]:
    """Image features of the segments, and the share of frames that were encoded."""
    features, encoded, frames = [], 0, 0
    localize = subject.localize
    for block in localize.preprocess(video, **options):
        mask, sources = block["frame_mask"], block.get("frame_sources")
        frames += int(mask.sum())
        encoded += int(mask.sum()) if sources is None else len(sources[mask].unique())
        inputs = {name: block[name] for name in ("pixel_values", "input_values", "segment_mask")}
        prepare = localize.processor.video_processor.normalize_pixels
        found = subject.features(**inputs, frame_mask=mask, frame_sources=sources, prepare_pixels=prepare)
        features.append(found[block["segment_mask"].flatten()])
    return torch.cat(features), encoded / frames


MEASURES = dict(zip(PARTS, (measure_resize, measure_number, measure_sharing)))


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    logging.disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            subject = build_subject(name, args)
            for part in args.parts:
                rows += MEASURES[part](args, subject, Path(folder))
    return finish(rows, args, argv)


if __name__ == "__main__":
    with program():
        main()
