"""The `ave-clip` command. Results go to stdout, everything else to stderr.

Exit code 0 when all inputs worked, 1 when any failed (the others are still written), 2 for wrong usage.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from .files import atomic_file

app = typer.Typer(
    name="ave-clip",
    help="Find audio-visual events: what is both heard and seen in every second of a video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


TASK = "audio-visual-event-localization"


class OutputFormat(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


class Decoder(StrEnum):
    merge = "merge"
    single_event = "single_event"
    viterbi = "viterbi"
    none = "none"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class _NothingToWrite(Exception):
    """Every video failed: a file with earlier results must not be replaced by an empty one."""


def say(message: str) -> None:
    """A message for the person at the terminal."""
    typer.echo(f"ave-clip: {message}", err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"ave-clip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find audio-visual events: what is both heard and seen in every second of a video."""


@app.command()
def localize(
    videos: Annotated[
        list[str],
        typer.Argument(metavar="VIDEO...", help="Files or http(s) URLs. Put -- before names that begin with -."),
    ],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a localizer; default: the embedded ave-clip-tiny.")
    ] = None,
    format: Annotated[OutputFormat | None, typer.Option(help="Default: by --output's suffix, else table.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.")] = None,
    device: Annotated[str | None, typer.Option(help="For example cpu or cuda:0; default: the best there is.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; the spectrogram stays float32.")] = Dtype.float32,
    labels: Annotated[
        str | None,
        typer.Option(
            help='Look for these instead, without training: "dog bark,church bell". Needs an AudioCLIP --model.'
        ),
    ] = None,
    agreement_threshold: Annotated[
        float | None, typer.Option(help="With --labels: audio-image cosine from which sight and sound agree.")
    ] = None,
    decoder: Annotated[Decoder, typer.Option(help="How probabilities become events.")] = Decoder.merge,
    min_event_segments: Annotated[
        int | None,
        typer.Option(min=1, help="merge: shorter runs, background too, join a neighbour; viterbi: no shorter event."),
    ] = None,
    num_frames_per_segment: Annotated[
        int | None, typer.Option(min=1, help="Frames read from each segment; default: the processor's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks of a video encoded at once.")] = 1,
) -> None:
    """Say for each VIDEO which event is both heard and seen, and when."""
    chosen = _chosen_format(format, output)
    _check_output(output, videos)
    if output is not None and output.suffix.lower() in (".json", ".jsonl", ".csv") and output.suffix[1:] != chosen:
        say(f"warning: writing {chosen} into {output}.")
    if labels is not None and model is None:
        raise typer.BadParameter("--labels needs --model, a converted AudioCLIP (see `ave-clip convert`).")
    if agreement_threshold is not None and labels is None:
        raise typer.BadParameter("--agreement-threshold goes with --labels.")
    zero_shot = {"candidate_labels": labels, "agreement_threshold": agreement_threshold} if labels is not None else {}
    localizer = _load_pipeline("zero-shot-" * bool(zero_shot) + TASK, model, device, dtype.value, zero_shot)
    options = {
        "decoder": decoder.value,
        "min_event_segments": min_event_segments,
        "num_frames_per_segment": num_frames_per_segment,
        "batch_size": batch_size,
        "progress": sys.stderr.isatty(),
    }
    write = {"table": _write_table, "json": _write_json, "jsonl": _write_jsonl, "csv": _write_csv}[chosen]
    failed: list[str] = []
    try:
        with _destination(output) as stream:
            write(stream, _results(localizer, videos, options, failed))
            if output is not None and len(failed) == len(videos):
                raise _NothingToWrite
    except _NothingToWrite:
        say(f"{output} is left as it was.")
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        sys.stderr.close()
        raise typer.Exit(1) from None
    except OSError as error:
        say(f"cannot write {output or 'the results'}: {error}")
        raise typer.Exit(1) from None
    if failed:
        say(f"{len(failed)} of {len(videos)} videos failed.")
        raise typer.Exit(1)


def _results(
    localizer: Callable, videos: list[str], options: dict[str, Any], failed: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and result of each video that worked, one after the other; notes the others in `failed`."""
    for video in videos:
        try:
            result = localizer(video, **options)
        except Exception as error:  # whatever a file does, the others must still be read
            message = str(error) or type(error).__name__
            say(message if video in message else f"{video}: {message}")
            failed.append(video)
        else:
            yield video, result


def _chosen_format(given: OutputFormat | None, output: Path | None) -> str:
    if given is not None:
        return given.value
    suffix = "" if output is None else output.suffix.lower().lstrip(".")
    return suffix if suffix in ("json", "jsonl", "csv") else "table"


def _load_pipeline(task: str, model: str | None, device: str | None, dtype: str, options: dict[str, Any]) -> Callable:
    import torch
    from transformers import pipeline
    from transformers.utils import logging

    import ave_clip

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    elif model is None:
        say("using the embedded ave-clip-tiny, which knows 16 synthetic events only.")
    if model is not None and not os.path.isdir(model) and model.count("/") != 1:
        say(f"cannot load the model {model}: there is no such folder, and a Hub id has the form owner/name.")
        raise typer.Exit(1)
    try:
        return pipeline(
            task, model=model or ave_clip.DEFAULT_CHECKPOINT, device=device, dtype=getattr(torch, dtype), **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        is_audioclip = not options and "AudioCLIPConfig" in str(error)
        hint = "it is an AudioCLIP, which needs --labels" if is_audioclip else error
        say(f"cannot load the model {model or 'ave-clip-tiny'}: {hint}")
        raise typer.Exit(1) from None


def _check_output(output: Path | None, videos: list[str]) -> None:
    if output is not None and output.is_file():
        for video in videos:
            if os.path.isfile(video) and output.samefile(video):
                raise typer.BadParameter(f"--output {output} is one of the videos, which it would replace.")
    if output is not None and output.is_dir():
        raise typer.BadParameter(f"--output {output} is a folder. Name a file.")
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"--output {output}: there is no folder {output.parent}.")


@contextmanager
def _destination(output: Path | None) -> Iterator[TextIO]:
    """Stdout, or a file that appears only when it is complete; a device or a pipe is written directly."""
    if output is None:
        yield sys.stdout
        return
    if output.exists() and not output.is_file():
        with output.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        return
    with atomic_file(output.resolve()) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        yield stream


def _write_json(stream: TextIO, results: Iterator[tuple[str, dict[str, Any]]]) -> None:
    stream.write(json.dumps([{"video": name, **result} for name, result in results], indent=2, ensure_ascii=False))
    stream.write("\n")


def _write_jsonl(stream: TextIO, results: Iterator[tuple[str, dict[str, Any]]]) -> None:
    for name, result in results:
        stream.write(json.dumps({"video": name, **result}, ensure_ascii=False) + "\n")
        stream.flush()


def _write_csv(stream: TextIO, results: Iterator[tuple[str, dict[str, Any]]]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["video", "start", "end", "label", "score"])
    for name, result in results:
        for event in result["events"]:
            times = [f"{event[key]:g}" for key in ("start", "end")]
            writer.writerow([name, *times, event["label"], f"{event['score']:.4f}"])
        stream.flush()


def _write_table(stream: TextIO, results: Iterator[tuple[str, dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=stream, highlight=False, emoji=False)
    for name, result in results:
        if not result["events"]:
            console.print(f"[bold]{escape(name)}[/bold]: no audio-visual event in {len(result['segments'])} segments")
            continue
        console.print(f"[bold]{escape(name)}[/bold]")
        table = Table()
        for column, justify in (("start", "right"), ("end", "right"), ("event", "left"), ("score", "right")):
            table.add_column(column, justify=justify)
        for event in result["events"]:
            table.add_row(
                f"{event['start']:.1f} s", f"{event['end']:.1f} s", escape(event["label"]), f"{event['score']:.2f}"
            )
        console.print(table)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A released file, such as AudioCLIP-Full-Training.pt.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    bpe: Annotated[
        Path | None, typer.Option(help="CLIP's bpe_simple_vocab_16e6.txt.gz; default: beside CHECKPOINT.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights written.")] = Dtype.float32,
    text: Annotated[bool, typer.Option(help="Keep the text tower and write a tokenizer.")] = True,
) -> None:
    """Convert the original AudioCLIP weights to a folder for `from_pretrained` and the Hub."""
    from .training.convert import convert_audioclip

    try:
        report = convert_audioclip(checkpoint, out, bpe=bpe, dtype=dtype.value, text=text)
    except (ValueError, OSError) as error:
        say(str(error))
        raise typer.Exit(1) from None
    typer.echo(report.summary())


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to make, in AVE's own layout.")],
    videos: Annotated[int, typer.Option(min=1, help="How many clips in all.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same clips.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
) -> None:
    """Make a synthetic audio-visual event data set of real mp4 clips."""
    from .data.synthetic import generate_synthetic_ave

    try:
        generate_synthetic_ave(out, num_videos=videos, seed=seed, num_workers=workers, overwrite=overwrite)
    except (ValueError, OSError) as error:
        say(str(error).replace("overwrite=True", "--overwrite").replace("num_videos=", "--videos "))
        raise typer.Exit(1) from None
    say(f"wrote {videos} clips to {out}")


def main() -> None:
    """Entry point of the `ave-clip` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a file name must never stop the output
    app()


if __name__ == "__main__":
    main()
