"""Draws the images of the README from the sample clip and the embedded model.

    python examples/maintenance/draw_pictures.py

It writes, to examples/pictures by default, the timeline, light and dark (as drawn by `ave-clip localize --plot`), and
three frames of the overlay (as written by `--overlay`), side by side and enlarged.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image
from transformers import pipeline

import ave_clip
from ave_clip.outputs.overlay import write_overlay
from ave_clip.outputs.timeline import THEMES, plot_timeline
from ave_clip.programs import program

SAMPLE = Path(ave_clip.DEFAULT_CHECKPOINT).with_name("sample.mp4")
FRAME_TIMES = (1.5, 4.5, 8.5)
ENLARGEMENT = 2
GAP_PIXELS = 8


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parents[1] / "pictures")
    return parser.parse_args(argv)


def frames_at(video: Path, times: Sequence[float]) -> list[Image.Image]:
    """Returns the first frame at or after each of the times, which are in seconds and ascending."""
    frames: list[Image.Image] = []
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            if len(frames) < len(times) and frame.time >= times[len(frames)]:
                frames.append(frame.to_image())
    return frames


def side_by_side(frames: Sequence[Image.Image]) -> Image.Image:
    """Draws enlarged frames in a row, with transparent gaps."""
    width, height = (side * ENLARGEMENT for side in frames[0].size)
    picture = Image.new("RGBA", (len(frames) * (width + GAP_PIXELS) - GAP_PIXELS, height))
    for index, frame in enumerate(frames):
        picture.paste(frame.resize((width, height), Image.Resampling.BICUBIC), (index * (width + GAP_PIXELS), 0))
    return picture


def main(argv: Sequence[str] | None = None) -> list[Path]:
    output_dir = parse_args(argv).output_dir
    localizer = pipeline("audio-visual-event-localization")
    result = localizer(str(SAMPLE), return_heatmaps=True)
    timelines = [output_dir / f"timeline-{theme}.png" for theme in THEMES]
    for path, theme in zip(timelines, THEMES):
        plot_timeline([(SAMPLE, result)], path, theme=theme)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "overlay.mp4"
        write_overlay(SAMPLE, result, video, video_processor=localizer.processor.video_processor, preset="medium")
        side_by_side(frames_at(video, FRAME_TIMES)).save(output_dir / "overlay.png")
    return [*timelines, output_dir / "overlay.png"]


if __name__ == "__main__":
    with program():
        main()
