"""The average follows the weights, lends itself to the model, and survives a restart."""

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
    expected = 1.0
    for step, weight in enumerate([2.0, 4.0, 8.0, 16.0], start=1):
        set_weight(model, weight)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    with average.applied():
        assert model[0].weight.item() == pytest.approx(expected)
    assert model[0].weight.item() == 16.0


def test_weights_come_back_even_if_the_block_fails(model):
    average = ExponentialAverage(model, 0.9)
    set_weight(model, 3.0)
    with pytest.raises(KeyError), average.applied():
        assert model[0].weight.item() == 1.0
        raise KeyError
    assert model[0].weight.item() == 3.0
    with average.applied():
        assert model[0].weight.item() == 1.0


def test_a_saved_average_goes_on_as_it_was(model):
    average = ExponentialAverage(model, 0.9)
    set_weight(model, 2.0)
    average.update()
    state = {"step": average.step, "averages": {n: t.clone() for n, t in average.state_dict()["averages"].items()}}
    other = ExponentialAverage(model, 0.9)
    other.load_state_dict(state)
    for follower in (average, other):
        set_weight(model, 5.0)
        follower.update()
    assert other.step == average.step == 2
    torch.testing.assert_close(other.state_dict()["averages"], average.state_dict()["averages"], rtol=0, atol=0)


def test_frozen_weights_are_not_kept(model):
    assert list(ExponentialAverage(model, 0.9).state_dict()["averages"]) == ["0.weight"]


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(model, decay):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        ExponentialAverage(model, decay)
