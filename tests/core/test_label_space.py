"""Several events at once: configuration, losses, decoding, processor and pipeline of multi-label localizers."""

import itertools

import numpy as np
import pytest
import torch
from transformers import pipeline

from ave_clip.core.configuration_ave_clip import AVEClipConfig
from ave_clip.core.events import DECODERS, decode_events, decoders_of, find_overlapping_events
from ave_clip.core.label_space import LabelSpace
from ave_clip.core.losses import multi_label_loss, multi_label_video_loss
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from tests.helpers.media import write_recording
from tests.helpers.models import tiny_config, tiny_localizer, tiny_processor

NAMES = {0: "Bark", 1: "Speech", 2: "Bell"}
MULTI = {"problem_type": "multi_label", "id2label": NAMES}
SPACE = LabelSpace(tuple(NAMES.values()), "multi_label")


@pytest.fixture(scope="module")
def localizer():
    return tiny_localizer(**MULTI)


def features(batch_size: int, num_segments: int, width: int = 24):
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, num_segments, width)
    return {
        "image_features": torch.randn(shape[0], shape[1], 4, width, generator=generator),
        "audio_features": torch.randn(shape, generator=generator),
    }


# ── configuration ──


def test_a_model_refuses_a_problem_type_that_was_set_without_its_labels():
    config = tiny_config()
    config.problem_type = "multi_label"
    with pytest.raises(ValueError, match="no class of a multi-label localizer"):
        AVEClipForLocalization(config)


def test_a_multi_label_configuration_has_no_background_and_is_saved(tmp_path):
    config = AVEClipConfig(**MULTI)
    assert (config.num_labels, config.min_event_segments) == (3, 1)
    config.save_pretrained(tmp_path)
    loaded = AVEClipConfig.from_pretrained(tmp_path)
    assert loaded.problem_type == "multi_label"
    assert loaded.id2label == NAMES
    assert AVEClipConfig(problem_type="multi_label").num_labels == 28
    with pytest.raises(ValueError, match="no background class"):
        _ = config.background_label_id


@pytest.mark.parametrize("name", [None, "single_label", "single_label_classification"])
def test_one_label_per_segment_remains_the_default(name):
    config = AVEClipConfig(problem_type=name)
    assert (config.problem_type, config.num_labels, config.min_event_segments) == ("single_label", 29, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem_type": "both"}, "`problem_type` must be"),
        ({**MULTI, "id2label": {0: "Bark", 1: "background"}}, "no class of a multi-label localizer"),
        ({**MULTI, "id2label": {}}, "at least one event class"),
        ({**MULTI, "class_weights": [1, 2]}, "3 numbers above 0"),
        ({**MULTI, "class_weights": [1, 0, 1]}, "3 numbers above 0"),
        ({**MULTI, "event_threshold": 1.0}, "above 0 and below 1"),
        ({**MULTI, "focal_gamma": -1}, "0 or more"),
        ({"focal_gamma": 2}, "needs problem_type"),
        ({"class_weights": [1] * 29}, "needs problem_type"),
        ({"video_pooling": "attention"}, "needs supervision='weak'"),
        ({"max_segments": 0}, "at least 1"),
    ],
)
def test_wrong_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        AVEClipConfig(**fields)


def test_a_single_label_checkpoint_is_not_loaded_as_multi_label(tmp_path):
    tiny_localizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no class of a multi-label localizer"):
        AVEClipForLocalization.from_pretrained(tmp_path, problem_type="multi_label")
    model = AVEClipForLocalization.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **MULTI)
    assert model(**features(1, 4)).logits.shape == (1, 4, 3)


# ── losses and targets ──


def test_the_loss_is_binary_cross_entropy_of_the_classes_and_of_any_event(localizer):
    first = [[1, 0, 1], [0, 0, 0], [0, 1, -100], [0, -100, 0]]
    labels = torch.tensor([first, [[0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    output = localizer(**features(2, 4), labels=labels, segment_mask=mask)
    terms = []
    for row, segment, label in itertools.product(range(2), range(4), range(3)):
        target = int(labels[row, segment, label])
        if target != -100 and mask[row, segment]:
            p = torch.sigmoid(output.logits[row, segment, label])
            terms.append(-torch.log(p if target else 1 - p))
    category = torch.stack(terms).mean()
    # Whether the segment with an unlabelled class and no active one has an event is unknown.
    is_event = [(0, 0, 1), (0, 1, 0), (0, 2, 1), (1, 0, 1), (1, 1, 1), (1, 2, 0)]
    event = torch.stack(
        [-torch.log(torch.sigmoid(output.event_logits[b, t] * (1 if on else -1))) for b, t, on in is_event]
    ).mean()
    torch.testing.assert_close(output.category_loss, category)
    torch.testing.assert_close(output.event_loss, event)
    torch.testing.assert_close(output.loss, 0.7 * category + 0.3 * event)


def test_focal_loss_and_class_weights_change_the_terms_as_published():
    logits, labels = torch.randn(2, 3, 2), torch.randint(0, 2, (2, 3, 2))
    probability = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
    weights = torch.where(labels == 1, torch.tensor([3.0, 0.5]), torch.ones(2))
    expected = (-weights * (1 - probability) ** 2 * probability.log()).mean()
    torch.testing.assert_close(multi_label_loss(logits, labels, 2.0, (3.0, 0.5)), expected)
    assert multi_label_loss(logits, torch.full_like(labels, -100)) == 0


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_weak_supervision_pools_the_segments_of_a_video(pooling):
    model = tiny_localizer(**MULTI, supervision="weak", video_pooling=pooling)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    labels = torch.tensor([[1, 0, -100], [0, 1, 1]])
    output = model(**features(2, 3), segment_mask=mask, labels=labels, output_hidden_states=True)
    weights = torch.zeros(2, 3, 3)
    if pooling == "attention":
        weights = model.pooling(output.hidden_states[-1])
    weights = weights.masked_fill(~mask.unsqueeze(-1), float("-inf")).softmax(dim=1)
    video = (output.logits.sigmoid() * weights).sum(dim=1)
    terms = [video[0, 0], 1 - video[0, 1], 1 - video[1, 0], video[1, 1], video[1, 2]]
    torch.testing.assert_close(output.category_loss, -torch.stack(terms).log().mean())
    output.loss.backward()
    assert pooling == "mean" or model.pooling.weight.grad.abs().sum() > 0


def test_a_video_of_padding_has_no_weak_loss_and_no_nan_gradient():
    logits = torch.randn(2, 3, 2, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    loss = multi_label_video_loss(logits, torch.tensor([[1, 0], [1, 1]]), mask)
    torch.testing.assert_close(loss, multi_label_video_loss(logits[:1], torch.tensor([[1, 0]]), mask[:1]))
    loss.backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.long), r"shape \(2, 4, 3\), 0 or 1 per class for each segment"),
        (torch.full((2, 4, 3), 2), "only 0 and 1 are allowed"),
        (torch.full((2, 4, 3), 0.5), "only 0 and 1 are allowed"),
    ],
)
def test_wrong_targets_are_named(localizer, labels, message):
    with pytest.raises(ValueError, match=message):
        localizer(**features(2, 4), labels=labels)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.float32])
def test_targets_of_any_numeric_type_give_the_same_loss(localizer, dtype):
    labels = torch.tensor([[[1, 0, 1], [0, 0, 1]]])
    assert localizer(**features(1, 2), labels=labels.to(dtype)).loss == localizer(**features(1, 2), labels=labels).loss


# ── decoding ──


def test_overlapping_events_are_decoded_class_by_class():
    p = np.array([[0.9, 0.1, 0.2], [0.9, 0.8, 0.2], [0.2, 0.9, 0.9], [0.1, 0.9, 0.2]])
    segments, events = SPACE.find_events(p, duration=3.4)
    assert [(e["label"], e["start"], e["end"]) for e in events] == [("Bark", 0, 2), ("Speech", 1, 3.4), ("Bell", 2, 3)]
    assert [e["score"] for e in events] == pytest.approx([0.9, 2.6 / 3, 0.9])
    assert segments[1]["labels"] == [{"label": "Bark", "score": 0.9}, {"label": "Speech", "score": 0.8}]
    assert (segments[1]["label"], segments[1]["score"]) == ("Bark", 0.9)


def test_a_segment_without_an_active_class_is_background():
    segments, events = SPACE.find_events(np.array([[0.1, 0.3, 0.2]]))
    assert events == []
    assert segments == [{"start": 0.0, "end": 1.0, "label": "background", "score": 0.7, "labels": []}]


def brute_force(one: np.ndarray, shortest: int) -> float:
    """The log likelihood of the best course of one class whose runs all last at least `shortest` segments."""
    best = -np.inf
    for course in itertools.product([0, 1], repeat=len(one)):
        runs = [len(list(run)) for active, run in itertools.groupby(course) if active]
        if all(length >= min(shortest, len(one)) for length in runs):
            best = max(best, sum(np.log(p if on else 1 - p) for on, p in zip(course, one)))
    return best


@pytest.mark.parametrize("shortest", [1, 2, 3])
def test_viterbi_finds_the_most_probable_course_of_each_class(shortest):
    draw = np.random.default_rng(shortest)
    for _ in range(20):
        p = draw.uniform(0.02, 0.98, (7, 2))
        active = decode_events(p, "viterbi", shortest)
        for label in range(2):
            one = p[:, label]
            found = sum(np.log(q if on else 1 - q) for on, q in zip(active[:, label], one))
            assert found == pytest.approx(brute_force(one, shortest))


def test_the_threshold_moves_every_decoder():
    p = np.array([[0.35], [0.45], [0.65], [0.32], [0.1]])
    wanted = {
        ("none", 0.4): [0, 1, 1, 0, 0],
        ("viterbi", 0.4): [0, 1, 1, 0, 0],
        ("none", 0.6): [0, 0, 1, 0, 0],
        ("hysteresis", 0.6): [1, 1, 1, 1, 0],  # goes on from 0.3
        ("hysteresis", 0.7): [0, 0, 0, 0, 0],  # begins nowhere
    }
    for (decoder, threshold), active in wanted.items():
        assert decode_events(p, decoder, 1, threshold)[:, 0].tolist() == [bool(on) for on in active], decoder
    assert not decode_events(p, "hysteresis", 5, 0.6).any()


def test_decoders_know_the_problem_types_they_decode():
    assert decoders_of("single_label") == ("merge", "single_event", "viterbi", "none")
    assert set(decoders_of("multi_label")) == {"viterbi", "none", "hysteresis"}
    assert set(decoders_of("single_label")) | set(decoders_of("multi_label")) == set(DECODERS)
    with pytest.raises(ValueError, match="'merge' cannot decode several labels"):
        SPACE.find_events(np.zeros((2, 3)), decoder="merge")
    with pytest.raises(ValueError, match="'hysteresis' cannot decode one label"):
        LabelSpace(("Bark", "background")).find_events(np.eye(2), decoder="hysteresis")
    with pytest.raises(ValueError, match="gives every segment one of 2 classes"):
        LabelSpace(("Bark", "background")).find_events(np.eye(2), threshold=0.5)


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 1.5, float("nan"), "0.5", True])
def test_a_threshold_out_of_its_range_is_named(threshold):
    with pytest.raises(ValueError, match="`threshold` must be a probability"):
        decode_events(np.zeros((2, 3)), threshold=threshold)
    with pytest.raises(ValueError, match="`event_threshold` must be a probability"):
        tiny_processor(**MULTI, event_threshold=threshold)


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_a_threshold_may_be_a_number_of_numpy(number):
    assert decode_events(np.array([[0.6, 0.4]]), threshold=number(0.5)).tolist() == [[True, False]]


def test_probabilities_that_are_none_are_refused():
    with pytest.raises(ValueError, match="Apply a sigmoid"):
        decode_events(np.array([[3.0]]))
    with pytest.raises(ValueError, match="NaN"):
        decode_events(np.array([[np.nan]]))


def test_events_to_labels_and_back_is_the_identity():
    draw = np.random.default_rng(0)
    active = draw.random((12, 4)) < 0.5
    events = find_overlapping_events(active, active.astype(float), 0.5, 5.75)
    again = np.zeros_like(active)
    for event in events:
        again[round(event.start / 0.5) : int(np.ceil(event.end / 0.5)), event.label] = True
    assert (again == active).all()
    assert events == sorted(events, key=lambda event: (event.start, event.end, event.label))
    assert max(event.end for event in events) <= 5.75


# ── processor and pipeline ──


def test_processor_and_pipeline_agree_and_are_saved(localizer, tmp_path):
    processor = tiny_processor(id2label=NAMES, problem_type="multi_label", min_event_segments=1, event_threshold=0.4)
    localizer.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    found = pipeline("audio-visual-event-localization", model=str(tmp_path / "model"), device="cpu")
    assert found.processor.problem_type == "multi_label"
    assert found.processor.event_threshold == 0.4
    video = write_recording(tmp_path / "clip.mp4", 4.0)
    result = found(str(video), threshold=0.4)
    inputs = processor(videos=video, return_tensors="pt")
    with torch.no_grad():
        (expected,) = processor.post_process_localization(localizer(**inputs), durations=[4.0])
    assert [s["labels"] for s in result["segments"]] == [
        [{"label": e["label"], "score": pytest.approx(e["score"], abs=1e-5)} for e in s["labels"]]
        for s in expected["segments"]
    ]
    assert [(e["label"], e["start"], e["end"]) for e in result["events"]] == [
        (e["label"], e["start"], e["end"]) for e in expected["events"]
    ]
    *parts, whole = found.stream(str(video), threshold=0.4)
    assert whole == result
    streamed = [segment for part in parts for segment in part["segments"]]
    assert streamed == result["segments"][: len(streamed)]


def test_a_video_without_audio_has_no_event_of_any_class(localizer, tmp_path):
    processor = tiny_processor(id2label=NAMES, problem_type="multi_label")
    found = pipeline("audio-visual-event-localization", model=localizer, processor=processor, device="cpu")
    result = found(str(write_recording(tmp_path / "silent.mp4", 2.0, sound=None)))
    assert result["events"] == []
    assert [(s["label"], s["score"], s["labels"]) for s in result["segments"]] == [("background", 1.0, [])] * 2
