"""The options of `ave-clip localize`: type and help of each, and checks of their combinations."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .core.builtin_checkpoints import builtin_checkpoints
from .core.decode_threads import EXTRA_FRAME_THREADS, MAX_AUTO_THREADS, parse_decode_threads
from .core.events import DECODERS
from .outputs.formats import FORMATS
from .outputs.live_writer import LIVE_FORMATS
from .outputs.writers import TABLE
from .registration import DEFAULT_CHECKPOINT

# pyrefly: ignore[invalid-argument]  (a registry's names)
OutputFormat = StrEnum("OutputFormat", {name: name for name in (TABLE, *FORMATS)})
# pyrefly: ignore[invalid-argument]  (a registry's names)
Decoder = StrEnum("Decoder", {name: name for name in DECODERS})


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Backend(StrEnum):
    torch = "torch"
    onnx = "onnx"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Theme(StrEnum):
    light = "light"
    dark = "dark"


Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO",
        help="Files, http(s) URLs or folders. A folder is replaced by all videos in it and its subfolders, in natural "
        "order. Put -- before names that begin with -.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"Folder, Hub id or built-in name ({', '.join(builtin_checkpoints())}) of the model. Default: "
        f"{Path(DEFAULT_CHECKPOINT).name}.",
        autocompletion=lambda: list(builtin_checkpoints()),
    ),
]
VisionModel = Annotated[
    str | None,
    typer.Option(
        help="With --labels and --audio-model: folder or Hub id of the image encoder, such as CLIP or SigLIP."
    ),
]
AudioModel = Annotated[
    str | None,
    typer.Option(help="With --labels and --vision-model: folder or Hub id of the audio encoder, such as CLAP."),
]
Format = Annotated[
    OutputFormat | None,
    typer.Option("--format", "-f", help="Format of the results. Default: by the suffix of --output, else table."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="Write the results to this file instead of stdout. Formats that write one file per video (srt, vtt, "
        "audacity, elan) take a folder or a path containing {name}.",
    ),
]
Plot = Annotated[Path | None, typer.Option(help="Draw the timelines of all videos to this .png, .svg or .html file.")]
PlotTheme = Annotated[Theme | None, typer.Option(help="Colours of --plot. Default: light.")]
Overlay = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Write the video with heat map, labels and timeline drawn on its frames to this .mp4 file. For several "
        "videos: a folder, or a path containing {name}.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Device, for example cpu or cuda:0. Default: the best available device.")
]
WeightsDtype = Annotated[Dtype, typer.Option(help="Dtype of the weights. The spectrogram stays float32.")]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help='Find these events instead of the model\'s, without training: "dog bark,church bell". May be repeated. '
        "Works with the default model (`ave-clip labels` lists what it knows), with any encoder, and with localizers "
        "that have an open vocabulary.",
    ),
]
LabelEncoder = Annotated[
    str | None,
    typer.Option(
        help="With --labels and a localizer with an open vocabulary: folder or Hub id of the encoder that it was "
        "trained with. Embeds labels that the localizer does not have."
    ),
]
AgreementThreshold = Annotated[
    float | None,
    typer.Option(
        help="With --labels, for AudioCLIP and PE-AV: similarity at which audio and image agree with probability 0.5. "
        "Default: 0."
    ),
]
EventThreshold = Annotated[
    float | None,
    typer.Option(
        help="For models whose events may overlap: probability from which a class is active. Default: the model's, "
        "usually 0.5."
    ),
]
EventDecoder = Annotated[
    Decoder | None,
    typer.Option(
        help="Method that turns segment probabilities into events. Default: viterbi for ave-clip-mini and "
        "for models whose events may overlap, else merge."
    ),
]
MinEventSegments = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Length of the shortest event. Decoder merge: shorter runs, of background too, are merged with a "
        "neighbour; viterbi: no event is shorter.",
    ),
]
NumFrames = Annotated[
    int | None, typer.Option(min=1, help="Number of frames to read per segment. Default: as saved in the processor.")
]
FrameTolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Encode a frame only if it differs from the last encoded one by more than this number of grey levels "
        "(mean, of 255). In videos with little motion, 1 or 2 skip most frames. Default: every frame is encoded.",
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        help="Fraction of a window that the next window repeats, for videos longer than one window. Default: 0.5.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=1, help="Add this number of most probable labels per segment. Works with --format table, json and jsonl."
    ),
]
MaxDownloadBytes = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of bytes to download per video. Default: 4 GiB.")
]


def _decode_threads(value: str | None) -> int | str | None:
    """Returns what the command gets instead of the text."""
    try:
        return value if value is None else parse_decode_threads(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


DecodeThreads = Annotated[
    str | None,
    typer.Option(
        callback=_decode_threads,
        metavar="auto|NUMBER",
        help="Threads that decode a video. Results do not depend on it. Default: auto, the number of CPUs and "
        f"{EXTRA_FRAME_THREADS} more, but at most {MAX_AUTO_THREADS}; one on a single CPU, fewer for large frames.",
    ),
]
AudioTrack = Annotated[int | None, typer.Option(min=0, help="Audio track to read from each video, counted from 0.")]


def _above_zero(value: float | None) -> float | None:
    if value is not None and not value > 0:  # typer's own `min` would allow 0 itself
        raise typer.BadParameter(f"must be above 0, got {value:g}.")
    return value


Live = Annotated[
    bool,
    typer.Option(
        "--live",
        help="VIDEO is still being written or sent: - (stdin), a pipe, a growing file, or an http, rtsp or udp URL, "
        "in a container that can be read forward only (MPEG-TS, Matroska, WebM, FLV, fragmented MP4). Each event is "
        f"written when it is over. Formats: {', '.join(LIVE_FORMATS)}.",
    ),
]
LiveTimeout = Annotated[
    float | None,
    typer.Option(
        callback=_above_zero,
        help="With --live: a file that has not grown for this many seconds has ended, and a silent sender counts as "
        "lost. Default: 10.",
    ),
]
MaxDownloadSeconds = Annotated[
    float | None,
    typer.Option(
        callback=_above_zero,
        help="Maximum total time to wait for the server of a URL, in seconds per video. Default: 1800.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of blocks of a video to encode at once.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the towers with torch.compile. This takes half a minute and pays off for many videos on a GPU.",
    ),
]
RunBackend = Annotated[
    Backend | None,
    typer.Option(
        help="Runtime of the model. All but torch need a --model exported by `ave-clip export --format onnx`."
    ),
]


def zero_shot_options(
    labels: list[str] | None,
    threshold: float | None,
    model: str | None = None,
    vision_model: str | None = None,
    audio_model: str | None = None,
    label_encoder: str | None = None,
) -> dict[str, Any]:
    """Returns the options of the zero-shot pipeline, or none without `--labels`.

    Each of `labels` is the value of one `--labels` option: labels separated by commas.
    """
    towers = {"vision_model": vision_model, "audio_model": audio_model}
    given = {name: tower for name, tower in towers.items() if tower is not None}
    if threshold is not None and labels is None:
        raise typer.BadParameter("--agreement-threshold requires --labels.")
    if given and labels is None:
        raise typer.BadParameter("--vision-model and --audio-model require --labels.")
    if label_encoder is not None and labels is None:
        raise typer.BadParameter("--label-encoder requires --labels.")
    if len(given) == 1:
        raise typer.BadParameter(
            "--vision-model and --audio-model require each other; --model names one model for both."
        )
    if given and model is not None:
        raise typer.BadParameter("Pass either --model, or --vision-model and --audio-model.")
    if labels is None:
        return {}
    from .core.pipeline_base import parse_labels  # imports torch

    try:
        given |= {} if label_encoder is None else {"label_encoder": label_encoder}
        return {"candidate_labels": parse_labels(",".join(labels)), "agreement_threshold": threshold, **given}
    except ValueError as error:
        raise typer.BadParameter(f"--labels: {error}") from None


def check_top_k(top_k: int | None, format: str) -> None:
    """Refuses `--top-k` with a format that does not contain segments."""
    with_top_k = [TABLE, *(name for name, entry in FORMATS.items() if entry.has_top_k)]
    if top_k is not None and format not in with_top_k:
        raise typer.BadParameter(f"--top-k works with {', '.join(with_top_k)}; {format} contains events only.")


def check_backend(backend: Backend | None, dtype: Dtype, compile: bool) -> None:
    """Refuses options that only the torch backend supports."""
    if backend in (None, Backend.torch):
        return
    if compile:
        raise typer.BadParameter(f"--compile works with torch, not with --backend {backend.value}.")
    if dtype is not Dtype.float32:
        raise typer.BadParameter(
            f"--dtype {dtype.value} works with torch; --backend {backend.value} computes in float32."
        )


def check_device(device: str | None) -> None:
    """Refuses a device that PyTorch does not know or that this machine does not have."""
    if device is None:
        return
    import torch

    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each backend of torch raises another error
        reason = re.split(r"[.\n]", str(error), maxsplit=1)[0]
        raise typer.BadParameter(
            f"--device {device} cannot be used here: {reason}. PyTorch sees {', '.join(_devices())}."
        ) from None


def _devices() -> list[str]:
    import torch

    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]
