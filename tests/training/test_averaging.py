"""The average follows the weights, lends itself to the model, and survives a restart."""

import copy

import pytest
import torch

from ave_clip.training.averaging import ExponentialAverage


@pytest.fixture
def model():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    model[1].requires_grad_(False)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    return model


def set_weight(model, value):
    with torch.no_grad():
        model[0].weight.fill_(value)


def test_the_average_follows_the_weights_by_its_decay(model):
    average = ExponentialAverage(model, 0.5)
    expected = 2.0  # the first update copies
    for count, weight in enumerate([2.0, 4.0, 8.0, 16.0, 32.0]):
        set_weight(model, weight)
        average.update()
        if count:
            decay = min(0.5, (1 + count) / (10 + count))
            expected = decay * expected + (1 - decay) * weight
    with average.applied():
        assert model[0].weight.item() == pytest.approx(expected)
    assert model[0].weight.item() == 32.0


def test_weights_come_back_even_if_the_block_fails(model):
    average = ExponentialAverage(model, 0.9)
    set_weight(model, 3.0)
    with pytest.raises(KeyError), average.applied():
        assert model[0].weight.item() == 1.0
        raise KeyError
    assert model[0].weight.item() == 3.0
    with average.applied():
        assert model[0].weight.item() == 1.0


def test_a_saved_average_continues_unchanged(model):
    average = ExponentialAverage(model, 0.9)
    for value in (2.0, 3.0):
        set_weight(model, value)
        average.update()
    other = ExponentialAverage(model, 0.9)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    set_weight(model, 5.0)
    for follower in (average, other):
        follower.update()
    assert other.n_averaged == average.n_averaged == 3
    torch.testing.assert_close(other.state_dict(), average.state_dict(), rtol=0, atol=0)
    assert average.module[0].item() != 5.0


def test_frozen_weights_are_not_kept(model):
    assert len(ExponentialAverage(model, 0.9).module) == 1


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(model, decay):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        ExponentialAverage(model, decay)
