"""The names of the classes: every way to set them is checked, consistent, and saved so."""

import json

import pytest
import torch

from ave_clip.core.categories import labels_with_background
from ave_clip.core.configuration_ave_clip import AVEClipConfig
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from tests.helpers.models import tiny_config, tiny_localizer, tiny_processor

NEW = {0: "Horn", 1: "background"}
GIVEN = [
    {"id2label": NEW},
    {"id2label": {"0": "Horn", "1": "background"}},
    {"id2label": {1: "background", 0: "Horn"}},
    {"label2id": {"Horn": 0, "background": 1}},
    {"label2id": {"Horn": "0", "background": "1"}},
    {"id2label": NEW, "label2id": {"Horn": 0, "background": 1}, "num_labels": 2},
]
REFUSED = [
    ({"id2label": {0: "background", 1: "Horn"}}, "Background must be the last class.*at index 0"),
    ({"id2label": {"0": "background", "1": "Horn"}}, "Background must be the last class.*at index 0"),
    ({"id2label": {0: "Horn", 1: "Bell"}}, "Background must be the last class.*missing"),
    ({"label2id": {"background": 0, "Horn": 1}}, "Background must be the last class"),
    ({"id2label": {0: "Horn"}}, "2 or more labels"),
    ({"id2label": {0: "Horn", 2: "background"}}, r"keys 0\.\.1"),
    ({"id2label": {0: "Horn", 1: "horn ", 2: "background"}}, "twice"),
    ({"id2label": {0: " ", 1: "background"}}, "needs a name"),
    ({"label2id": {"Horn": 0, "Bell": 0, "background": 1}}, "gives the same index to two classes"),
    ({"id2label": NEW, "label2id": {"Bell": 0, "background": 1}}, "disagree"),
    ({"id2label": NEW, "num_labels": 3}, "names 2 classes"),
    ({"num_labels": 1}, "2 or more labels"),
    ({"num_labels": 10**8}, "at most 100000 labels"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("localizer")
    tiny_localizer().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def assert_labels(config, id2label):
    assert config.id2label == id2label and list(config.id2label) == sorted(id2label)
    assert config.label2id == {label: index for index, label in id2label.items()}
    assert config.num_labels == len(id2label) and config.background_label_id == len(id2label) - 1


@pytest.mark.parametrize("labels", GIVEN, ids=str)
def test_labels_given_in_any_way_are_the_same_labels_and_saved_so(labels, folder, tmp_path):
    assert_labels(AVEClipConfig(**labels), NEW)
    assert_labels(AVEClipConfig.from_pretrained(folder, **labels), NEW)
    model = AVEClipForLocalization.from_pretrained(folder, ignore_mismatched_sizes=True, **labels)
    assert_labels(model.config, NEW)
    assert model.category_head.classifier.out_features == 2
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["id2label"] == {"0": "Horn", "1": "background"} and saved["label2id"] == {"Horn": 0, "background": 1}
    assert_labels(AVEClipForLocalization.from_pretrained(tmp_path).config, NEW)


@pytest.mark.parametrize(("labels", "message"), REFUSED, ids=[str(labels) for labels, _ in REFUSED])
def test_labels_that_cannot_work_are_refused_everywhere(labels, message, folder):
    with pytest.raises(ValueError, match=message):
        AVEClipConfig(**labels)
    with pytest.raises(ValueError, match=message):
        AVEClipForLocalization.from_pretrained(folder, ignore_mismatched_sizes=True, **labels)
    if len(labels) == 1:
        config = tiny_config()
        (name, value), before = *labels.items(), dict(config.id2label)
        with pytest.raises(ValueError, match=message):
            setattr(config, name, value)
        assert_labels(config, before)


def test_a_number_of_labels_counts_background(folder):
    names = labels_with_background(f"LABEL_{index}" for index in range(4))
    assert_labels(AVEClipConfig(num_labels=5), names)
    model = AVEClipForLocalization.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert_labels(model.config, names)
    config = tiny_config()
    config.num_labels = 5
    assert_labels(config, names)
    assert_labels(AVEClipConfig.from_pretrained(folder, num_labels=4), tiny_config().id2label)  # as many as saved


def test_assigned_labels_replace_both_fields():
    config = tiny_config()
    config.id2label = {"0": "Horn", "1": "background"}
    assert_labels(config, NEW)
    config.label2id = {"Gong": 0, "Bell": 1, "background": 2}
    assert_labels(config, {0: "Gong", 1: "Bell", 2: "background"})


def test_a_stale_label2id_of_an_older_checkpoint_is_replaced(folder):
    content = json.loads((folder / "config.json").read_text())
    content["label2id"] = {"old": 0, "background": 1}
    assert_labels(AVEClipConfig.from_dict(content), tiny_config().id2label)


def test_a_model_whose_labels_no_longer_fit_its_head_says_so():
    model = tiny_localizer(use_encoders=False)
    model.config.id2label = NEW
    with pytest.raises(ValueError, match="scores 4 classes, but its configuration names 2"):
        model(image_features=torch.ones(1, 4, 4, 24), audio_features=torch.ones(1, 4, 24))


def test_the_processor_checks_its_labels_too(folder):
    with pytest.raises(ValueError, match="Background must be the last class"):
        AVEClipProcessor.from_pretrained(folder, id2label={0: "background", 1: "Horn"})
    assert AVEClipProcessor.from_pretrained(folder, id2label={"0": "Horn", "1": "background"}).id2label == NEW


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"visual_feature_type": "nonsense"}, "must be one of"),
        ({"window_sizes": (0,)}, "whole number of segments"),
        ({"hidden_size": 15}, "must be even"),
        ({"hidden_size": 2**40}, "too large"),
        ({"agva_hidden_size": 2**20, "agva_attention_size": 2**20}, "weights"),
        ({"audioclip_config": {"audio_config": {"n_fft": 2**30}}}, "n_fft`=1073741824 is too large"),
    ],
)
def test_fields_given_to_from_pretrained_are_checked_like_those_of_the_constructor(values, message, folder):
    with pytest.raises(ValueError, match=message):
        AVEClipConfig.from_pretrained(folder, **values)
