"""The loss of dense boundaries: which points answer for which event, focal loss and distance-IoU loss.

Shapes: B batch, P points of all levels of the pyramid, C classes, E events (padded).
"""

import torch

from .categories import IGNORED_LABEL
from .losses import focal_terms

CENTER_RADIUS = 1.5  # points around the middle of an event that learn it, in points of their level (ActionFormer)
FINEST_RANGE = 4.0  # the longest distance, in segments, that the first level learns; twice as much per further level
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # of Lin et al. 2017, as in ActionFormer


def point_centers(num_points: int, level: int, device: torch.device | None = None) -> torch.Tensor:
    """Returns the times of a level's points in segments: the middle of the segments that each stands for.

    >>> point_centers(3, level=1).tolist()
    [1.0, 3.0, 5.0]
    """
    return (torch.arange(num_points, device=device) + 0.5) * 2**level


def boundary_loss(
    logits: torch.Tensor,
    spans: torch.Tensor,
    event_spans: torch.Tensor,
    event_classes: torch.Tensor,
    labels: torch.Tensor,
    num_levels: int,
) -> torch.Tensor:
    """Focal loss of all points plus distance-IoU loss of those with an event, per point with an event.

    With several processes, each divides by its own number of such points.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_points, num_labels)`), spans (`torch.Tensor` of shape
            `(batch_size, num_points, num_labels, 2)`): Results of [`AVEClipBoundaryHead`].
        event_spans (`torch.Tensor` of shape `(batch_size, num_events, 2)`): Start and end of the events in segments.
        event_classes (`torch.LongTensor` of shape `(batch_size, num_events)`): Their classes; -100 is padding.
        labels (`torch.LongTensor` of shape `(batch_size, num_segments, num_labels)`): Labels of the segments; points
            whose label is unknown (-100) are not counted.
        num_levels (`int`): Levels of the pyramid.
    """
    event_spans, event_classes = event_spans.to(logits.device), event_classes.to(logits.device)
    num_points = [len(labels[0, :: 2**level]) for level in range(num_levels)]
    is_known = torch.cat([labels[:, :: 2**level] != IGNORED_LABEL for level in range(num_levels)], dim=1)
    has_event, targets = assign_events(num_points, event_spans, event_classes, logits.shape[-1])
    has_event = has_event & is_known
    focal = focal_terms(logits, has_event.float(), FOCAL_GAMMA)
    focal = focal * torch.where(has_event, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    number = has_event.sum().clamp(min=1)
    overlap = distance_iou_loss(spans[has_event], targets[has_event])
    return ((focal * is_known).sum() + overlap.sum()) / number


def checked_events(
    event_spans: torch.Tensor | None, event_classes: torch.Tensor | None, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact times and the classes of events; raises `ValueError` if they are missing or misshapen."""
    if event_spans is None or event_classes is None:
        raise ValueError(
            "A localizer with boundary_regression=True learns the exact times of events: pass `event_spans` and "
            "`event_classes` together with `labels`, or configure boundary_regression=False."
        )
    if event_spans.shape != (*event_classes.shape, 2) or len(event_classes) != batch_size:
        raise ValueError(
            "`event_spans` must have the shape (batch, events, 2) and `event_classes` (batch, events) for a batch of "
            f"{batch_size}, got {tuple(event_spans.shape)} and {tuple(event_classes.shape)}."
        )
    return event_spans, event_classes


def assign_events(
    num_points: list[int], event_spans: torch.Tensor, event_classes: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the event of each point and class, as ActionFormer does (sec. 3.4).

    A point learns an event that contains it, if it is near the middle of the event, and if the longer of its two
    distances is in the range of its level. Of two such events of one class it learns the shorter one.

    Args:
        num_points (`list[int]`): Number of points of each level.
        event_spans (`torch.Tensor` of shape `(batch_size, num_events, 2)`): Start and end in segments.
        event_classes (`torch.LongTensor` of shape `(batch_size, num_events)`): Classes; -100 is padding.
        num_classes (`int`): Number of classes.

    Returns:
        Whether a point has an event of a class `(batch_size, num_points, num_classes)`, and the start and end of that
        event `(batch_size, num_points, num_classes, 2)`, 0 where there is none.
    """
    centers, radii, lowest, highest = _point_facts(num_points, event_spans.device)
    starts, ends = event_spans.unsqueeze(1).float().unbind(dim=-1)  # (B, 1, E) each
    onset, offset = centers - starts, ends - centers  # (B, P, E)
    longest = torch.maximum(onset, offset)
    is_inside = (torch.minimum(onset, offset) > 0) & ((onset - offset).abs() / 2 <= radii)
    fits = is_inside & (longest > lowest) & (longest <= highest)
    is_class = event_classes.unsqueeze(-1) == torch.arange(num_classes, device=event_classes.device)  # (B, E, C)
    fits = fits.unsqueeze(-1) & is_class.unsqueeze(1)  # (B, P, E, C)
    if not event_spans.shape[1]:
        empty = fits.new_zeros(fits.shape[0], fits.shape[1], num_classes)
        return empty, event_spans.new_zeros(*empty.shape, 2)
    lengths = (ends - starts).unsqueeze(-1).masked_fill(~fits, torch.inf)
    shortest = lengths.argmin(dim=2)  # (B, P, C)
    rows = torch.arange(len(event_spans), device=event_spans.device).view(-1, 1, 1)
    has_event = fits.any(dim=2)
    return has_event, event_spans[rows, shortest] * has_event.unsqueeze(-1)


def distance_iou_loss(spans: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Distance-IoU loss of intervals (Zheng et al. 2020): 1 - IoU + squared distance of the middles, relative.

    Args:
        spans (`torch.Tensor` of shape `(..., 2)`), targets (same): Start and end, each pair with an intersection.
    """
    (start, end), (true_start, true_end) = spans.unbind(-1), targets.unbind(-1)
    shared = (torch.minimum(end, true_end) - torch.maximum(start, true_start)).clamp(min=0)
    union = (end - start) + (true_end - true_start) - shared
    hull = torch.maximum(end, true_end) - torch.minimum(start, true_start)
    middles = (start + end - true_start - true_end) / 2
    return 1 - shared / union.clamp(min=1e-8) + (middles / hull.clamp(min=1e-8)) ** 2


def _point_facts(num_points: list[int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Returns center, radius, and the limits of the longer distance of each point, of shape `(P, 1)`."""
    facts = []
    for level, number in enumerate(num_points):
        # From 4 to 8 segments on the second level, and so on; the last one also takes what is longer.
        lowest = FINEST_RANGE * 2 ** (level - 1) if level else 0.0
        highest = FINEST_RANGE * 2**level if level < len(num_points) - 1 else torch.inf
        limits = torch.tensor([CENTER_RADIUS * 2**level, lowest, highest], device=device)
        facts.append(torch.cat([point_centers(number, level, device)[:, None], limits.expand(number, 3)], dim=1))
    return tuple(column.unsqueeze(-1) for column in torch.cat(facts).unbind(dim=1))


__all__ = ["assign_events", "boundary_loss", "checked_events", "distance_iou_loss", "point_centers"]
