"""Batches do not depend on the number of processes, and an epoch can be entered anywhere."""

import itertools

import pytest

from ave_clip.training.sampling import GlobalBatchSampler, item_rng


def batches(num_items, batch_size, num_processes=1, epoch=0, first_batch=0, **options):
    """The batches of each process: a list per process."""
    samplers = [
        GlobalBatchSampler(num_items, batch_size, seed=3, process_index=index, num_processes=num_processes, **options)
        for index in range(num_processes)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch, first_batch)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize(("num_items", "batch_size"), [(10, 4), (9, 4), (8, 4), (3, 8), (17, 16), (65, 32)])
def test_two_processes_share_the_batches_that_one_process_has(num_items, batch_size):
    (alone,), together = batches(num_items, batch_size), batches(num_items, batch_size, 2)
    assert [first + second for first, second in zip(*together, strict=True)] == alone
    assert sorted(itertools.chain(*alone)) == list(range(num_items))
    assert all(abs(len(first) - len(second)) <= 1 for first, second in zip(*together))


def test_a_last_batch_too_small_to_share_joins_the_one_before():
    assert GlobalBatchSampler(9, 4, seed=0).global_sizes == [4, 5]
    assert GlobalBatchSampler(10, 4, seed=0).global_sizes == [4, 4, 2]
    assert GlobalBatchSampler(10, 4, seed=0, num_processes=3).global_sizes == [4, 6]
    assert GlobalBatchSampler(71, 64, seed=0).global_sizes == [71]
    assert GlobalBatchSampler(72, 64, seed=0).global_sizes == [64, 8]
    assert GlobalBatchSampler(3, 1, seed=0).global_sizes == [1, 1, 1]


def test_an_incomplete_batch_is_dropped_where_asked_for():
    assert GlobalBatchSampler(11, 4, seed=0, drop_last=True).global_sizes == [4, 4]
    assert sum(map(len, batches(11, 4, drop_last=True)[0])) == 8


def test_every_epoch_has_its_own_order_and_the_same_one_each_time():
    assert batches(50, 10, epoch=1) == batches(50, 10, epoch=1)
    assert batches(50, 10, epoch=1) != batches(50, 10, epoch=2)
    assert batches(5, 2, shuffle=False) == [[[0, 1], [2, 3, 4]]]


def test_an_epoch_resumed_in_the_middle_continues_as_without_interruption():
    assert batches(50, 10, epoch=4, first_batch=2)[0] == batches(50, 10, epoch=4)[0][2:]
    sampler = GlobalBatchSampler(50, 10, seed=3)
    sampler.set_epoch(4, first_batch=2)
    assert len(sampler) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 9, "batch_size": 2, "num_processes": 3}, "at least 3"),
        ({"num_items": 2, "batch_size": 8, "num_processes": 3}, "2 items give no batch of 8 for 3 processes"),
        ({"num_items": 0, "batch_size": 8}, "0 items give no batch of 8 for 1 process"),
        ({"num_items": 7, "batch_size": 8, "drop_last": True}, "when an incomplete batch is dropped"),
        ({"num_items": 9, "batch_size": 2, "process_index": 1}, "process 1 of 1"),
    ],
)
def test_sizes_that_leave_a_process_without_items_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(seed=0, **arguments)


def test_beginning_after_the_end_of_an_epoch_is_refused():
    with pytest.raises(ValueError, match="first_batch=4, but an epoch has 3 batches"):
        GlobalBatchSampler(12, 4, seed=0).set_epoch(0, 4)


def test_randomness_of_an_item_depends_on_seed_epoch_and_item_only():
    assert item_rng(0, 1, 2).random() == item_rng(0, 1, 2).random() != item_rng(0, 2, 1).random()
