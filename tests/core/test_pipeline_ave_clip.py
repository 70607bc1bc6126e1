"""The pipeline on real files: one, many, long, incomplete and unreadable ones."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.utils import logging

from ave_clip import AVEClipForLocalization
from ave_clip.core import label_space
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from ave_clip.core.streaming import WindowLogits, ahead, find_frame_sources
from ave_clip.core.video_io import probe_video
from tests.core.test_pipeline_zero_shot import save_tiny_audioclip
from tests.helpers.media import cut_off, write_recording
from tests.helpers.models import SYNTHETIC_SAMPLE, TINY_FOLDER, tiny_processor

TASK = "audio-visual-event-localization"


@pytest.fixture(scope="module")
def localizer(checkpoint):
    return pipeline(TASK, model=checkpoint, device="cpu")


@pytest.fixture
def own_localizer(checkpoint):
    """One that a test may change."""
    return pipeline(TASK, model=checkpoint, device="cpu")


def scores(result) -> list[float]:
    return [segment["score"] for segment in result["segments"]]


def test_a_clip_gives_what_processor_and_model_give(localizer, tmp_path):
    path = write_recording(tmp_path / "clip.mp4", 4.0)
    assert isinstance(localizer, AudioVisualEventLocalizationPipeline)
    result = localizer(str(path))
    inputs = localizer.processor(videos=path, return_tensors="pt")
    with torch.no_grad():
        expected = localizer.processor.post_process_localization(localizer.model(**inputs))[0]
    assert [segment["label"] for segment in result["segments"]] == [s["label"] for s in expected["segments"]]
    assert scores(result) == pytest.approx(scores(expected), abs=1e-5)
    assert [segment["end"] for segment in result["segments"]] == [1, 2, 3, 4]


def test_lists_batches_and_generators_agree(localizer, tmp_path):
    paths = [str(write_recording(tmp_path / f"{seconds}.mp4", seconds)) for seconds in (1.0, 12.0, 3.0)]
    single = [localizer(path) for path in paths]
    assert [len(result["segments"]) for result in single] == [1, 12, 3]
    for results in (localizer(paths), localizer(paths, batch_size=2), list(localizer(path for path in paths))):
        for result, expected in zip(results, single, strict=True):
            assert scores(result) == pytest.approx(scores(expected), abs=1e-5)
            assert len(result["events"]) == len(expected["events"])


def test_a_generator_is_consumed_as_results_are(localizer, tmp_path):
    path, taken = str(write_recording(tmp_path / "clip.mp4", 1.0)), []

    def paths():
        for number in range(5):
            taken.append(number)
            yield path

    results = iter(localizer(paths()))
    next(results)
    assert len(taken) <= 3


def test_a_long_video_is_the_average_over_its_windows(localizer, tmp_path):
    path = write_recording(tmp_path / "long.mp4", 23.0)
    result = localizer(str(path), decoder="none", overlap=0.5)
    inputs = localizer.processor(videos=path, return_tensors="pt")
    total, count = torch.zeros(23, 4), torch.zeros(23, 1)
    with torch.no_grad():
        for start in (0, 5, 10, 13):
            part = {name: value[:, start : start + 10] for name, value in inputs.items()}
            total[start : start + 10] += localizer.model(**part).logits[0]
            count[start : start + 10] += 1
    expected = (total / count).softmax(-1).max(dim=-1).values
    assert scores(result) == pytest.approx(expected.tolist(), abs=1e-5)


class CountingModel:
    """Stands for a localizer: the logits of a segment are its number and that of its window's first segment."""

    device = torch.device("cpu")
    config = SimpleNamespace(num_labels=2)

    def __init__(self):
        self.starts = []

    def localize(self, visual, audio):
        self.starts += visual[:, 0, 0].int().tolist()
        first = visual[:, :1, 0].expand(visual.shape[:2])
        return SimpleNamespace(logits=torch.stack([visual[..., 0], first], dim=-1))


@pytest.mark.parametrize("num_segments", [1, 9, 10, 11, 20, 23, 701])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_windows_cover_every_segment_and_average(num_segments, overlap, block):
    model = CountingModel()
    windows, features = WindowLogits(model, 10, overlap), torch.arange(num_segments).float()[:, None]
    parts = [windows.add(part, part) for part in features.split(block)]
    logits = torch.cat([*parts, windows.finish()])
    stride, last = 10 - round(10 * overlap), max(0, num_segments - 10)
    starts = [*range(0, last, stride), last]
    assert model.starts == starts
    assert logits[:, 0].tolist() == list(range(num_segments))
    covering = [[start for start in starts if start <= segment < start + 10] for segment in range(num_segments)]
    assert logits[:, 1].tolist() == pytest.approx([np.mean(found) for found in covering])


def test_segments_are_given_out_before_the_video_ends(localizer, tmp_path):
    path = str(write_recording(tmp_path / "long.mp4", 43.0))
    parts = list(localizer.stream(path, overlap=0.5, decoder="merge"))
    expected, raw = localizer(path, overlap=0.5, decoder="merge"), localizer(path, overlap=0.5, decoder="none")
    early = [segment for part in parts[:-1] for segment in part["segments"]]
    assert [len(part["segments"]) for part in parts[:-1]] == [2, 10, 10, 10, 1]
    assert parts[-1] == expected
    assert [(s["start"], s["end"], s["label"]) for s in early] == [
        (s["start"], s["end"], s["label"]) for s in raw["segments"][:33]
    ]
    assert scores({"segments": early}) == pytest.approx(scores(raw)[:33])


def test_reading_goes_on_in_a_thread_and_stops_with_its_reader():
    made = []

    def items():
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            made.append("closed")

    reader = ahead(items())
    assert [next(reader), next(reader)] == [0, 1]
    reader.close()
    assert made[-1] == "closed" and len(made) <= 6
    assert list(ahead(iter_then_fail(3, None))) == [0, 1, 2]


def iter_then_fail(count, error):
    yield from range(count)
    if error is not None:
        raise error


def test_an_error_of_the_reading_thread_comes_after_the_items_before_it():
    reader = ahead(iter_then_fail(2, ValueError("damaged")))
    assert [next(reader), next(reader)] == [0, 1]
    with pytest.raises(ValueError, match="damaged"):
        next(reader)


def test_frames_are_encoded_once_although_windows_overlap(localizer, tmp_path, monkeypatch):
    path = write_recording(tmp_path / "long.mp4", 23.0)
    encoded = []
    encode = type(localizer.model).encode
    monkeypatch.setattr(
        type(localizer.model), "encode", lambda self, *args: encoded.append(int(args[3].sum())) or encode(self, *args)
    )
    localizer(str(path), overlap=0.9)
    assert encoded == [2, 10, 10, 1]


def test_silent_video_yields_no_events_and_neither_does_audio_alone(localizer, tmp_path):
    silent = write_recording(tmp_path / "silent.mp4", 3.0, sound=None)
    audio = write_recording(tmp_path / "only.m4a", 2.0, picture=None)
    for path, length in ((silent, 3), (audio, 2)):
        result = localizer(str(path))
        assert result["events"] == []
        assert [s["label"] for s in result["segments"]] == ["background"] * length
        assert scores(result) == [1.0] * length


def test_a_truncated_video_gives_the_part_that_is_there(localizer, tmp_path):
    whole = write_recording(tmp_path / "clip.webm", 8.0)
    result = localizer(str(cut_off(whole, 0.5)))
    assert 1 <= len(result["segments"]) < 8


def test_a_file_that_declares_no_duration_has_its_real_times(localizer, tmp_path):
    whole = write_recording(tmp_path / "clip.webm", 4.0)
    live = tmp_path / "live.webm"
    with av.open(str(whole)) as source, live.open("wb") as target:
        unseekable = SimpleNamespace(write=target.write)  # as a browser's recorder or a pipe writes it
        with av.open(unseekable, "w", format="webm", options={"live": "1"}) as container:
            streams = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    container.mux(packet)
    assert probe_video(live).duration_seconds == 0
    steps = []
    result = localizer(str(live), progress=lambda *step: steps.append(step[1:]))
    assert [(s["start"], s["end"]) for s in result["segments"]] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert steps == [(2, 3), (4, 4)]


def test_a_silent_film_that_is_cut_off_is_only_as_long_as_what_is_there(localizer, tmp_path):
    whole = write_recording(tmp_path / "silent.webm", 8.0, sound=None)
    result = localizer(str(cut_off(whole, 0.5)))
    assert 1 <= len(result["segments"]) < 8 and result["events"] == []


def test_top_k_and_heatmaps_on_demand(localizer, tmp_path):
    result = localizer(str(write_recording(tmp_path / "clip.mp4", 2.0)), top_k=3, return_heatmaps=True)
    for segment in result["segments"]:
        best = [entry["score"] for entry in segment["top_k"]]
        assert len(best) == 3 and best == sorted(best, reverse=True)
    assert result["heatmaps"].shape == (2, 2, 2)
    np.testing.assert_allclose(result["heatmaps"].sum(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.usefixtures("progress_bars")
def test_times_are_those_of_the_segments_and_end_with_the_video(own_localizer, tmp_path):
    own_localizer.segmenter.video_processor.segment_seconds = 0.5
    with torch.no_grad():
        own_localizer.model.category_head.classifier.bias[1] = 100  # one event throughout
    path = str(write_recording(tmp_path / "clip.mkv", 2.3))
    times = [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2), (2, 2.3)]
    result = own_localizer(path)
    assert [(one["start"], one["end"]) for one in result["segments"]] == [
        *times[:-1],
        (2, pytest.approx(2.3, abs=0.05)),
    ]
    (event,) = result["events"]
    assert (event["start"], event["end"], event["label"]) == (0, result["segments"][-1]["end"], "Bark")
    assert list(own_localizer.stream(path))[-1] == result


def test_streamed_segments_have_the_times_of_the_complete_video(own_localizer, tmp_path):
    own_localizer.segmenter.video_processor.segment_seconds = 0.5
    path = str(write_recording(tmp_path / "clip.mkv", 12.0))
    *parts, whole = own_localizer.stream(path, num_segments=4)
    told = [segment for part in parts for segment in part["segments"]]
    times = [(one["start"], one["end"]) for one in whole["segments"]]
    assert len(told) > 8
    assert (
        [(one["start"], one["end"]) for one in told]
        == times[: len(told)]
        == [(index / 2, index / 2 + 0.5) for index in range(len(told))]
    )


def test_the_shortest_event_is_the_models_unless_the_call_sets_it(own_localizer, tmp_path, monkeypatch):
    asked = []
    decode = label_space.decode_labels
    monkeypatch.setattr(label_space, "decode_labels", lambda *args: asked.append(args) or decode(*args))
    path = str(write_recording(tmp_path / "clip.mkv", 2.0))
    own_localizer.model.config.min_event_segments = 2
    own_localizer(path)
    own_localizer(path, min_event_segments=5)
    assert [(decoder, shortest) for _, decoder, shortest in asked] == [("merge", 2), ("merge", 5)]


def test_a_progress_bar_is_shown_unless_switched_off(localizer, tmp_path, capsys):
    path = str(write_recording(tmp_path / "clip.mp4", 2.0))
    localizer(path, progress=True)
    assert "100%" in capsys.readouterr().err
    logging.disable_progress_bar()
    assert localizer(path, progress=True)["segments"] and capsys.readouterr().err == ""


def test_progress_is_told_after_each_block(localizer, tmp_path):
    path, steps = str(write_recording(tmp_path / "long.mp4", 23.0)), []
    localizer(path, progress=lambda *step: steps.append(step))
    assert [step[1:] for step in steps] == [(2, 23), (12, 23), (22, 23), (23, 23)]
    assert steps[0][0].endswith("long.mp4")


@pytest.fixture
def encoded_frames(localizer, monkeypatch):
    """How many frames each call of the image tower got."""
    counts, encode = [], localizer.model._frame_features

    def counting(frames):
        counts.append(len(frames))
        return encode(frames)

    monkeypatch.setattr(localizer.model, "_frame_features", counting)
    return counts


def test_exact_repeats_are_encoded_once_without_changing_the_result(localizer, encoded_frames):
    shown = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    frames = shown[[0, 0, 0, 1, 1, 0, 2, 2, 2, 2, 3, 3]]  # two a segment
    video = {"frames": frames, "audio": np.zeros(6 * 8000, np.float32), "sampling_rate": 8000}
    plain = localizer(video, decoder="none", return_heatmaps=True)
    num_plain = sum(encoded_frames)
    shared = localizer(video, decoder="none", return_heatmaps=True, frame_tolerance=0)
    assert (num_plain, sum(encoded_frames) - num_plain) == (12, 6)  # the fifth picture begins the second block
    assert scores(shared) == pytest.approx(scores(plain), abs=1e-4)
    np.testing.assert_allclose(shared["heatmaps"], plain["heatmaps"], atol=1e-4)


def test_shared_frames_stay_with_their_video_in_a_batch(localizer, tmp_path):
    rng = np.random.default_rng(0)
    videos = [
        {"frames": np.repeat(rng.integers(0, 255, (4, 64, 64, 3), dtype=np.uint8), count, axis=0)}
        for count in (3, 5, 1)
    ]
    for video in videos:
        video |= {"audio": rng.normal(size=len(video["frames"]) // 2 * 8000).clip(-1, 1), "sampling_rate": 8000}
    expected = [localizer(video, decoder="none") for video in videos]
    shared = localizer(videos, decoder="none", frame_tolerance=0, batch_size=3)
    for result, alone in zip(shared, expected, strict=True):
        assert scores(result) == pytest.approx(scores(alone), abs=1e-4)


def test_frames_within_the_tolerance_of_the_last_encoded_one_share_its_encoding():
    levels = torch.tensor([[10, 11, 12], [13, 14, 12]])  # a slow fade: 12 is 2 away from 10, 13 is 3 away
    pixels = levels.to(torch.uint8).view(1, 2, 3, 1, 1, 1).expand(1, 2, 3, 3, 4, 4)
    everywhere = torch.ones(1, 2, 3, dtype=torch.bool)
    assert find_frame_sources(pixels, everywhere, 2).flatten().tolist() == [0, 0, 0, 3, 3, 3]
    assert find_frame_sources(pixels, everywhere, 0.5).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    gap = torch.tensor([[[False, True, True], [False, True, False]]])
    assert find_frame_sources(pixels, gap, 2)[gap].tolist() == [1, 1, 4]


def test_decoded_arrays_are_taken_too(localizer):
    frames = np.random.default_rng(0).integers(0, 255, (50, 64, 64, 3), dtype=np.uint8)
    sound = np.zeros(16000, np.float32)
    result = localizer({"frames": frames, "frame_rate": 25, "audio": sound, "sampling_rate": 8000})
    assert len(result["segments"]) == 2


def test_a_decoded_video_without_audio_is_background(localizer, caplog):
    frames = np.random.default_rng(0).integers(0, 255, (65, 64, 64, 3), dtype=np.uint8)
    result = localizer({"frames": frames, "frame_rate": 25})
    assert [(segment["end"], segment["label"]) for segment in result["segments"]] == [
        (1.0, "background"),
        (2.0, "background"),
        (2.6, "background"),
    ]
    assert result["events"] == []


def test_the_owners_own_optimization_is_kept(checkpoint):
    model = AVEClipForLocalization.from_pretrained(checkpoint).optimize_for_inference("bfloat16")
    localizer = AudioVisualEventLocalizationPipeline(model=model, processor=tiny_processor(), device="cpu")
    assert localizer.model.vision_model.fast_path.options.dtype == torch.bfloat16


def test_streaming_takes_the_options_of_a_call(localizer, tmp_path):
    path = str(write_recording(tmp_path / "clip.mp4", 2.0))
    assert list(localizer.stream(path, batch_size=2, num_workers=0))[-1] == localizer(path)


def test_options_given_at_construction_hold_for_every_call(checkpoint, tmp_path):
    localizer = pipeline(TASK, model=checkpoint, device="cpu", decoder="none", top_k=1)
    result = localizer(str(write_recording(tmp_path / "clip.mp4", 1.0)))
    assert len(result["segments"][0]["top_k"]) == 1


def test_saved_pipeline_loads_again(localizer, tmp_path):
    path = str(write_recording(tmp_path / "clip.mp4", 2.0))
    localizer.save_pretrained(tmp_path / "saved")
    again = pipeline(TASK, model=str(tmp_path / "saved"), device="cpu")
    assert again(path) == localizer(path)
    assert again.processor.to_dict() == tiny_processor().to_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", ["tiny", "embedded"])
def test_half_precision_weights_give_the_same_labels(checkpoint, dtype, model):
    folder = checkpoint if model == "tiny" else TINY_FOLDER
    sample = str(SYNTHETIC_SAMPLE)
    half, full = (pipeline(TASK, model=folder, device="cpu", dtype=kind) for kind in (dtype, torch.float32))
    trunk = [p.dtype for n, p in half.model.named_parameters() if "fbsp" not in n]
    assert set(trunk) == {dtype}
    assert scores(half(sample)) == pytest.approx(scores(full(sample)), abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "best"}, "must be one of"),
        ({"overlap": 1.0}, "got 1.0"),
        ({"min_event_segments": 0}, ">= 1, got 0"),
        ({"min_event_segment": 3}, "Unknown options"),
        ({"progress": "yes"}, "got 'yes'"),
        ({"overlap": "half"}, "got 'half'"),
        ({"frame_tolerance": -0.5}, "got -0.5"),
        ({"frame_tolerance": "some"}, "got 'some'"),
    ],
)
def test_bad_options_are_named(localizer, options, message):
    with pytest.raises(ValueError, match=message):
        localizer("clip.mp4", **options)


def test_bad_files_are_named(localizer, tmp_path):
    fake = tmp_path / "fake.mp4"
    fake.write_text("this is not a video")
    with pytest.raises(ValueError, match=r"fake\.mp4"):
        localizer(str(fake))
    with pytest.raises(ValueError, match="A decoded video is a dictionary"):
        localizer({"video": "x"})
    with pytest.raises(ValueError, match="Got a int as video"):
        localizer(5)
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    for rate in (0, "4"):
        with pytest.raises(ValueError, match="frame_rate"):
            localizer({"frames": frames, "frame_rate": rate})


def decoded(num_channels: int = 3, rate: int = 44100) -> dict:
    """Two seconds of colour and a tone."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 32, 48, num_channels), dtype=np.uint8)
    tone = np.sin(np.arange(2 * rate) / rate * 2 * np.pi * 440).astype(np.float32) / 2
    return {"frames": frames, "frame_rate": 10, "audio": tone, "sampling_rate": rate}


def test_decoded_frames_may_be_rgba_or_grey_and_rates_fractions(localizer):
    video = decoded(num_channels=4)
    plain = localizer({**video, "frames": video["frames"][..., :3]})
    for frames in (video["frames"], np.moveaxis(video["frames"], -1, 1)):
        for rate in (Fraction(10), np.float32(10), np.int64(10)):
            result = localizer({**video, "frames": frames, "frame_rate": rate})
            assert result == plain and type(result["segments"][-1]["end"]) is float
    grey = localizer({**video, "frames": video["frames"][..., :1]})
    assert grey == localizer({**video, "frames": video["frames"][..., [0, 0, 0]]})


def test_decoded_audio_at_another_rate_is_resampled(localizer):
    expected = scores(localizer(decoded()))
    for rate in (16000, 22050, 44099, 48000.0, 96000):
        video = {**decoded(rate=int(rate)), "sampling_rate": rate}
        assert scores(localizer(video)) == pytest.approx(expected, abs=0.02)
    for wrong in (0, -1, 44100.5, "44100", True):
        with pytest.raises(ValueError, match="`sampling_rate` must be a whole number of Hz"):
            localizer({**decoded(), "sampling_rate": wrong})


def test_good_videos_of_a_list_keep_their_results_on_demand(localizer, checkpoint, tmp_path, monkeypatch):
    good, bad = str(write_recording(tmp_path / "good.mp4", 2.0)), str(tmp_path / "bad.mp4")
    Path(bad).write_text("no video")
    expected = localizer(good)
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        localizer([good, bad])
    first, broken, last = localizer([good, bad, good], on_error="return")
    assert first == last == expected
    assert (broken["segments"], broken["events"]) == ([], []) and "bad.mp4" in broken["error"]
    assert localizer(bad, on_error="return", batch_size=2, num_workers=0) == broken
    assert localizer([bad, good], on_error="return", batch_size=2) == [broken, expected]
    assert list(localizer(iter([bad, good]), on_error="return", batch_size=2)) == [broken, expected]
    always = pipeline(TASK, model=checkpoint, device="cpu", on_error="return")
    assert always([bad, good]) == [broken, expected]
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        always(bad, on_error="raise")
    for wrong in ({"on_error": "skip"}, {"decoder": "no"}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be"):
            localizer([good], **{"on_error": "return", **wrong})


def test_home_folders_and_file_urls_are_paths(localizer, tmp_path, monkeypatch):
    path = write_recording(tmp_path / "a clip.mp4", 1.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = localizer(str(path))
    assert localizer("~/a clip.mp4") == localizer(path.as_uri()) == localizer(Path("~/a clip.mp4")) == expected
    for missing in ("~/other.mp4", "file:///nowhere/x.mp4", "file://server/x.mp4"):
        with pytest.raises(ValueError, match=f"Cannot read {missing}"):
            localizer(missing)


def test_a_model_of_the_other_pipeline_is_refused_in_one_sentence(localizer, checkpoint, tmp_path):
    save_tiny_audioclip(tmp_path)
    zero_shot = f"zero-shot-{TASK}"
    for task, model, processor in (
        (zero_shot, checkpoint, None),
        (zero_shot, localizer.model, localizer.processor),
        (TASK, str(tmp_path), None),
    ):
        with pytest.raises(ValueError, match=r"^The model is of the type") as caught:
            pipeline(task, model=model, processor=processor)
        assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 300


def test_frames_resized_on_the_device_give_the_same_segments(localizer, tmp_path, monkeypatch):
    """The way of GPUs, here on the CPU: small frames of native size are prepared in blocks, large ones one by one."""
    path = str(write_recording(tmp_path / "clip.mp4", 3.0))
    expected = localizer(path, num_frames_per_segment=3)
    monkeypatch.setattr(type(localizer), "resizes_on_device", True)
    assert localizer(path, num_frames_per_segment=3) == expected
    monkeypatch.setattr("ave_clip.core.pipeline_base._GPU_MAX_FRAME_BYTES", 1000)
    assert localizer(path, num_frames_per_segment=3, decode_threads=3) == expected
