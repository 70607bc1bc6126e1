"""`pipeline("audio-visual-event-localization")`: from a video of any length to its segments and events.

A video streams through in blocks of `num_segments` segments: each block is decoded, encoded once, and reduced to one
visual and one audio vector a segment (a few kB a second). The temporal part then runs over overlapping windows of
`num_segments` and averages their logits, so memory does not grow with the frames of a long video.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .events import DECODERS, decode_labels
from .processing_ave_clip import AVEClipProcessor, describe
from .segments import num_segments_for
from .video_io import Segment, iter_segments, probe_video

logger = logging.get_logger(__name__)

_WINDOWS_PER_CALL = 64
_PREPROCESS = ("num_frames_per_segment", "num_segments")
_FORWARD = ("return_heatmaps", "progress")
_POSTPROCESS = ("min_event_segments", "decoder", "overlap", "top_k", "num_segments", "return_heatmaps")


class AudioVisualEventLocalizationPipeline(ChunkPipeline):
    """Finds the audio-visual event of every second of a video.

    ```python
    >>> import ave_clip
    >>> from transformers import pipeline

    >>> localizer = pipeline("audio-visual-event-localization")
    >>> localizer("clip.mp4")["events"]
    [{'start': 2.0, 'end': 7.0, 'label': 'Amber gong', 'score': 0.98}]
    ```

    Takes a path, bytes, a binary file object or an http(s) URL; a dictionary with decoded `frames`, their `frame_rate`
    and `audio`; a list of these (`batch_size=` blocks at once); or a generator, which is consumed as results are.

    A video without a sound track or without pictures has no audio-visual event, by definition: it is reported as
    background throughout, with a warning.
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Localize.

        Args:
            inputs: As above.
            num_frames_per_segment (`int`, *optional*): Frames read from each segment; the processor's by default.
            num_segments (`int`, *optional*): Window of the temporal part; the model's longest window by default.
            overlap (`float`, *optional*, defaults to 0.5): Share of a window that the next one repeats.
            decoder (`str`, *optional*, defaults to `"merge"`): See `AVEClipProcessor.post_process_localization`.
            min_event_segments (`int`, *optional*): The model configuration's by default.
            top_k (`int`, *optional*): Adds the k most probable labels to each segment, as `"top_k"`.
            return_heatmaps (`bool`, *optional*): Adds `"heatmaps"`: AGVA's weights over each segment's picture, an
                array `(num_segments, rows, columns)` summing to 1 a segment.
            progress (`bool` or `Callable`, *optional*): `True` for a bar, or a function called as
                `progress(name, segments_done, num_segments)` after each block.
            batch_size (`int`, *optional*): Blocks encoded at once.

        Returns:
            `{"segments": [...], "events": [...]}`, or a list (for a list) or iterator (for a generator) of them.

        Raises:
            ValueError: A file that cannot be read, or an option out of its range.
        """
        if isinstance(inputs, (tuple, map, filter)) or (isinstance(inputs, Iterator) and not hasattr(inputs, "read")):
            inputs = (item for item in inputs)  # transformers streams generators only
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        known = {*_PREPROCESS, *_FORWARD, *_POSTPROCESS}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(f"Unknown options {unknown} for {self.task}. Known: {sorted(known)}.")
        given = {name: value for name, value in kwargs.items() if value is not None}
        _check_options(given)
        if given.get("progress") is True:
            given["progress"] = _ProgressBar()
        return tuple(
            {name: given[name] for name in names if name in given} for names in (_PREPROCESS, _FORWARD, _POSTPROCESS)
        )

    def _window(self, num_segments: int | None) -> int:
        return num_segments or max(self.model.config.window_sizes)

    def preprocess(
        self, inputs: Any, num_frames_per_segment: int | None = None, num_segments: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields blocks of the model's input, each padded to `num_segments`, with what `postprocess` must know."""
        video_processor = self.processor.video_processor
        count = num_frames_per_segment or video_processor.num_frames_per_segment
        seconds = video_processor.segment_seconds
        source = open_source(inputs, self.processor, count, seconds)
        window = self._window(num_segments)
        segments = iter(source.segments)
        block, done = list(itertools.islice(segments, window)), 0
        while True:
            following = list(itertools.islice(segments, window))
            done += len(block)
            info = {"name": source.name, "done": done, "total": source.num_segments, "duration": source.duration}
            info["missing"] = source.missing
            yield {**self._block(block, window, count), "info": info, "is_last": not following}
            if not following:
                return
            block = following

    def _block(self, block: list[Segment], window: int, count: int) -> dict[str, torch.Tensor]:
        extractor = self.processor.feature_extractor
        samples = round(self.processor.video_processor.segment_seconds * extractor.sampling_rate)
        input_values = np.zeros((1, window, samples), dtype=np.float32)
        segment_mask = torch.zeros(1, window, dtype=torch.bool)
        if block:
            input_values[0, : len(block)] = extractor.scale(np.stack([segment.waveform for segment in block]))
            segment_mask[0, : len(block)] = True
        frames = [segment.frames for segment in block]
        frames += [np.zeros((0, 1, 1, 3), dtype=np.uint8)] * (window - len(block))
        visual = self.processor.video_processor.preprocess_segments([frames], num_frames_per_segment=count)
        return {**visual, "input_values": torch.from_numpy(input_values), "segment_mask": segment_mask}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        return_heatmaps: bool = False,
        progress: Callable[[str, int, int], None] | bool = False,
    ) -> dict[str, Any]:
        dtype, mask = self.model.dtype, model_inputs["segment_mask"]
        image_features, audio_features = self.model.encode(
            model_inputs["pixel_values"].to(dtype),
            model_inputs["input_values"],  # the spectrogram is computed in float32 whatever the weights are
            model_inputs["frame_mask"],
            mask,
        )
        visual, weights = self.model.attend(image_features, audio_features)
        infos = model_inputs["info"]
        if progress:
            for info in infos if isinstance(infos, list) else [infos]:
                progress(info["name"], info["done"], info["total"])
        output = {"visual": visual, "audio": audio_features, "segment_mask": mask}
        if return_heatmaps:
            output["weights"] = weights
        return {**output, "info": infos, "is_last": model_inputs["is_last"]}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        min_event_segments: int | None = None,
        decoder: str = "merge",
        overlap: float = 0.5,
        top_k: int | None = None,
        num_segments: int | None = None,
        return_heatmaps: bool = False,
    ) -> dict[str, Any]:
        names = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        info = model_outputs[-1]["info"]
        seconds = self.processor.video_processor.segment_seconds
        if info["missing"] is None:
            logits = self._localize(model_outputs, self._window(num_segments), overlap)
            probabilities = logits.double().softmax(dim=-1).numpy()
            if min_event_segments is None:
                min_event_segments = self.model.config.min_event_segments
            labels = decode_labels(probabilities, decoder, min_event_segments)
        else:
            probabilities = np.eye(len(names))[[-1] * info["total"]]
            labels = probabilities.argmax(axis=1)
        duration = min(info["duration"], len(labels) * seconds)
        result = describe(labels, probabilities, names, seconds, duration)
        if top_k:
            _add_top_k(result["segments"], probabilities, names, top_k)
        if return_heatmaps:
            result["heatmaps"] = None if info["missing"] else _heatmaps(model_outputs)
        return result

    @torch.no_grad()
    def _localize(self, blocks: list[dict[str, Any]], window: int, overlap: float) -> torch.Tensor:
        """Logits `(num_segments, num_labels)`, averaged where windows overlap."""
        visual, audio = (_real_segments(blocks, name).to(self.device) for name in ("visual", "audio"))
        starts = window_starts(len(visual), window, overlap)
        length = min(window, len(visual))
        index = torch.tensor(starts, device=self.device)[:, None] + torch.arange(length, device=self.device)
        total = torch.zeros(len(visual), self.model.config.num_labels, device=self.device)
        for rows in index.split(_WINDOWS_PER_CALL):
            logits = self.model.localize(visual[rows], audio[rows]).logits.float()
            total.index_add_(0, rows.flatten(), logits.flatten(0, 1))
        counts = torch.zeros(len(visual), device=self.device).index_add_(
            0, index.flatten(), torch.ones(index.numel(), device=self.device)
        )
        return (total / counts.unsqueeze(-1)).cpu()

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save model and processor as ordinary files, so that `pipeline(task, model=directory)` loads them again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


@dataclass
class VideoSource:
    """One input of the pipeline: its segments, one after the other, and what is known about it beforehand.

    Args:
        name (`str`): For messages.
        segments (`Iterable[Segment]`): Read once, in order; empty when a modality is missing.
        num_segments (`int`): As the file declares it; a truncated file gives fewer.
        duration (`float`): Seconds, as the file declares them.
        missing (`str`, *optional*): `"audio"` or `"video"` when the file lacks that track.
    """

    name: str
    segments: Iterable[Segment]
    num_segments: int
    duration: float
    missing: str | None = None


def open_source(
    inputs: Any, processor: AVEClipProcessor, num_frames_per_segment: int, segment_seconds: float
) -> VideoSource:
    """Open a file, or take decoded arrays, for streaming.

    Args:
        inputs: A path, bytes, file object or URL; or `{"frames", "frame_rate", "audio", "sampling_rate"}`.
        processor ([`AVEClipProcessor`]): Gives the sampling rate, and cuts decoded arrays.
        num_frames_per_segment (`int`), segment_seconds (`float`): The time grid.

    Raises:
        ValueError: A file that cannot be read, or a dictionary with other keys.
    """
    if isinstance(inputs, dict):
        return _open_arrays(inputs, processor, num_frames_per_segment, segment_seconds)
    if hasattr(inputs, "read") and not inputs.seekable():
        inputs = inputs.read()
    info = probe_video(inputs)
    missing = None if info.has_audio and info.has_video else ("video" if info.has_audio else "audio")
    if missing is not None:
        logger.warning(f"{info.name} has no {missing} track, so it holds no audio-visual event: all background.")
    segments = (
        ()
        if missing
        else iter_segments(
            inputs,
            sampling_rate=processor.feature_extractor.sampling_rate,
            num_frames_per_segment=num_frames_per_segment,
            segment_seconds=segment_seconds,
        )
    )
    duration = info.duration_seconds
    return VideoSource(info.name, segments, num_segments_for(duration, segment_seconds), duration, missing)


def _open_arrays(inputs: dict[str, Any], processor: AVEClipProcessor, count: int, seconds: float) -> VideoSource:
    known = {"frames", "frame_rate", "audio", "sampling_rate"}
    if "frames" not in inputs or set(inputs) - known:
        raise ValueError(
            f"A decoded video is a dictionary with `frames` and some of {sorted(known)}; got {sorted(inputs)}."
        )
    options = {"num_frames_per_segment": count, "segment_seconds": seconds, "frame_rate": inputs.get("frame_rate")}
    cut = processor.cut(inputs["frames"], inputs.get("audio"), inputs.get("sampling_rate"), **options)
    segments = [
        Segment(index=index, frames=frames, frame_times=np.zeros(len(frames)), waveform=waveform)
        for index, (frames, waveform) in enumerate(zip(cut.frames, cut.waveforms))
    ]
    return VideoSource("decoded video", segments, len(segments), len(segments) * seconds)


def window_starts(num_segments: int, window: int, overlap: float) -> list[int]:
    """First segments of the windows that cover a video; the last one is moved back to end with it.

    >>> window_starts(23, 10, 0.5)
    [0, 5, 10, 13]
    >>> window_starts(7, 10, 0.5)
    [0]
    """
    stride = max(1, window - round(window * overlap))
    last = max(0, num_segments - window)
    return [*range(0, last, stride), last]


class _ProgressBar:
    """A tqdm bar per video."""

    def __init__(self) -> None:
        self.bar, self.name = None, None

    def __call__(self, name: str, done: int, total: int) -> None:
        if self.bar is None or name != self.name:
            self.close()
            self.bar, self.name = logging.tqdm(total=total, desc=name, unit="s"), name
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def _check_options(options: dict[str, Any]) -> None:
    if options.get("decoder", DECODERS[0]) not in DECODERS:
        raise ValueError(f"`decoder` must be one of {list(DECODERS)}, got {options['decoder']!r}.")
    for name in ("num_frames_per_segment", "num_segments", "min_event_segments", "top_k"):
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` is a whole number >= 1, got {value!r}.")
    if not 0 <= options.get("overlap", 0.0) < 1:
        raise ValueError(
            f"`overlap` is the share of a window that the next one repeats, in [0, 1); got {options['overlap']}."
        )
    progress = options.get("progress", False)
    if not isinstance(progress, bool) and not callable(progress):
        raise ValueError(f"`progress` is True or a function of (name, segments done, segments), got {progress!r}.")


def _real_segments(blocks: list[dict[str, Any]], name: str) -> torch.Tensor:
    return torch.cat([block[name][block["segment_mask"]] for block in blocks])


def _add_top_k(segments: list[dict], probabilities: np.ndarray, names: list[str], top_k: int) -> None:
    for segment, row in zip(segments, probabilities):
        best = np.argsort(-row, kind="stable")[:top_k]
        segment["top_k"] = [{"label": names[index], "score": float(row[index])} for index in best]


def _heatmaps(blocks: list[dict[str, Any]]) -> np.ndarray:
    weights = _real_segments(blocks, "weights").float().numpy()  # (T, P)
    rows = math.isqrt(weights.shape[1])
    return weights.reshape(len(weights), rows, -1)


__all__ = ["AudioVisualEventLocalizationPipeline"]
