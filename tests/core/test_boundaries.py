"""Dense boundaries: which points learn which event, exact times through head, loss and decoding, and the pipeline."""

import numpy as np
import pytest
import torch

from ave_clip import AVEClipForLocalization
from ave_clip.core.boundary_loss import assign_events, boundary_loss, distance_iou_loss, point_centers
from ave_clip.core.events import Event
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from ave_clip.core.proposals import Proposals, dense_proposals, place_events, rank_proposals
from tests.helpers.models import tiny_config, tiny_localizer, tiny_processor

NAMES = {0: "Bell", 1: "Bark", 2: "Clap"}
HEAD = {"problem_type": "multi_label", "id2label": NAMES, "boundary_regression": True, "boundary_levels": 3}
ON_FEATURES = {
    "use_encoders": False,
    "visual_feature_type": "pooled",
    "image_feature_size": 6,
    "audio_feature_size": 6,
}


def features(batch=2, segments=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, segments, 6)
    return {name: torch.randn(shape, generator=generator) for name in ("image_features", "audio_features")}


def naive_assignment(num_points, spans, labels, num_classes):
    """The rules of ActionFormer in plain loops: inside, near the middle, in the level's range, the shortest wins."""
    has, targets = [], []
    for level, number in enumerate(num_points):
        lowest, highest = (0 if level == 0 else 4 * 2 ** (level - 1)), 4 * 2**level
        highest = np.inf if level == len(num_points) - 1 else highest
        for point in range(number):
            center = (point + 0.5) * 2**level
            best = [None] * num_classes
            for (start, end), label in zip(spans, labels):
                longest = max(center - start, end - center)
                near = abs(center - (start + end) / 2) <= 1.5 * 2**level
                fits = label >= 0 and start < center < end and near and lowest < longest <= highest
                if fits and (best[label] is None or end - start < best[label][1] - best[label][0]):
                    best[label] = (start, end)
            has.append([span is not None for span in best])
            targets.append([span or (0, 0) for span in best])
    return has, targets


def test_assignment_agrees_with_plain_loops():
    rng = np.random.default_rng(0)
    num_points = [17, 9, 5]
    starts = rng.uniform(0, 15, size=(3, 12))
    spans = np.stack([starts, starts + rng.uniform(0.2, 14, size=starts.shape)], axis=-1).astype(np.float32)
    labels = rng.integers(3, size=starts.shape)
    labels[:, -2:] = -100
    has, targets = assign_events(num_points, torch.from_numpy(spans), torch.from_numpy(labels), 3)
    assert has.any()
    for row in range(3):
        expected = naive_assignment(num_points, spans[row].tolist(), labels[row].tolist(), 3)
        assert has[row].tolist() == expected[0]
        np.testing.assert_allclose(targets[row].numpy(), expected[1], atol=1e-6)
    empty, _ = assign_events(num_points, torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.long), 3)
    assert empty.shape == (2, 31, 3)
    assert not empty.any()


def test_distance_iou_loss_of_intervals():
    spans = torch.tensor([[1.0, 3.0], [0.0, 2.0], [0.0, 1.0]])
    targets = torch.tensor([[1.0, 3.0], [1.0, 3.0], [3.0, 4.0]])
    expected = [0, 1 - 1 / 3 + (1 / 3) ** 2, 1 + (3 / 4) ** 2]
    torch.testing.assert_close(distance_iou_loss(spans, targets), torch.tensor(expected))


def test_perfect_distances_become_the_exact_events():
    truth = [Event(0, 1.3, 2.9, 1.0), Event(1, 0.7, 7.25, 1.0), Event(2, 2.2, 11.6, 1.0)]
    num_points, seconds = [24, 12, 6], 0.5
    spans = torch.tensor([[[event.start / seconds, event.end / seconds] for event in truth]])
    has, targets = assign_events(num_points, spans, torch.tensor([[0, 1, 2]]), 3)
    labels = torch.zeros(1, 24, 3, dtype=torch.long)
    logits = torch.where(has, 20.0, -20.0)
    loss = boundary_loss(logits, targets, spans, torch.tensor([[0, 1, 2]]), labels, 3)
    assert float(loss) < 1e-6
    found = rank_proposals(dense_proposals(logits[0], targets[0], 24), seconds, 12.0)[:3]
    assert [event.label for event in sorted(found, key=lambda event: event.label)] == [0, 1, 2]
    for event in found:
        assert (event.start, event.end) == pytest.approx((truth[event.label].start, truth[event.label].end), abs=1e-6)


def test_points_with_an_unknown_label_or_in_padding_do_not_count():
    config = tiny_config(**ON_FEATURES, **HEAD)
    torch.manual_seed(0)
    model = AVEClipForLocalization(config).eval()
    labels = torch.zeros(2, 13, 3, dtype=torch.long)
    labels[1, 9:] = -100
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, 9:] = False
    events = {"event_spans": torch.tensor([[[1.5, 6.2]], [[0.4, 5.8]]]), "event_classes": torch.tensor([[0], [2]])}
    inputs = features()
    expected = model(**inputs, segment_mask=mask, labels=labels, **events)
    for values in inputs.values():
        values[1, 9:] = 100.0
    found = model(**inputs, segment_mask=mask, labels=labels, **events)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
    # A row without its padding gives the same proposals; its points are the first ones of each level.
    alone = model(**{name: values[1:, :9] for name, values in inputs.items()})
    kept = torch.cat([torch.arange(count) + first for count, first in ((9, 0), (5, 13), (3, 20))])
    torch.testing.assert_close(found.proposal_spans[1, kept], alone.proposal_spans[0])
    torch.testing.assert_close(found.proposal_logits[1, kept], alone.proposal_logits[0])
    left = set(range(found.proposal_logits.shape[1])) - set(kept.tolist())
    assert found.proposal_logits[1, sorted(left)].sigmoid().max() == 0


def test_the_head_learns_times_between_segments():
    torch.manual_seed(0)
    head = AVEClipForLocalization(tiny_config(**ON_FEATURES, **HEAD)).boundary_head
    hidden = torch.randn(2, 13, head.norm.normalized_shape[0])
    spans = torch.tensor([[[1.3, 4.6], [2.2, 11.7]], [[3.25, 9.4], [0, 0]]])
    classes, labels = torch.tensor([[0, 2], [1, -100]]), torch.zeros(2, 13, 3, dtype=torch.long)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        loss = boundary_loss(*head(hidden), spans, classes, labels, HEAD["boundary_levels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = [rank_proposals(dense_proposals(*row, 13))[:2] for row in zip(*head.eval()(hidden))]
    for row, label, start, end in ((0, 0, 1.3, 4.6), (0, 2, 2.2, 11.7), (1, 1, 3.25, 9.4)):
        event = next(event for event in found[row] if event.label == label)
        assert (event.start, event.end) == pytest.approx((start, end), abs=0.3)


def test_a_localizer_with_the_head_is_saved_and_loaded_bit_exactly(tmp_path):
    model = tiny_localizer(**ON_FEATURES, **HEAD)
    model.save_pretrained(tmp_path)
    expected, found = model(**features()), AVEClipForLocalization.from_pretrained(tmp_path)(**features())
    torch.testing.assert_close(found.proposal_logits, expected.proposal_logits, rtol=0, atol=0)
    torch.testing.assert_close(found.proposal_spans, expected.proposal_spans, rtol=0, atol=0)


def test_post_processing_moves_events_to_the_proposals():
    logits = torch.full((1, 13, 3), -4.0)
    logits[0, 2:5, 0] = 4.0
    # At each point and for each class, the head proposes an event from 1.7 to 5.4.
    spans = torch.tensor([1.7, 5.4]).expand(1, 13, 3, 2)
    outputs = {"logits": logits, "proposal_logits": torch.full((1, 13, 3), 2.0), "proposal_spans": spans}
    processor = tiny_processor(id2label=NAMES, problem_type="multi_label", min_event_segments=1)
    (event,) = processor.post_process_localization(outputs)[0]["events"]
    assert (event["label"], event["start"], event["end"]) == ("Bell", pytest.approx(1.7), pytest.approx(5.4))


def test_decoded_events_move_only_to_nearby_proposals_of_their_class():
    labels, starts, ends = np.array([0, 0, 1, 0]), np.array([2.4, 2.8, 2.0, 5.0]), np.array([6.3, 6.3, 6.0, 9.0])
    proposals = Proposals(labels, starts, ends, np.array([0.6, 0.2, 0.9, 0.9]), 12)
    events = [Event(0, 1.0, 3.0, 0.8), Event(2, 1.0, 2.0, 0.7)]
    kept, moved = place_events(events, proposals, segment_seconds=0.5)
    # The onset is the weighted mean of 2.4 and 2.8; the proposal from 5 to 9 is too far away.
    assert (moved.start, moved.end, moved.score) == (pytest.approx(1.25), pytest.approx(3.15), 0.8)
    assert kept == events[1]


def test_other_outputs_do_not_depend_on_the_head():
    plain = tiny_localizer(**ON_FEATURES, problem_type="multi_label", id2label=NAMES)
    head = AVEClipForLocalization(tiny_config(**ON_FEATURES, **HEAD)).eval()
    head.load_state_dict(plain.state_dict(), strict=False)
    expected, found = plain(**features()), head(**features())
    assert expected.proposal_logits is None
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    assert not any("boundary" in name for name in plain.state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boundary_regression": True}, "needs problem_type='multi_label', got 'single_label'"),
        ({**HEAD, "supervision": "weak"}, "needs supervision='full', got 'weak'"),
        ({**HEAD, "boundary_levels": 0}, "`boundary_levels` must be at least 1"),
        ({**HEAD, "boundary_loss_weight": -1}, "`boundary_loss_weight` must be 0 or more"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_missing_events_are_refused():
    model = tiny_localizer(**ON_FEATURES, **HEAD)
    labels = torch.zeros(2, 13, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="pass `event_spans` and `event_classes` together with `labels`"):
        model(**features(), labels=labels)
    with pytest.raises(ValueError, match=r"got \(2, 1, 3\) and \(2, 1\)"):
        model(
            **features(),
            labels=labels,
            event_spans=torch.zeros(2, 1, 3),
            event_classes=torch.zeros(2, 1, dtype=torch.long),
        )


@pytest.mark.parametrize("num_segments", [4, 9])
def test_pipeline_places_events_of_windows_as_of_the_whole_video(num_segments):
    model = tiny_localizer(**HEAD, window_sizes=(3, 2), max_segments=num_segments)
    head, thirds = model.boundary_head, 1 / 3

    def propose(hidden, segment_mask=None):
        assert hidden.shape == (1, 9, model.config.hidden_size)  # whole video, however many windows
        centers = point_centers(9, 0)
        spans = torch.stack([centers - centers + thirds, centers - centers + 9 - thirds], dim=-1)
        return torch.full((1, 9, 3), 3.0), spans[None, :, None].expand(1, 9, 3, 2)

    head.forward = propose
    with torch.no_grad():
        model.category_head.classifier.weight.zero_()
        model.category_head.classifier.bias.copy_(torch.tensor([4.0, -4.0, -4.0]))
    pipe = AudioVisualEventLocalizationPipeline(
        model=model, processor=tiny_processor(id2label=NAMES, problem_type="multi_label")
    )
    rate = tiny_processor().feature_extractor.sampling_rate
    frames, audio = np.zeros((18, 64, 64, 3), np.uint8), np.zeros(9 * rate, np.float32)
    video = {"frames": frames, "frame_rate": 2, "audio": audio, "sampling_rate": rate}
    (event,) = pipe(video)["events"]  # one, without a seam
    assert (event["start"], event["end"]) == pytest.approx((thirds, 9 - thirds))
    *parts, last = pipe.stream(video)
    assert last["events"] == [event]
    assert all("events" not in part for part in parts)


def test_pyramid_points_are_in_the_middle_of_their_segments():
    assert point_centers(2, 0).tolist() == [0.5, 1.5]
    assert point_centers(2, 2).tolist() == [2.0, 6.0]
