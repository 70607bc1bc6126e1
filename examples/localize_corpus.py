"""Localize every video of a folder, a list or a data set, on any number of processes or machines.

What it reads: `--input`, a folder (with its subfolders) or a text file with one path or URL per line; or `--dataset`,
the name or folder of a data set with a video column for `datasets.load_dataset`; or `--data`, a labelled data set of
any kind that `ave_clip.data.open_dataset` reads, of which only the videos are used.
What it writes: `--output_dir/part-00000.parquet` and so on, with one row per video: `video`, `error` (null if it
worked), `segments` and `events` (lists of start, end, label, score). Each part is written atomically, and a run that
was stopped resumes with the missing parts. The exit code is 1 if a video failed, although all other results are
complete; `--retry_failed` computes the parts with such videos again, for example when the network is back. The engine
is `ave_clip.corpus`.

Several videos are read at once, in `--num_workers` processes for each model (by default as many as the CPUs and the
device allow). Models take the parts one after the other. The command may also be started several times, on any number
of machines that share the folder: each part is computed once.

    accelerate launch --num_processes 4 examples/localize_corpus.py --input videos --output_dir events       # 4 GPUs
    torchrun --nproc_per_node 2 examples/localize_corpus.py --cpu --input videos --output_dir events         # CPU only
    python examples/localize_corpus.py --input videos --output_dir events --ray --num_actors 8   # on a Ray cluster

    >>> import glob, pandas
    >>> table = pandas.concat(map(pandas.read_parquet, sorted(glob.glob("events/part-*.parquet"))))
    >>> table.explode("events")                                                                  # one row per event
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ave_clip.core.builtin_checkpoints import limits_of
from ave_clip.core.decode_threads import AUTO, parse_decode_threads
from ave_clip.core.events import DECODERS
from ave_clip.core.text import counted
from ave_clip.corpus import Corpus, CorpusRun, CorpusSettings, read_results
from ave_clip.programs import exit_code, program, start_logging
from ave_clip.training.arguments import (
    add_data_argument,
    add_run_arguments,
    add_video_arguments,
    build_accelerator,
    parse_arguments,
    video_options,
)
from ave_clip.training.splits import open_videos

logger = logging.getLogger("localize_corpus")


def decode_threads(text: str) -> int | str:
    """Type of `--decode_threads`."""
    try:
        return parse_decode_threads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="A folder, or a text file with one path or URL per line.")
    source.add_argument("--dataset", help="Name or folder of a data set for datasets.load_dataset.")
    add_data_argument(source)
    add_video_arguments(parser, segment_seconds=False)
    parser.add_argument("--dataset_split", default="train")
    parser.add_argument("--video_column", default="video")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--model", default=CorpusSettings.model, help="Localizer: folder or Hub id.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=CorpusSettings.dtype)
    parser.add_argument("--decoder", choices=tuple(DECODERS), default=CorpusSettings.decoder)
    parser.add_argument("--min_event_segments", type=int, help="Default: the model's setting.")
    parser.add_argument("--num_frames_per_segment", type=int, help="Default: the processor's setting.")
    parser.add_argument(
        "--videos_per_part",
        type=int,
        default=CorpusSettings.videos_per_part,
        help="A process that is stopped loses the results of at most this many videos.",
    )
    parser.add_argument(
        "--decode_threads",
        type=decode_threads,
        default=AUTO,
        metavar="auto|NUMBER",
        help="Decoding threads of each video. Default: the CPUs divided among the videos that are read at once.",
    )
    parser.add_argument("--retry_failed", action="store_true", help="Compute parts with failed videos again.")
    parser.add_argument("--ray", action="store_true", help="Run as a Ray Data job (pip install 'ave-clip[ray]').")
    parser.add_argument("--num_actors", type=int, default=1, help="With --ray: models that work in parallel.")
    parser.add_argument("--gpus_per_actor", type=float, default=0.0, help="With --ray: GPUs of each model.")
    add_run_arguments(parser)
    # How many processes read videos depends on the machine and does not change results.
    parser.set_defaults(num_workers=None)
    args = parse_arguments(parser, argv)
    if args.videos_per_part < 1 or args.num_actors < 1:
        parser.error("--videos_per_part and --num_actors must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Returns the number of videos and of those that failed."""
    args = parse_args(argv)
    start_logging()
    if args.dataset:
        corpus = Corpus.from_dataset(args.dataset, args.dataset_split, args.video_column)
    elif args.data:
        # Overlapping events are no error here.
        splits = open_videos(args.data, **video_options(args, problem_type="multi_label"))
        corpus = Corpus.from_rows(video for rows in splits.values() for video in rows["video"])
    else:
        corpus = Corpus.from_path(args.input)
    settings = CorpusSettings(**{field.name: getattr(args, field.name) for field in fields(CorpusSettings)})
    folder, is_reporting = Path(args.output_dir), True
    run = CorpusRun(corpus, folder, settings, args.retry_failed, args.num_workers, args.decode_threads)
    if args.model == CorpusSettings.model and int(os.environ.get("RANK", 0)) == 0:
        logger.warning("no --model given: the built-in %s", limits_of(args.model))
    if args.ray:
        run.with_ray(args.num_actors, args.gpus_per_actor)
    else:
        accelerator = build_accelerator(args.cpu, args.mixed_precision)
        run.with_accelerate(accelerator)
        is_reporting = accelerator.is_main_process
    errors = [row["error"] for row in read_results(folder, ["error"])]
    failed = sum(error is not None for error in errors)
    if not args.ray:
        # The exit code of the main process makes torchrun stop the others, so they must have read the results.
        accelerator.wait_for_everyone()
        accelerator.end_training()
    if is_reporting:
        logger.info("%d videos localized, %d failed: %s", len(errors) - failed, failed, folder)
        if failed:
            logger.warning(
                "Exit code 1 because %s failed; the results of the other %d are complete. The column `error` says "
                "why; --retry_failed computes failed videos again.",
                counted(failed, "video"),
                len(errors) - failed,
            )
    return {"videos": len(errors), "failed": failed}


if __name__ == "__main__":
    with program():
        sys.exit(exit_code(main()["failed"]))
