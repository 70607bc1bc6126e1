"""Results of a video whose end is not known yet: causal windows, and events that are reported once.

Shapes: N new segments, T segments kept, C classes, L labels without background.
"""

from collections import deque
from typing import Any

import numpy as np
import torch

from .events import DECODERS
from .label_space import LabelSpace
from .senses import add_senses

# An event that goes on for longer is reported in parts of this length: what is kept must not grow with it.
MAX_OPEN_SEGMENTS = 600


class CausalLogits:
    """Runs the temporal part of a localizer once per segment, over the window that ends with the segment.

    Args:
        model (`Any`): The localizer, or its export.
        window (`int`): Segments of a window; at the start of the video it is shorter.
    """

    def __init__(self, model: Any, window: int) -> None:
        self.model = model
        self.kept: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=window)

    @torch.no_grad()
    def add(self, visual: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, np.ndarray | None]:
        """Processes the next segments.

        Args:
            visual (`torch.Tensor` of shape `(N, width)`), audio (same): Results of `attend` and `encode`.

        Returns:
            Logits `(N, num_labels)`; and how probable it is that each label is heard, seen and both, `(N, 3, L)`, for
            models that tell.
        """
        logits, senses = [], []
        for pair in zip(visual.to(self.model.device), audio.to(self.model.device)):
            self.kept.append(pair)
            window = [torch.stack(parts)[None] for parts in zip(*self.kept)]  # (1, window, width) each
            output = self.model.localize(*window)
            logits.append(output.logits[0, -1].float().cpu())
            if hasattr(self.model, "senses"):
                values = (output.heard[0, -1], output.seen[0, -1], output.both[0, -1])
                senses.append(torch.stack(values).float().cpu().numpy())
        return torch.stack(logits), np.stack(senses) if senses else None


class LiveEvents:
    """Decodes segments as they come, and reports each event once, when no later segment can join it.

    The segments since the last reported event are decoded again with each new one. An event is over when it has been
    the same, with something after it, as many times in a row as the shortest event has segments (once for decoders
    without a shortest event): a run at the end can still take over segments before it. What is reported is final, also
    where the decoder, with the whole video, would choose differently.

    Args:
        space ([`LabelSpace`]): Labels of the probabilities.
        segment_seconds (`float`): Length of a segment.
        decoder (`str`): A name of `DECODERS`.
        min_event_segments (`int`): Shortest event.
        threshold (`float`, *optional*): As in [`LabelSpace.find_events`].

    Raises:
        ValueError: If the decoder needs the whole video.
    """

    def __init__(
        self,
        space: LabelSpace,
        segment_seconds: float,
        decoder: str,
        min_event_segments: int,
        threshold: float | None = None,
    ) -> None:
        if DECODERS[decoder].needs_whole_video:
            raise ValueError(
                f"The decoder {decoder!r} needs the whole video, so it cannot be used live. Use one of "
                f"{sorted(name for name, entry in DECODERS.items() if not entry.needs_whole_video)}."
            )
        self.space, self.segment_seconds = space, segment_seconds
        self.options = {"decoder": decoder, "min_event_segments": min_event_segments, "threshold": threshold}
        self._shortest = min_event_segments if DECODERS[decoder].uses_min_event_segments else 1
        self.first = 0  # number of the first kept segment in the video
        self.probabilities = np.zeros((0, len(space.names)))
        self.senses: np.ndarray | None = None
        self.duration = 0.0
        self._counts: dict[tuple[str, int, int], int] = {}  # how often in a row each event was decoded

    def add(self, probabilities: np.ndarray, senses: np.ndarray | None, duration: float) -> list[dict[str, Any]]:
        """Takes the next segments, and returns the events that are over now, each once.

        Args:
            probabilities (`np.ndarray` of shape `(N, C)`): Of the segments.
            senses (`np.ndarray` of shape `(N, 3, L)`, *optional*): See [`CausalLogits`].
            duration (`float`): Length of the video so far, in seconds.
        """
        self.probabilities = np.concatenate([self.probabilities, probabilities])
        if senses is not None:
            self.senses = senses if self.senses is None else np.concatenate([self.senses, senses])
        self.duration = duration
        return self._take(is_all=len(self.probabilities) >= MAX_OPEN_SEGMENTS)

    def finish(self) -> list[dict[str, Any]]:
        """Returns the events that are still open, after the last segment."""
        return self._take(is_all=True) if len(self.probabilities) else []

    def _take(self, is_all: bool) -> list[dict[str, Any]]:
        """Returns the events that are over, or all, and forgets the segments that are not needed any more."""
        num_kept = len(self.probabilities)
        segments, events = self.space.find_events(self.probabilities, self.segment_seconds, **self.options)
        if self.senses is not None:
            add_senses({"segments": segments, "events": events}, self.senses, self.space.names)
        keep_from = num_kept - 2 * self._shortest  # enough for the start of the next event
        over, taken_to, counts = [], 0, {}
        for event in events:  # in the order of their starts
            start, end = (round(event[side] / self.segment_seconds) for side in ("start", "end"))
            span = event["label"], self.first + start, self.first + end
            counts[span] = self._counts.get(span, 0) + 1 if end < num_kept else 0
            is_next = self.space.is_multi_label or keep_from > start  # no earlier event is open
            if not is_all and (counts[span] < self._shortest or not is_next):
                keep_from = min(keep_from, start - self._shortest)
                continue
            # Only in a video that is shorter itself may an event be shorter, not in the rest behind another event.
            if not self.first or end - start >= self._shortest:
                over.append(event)
            if self.space.is_multi_label:  # other events may overlap this one
                self.probabilities[:end, self.space.names.index(event["label"])] = 0
            else:
                taken_to = max(taken_to, end)
        self._counts = counts
        offset = self.first * self.segment_seconds
        for event in over:
            event["start"] += offset
            event["end"] = min(event["end"] + offset, max(self.duration, event["start"]))
        self._forget(max(keep_from, taken_to, 0))
        return over

    def _forget(self, count: int) -> None:
        self.first += count
        self.probabilities = self.probabilities[count:]
        self.senses = None if self.senses is None else self.senses[count:]


__all__ = ["CausalLogits", "LiveEvents"]
