"""AVEClipProcessor: converts video files (or decoded arrays) to model inputs, and model outputs to events."""

import difflib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, Unpack
from transformers.utils import logging

from .builtin_checkpoints import LoadsBuiltinNames
from .categories import BACKGROUND_LABEL, MULTI_LABEL, SINGLE_LABEL, check_labels, check_problem_type
from .events import check_threshold
from .label_space import LabelSpace
from .proposals import dense_proposals
from .segments import audio_windows, num_segments_for, samples_per_segment
from .video_clip import ReadOptions, VideoClip
from .video_io import read_video
from .video_processing_ave_clip import (
    AVEClipVideoProcessorKwargs,
    as_frames,
    as_video_list,
    check_grid,
    cut_frames,
    frame_rates,
    is_decoded,
)

logger = logging.get_logger(__name__)

_GRID = ("num_frames_per_segment", "segment_seconds")


class AVEClipProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: AVEClipVideoProcessorKwargs
    audio_kwargs: AudioKwargs


class AVEClipProcessor(LoadsBuiltinNames, ProcessorMixin):
    r"""
    Cuts videos into segments, prepares their frames and their audio, and converts the model's output to events.

    Args:
        feature_extractor ([`AudioCLIPFeatureExtractor`] or another feature extractor for waveforms):
            Prepares the audio.
        video_processor ([`AVEClipVideoProcessor`]):
            Prepares the frames; contains `num_frames_per_segment` and `segment_seconds`.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, as in the model's configuration, for `post_process_localization`.
        min_event_segments (`int`, *optional*, defaults to 3):
            Shortest event, as in the model's configuration: the default of `post_process_localization`.
        audio_window_seconds (`float`, *optional*):
            Length of the audio that is prepared for each segment, with the segment in its middle; by default the
            length of a segment. Encoders that were trained on several seconds recognize more in a longer window, but
            the ends of events become less exact. At the ends of a video the window is shorter.
        audio_options (`dict`, *optional*):
            Further arguments of the feature extractor.
        problem_type (`str`, *optional*, defaults to `"single_label"`):
            As in the model's configuration: `"multi_label"` if events may overlap.
        event_threshold (`float`, *optional*, defaults to 0.5):
            As in the model's configuration: probability from which a class is active, if events may overlap.

    Examples:

    ```python
    >>> from ave_clip import AVEClipForLocalization, AVEClipProcessor

    >>> processor = AVEClipProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(videos="clip.mp4", return_tensors="pt")
    >>> outputs = AVEClipForLocalization.from_pretrained("path/to/checkpoint")(**inputs)
    >>> processor.post_process_localization(outputs)[0]["events"]
    ```"""

    valid_processor_kwargs = AVEClipProcessorKwargs
    # transformers' Trainer reads special tokens from the tokenizer of every processor; this one has none.
    tokenizer = SimpleNamespace(eos_token_id=None, bos_token_id=None, pad_token_id=None, init_kwargs={})

    def __init__(
        self,
        feature_extractor=None,
        video_processor=None,
        id2label=None,
        min_event_segments=3,
        audio_window_seconds=None,
        audio_options=None,
        problem_type=SINGLE_LABEL,
        event_threshold=0.5,
        **kwargs,
    ):
        super().__init__(feature_extractor, video_processor, **kwargs)
        if feature_extractor is not None and video_processor is not None:  # refuses segments of an absurd size
            grid = {name: getattr(video_processor, name) for name in _GRID}
            ReadOptions(sampling_rate=feature_extractor.sampling_rate, **grid)
        self.min_event_segments = min_event_segments
        check_problem_type(problem_type)
        check_threshold("event_threshold", event_threshold)
        self.problem_type, self.event_threshold = problem_type, event_threshold
        self.id2label = None if id2label is None else check_labels(id2label, problem_type)
        self.audio_window_seconds = audio_window_seconds
        self.audio_options = dict(audio_options or {})
        if feature_extractor is not None and video_processor is not None:
            self._check_window()

    def _check_window(self) -> None:
        longest = getattr(self.feature_extractor, "max_length_s", None)  # CLAP's; it would cut at a random place
        shortest = self.video_processor.segment_seconds
        if not shortest <= self.window_seconds <= (longest or self.window_seconds):
            raise ValueError(
                f"`audio_window_seconds` must be at least the length of a segment ({shortest} s)"
                + (f" and at most the {longest} s that the feature extractor takes" if longest else "")
                + f", got {self.audio_window_seconds}."
            )

    @property
    def window_seconds(self) -> float:
        """Length of the audio that is prepared for each segment."""
        return self.audio_window_seconds or self.video_processor.segment_seconds

    @property
    def window_samples(self) -> int:
        """Number of samples of the audio that is prepared for each segment."""
        return samples_per_segment(self.feature_extractor.sampling_rate, self.window_seconds)

    def prepare_windows(self, windows: Sequence[np.ndarray], num_samples: int | None = None) -> np.ndarray:
        """Prepares windows of audio with the feature extractor.

        Args:
            windows (`list[np.ndarray]`): Waveforms in [-1, 1], each of at most `num_samples` samples.
            num_samples (`int`, *optional*): Length to which shorter waveforms are padded; by default `window_samples`.

        Returns:
            `np.ndarray` of shape `(num_windows, ...)`, float32: What the encoder takes.
        """
        extractor, num_samples = self.feature_extractor, num_samples or self.window_samples
        if hasattr(extractor, "scale"):  # AudioCLIP's, which only scales: no copy of every window as a list
            return extractor.scale(np.stack([_padded(window, num_samples) for window in windows]))
        rate = extractor.sampling_rate
        if hasattr(extractor, "nb_max_samples") or hasattr(extractor, "num_mel_bins"):
            # Spectrograms of a fixed length: the extractor repeats or pads what is shorter in its own way.
            windows = [np.ascontiguousarray(window, dtype=np.float32) for window in windows]
        else:
            windows = [_padded(window, num_samples).astype(np.float32) for window in windows]
        prepared = extractor(windows, sampling_rate=rate, return_tensors="np", **self.audio_options)
        return np.asarray(prepared[extractor.model_input_names[0]], dtype=np.float32)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "segment_mask"]

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        audio_track: int | None = None,
        **kwargs: Unpack[AVEClipProcessorKwargs],
    ) -> BatchFeature:
        """Prepares one video or a batch.

        Args:
            videos:
                A path, bytes, file object or URL; or decoded frames `(num_frames, height, width, 3)`; or a list of
                these. The audio of a file is read from the file.
            audio (`np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                With decoded frames: waveforms in [-1, 1], `(num_samples,)` or `(channels, num_samples)`. Without it
                decoded frames are treated as silent.
            audio_track (`int`, *optional*):
                Which audio track of the files is read, counted from 0; by default the track that the file marks as
                default, else FFmpeg's choice.
            num_frames_per_segment (`int`, *optional*), segment_seconds (`float`, *optional*):
                The time grid; by default the video processor's values.
            sampling_rate (`int`, *optional*):
                Samples per second of `audio`, which is resampled to the rate of the feature extractor.
            frame_rate (`float`, *optional*):
                Frames per second of decoded frames; without it they are taken as already sampled, with
                `num_frames_per_segment` per segment.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with `pixel_values` `(batch_size, num_segments, num_frames, 3, height, width)`,
            `frame_mask` `(batch_size, num_segments, num_frames)`, `input_values` `(batch_size, num_segments,
            num_samples)` and `segment_mask` `(batch_size, num_segments)`; shorter videos are padded at the end.

        Raises:
            ValueError: If a file cannot be read, audio is not finite or given with a file, or frames and audio differ
                in length.
        """
        if videos is None:
            raise ValueError("AVEClipProcessor needs `videos`: an audio-visual event is both seen and heard.")
        grid = {name: kwargs.get(name) for name in _GRID}
        check_grid(*(getattr(self.video_processor, name) if grid[name] is None else grid[name] for name in _GRID))
        self._refuse_misspelt(kwargs)
        kwargs_class: Any = self.valid_processor_kwargs  # transformers declares an instance where it wants the class
        merged = self._merge_kwargs(kwargs_class, tokenizer_init_kwargs={}, **kwargs)
        video_options, audio_options = merged["videos_kwargs"], merged["audio_kwargs"]
        tensor_type = video_options.pop("return_tensors", None) or audio_options.pop("return_tensors", None)
        clips = self._clips(
            as_video_list(videos), audio, audio_options.get("sampling_rate"), audio_track, video_options
        )
        for name in ("video_metadata", "frame_rate"):
            video_options.pop(name, None)
        visual = self.video_processor.preprocess_segments(
            [clip.frames for clip in clips], is_resized=True, **video_options
        )
        input_values, segment_mask = self._audio(clips)
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
        frame_transform: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> VideoClip:
        """Cuts one decoded video into segments by the rules for files; arguments as in `__call__` and `iter_segments`.

        Raises:
            ValueError: If several frames without `frame_rate` do not last as long as their audio. A single frame is
                on display until the audio ends.
        """
        count = num_frames_per_segment or self.video_processor.num_frames_per_segment
        seconds = segment_seconds or self.video_processor.segment_seconds
        expected = self.feature_extractor.sampling_rate
        (waveform,) = self._waveforms(audio, 1, sampling_rate)
        (frame_rate,) = frame_rates([frames], None, frame_rate)
        frames = as_frames(frames)
        if frame_rate is None and len(frames) == 1 and waveform is not None:
            frame_rate = expected / len(waveform)  # an image under audio lasts as long as the audio
        options = {"waveform": waveform, "sampling_rate": expected, "frame_transform": frame_transform}
        clip = cut_frames(frames, frame_rate, count, seconds, **options, name="decoded video")
        if frame_rate is None and waveform is not None:
            audio_seconds = len(waveform) / expected
            in_frames, in_audio = math.ceil(len(frames) / count), num_segments_for(audio_seconds, seconds)
            if abs(in_audio - in_frames) > 1:
                raise ValueError(
                    f"The frames fill {in_frames} segments (already sampled frames), but the audio fills {in_audio} "
                    f"of {seconds} s at {expected} Hz. Pass `frame_rate`, frames per second."
                )
            # Sampled frames give the number of segments only, so the exact duration is that of the audio.
            clip.duration_seconds = min(clip.num_segments * seconds, audio_seconds)
        return clip

    def _clips(
        self,
        videos: list[Any],
        audio: Any,
        sampling_rate: int | None,
        audio_track: int | None,
        options: dict[str, Any],
    ) -> list[VideoClip]:
        """Returns every video cut into segments, with its frames resized and cropped."""
        grid = {name: options.get(name) or getattr(self.video_processor, name) for name in _GRID}
        rates = frame_rates(videos, options.get("video_metadata"), options.get("frame_rate"))
        waveforms = self._waveforms(audio, len(videos), sampling_rate)
        transform = self.video_processor.frame_transform(
            **{name: value for name, value in options.items() if name not in ("video_metadata", "frame_rate")}
        )
        clips = []
        for video, waveform, rate in zip(videos, waveforms, rates):
            if waveform is not None and not is_decoded(video):
                raise ValueError(
                    f"`audio` can be given with decoded frames only; the audio of {video!r} is read from the file."
                )
            if audio_track is not None and (isinstance(video, VideoClip) or is_decoded(video)):
                raise ValueError(f"Got audio_track={audio_track}, but only files have audio tracks. Leave it out.")
            if isinstance(video, VideoClip):
                self._check_clip(video, grid["segment_seconds"])
                frames = [[transform(frame) for frame in segment] for segment in video.frames]
                clips.append(replace(video, frames=[np.stack(part) if part else np.zeros(0) for part in frames]))
            elif is_decoded(video):
                clips.append(self.cut(video, waveform, **grid, frame_rate=rate, frame_transform=transform))
            else:
                expected = self.feature_extractor.sampling_rate
                options_of_file = {**grid, "sampling_rate": expected, "audio_track": audio_track}
                clips.append(read_video(video, **options_of_file, frame_transform=transform))
        return clips

    def _check_clip(self, clip: VideoClip, segment_seconds: float) -> None:
        expected = self.feature_extractor.sampling_rate
        if clip.sampling_rate != expected or clip.segment_seconds != segment_seconds:
            raise ValueError(
                f"{clip.name} was read at {clip.sampling_rate} Hz in segments of {clip.segment_seconds} s, but this "
                f"processor needs {expected} Hz and {segment_seconds} s. Read it with these, or pass the file itself."
            )

    def _waveforms(self, audio: Any, num_videos: int, sampling_rate: int | None) -> Sequence[np.ndarray | None]:
        if audio is None:
            return [None] * num_videos
        expected = self.feature_extractor.sampling_rate
        is_rate = isinstance(sampling_rate, numbers.Real) and not isinstance(sampling_rate, bool)
        if sampling_rate is not None and not (is_rate and 1 <= sampling_rate == int(sampling_rate)):
            raise ValueError(f"`sampling_rate` must be a whole number of Hz, got {sampling_rate!r}.")
        if sampling_rate is None:
            logger.warning_once(f"`audio` was given without `sampling_rate`; {expected} Hz is assumed.")
        if isinstance(audio, (list, tuple)) and not len(audio):
            raise ValueError("Got an empty list as `audio`. Pass one waveform per video, or leave it out.")
        several = isinstance(audio, (list, tuple)) and not np.isscalar(audio[0])
        waveforms = [_mono(waveform) for waveform in (audio if several else [audio])]
        if sampling_rate is not None and sampling_rate != expected:
            waveforms = [_resampled(waveform, int(sampling_rate), expected) for waveform in waveforms]
        if len(waveforms) != num_videos:
            raise ValueError(
                f"Got {len(waveforms)} waveforms for {num_videos} videos. Pass a list with one waveform per video."
            )
        return waveforms

    def _audio(self, clips: Sequence[VideoClip]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(clip.waveforms) for clip in clips)
        # Without a window of its own it is a segment, whose length an option of the call may have changed.
        num_samples = self.window_samples if self.audio_window_seconds else clips[0].waveforms.shape[1]
        prepared = [
            self.prepare_windows([*audio_windows(clip.waveforms, num_samples)], num_samples)  # (T, ...)
            for clip in clips
        ]
        input_values = np.zeros((len(clips), longest, *prepared[0].shape[1:]), dtype=np.float32)
        segment_mask = np.zeros((len(clips), longest), dtype=bool)
        for row, values in enumerate(prepared):
            input_values[row, : len(values)] = values
            segment_mask[row, : len(values)] = True
        return torch.from_numpy(input_values), torch.from_numpy(segment_mask)

    def post_process_localization(
        self,
        outputs: Any,
        min_event_segments: int | None = None,
        decoder: str | None = None,
        durations: Sequence[float] | None = None,
        segment_mask: torch.Tensor | None = None,
        threshold: float | None = None,
    ) -> list[dict[str, list[dict[str, Any]]]]:
        """Converts the model's output to segments and events (paper sec. 3.7).

        Args:
            outputs ([`AVEClipLocalizationOutput`]):
                Output with `logits` of shape `(batch_size, num_segments, num_labels)`. If it has the proposals of a
                boundary head, events start and end where these do, and not with segments.
            min_event_segments (`int`, *optional*):
                Shortest run for `"merge"`, shortest event for `"viterbi"` and `"hysteresis"`; 1 disables it. By
                default the value of the processor, which is 3 unless its checkpoint has another.
            decoder (`str`, *optional*):
                For one label per segment: `"merge"` (the paper, and the default), `"single_event"` (the most probable
                labelling with at most one event), `"viterbi"` (the most probable one without short events, for
                untrimmed video) or `"none"` (argmax). For several labels: `"viterbi"` (for each class, the default),
                `"hysteresis"` (an event starts where a class reaches the threshold and ends where it falls below half
                of it) or `"none"` (each segment on its own).
            durations (`list[float]`, *optional*):
                Length of each video in seconds: determines how many segments are real and where the last one ends.
            segment_mask (`torch.Tensor` of shape `(batch_size, num_segments)`, *optional*):
                As returned by the processor; required for padded batches unless `durations` is given.
            threshold (`float`, *optional*):
                For several labels: probability from which a class is active, by default the processor's
                `event_threshold`.

        Returns:
            `list[dict]`: One dictionary per video. `"segments"` contains a dictionary per segment with `start`, `end`
            (seconds), `label` and `score` (the probability of the label). `"events"` contains the same for each event,
            with the mean score of its segments. If events may overlap, `"labels"` of a segment lists the `label` and
            `score` of every class at the threshold, highest first; its `label` is the first of them, or background
            with the probability that no class reaches, 1 minus the highest.

        Raises:
            ValueError: If the decoder is unknown or made for another problem type, `threshold` is given for a model
                with one label per segment, or `durations` or `segment_mask` does not match the batch.
        """
        outputs = outputs if isinstance(outputs, Mapping) else vars(outputs)
        logits, proposed = outputs["logits"], outputs.get("proposal_logits")
        space = LabelSpace(self._names(logits.shape[-1]), self.problem_type, self.event_threshold)
        probabilities = space.probabilities(logits.detach().float()).cpu().numpy().astype(np.float64)
        shortest = self.min_event_segments if min_event_segments is None else min_event_segments
        lengths = self._lengths(probabilities.shape, durations, segment_mask)
        seconds = self.video_processor.segment_seconds
        results = []
        for row, length in enumerate(lengths):
            duration = None if durations is None else durations[row]
            video = probabilities[row, :length]
            proposals = None
            if proposed is not None:
                proposals = dense_proposals(proposed[row], outputs["proposal_spans"][row], length)
            segments, events = space.find_events(video, seconds, duration, decoder, shortest, threshold, proposals)
            results.append({"segments": segments, "events": events})
        return results

    def _lengths(self, shape: tuple[int, ...], durations, segment_mask) -> list[int]:
        batch_size, num_segments = shape[:2]
        for name, given in (("durations", durations), ("segment_mask", segment_mask)):
            if given is not None and len(given) != batch_size:
                raise ValueError(f"Got `{name}` for {len(given)} videos, but the output contains {batch_size}.")
        if segment_mask is not None:
            return [_prefix_length(row, num_segments) for row in segment_mask]
        if durations is None:
            return [num_segments] * batch_size
        seconds = self.video_processor.segment_seconds
        # A duration beyond the scored segments needs no limit: each segment ends where it ends anyway.
        return [num_segments_for(duration, seconds) for duration in durations]

    def _names(self, num_labels: int) -> tuple[str, ...]:
        if self.id2label is None:
            names = [f"LABEL_{index}" for index in range(num_labels)]
            return tuple(names if self.problem_type == MULTI_LABEL else [*names[:-1], BACKGROUND_LABEL])
        if len(self.id2label) != num_labels:
            raise ValueError(
                f"The output has {num_labels} classes, but the processor's id2label names {len(self.id2label)}. "
                "Use the processor saved with this model, or set processor.id2label = model.config.id2label."
            )
        return tuple(self.id2label[index] for index in range(num_labels))


def _resampled(waveform: np.ndarray, sampling_rate: int, new_rate: int) -> np.ndarray:
    """Resamples a waveform with the resampler that is used for files."""
    from av import AudioFrame, AudioResampler

    if not len(waveform):
        return waveform
    frame = AudioFrame.from_ndarray(
        np.ascontiguousarray(waveform[None], dtype=np.float32), format="flt", layout="mono"
    )
    frame.sample_rate = sampling_rate
    resampler = AudioResampler("flt", "mono", new_rate)
    return np.concatenate([part.to_ndarray()[0] for end in (frame, None) for part in resampler.resample(end)])


def _padded(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    missing = num_samples - len(waveform)
    return np.pad(waveform, (missing // 2, missing - missing // 2)) if missing > 0 else waveform


def _prefix_length(mask: Any, num_segments: int) -> int:
    mask = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask, dtype=bool)
    length = int(mask.sum())
    if mask.shape != (num_segments,) or not mask[:length].all():
        raise ValueError(
            f"`segment_mask` must contain {num_segments} values: True for the segments of the video, then False; got "
            f"{mask.tolist()}."
        )
    return length


def _mono(audio: Any) -> np.ndarray:
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = audio.float() if audio.dtype in (torch.bfloat16, torch.float16) else audio  # numpy has no bfloat16
    waveform = np.asarray(audio)
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"Got {waveform.dtype} audio, expected floats in [-1, 1]. Divide int16 samples by 32768 first."
        )
    # Channels come first; an array with more rows than columns is (samples, channels) and refused below.
    if waveform.ndim == 2 and waveform.shape[0] <= waveform.shape[1]:
        waveform = waveform.mean(axis=0)
    if waveform.ndim != 1 or waveform.size == 0:
        raise ValueError(f"A waveform must have the shape (samples,) or (channels, samples), got {waveform.shape}.")
    return waveform


__all__ = ["AVEClipProcessor"]
