"""The Space: its handlers without a browser, and the page in a real Chromium with real files."""

import configparser
import csv
import importlib.util
import io
import json
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import ave_clip
from ave_clip import AVEClipConfig
from ave_clip.core.categories import BACKGROUND_LABEL
from ave_clip.core.video_io import probe_video
from tests.core.test_pipeline_zero_shot import save_tiny_audioclip
from tests.helpers.media import write_recording

pytest.importorskip("gradio", reason="gradio is not installed (extra space)")

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
SAMPLE = str(Path(ave_clip.__file__).parent / "assets" / "synthetic_sample.mp4")
MARKUP = "<img src=x onerror=\"document.title='broken into'\"><b>${1+1} {{value}}</b>"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
BROWSER_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000"),
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and importlib.util.find_spec("selenium")),
    reason="chromium, chromedriver and selenium are needed",
)


@pytest.fixture(scope="module")
def app():
    sys.path.insert(0, str(SPACE))
    try:
        import app as module

        yield module
    finally:
        sys.path.remove(str(SPACE))
        for name in ("app", "space_limits"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def models(app, tmp_path_factory):
    """The embedded localizer, and a tiny AudioCLIP."""
    folder = tmp_path_factory.mktemp("audioclip")
    save_tiny_audioclip(folder)
    return app.Models(app.Settings({"tiny": "ave-clip-tiny", "audioclip": str(folder)}, cached_models=1))


def silent_progress(share, desc=None):
    assert 0 <= share <= 1 and desc


def last_shown(app, models, *values, **options):
    return list(app.run(app.Request(*values, **options), models, silent_progress))[-1]


# ── settings and limits ──


def test_settings_come_from_the_environment(app):
    settings = app.read_settings(
        {
            "AVE_CLIP_MODELS": "ave-clip-tiny, someone/bells ,Mine=/models/a b",
            "AVE_CLIP_MAX_SECONDS": "12.5",
            "AVE_CLIP_MAX_MB": "7",
            "AVE_CLIP_CACHED_MODELS": "3",
        }
    )
    assert settings.models == {
        "ave-clip-tiny": "ave-clip-tiny",
        "bells": "someone/bells",
        "Mine": "/models/a b",
    }
    assert (settings.max_seconds, settings.max_megabytes, settings.cached_models) == (12.5, 7, 3)
    assert app.read_settings({}) == app.Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("AVE_CLIP_MAX_SECONDS", "-3"), ("AVE_CLIP_MAX_MB", "nan"), ("AVE_CLIP_MODELS", "a/x,b/x")],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(app, name, value):
    with pytest.raises(ValueError, match=name):
        app.read_settings({name: value})


def test_a_good_video_is_described(app):
    assert "synthetic_sample.mp4: 10.0 s, 192 x 144 pixels, with sound." in app.describe_video(SAMPLE, app.Settings())
    assert app.describe_video(None, app.Settings()) == ""


@pytest.mark.parametrize(
    ("settings", "make", "expected"),
    [
        ({}, lambda folder: folder.joinpath("a.mp4").write_text("no video at all") and None, "Cannot read a.mp4"),
        ({}, lambda folder: write_recording(folder / "a.mp4", 1, sound=None), "a.mp4 has no sound track"),
        ({}, lambda folder: write_recording(folder / "a.mp4", 1, picture=None, codecs=(None, "aac")), "no pictures"),
        ({"max_seconds": 2}, lambda folder: write_recording(folder / "a.mp4", 5), "lasts 5 s, but at most 2 s"),
        ({"max_megabytes": 0.001}, lambda folder: write_recording(folder / "a.mp4", 1), "MB, but at most 0.001 MB"),
    ],
)
def test_an_unusable_file_gives_a_message_without_the_servers_folders(
    app, models, tmp_path, settings, make, expected, monkeypatch
):
    make(tmp_path)
    limits = app.Settings(**settings)
    monkeypatch.setattr(models, "settings", limits)
    shown = last_shown(app, models, str(tmp_path / "a.mp4"), "tiny")
    assert expected in shown.status and 'role="alert"' in shown.status
    assert str(tmp_path) not in shown.status
    assert (shown.rows, shown.timeline, shown.overlay, shown.files) == ([], None, None, {})
    assert app.describe_video(str(tmp_path / "a.mp4"), limits) == shown.status


def test_no_video_at_all_is_asked_for(app, models):
    assert "Choose a video first" in last_shown(app, models, None, "tiny").status


def test_frames_that_are_too_large_are_refused(app, monkeypatch):
    monkeypatch.setattr("space_limits.MAX_PIXELS", 192 * 144 - 1)
    with pytest.raises(app.UnusableVideoError, match="192 x 144 pixels"):
        app.check_video(SAMPLE, app.Settings())


def test_a_video_longer_than_it_declares_is_stopped_while_it_is_read(app, models):
    localizer = models.load("tiny")
    with pytest.raises(app.UnusableVideoError, match="goes on for longer"):
        app.localize(app.Request(SAMPLE, "tiny"), localizer, app.Settings(max_seconds=3), silent_progress)


# ── a run ──


def test_a_run_shows_the_table_first_then_the_overlay_then_all_files(app, models, monkeypatch):
    folders = []
    monkeypatch.setattr(app, "_stages", spy(app._stages, folders))
    stages = []
    for shown in app.run(app.Request(SAMPLE, "tiny"), models, silent_progress):
        stages.append((bool(shown.timeline), bool(shown.overlay), len(shown.files)))
        texts = {button: Path(path).read_bytes() for button, path in shown.files.items()}
        overlay = shown.overlay and probe_video(shown.overlay)
    assert stages == [(True, False, 8), (True, True, 8), (True, True, 10)]
    assert "Found 1 event in the 10.0 s of synthetic_sample.mp4." in shown.status
    assert shown.rows == [["2.0 s", "7.0 s", "Mossy frog", "99 %"]]
    assert overlay.duration_seconds == pytest.approx(10, abs=0.2) and overlay.has_audio
    assert sorted(texts) == sorted(app.DOWNLOADS)
    assert not folders[0].exists()
    check_downloads(texts)


def spy(function, folders):
    def call(request, models, progress, folder):
        folders.append(folder)
        return function(request, models, progress, folder)

    return call


def check_downloads(texts):
    rows = list(csv.DictReader(io.StringIO(texts["CSV"].decode())))
    assert [(row["video"], row["start"], row["end"], row["label"]) for row in rows] == [
        ("synthetic_sample.mp4", "2", "7", "Mossy frog")
    ]
    assert len(json.loads(texts["JSON"])[0]["segments"]) == 10
    assert json.loads(texts["JSON Lines"])["video"] == "synthetic_sample.mp4"
    assert texts["SRT"].decode().splitlines() == ["1", "00:00:02,000 --> 00:00:07,000", "Mossy frog"]
    assert texts["WebVTT"].startswith(b"WEBVTT") and b"Mossy frog" in texts["Audacity"]
    assert b'RELATIVE_MEDIA_URL="./synthetic_sample.mp4"' in texts["ELAN"]
    assert b'MEDIA_URL="file:///synthetic_sample.mp4"' in texts["ELAN"]
    assert texts["Timeline PNG"].startswith(b"\x89PNG") and b"<svg" in texts["Timeline SVG"]
    assert b"<html" in texts["Timeline HTML"]


def test_without_overlay_and_events_the_rest_is_shown(app, models, tmp_path):
    video = write_recording(tmp_path / "nothing.mp4", 3)
    shown = last_shown(app, models, str(video), "tiny", with_overlay=False, decoder="viterbi", min_event_segments=3)
    assert shown.overlay is None and len(shown.files) == 10
    assert shown.rows or "No event found in the 3.0 s of nothing.mp4" in shown.status


def test_options_that_do_not_fit_give_a_message(app, models):
    assert "decoder" in last_shown(app, models, SAMPLE, "tiny", decoder="guess").status
    assert "There is no model" in last_shown(app, models, SAMPLE, "other").status


def test_the_examples_are_videos_that_the_app_takes(app, tmp_path):
    examples = app.make_examples(tmp_path)
    assert Path(examples[0]).name == "sample.mp4" and len(set(examples)) == 3
    assert all(app.check_video(path, app.Settings()).has_audio for path in examples)


# ── models and labels ──


def test_only_so_many_models_stay_in_memory(app, models):
    first = models.load("tiny")
    assert models.load("tiny") is first
    models.load("audioclip")
    assert list(models.cache) == ["audioclip"]
    assert models.load("tiny") is not first and list(models.cache) == ["tiny"]


def test_a_model_says_whether_it_takes_labels(app, models):
    about, takes_labels = app.describe_model("tiny", models)
    assert "16 events: Amber gong" in about and "For labels of your own, choose another model" in about
    assert not takes_labels and BACKGROUND_LABEL not in about
    assert app.describe_model("audioclip", models)[1]
    about, takes_labels = app.describe_model("ave-clip-mini", app.Models(app.Settings()))
    assert takes_labels and "or without any for 28 events: Church bell" in about
    lost = app.Models(app.Settings({"lost": "/no/such/folder"}))
    about, takes_labels = app.describe_model("lost", lost)
    assert "The model lost cannot be loaded" in about and not takes_labels
    assert "The model lost cannot be loaded" in last_shown(app, lost, SAMPLE, "lost").status


def test_only_decoders_that_a_model_supports_are_offered(app, tmp_path):
    AVEClipConfig(problem_type="multi_label").save_pretrained(tmp_path)
    models = app.Models(app.Settings({"one": "ave-clip-tiny", "several": str(tmp_path), "lost": "/no/such/folder"}))
    offered = {name: [decoder for _, decoder in app.decoders_for(name, models)] for name in models.settings.models}
    assert "hysteresis" not in offered["one"] and "merge" in offered["one"] and offered["lost"] == offered["one"]
    assert offered["several"] == ["viterbi", "none", "hysteresis"]
    assert app._show_model("several", models)[2].choices == [
        tuple(pair) for pair in app.decoders_for("several", models)
    ]


def test_an_audioclip_looks_for_the_visitors_labels(app, models):
    options = {"decoder": "none", "agreement_threshold": -1.0}
    shown = last_shown(app, models, SAMPLE, "audioclip", "dog bark, bell", **options)
    assert shown.rows and {row[2] for row in shown.rows} <= {"dog bark", "bell"} and shown.overlay
    strict = last_shown(app, models, SAMPLE, "audioclip", "dog bark, bell", agreement_threshold=1.0)
    assert strict.rows == [] and "No event found" in strict.status


def test_the_default_model_takes_labels_or_none(app):
    models = app.Models(app.Settings())
    assert next(iter(models.settings.models)) == "ave-clip-mini"
    sample = str(app.SAMPLE)
    own = last_shown(app, models, sample, "ave-clip-mini", decoder="none")
    named = last_shown(app, models, sample, "ave-clip-mini", "dog, cat", decoder="none")
    assert {row[2] for row in named.rows} <= {"dog", "cat"} and named.overlay
    assert "Bark" in {row[2] for row in own.rows}
    assert "has a class for the label" in last_shown(app, models, sample, "ave-clip-mini", "qwertz").status
    assert "candidate_labels" in last_shown(app, models, sample, "ave-clip-tiny", "dog").status


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(" , ", "write one or more labels"), ("bell,bell", "twice"), ("x" * 200, "200 characters"), ("a\n" * 51, "51")],
)
def test_labels_that_cannot_be_used_give_a_message(app, models, labels, expected):
    assert expected in last_shown(app, models, SAMPLE, "audioclip", labels).status


def test_a_message_never_becomes_markup_or_a_template(app):
    shown = app.message(MARKUP)
    assert shown.count("<") == 2 and "{" not in shown and "$" not in shown


# ── what the Space needs ──


def test_requirements_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = setup["options"]["install_requires"].split() + setup["options.extras_require"]["space"].split()
    brought = {entry for entry in wanted if entry.startswith("gradio")}  # by the Space's sdk_version
    assert set((SPACE / "requirements.txt").read_text().split()) == set(wanted) - brought


def test_the_readme_tells_the_hub_what_to_run():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---")[1])
    assert (metadata["sdk"], metadata["app_file"]) == ("gradio", "app.py")
    assert metadata["sdk_version"].startswith("6.") and len(metadata["short_description"]) <= 60


# ── in a browser ──


@pytest.fixture(scope="module")
def page(app, tmp_path_factory):
    """Address of the running app, which offers the embedded model."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    folder = tmp_path_factory.mktemp("served")
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    patch.setenv("GRADIO_TEMP_DIR", str(folder / "cache"))
    settings = app.Settings({"ave-clip-tiny": "ave-clip-tiny"}, max_megabytes=5)
    built = app.build_app(settings, [SAMPLE])
    _, address, _ = app.launch(built, settings, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address
    built.close()
    patch.undo()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*BROWSER_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def wait_for(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come within {seconds} s")


def text_of(browser, element):
    return browser.execute_script("return document.getElementById(arguments[0])?.innerText || ''", element)


def choose(browser, address, file, expected):
    browser.get(address)
    selector = "#video input[type=file]"
    found = wait_for(lambda: browser.find_elements("css selector", selector), "the upload")
    found[0].send_keys(str(file))
    return wait_for(lambda: expected in text_of(browser, "status") and text_of(browser, "status"), expected)


def find_events(browser, last_button="download-timeline-html"):
    browser.find_element("id", "start").click()
    wait_for(lambda: browser.find_element("id", last_button).is_enabled(), "the last file", seconds=120)


def cells(browser):
    """What the table shows, once it shows anything."""
    script = (
        "return [...document.querySelectorAll('#events [role=row][data-index]')].map("
        "row => [...row.querySelectorAll('[role=gridcell]')].map(cell => cell.innerText.trim()))"
    )
    return wait_for(lambda: browser.execute_script(script), "the table")


def download(browser, folder, button, name):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    browser.find_element("id", button).click()
    path = folder / name
    wait_for(lambda: path.exists() and path.stat().st_size, name)
    return path


@needs_browser
def test_in_the_browser_a_file_is_uploaded_localized_and_downloaded(browser, page, tmp_path):
    clip = tmp_path / "Frosch & café.mp4"
    shutil.copy(SAMPLE, clip)
    assert "10.0 s, 192 x 144 pixels" in choose(browser, page, clip, "pixels")
    browser.execute_script("document.querySelector('.label-wrap').click()")  # the options' own values hold
    find_events(browser)
    assert cells(browser) == [["2.0 s", "7.0 s", "Mossy frog", "99 %"]]
    assert "Found 1 event" in text_of(browser, "status")
    seen = browser.execute_script(
        "return [document.querySelector('#timeline img').naturalWidth > 300,"
        " Math.round(document.querySelector('#overlay video').duration)]"
    )
    assert seen == [True, 10]
    href = browser.execute_script("return document.querySelector('#timeline img').src")
    stem = href.rsplit("/", 1)[1].split("-timeline")[0]
    assert "caf" in stem
    written = download(browser, tmp_path, "download-csv", unquote(stem) + ".csv")
    rows = list(csv.reader(written.read_text(encoding="utf-8").splitlines()))
    assert rows[1][1:4] == ["2", "7", "Mossy frog"]
    html = download(browser, tmp_path, "download-timeline-html", unquote(stem) + "-timeline.html")
    assert "Mossy frog" in html.read_text(encoding="utf-8")
    assert outside_addresses(browser, page) == set()


def outside_addresses(browser, page):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    assert any(address.startswith(page) for address in asked)
    return {address for address in asked if address.startswith("http") and not address.startswith(page)}


@needs_browser
def test_in_the_browser_an_unusable_file_gives_a_message(browser, page, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video " * 100)
    assert "Cannot read broken.mp4" in choose(browser, page, broken, "Cannot read")
    assert not browser.find_element("id", "download-csv").is_enabled()
    silent = write_recording(tmp_path / "silent.mp4", 1, sound=None)
    assert "silent.mp4 has no sound track" in choose(browser, page, silent, "no sound")


@needs_browser
def test_in_the_browser_a_run_that_cannot_start_says_why(browser, page):
    browser.get(page)
    wait_for(lambda: browser.find_elements("css selector", "#video input[type=file]"), "the upload")
    browser.find_element("id", "start").click()
    wait_for(lambda: "Choose a video first" in text_of(browser, "status"), "the message")


@needs_browser
def test_in_the_browser_a_file_above_the_limit_is_refused_before_it_is_sent(browser, page, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(6 * 2**20))
    browser.get(page)
    selector = "#video input[type=file]"
    wait_for(lambda: browser.find_elements("css selector", selector), "the upload")[0].send_keys(str(large))
    toast = "return document.querySelector('.toast-body')?.innerText || ''"
    assert "maximum allowed size of 5.0 M" in wait_for(lambda: browser.execute_script(toast), "the message")


@needs_browser
def test_in_the_browser_markup_in_labels_stays_text(app, browser, page, monkeypatch):
    segments = [{"start": float(i), "end": i + 1.0, "label": MARKUP, "score": 0.9} for i in range(10)]
    result = {"segments": segments, "events": [{"start": 0.0, "end": 10.0, "label": MARKUP, "score": 0.9}]}
    monkeypatch.setattr(app, "localize", lambda *_: result)
    choose(browser, page, SAMPLE, "pixels")
    find_events(browser)
    assert cells(browser)[0][2] == MARKUP
    assert browser.title == "Audio-visual events"
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
