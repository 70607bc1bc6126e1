"""The shortest way from a video to its events in Python: localize them, print their times, and draw the timeline.

python examples/quickstart.py                                       # the sample clip, with the embedded model
python examples/quickstart.py my.mp4 --model my-localizer --plot my.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import pipeline

import ave_clip
from ave_clip import plot_timeline
from ave_clip.core.builtin_checkpoints import find_checkpoint, limits_of
from ave_clip.core.text import printable
from ave_clip.outputs.drawing import percent
from ave_clip.programs import program

SAMPLE = Path(ave_clip.DEFAULT_CHECKPOINT).with_name("sample.mp4")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", default=str(SAMPLE), help="File or http(s) URL.")
    parser.add_argument("--model", default=ave_clip.DEFAULT_CHECKPOINT, help="Localizer: folder or Hub id.")
    parser.add_argument("--plot", help="Draw the timeline into this .png, .svg or .html file.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(argv)
    if args.model == ave_clip.DEFAULT_CHECKPOINT:
        print(f"No --model given: {limits_of(args.model)}", file=sys.stderr)
    localizer = pipeline("audio-visual-event-localization", model=find_checkpoint(args.model))
    result = localizer(args.video)
    for event in result["events"]:
        print(f"{event['start']:.1f} to {event['end']:.1f} s: {printable(event['label'])} ({percent(event['score'])})")
    if not result["events"]:
        print("Nothing is both heard and seen, as far as this model knows.")
    if args.plot:
        plot_timeline([(args.video, result)], args.plot)
    return result["events"]


if __name__ == "__main__":
    with program():
        main()
