"""Every rival: shapes, padding, both settings, gradients, and the decisions that its scores mean."""

import pytest
import torch

from ave_clip.rivals import RIVALS, RivalConfig, build_rival
from ave_clip.rivals.avin import interact, mean_over_segments
from ave_clip.rivals.base import event_class, joint_logits, mean_of_highest
from ave_clip.rivals.dam import logit_of_mean

SIZES = {"image_feature_size": 12, "audio_feature_size": 7, "hidden_size": 16, "num_locations": 4}
LABELS = {"full": torch.tensor([[3, 0, 0, 3, 3, 1], [2, 2, 3, -100, -100, -100], [3] * 6])}
LABELS["weak"] = torch.tensor([0, 2, 3])
EVERY_RIVAL = pytest.mark.parametrize("name", RIVALS)
SETTINGS = [(name, supervision) for name, rival in RIVALS.items() for supervision in rival.settings]
EVERY_SETTING = pytest.mark.parametrize(("name", "supervision"), SETTINGS)


def build(name: str, **options):
    torch.manual_seed(0)
    names = {0: "Bell", 1: "Bark", 2: "Clap", 3: "background"}
    return build_rival(name, RivalConfig(**{**SIZES, "id2label": names, **options}))


def features(num_locations: int = 4):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 6, num_locations, 12, generator=generator)
    return image, torch.randn(3, 6, 7, generator=generator), torch.arange(6) < torch.tensor([[6], [3], [0]])


@EVERY_SETTING
def test_padding_changes_nothing_and_all_weights_learn(name, supervision):
    rival = build(name, supervision=supervision).eval()
    image, audio, mask = features()
    output = rival(image, audio, mask, LABELS[supervision])
    assert output.logits.shape == (3, 6, 4)
    other_image, other_audio = image.masked_fill(~mask[..., None, None], 1e3), audio.masked_fill(~mask[..., None], 1e3)
    other = rival(other_image, other_audio, mask, LABELS[supervision])
    torch.testing.assert_close(other.logits, output.logits, rtol=0, atol=0)
    torch.testing.assert_close(other.loss, output.loss, rtol=0, atol=0)
    alone = rival(image[1:2, :3], audio[1:2, :3])
    torch.testing.assert_close(alone.logits[0], output.logits[1, :3], rtol=1e-5, atol=1e-5)
    output.loss.backward()
    gradients = {part: parameter.grad for part, parameter in rival.named_parameters()}
    assert [part for part, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    # The weight that weak PSP gives a segment passes a ReLU, which may be closed.
    assert {part for part, gradient in gradients.items() if not gradient.any()} <= {"segment_weight.weight"}


@EVERY_RIVAL
def test_features_may_be_maps_or_pooled(name):
    image, audio, _ = features()
    rival = build(name).eval()
    maps = rival(image.unflatten(2, (2, 2)), audio).logits
    torch.testing.assert_close(maps, rival(image, audio).logits, rtol=0, atol=0)
    pooled = build(name, num_locations=1).eval()
    torch.testing.assert_close(pooled(image[:, :, 0], audio).logits, pooled(image[:, :, :1], audio).logits)


@pytest.mark.parametrize(("name", "ignored"), [("audio-only", "image"), ("video-only", "audio")])
def test_a_network_of_one_modality_ignores_the_other(name, ignored):
    rival = build(name).eval()
    image, audio, _ = features()
    changed = (image * 2, audio) if ignored == "image" else (image, audio * 2)
    other = (image, audio * 2) if ignored == "image" else (image * 2, audio)
    logits = rival(image, audio).logits
    assert torch.equal(rival(*changed).logits, logits)
    assert not torch.allclose(rival(*other).logits, logits)


@pytest.mark.parametrize(
    ("name", "supervision"), [("cmbs", "full"), ("cmbs", "weak"), ("dam", "full"), ("rfjc", "full"), ("avin", "weak")]
)
def test_a_rival_is_saved_and_loaded_bit_exactly(name, supervision, tmp_path):
    rival = build(name, supervision=supervision).eval()
    rival.save_pretrained(tmp_path)
    loaded = RIVALS[name].from_pretrained(tmp_path).eval()
    image, audio, mask = features()
    torch.testing.assert_close(loaded(image, audio, mask).logits, rival(image, audio, mask).logits, rtol=0, atol=0)


def test_labels_that_are_all_unknown_give_no_loss():
    image, audio, mask = features()
    for name, supervision in SETTINGS:
        unknown = torch.full_like(LABELS[supervision], -100)
        assert build(name, supervision=supervision)(image, audio, mask, unknown).loss.item() == 0


@pytest.mark.parametrize(
    ("name", "supervision"), [("dam", "full"), ("rfjc", "full"), ("avin", "full"), ("avin", "weak")]
)
def test_a_network_learns_a_few_labels(name, supervision):
    rival = build(name, supervision=supervision)
    image, audio, mask = features()
    # One event per video: DAM gives all its segments the same.
    segments = LABELS["full"].where(LABELS["full"] != 1, 0)
    labels = segments if supervision == "full" else LABELS["weak"]
    optimizer = torch.optim.Adam(rival.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        rival(image, audio, mask, labels).loss.backward()
        optimizer.step()
    found = rival.eval()(image, audio, mask).logits.argmax(dim=-1)
    expected = segments if supervision == "full" else labels.unsqueeze(1).expand(-1, 6)
    assert torch.equal(found[mask], expected[mask])


@pytest.mark.parametrize("name", ["dam", "rfjc"])
def test_a_network_whose_paper_has_no_weak_supervision_refuses_it(name):
    with pytest.raises(ValueError, match="not defined for supervision='weak', only for 'full'"):
        build(name, supervision="weak")


def test_rfjc_has_weights_for_a_number_of_segments():
    image, audio, _ = features()
    assert build("rfjc").config.max_segments == 10
    assert build("rfjc", max_segments=6)(image, audio).logits.shape == (3, 6, 4)
    with pytest.raises(ValueError, match="Got 6 segments, but this network has weights for 5"):
        build("rfjc", max_segments=5)(image, audio)


def test_dam_averages_the_probabilities_of_both_directions():
    first, second = torch.tensor([0.0, 2.0, 200.0, -200.0]), torch.tensor([0.0, -1.0, 200.0, -200.0])
    found = logit_of_mean(first, second)
    assert found[2:].tolist() == [200, -200]  # the probabilities themselves round to 1 and 0
    torch.testing.assert_close(found.sigmoid()[:2], ((first.sigmoid() + second.sigmoid()) / 2)[:2])


def test_avin_weighs_segments_by_a_softmax_of_their_products():
    real = torch.tensor([[True, True, False]])
    segments = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])
    assert mean_over_segments(segments, real).tolist() == [[0.5, 1.0]]
    weights = torch.tensor([0.5, 2.0]).softmax(dim=0)  # products of both segments with their mean
    expected = [[[weights[0].item(), 0], [0, 2 * weights[1].item()], [0, 0]]]
    torch.testing.assert_close(interact(segments, torch.tensor([[0.5, 1.0]]), real), torch.tensor(expected))


def test_psp_cuts_the_same_connections_of_a_short_and_a_padded_video():
    # Its threshold is relative to the number of segments, which padding must not change: ten equal segments keep
    # weights of 1/10 each, above 0.099, and so do three of 1/3.
    propagation = build("psp").propagation
    weights = torch.full((1, 3, 3), 1.0)
    assert propagation._prune(weights, torch.tensor(0.99 / 3)).allclose(weights / 3)
    assert not propagation._prune(weights, torch.tensor(1.01 / 3)).any()


def test_the_event_score_decides_for_background_and_the_class_score_between_events():
    events = torch.tensor([[-1.0, 0.5, 2.0]])
    assert joint_logits(events, torch.tensor([[0.0, 5.0, 1.0]]), 4).argmax(dim=-1).tolist() == [[3, 1, 1]]
    # Under weak supervision the video itself may be background.
    assert joint_logits(events, torch.tensor([[0.0, 5.0, 1.0, 9.0]]), 4).argmax(dim=-1).tolist() == [[3, 3, 3]]
    assert joint_logits(events, torch.tensor([[0.0, 5.0, 1.0, 2.0]]), 4).argmax(dim=-1).tolist() == [[3, 1, 1]]


def test_the_class_of_a_video_is_its_most_frequent_event():
    assert event_class(LABELS["full"], 4).tolist() == [0, 2, -100]


def test_the_mean_of_the_highest_leaves_padding_out():
    values = torch.tensor([[[1.0], [5.0], [3.0], [9.0]]])
    mask = torch.tensor([[True, True, True, False]])
    assert mean_of_highest(values, mask, 2).item() == 4
    assert mean_of_highest(values, mask, 4).item() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "some"}, "`supervision` must be one of"),
        ({"hidden_size": 10}, "multiple of 4"),
        ({"num_locations": 0}, "`num_locations` must be at least 1"),
        ({"problem_type": "multi_label"}, "one class"),
    ],
)
def test_a_configuration_that_no_paper_defines_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("psp", **options)


def test_input_of_another_shape_is_refused():
    image, audio, mask = features()
    rival = build("psp")
    with pytest.raises(ValueError, match=r"needs image_features .* 12\).* got \(3, 6, 4, 5\)"):
        rival(image[..., :5], audio)
    with pytest.raises(ValueError, match="2 locations, but this network was built for 4"):
        rival(image[:, :, :2], audio)
    with pytest.raises(ValueError, match="then False for its padding"):
        rival(image, audio, mask.flip(1))
    with pytest.raises(ValueError, match="labels"):
        rival(image, audio, mask, LABELS["weak"])
    with pytest.raises(ValueError, match="no rival 'bert'"):
        build("bert")
