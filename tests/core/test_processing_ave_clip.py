"""From files and arrays to the model's inputs, and from its outputs to events."""

import warnings
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from ave_clip.core.processing_ave_clip import AVEClipProcessor
from ave_clip.core.video_io import VideoReadError, read_video
from tests.helpers.media import numbered_picture, write_recording


def square_picture(number: int) -> np.ndarray:
    return numbered_picture(number, height=64, width=96)


def output_of(labels: list[list[int]], num_labels: int = 4) -> SimpleNamespace:
    logits = torch.nn.functional.one_hot(torch.tensor(labels), num_labels).float() * 5
    return SimpleNamespace(logits=logits)


def test_a_file_gives_fixed_shapes(processor, tmp_path):
    path = write_recording(tmp_path / "clip.mp4", 3.0)
    inputs = processor(videos=str(path), return_tensors="pt")
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "pixel_values": (1, 3, 2, 3, 64, 64),
        "frame_mask": (1, 3, 2),
        "input_values": (1, 3, 8000),
        "segment_mask": (1, 3),
    }
    assert inputs["segment_mask"].all() and inputs["frame_mask"].all()
    assert 8000 < inputs["input_values"].abs().max() < 32768  # int16 range


def test_shorter_videos_are_padded_and_masked(processor, tmp_path):
    long = write_recording(tmp_path / "long.mp4", 3.0)
    short = write_recording(tmp_path / "short.mp4", 1.0)
    both = processor(videos=[str(short), str(long)], return_tensors="pt")
    alone = processor(videos=short, return_tensors="pt")
    assert both["segment_mask"].tolist() == [[True, False, False], [True, True, True]]
    assert not both["frame_mask"][0, 1:].any() and (both["input_values"][0, 1:] == 0).all()
    assert torch.equal(both["pixel_values"][:1, :1], alone["pixel_values"])
    assert torch.equal(both["input_values"][:1, :1], alone["input_values"])


def test_bytes_and_file_objects_give_what_the_path_gives(processor, tmp_path):
    path = write_recording(tmp_path / "clip.mp4", 1.0)
    expected = processor(videos=path, return_tensors="pt")
    with open(path, "rb") as file:
        for source in (path.read_bytes(), file):
            inputs = processor(videos=source, return_tensors="pt")
            assert torch.equal(inputs["pixel_values"], expected["pixel_values"])


def test_pixels_are_those_of_clips_image_processor(processor):
    frames = np.random.default_rng(0).integers(0, 255, (2, 90, 120, 3), dtype=np.uint8)
    pixels = processor(videos=frames, return_tensors="pt")["pixel_values"][0, 0]
    stock = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    torch.testing.assert_close(pixels, stock(list(frames), return_tensors="pt")["pixel_values"], rtol=0, atol=0.02)


def test_frames_may_be_read_only_or_a_view(processor):
    frames = np.random.default_rng(0).integers(0, 256, (4, 90, 120, 3), dtype=np.uint8)
    expected = processor.video_processor(frames, num_frames_per_segment=2)["pixel_values"]
    mirrored = np.ascontiguousarray(frames[:, :, ::-1])
    frames.flags.writeable = mirrored.flags.writeable = False
    for same in (frames, mirrored[:, :, ::-1]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = processor.video_processor(same, num_frames_per_segment=2)["pixel_values"]
        assert torch.equal(found, expected)


def test_frames_and_audio_given_as_arrays_are_cut_by_time(processor):
    frames = np.stack([np.full((64, 64, 3), number, np.uint8) for number in range(50)])
    sound = np.repeat(np.float32([0.1, 0.2]), 8000)
    inputs = processor(videos=frames, audio=sound, sampling_rate=8000, frame_rate=25, return_tensors="pt")
    levels = inputs["pixel_values"][0, :, :, 0].mean(dim=(-1, -2)) * 0.26862954 + 0.48145466
    assert (levels * 255).round().tolist() == [[6, 18], [31, 43]]
    assert inputs["input_values"][0].mean(dim=-1).tolist() == pytest.approx([3276.8, 6553.6], rel=1e-4)


def test_arrays_without_a_rate_count_as_already_sampled(processor):
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    inputs = processor(videos=frames, return_tensors="pt")
    assert inputs["frame_mask"].tolist() == [[[True, True], [True, True], [True, False]]]


@pytest.mark.parametrize(
    ("audio_seconds", "num_segments", "duration"), [(1.4, None, None), (2.4, 3, 2.4), (3.4, 3, 3.0), (4.6, None, None)]
)
def test_sampled_frames_may_be_one_segment_off_their_audio(audio_seconds, num_segments, duration, processor):
    frames, audio = np.zeros((6, 64, 64, 3), np.uint8), np.zeros(round(audio_seconds * 8000))
    if num_segments is None:
        with pytest.raises(ValueError, match="fill 3 segments"):
            processor.cut(frames, audio, 8000)
        return
    clip = processor.cut(frames, audio, 8000)
    assert (clip.num_segments, clip.duration_seconds) == (num_segments, pytest.approx(duration))


def test_an_audio_file_has_no_real_frame_and_a_silent_film_no_audio(processor, tmp_path):
    audio = processor(videos=write_recording(tmp_path / "only.m4a", 2.0, picture=None), return_tensors="pt")
    silent = processor(videos=write_recording(tmp_path / "silent.mp4", 2.0, sound=None), return_tensors="pt")
    assert not audio["frame_mask"].any() and audio["segment_mask"].all()
    assert (silent["input_values"] == 0).all() and silent["frame_mask"].all()


def test_post_processing_gives_segments_and_events(processor):
    results = processor.post_process_localization(output_of([[3, 1, 1, 1, 0, 3]]), min_event_segments=1)
    segments, events = results[0]["segments"], results[0]["events"]
    assert [segment["label"] for segment in segments] == ["background", *["Bark"] * 3, "Bell", "background"]
    assert [(event["label"], event["start"], event["end"]) for event in events] == [("Bark", 1, 4), ("Bell", 4, 5)]
    assert events[0]["score"] == pytest.approx(np.exp(5) / (np.exp(5) + 3), rel=1e-6)
    assert set(segments[0]) == set(events[0]) == {"start", "end", "label", "score"}


def test_post_processing_leaves_padding_out_and_ends_with_the_video(processor):
    output = output_of([[1, 1, 1, 1], [1, 1, 1, 1]])
    by_mask = processor.post_process_localization(output, segment_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    assert [len(result["segments"]) for result in by_mask] == [3, 4]
    by_duration = processor.post_process_localization(output, durations=[2.6, 4.0])
    assert [result["events"][0]["end"] for result in by_duration] == [2.6, 4.0]


@pytest.mark.parametrize(
    ("duration", "segments", "events"),
    [
        (None, [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2), (2, 2.5)], [(0.5, 2.5)]),
        (2.3, [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2), (2, 2.3)], [(0.5, 2.3)]),
        (2.2, [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)], [(0.5, 2)]),  # the last segment is less than half there
        (1.25, [(0, 0.5), (0.5, 1), (1, 1.25)], [(0.5, 1.25)]),
        (99.0, [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2), (2, 2.5)], [(0.5, 2.5)]),  # longer than what was scored
    ],
)
def test_times_are_those_of_the_segments_and_end_with_the_video(duration, segments, events, processor):
    processor.video_processor.segment_seconds = 0.5
    durations = None if duration is None else [duration]
    (result,) = processor.post_process_localization(
        output_of([[3, 1, 1, 1, 1]]), durations=durations, min_event_segments=1
    )
    assert [(one["start"], one["end"]) for one in result["segments"]] == segments
    assert [(one["start"], one["end"]) for one in result["events"]] == events


def test_channels_are_averaged(processor):
    left = np.linspace(-0.9, 0.9, 2 * 8000).astype(np.float32)
    frames = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    for channels in (np.stack([left, left]), np.stack([left, -0.5 * left, left])):
        inputs = processor(videos=frames, audio=channels, sampling_rate=8000, return_tensors="pt")
        expected = torch.from_numpy(np.round(channels.mean(axis=0) * 32768)).reshape(1, 2, 8000)
        torch.testing.assert_close(inputs["input_values"], expected.float(), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [("none", [1, 3, 1, 1, 0]), ("merge", [1] * 5), ("single_event", [1] * 4 + [3]), ("viterbi", [1] * 4 + [3])],
)
def test_decoders_are_chosen_by_name(processor, decoder, expected):
    probabilities = torch.full((5, 4), 0.01)
    for segment, (label, value) in enumerate([(1, 0.9), (3, 0.5), (1, 0.9), (1, 0.9), (0, 0.5)]):
        probabilities[segment, label] = value
    probabilities[1, 1], probabilities[4, 3] = 0.45, 0.45
    output = {"logits": probabilities.log()[None]}
    result = processor.post_process_localization(output, decoder=decoder)[0]
    names = ["Bell", "Bark", "Clap", "background"]
    assert [segment["label"] for segment in result["segments"]] == [names[label] for label in expected]


def test_labels_without_names_are_numbered(processor):
    processor.id2label = None
    result = processor.post_process_localization(output_of([[0, 0, 0, 3]]), decoder="none")[0]
    assert [segment["label"] for segment in result["segments"]] == ["LABEL_0"] * 3 + ["background"]


def test_saving_and_loading_keeps_the_processor(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AVEClipProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.id2label == {0: "Bell", 1: "Bark", 2: "Clap", 3: "background"}


def test_the_shortest_event_is_3_segments_unless_the_checkpoint_or_the_call_says_otherwise(processor, tmp_path):
    output = output_of([[3, 3, 3, 1, 1, 3, 3, 3]])
    assert processor.post_process_localization(output)[0]["events"] == []
    assert len(processor.post_process_localization(output, min_event_segments=1)[0]["events"]) == 1
    processor.min_event_segments = 2
    processor.save_pretrained(tmp_path)
    loaded = AVEClipProcessor.from_pretrained(tmp_path)
    assert len(loaded.post_process_localization(output)[0]["events"]) == 1


def test_options_of_a_call_override_the_saved_ones(processor, tmp_path):
    path = write_recording(tmp_path / "clip.mp4", 2.0)
    inputs = processor(videos=path, num_frames_per_segment=4, segment_seconds=0.5, return_tensors="pt")
    assert inputs["pixel_values"].shape[1:3] == (4, 4) and inputs["input_values"].shape == (1, 4, 4000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames_per_segment": 0}, "must be 1 to 1000, got 0"),
        ({"num_frames_per_segment": 1.5}, "whole number, got 1.5"),
        ({"segment_seconds": float("nan")}, "got nan"),
        ({"segment_seconds": -1.0}, "above 0, got -1.0"),
        ({"frame_rate": 0}, "got 0"),
        ({"num_frames_per_segments": 4}, "Did you mean `num_frames_per_segment`"),
        ({"audio": []}, "empty list"),
        ({"audio": np.zeros((2, 16000), np.int16)}, "int16 audio"),
        ({"audio": [np.zeros(8000), np.zeros(8000)]}, "one waveform per video"),
    ],
)
def test_options_that_cannot_work_are_named(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(videos=np.zeros((50, 64, 64, 3), np.uint8), **{"frame_rate": 25, **options})


def test_audio_as_half_precision_tensor_with_a_gradient_is_taken(processor):
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    sound = torch.linspace(-0.5, 0.5, 16000).bfloat16().requires_grad_()
    inputs = processor(videos=frames, audio=sound, sampling_rate=8000, return_tensors="pt")
    torch.testing.assert_close(inputs["input_values"].flatten(), (sound.detach().float() * 32768).round())


def test_a_clip_read_for_another_processor_is_refused(processor, tmp_path):
    clip = read_video(write_recording(tmp_path / "clip.mp4", 1.0), sampling_rate=16000, num_frames_per_segment=2)
    with pytest.raises(ValueError, match="16000 Hz"):
        processor(videos=clip)


def test_a_segment_mask_with_holes_is_refused(processor):
    with pytest.raises(ValueError, match="then False"):
        processor.post_process_localization(output_of([[1, 1, 1]]), segment_mask=torch.tensor([[1, 0, 1]]))


def test_an_image_under_audio_lasts_as_long_as_the_audio(processor):
    image = square_picture(5)[None]
    for options in ({}, {"frame_rate": 25}):
        inputs = processor(videos=image, audio=np.zeros(5 * 8000), sampling_rate=8000, return_tensors="pt", **options)
        assert inputs["frame_mask"].sum(-1).tolist() == [[1] * 5]


def test_the_audio_track_is_chosen(processor, tmp_path):
    path = tmp_path / "tracks.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(2)]
        for stream, level in zip(streams, (0.25, 0.5)):
            samples = np.full((1, 8000), level * 32768, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
    for track, level in ((None, 8192), (0, 8192), (1, 16384)):
        inputs = processor(videos=path, audio_track=track, return_tensors="pt")
        assert inputs["input_values"].max() == level
    with pytest.raises(VideoReadError, match="track 2"):
        processor(videos=path, audio_track=2)
    with pytest.raises(ValueError, match="only files have audio tracks"):
        processor(videos=np.zeros((2, 64, 64, 3), np.uint8), audio_track=0)


def test_bad_input_is_named(processor, tmp_path):
    frames = np.zeros((50, 64, 64, 3), np.uint8)
    path = write_recording(tmp_path / "clip.mp4", 1.0)
    with pytest.raises(ValueError, match="`sampling_rate` must be a whole number of Hz, got 0"):
        processor(videos=frames, audio=np.zeros(8000), sampling_rate=0, frame_rate=25)
    with pytest.raises(ValueError, match="NaN"):
        processor(videos=frames, audio=np.full(16000, np.nan), sampling_rate=8000, frame_rate=25)
    with pytest.raises(ValueError, match=r"fill 25 segments .already sampled frames., but the audio fills 2"):
        processor(videos=frames, audio=np.zeros(16000), sampling_rate=8000)
    with pytest.raises(ValueError, match="is read from the file"):
        processor(videos=str(path), audio=np.zeros(8000), sampling_rate=8000)
    with pytest.raises(ValueError, match="uint8"):
        processor(videos=frames / 255.0)
    with pytest.raises(ValueError, match="needs `videos`"):
        processor(audio=np.zeros(8000))
    with pytest.raises(ValueError, match="empty list"):
        processor(videos=[])
    with pytest.raises(VideoReadError, match=r"missing\.mp4"):
        processor(videos=str(tmp_path / "missing.mp4"))
    with pytest.raises(ValueError, match="4 classes, but the processor's id2label names 2"):
        AVEClipProcessor(
            processor.feature_extractor, processor.video_processor, id2label={0: "Bell", 1: "background"}
        ).post_process_localization(output_of([[0]]))
