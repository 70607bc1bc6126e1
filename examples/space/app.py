"""A Gradio Space: choose a video and see which events are both heard and seen in it, and when.

It shows the timeline, a table of the events and the video with both drawn on it, and offers the result in every format
that ave-clip writes. To run it on your own machine:

    pip install ".[space]" && python examples/space/app.py

The settings, all of them environment variables, are in README.md beside this file.
"""

import dataclasses
import html
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from space_limits import MEGABYTE, Settings, UnusableVideoError, check_labels, check_video, read_settings, too_long
from transformers import AutoConfig, pipeline

import ave_clip
from ave_clip import AudioVisualEventLocalizationPipeline, ZeroShotAudioVisualEventLocalizationPipeline
from ave_clip.core.categories import BACKGROUND_LABEL, SINGLE_LABEL
from ave_clip.core.events import DECODERS, decoders_of
from ave_clip.core.label_space import LabelSpace
from ave_clip.data.synthetic.clips import SYNTHETIC_CATEGORIES, draw_script, render_clip
from ave_clip.outputs.drawing import one_line, percent
from ave_clip.outputs.formats import FORMATS
from ave_clip.outputs.overlay import write_overlay
from ave_clip.outputs.timeline import plot_timeline
from ave_clip.programs import program

TASK = "audio-visual-event-localization"
SAMPLE = Path(ave_clip.__file__).parent / "assets" / "sample.mp4"
SYNTHETIC_CLIPS = (5,)  # of the synthetic test split: an event at another time than the sample's
TABLE_HEADERS = ("Start", "End", "Event", "Score")
PICTURES = {"Timeline PNG": ".png", "Timeline SVG": ".svg", "Timeline HTML": ".html"}
DOWNLOADS = (*(entry.title for entry in FORMATS.values()), *PICTURES)
PAGE_DECODER = "viterbi"  # suits every model: it keeps single seconds of background beside an event
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


class Models:
    """The available models. The most recently used ones stay in memory.

    Args:
        settings ([`Settings`]): `models` and `cached_models`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache: OrderedDict[str, Any] = OrderedDict()
        self.lock = threading.Lock()

    def config(self, name: str) -> Any:
        """Returns the configuration of a model.

        Raises:
            ValueError: if there is no such model, or it cannot be read.
        """
        if name not in self.settings.models:
            raise ValueError(f"There is no model {name!r} here. Choose one of {', '.join(self.settings.models)}.")
        try:
            return AutoConfig.from_pretrained(self.settings.models[name])
        except (OSError, ValueError) as error:
            raise ValueError(f"The model {name} cannot be loaded: {error}") from error

    def load(self, name: str) -> Any:
        """Returns the pipeline of a model.

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
        if _needs_labels(self.config(name)):
            task, pipeline_class = f"zero-shot-{TASK}", ZeroShotAudioVisualEventLocalizationPipeline
        else:
            task, pipeline_class = TASK, AudioVisualEventLocalizationPipeline
        try:
            # Our own class even if the checkpoint contains custom code.
            return pipeline(
                task,
                model=self.settings.models[name],
                pipeline_class=pipeline_class,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"The model {name} cannot be loaded: {error}") from error


def _needs_labels(config: Any) -> bool:
    """Whether a model has no labels of its own, as an AudioCLIP."""
    try:
        AudioVisualEventLocalizationPipeline.check_model_type(config)
    except ValueError:
        return True
    return False


def message(text: str, kind: str = "") -> str:
    """Returns a text as HTML that shows it literally: without markup, and without templates of Gradio.

    Args:
        text (`str`): Any text, including user input.
        kind (`str`): `""`, `"plain"` or `"error"`.
    """
    escaped = html.escape(one_line(text)).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
    role = "alert" if kind == "error" else "status"
    return f'<div class="message {kind}" role="{role}">{escaped}</div>'


def describe_video(path: str | None, settings: Settings) -> str:
    """Returns HTML with the facts about a chosen file, or the reason why it cannot be used."""
    if not path:
        return ""
    try:
        info = check_video(path, settings)
    except UnusableVideoError as error:
        return message(str(error), "error")
    length = f"{info.duration_seconds:.1f} s, " if info.duration_seconds else ""
    return message(f"{Path(path).name}: {length}{info.width} x {info.height} pixels, with sound.")


def describe_model(name: str, models: Models) -> tuple[str, bool]:
    """Returns HTML with the events of a model, and whether it takes labels."""
    try:
        config = models.config(name)
    except ValueError as error:
        return message(str(error), "error"), False
    if _needs_labels(config):
        return message("This model looks for the labels that you write below, without training.", "plain"), True
    labels = [label for label in config.id2label.values() if label != BACKGROUND_LABEL]
    listed = f"{len(labels)} events: {', '.join(labels)}."
    if hasattr(config, "concepts"):
        text = f"This model looks for the labels that you write below, or without any for {listed}"
        return message(text, "plain"), True
    return message(f"This model knows {listed} For labels of your own, choose another model.", "plain"), False


def decoders_for(name: str, models: Models) -> list[tuple[str, str]]:
    """Returns summary and name of the decoders that a model supports."""
    try:
        problem_type = LabelSpace.of(models.config(name)).problem_type
    except ValueError:  # `describe_model` says why it cannot be read
        problem_type = SINGLE_LABEL
    return [(DECODERS[decoder].summary, decoder) for decoder in decoders_of(problem_type)]


def make_examples(folder: Path) -> list[str]:
    """Returns the samples in the package and new synthetic clips (each takes a second to make).

    Args:
        folder (`Path`): Folder of the clips.
    """
    examples = [str(SAMPLE), str(SAMPLE.with_name("synthetic_sample.mp4"))]
    for index in SYNTHETIC_CLIPS:
        script = draw_script(0, "test", index)
        path = folder / f"{SYNTHETIC_CATEGORIES[script.category].lower().replace(' ', '-')}.mp4"
        render_clip(0, script, path)
        examples.append(str(path))
    return examples


@dataclasses.dataclass
class Request:
    """The request of a user.

    Attributes:
        video: The file.
        model: Name of the model in the settings.
        labels: The labels to look for, for models that take any; empty for the model's own.
        decoder: How probabilities become events; `None` for the decoder of the model.
        min_event_segments: Minimum length of events; `None` for the model's setting.
        agreement_threshold: For AudioCLIP, the smallest audio-image cosine at which audio and image agree.
        with_overlay: Whether to write the video with the result drawn on it.
        theme: Colours of the timeline, `"light"` or `"dark"`.
    """

    video: str | None
    model: str
    labels: str = ""
    decoder: str | None = None
    min_event_segments: int | None = None
    agreement_threshold: float | None = None
    with_overlay: bool = True
    theme: str = "light"

    @property
    def name(self) -> str:
        """File name of the video, without its path on this machine."""
        return Path(self.video or "").name


@dataclasses.dataclass
class Shown:
    """The outputs of a run on the page; empty until available.

    Attributes:
        status: HTML.
        timeline: Image file.
        rows: Rows of the table of events.
        overlay: Video file.
        files: Files to download by the name of their button.
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
    """Localizes events, and yields each part of the result as soon as it is available.

    Args:
        request ([`Request`]): The request.
        models ([`Models`]): The available models.
        progress (`gr.Progress`): Called with a fraction from 0 to 1 and `desc`.

    Yields:
        [`Shown`]: The last one is complete. Errors are in its `status`.
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
    """Returns the pipeline's result for a request.

    Raises:
        UnusableVideoError: if the video is longer than it declares.
        ValueError: if labels or options cannot be used, or the video cannot be read.
    """
    if isinstance(localizer, ZeroShotAudioVisualEventLocalizationPipeline):
        labels = check_labels(request.labels)
        options = {"candidate_labels": labels, "agreement_threshold": request.agreement_threshold or None}
    else:
        labels = check_labels(request.labels) if request.labels.strip() else None
        options = {"candidate_labels": labels, "return_heatmaps": request.with_overlay}
    seconds = localizer.segmenter.video_processor.segment_seconds
    show = reporter(progress, "Looking and listening", 0.05, 0.6)

    def report(name: str, done: int, total: int) -> None:
        if done * seconds > settings.max_seconds + 1:  # browser recordings declare no length
            raise UnusableVideoError(too_long(request.name, "goes on for longer", settings))
        show(name, done, total)

    return localizer(
        request.video,
        decoder=request.decoder,
        min_event_segments=request.min_event_segments,
        progress=report,
        **options,
    )


def reporter(progress: Callable[..., Any], text: str, start: float, end: float) -> Callable[[str, float, float], None]:
    """Returns a function of (name, done, total) that moves Gradio's progress bar from `start` to `end`."""

    def report(name: str, done: float, total: float) -> None:
        progress(start + (end - start) * min(1.0, done / total if total else 0.0), desc=text)

    return report


def table_rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """Returns one row per event, in the order of `TABLE_HEADERS`."""
    return [
        [f"{event['start']:.1f} s", f"{event['end']:.1f} s", one_line(event["label"]), percent(event["score"])]
        for event in result["events"]
    ]


def summary(name: str, result: Mapping[str, Any]) -> str:
    """Returns a sentence with the number of events."""
    events = len(result["events"])
    length = result["segments"][-1]["end"] if result["segments"] else 0.0
    if not events:
        return (
            f"No event found in the {length:.1f} s of {name}: nothing that the model knows is heard and seen at once."
        )
    return f"Found {events} event{'s' * (events > 1)} in the {length:.1f} s of {name}."


def write_formats(name: str, result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes a result in each text format; returns the file of each button."""
    files = {}
    for entry in FORMATS.values():
        path = folder / (Path(name).stem + entry.suffix)
        # A visitor keeps the file beside the video: a link must not lead to the temporary path on this machine.
        text = entry.format(result, f"/{name}", "/") if entry.links_to_video else entry.format(result, name)
        path.write_text(text, encoding="utf-8", newline="")
        files[entry.title] = str(path)
    return files


def draw_timeline(request: Request, result: Mapping[str, Any], folder: Path, suffix: str) -> str:
    """Draws the timeline into a file of the type of the suffix."""
    path = folder / f"{Path(request.name).stem}-timeline{suffix}"
    plot_timeline([(request.video, result)], path, theme=request.theme)
    return str(path)


def build_app(settings: Settings, examples: list[str]) -> gr.Blocks:
    """Builds the page and connects its buttons.

    Args:
        settings ([`Settings`]): Models and limits.
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
        decoder = gr.Dropdown(decoders_for(names[0], models), value=PAGE_DECODER, label="Decoder", elem_id="decoder")
        shortest = gr.Number(
            0, label="Shortest event (segments)", precision=0, minimum=0, maximum=60, info="0: the model's setting."
        )
        threshold = gr.Number(
            0,
            label="Agreement threshold (AudioCLIP only)",
            minimum=-1,
            maximum=1,
            step=0.01,
            info="Smallest similarity of audio and image in an event. Lower values find more events.",
        )
    overlay = gr.Checkbox(True, label="Draw heat map and labels on the video", elem_id="with-overlay")
    start = gr.Button("Find events", variant="primary", elem_id="start")
    is_dark = gr.Checkbox(False, visible=False)
    model.change(
        lambda name: _show_model(name, models),
        model,
        [explanation, labels, decoder],
        queue=False,
        api_visibility="private",
    )
    return [video, model, labels, decoder, shortest, threshold, overlay, is_dark], start


def _show_model(name: str, models: Models) -> tuple[str, Any, Any]:
    about, takes_labels = describe_model(name, models)
    decoders = gr.Dropdown(choices=decoders_for(name, models), value=PAGE_DECODER)
    return about, gr.Textbox(interactive=takes_labels), decoders


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
        labels: str | None = "",
        decoder: str = PAGE_DECODER,
        min_event_segments: float | None = 0,
        agreement_threshold: float | None = 0,
        with_overlay: bool = True,
        is_dark: bool = False,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio looks for it there)
    ) -> Iterator[list[Any]]:
        """Find the audio-visual events of a video."""
        shortest = int(min_event_segments or 0) or None
        theme = "dark" if is_dark else "light"
        # Gradio sends `None` for an untouched text box.
        request = Request(video, model, labels or "", decoder, shortest, agreement_threshold, with_overlay, theme)
        for shown in run(request, models, progress):
            yield shown.outputs()

    video.change(show_video, video, outputs, queue=False, api_visibility="private")
    start.click(find_events, inputs, outputs, js=IS_DARK, api_name="find_events", show_progress_on=status)


def launch(app: gr.Blocks, settings: Settings, **options: Any) -> Any:
    """Serves the page: one run at a time, the others wait in a queue. Fonts are those of the user's system.

    Args:
        app (`gr.Blocks`): Result of [`build_app`].
        settings ([`Settings`]): Limits.
        options: Options of Gradio's `launch`.
    """
    theme = gr.themes.Base(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    app.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    size = int(settings.max_megabytes * MEGABYTE)
    links = ["api", "gradio", "settings"]
    return app.launch(theme=theme, css=STYLE, max_file_size=size, footer_links=links, run_history=False, **options)


def main() -> None:
    """Serves the app until it is stopped."""
    settings = read_settings(os.environ)
    with tempfile.TemporaryDirectory(prefix="ave-clip-examples-") as folder:
        launch(build_app(settings, make_examples(Path(folder))), settings)


if __name__ == "__main__":
    with program():
        main()
