"""Finding a sound among the pictures of its clip, against AVEL's loops and on embeddings with known answers."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ave_clip.data.annotations import IGNORED_LABEL
from ave_clip.training.cross_modality import (
    embed_clips,
    find_queries,
    locate_queries,
    measure_cross_modality,
    read_embeddings,
)
from ave_clip.training.features import FeatureStore, FeatureStoreError, FeatureWriter
from tests.helpers.models import tiny_localizer

BACKGROUND = 9


def make_clip(rng, labels, noise=None):
    """Sound and pictures of one clip: equal but for noise, or unrelated."""
    sound = rng.normal(size=(len(labels), 6))
    pictures = rng.normal(size=sound.shape) if noise is None else sound + noise * rng.normal(size=sound.shape)
    streams = {"audio_features": sound, "image_features": pictures}
    return {**{name: torch.tensor(stream) for name, stream in streams.items()}, "labels": torch.tensor(labels)}


def make_clips(number, noise=None, seed=0):
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(number):
        start, end = sorted(rng.choice(11, 2, replace=False))
        clips.append(make_clip(rng, [3 if start <= t < end else BACKGROUND for t in range(10)], noise))
    return clips


def slide(query, stream, first, end):
    """AVEL's loop over places, with the mean cosine in the place of the summed distance."""
    scores = []
    for place in range(len(stream) - (end - first) + 1):
        cosines = []
        for offset in range(end - first):
            a, b = query[first + offset], stream[place + offset]
            cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        scores.append(sum(cosines) / len(cosines))
    return scores


def test_every_place_has_the_mean_cosine_that_sliding_gives():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 11, 40)
    query, stream = rng.normal(size=(40, 10, 5)), rng.normal(size=(40, 10, 5))
    spans = np.array([sorted(rng.choice(length + 1, 2, replace=False)) for length in lengths])
    found, scores = locate_queries(*map(torch.tensor, (query, stream, spans, lengths)))
    for index, (length, (first, end)) in enumerate(zip(lengths, spans)):
        expected = slide(query[index], stream[index][:length], first, end)
        np.testing.assert_allclose(scores[index, : len(expected)], expected, atol=1e-12)
        assert (scores[index, len(expected) :] == -torch.inf).all()
        assert found[index] == int(np.argmax(expected))


def test_encoders_that_compare_by_product_prefer_long_vectors():
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    stream = torch.tensor([[[1.0, 0.0], [3.0, 3.0], [0.0, 1.0]]])
    span = torch.tensor([[0, 1]])
    assert locate_queries(query, stream, span)[0].tolist() == [0]
    best, scores = locate_queries(query, stream, span, is_cosine=False)
    assert best.tolist() == [1] and scores.tolist() == [[1.0, 3.0, 0.0]]


def test_of_equal_places_the_first_is_taken():
    stream = torch.ones(1, 10, 4)
    found, _ = locate_queries(stream, stream, torch.tensor([[4, 7]]))
    assert found.tolist() == [0]


def test_streams_that_agree_are_placed_exactly_and_shifted_ones_where_they_are():
    rng = np.random.default_rng(1)
    sound = torch.tensor(rng.normal(size=(1, 10, 16)))
    shifted = sound.roll(2, dims=1)
    assert locate_queries(sound, sound, torch.tensor([[3, 6]]))[0].tolist() == [3]
    assert locate_queries(sound, shifted, torch.tensor([[3, 6]]))[0].tolist() == [5]
    assert locate_queries(shifted, sound, torch.tensor([[3, 6]]))[0].tolist() == [1]


def test_queries_are_events_shorter_than_the_clip_or_their_seconds():
    labels = [9, 3, 3, 9, 5]
    assert find_queries(labels, 9) == [(1, 3), (4, 5)]
    assert find_queries(labels, 9, "second") == [(1, 2), (2, 3), (4, 5)]
    assert find_queries([3] * 5, 9, "second") == find_queries([9] * 5, 9) == []
    assert find_queries([IGNORED_LABEL, 3, 9], 9) == [(1, 2)]
    with pytest.raises(ValueError, match="must be one of"):
        find_queries(labels, 9, "minute")


@pytest.mark.parametrize("query", ["event", "second"])
def test_agreeing_streams_are_always_right_both_ways(query):
    results = measure_cross_modality(make_clips(40, noise=0.01), BACKGROUND, query)
    for direction in ("audio_to_image", "image_to_audio"):
        assert results[direction]["accuracy"] == results[direction]["within_one"] == 1.0
        assert results[direction]["intervals"]["accuracy"] == (1.0, 1.0)


def test_unrelated_streams_are_right_as_often_as_guessing():
    results = measure_cross_modality(make_clips(3000), BACKGROUND)
    for direction in ("audio_to_image", "image_to_audio"):
        found = results[direction]
        assert found["accuracy"] == pytest.approx(found["chance"], abs=0.03)
        assert found["within_one"] == pytest.approx(found["chance_within_one"], abs=0.03)
        low, high = found["intervals"]["accuracy"]
        assert low < found["accuracy"] < high < low + 0.06


def test_guessing_is_worked_out_by_place():
    rng = np.random.default_rng(0)
    clips = [make_clip(rng, [9, 9, 9, 3]), make_clip(rng, [9, 3, 9, 9]), make_clip(rng, [3, 3, 3, 9])]
    found = measure_cross_modality(clips, BACKGROUND, num_resamples=0)["audio_to_image"]
    assert found["chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)
    assert found["chance_within_one"] == pytest.approx((2 / 4 + 3 / 4 + 2 / 2) / 3)
    assert "intervals" not in found


def test_measures_agree_with_plain_loops_on_clips_of_different_lengths_and_any_batch():
    rng = np.random.default_rng(5)
    clips = []
    for _ in range(30):
        length = int(rng.integers(4, 11))
        start, end = sorted(rng.choice(length + 1, 2, replace=False))
        clips.append(make_clip(rng, [3 if start <= t < end else BACKGROUND for t in range(length)], noise=2.0))
    right, asked = {"audio_to_image": 0, "image_to_audio": 0}, 0
    for clip in clips:
        for first, end in find_queries(clip["labels"].tolist(), BACKGROUND):
            asked += 1
            sound, pictures = clip["audio_features"].numpy(), clip["image_features"].numpy()
            right["audio_to_image"] += int(np.argmax(slide(sound, pictures, first, end))) == first
            right["image_to_audio"] += int(np.argmax(slide(pictures, sound, first, end))) == first
    for batch_size in (1, 7, 256):
        results = measure_cross_modality(clips, BACKGROUND, num_resamples=0, batch_size=batch_size)
        assert results["num_queries"] == asked
        for direction, count in right.items():
            assert results[direction]["accuracy"] == pytest.approx(count / asked)
    assert 0 < right["audio_to_image"] < asked


def test_bad_queries_are_named():
    embeds = torch.randn(1, 4, 3)
    with pytest.raises(ValueError, match=r"spans segments \[2, 5\] of a clip with 4"):
        locate_queries(embeds, embeds, torch.tensor([[2, 5]]))
    with pytest.raises(ValueError, match=r"shapes \(1, 4, 3\) and \(1, 4, 2\)"):
        locate_queries(embeds, embeds[..., :2], torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"spans of shape \(2, 2\), wanted \(1, 2\)"):
        locate_queries(embeds, embeds, torch.tensor([[0, 1], [1, 2]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        locate_queries(embeds * torch.nan, embeds, torch.tensor([[0, 1]]))
    full = make_clip(np.random.default_rng(0), [3, 3])
    with pytest.raises(ValueError, match="None of the 1 clips has an event that is shorter"):
        measure_cross_modality([full], BACKGROUND)


def write_store(folder, kind, shape):
    settings = {"encoder_fingerprint": "x", "visual_feature_type": kind, "id2label": {"0": "a", "1": "background"}}
    clips = [
        {
            "row": torch.tensor(row),
            "labels": torch.zeros(length, dtype=torch.long),
            "image_features": torch.full((length, *shape), float(row)),
            "audio_features": torch.ones(length, 3),
        }
        for row, length in ((4, 2), (7, 5))
    ]
    writer = FeatureWriter(folder, settings, {4: "", 7: ""})
    writer.write(0, clips)
    writer.finish("test")
    return FeatureStore(folder)


def test_pooled_features_are_read_without_their_padding(tmp_path):
    clips = read_embeddings(write_store(tmp_path, "pooled", (3,)))
    assert [(int(clip["row"]), len(clip["labels"]), len(clip["image_features"])) for clip in clips] == [
        (4, 2, 2),
        (7, 5, 5),
    ]
    assert [int(clip["row"]) for clip in read_embeddings(FeatureStore(tmp_path), rows=[1, 7])] == [7]


def test_feature_maps_are_refused_with_what_to_do(tmp_path):
    store = write_store(tmp_path, "dense", (4, 3))
    with pytest.raises(FeatureStoreError, match=r"contains 'dense' image features.*--visual_feature_type pooled"):
        read_embeddings(store)


def test_embedding_clips_is_what_the_towers_say_and_skips_the_unreadable():
    localizer = tiny_localizer(visual_feature_type="pooled")
    generator = torch.Generator().manual_seed(0)
    clips = [
        {
            "row": torch.tensor(row),
            "labels": torch.zeros(2, dtype=torch.long),
            "pixel_values": torch.randn(2, 1, 3, 64, 64, generator=generator),
            "frame_mask": torch.ones(2, 1, dtype=torch.bool),
            "input_values": torch.randn(2, 8000, generator=generator),
        }
        for row in (5, 2)
    ]
    embedded, unreadable = embed_clips(Accelerator(cpu=True), localizer, [*clips, {"row": 3, "error": "bad"}], 2)
    assert [int(clip["row"]) for clip in embedded] == [2, 5]
    assert unreadable == {3: "bad"}
    with torch.no_grad():
        image, audio = localizer.encode(clips[1]["pixel_values"][None], clips[1]["input_values"][None])
    torch.testing.assert_close(embedded[0]["image_features"], image[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedded[0]["audio_features"], audio[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"None of the 1 clips could be read. The first: bad"):
        embed_clips(Accelerator(cpu=True), localizer, [{"row": 3, "error": "bad"}])
