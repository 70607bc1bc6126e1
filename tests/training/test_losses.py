"""InfoNCE: values, masks, and the same gradient in one process as in two."""

import math

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F

from ave_clip.training.losses import (
    FALSE_NEGATIVE_MASKS,
    audio_image_contrastive_loss,
    audio_image_sigmoid_loss,
    false_negatives,
    gather_segments,
    gather_with_gradient,
)

CLASSES = torch.tensor([0, 1, 0, 2])
VIDEOS = torch.tensor([0, 1, 2, 3])


def embeds(seed=0, number=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, number, 6, generator=generator)


def test_loss_is_the_sum_of_both_cross_entropies():
    audio, image = embeds()
    logits = 10 * F.normalize(audio, dim=-1) @ F.normalize(image, dim=-1).T
    targets = torch.arange(4)
    expected = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
    loss = audio_image_contrastive_loss(audio, image, 10.0, CLASSES, VIDEOS, mask="none")
    torch.testing.assert_close(loss, expected)


def test_equal_embeddings_cost_log_n_each_way():
    ones = torch.ones(5, 3)
    ids = torch.arange(5)
    assert audio_image_contrastive_loss(ones, ones, 1.0, ids, ids).item() == pytest.approx(2 * math.log(5), rel=1e-6)


def test_class_mask_leaves_same_class_pairs_out_of_the_denominator():
    audio, image = embeds()
    moved = image.clone()
    moved[2] = torch.randn(6)  # same class as segment 0
    rows = [
        F.cross_entropy(10 * F.normalize(audio[[0]], dim=-1) @ F.normalize(x[[0, 1, 3]], dim=-1).T, torch.tensor([0]))
        for x in (image, moved)
    ]
    assert rows[0] == rows[1]
    expected = torch.tensor([[False, False, True, False], [False] * 4, [True, False, False, False], [False] * 4])
    torch.testing.assert_close(false_negatives(CLASSES, VIDEOS, "class"), expected)


def test_masked_pairs_get_no_gradient():
    audio, image = embeds()
    image.requires_grad_()
    same = torch.zeros(4, dtype=torch.long)
    loss = audio_image_contrastive_loss(audio, image, 10.0, same, VIDEOS, mask="class")
    loss.backward()
    assert loss.item() == 0.0
    assert image.grad.abs().max().item() == 0.0


def test_pairs_of_one_class_are_no_negatives_unless_asked_for():
    generator = torch.Generator().manual_seed(0)
    audio, image = torch.randn(2, 4, 8, generator=generator)
    classes, videos = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 2])
    arguments = (audio, image, 5.0, classes, videos)
    by_mask = {mask: audio_image_contrastive_loss(*arguments, mask=mask).item() for mask in FALSE_NEGATIVE_MASKS}
    assert audio_image_contrastive_loss(*arguments).item() == by_mask["class"]
    assert by_mask["class"] < by_mask["video"] < by_mask["none"]


def test_video_mask_keeps_other_videos_of_the_class_as_negatives():
    videos = torch.tensor([0, 1, 0, 3])
    marked = false_negatives(torch.zeros(4, dtype=torch.long), videos, "video")
    assert marked.nonzero().tolist() == [[0, 2], [2, 0]]


def test_a_segment_is_never_its_own_false_negative():
    for mask in ("none", "video", "class"):
        assert not false_negatives(torch.zeros(3), torch.zeros(3), mask).diagonal().any()


def test_unpaired_segments_only_serve_as_negatives():
    audio, image = embeds(number=6)
    ids = torch.arange(6)
    with_extra = audio_image_contrastive_loss(audio, image, 10.0, ids, ids, num_pairs=4)
    sounds, pictures = F.normalize(audio, dim=-1), F.normalize(image, dim=-1)
    targets = torch.arange(4)
    expected = F.cross_entropy(10 * sounds[:4] @ pictures.T, targets) + F.cross_entropy(
        10 * pictures[:4] @ sounds.T, targets
    )
    torch.testing.assert_close(with_extra, expected)
    assert with_extra > audio_image_contrastive_loss(audio[:4], image[:4], 10.0, ids[:4], ids[:4])


def test_lengths_of_embeddings_do_not_matter():
    audio, image = embeds()
    loss = audio_image_contrastive_loss(audio, image, 10.0, CLASSES, VIDEOS)
    torch.testing.assert_close(audio_image_contrastive_loss(3 * audio, image / 7, 10.0, CLASSES, VIDEOS), loss)


@pytest.mark.parametrize(("number", "num_pairs"), [(3, None), (4, 0), (4, 5)])
def test_unequal_counts_are_refused(number, num_pairs):
    audio, image = embeds()
    with pytest.raises(ValueError, match=f"Got {number} audio embeddings, 4 image embeddings"):
        audio_image_contrastive_loss(audio[:number], image, 1.0, CLASSES, VIDEOS, num_pairs=num_pairs)


def test_an_unknown_mask_is_refused():
    with pytest.raises(ValueError, match="'klass': choose one of none, video, class"):
        false_negatives(CLASSES, VIDEOS, "klass")


def encode_and_differentiate(weight, inputs, classes):
    """Gradient of the loss over all processes' segments with respect to a weight shared by both towers."""
    weight = weight.clone().requires_grad_()
    audio, image = (inputs @ weight).unbind()
    audio, image, classes = gather_with_gradient(audio), gather_with_gradient(image), gather_with_gradient(classes)
    loss = audio_image_contrastive_loss(audio, image, 10.0, classes, torch.arange(len(classes)))
    loss.backward()
    return loss.detach(), weight.grad


def test_unpaired_segments_of_ones_own_video_are_negatives_under_every_mask():
    videos, classes = torch.tensor([0, 1, 0, 1]), torch.tensor([5, 5, 9, 9])
    for mask in ("none", "video", "class"):
        assert not false_negatives(classes, videos, mask, num_pairs=2)[:, 2:].any()
    assert false_negatives(classes, videos, "class", num_pairs=2)[:, :2].tolist() == [[False, True], [True, False]]


def gather_uneven(rank):
    """Segments 0 to 2 (the last unpaired) and 3 to 4, gathered; with the gradient of a weighted sum."""
    segments = torch.arange(5.0)[[slice(0, 3), slice(3, 5)][rank]].requires_grad_()
    everything = gather_segments(segments, 2)
    (everything * torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])).sum().backward()
    nothing = gather_with_gradient(torch.zeros(0, 3, requires_grad=True))
    nothing.sum().backward()
    return everything.detach(), segments.grad, nothing.shape


def run_process(rank, folder, weight, inputs, classes):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = slice(rank * 3, rank * 3 + 3)
    loss, gradient = encode_and_differentiate(weight, inputs[:, part], classes[part])
    torch.distributed.all_reduce(gradient)  # DDP takes the mean over processes
    torch.save({"large_batch": (loss, gradient / 2), "uneven": gather_uneven(rank)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(5, 4, generator=generator), torch.randn(2, 6, 5, generator=generator)
    return weight, inputs, torch.tensor([0, 1, 2, 0, 3, 4])


@pytest.fixture(scope="module")
def of_two_processes(batch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(run_process, (str(folder), *batch), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_get_the_gradient_of_one_with_the_whole_batch(batch, of_two_processes):
    loss, gradient = encode_and_differentiate(*batch)
    for results in of_two_processes:
        other_loss, other_gradient = results["large_batch"]
        torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_processes_may_bring_different_numbers_of_pairs_and_of_unpaired_segments(of_two_processes):
    for results, gradients in zip(of_two_processes, ([2, 20, 20000], [200, 2000])):  # both losses add up
        everything, gradient, nothing = results["uneven"]
        assert everything.tolist() == [0, 1, 3, 4, 2]  # the pairs of both, then what is unpaired
        assert gradient.tolist() == gradients
        assert nothing == (0, 3)


def test_the_sigmoid_loss_judges_each_combination_except_masked_and_two_unpaired_ones():
    audio, image = embeds(number=5)
    classes, videos = torch.tensor([0, 1, 0, 2, 9]), torch.tensor([0, 1, 2, 3, 0])  # the last is unpaired
    expected = 0.0
    for first in range(5):
        for second in range(5):
            if (first, second) in ((0, 2), (2, 0), (4, 4)):
                continue
            logit = 2.0 * float(audio[first] @ image[second]) - 1.5
            expected += math.log1p(math.exp(-logit if first == second else logit))
    loss = audio_image_sigmoid_loss(audio, image, 2.0, -1.5, classes, videos, num_pairs=4)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)
    with pytest.raises(ValueError, match="num_pairs=6"):
        audio_image_sigmoid_loss(audio, image, 2.0, -1.5, classes, videos, num_pairs=6)
