"""Statistics of features of any scale, from a bounded number of clips."""

import pytest
import torch

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.training.feature_statistics import MAX_CLIPS, FeatureStatistics, fit_feature_norms


def localizer(**fields):
    torch.manual_seed(0)
    sizes = {"image_feature_size": 6, "audio_feature_size": 4, "hidden_size": 8, "agva_hidden_size": 8}
    return AVEClipForLocalization(AVEClipConfig(use_encoders=False, **sizes, **fields)).eval()


def make_clips(number=20, image_scale=1.0, audio_scale=1.0, shift=0.0):
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "row": row,
            "image_features": image_scale * (torch.randn(10, 3, 6, generator=draw) + shift),
            "audio_features": audio_scale * torch.randn(10, 4, generator=draw),
        }
        for row in range(number)
    ]


def logits(model, clips):
    with torch.no_grad():
        batch = {name: torch.stack([c[name] for c in clips]) for name in ("image_features", "audio_features")}
        return model(**batch).logits


def test_mean_and_spread_are_those_of_all_vectors_together():
    features, statistics = (
        torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1)) * 4 + 9,
        FeatureStatistics(),
    )
    for clip in features:
        statistics.add(clip)
    mean, deviation = statistics.result()
    torch.testing.assert_close(mean, features.flatten(0, 1).mean(0))
    torch.testing.assert_close(deviation, features.flatten(0, 1).std(0, correction=0))


def test_a_feature_that_never_changes_is_not_blown_up():
    statistics = FeatureStatistics()
    statistics.add(torch.tensor([[1.0, 5.0], [-1.0, 5.0]]))
    assert statistics.result()[1].tolist() == pytest.approx([1.0, 0.05 / 2**0.5])
    statistics = FeatureStatistics()
    statistics.add(torch.full((4, 2), 3.0))
    assert statistics.result()[1].tolist() == [1.0, 1.0]


def test_the_scale_of_the_features_does_not_matter_any_more():
    clips, scaled = make_clips(), make_clips(image_scale=1000, audio_scale=0.001)
    models = [localizer(normalize_features=True) for _ in range(2)]
    for model, data in zip(models, (clips, scaled)):
        fit_feature_norms(model, data, seed=0)
    torch.testing.assert_close(logits(models[0], clips), logits(models[1], scaled), rtol=1e-4, atol=1e-5)
    assert (logits(localizer(), clips) - logits(localizer(), scaled)).abs().max() > 0.05


def test_normalising_equals_training_on_normalised_features():
    clips, model = make_clips(shift=2.0), localizer(normalize_features=True)
    fit_feature_norms(model, clips, seed=0)
    image, audio = (torch.stack([clip[name] for clip in clips]) for name in ("image_features", "audio_features"))
    normed = [
        {"image_features": pictures, "audio_features": sounds}
        for pictures, sounds in zip(
            (image - image.mean((0, 1, 2))) / image.std((0, 1, 2), correction=0),
            (audio - audio.mean((0, 1))) / audio.std((0, 1), correction=0),
        )
    ]
    torch.testing.assert_close(logits(model, clips), logits(localizer(), normed), rtol=1e-4, atol=1e-5)


def test_statistics_are_saved_with_the_weights(tmp_path):
    clips, model = make_clips(image_scale=30), localizer(normalize_features=True)
    fit_feature_norms(model, clips, seed=0)
    model.save_pretrained(tmp_path)
    loaded = AVEClipForLocalization.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.image_norm.spread, model.image_norm.spread, rtol=0, atol=0)
    torch.testing.assert_close(logits(loaded, clips), logits(model, clips), rtol=0, atol=0)


def test_only_a_bounded_number_of_clips_is_read():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    clips = Counted(make_clips(MAX_CLIPS + 50))
    fit_feature_norms(localizer(normalize_features=True), clips, seed=0)
    assert clips.reads == MAX_CLIPS
    clips.reads = 0
    fit_feature_norms(localizer(), clips, seed=0)
    assert clips.reads == 0


def test_clips_that_give_no_statistics_are_named():
    clips = make_clips(3)
    clips[1]["audio_features"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="Row 1 has audio_features that are not finite"):
        fit_feature_norms(localizer(normalize_features=True), clips, seed=0)
    with pytest.raises(ValueError, match="needs cached features"):
        fit_feature_norms(localizer(normalize_features=True), [{"row": 0, "pixel_values": 1}], seed=0)
