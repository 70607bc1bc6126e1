"""Cross-modality localization, AVEL's second task: locate an audio segment in the frames of its clip, and vice versa.

The query is the l seconds of one event in one modality. It slides over the other modality of the same clip; the answer
is the start at which the mean similarity of the l pairs of embeddings is highest (the first one on ties): the cosine,
or the product for encoders that compare by it, such as PE-AV. AVEL minimizes the sum of learned distances instead; an
embedding space that images and audio share needs no training for the task.

As in AVEL, an answer is only correct if the start is exact. Events that fill their clip are left out, since they have
only one possible start. Queries can also be single seconds of events.

B clips, T segments, D width, Q queries.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.nn.functional import normalize
from torch.utils.data import Subset

from ..core.configuration_ave_clip import AVEClipConfig
from ..core.encoders import shared_space_of
from ..core.modeling_ave_clip import AVEClipForLocalization
from ..core.similarity import SharedSpace
from .bootstrap import bootstrap_draws, percentile_interval
from .features import FeatureStore, FeatureStoreError
from .metrics import Labels, event_spans
from .splits import Clips, ReadableBatches

DIRECTIONS = ("audio_to_image", "image_to_audio")
QUERIES = ("event", "second")


def find_queries(labels: Labels, background: int, query: str = "event") -> list[tuple[int, int]]:
    """Returns the query spans of one clip: its events that are shorter than the clip, or each second of them.

    >>> find_queries([9, 3, 3, 9], background=9)
    [(1, 3)]
    >>> find_queries([9, 3, 3, 9], background=9, query="second")
    [(1, 2), (2, 3)]
    >>> find_queries([3, 3, 3, 3], background=9)
    []

    Args:
        labels (`Sequence[int]`): Class id of each segment.
        background (`int`): Class id of background.
        query (`str`): `"event"` for whole events, or `"second"` for each of their segments.

    Returns:
        `list[tuple[int, int]]`: first segment and end, exclusive.

    Raises:
        ValueError: if `query` is something else.
    """
    if query not in QUERIES:
        raise ValueError(f"`query` must be one of {list(QUERIES)}, got {query!r}.")
    spans = [(first, end) for _, first, end in event_spans(labels, background) if end - first < len(labels)]
    if query == "event":
        return spans
    return [(segment, segment + 1) for first, end in spans for segment in range(first, end)]


MAX_SIMILARITIES = 2**24  # of a batch of queries


def locate_queries(
    query_embeds: torch.Tensor,
    stream_embeds: torch.Tensor,
    spans: torch.Tensor,
    lengths: torch.Tensor | None = None,
    is_cosine: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Locates each query span of one modality in the other modality of its clip.

    Args:
        query_embeds (`torch.Tensor` of shape `(Q, T, D)`): Embeddings of the modality of the query.
        stream_embeds (`torch.Tensor` of shape `(Q, T, D)`): Embeddings of the other modality.
        spans (`torch.LongTensor` of shape `(Q, 2)`): First segment of each query and its end, exclusive.
        lengths (`torch.LongTensor` of shape `(Q,)`, *optional*): Segments of each clip, if some are padding.
        is_cosine (`bool`): Compare by cosine, not by product.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the best start, `(Q,)`, and the mean similarity at each start, `(Q, T)`,
        minus infinity where the query does not fit.

    Raises:
        ValueError: if shapes do not match, embeddings are not finite, or a span is outside its clip.
    """
    num_queries, num_segments = query_embeds.shape[:2]
    lengths = torch.full((num_queries,), num_segments) if lengths is None else lengths
    _check_queries(query_embeds, stream_embeds, spans, lengths)
    embeds = [query_embeds.double(), stream_embeds.double()]
    if is_cosine:
        embeds = [normalize(tensor, dim=-1) for tensor in embeds]
    similarity = embeds[0] @ embeds[1].mT  # (Q, T, T)
    starts = torch.arange(num_segments, device=similarity.device)
    first, size = spans[:, 0], spans[:, 1] - spans[:, 0]
    total = similarity.new_zeros(num_queries, num_segments)
    queries = torch.arange(num_queries, device=similarity.device)
    # Adds the similarity of the second, third, ... segment of each query, for all starts at once.
    for offset in range(int(size.max()) if num_queries else 0):
        rows = similarity[queries, (first + offset).clamp(max=num_segments - 1)]  # (Q, T)
        shifted = rows[:, (starts + offset).clamp(max=num_segments - 1)]
        total = total + torch.where((offset < size).unsqueeze(1), shifted, 0.0)
    is_inside = starts <= (lengths - size).unsqueeze(1)
    scores = (total / size.unsqueeze(1)).masked_fill(~is_inside, -torch.inf)
    # The first of the scores that are equal to the highest up to rounding.
    highest = scores.max(dim=1, keepdim=True).values
    best = (scores >= highest - 1e-12 * highest.abs().clamp(min=1)).int().argmax(dim=1)
    return best, scores


def measure_cross_modality(
    clips: Sequence[Mapping[str, torch.Tensor]],
    background: int,
    query: str = "event",
    num_resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    is_cosine: bool = True,
) -> dict[str, object]:
    """Measures how often the queries of all clips are located, in both directions.

    Args:
        clips (`Sequence[Mapping[str, torch.Tensor]]`): Each with `audio_features` and `image_features` `(T, D)`, one
            embedding per segment in the joint space, and `labels` `(T,)`.
        background (`int`): Class id of background.
        query (`str`): As in `find_queries`.
        num_resamples (`int`): Bootstrap resamples of the clips; 0 leaves the intervals out.
        seed (`int`): Seed of the bootstrap.
        batch_size (`int`): Queries per batch.
        is_cosine (`bool`): As in `locate_queries`.

    Returns:
        `dict[str, object]`: `num_queries`, `num_clips` with a query, and for `audio_to_image` and `image_to_audio`
        the fraction of queries located exactly (`accuracy`) or at most one segment away (`within_one`), the same for
        random guessing (`chance`, `chance_within_one`), and `intervals` (95 %).

    Raises:
        ValueError: if no clip has an event that is shorter than the clip, or as in `locate_queries`.
    """
    asked = [
        (index, span)
        for index, clip in enumerate(clips)
        for span in find_queries(clip["labels"].tolist(), background, query)
    ]
    if not asked:
        raise ValueError(
            f"None of the {len(clips)} clips has an event that is shorter than the clip, so there is no query. Pass "
            "other rows."
        )
    clip_of = np.array([index for index, _ in asked])
    members = sorted(set(clip_of.tolist()))
    columns = {direction: [] for direction in DIRECTIONS}
    for audio, image, spans, lengths in _batch_queries(clips, asked, batch_size):
        for direction, streams in zip(DIRECTIONS, ((audio, image), (image, audio))):
            found, _ = locate_queries(*streams, spans, lengths, is_cosine)
            columns[direction].append(_score_starts(found, spans, lengths))
    draws = bootstrap_draws(len(members), num_resamples, seed) if num_resamples else None
    weights = None if draws is None else draws[:, np.searchsorted(members, clip_of)]  # (R, Q)
    results = {direction: _summarize(torch.cat(parts).numpy(), weights) for direction, parts in columns.items()}
    return {"num_queries": len(asked), "num_clips": len(members), **results}


@torch.no_grad()
def embed_clips(
    accelerator: Accelerator,
    localizer: AVEClipForLocalization,
    clips: Clips,
    batch_size: int = 1,
    num_workers: int = 0,
) -> tuple[list[dict[str, torch.Tensor]], dict[int, str]]:
    """Embeds each clip once, with any number of processes.

    Args:
        accelerator (`Accelerator`): Each of its processes takes every n-th clip.
        localizer (`AVEClipForLocalization`): A localizer with an encoder and `visual_feature_type="pooled"`.
        clips (`Dataset`): Rows of `ClipReader`.
        batch_size (`int`): Clips per process.
        num_workers (`int`): Data loading processes per process.

    Returns:
        `tuple`: clips for `measure_cross_modality`, sorted by `row`, and the reason for each unreadable row.

    Raises:
        ValueError: if no clip can be read.
    """
    localizer.eval()
    own = Subset(clips, range(accelerator.process_index, len(clips), accelerator.num_processes))
    batches = ReadableBatches(own, batch_size, num_workers)
    embedded = []
    for batch in batches:
        names = ("pixel_values", "input_values", "frame_mask", "segment_mask")
        inputs = send_to_device({name: batch[name] for name in names}, accelerator.device)
        image_features, audio_features = localizer.encode(**inputs)
        columns = {"image_features": image_features.float().cpu(), "audio_features": audio_features.float().cpu()}
        columns |= {"labels": batch["labels"], "segment_mask": batch["segment_mask"], "row": batch["rows"]}
        embedded += [cut_padding(dict(zip(columns, values))) for values in zip(*columns.values())]
    unreadable = dict(sorted(gather_object(list(batches.unreadable.items()))))
    embedded = sorted(gather_object(embedded), key=lambda clip: int(clip["row"]))
    if not embedded:
        first = next(iter(unreadable.values()), "there is no clip at all")
        raise ValueError(f"None of the {len(clips)} clips could be read. The first: {first}")
    return embedded, unreadable


def read_embeddings(store: FeatureStore, rows: Sequence[int] | None = None) -> list[dict[str, torch.Tensor]]:
    """Reads the clips of a store of pooled features for `measure_cross_modality`.

    Args:
        store (`FeatureStore`): Features of stage 2.
        rows (`Sequence[int]`, *optional*): Row numbers to read, if the store has them. Default: all.

    Raises:
        FeatureStoreError: if it contains feature maps, or is damaged.
    """
    check_pooled(store)
    wanted = set(store.rows if rows is None else rows)
    return [store[index] for index, row in enumerate(store.rows) if row in wanted]


def cut_padding(clip: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a clip without the segments that its `segment_mask` marks as padding."""
    length = int(clip["segment_mask"].sum())
    names = ("image_features", "audio_features", "labels")
    return {"row": clip["row"], **{name: clip[name][:length] for name in names}}


def check_pooled(store: FeatureStore) -> None:
    """Checks that a feature store contains one embedding per segment in the joint space.

    Raises:
        FeatureStoreError: if it contains feature maps.
    """
    kind = store.manifest["visual_feature_type"]
    if kind != "pooled":
        raise FeatureStoreError(
            f"{store.folder} contains {kind!r} image features: a map of locations per segment, not the pooled "
            "embedding in the joint space of images and audio. Extract them again with --visual_feature_type pooled "
            "to another folder, or pass the videos."
        )


def space_of_store(store: FeatureStore) -> SharedSpace:
    """Returns the space in which the encoder of a feature store compares images with audio.

    Raises:
        ValueError: if it has none.
    """
    model = store.manifest.get("model") or {}
    # Stores of early versions do not describe their encoder: it was an AudioCLIP, the default.
    config = AVEClipConfig(encoder_config=model.get("config")).encoder_config
    return shared_space_of(config, f"The encoder of {store.folder}")


def _check_queries(
    query_embeds: torch.Tensor, stream_embeds: torch.Tensor, spans: torch.Tensor, lengths: torch.Tensor
) -> None:
    if query_embeds.shape != stream_embeds.shape or query_embeds.dim() != 3:
        raise ValueError(
            f"Got embeddings of shapes {tuple(query_embeds.shape)} and {tuple(stream_embeds.shape)}: both must be "
            "(queries, segments, width), one embedding per segment in one joint space."
        )
    if spans.shape != (len(query_embeds), 2):
        raise ValueError(f"Got spans of shape {tuple(spans.shape)}, wanted ({len(query_embeds)}, 2): one per query.")
    outside = (spans[:, 0] < 0) | (spans[:, 1] <= spans[:, 0]) | (spans[:, 1] > lengths)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"Query {index} spans segments {spans[index].tolist()} of a clip with {int(lengths[index])}: spans "
            "need 0 <= first < end <= segments."
        )
    if not (query_embeds.isfinite().all() and stream_embeds.isfinite().all()):
        raise ValueError("The embeddings contain NaN or infinite values, so they cannot be compared.")


def _batch_queries(
    clips: Sequence[Mapping[str, torch.Tensor]], asked: Sequence[tuple[int, tuple[int, int]]], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    # The similarities of a query are a square of segments: fewer queries at once of long videos.
    longest = max(len(clips[index]["labels"]) for index, _ in asked)
    batch_size = max(1, min(batch_size, MAX_SIMILARITIES // longest**2))
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        audio, image = (
            torch.nn.utils.rnn.pad_sequence([clips[index][name].float() for index, _ in part], batch_first=True)
            for name in ("audio_features", "image_features")
        )
        lengths = torch.tensor([len(clips[index]["labels"]) for index, _ in part])
        yield audio, image, torch.tensor([span for _, span in part]), lengths


def _score_starts(found: torch.Tensor, spans: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Returns for each query whether the start is exact, or at most one away, and the chance of each, `(Q, 4)`."""
    first, last = spans[:, 0], lengths - (spans[:, 1] - spans[:, 0])  # last possible start
    distance = (found - first).abs()
    near = torch.minimum(first + 1, last) - (first - 1).clamp(min=0) + 1
    places = last + 1
    return torch.stack([distance == 0, distance <= 1, 1 / places, near / places], dim=1).double()


def _summarize(scores: np.ndarray, weights: np.ndarray | None) -> dict[str, object]:
    names = ("accuracy", "within_one", "chance", "chance_within_one")
    summary: dict[str, object] = dict(zip(names, map(float, scores.mean(axis=0))))
    if weights is not None:
        resampled = weights @ scores[:, :2] / weights.sum(axis=1, keepdims=True)
        summary["intervals"] = {name: percentile_interval(values) for name, values in zip(names, resampled.T)}
    return summary
