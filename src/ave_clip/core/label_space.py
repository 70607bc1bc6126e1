"""The label space of a localizer: its classes, and whether a segment has exactly one of them or any number.

Everything that depends on this asks [`LabelSpace`]: activation, loss, targets, checks of labels, and decoding.

Shapes: B batch, T segments, C classes (with background in a single-label space, without it in a multi-label one).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .categories import BACKGROUND_LABEL, IGNORED_LABEL, MULTI_LABEL, SINGLE_LABEL, class_names
from .events import Event, decode_events, decode_labels, find_events, find_overlapping_events, span_in_seconds
from .losses import multi_label_loss, multi_label_video_loss, segment_loss, video_level_loss
from .proposals import Proposals, dense_proposals, place_events, propose_events, rank_proposals


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a localizer and how they exclude each other.

    Args:
        names (`tuple[str, ...]`): Names of the classes in the order of the logits, as `check_labels` accepts them.
        problem_type (`str`): `"single_label"`: every segment has one class, of which the last is background.
            `"multi_label"`: every segment has any number of classes; a segment without any is background, which is
            not a class.
        event_threshold (`float`): Probability from which a class counts as active, in a multi-label space.
    """

    names: tuple[str, ...]
    problem_type: str = SINGLE_LABEL
    event_threshold: float = 0.5

    @classmethod
    def of(cls, config: Any) -> "LabelSpace":
        """Returns the label space of a model's configuration; models without the field have one label per segment."""
        problem_type = getattr(config, "problem_type", None) or SINGLE_LABEL
        return cls(tuple(class_names(config)), problem_type, getattr(config, "event_threshold", 0.5))

    @property
    def is_multi_label(self) -> bool:
        """Whether several classes can be active in one segment."""
        return self.problem_type == MULTI_LABEL

    @property
    def event_names(self) -> tuple[str, ...]:
        """Names of the classes without background."""
        return self.names if self.is_multi_label else self.names[:-1]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the probability of each class: a sigmoid per class, or a softmax over the classes."""
        return logits.sigmoid() if self.is_multi_label else logits.softmax(dim=-1)

    def background(self, num_segments: int) -> np.ndarray:
        """Returns probabilities `(num_segments, num_classes)` of a video without any event."""
        probabilities = np.zeros((num_segments, len(self.names)))
        if not self.is_multi_label:
            probabilities[:, -1] = 1
        return probabilities

    # ── targets ──

    def check_targets(self, labels: torch.Tensor, logits: torch.Tensor, supervision: str) -> torch.Tensor:
        """Checks labels against the logits and returns them as `torch.long` on the device of the logits.

        Args:
            labels (`torch.Tensor`): Single-label: class indices `(B, T)`, or `(B,)` under weak supervision.
                Multi-label: 0 or 1 per class, `(B, T, C)`, or `(B, C)` under weak supervision. -100 is not counted.
            logits (`torch.Tensor` of shape `(B, T, C)`): Class scores.
            supervision (`str`): `"full"` or `"weak"`.

        Raises:
            ValueError: If the labels have a wrong shape, type or value.
        """
        wanted = (logits.shape[0], *logits.shape[1 : 2 if supervision == "full" else 1])
        wanted += (len(self.names),) if self.is_multi_label else ()
        if labels.shape != wanted:
            content = "0 or 1 per class" if self.is_multi_label else "one class"
            place = "segment" if supervision == "full" else "video"
            raise ValueError(
                f"`labels` must have the shape {tuple(wanted)}, {content} for each {place}, got "
                f"{tuple(labels.shape)}. The model was configured with problem_type={self.problem_type!r} and "
                f"supervision={supervision!r}."
            )
        if labels.is_floating_point() and not self.is_multi_label:
            raise ValueError(f"`labels` must be class indices (torch.long), got {labels.dtype}.")
        if not torch.compiler.is_compiling():
            highest = 1 if self.is_multi_label else len(self.names) - 1
            wrong = (labels != IGNORED_LABEL) & ((labels < 0) | (labels > highest))
            if self.is_multi_label:
                wrong |= labels != labels.long()
            if wrong.any():
                allowed = f"classes go from 0 to {highest} (background)"
                if self.is_multi_label:
                    allowed = "only 0 and 1 are allowed"
                raise ValueError(
                    f"`labels` contains {labels[wrong][0].item()}, but {allowed}; "
                    f"{IGNORED_LABEL} marks segments to leave out."
                )
        return labels.to(logits.device, torch.long)

    def mask_targets(self, labels: torch.Tensor, segment_mask: torch.Tensor) -> torch.Tensor:
        """Returns labels of segments, with -100 at padding (`False` in `segment_mask` of shape `(B, T)`)."""
        mask = segment_mask.unsqueeze(-1) if self.is_multi_label else segment_mask
        return labels.masked_fill(~mask, IGNORED_LABEL)

    def event_targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns for each segment `(B, T)` whether any event is in it: 1, 0, or -100 where that is unknown."""
        if not self.is_multi_label:
            is_event = (labels != len(self.names) - 1).long()
            return is_event.masked_fill(labels == IGNORED_LABEL, IGNORED_LABEL)
        is_event = (labels == 1).any(dim=-1)
        # Without a known event, a class whose label is unknown may still be in the segment.
        is_unknown = ~is_event & (labels == IGNORED_LABEL).any(dim=-1)
        return is_event.long().masked_fill(is_unknown, IGNORED_LABEL)

    def segment_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        focal_gamma: float = 0.0,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Returns the mean loss of segments (L_c of eq. 17): cross-entropy, or binary cross-entropy per class.

        Args:
            logits (`torch.Tensor` of shape `(B, T, C)`): Class scores.
            labels (`torch.Tensor`): Targets as `check_targets` returns them.
            focal_gamma (`float`), class_weights (`Sequence[float]`, *optional*): See [`multi_label_loss`].
            label_smoothing (`float`): See [`segment_loss`]; for one label per segment.
        """
        if self.is_multi_label:
            return multi_label_loss(logits, labels, focal_gamma, class_weights)
        return segment_loss(logits, labels, label_smoothing)

    def video_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        segment_mask: torch.Tensor,
        pooling_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the loss of whole videos under weak supervision (multiple-instance learning).

        Args:
            logits (`torch.Tensor` of shape `(B, T, C)`): Class scores.
            labels (`torch.Tensor`): Targets as `check_targets` returns them.
            segment_mask (`torch.BoolTensor` of shape `(B, T)`): `False` marks padding.
            pooling_logits (`torch.Tensor` of shape `(B, T, C)`, *optional*): See [`video_level_loss`].
        """
        if self.is_multi_label:
            return multi_label_video_loss(logits, labels, segment_mask, pooling_logits)
        return video_level_loss(logits, labels, segment_mask, pooling_logits)

    # ── decoding ──

    def find_events(
        self,
        probabilities: np.ndarray,
        segment_seconds: float = 1.0,
        duration: float | None = None,
        decoder: str | None = None,
        min_event_segments: int = 1,
        threshold: float | None = None,
        proposals: Proposals | None = None,
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Decodes the probabilities of one video.

        Args:
            probabilities (`np.ndarray` of shape `(T, C)`): Result of `probabilities`.
            segment_seconds (`float`): Length of a segment.
            duration (`float`, *optional*): Length of the video in seconds; nothing ends later.
            decoder (`str`, *optional*): A name of `DECODERS`; by default `"merge"` for one label per segment (the
                paper's) and `"viterbi"` for several.
            min_event_segments (`int`): Shortest event, for the decoders that use it.
            threshold (`float`, *optional*): Probability from which a class counts as active, in a multi-label space;
                by default that of the space.
            proposals ([`Proposals`], *optional*): What a boundary head proposes: gives the events exact times.

        Returns:
            Segments and events, as `AVEClipProcessor.post_process_localization` describes them.

        Raises:
            ValueError: If the decoder is unknown or made for another problem type, or an option is out of its range.
        """
        if self.is_multi_label:
            threshold = self.event_threshold if threshold is None else threshold
            active = decode_events(probabilities, decoder or "viterbi", min_event_segments, threshold)
            events = find_overlapping_events(active, probabilities, segment_seconds, duration)
            if proposals is not None:
                events = place_events(events, proposals, segment_seconds, duration)
            segments = self._active_segments(probabilities, threshold, segment_seconds, duration)
        else:
            if threshold is not None:
                raise ValueError(
                    f"Got threshold={threshold}, but this localizer gives every segment one of {len(self.names)} "
                    'classes and needs none. Leave it out, or train with AVEClipConfig(problem_type="multi_label").'
                )
            labels = decode_labels(probabilities, decoder or "merge", min_event_segments)
            events = find_events(labels.tolist(), probabilities, segment_seconds, duration)
            segments = [
                {**span, "label": self.names[label], "score": float(probabilities[index, label])}
                for index, (label, span) in enumerate(zip(labels, _spans(len(labels), segment_seconds, duration)))
            ]
        named = [
            {"start": event.start, "end": event.end, "label": self.names[event.label], "score": event.score}
            for event in events
        ]
        return segments, named

    def video_proposals(self, model: Any, hidden: torch.Tensor) -> Proposals:
        """Returns the proposals of a model's boundary head for one video of any length.

        Args:
            model ([`AVEClipForLocalization`]): With `boundary_regression`.
            hidden (`torch.Tensor` of shape `(T, hidden_size)`): The last of `hidden_states`, of windows the mean.
        """
        with torch.no_grad():
            logits, spans = model.propose(hidden[None].to(model.device, model.dtype))
        return dense_proposals(logits[0], spans[0], len(hidden))

    def propose_events(
        self,
        probabilities: np.ndarray,
        segment_seconds: float = 1.0,
        duration: float | None = None,
        proposals: Proposals | None = None,
        **options: Any,
    ) -> list[Event]:
        """Returns many candidate events of one video with scores, to rank them; see [`propose_events`].

        Args:
            probabilities (`np.ndarray` of shape `(T, C)`): Result of `probabilities`.
            segment_seconds (`float`), duration (`float`, *optional*), options: Arguments of [`propose_events`].
            proposals ([`Proposals`], *optional*): Candidates of a boundary head, instead of runs of segments.
        """
        if proposals is not None:
            return rank_proposals(proposals, segment_seconds, duration, **options)
        return propose_events(probabilities[:, : len(self.event_names)], segment_seconds, duration, **options)

    def _active_segments(
        self, probabilities: np.ndarray, threshold: float, segment_seconds: float, duration: float | None
    ) -> list[dict[str, Any]]:
        """Returns each segment with its active labels, most probable first, and the first of them, or background."""
        segments = []
        for row, span in zip(probabilities, _spans(len(probabilities), segment_seconds, duration)):
            ranked = np.argsort(-row, kind="stable")
            labels = [
                {"label": self.names[index], "score": float(row[index])} for index in ranked if row[index] >= threshold
            ]
            strongest = labels[0] if labels else {"label": BACKGROUND_LABEL, "score": float(1 - row.max())}
            segments.append({**span, **strongest, "labels": labels})
        return segments


def _spans(num_segments: int, segment_seconds: float, duration: float | None) -> list[dict[str, float]]:
    """Returns start and end of each segment in seconds."""
    spans = (span_in_seconds(index, index + 1, segment_seconds, duration) for index in range(num_segments))
    return [{"start": start, "end": end} for start, end in spans]


__all__ = ["LabelSpace"]
