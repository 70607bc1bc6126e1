"""The `ave-clip` command. Results go to stdout, everything else to stderr.

Exit code 0 when all inputs worked, 1 when any failed (the others are still written), 2 for wrong usage.
"""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .formats import PER_VIDEO, SUFFIXES
from .outputs import (
    FORMAT_OF_SUFFIX,
    PLOT_SUFFIXES,
    NothingToWriteError,
    Writer,
    WrongOutputError,
    check_targets,
    format_of,
    names_each_video,
    open_writer,
    plan_files,
)

app = typer.Typer(
    name="ave-clip",
    help="Find audio-visual events: what is both heard and seen in every second of a video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


TASK = "audio-visual-event-localization"
OVERLAY_SUFFIX = ".mp4"


class OutputFormat(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    srt = "srt"
    vtt = "vtt"
    audacity = "audacity"
    elan = "elan"


class Decoder(StrEnum):
    merge = "merge"
    single_event = "single_event"
    viterbi = "viterbi"
    none = "none"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Backend(StrEnum):
    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Theme(StrEnum):
    light = "light"
    dark = "dark"


class ExportFormat(StrEnum):
    hub = "hub"
    onnx = "onnx"


@dataclass
class _Plan:
    """What is to be written where."""

    videos: list[str]
    format: str
    output: str | None
    files: dict[str, Path] | None = None
    plot: Path | None = None
    theme: str = "light"
    overlays: dict[str, Path] = field(default_factory=dict)
    overlay_options: dict[str, Any] = field(default_factory=dict)


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


# What `localize` takes, each with its help.
Videos = Annotated[
    list[str],
    typer.Argument(metavar="VIDEO...", help="Files or http(s) URLs. Put -- before names that begin with -."),
]
Model = Annotated[
    str | None, typer.Option(help="Folder or Hub id of a localizer; default: the embedded ave-clip-tiny.")
]
Format = Annotated[OutputFormat | None, typer.Option(help="Default: by --output's suffix, else table.")]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Write here instead of to stdout. srt, vtt, audacity and elan take a file a video: name a folder, or put "
        "{name} where the video's name should stand.",
    ),
]
Plot = Annotated[Path | None, typer.Option(help="Draw all videos' timelines: a .png, .svg or .html file.")]
PlotTheme = Annotated[Theme, typer.Option(help="Colours of --plot.")]
Overlay = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Write the video with heat map, labels and timeline in the picture: an .mp4 file; a folder or {name} for "
        "several videos.",
    ),
]
Device = Annotated[str | None, typer.Option(help="For example cpu or cuda:0; default: the best there is.")]
WeightsDtype = Annotated[Dtype, typer.Option(help="Of the weights; the spectrogram stays float32.")]
Labels = Annotated[
    str | None,
    typer.Option(help='Look for these instead, without training: "dog bark,church bell". Needs an AudioCLIP --model.'),
]
AgreementThreshold = Annotated[
    float | None, typer.Option(help="With --labels: audio-image cosine from which sight and sound agree.")
]
EventDecoder = Annotated[Decoder, typer.Option(help="How probabilities become events.")]
MinEventSegments = Annotated[
    int | None,
    typer.Option(min=1, help="merge: shorter runs, background too, join a neighbour; viterbi: no shorter event."),
]
NumFrames = Annotated[int | None, typer.Option(min=1, help="Frames read from each segment; default: the processor's.")]
FrameTolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Encode a frame only if it differs from the last encoded one by more than so many grey levels (mean, of "
        "255); 1 or 2 save most frames where little moves. Default: encode each.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Blocks of a video encoded at once.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the towers first: half a minute, worth it on a GPU for many videos.")
]
RunBackend = Annotated[
    Backend | None, typer.Option(help="What runs the model; the last two take a --model exported with --format onnx.")
]


@app.command()
def localize(
    videos: Videos,
    model: Model = None,
    format: Format = None,
    output: Output = None,
    plot: Plot = None,
    theme: PlotTheme = Theme.light,
    overlay: Overlay = None,
    device: Device = None,
    dtype: WeightsDtype = Dtype.float32,
    labels: Labels = None,
    agreement_threshold: AgreementThreshold = None,
    decoder: EventDecoder = Decoder.merge,
    min_event_segments: MinEventSegments = None,
    num_frames_per_segment: NumFrames = None,
    frame_tolerance: FrameTolerance = None,
    batch_size: BatchSize = 1,
    compile: Compile = False,
    backend: RunBackend = None,
) -> None:
    """Say for each VIDEO which event is both heard and seen, and when."""
    plan = _plan(videos, format, output, plot, theme, overlay)
    zero_shot = _zero_shot_options(labels, agreement_threshold, model)
    _check_device(device)
    if compile and backend not in (None, Backend.torch):
        raise typer.BadParameter(f"--compile goes with torch, not with --backend {backend.value}.")
    if dtype is not Dtype.float32 and backend not in (None, Backend.torch):
        raise typer.BadParameter(f"--dtype {dtype.value} goes with torch; --backend {backend.value} runs float32.")
    settings = {**zero_shot, "compile": compile, "backend": None if backend is None else backend.value}
    localizer = _load_pipeline("zero-shot-" * bool(zero_shot) + TASK, model, device, dtype.value, settings)
    options = {
        "decoder": decoder.value,
        "min_event_segments": min_event_segments,
        "num_frames_per_segment": num_frames_per_segment,
        "frame_tolerance": frame_tolerance,
        "batch_size": batch_size,
        "progress": sys.stderr.isatty(),
    }
    plan.overlay_options = {"video_processor": localizer.segmenter.video_processor, "progress": options["progress"]}
    if plan.overlays and not zero_shot:
        options["return_heatmaps"] = True
    failed = _run(localizer, plan, options)
    if failed:
        say(f"{len(failed)} of {len(videos)} videos failed.")
        raise typer.Exit(1)


def _plan(
    videos: list[str],
    format: OutputFormat | None,
    output: str | None,
    plot: Path | None,
    theme: Theme,
    overlay: str | None,
) -> _Plan:
    """Decide what goes where, and refuse what cannot be meant before anything is read."""
    plan = _Plan(videos, format_of(output) if format is None else format.value, output, plot=plot, theme=theme.value)
    try:
        _plan_results(plan)
        if plot is not None:
            if plot.suffix.lower() not in PLOT_SUFFIXES:
                raise WrongOutputError(f"--plot {plot} must end in {', '.join(PLOT_SUFFIXES)}.")
            check_targets([("--plot", plot)], videos)
        if overlay is not None:
            _plan_overlays(plan, overlay)
    except WrongOutputError as error:
        raise typer.BadParameter(str(error)) from None
    _check_distinct(plan)
    return plan


def _plan_results(plan: _Plan) -> None:
    output, videos = plan.output, plan.videos
    if output is None:
        if plan.format in PER_VIDEO and len(videos) > 1:
            raise WrongOutputError(
                f"--format {plan.format} needs a file for each of the {len(videos)} videos: add --output FOLDER."
            )
        return
    suffix = Path(output).suffix.lower()
    if FORMAT_OF_SUFFIX.get(suffix, plan.format) != plan.format:
        say(f"warning: writing {plan.format} into {output}.")
    is_stream = os.path.exists(output) and not os.path.isfile(output) and not os.path.isdir(output)
    if plan.format in SUFFIXES and (names_each_video(output) or (plan.format in PER_VIDEO and not is_stream)):
        plan.files = plan_files(videos, output, SUFFIXES[plan.format], "--output")
        _check_files("--output", output, plan.files)
    else:
        check_targets([("--output", output)], videos)


def _plan_overlays(plan: _Plan, overlay: str) -> None:
    plan.overlays = plan_files(plan.videos, overlay, OVERLAY_SUFFIX, "--overlay")
    for path in plan.overlays.values():
        if path.suffix.lower() != OVERLAY_SUFFIX:
            raise WrongOutputError(f"--overlay {path} must end in {OVERLAY_SUFFIX}.")
    _check_files("--overlay", overlay, plan.overlays)


def _check_files(option: str, output: str, files: Mapping[str, Path]) -> None:
    makes_folder = list(files.values()) != [Path(output)]
    check_targets([(option, path) for path in files.values()], list(files), makes_folder)


def _check_distinct(plan: _Plan) -> None:
    results = plan.files.values() if plan.files else [Path(plan.output)] if plan.output else []
    places = [os.path.realpath(path) for path in (*results, *plan.overlays.values(), *filter(None, [plan.plot]))]
    for place in places:
        if places.count(place) > 1:
            raise typer.BadParameter(f"{place} is named as the place of two outputs.")


def _zero_shot_options(labels: str | None, threshold: float | None, model: str | None) -> dict[str, Any]:
    if labels is not None and model is None:
        raise typer.BadParameter("--labels needs --model, a converted AudioCLIP (see `ave-clip convert`).")
    if threshold is not None and labels is None:
        raise typer.BadParameter("--agreement-threshold goes with --labels.")
    return {} if labels is None else {"candidate_labels": labels, "agreement_threshold": threshold}


def _check_device(device: str | None) -> None:
    """Refuse a device that PyTorch does not know or that this machine does not have."""
    if device is None:
        return
    import torch

    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each backend of torch refuses its own way
        reason = re.split(r"[.\n]", str(error), maxsplit=1)[0]
        raise typer.BadParameter(
            f"--device {device} cannot be used here: {reason}. PyTorch sees {', '.join(_devices())}."
        ) from None


def _devices() -> list[str]:
    import torch

    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]


def _run(localizer: Callable, plan: _Plan, options: dict[str, Any]) -> list[str]:
    """Localize every video and write what the plan asks for; returns the videos that failed."""
    failed: list[str] = []
    done: list[tuple[str, dict[str, Any]]] = []
    try:
        with open_writer(plan.format, plan.output, plan.files) as writer:
            for video, result in _results(localizer, plan.videos, options, failed):
                if _write(writer, plan, video, result):
                    done.append((video, {name: result[name] for name in ("segments", "events")}))
                else:
                    failed.append(video)
            if plan.output is not None and plan.files is None and not done:
                raise NothingToWriteError
    except NothingToWriteError:
        say(f"{plan.output} is left as it was.")
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        sys.stderr.close()
        raise typer.Exit(1) from None
    except OSError as error:
        say(f"cannot write {plan.output or 'the results'}: {error}")
        raise typer.Exit(1) from None
    _draw(plan, done)
    return failed


def _write(writer: Writer, plan: _Plan, video: str, result: dict[str, Any]) -> bool:
    """Write one video's result and overlay; says what went wrong where only this video is concerned."""
    try:
        writer.add(video, result)
    except OSError as error:
        if plan.files is None:
            raise
        say(f"cannot write {plan.files[video]}: {error}")
        return False
    if video not in plan.overlays:
        return True
    from .overlay import write_overlay

    path = plan.overlays[video]
    try:
        path.parent.mkdir(exist_ok=True)
        write_overlay(video, result, path, heatmaps=result.get("heatmaps"), **plan.overlay_options)
    except Exception as error:  # as in `_results`: the other videos must still be written
        say(f"cannot write {path}: {str(error) or type(error).__name__}")
        return False
    return True


def _draw(plan: _Plan, done: list[tuple[str, dict[str, Any]]]) -> None:
    if plan.plot is None:
        return
    if not done:
        say(f"{plan.plot} is not drawn: there is nothing to show.")
        return
    from .timeline import plot_timeline

    try:
        plot_timeline(done, plan.plot, theme=plan.theme)
    except (ImportError, OSError, ValueError) as error:
        say(f"cannot draw {plan.plot}: {error}")
        raise typer.Exit(1) from None


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


def _keep_progress_off_pipes() -> None:
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _pipeline_class(task: str) -> type:
    from .pipeline_ave_clip import AudioVisualEventLocalizationPipeline, ZeroShotAudioVisualEventLocalizationPipeline

    return AudioVisualEventLocalizationPipeline if task == TASK else ZeroShotAudioVisualEventLocalizationPipeline


def _load_pipeline(task: str, model: str | None, device: str | None, dtype: str, options: dict[str, Any]) -> Callable:
    import torch
    from transformers import pipeline

    import ave_clip

    _keep_progress_off_pipes()
    if sys.stderr.isatty() and model is None:
        say("using the embedded ave-clip-tiny, which knows 16 synthetic events only.")
    if model is not None and not os.path.isdir(model) and model.count("/") != 1:
        say(f"cannot load the model {model}: there is no such folder, and a Hub id has the form owner/name.")
        raise typer.Exit(1)
    try:
        return pipeline(
            task,
            model=model or ave_clip.DEFAULT_CHECKPOINT,
            pipeline_class=_pipeline_class(task),  # ours also where the checkpoint brings its own code
            device=device,
            dtype=getattr(torch, dtype),
            **options,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        is_audioclip = task == TASK and "AudioCLIPConfig" in str(error)
        hint = "it is an AudioCLIP, which needs --labels" if is_audioclip else error
        say(f"cannot load the model {model or 'ave-clip-tiny'}: {hint}")
        raise typer.Exit(1) from None


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


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a localizer or an AudioCLIP.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    format: Annotated[
        ExportFormat,
        typer.Option(help="hub: with its code, for people who do not have ave-clip; onnx: graphs for ONNX runtimes."),
    ] = ExportFormat.hub,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Upload the folder to this repository, too.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; default: main.")] = None,
) -> None:
    """Write a checkpoint in a form that works without this package."""
    if push_to_hub is not None and format is not ExportFormat.hub:
        raise typer.BadParameter("--push-to-hub goes with --format hub.")
    _keep_progress_off_pipes()
    try:
        EXPORTERS[format](model, out, overwrite, push_to_hub)
        say(f"wrote {out}")
        if push_to_hub is not None:
            from .training.hub import push_folder

            typer.echo(push_folder(out, push_to_hub, private=private, revision=revision))
    except (ValueError, OSError, ImportError) as error:
        say(str(error).replace("overwrite=True", "--overwrite"))
        raise typer.Exit(1) from None


def _export_hub(model: str, out: Path, overwrite: bool, repo_id: str | None) -> None:
    from .hub_export import export_for_hub

    export_for_hub(model, out, repo_id=repo_id, overwrite=overwrite)


def _export_onnx(model: str, out: Path, overwrite: bool, repo_id: str | None) -> None:
    from .onnx_export import export_onnx

    export_onnx(model, out, overwrite=overwrite)


EXPORTERS: Mapping[ExportFormat, Callable[[str, Path, bool, str | None], None]] = {
    ExportFormat.hub: _export_hub,
    ExportFormat.onnx: _export_onnx,
}


def main() -> None:
    """Entry point of the `ave-clip` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a file name must never stop the output
    app()


if __name__ == "__main__":
    main()
