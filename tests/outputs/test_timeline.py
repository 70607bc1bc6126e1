"""The timeline as PNG, SVG and HTML page; the page also in a browser, where one is installed."""

import base64
import html.parser
import json
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from ave_clip.outputs.timeline import plot_timeline
from ave_clip.outputs.timeline_figure import tick_times
from tests.helpers.media import write_recording

SVG = "{http://www.w3.org/2000/svg}"
MARKUP = '</script><script>window.broken=1</script><b>$x^2$ & "q"</b>'
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


def result_of(labels: list[str]) -> dict:
    segments = [
        {"start": float(index), "end": index + 1.0, "label": label, "score": 0.8} for index, label in enumerate(labels)
    ]
    return {"segments": segments, "events": [segment for segment in segments if segment["label"] != "background"]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(write_recording(tmp_path_factory.mktemp("timeline") / "a clip.mp4", 4.0))


@pytest.fixture
def result() -> dict:
    return result_of(["background", "Bark", MARKUP, "background"])


def svg_texts(path: Path) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(path).iter(f"{SVG}text")]


class Page(html.parser.HTMLParser):
    """Tags and texts of a page, as a browser's parser sees them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[int, str] = {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.texts[len(self.tags)] = self.texts.get(len(self.tags), "") + text

    def text_of(self, **attributes) -> str:
        number = next(
            number for number, (_, found) in enumerate(self.tags, start=1) if attributes.items() <= found.items()
        )
        return self.texts[number]

    @property
    def data(self) -> dict:
        return json.loads(self.text_of(id="data"))


@pytest.mark.parametrize("theme, page", [("light", (255, 255, 255)), ("dark", (20, 23, 27))])
def test_png_has_the_themes_colours_and_the_events(clip, result, tmp_path, theme, page):
    plot_timeline([(clip, result)], tmp_path / "out.png", theme=theme)
    picture = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
    assert picture.shape[1] == 1800 and 500 < picture.shape[0] < 800
    edges = np.concatenate([picture[:10].reshape(-1, 3), picture[:, :10].reshape(-1, 3), picture[-10:].reshape(-1, 3)])
    assert (edges == page).all()  # nothing is cut off
    for colour in [(0, 114, 178), (230, 159, 0), (139, 146, 154)]:
        assert (picture == colour).all(axis=2).sum() > 5000


def test_svg_contains_its_texts_as_texts(clip, result, tmp_path):
    plot_timeline([(clip, result)], tmp_path / "out.svg", truth={clip: [{"start": 0.0, "end": 2.0, "label": "Cat"}]})
    texts = svg_texts(tmp_path / "out.svg")
    assert {"a clip.mp4", "Bark", "Cat", "80 %", "0:00", "0:04", "audio", "score"} <= set(texts)
    assert "0:04 min · filled: found · hatched: true" in texts
    assert any(text.startswith("</script>") for text in texts)
    assert not list(ElementTree.parse(tmp_path / "out.svg").iter(f"{SVG}script"))


def test_svg_is_the_same_every_time(clip, result, tmp_path):
    for name in ("one.svg", "two.svg"):
        plot_timeline([(clip, result)], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_several_videos_share_colours_and_stand_below_each_other(clip, tmp_path):
    results = [(clip, result_of(["Bark", "Cat"])), ("gone.mp4", result_of(["Cat", "Cat"]))]
    plot_timeline(results, tmp_path / "out.html")
    data = Page(tmp_path / "out.html").data
    assert [[lane["name"] for lane in video["lanes"]] for video in data["videos"]] == [["Bark", "Cat"], ["Cat"]]
    assert data["styles"]["Bark"]["colour"] == "#0072b2" and data["styles"]["Cat"]["colour"] == "#e69f00"
    assert data["videos"][1]["note"] == "The video could not be read when this page was made."
    plot_timeline(results, tmp_path / "out.svg")
    assert svg_texts(tmp_path / "out.svg").count("Cat") == 2


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_a_video_without_events_or_segments_is_drawn(clip, tmp_path, suffix):
    results = [(clip, result_of(["background"] * 4)), (clip, {"segments": [], "events": []})]
    plot_timeline(results, tmp_path / f"out.{suffix}")
    assert (tmp_path / f"out.{suffix}").stat().st_size > 1000


def test_segments_of_an_hour_are_joined(tmp_path):
    labels = (["Bark"] * 100 + ["background"] * 200) * 12
    plot_timeline([("gone.mp4", result_of(labels))], tmp_path / "out.html")
    segments = Page(tmp_path / "out.html").data["videos"][0]["segments"]
    assert len(segments) == 24 and (segments[1]["start"], segments[1]["end"]) == (100, 300)
    assert segments[1]["score"] == pytest.approx(0.8)


@pytest.mark.parametrize("duration", [0, 0.4, 1, 10, 59, 300, 3600, 86400, 10**6])
def test_ticks_are_few_and_within(duration):
    ticks = tick_times(duration)
    assert 1 <= len(ticks) <= 13 and ticks[0] == 0 and ticks[-1] <= duration


def test_page_needs_nothing_else(clip, result, tmp_path):
    plot_timeline([(clip, result)], tmp_path / "out.html")
    page = Page(tmp_path / "out.html")
    assert not [tag for tag, found in page.tags if {"src", "href", "srcset", "action"} & set(found)]
    (policy,) = [found["content"] for tag, found in page.tags if "http-equiv" in found]
    assert policy.startswith("default-src 'none';") and "http" not in policy
    urls = set(re.findall(r"https?://[^\"' ]+", (tmp_path / "out.html").read_text()))
    assert urls == {"http://www.w3.org/2000/svg"}  # a name, nothing to load


def test_labels_and_names_never_become_markup(result, tmp_path):
    name = "<img src=x onerror=alert(1)>%DATA%&.mp4"
    write_recording(tmp_path / "clip.mp4", 4.0).rename(tmp_path / name)
    plot_timeline([(str(tmp_path / name), result)], tmp_path / "out.html")
    page = Page(tmp_path / "out.html")
    assert [tag for tag, _ in page.tags].count("script") == 2 and "img" not in [tag for tag, _ in page.tags]
    (video,) = page.data["videos"]
    assert video["title"] == name and video["events"][1]["label"] == MARKUP
    title = next(number for number, (tag, _) in enumerate(page.tags, start=1) if tag == "title")
    assert page.texts[title].startswith(name)


def test_page_embeds_a_small_mp4_as_it_is(clip, result, tmp_path):
    plot_timeline([(clip, result)], tmp_path / "out.html")
    (video,) = Page(tmp_path / "out.html").data["videos"]
    kind, content = video["source"].split(",")
    assert kind == "data:video/mp4;base64" and base64.b64decode(content) == Path(clip).read_bytes()
    assert video["note"] == "" and len(video["thumbnails"]) == 9 and max(video["peaks"]) == 100


def test_page_encodes_what_browsers_do_not_play(result, tmp_path):
    clip = write_recording(tmp_path / "clip.avi", 4.0)
    plot_timeline([(str(clip), result)], tmp_path / "out.html")
    (video,) = Page(tmp_path / "out.html").data["videos"]
    (tmp_path / "small.mp4").write_bytes(base64.b64decode(video["source"].split(",")[1]))
    with av.open(str(tmp_path / "small.mp4")) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert len(list(container.decode(video=0))) == 100
    assert video["note"] == "A smaller copy of the video."


@pytest.mark.parametrize(
    "options, note",
    [
        ({"embed_video": False}, "The video is not part of this page."),
        ({"max_embedded_bytes": 500}, "The video is too large to be part of this page."),
    ],
)
def test_page_can_leave_the_video_out(clip, result, tmp_path, options, note):
    plot_timeline([(clip, result)], tmp_path / "out.html", **options)
    (video,) = Page(tmp_path / "out.html").data["videos"]
    assert (video["source"], video["note"]) == (None, note)


def test_without_matplotlib_pages_work_and_images_say_what_to_install(clip, result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plot_timeline([(clip, result)], tmp_path / "out.html")
    with pytest.raises(ImportError, match=re.escape('`pip install "ave-clip[viz]"`')):
        plot_timeline([(clip, result)], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output": "out.pdf"}, "must end in .png, .svg, .html"),
        ({"theme": "blue"}, "theme must be one of"),
        ({"results": []}, "no results to draw"),
        ({"results": [("a.mp4", {"events": []})]}, "no list of 'segments'"),
        ({"truth": {"b.mp4": []}}, "truth of b.mp4, which is not one"),
        ({"truth": {"a.mp4": [{"start": 0, "end": 1}]}}, "label is missing"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    options = {"results": [("a.mp4", {"segments": [], "events": []})], "output": "out.html", **change}
    with pytest.raises(ValueError, match=message):
        plot_timeline(**options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_results_that_are_no_pairs_and_swapped_arguments_are_told_the_right_call(clip, result, tmp_path, suffix):
    output = str(tmp_path / f"x{suffix}")
    for arguments in (
        (result, output),
        ((clip, result), output),
        ([result], output),
        ([(result, clip)], output),
        ({clip: result}, output),
        (clip, output),
        (output, [(clip, result)]),
        ([(clip, result)], None),
    ):
        with pytest.raises(ValueError, match=r"plot_timeline\(\[\("):
            plot_timeline(*arguments)
    with pytest.raises(OSError, match=r"nowhere/x\.") as caught:
        plot_timeline([(clip, result)], tmp_path / "nowhere" / f"x{suffix}")
    assert "ave-clip-" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_the_result_of_a_video_that_could_not_be_read_is_drawn(tmp_path):
    result = {"segments": [], "events": [], "error": "Cannot read gone.mp4"}
    for suffix in (".png", ".html"):
        plot_timeline([("gone.mp4", result)], tmp_path / f"x{suffix}")
        assert (tmp_path / f"x{suffix}").stat().st_size > 0


def test_more_videos_than_an_image_can_show_are_refused(tmp_path):
    with pytest.raises(ValueError, match="101 videos, but an image shows at most 100"):
        plot_timeline([("gone.mp4", {"segments": [], "events": []})] * 101, tmp_path / "out.png")


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    if BROWSER is None or DRIVER is None:
        pytest.skip("Chromium or its driver is not installed")
    assert selenium
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,900",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def wait_until(browser, script: str):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(f"return {script}"))


def test_the_page_works_in_a_browser(browser, clip, result, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    plot_timeline([(clip, result)], tmp_path / "out.html", truth={clip: [{"start": 0.0, "end": 2.0, "label": "Bark"}]})
    browser.get((tmp_path / "out.html").as_uri())
    wait_until(browser, "document.querySelector('video').readyState >= 1")
    names = [node.text for node in browser.find_elements(By.CSS_SELECTOR, ".name")]
    assert names[1:3] == ["score", "Bark"] and names[3].startswith("</script>") and names[4] == "audio"
    assert browser.execute_script("return window.broken") is None

    browser.find_elements(By.CSS_SELECTOR, ".event")[1].click()  # seeks to its start
    slider = browser.switch_to.active_element
    assert (slider.get_attribute("role"), slider.get_attribute("aria-valuenow")) == ("slider", "2.0")
    assert slider.get_attribute("aria-valuetext").startswith("0:02, </script>")
    wait_until(browser, "document.querySelector('video').currentTime === 2")
    slider.send_keys(Keys.ARROW_LEFT)
    assert slider.get_attribute("aria-valuetext") == "0:01, Bark 80 %"
    slider.send_keys("n")
    assert slider.get_attribute("aria-valuenow") == "2.0"
    slider.send_keys(Keys.HOME)
    slider.send_keys(" ")
    wait_until(browser, "document.querySelector('video').currentTime > 0.3")  # it plays, and the cursor runs
    wait_until(browser, "parseFloat(document.querySelector('.cursor').style.left) > 7")
    slider.send_keys(" ")
    wait_until(browser, "document.querySelector('video').paused")
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_the_page_follows_the_system_and_its_button(browser, clip, result, tmp_path):
    from selenium.webdriver.common.by import By

    plot_timeline([(clip, result)], tmp_path / "out.html")
    shown = "document.documentElement.dataset.shown"
    for scheme in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get((tmp_path / "out.html").as_uri())
        assert browser.execute_script(f"return {shown}") == scheme
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script(f"return {shown}") == "dark"
    background = "return getComputedStyle(document.body).backgroundColor"
    assert browser.execute_script(background) == "rgb(20, 23, 27)"


def test_without_a_video_the_cursor_runs_by_itself(browser, clip, result, tmp_path):
    from selenium.webdriver.common.by import By

    plot_timeline([(clip, result)], tmp_path / "out.html", embed_video=False)
    browser.get((tmp_path / "out.html").as_uri())
    assert not browser.find_element(By.CSS_SELECTOR, "video").is_displayed()
    browser.find_element(By.XPATH, "//button[text()='Play']").click()
    wait_until(browser, "parseFloat(document.querySelector('.cursor').style.left) > 5")
    browser.find_element(By.XPATH, "//button[text()='Pause']").click()
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(clip)
    wait_until(browser, "document.querySelector('video').readyState >= 1")
    assert browser.find_element(By.CSS_SELECTOR, "video").is_displayed()


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_on_the_page_is_wider_than_the_window(browser, clip, tmp_path, width):
    plot_timeline([(clip, result_of(["A label as long as people write them " * 4] * 4))], tmp_path / "out.html")
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((tmp_path / "out.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
