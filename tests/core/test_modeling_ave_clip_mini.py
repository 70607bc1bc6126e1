"""The mini localizer with tiny towers: shapes, padding, labels, what cannot be told, saving and loading."""

import pytest
import torch
from transformers import AutoModelForVideoClassification, MobileNetV1Config

from ave_clip.core.configuration_ave_clip_mini import AVEClipMiniConfig
from ave_clip.core.modeling_ave_clip_mini import NUM_EVIDENCE, AVEClipMiniForLocalization

CONCEPTS = [
    {"name": "Dog", "synonyms": "bark", "audio_tags": "Bark|Yip", "image_classes": "beagle..boxer"},
    {"name": "Cat", "synonyms": "", "audio_tags": "Meow", "image_classes": "tabby"},
    {"name": "Cough", "synonyms": "", "audio_tags": "Cough", "image_classes": ""},
    {"name": "Painting", "synonyms": "", "audio_tags": "", "image_classes": "canvas"},
]
AUDIO_NAMES = ("Bark", "Yip", "Meow", "Cough", "Silence")
IMAGE_NAMES = ("beagle", "pug", "boxer", "tabby", "canvas")


def tiny_config(labels: tuple[str, ...] = ("Dog", "Cat", "Cough", "Painting")) -> AVEClipMiniConfig:
    sound = MobileNetV1Config(num_channels=1, image_size=96, depth_multiplier=0.125, tf_padding=True).to_dict()
    return AVEClipMiniConfig(
        audio_config={**sound, "min_depth": 4, "id2label": dict(enumerate(AUDIO_NAMES))},
        image_config={
            "stem_size": 8,
            "stages": [[1, 3, 2, 1, 8], [1, 3, 2, 2, 8]],
            "hidden_size": 16,
            "id2label": dict(enumerate(IMAGE_NAMES)),
        },
        concepts=CONCEPTS,
        event_hidden_size=8,
        id2label=dict(enumerate([*labels, "background"])),
    )


def tiny_mini() -> AVEClipMiniForLocalization:
    torch.manual_seed(0)
    return AVEClipMiniForLocalization(tiny_config()).eval()


def inputs(batch_size: int = 2, num_segments: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(batch_size, num_segments, 1, 3, 32, 32, generator=generator),
        "input_values": torch.rand(batch_size, num_segments, 16000, generator=generator) * 2 - 1,
    }


def features(model: AVEClipMiniForLocalization, **kwargs) -> dict[str, torch.Tensor]:
    given = inputs(**kwargs)
    with torch.no_grad():
        image, audio = model.encode(given["pixel_values"], given["input_values"])
    return {"image_features": image, "audio_features": audio}


@torch.no_grad()
def test_outputs_have_the_shapes_of_every_localizer() -> None:
    model = tiny_mini()
    output = model(**inputs(), output_attentions=True)
    assert output.logits.shape == (2, 4, 5)
    assert output.event_logits.shape == (2, 4)
    assert output.heard.shape == output.seen.shape == output.both.shape == (2, 4, 4)
    assert output.visual_attentions.shape == (2, 4, 16)
    torch.testing.assert_close(output.visual_attentions.sum(dim=-1), torch.ones(2, 4))
    assert torch.equal(output.logits[..., -1], torch.zeros(2, 4))
    torch.testing.assert_close(output.event_logits, output.logits[..., :-1].logsumexp(dim=-1))


@torch.no_grad()
def test_features_give_the_logits_of_raw_input() -> None:
    model = tiny_mini()
    torch.testing.assert_close(model(**features(model)).logits, model(**inputs()).logits, rtol=0, atol=0)


@torch.no_grad()
def test_what_one_sense_cannot_tell_is_unknown_and_judged_by_the_other() -> None:
    output = tiny_mini()(**inputs())
    dog, cough, painting = 0, 2, 3
    assert output.seen[..., cough].isnan().all() and output.both[..., cough].isnan().all()
    assert output.heard[..., painting].isnan().all()
    torch.testing.assert_close(output.logits[..., cough].sigmoid(), output.heard[..., cough])
    torch.testing.assert_close(output.logits[..., painting].sigmoid(), output.seen[..., painting])
    torch.testing.assert_close(output.logits[..., dog].sigmoid(), output.both[..., dog])


@torch.no_grad()
def test_padding_changes_no_other_segment() -> None:
    model = tiny_mini()
    given = features(model)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    padded = model(**given, segment_mask=mask)
    other = {name: value.clone() for name, value in given.items()}
    for value in other.values():
        value[1, 2:] = float("nan")
    torch.testing.assert_close(model(**other, segment_mask=mask).logits[1, :2], padded.logits[1, :2], rtol=0, atol=0)
    alone = model(**{name: value[1:, :2] for name, value in given.items()})
    torch.testing.assert_close(padded.logits[1, :2], alone.logits[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_labels_evidence_is_the_same_for_every_name_and_place() -> None:
    model = tiny_mini()
    given = features(model)
    before = model(**given).logits
    model.set_labels(["Painting", "cats", "Cough", "bark"])
    after = model(**given).logits
    torch.testing.assert_close(after[..., [3, 1, 2, 0, 4]], before, rtol=1e-5, atol=1e-5)
    assert model.config.id2label == {0: "Painting", 1: "cats", 2: "Cough", 3: "bark", 4: "background"}


@torch.no_grad()
def test_what_is_seen_comes_from_the_label_classifier_alone() -> None:
    model = tiny_mini()
    given, visual = features(model), model.attend(*features(model).values())[0]
    before = model.evidence(visual, given["audio_features"])
    model.image_model.classifier.weight.normal_()
    assert torch.equal(model.evidence(visual, given["audio_features"]), before)
    model.label_classifier.bias[IMAGE_NAMES.index("tabby")] += 5
    after = model.evidence(visual, given["audio_features"])
    seen = 6  # column of the label's own log-odds, after the six of hearing
    assert (after[:, 1, :, seen] > before[:, 1, :, seen] + 1).all()
    assert (after[:, 0, :, seen] < before[:, 0, :, seen]).all()
    probabilities = model.label_classifier(visual).softmax(dim=-1)
    assert torch.equal(model.evidence(visual, given["audio_features"], pictures=probabilities), after)


@torch.no_grad()
def test_what_the_audio_classifier_denies_is_not_heard() -> None:
    model = tiny_mini()
    model.event_head.output.weight.zero_()
    model.event_head.output.bias.copy_(torch.tensor([20.0, 20.0, 20.0]))
    evidence = torch.zeros(1, 2, 5, NUM_EVIDENCE)
    evidence[0, 0, :, 0] = torch.tensor([-9.0, -9.0, -9.0, -1.0, -9.0])  # clear in segment 3
    evidence[0, 1, :, 0] = -5.0  # never clear
    scores = model.judge(evidence)
    assert scores[0, 0, :, 0].tolist() == pytest.approx([-2.0, -2.0, 3.5, 3.5, 3.5])
    assert scores[0, 1, :, 0].tolist() == pytest.approx([-0.5] * 5)
    assert (scores[..., 1] == 4.5).all() and (scores[..., 2] == 20).all()
    evidence[0, 0, 3:, 0] = 9.0  # under the padding nothing counts
    assert model.judge(evidence, torch.tensor([3]))[0, 0, :3, 0].tolist() == pytest.approx([-4.5] * 3)


@torch.no_grad()
def test_a_label_alone_has_no_rival() -> None:
    model = tiny_mini()
    model.set_labels(["Dog"])
    visual, _ = model.attend(*features(model).values())
    evidence = model.evidence(visual, features(model)["audio_features"])
    assert evidence.shape == (2, 1, 4, NUM_EVIDENCE)
    assert torch.equal(evidence[..., 1], torch.full((2, 1, 4), -9.0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Dog", "gramophone"], "for the label 'gramophone'"),
        (["Dog", "Dog"], "given twice"),
        (["Cat", "bark", "Dog"], "'bark' and 'Dog' both mean 'Dog'"),
        (["background"], "added by itself"),
        ([], "at least one label"),
    ],
)
def test_labels_that_cannot_be_looked_for_are_refused(labels, message) -> None:
    model = tiny_mini()
    with pytest.raises(ValueError, match=message):
        model.set_labels(labels)
    assert model.config.id2label[0] == "Dog"  # nothing has changed


def test_label_that_only_shares_words_is_warned_of_once(caplog) -> None:
    model = tiny_mini()
    for labels in (["Cat", "dog on a red carpet"], ["dog on a red carpet"], ["bark"]):
        model.set_labels(labels)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "'dog on a red carpet' is looked for as 'Dog'" in record.message


@torch.no_grad()
def test_saves_and_loads_bit_exact_with_its_labels(tmp_path) -> None:
    model = tiny_mini()
    model.set_labels(["Cat", "Dog"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(loaded) is AVEClipMiniForLocalization
    assert loaded.config.id2label == {0: "Cat", 1: "Dog", 2: "background"}
    torch.testing.assert_close(loaded(**inputs()).logits, model(**inputs()).logits, rtol=0, atol=0)


def test_learns_from_labels_and_leaves_padding_out() -> None:
    model = tiny_mini()
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    labels = torch.tensor([[0, 0, 4, 4], [1, -100, 3, 3]])
    output = model(**inputs(), labels=labels, segment_mask=mask)
    output.loss.backward()
    log_probabilities = output.logits.log_softmax(dim=-1)
    expected = [log_probabilities[0, time, labels[0, time]] for time in range(4)] + [log_probabilities[1, 0, 1]]
    torch.testing.assert_close(output.loss, -torch.stack(expected).mean())
    assert model.event_head.projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("names", [("pixel_values",), ("input_values", "pixel_values", "audio_features"), ()])
def test_mixed_or_missing_input_is_an_error(names) -> None:
    model = tiny_mini()
    given = {**inputs(), **features(model)}
    with pytest.raises(ValueError, match="Both video and audio are required"):
        model(**{name: given[name] for name in names})


@torch.no_grad()
def test_half_types_keep_the_spectrogram_in_float32() -> None:
    model = tiny_mini()
    expected = model(**inputs()).logits
    model = model.to(torch.bfloat16)
    given = inputs()
    output = model(pixel_values=given["pixel_values"].bfloat16(), input_values=given["input_values"])
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"event_hidden_size": 0}, "event_hidden_size"),
        ({"id2label": {0: "Dog", 1: "Cat"}}, "'background' as the last"),
        ({"id2label": {0: "Dog", 1: "Dog", 2: "background"}}, "twice"),
    ],
)
def test_wrong_configuration_is_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        AVEClipMiniConfig(concepts=CONCEPTS, **fields)
