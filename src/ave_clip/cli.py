"""The `ave-clip` command. Results go to stdout, everything else to stderr.

Exit code 0 when all inputs worked, 1 when any failed (the others are still written), 2 for wrong usage.
"""

import io
import logging
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_options as option
from .cli_live import check_live, run_live
from .cli_outputs import Plan, draw, plan_outputs, say
from .core.builtin_checkpoints import find_checkpoint, limits_of
from .core.text import counted
from .core.video_source import source_name
from .outputs.writers import NothingToWriteError, Writer, is_named_after, open_writer
from .programs import PrintableFormatter, one_message, program, start_logging
from .registration import DEFAULT_CHECKPOINT, LOCALIZATION_TASK, ZERO_SHOT_TASK, register
from .video_files import VIDEO_SUFFIXES, find_video_files

if TYPE_CHECKING:
    from .core.pipeline_base import VideoPipeline

app = typer.Typer(
    name="ave-clip",
    help="Find audio-visual events: what is both heard and seen in each second of a video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


LOG_FORMAT = "ave-clip: %(message)s"
# What transformers, torch and safetensors raise for checkpoints that are missing, damaged or of another kind.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, EOFError, pickle.UnpicklingError)


class ExportFormat(StrEnum):
    hub = "hub"
    onnx = "onnx"


class ListFormat(StrEnum):
    text = "text"
    json = "json"


def _show_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"ave-clip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find audio-visual events: what is both heard and seen in each second of a video."""


@app.command()
def localize(
    videos: option.Videos,
    model: option.Model = None,
    vision_model: option.VisionModel = None,
    audio_model: option.AudioModel = None,
    format: option.Format = None,
    output: option.Output = None,
    plot: option.Plot = None,
    theme: option.PlotTheme = None,
    overlay: option.Overlay = None,
    device: option.Device = None,
    dtype: option.WeightsDtype = option.Dtype.float32,
    labels: option.Labels = None,
    label_encoder: option.LabelEncoder = None,
    agreement_threshold: option.AgreementThreshold = None,
    decoder: option.EventDecoder = None,
    event_threshold: option.EventThreshold = None,
    min_event_segments: option.MinEventSegments = None,
    num_frames_per_segment: option.NumFrames = None,
    frame_tolerance: option.FrameTolerance = None,
    overlap: option.Overlap = None,
    top_k: option.TopK = None,
    audio_track: option.AudioTrack = None,
    decode_threads: option.DecodeThreads = None,
    max_download_bytes: option.MaxDownloadBytes = None,
    max_download_seconds: option.MaxDownloadSeconds = None,
    live: option.Live = False,
    live_timeout: option.LiveTimeout = None,
    batch_size: option.BatchSize = 1,
    compile: option.Compile = False,
    backend: option.RunBackend = None,
) -> None:
    """Find which events are both heard and seen in each VIDEO, and when."""
    labels = labels or None  # typer gives an empty list without the option
    if not live:
        videos = _expand_folders(videos)
    plan = plan_outputs(videos, format, None if output == "-" else output, plot, theme, overlay)
    zero_shot = option.zero_shot_options(labels, agreement_threshold, model, vision_model, audio_model, label_encoder)
    option.check_top_k(top_k, plan.format)
    if live:
        check_live(videos, plan.format, has_drawings=plan.plot is not None or bool(plan.overlays))
    elif live_timeout is not None:
        raise typer.BadParameter("--live-timeout requires --live.")
    option.check_device(device)
    option.check_backend(backend, dtype, compile)
    settings = {**zero_shot, "compile": compile, "backend": None if backend is None else backend.value}
    if model is None and labels is None and (sys.stderr.isatty() or not plan.is_for_programs):
        say(f"no --model and no --labels given: {limits_of(DEFAULT_CHECKPOINT)}")
    localizer = _load_pipeline(
        ZERO_SHOT_TASK if zero_shot else LOCALIZATION_TASK, model, device, dtype.value, settings
    )
    try:
        localizer.check_options()
    except ValueError as error:
        raise typer.BadParameter(one_message(str(error))) from None
    options = {
        "decoder": None if decoder is None else decoder.value,
        "min_event_segments": min_event_segments,
        "num_frames_per_segment": num_frames_per_segment,
        "frame_tolerance": frame_tolerance,
        "top_k": top_k,
        "audio_track": audio_track,
        "decode_threads": decode_threads,
        "max_download_bytes": max_download_bytes,
        "max_download_seconds": max_download_seconds,
        "batch_size": batch_size,
        "progress": sys.stderr.isatty(),
    }
    options |= _options_of_windows(localizer, overlap, event_threshold, return_heatmaps=bool(plan.overlays))
    if live:
        options |= {"progress": None, "live_timeout": live_timeout}
        output_file = plan.output if plan.files is None else str(plan.files[videos[0]])
        run_live(localizer, videos[0], plan.format, output_file, options, say)
        return
    plan.overlay_options = {"video_processor": localizer.segmenter.video_processor, "progress": options["progress"]}
    failed = _run(localizer, plan, options)
    if failed:
        say(f"{len(failed)} of {counted(len(videos), 'video')} failed.")
        raise typer.Exit(1)


def _options_of_windows(
    localizer: "VideoPipeline", overlap: float | None, event_threshold: float | None, return_heatmaps: bool
) -> dict[str, Any]:
    """Returns the options of a localizer, which takes windows of segments; an encoder takes one segment at a time."""
    given = {"--overlap": overlap, "--event-threshold": event_threshold}
    if not localizer.has_windows:
        for flag, value in given.items():
            if value is not None:
                raise typer.BadParameter(f"{flag} works with a localizer only, not with an encoder.")
        return {}
    options = {"overlap": overlap, "threshold": event_threshold, "return_heatmaps": return_heatmaps or None}
    return {name: value for name, value in options.items() if value is not None}


def _expand_folders(videos: list[str]) -> list[str]:
    """Returns the inputs, with each folder replaced by the videos in it."""
    expanded = []
    for video in videos:
        if not os.path.isdir(video):
            expanded.append(video)
            continue
        found, num_others = find_video_files(video)
        if not found:
            raise typer.BadParameter(
                f"The folder {video} contains no video: none of its {num_others} files ends in "
                f"{', '.join(VIDEO_SUFFIXES)}."
            )
        say(
            f"{video}: {counted(len(found), 'video')}"
            + (f"; other files left out: {num_others}." if num_others else ".")
        )
        expanded += found
    return expanded


def _run(localizer: "VideoPipeline", plan: Plan, options: dict[str, Any]) -> list[str]:
    """Localizes every video and writes the outputs of the plan; returns the videos that failed."""
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
        if plan.output is not None and plan.files is None and os.path.isfile(plan.output):
            say(f"wrote {plan.output}")
    except NothingToWriteError:
        say(f"{plan.output} is unchanged.")
    except BrokenPipeError:  # the reading program, for example `head`, has ended
        sys.stderr.close()
        raise typer.Exit(1) from None
    except OSError as error:
        say(f"cannot write {plan.output or 'the results'}: {error}")
        raise typer.Exit(1) from None
    draw(plan, done)
    return failed


def _write(writer: Writer, plan: Plan, video: str, result: dict[str, Any]) -> bool:
    """Writes one video's result and overlay. Returns `False`, with a message, if an output of this video failed."""
    try:
        writer.add(video, result)
    except OSError as error:
        if plan.files is None:
            raise
        say(f"cannot write {plan.files[video]}: {error}")
        return False
    if plan.files is not None:
        _say_written(plan.files, video)
    if video not in plan.overlays:
        return True
    from .outputs.overlay import write_overlay

    path = plan.overlays[video]
    try:
        path.parent.mkdir(exist_ok=True)
        write_overlay(video, result, path, heatmaps=result.get("heatmaps"), **plan.overlay_options)
    except Exception as error:  # as in `_results`: the other videos must still be written
        say(f"cannot write {path}: {str(error) or type(error).__name__}")
        return False
    _say_written(plan.overlays, video)
    return True


def _say_written(files: Mapping[str, Path], video: str) -> None:
    # Only one of several videos needs its source: a single video may have been given an output of any name.
    is_plain = len(files) == 1 or is_named_after(files[video], video)
    say(f"wrote {files[video]}" + ("" if is_plain else f" (from {source_name(video)})"))


def _results(
    localizer: "VideoPipeline", videos: list[str], options: dict[str, Any], failed: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields name and result of each video that could be read, and appends the other names to `failed`."""
    for video in videos:
        try:
            result = localizer(video, **options)
        except Exception as error:  # whatever is wrong with one file, the others must still be read
            message, name = str(error) or type(error).__name__, source_name(video)
            say(message if name in message else f"{name}: {message}")
            failed.append(video)
        else:
            yield video, result


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    for handler in transformers_logging.get_logger().handlers:  # its loggers do not use the root's handler
        handler.setFormatter(PrintableFormatter(LOG_FORMAT))
    # Missing weights are an error of one line already (`core/modeling_base.py`), without transformers' table of them.
    loading = logging.getLogger("transformers.modeling_utils")
    loading.addFilter(lambda record: "MISSING" not in record.getMessage())


def _pipeline_class(task: str) -> "type[VideoPipeline]":
    from .core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
    from .core.pipeline_zero_shot import ZeroShotAudioVisualEventLocalizationPipeline

    return (
        AudioVisualEventLocalizationPipeline
        if task == LOCALIZATION_TASK
        else ZeroShotAudioVisualEventLocalizationPipeline
    )


def _load_pipeline(
    task: str, model: str | None, device: str | None, dtype: str, options: dict[str, Any]
) -> "VideoPipeline":
    import torch
    from transformers import pipeline

    register()
    _quiet_transformers()
    try:
        folder = find_checkpoint(model or DEFAULT_CHECKPOINT)
    except OSError as error:
        say(str(error))
        raise typer.Exit(1) from None
    try:
        # pyrefly: ignore[no-matching-overload]  (transformers declares those of its own tasks)
        return pipeline(
            task,
            model=folder,
            pipeline_class=_pipeline_class(task),  # ours, even if the checkpoint contains code
            device=device,
            dtype=getattr(torch, dtype),
            **options,
        )
    except LOADING_ERRORS as error:
        name = " and ".join(options[tower] for tower in ("vision_model", "audio_model") if tower in options)
        say(f"cannot load the model {name or model or folder}: {_reason(error)}")
        raise typer.Exit(1) from None


def _reason(error: BaseException) -> str:
    """Returns the reason of an error in one line, without tracebacks and the advice of transformers and torch."""
    message = str(error).strip() or type(error).__name__
    if "Traceback (most recent call last)" in message:  # one per class that transformers tried; the last error counts
        raised = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): (.+)", message, re.MULTILINE)
        message = raised[-1] if raised else message
    return message.splitlines()[0]


@app.command()
def labels(
    search: Annotated[
        str | None, typer.Option("--search", "-s", help="Only labels of which the name or a synonym contains this.")
    ] = None,
    format: Annotated[
        ListFormat, typer.Option("--format", "-f", help="text: one line per label; json: a list of objects.")
    ] = ListFormat.text,
) -> None:
    """List the labels that the default model knows, whether each can be heard or seen, and synonyms.

    Use a name or a synonym in `ave-clip localize --labels`. A comma separates labels there, so use a synonym instead
    of a name that contains a comma.
    """
    from .label_list import as_json, as_text, default_table, known_labels, nothing_found

    table = default_table()
    found = known_labels(table, search or "")
    if found or format is ListFormat.json:
        typer.echo(as_json(found) if format is ListFormat.json else as_text(found))
    if not found:
        say(nothing_found(table, search or ""))
        raise typer.Exit(1)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A released file, such as AudioCLIP-Full-Training.pt.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    bpe: Annotated[
        Path | None,
        typer.Option(help="CLIP's bpe_simple_vocab_16e6.txt.gz. Default: the one in the folder of CHECKPOINT."),
    ] = None,
    dtype: Annotated[option.Dtype, typer.Option(help="Dtype of the written weights.")] = option.Dtype.float32,
    text: Annotated[bool, typer.Option(help="Keep the text tower and write a tokenizer.")] = True,
) -> None:
    """Convert the released AudioCLIP weights to a folder that `from_pretrained` reads."""
    from .checkpoints.convert import convert_audioclip

    register()
    try:
        report = convert_audioclip(checkpoint, out, bpe=bpe, dtype=dtype.value, text=text)
    except (ValueError, OSError) as error:
        say(str(error))
        raise typer.Exit(1) from None
    typer.echo(report.summary())


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    videos: Annotated[
        int | None, typer.Option(min=1, help="Number of videos in all splits together. Default: 400, or 20 long ones.")
    ] = None,
    overlapping: Annotated[
        bool, typer.Option(help="Long videos with several events at once and one CSV, instead of clips like AVE's.")
    ] = False,
    duration: Annotated[int | None, typer.Option(min=10, help="With --overlapping: seconds. Default: 60.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed. The same seed gives the same clips.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
) -> None:
    """Create a synthetic audio-visual event data set: clips in the file layout of AVE, or long videos with a CSV."""
    from .data.synthetic import generate_overlapping_videos, generate_synthetic_ave

    if duration is not None and not overlapping:
        raise typer.BadParameter("--duration requires --overlapping: the other clips last 10 s, as AVE's.")
    options = {"seed": seed, "num_workers": workers, "overwrite": overwrite}
    number = videos or (20 if overlapping else 400)
    try:
        if overlapping:
            generate_overlapping_videos(out, number, 60 if duration is None else duration, **options)
        else:
            generate_synthetic_ave(out, number, **options)
    except (ValueError, OSError) as error:
        say(str(error).replace("overwrite=True", "--overwrite").replace("num_videos=", "--videos "))
        raise typer.Exit(1) from None
    say(f"wrote {counted(number, 'video' if overlapping else 'clip')} to {out}")


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="Localizer or AudioCLIP: folder, Hub id or built-in name, such as ave-clip-tiny.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            "-f",
            help="hub: a checkpoint with its code, which loads without ave-clip; onnx: graphs for ONNX runtimes.",
        ),
    ] = ExportFormat.hub,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Also upload the folder to this repository on the Hub.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Make the repository private if it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.")] = None,
) -> None:
    """Write a checkpoint in a form that works without this package."""
    if push_to_hub is not None and format is not ExportFormat.hub:
        raise typer.BadParameter("--push-to-hub requires --format hub.")
    _quiet_transformers()
    register()
    try:
        EXPORTERS[format](model, out, overwrite, push_to_hub)
        say(f"wrote {out}")
        if push_to_hub is not None:
            from .checkpoints.push import push_folder

            typer.echo(push_folder(out, push_to_hub, private=private, revision=revision))
    except LOADING_ERRORS as error:
        say(_reason(error))
        raise typer.Exit(1) from None


def _export_hub(model: str, out: Path, overwrite: bool, repo_id: str | None) -> None:
    from .checkpoints.hub_export import export_for_hub

    export_for_hub(model, out, repo_id=repo_id, overwrite=overwrite)


def _export_onnx(model: str, out: Path, overwrite: bool, repo_id: str | None) -> None:
    from .checkpoints.onnx_export import export_onnx

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
    with program("ave-clip"):
        start_logging(logging.WARNING, LOG_FORMAT)
        logging.captureWarnings(True)  # those of libraries begin like every other message
        app()


if __name__ == "__main__":
    main()
