"""AVEClipProcessor: from video files (or decoded arrays) to the model's inputs, and from its outputs to events."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, Unpack
from transformers.utils import logging

from .categories import BACKGROUND_LABEL
from .events import decode_labels, find_events
from .segments import cut_waveform, num_segments_for, samples_per_segment
from .video_io import VideoClip, read_video
from .video_processing_ave_clip import (
    AVEClipVideoProcessorKwargs,
    as_frames,
    as_video_list,
    check_grid,
    frame_rates,
    is_decoded,
    segment_array,
)

logger = logging.get_logger(__name__)

_GRID = ("num_frames_per_segment", "segment_seconds")


class AVEClipProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: AVEClipVideoProcessorKwargs
    audio_kwargs: AudioKwargs


@dataclass
class SegmentedVideo:
    """One video cut into segments: frames of each, and its sound `(num_segments, num_samples)`."""

    frames: list[np.ndarray]
    waveforms: np.ndarray


class AVEClipProcessor(ProcessorMixin):
    r"""
    Cuts videos into segments, prepares their frames and their sound, and turns the model's output into events.

    Args:
        feature_extractor ([`AudioCLIPFeatureExtractor`]):
            For the sound.
        video_processor ([`AVEClipVideoProcessor`]):
            For the frames; holds `num_frames_per_segment` and `segment_seconds`.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, as in the model's configuration, for `post_process_localization`.
        min_event_segments (`int`, *optional*, defaults to 3):
            Default of `post_process_localization`, as in the model's configuration.

    Example:

    ```python
    >>> from ave_clip import AVEClipForLocalization, AVEClipProcessor

    >>> processor = AVEClipProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(videos="clip.mp4", return_tensors="pt")
    >>> outputs = AVEClipForLocalization.from_pretrained("path/to/checkpoint")(**inputs)
    >>> processor.post_process_localization(outputs)[0]["events"]
    ```"""

    valid_processor_kwargs = AVEClipProcessorKwargs

    def __init__(self, feature_extractor=None, video_processor=None, id2label=None, min_event_segments=3, **kwargs):
        super().__init__(feature_extractor, video_processor, **kwargs)
        self.min_event_segments = min_event_segments
        self.id2label = None if id2label is None else {int(index): label for index, label in id2label.items()}

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "segment_mask"]

    def __call__(
        self, videos: Any = None, audio: Any = None, **kwargs: Unpack[AVEClipProcessorKwargs]
    ) -> BatchFeature:
        """Prepare one video or a batch.

        Args:
            videos:
                A path, bytes, file object or URL; or decoded frames `(num_frames, height, width, 3)`; or a list of
                these. Files bring their own sound.
            audio (`np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                With decoded frames: waveforms in [-1, 1], `(num_samples,)` or `(channels, num_samples)`. Without it
                decoded frames count as silent.
            num_frames_per_segment (`int`, *optional*), segment_seconds (`float`, *optional*):
                The time grid; the video processor's values by default.
            sampling_rate (`int`, *optional*):
                Of `audio`. Must be the feature extractor's.
            frame_rate (`float`, *optional*):
                Of decoded frames; without it they count as already sampled, `num_frames_per_segment` a segment.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with `pixel_values` `(batch_size, num_segments, num_frames, 3, height, width)`,
            `frame_mask` `(batch_size, num_segments, num_frames)`, `input_values` `(batch_size, num_segments,
            num_samples)` and `segment_mask` `(batch_size, num_segments)`; shorter videos are padded at the end.

        Raises:
            ValueError: A file that cannot be read, audio at another rate or not finite, audio beside a file, or
                frames and audio that do not last equally long.
        """
        if videos is None:
            raise ValueError("AVEClipProcessor needs `videos`: an audio-visual event is both seen and heard.")
        grid = {name: kwargs.get(name) for name in _GRID}
        check_grid(*(getattr(self.video_processor, name) if grid[name] is None else grid[name] for name in _GRID))
        self._refuse_misspelt(kwargs)
        merged = self._merge_kwargs(self.valid_processor_kwargs, tokenizer_init_kwargs={}, **kwargs)
        video_options, audio_options = merged["videos_kwargs"], merged["audio_kwargs"]
        tensor_type = video_options.pop("return_tensors", None) or audio_options.pop("return_tensors", None)
        clips = self._clips(as_video_list(videos), audio, audio_options.get("sampling_rate"), video_options)
        for name in ("video_metadata", "frame_rate"):
            video_options.pop(name, None)
        visual = self.video_processor.preprocess_segments([clip.frames for clip in clips], **video_options)
        input_values, segment_mask = self._sound(clips)
        data = {**visual, "input_values": input_values, "segment_mask": segment_mask}
        return BatchFeature(data, tensor_type=tensor_type)

    def _refuse_misspelt(self, options: Mapping[str, Any]) -> None:
        known = {*self.valid_processor_kwargs.__annotations__, *AVEClipVideoProcessorKwargs.__annotations__}
        known |= {*AudioKwargs.__annotations__, "common_kwargs"}
        for name in options:
            close = difflib.get_close_matches(name, known, n=1)
            if name not in known:
                hint = f" Did you mean `{close[0]}`?" if close else ""
                raise ValueError(f"AVEClipProcessor has no option `{name}`.{hint}")

    def cut(
        self,
        frames: Any,
        audio: Any = None,
        sampling_rate: int | None = None,
        num_frames_per_segment: int | None = None,
        segment_seconds: float | None = None,
        frame_rate: float | None = None,
    ) -> SegmentedVideo:
        """Cut one decoded video into segments; arguments as in `__call__`."""
        count = num_frames_per_segment or self.video_processor.num_frames_per_segment
        seconds = segment_seconds or self.video_processor.segment_seconds
        (sound,) = self._sounds(audio, 1, sampling_rate)
        (frame_rate,) = frame_rates([frames], None, frame_rate)
        return self._join(segment_array(as_frames(frames), frame_rate, count, seconds), sound, seconds, frame_rate)

    def _clips(
        self, videos: list[Any], audio: Any, sampling_rate: int | None, options: dict[str, Any]
    ) -> list[SegmentedVideo]:
        grid = {name: options.get(name) or getattr(self.video_processor, name) for name in _GRID}
        rates = frame_rates(videos, options.get("video_metadata"), options.get("frame_rate"))
        sounds = self._sounds(audio, len(videos), sampling_rate)
        clips = []
        for video, sound, rate in zip(videos, sounds, rates):
            if sound is not None and not is_decoded(video):
                raise ValueError(f"`audio` goes with decoded frames only; the file {video!r} brings its own sound.")
            if isinstance(video, VideoClip):
                self._check_clip(video, grid["segment_seconds"])
                clips.append(SegmentedVideo(video.frames, video.waveforms))
            elif is_decoded(video):
                clips.append(self.cut(video, sound, **grid, frame_rate=rate))
            else:
                clip = read_video(video, sampling_rate=self.feature_extractor.sampling_rate, **grid)
                clips.append(SegmentedVideo(clip.frames, clip.waveforms))
        return clips

    def _check_clip(self, clip: VideoClip, segment_seconds: float) -> None:
        expected = self.feature_extractor.sampling_rate
        if clip.sampling_rate != expected or clip.segment_seconds != segment_seconds:
            raise ValueError(
                f"{clip.name} was read at {clip.sampling_rate} Hz in segments of {clip.segment_seconds} s, but this "
                f"processor takes {expected} Hz and {segment_seconds} s. Read it so, or pass the file itself."
            )

    def _sounds(self, audio: Any, num_videos: int, sampling_rate: int | None) -> list[np.ndarray | None]:
        if audio is None:
            return [None] * num_videos
        expected = self.feature_extractor.sampling_rate
        if sampling_rate is not None and sampling_rate != expected:
            raise ValueError(
                f"Got audio at {sampling_rate} Hz, but this checkpoint expects {expected} Hz. Resample it, or pass "
                "the video file and let the processor do so."
            )
        if sampling_rate is None:
            logger.warning_once(f"`audio` came without `sampling_rate`; it is taken as {expected} Hz.")
        if isinstance(audio, (list, tuple)) and not len(audio):
            raise ValueError("Got an empty list as `audio`. Pass one waveform a video, or leave it out.")
        several = isinstance(audio, (list, tuple)) and not np.isscalar(audio[0])
        sounds = [_mono(sound) for sound in (audio if several else [audio])]
        if len(sounds) != num_videos:
            raise ValueError(
                f"Got {len(sounds)} waveforms for {num_videos} videos. Pass a list with one for each video."
            )
        return sounds

    def _join(
        self, frames: list[np.ndarray], sound: np.ndarray | None, seconds: float, rate: float | None
    ) -> SegmentedVideo:
        sampling_rate = self.feature_extractor.sampling_rate
        samples = samples_per_segment(sampling_rate, seconds)
        if sound is None:
            return SegmentedVideo(frames, np.zeros((len(frames), samples), dtype=np.float32))
        num_segments = num_segments_for(len(sound) / sampling_rate, seconds)
        if abs(num_segments - len(frames)) > 1:
            assumed = "already sampled frames" if rate is None else f"{rate} frames per second"
            raise ValueError(
                f"The frames fill {len(frames)} segments ({assumed}), but the audio fills {num_segments} of "
                f"{seconds} s at {sampling_rate} Hz. Pass `frame_rate`, frames per second."
            )
        num_segments = max(num_segments, len(frames))
        none = frames[0][:0]
        frames = frames + [none] * (num_segments - len(frames))
        return SegmentedVideo(frames, cut_waveform(sound, num_segments, sampling_rate, seconds))

    def _sound(self, clips: Sequence[SegmentedVideo]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(clip.waveforms) for clip in clips)
        input_values = np.zeros((len(clips), longest, clips[0].waveforms.shape[1]), dtype=np.float32)
        segment_mask = np.zeros((len(clips), longest), dtype=bool)
        for row, clip in enumerate(clips):
            input_values[row, : len(clip.waveforms)] = self.feature_extractor.scale(clip.waveforms)
            segment_mask[row, : len(clip.waveforms)] = True
        return torch.from_numpy(input_values), torch.from_numpy(segment_mask)

    def post_process_localization(
        self,
        outputs: Any,
        min_event_segments: int | None = None,
        decoder: str = "merge",
        durations: Sequence[float] | None = None,
        segment_mask: torch.Tensor | None = None,
    ) -> list[dict[str, list[dict[str, Any]]]]:
        """Decode the model's output (paper sec. 3.7).

        Args:
            outputs ([`AVEClipLocalizationOutput`]):
                Anything with `logits` of shape `(batch_size, num_segments, num_labels)`, background last.
            min_event_segments (`int`, *optional*):
                Shortest run for `"merge"`, shortest event for `"viterbi"`; 1 changes nothing. By default the
                processor's own: 3 unless its checkpoint says otherwise.
            decoder (`str`):
                `"merge"` (the paper), `"single_event"` (the most probable labelling with at most one event),
                `"viterbi"` (the most probable one without short events, for untrimmed video) or `"none"` (argmax).
            durations (`list[float]`, *optional*):
                Seconds of each video: how many segments are real, and where the last one ends.
            segment_mask (`torch.Tensor` of shape `(batch_size, num_segments)`, *optional*):
                As made by the processor; needed for padded batches unless `durations` is given.

        Returns:
            `list[dict]`: Per video `"segments"`, a dictionary with `start`, `end` (seconds), `label` and `score` (the
            label's probability) for each segment, and `"events"`, the same for each run of one event's segments, with
            the mean score.

        Raises:
            ValueError: An unknown decoder, or a batch that does not fit `durations` or `segment_mask`.
        """
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        probabilities = logits.detach().float().softmax(dim=-1).cpu().numpy().astype(np.float64)
        shortest = self.min_event_segments if min_event_segments is None else min_event_segments
        lengths = self._lengths(probabilities.shape, durations, segment_mask)
        names = self._names(probabilities.shape[-1])
        seconds = self.video_processor.segment_seconds
        results = []
        for row, length in enumerate(lengths):
            video = probabilities[row, :length]
            labels = decode_labels(video, decoder, shortest)
            results.append(describe(labels, video, names, seconds, None if durations is None else durations[row]))
        return results

    def _lengths(self, shape: tuple[int, ...], durations, segment_mask) -> list[int]:
        batch_size, num_segments = shape[:2]
        for name, given in (("durations", durations), ("segment_mask", segment_mask)):
            if given is not None and len(given) != batch_size:
                raise ValueError(f"Got `{name}` for {len(given)} videos, but the output holds {batch_size}.")
        if segment_mask is not None:
            return [_prefix_length(row, num_segments) for row in segment_mask]
        if durations is None:
            return [num_segments] * batch_size
        seconds = self.video_processor.segment_seconds
        return [min(num_segments, num_segments_for(duration, seconds)) for duration in durations]

    def _names(self, num_labels: int) -> list[str]:
        if self.id2label is None:
            return [*(f"LABEL_{index}" for index in range(num_labels - 1)), BACKGROUND_LABEL]
        if len(self.id2label) != num_labels:
            raise ValueError(
                f"The output has {num_labels} classes, but the processor's id2label names {len(self.id2label)}. "
                "Use the processor saved with this model, or set processor.id2label = model.config.id2label."
            )
        return [self.id2label[index] for index in range(num_labels)]


def _prefix_length(mask: Any, num_segments: int) -> int:
    mask = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask, dtype=bool)
    length = int(mask.sum())
    if mask.shape != (num_segments,) or not mask[:length].all():
        raise ValueError(
            f"`segment_mask` must hold True for a video's segments and then False, {num_segments} in all; got "
            f"{mask.tolist()}."
        )
    return length


def _mono(sound: Any) -> np.ndarray:
    if isinstance(sound, torch.Tensor):
        sound = sound.detach().cpu()
        sound = sound.float() if sound.dtype in (torch.bfloat16, torch.float16) else sound
    waveform = np.asarray(sound)
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"Got {waveform.dtype} audio, expected floats in [-1, 1]. Divide int16 samples by 32768 first."
        )
    if waveform.ndim == 2 and waveform.shape[0] <= waveform.shape[1]:
        waveform = waveform.mean(axis=0)
    if waveform.ndim != 1 or waveform.size == 0:
        raise ValueError(f"A waveform must have the shape (samples,) or (channels, samples), got {waveform.shape}.")
    return waveform


def describe(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], segment_seconds: float, duration: float | None
) -> dict[str, list[dict[str, Any]]]:
    """Labels and probabilities of one video as the dictionaries of `post_process_localization`."""
    limit = np.inf if duration is None else duration
    segments = []
    for index, label in enumerate(labels):
        start = index * segment_seconds
        end = float(max(start, min((index + 1) * segment_seconds, limit)))
        segments.append(
            {"start": start, "end": end, "label": names[label], "score": float(probabilities[index, label])}
        )
    events = [
        {"start": event.start, "end": event.end, "label": names[event.label], "score": event.score}
        for event in find_events(labels, probabilities, segment_seconds, duration)
    ]
    return {"segments": segments, "events": events}


__all__ = ["AVEClipProcessor"]
