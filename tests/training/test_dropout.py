"""Masks follow from seed, epoch, row, layer and element, whatever batch a clip is in."""

import pytest
import torch
from torch import nn

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.training.dropout import mix, use_keyed_dropout


def network():
    return nn.Sequential(nn.Dropout(0.25), nn.Sequential(nn.Dropout(0.5)), nn.Identity())


def masks(rows, seed=0, epoch=0, shape=(7, 5)):
    """What each of two layers keeps of ones, for each row."""
    model = network()
    dropout = use_keyed_dropout(model)
    dropout.set(seed, epoch, torch.tensor(rows))
    ones = torch.ones(len(rows), *shape)
    return torch.stack([model[0](ones), model[1](ones)], dim=1)


def test_a_clip_gets_the_same_masks_at_any_position():
    together = masks([3, 8, 5])
    torch.testing.assert_close(masks([5, 3]), together[[2, 0]], rtol=0, atol=0)


def test_padding_behind_a_clip_does_not_move_its_mask():
    torch.testing.assert_close(masks([3], shape=(9, 5))[:, :, :7], masks([3]), rtol=0, atol=0)


def test_seed_epoch_row_and_layer_all_change_the_mask():
    reference = masks([3], shape=(40,))[0]
    others = [masks([3], seed=1, shape=(40,))[0], masks([3], epoch=1, shape=(40,))[0], masks([4], shape=(40,))[0]]
    for other in others:
        assert not torch.equal(other[0], reference[0])
        assert not torch.equal(other[1], reference[1])
    assert not torch.equal(reference[0] > 0, reference[1] > 0)


def test_a_layer_that_runs_twice_in_a_step_has_two_masks_and_the_same_two_each_time():
    model = nn.Sequential(nn.Dropout(0.5))
    dropout = use_keyed_dropout(model)
    pairs = []
    for _ in range(2):
        dropout.set(0, 0, torch.arange(2))
        pairs.append((model(torch.ones(2, 50)), model(torch.ones(2, 50))))
    assert not torch.equal(*pairs[0])
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][1], pairs[1][1])


@pytest.mark.parametrize(("layer", "probability"), [(0, 0.25), (1, 0.5)])
def test_the_share_of_dropped_elements_is_the_probability_and_the_mean_is_kept(layer, probability):
    values = masks(list(range(100)), shape=(10, 100))[:, layer]
    assert (values == 0).float().mean() == pytest.approx(probability, abs=0.005)
    torch.testing.assert_close(values.unique(), torch.tensor([0, 1 / (1 - probability)]))
    for dimension in (0, 1, 2):  # no clip, place or feature is dropped more often than chance explains
        shares = (values == 0).float().mean(dim=[axis for axis in range(3) if axis != dimension])
        deviation = (probability * (1 - probability) / (values.numel() / len(shares))) ** 0.5
        assert ((shares - probability).abs() / deviation).max() < 4.5


def test_neighbouring_rows_have_independent_masks():
    kept = masks(list(range(50)), shape=(1000,))[:, 1] > 0
    agreement = (kept[1:] == kept[:-1]).float().mean(dim=1)
    assert (agreement - 0.5).abs().max() < 0.07


def test_evaluation_drops_nothing_and_needs_no_rows():
    model = network()
    use_keyed_dropout(model)
    ones = torch.ones(2, 3)
    assert torch.equal(model.eval()(ones), ones)


def test_training_without_the_rows_of_the_batch_is_refused():
    model = network()
    dropout = use_keyed_dropout(model)
    with pytest.raises(ValueError, match="got 2 clips, but `set` was called with 0 rows"):
        model(torch.ones(2, 3))
    dropout.set(0, 0, torch.arange(3))
    with pytest.raises(ValueError, match="got 2 clips, but `set` was called with 3 rows"):
        model(torch.ones(2, 3))


def test_every_dropout_of_the_localizer_is_replaced_and_its_weights_keep_their_names():
    config = AVEClipConfig(
        use_encoders=False, image_feature_size=6, audio_feature_size=4, hidden_size=8, dropout=0.5, num_labels=3
    )
    model = AVEClipForLocalization(config)
    names = list(model.state_dict())
    dropout = use_keyed_dropout(model)
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert list(model.state_dict()) == names
    features = {"image_features": torch.rand(3, 10, 4, 6), "audio_features": torch.rand(3, 10, 4)}
    dropout.set(0, 0, torch.tensor([4, 1, 7]))
    together = model.train()(**features).logits
    dropout.set(0, 0, torch.tensor([1]))
    alone = model(**{name: tensor[1:2] for name, tensor in features.items()}).logits
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-5)


def test_the_hash_is_the_published_one_and_wraps_as_unsigned_numbers_do():
    def reference(value):
        value ^= value >> 16
        value = value * 0x7FEB352D % 2**32
        value ^= value >> 15
        value = value * 0x846CA68B % 2**32
        return value ^ (value >> 16)

    numbers = [0, 1, 2, 12345, 2**31 - 1]
    assert [value % 2**32 for value in mix(torch.tensor(numbers, dtype=torch.int32)).tolist()] == [
        reference(number) for number in numbers
    ]
    assert mix(torch.tensor([-1], dtype=torch.int32)).item() % 2**32 == reference(2**32 - 1)
