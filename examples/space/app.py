"""A Gradio Space: choose a video, see which events are both heard and seen in it, and when.

It shows the timeline, a table of the events and the video with both drawn on it, and offers the result in every format
that ave-clip writes. To run it on your own machine:

    pip install ".[space]" && python examples/space/app.py

The settings, all of them environment variables, are in README.md beside this file.
"""

import dataclasses
import html
import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from transformers import AutoConfig, pipeline

import ave_clip
from ave_clip import AudioVisualEventLocalizationPipeline, ZeroShotAudioVisualEventLocalizationPipeline
from ave_clip.categories import BACKGROUND_LABEL
from ave_clip.data.synthetic import SYNTHETIC_CATEGORIES, draw_script, render_clip
from ave_clip.drawing import one_line, percent
from ave_clip.formats import FORMATS, SUFFIXES
from ave_clip.overlay import write_overlay
from ave_clip.pipeline_ave_clip import parse_labels
from ave_clip.timeline import plot_timeline
from ave_clip.video_io import VideoInfo, VideoReadError, probe_video

TASK = "audio-visual-event-localization"
SAMPLE = Path(ave_clip.__file__).parent / "assets" / "sample.mp4"
SYNTHETIC_CLIPS = (1, 5)  # of the synthetic test split: events at other places than the sample's
DECODERS = {
    "Merge short runs": "merge",
    "Viterbi": "viterbi",
    "One event a video": "single_event",
    "Each second for itself": "none",
}
TABLE_HEADERS = ("Start", "End", "Event", "Score")
FORMAT_NAMES = {
    "csv": "CSV",
    "json": "JSON",
    "jsonl": "JSON Lines",
    "srt": "SRT",
    "vtt": "WebVTT",
    "audacity": "Audacity",
    "elan": "ELAN",
}
PICTURES = {"Timeline PNG": ".png", "Timeline SVG": ".svg", "Timeline HTML": ".html"}
DOWNLOADS = (*FORMAT_NAMES.values(), *PICTURES)
MEGABYTE = 2**20  # as Gradio counts
MAX_PIXELS = 3840 * 2160
MAX_LABELS = 50
MAX_LABEL_CHARACTERS = 100
MAX_WAITING = 20
DELETE_EVERY_SECONDS, DELETE_AFTER_SECONDS = 600, 3600
IS_DARK = "(...values) => [...values.slice(0, -1), document.body.classList.contains('dark')]"
STYLE = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0 !important; }
.message { padding: 10px 14px; border-radius: 8px; border: 1px solid var(--border-color-primary);
  border-left: 4px solid var(--color-accent); background: var(--background-fill-secondary);
  color: var(--body-text-color); overflow-wrap: anywhere; line-height: 1.45; }
.message.error { border-left-color: #d1293d; }
.message.plain { border: 0; padding: 0; background: none; font-size: 0.9em; opacity: 0.8; }
#status .wrap { opacity: 1; background: var(--background-fill-primary); }
#video video { max-height: 300px; }
#timeline { padding-top: 38px; overflow: visible; }
#timeline .icon-button-wrapper { top: -32px; }
#events table, #events button, #events .cell-wrap, #events .cell-wrap * { font-family: var(--font); }
#downloads { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); }
#downloads button { min-width: 0; }
"""


class UnusableVideoError(ValueError):
    """A video that this app does not take. The message is for its visitors."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the app offers and allows.

    Attributes:
        models: Folder or Hub id of each model by the name shown. The first is chosen at the start.
        max_seconds: Longest video.
        max_megabytes: Largest file.
        cached_models: Models kept in memory at once.
    """

    models: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"ave-clip-tiny": ave_clip.DEFAULT_CHECKPOINT}
    )
    max_seconds: float = 300
    max_megabytes: float = 100
    cached_models: int = 2


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables.

    Args:
        environment (`Mapping`): `AVE_CLIP_MODELS` holds models between commas, each a folder or Hub id, or
            `name=folder or id`; `AVE_CLIP_MAX_SECONDS`, `AVE_CLIP_MAX_MB` and `AVE_CLIP_CACHED_MODELS` hold numbers.

    Raises:
        ValueError: Two models of one name, an empty one, or something else than a number above 0.
    """
    defaults = Settings()
    models = {}
    for entry in filter(None, map(str.strip, environment.get("AVE_CLIP_MODELS", "").split(","))):
        name, separator, place = (part.strip() for part in entry.partition("="))
        place = place if separator else name
        name = name if separator else Path(name).name
        if not name or not place or name in models:
            raise ValueError(f"AVE_CLIP_MODELS: {entry!r} has no name or place of its own. Write name=folder-or-id.")
        models[name] = ave_clip.DEFAULT_CHECKPOINT if place == "ave-clip-tiny" else place
    return Settings(
        models=models or defaults.models,
        max_seconds=_positive(environment, "AVE_CLIP_MAX_SECONDS", defaults.max_seconds),
        max_megabytes=_positive(environment, "AVE_CLIP_MAX_MB", defaults.max_megabytes),
        cached_models=max(1, int(_positive(environment, "AVE_CLIP_CACHED_MODELS", defaults.cached_models))),
    )


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
        raise ValueError(f"{name}={text!r}, but it must be a number above 0, such as {default}.")
    return float(text)


class Models:
    """The models on offer. Those used last stay in memory.

    Args:
        settings ([`Settings`]): `models` and `cached_models`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache: OrderedDict[str, Any] = OrderedDict()
        self.lock = threading.Lock()

    def config(self, name: str) -> Any:
        """The configuration of a model.

        Raises:
            ValueError: No such model is on offer, or it cannot be read.
        """
        if name not in self.settings.models:
            raise ValueError(f"There is no model {name!r} here. Choose one of {', '.join(self.settings.models)}.")
        try:
            return AutoConfig.from_pretrained(self.settings.models[name])
        except (OSError, ValueError) as error:
            raise ValueError(f"The model {name} cannot be loaded: {error}") from error

    def load(self, name: str) -> Any:
        """The pipeline of a model.

        Raises:
            ValueError: As [`config`].
        """
        with self.lock:
            if name not in self.cache:
                while len(self.cache) >= self.settings.cached_models:
                    self.cache.popitem(last=False)
                self.cache[name] = self._make(name)
            self.cache.move_to_end(name)
            return self.cache[name]

    def _make(self, name: str) -> Any:
        takes_labels = _is_audioclip(self.config(name))
        classes = (AudioVisualEventLocalizationPipeline, ZeroShotAudioVisualEventLocalizationPipeline)
        try:
            # Our class also where the checkpoint brings its own code.
            return pipeline(
                "zero-shot-" * takes_labels + TASK,
                model=self.settings.models[name],
                pipeline_class=classes[takes_labels],
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"The model {name} cannot be loaded: {error}") from error


def _is_audioclip(config: Any) -> bool:
    """Whether a model looks for any labels, rather than for those it was trained on."""
    return config.model_type == ave_clip.AudioCLIPConfig.model_type


def check_video(path: str | None, settings: Settings) -> VideoInfo:
    """Refuse a video before anything of it is decoded but the first picture.

    Args:
        path (`str`, *optional*): The file.
        settings ([`Settings`]): The limits.

    Raises:
        UnusableVideoError: No file, or one that is too large, too long, no video, or without sound or pictures.
    """
    if not path:
        raise UnusableVideoError("Choose a video first: upload one, record one, or take an example.")
    name, megabytes = Path(path).name, os.path.getsize(path) / MEGABYTE
    if megabytes > settings.max_megabytes:
        raise UnusableVideoError(
            f"{name} has {megabytes:.1f} MB, but at most {settings.max_megabytes:g} MB are taken here. "
            "Cut it, or make its pictures smaller."
        )
    try:
        info = probe_video(path)
    except VideoReadError as error:
        raise UnusableVideoError(str(error).replace(path, name)) from error
    if info.duration_seconds > settings.max_seconds + 1:
        raise UnusableVideoError(_too_long(name, f"lasts {info.duration_seconds:.0f} s", settings))
    missing = [what for what, has in (("sound track", info.has_audio), ("pictures", info.has_video)) if not has]
    if missing:
        raise UnusableVideoError(
            f"{name} has no {missing[0]}. An audio-visual event is heard and seen at once, so there is nothing to "
            "find in it. Choose a video with sound."
        )
    if info.width * info.height > MAX_PIXELS:
        raise UnusableVideoError(
            f"The pictures of {name} have {info.width} x {info.height} pixels, but at most 3840 x 2160 are taken "
            "here. Make them smaller."
        )
    return info


def _too_long(name: str, length: str, settings: Settings) -> str:
    return f"{name} {length}, but at most {settings.max_seconds:g} s are taken here. Cut it to the part that matters."


def check_labels(text: str) -> list[str]:
    """Labels from a text with commas or line breaks between them.

    Raises:
        ValueError: None, too many, too long, twice the same, or "background".
    """
    entries = [entry for entry in re.split(r"[,\n]", text or "") if entry.strip()]
    if not entries:
        raise ValueError("This model looks for what you name: write one or more labels, such as: dog bark, bell.")
    if len(entries) > MAX_LABELS or max(map(len, entries)) > MAX_LABEL_CHARACTERS:
        raise ValueError(
            f"Got {len(entries)} labels, the longest of {max(map(len, entries))} characters, but at most {MAX_LABELS} "
            f"labels of {MAX_LABEL_CHARACTERS} characters are taken here."
        )
    return parse_labels(entries)


def message(text: str, kind: str = "") -> str:
    """A text as HTML that shows it letter for letter: no markup, and no template of Gradio's.

    Args:
        text (`str`): Whatever came from outside.
        kind (`str`): `""`, `"plain"` or `"error"`.
    """
    escaped = html.escape(one_line(text)).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
    role = "alert" if kind == "error" else "status"
    return f'<div class="message {kind}" role="{role}">{escaped}</div>'


def describe_video(path: str | None, settings: Settings) -> str:
    """What is known about a file that was just chosen, or why it cannot be used."""
    if not path:
        return ""
    try:
        info = check_video(path, settings)
    except UnusableVideoError as error:
        return message(str(error), "error")
    length = f"{info.duration_seconds:.1f} s, " if info.duration_seconds else ""
    return message(f"{Path(path).name}: {length}{info.width} x {info.height} pixels, with sound.")


def describe_model(name: str, models: Models) -> tuple[str, bool]:
    """What a model looks for, as HTML, and whether it takes labels."""
    try:
        config = models.config(name)
    except ValueError as error:
        return message(str(error), "error"), False
    if _is_audioclip(config):
        return message("AudioCLIP looks for the labels you write below, without training.", "plain"), True
    labels = [label for label in config.id2label.values() if label != BACKGROUND_LABEL]
    text = (
        f"This model knows {len(labels)} events: {', '.join(labels)}. Labels of your own need an AudioCLIP checkpoint"
    )
    others = " as model." if len(models.settings.models) > 1 else ", and this Space has none (see AVE_CLIP_MODELS)."
    return message(text + others, "plain"), False


def make_examples(folder: Path) -> list[str]:
    """The sample that comes with the package, and freshly made synthetic clips (a second each).

    Args:
        folder (`Path`): Where to put them.
    """
    examples = [str(SAMPLE)]
    for index in SYNTHETIC_CLIPS:
        script = draw_script(0, "test", index)
        path = folder / f"{SYNTHETIC_CATEGORIES[script.category].lower().replace(' ', '-')}.mp4"
        render_clip(0, script, path)
        examples.append(str(path))
    return examples


@dataclasses.dataclass
class Request:
    """What a visitor asks for.

    Attributes:
        video: The file.
        model: Its name in the settings.
        labels: For an AudioCLIP, what to look for.
        decoder: How probabilities become events.
        min_event_segments: Shortest event; `None` for the model's own.
        agreement_threshold: For an AudioCLIP, the audio-image cosine from which sight and sound agree.
        with_overlay: Whether to write the video with the result drawn on it.
        theme: Colours of the timeline, `"light"` or `"dark"`.
    """

    video: str | None
    model: str
    labels: str = ""
    decoder: str = "merge"
    min_event_segments: int | None = None
    agreement_threshold: float | None = None
    with_overlay: bool = True
    theme: str = "light"

    @property
    def name(self) -> str:
        """The video's name, without the place where it lies here."""
        return Path(self.video or "").name


@dataclasses.dataclass
class Shown:
    """What the page shows of a run; nothing where nothing is there yet.

    Attributes:
        status: HTML.
        timeline: Picture file.
        rows: Of the table of events.
        overlay: Video file.
        files: To download, by the name of their button.
    """

    status: str = ""
    timeline: str | None = None
    rows: list[list[Any]] = dataclasses.field(default_factory=list)
    overlay: str | None = None
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    def outputs(self) -> list[Any]:
        """The values of the page's components, in their order."""
        buttons = [gr.DownloadButton(value=self.files.get(name), interactive=name in self.files) for name in DOWNLOADS]
        return [self.status, self.timeline, self.rows, self.overlay, *buttons]


def run(request: Request, models: Models, progress: Callable[..., Any]) -> Iterator[Shown]:
    """Localize, and show each part of the result as soon as it is there.

    Args:
        request ([`Request`]): What to do.
        models ([`Models`]): The models on offer.
        progress (`gr.Progress`): Called with a share from 0 to 1 and `desc`.

    Yields:
        [`Shown`]: The last one is complete. What went wrong stands in its `status`.
    """
    with tempfile.TemporaryDirectory(prefix="ave-clip-space-") as folder:
        try:
            yield from _stages(request, models, progress, Path(folder))
        except (ValueError, OSError) as error:
            yield Shown(message(str(error).replace(request.video or "\0", request.name), "error"))


def _stages(request: Request, models: Models, progress: Callable[..., Any], folder: Path) -> Iterator[Shown]:
    progress(0, desc="Checking the video")
    check_video(request.video, models.settings)
    progress(0, desc="Loading the model")
    localizer = models.load(request.model)
    result = localize(request, localizer, models.settings, progress)
    shown = Shown(message(summary(request.name, result)), rows=table_rows(result))
    shown.files = write_formats(request.name, result, folder)
    progress(0.6, desc="Drawing the timeline")
    shown.timeline = draw_timeline(request, result, folder, ".png")
    shown.files["Timeline PNG"] = shown.timeline
    yield shown
    if request.with_overlay:
        shown.overlay = str(folder / f"{Path(request.name).stem}-events.mp4")
        report = reporter(progress, "Drawing on the video", 0.65, 0.95)
        cropping = localizer.segmenter.video_processor
        write_overlay(request.video, result, shown.overlay, video_processor=cropping, progress=report)
        yield shown
    progress(0.95, desc="Writing the files")
    for button, suffix in list(PICTURES.items())[1:]:
        shown.files[button] = draw_timeline(request, result, folder, suffix)
    yield shown


def localize(request: Request, localizer: Any, settings: Settings, progress: Callable[..., Any]) -> dict[str, Any]:
    """The pipeline's result for a request.

    Raises:
        UnusableVideoError: A video that turns out to be longer than it declared.
        ValueError: Labels or options that cannot be used, or a video that cannot be read.
    """
    if isinstance(localizer, ZeroShotAudioVisualEventLocalizationPipeline):
        labels = check_labels(request.labels)
        options = {"candidate_labels": labels, "agreement_threshold": request.agreement_threshold}
    else:
        options = {"return_heatmaps": request.with_overlay}
    seconds = localizer.segmenter.video_processor.segment_seconds
    show = reporter(progress, "Looking and listening", 0.05, 0.6)

    def report(name: str, done: int, total: int) -> None:
        if done * seconds > settings.max_seconds + 1:  # recordings of browsers declare no length
            raise UnusableVideoError(_too_long(request.name, "goes on for longer", settings))
        show(name, done, total)

    return localizer(
        request.video,
        decoder=request.decoder,
        min_event_segments=request.min_event_segments,
        progress=report,
        **options,
    )


def reporter(progress: Callable[..., Any], text: str, start: float, end: float) -> Callable[[str, float, float], None]:
    """A function of (name, done, total) that moves Gradio's progress bar from `start` to `end`."""

    def report(name: str, done: float, total: float) -> None:
        progress(start + (end - start) * min(1.0, done / total if total else 0.0), desc=text)

    return report


def table_rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """A row an event, in the order of `TABLE_HEADERS`."""
    return [
        [f"{event['start']:.1f} s", f"{event['end']:.1f} s", one_line(event["label"]), percent(event["score"])]
        for event in result["events"]
    ]


def summary(name: str, result: Mapping[str, Any]) -> str:
    """What was found, in a sentence."""
    events = len(result["events"])
    length = result["segments"][-1]["end"] if result["segments"] else 0.0
    if not events:
        return (
            f"No event found in the {length:.1f} s of {name}: nothing that the model knows is heard and seen at once."
        )
    return f"Found {events} event{'s' * (events > 1)} in the {length:.1f} s of {name}."


def write_formats(name: str, result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write a result in every text format; returns the file for each button."""
    files = {}
    for kind, button in FORMAT_NAMES.items():
        path = folder / (Path(name).stem + SUFFIXES[kind])
        # ELAN links to the video: beside the file, rather than where it lies here.
        text = FORMATS[kind](result, f"/{name}", "/") if kind == "elan" else FORMATS[kind](result, name)
        path.write_text(text, encoding="utf-8", newline="")
        files[button] = str(path)
    return files


def draw_timeline(request: Request, result: Mapping[str, Any], folder: Path, suffix: str) -> str:
    """Draw the timeline into a file of the kind that the suffix says."""
    path = folder / f"{Path(request.name).stem}-timeline{suffix}"
    plot_timeline([(request.video, result)], path, theme=request.theme)
    return str(path)


def build_app(settings: Settings, examples: list[str]) -> gr.Blocks:
    """The page and what its buttons do.

    Args:
        settings ([`Settings`]): What to offer.
        examples (`list[str]`): Files to choose from.
    """
    models = Models(settings)
    deletion = (DELETE_EVERY_SECONDS, DELETE_AFTER_SECONDS)
    with gr.Blocks(title="Audio-visual events", analytics_enabled=False, delete_cache=deletion) as app:
        gr.HTML(
            "<h1>Audio-visual events</h1><p>Which event is both heard and seen, and when? Choose a video of at most "
            f"{settings.max_seconds:g} s and {settings.max_megabytes:g} MB.</p>"
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs, start = _add_inputs(models, examples)
            with gr.Column(scale=3, min_width=320):
                outputs = _add_outputs()
        _connect(models, inputs, start, outputs)
    return app


def _add_inputs(models: Models, examples: list[str]) -> tuple[list[Any], gr.Button]:
    names = list(models.settings.models)
    about, takes_labels = describe_model(names[0], models)
    webcam = gr.WebcamOptions(mirror=False)
    video = gr.Video(label="Video", sources=["upload", "webcam"], webcam_options=webcam, elem_id="video")
    gr.Examples([[path] for path in examples], [video], label="Examples", cache_examples=False)
    model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model", filterable=False)
    explanation = gr.HTML(about, elem_id="explanation")
    labels = gr.Textbox(
        label="Labels to look for",
        placeholder="dog bark, church bell",
        interactive=takes_labels,
        visible=takes_labels or len(names) > 1,
        elem_id="labels",
    )
    with gr.Accordion("Options", open=False):
        decoder = gr.Dropdown(list(DECODERS.items()), value="merge", label="Decoder", elem_id="decoder")
        shortest = gr.Number(
            0, label="Shortest event (segments)", precision=0, minimum=0, maximum=60, info="0: the model's own."
        )
        threshold = gr.Number(
            0,
            label="Agreement threshold (AudioCLIP only)",
            minimum=-1,
            maximum=1,
            step=0.01,
            info="Similarity from which sight and sound are one event. Lower finds more.",
        )
    overlay = gr.Checkbox(True, label="Draw heat map and labels on the video", elem_id="with-overlay")
    start = gr.Button("Find events", variant="primary", elem_id="start")
    is_dark = gr.Checkbox(False, visible=False)
    model.change(
        lambda name: _show_model(name, models), model, [explanation, labels], queue=False, api_visibility="private"
    )
    return [video, model, labels, decoder, shortest, threshold, overlay, is_dark], start


def _show_model(name: str, models: Models) -> tuple[str, Any]:
    about, takes_labels = describe_model(name, models)
    return about, gr.Textbox(interactive=takes_labels)


def _add_outputs() -> list[Any]:
    status = gr.HTML(message("Choose a video and press “Find events”."), elem_id="status", min_height=60)
    timeline = gr.Image(
        label="Timeline", type="filepath", format="png", interactive=False, buttons=["fullscreen"], elem_id="timeline"
    )
    table = gr.Dataframe(
        headers=list(TABLE_HEADERS),
        datatype="str",
        column_count=len(TABLE_HEADERS),
        interactive=False,
        wrap=True,
        column_widths=["20%", "20%", "38%", "22%"],
        label="Events",
        elem_id="events",
    )
    overlay = gr.Video(label="Heat map and events", interactive=False, height=360, elem_id="overlay")
    gr.HTML(message("Download the result:", "plain"))
    with gr.Row(elem_id="downloads"):
        buttons = [
            gr.DownloadButton(name, interactive=False, size="sm", elem_id="download-" + name.lower().replace(" ", "-"))
            for name in DOWNLOADS
        ]
    return [status, timeline, table, overlay, *buttons]


def _connect(models: Models, inputs: list[Any], start: gr.Button, outputs: list[Any]) -> None:
    video, status = inputs[0], outputs[0]

    def show_video(path: str | None) -> list[Any]:
        return Shown(describe_video(path, models.settings)).outputs()

    def find_events(
        video: str | None,
        model: str,
        labels: str = "",
        decoder: str = "merge",
        min_event_segments: float | None = 0,
        agreement_threshold: float | None = 0,
        with_overlay: bool = True,
        is_dark: bool = False,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio looks for it there)
    ) -> Iterator[list[Any]]:
        """Find the audio-visual events of a video."""
        shortest = int(min_event_segments or 0) or None
        theme = "dark" if is_dark else "light"
        request = Request(video, model, labels, decoder, shortest, agreement_threshold, with_overlay, theme)
        for shown in run(request, models, progress):
            yield shown.outputs()

    video.change(show_video, video, outputs, queue=False, api_visibility="private")
    start.click(find_events, inputs, outputs, js=IS_DARK, api_name="find_events", show_progress_on=status)


def launch(app: gr.Blocks, settings: Settings, **options: Any) -> Any:
    """Serve the page: one run at a time, the others wait in a queue. Fonts are the visitor's own.

    Args:
        app (`gr.Blocks`): What [`build_app`] gave.
        settings ([`Settings`]): For the size of files.
        options: Of Gradio's `launch`.
    """
    theme = gr.themes.Base(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    app.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    size = int(settings.max_megabytes * MEGABYTE)
    links = ["api", "gradio", "settings"]
    return app.launch(theme=theme, css=STYLE, max_file_size=size, footer_links=links, run_history=False, **options)


def main() -> None:
    """Serve the app until it is stopped."""
    settings = read_settings(os.environ)
    with tempfile.TemporaryDirectory(prefix="ave-clip-examples-") as folder:
        launch(build_app(settings, make_examples(Path(folder))), settings)


if __name__ == "__main__":
    main()
