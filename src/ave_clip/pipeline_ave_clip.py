"""The pipelines `"audio-visual-event-localization"` and `"zero-shot-audio-visual-event-localization"`: from a video of
any length to its segments and events.

A video streams through in blocks of a few segments: each block is decoded (in a thread, while the one before is
encoded), encoded once, and reduced to one visual and one audio vector a segment (a few kB a second). The temporal part
then runs over overlapping windows of `num_segments` and averages their logits, so memory does not grow with the frames
of a long video.
"""

import itertools
import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .categories import BACKGROUND_LABEL
from .events import DECODERS, decode_labels
from .modeling_ave_clip import encode_frames, encode_in_chunks, place_segments
from .processing_ave_clip import AVEClipProcessor, describe
from .segments import num_segments_for, samples_per_segment
from .video_decoding import Recording
from .video_io import ReadOptions, Segment, SegmentReader
from .video_processing_ave_clip import AVEClipVideoProcessor, is_file
from .video_source import open_container, source_name

logger = logging.get_logger(__name__)

_WINDOWS_PER_CALL = 64
# Segments and frames of a block: large enough for the towers, small enough to decode the next one meanwhile.
_BLOCK_SEGMENTS = 10
_BLOCK_FRAMES = 64
# Of a block that a video's first one holds.
_FIRST_BLOCK_PART = 4
_CACHED_LABEL_SETS = 64
_AS_BYTES = {"do_rescale": False, "do_normalize": False}
_PICTURE_OPTIONS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb"),
)


class _VideoPipeline(ChunkPipeline):
    """What both pipelines share: videos come in, stream through in blocks, and leave as segments and events."""

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    _preprocess_options: tuple[str, ...] = ("num_frames_per_segment", "frame_tolerance")
    _forward_options: tuple[str, ...] = ("progress",)
    _postprocess_options: tuple[str, ...] = ("min_event_segments", "decoder", "top_k")

    def __init__(self, *args: Any, backend: str | None = None, compile: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if hasattr(self.model, "use_backend"):  # exported
            if compile:
                raise ValueError("compile=True goes with torch weights, but this model is an export.")
            self.model.use_backend(backend or self.model.backend)
            self.device = self.model.device
        elif backend not in (None, "torch"):
            raise ValueError(
                f"backend={backend!r} runs exported models only, and this one holds torch weights. Write it with "
                "`ave-clip export MODEL OUT --format onnx`, then pass model=OUT."
            )
        else:
            self._optimize(compile)

    def _optimize(self, compile: bool) -> None:
        if self.model.is_optimized_for_inference and not compile:  # as its owner wants it
            return
        try:
            self.model.optimize_for_inference(compile=compile)
        except ValueError as error:  # layers replaced by adapters
            logger.info(f"The model runs as it is: {error}")

    @property
    def segmenter(self) -> AVEClipProcessor:
        """Cuts videos into segments and prepares their frames and sound."""
        return self.processor

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        is_stream = isinstance(inputs, (tuple, Iterator)) and not is_file(inputs)
        if is_stream and not isinstance(inputs, GeneratorType):
            inputs = (item for item in inputs)  # transformers streams generators only
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        stages = (self._preprocess_options, self._forward_options, self._postprocess_options)
        known = {name for names in stages for name in names}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(f"Unknown options {unknown} for {self.task}. Known: {sorted(known)}.")
        given = {name: value for name, value in kwargs.items() if value is not None}
        _check_options(given)
        if given.get("progress") is True:
            given["progress"] = _ProgressBar()
        return tuple({name: given[name] for name in names if name in given} for names in stages)

    def preprocess(
        self, inputs: Any, num_frames_per_segment: int | None = None, frame_tolerance: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields blocks of the model's input, each padded to one size, with what `postprocess` must know.

        The next block is decoded in a thread while its reader works on the one before.
        """
        count = num_frames_per_segment or self.segmenter.video_processor.num_frames_per_segment
        source = open_source(inputs, self.segmenter, count, self.segmenter.video_processor.segment_seconds)
        return ahead(self._blocks(source, count, frame_tolerance))

    def _blocks(self, source: "VideoSource", count: int, tolerance: float | None) -> Iterator[dict[str, Any]]:
        size = max(1, min(_BLOCK_SEGMENTS, _BLOCK_FRAMES // count))
        segments = iter(source)
        following, done = list(itertools.islice(segments, 1)), 0
        if source.missing:  # read to the end, to know how long it is and whether it is whole; nothing to encode
            following, done = [], len(following) + sum(1 for _ in segments)
        # A small block first: the model begins soon, and the rest is decoded meanwhile.
        # Two segments at least, as oneDNN wants the weights laid out anew for one.
        first = min(size, max(2, size // _FIRST_BLOCK_PART))
        for num_segments in itertools.chain([first], itertools.repeat(size)):
            block = following + list(itertools.islice(segments, num_segments - 1))
            following = list(itertools.islice(segments, 1))
            done += len(block)
            info = {"name": source.name, "missing": source.missing, "done": done, "duration": source.duration}
            info["total"] = max(done + 1, source.num_segments) if following else done
            inputs = self._block(block, size, count)
            del block  # its frames have their native size
            if tolerance is not None:
                inputs["frame_sources"] = find_frame_sources(inputs["pixel_values"], inputs["frame_mask"], tolerance)
            yield {**inputs, "info": info, "is_last": not following}
            if not following:
                return

    def _block(self, block: list[Segment], size: int, count: int) -> dict[str, torch.Tensor]:
        extractor, video_processor = self.segmenter.feature_extractor, self.segmenter.video_processor
        samples = samples_per_segment(extractor.sampling_rate, video_processor.segment_seconds)
        input_values = np.zeros((1, size, samples), dtype=np.float32)
        segment_mask = torch.zeros(1, size, dtype=torch.bool)
        if block:
            input_values[0, : len(block)] = extractor.scale(np.stack([segment.waveform for segment in block]))
            segment_mask[0, : len(block)] = True
        frames = [segment.frames for segment in block]
        frames += [np.zeros((0, 1, 1, 3), dtype=np.uint8)] * (size - len(block))
        # Frames stay uint8, a quarter of the bytes, until they are where the model is.
        visual = video_processor.preprocess_segments([frames], num_frames_per_segment=count, **_AS_BYTES)
        visual["pixel_values"] = visual["pixel_values"].to(torch.uint8)
        return {**visual, "input_values": torch.from_numpy(input_values), "segment_mask": segment_mask}

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.segmenter.video_processor.normalize_pixels(pixels).to(self.model.dtype)

    def _finish(
        self, probabilities: np.ndarray, names: list[str], info: dict[str, Any], top_k: int | None, **decoding: Any
    ) -> dict[str, Any]:
        seconds = self.segmenter.video_processor.segment_seconds
        labels = decode_labels(probabilities, **decoding)
        duration = min(info["duration"], len(labels) * seconds)
        result = describe(labels, probabilities, names, seconds, duration)
        if top_k:
            _add_top_k(result["segments"], probabilities, names, top_k)
        return result

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save model and processor as ordinary files, so that `pipeline(task, model=directory)` loads them again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class AudioVisualEventLocalizationPipeline(_VideoPipeline):
    """Finds the audio-visual event of every second of a video.

    ```python
    >>> import ave_clip
    >>> from transformers import pipeline

    >>> localizer = pipeline("audio-visual-event-localization")
    >>> localizer("clip.mp4")["events"]
    [{'start': 2.0, 'end': 7.0, 'label': 'Amber gong', 'score': 0.98}]
    ```

    Made with `backend="onnxruntime"` or `"openvino"` it runs what `ave-clip export --format onnx` wrote; with
    `compile=True` the towers are compiled at the first video.

    Takes a path, bytes, a file object or an http(s) URL; a dictionary with decoded `frames`, their `frame_rate`,
    `audio` and its `sampling_rate`; a list of these (`batch_size=` blocks at once); or a generator, which is consumed
    as results are.

    A video without a sound track or without pictures has no audio-visual event, by definition: it is reported as
    background throughout, with a warning.
    """

    _forward_options = ("progress", "return_heatmaps")
    _postprocess_options = ("min_event_segments", "decoder", "top_k", "overlap", "num_segments", "return_heatmaps")

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Localize.

        Args:
            inputs: As above.
            num_frames_per_segment (`int`, *optional*): Frames read from each segment; the processor's by default.
            num_segments (`int`, *optional*): Window of the temporal part; the model's longest window by default.
            frame_tolerance (`float`, *optional*): Near-identical neighbouring frames share one encoding: a frame that
                differs from the last encoded one by at most so many grey levels (mean absolute difference of the
                resized pictures, 0 to 255) is not encoded anew. 0 shares exact repeats; off by default.
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
        return super().__call__(inputs, **kwargs)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        return_heatmaps: bool = False,
        progress: Callable[[str, int, int], None] | bool = False,
    ) -> dict[str, Any]:
        mask = model_inputs["segment_mask"]
        image_features, audio_features = self.model.encode(
            model_inputs["pixel_values"],
            model_inputs["input_values"],  # the spectrogram is computed in float32 whatever the weights are
            model_inputs["frame_mask"],
            mask,
            _sources_in_batch(model_inputs),
            self._normalize,
        )
        visual, weights = self.model.attend(image_features, audio_features)
        _tell(progress, model_inputs["info"])
        output = {"visual": visual, "audio": audio_features, "segment_mask": mask}
        if return_heatmaps:
            output["weights"] = weights
        return {**output, "info": model_inputs["info"], "is_last": model_inputs["is_last"]}

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
        if info["missing"]:
            probabilities = _all_background(info["total"], len(names))
        else:
            windows = self._window_logits(num_segments, overlap)
            features = (_real_segments(model_outputs, name) for name in ("visual", "audio"))
            logits = torch.cat([windows.add(*features), windows.finish()])
            probabilities = logits.double().softmax(dim=-1).numpy()
        shortest = self.model.config.min_event_segments if min_event_segments is None else min_event_segments
        result = self._finish(probabilities, names, info, top_k, decoder=decoder, min_event_segments=shortest)
        if return_heatmaps:
            result["heatmaps"] = None if info["missing"] else _heatmaps(model_outputs)
        return result

    def _window_logits(self, num_segments: int | None, overlap: float) -> "WindowLogits":
        return WindowLogits(self.model, num_segments or max(self.model.config.window_sizes), overlap)

    def stream(self, video: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Localize one video while it is still being read.

        Args:
            video: As for a call.
            kwargs: The options of a call; `decoder`, `min_event_segments` and `top_k` hold for the last result only.

        Yields:
            `{"segments": [...]}` with the segments that can no longer change, each with its most probable label; and
            at the end what a call returns: `{"segments": [...], "events": [...]}` of the whole video.

        Raises:
            ValueError: As a call.
        """
        kwargs.pop("batch_size", None)  # of blocks of several videos; here is one
        given = self._sanitize_parameters(**kwargs)
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        preprocess, forward, postprocess = ({**default, **options} for default, options in zip(defaults, given))
        windows = self._window_logits(postprocess.get("num_segments"), postprocess.get("overlap", 0.5))
        blocks, told = [], 0
        for block in self.preprocess(video, **preprocess):
            blocks.append(self.forward(block, **forward))
            logits = windows.add(_real_segments(blocks[-1:], "visual"), _real_segments(blocks[-1:], "audio"))
            if len(logits):
                yield {"segments": self._segments(logits, told)}
                told += len(logits)
        yield self.postprocess(blocks, **postprocess)

    def _segments(self, logits: torch.Tensor, first: int) -> list[dict[str, Any]]:
        probabilities = logits.double().softmax(dim=-1).numpy()
        names = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        seconds = self.segmenter.video_processor.segment_seconds
        segments = describe(probabilities.argmax(axis=1), probabilities, names, seconds, None)["segments"]
        shift = {"start": first * seconds, "end": first * seconds}
        return [
            {name: value + shift.get(name, 0) if name in shift else value for name, value in segment.items()}
            for segment in segments
        ]


class WindowLogits:
    """Runs the temporal part over overlapping windows as segments come in, and averages where windows overlap.

    Args:
        model ([`AVEClipForLocalization`]): Its `localize` is called with up to 64 windows at once.
        window (`int`): Segments of a window.
        overlap (`float`): Share of a window that the next one repeats.
    """

    def __init__(self, model: Any, window: int, overlap: float) -> None:
        self.model, self.window = model, window
        self.stride = max(1, window - round(window * overlap))
        self.next_start = 0  # of the next regular window
        self.kept_from = 0  # segments before are final and forgotten
        self.kept: list[torch.Tensor] | None = None  # visual, audio, total of logits, number of windows

    def add(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Take the next segments.

        Args:
            visual (`torch.Tensor` of shape `(num_segments, width)`), audio (same): Results of `attend` and `encode`.

        Returns:
            `torch.Tensor` of shape `(num_final, num_labels)`: averaged logits of the segments, following those
            returned before, that no later window will reach.
        """
        visual, audio = visual.to(self.model.device), audio.to(self.model.device)
        total = torch.zeros(len(visual), self.model.config.num_labels, device=self.model.device)
        fresh = [visual, audio, total, total[:, :1].clone()]
        self.kept = fresh if self.kept is None else [torch.cat(pair) for pair in zip(self.kept, fresh)]
        seen = self.kept_from + len(self.kept[0])
        starts = list(range(self.next_start, seen - self.window + 1, self.stride))
        if starts:
            self._run(starts, self.window)
            self.next_start = starts[-1] + self.stride
        # The last window is moved back to end with the video, wherever that will be.
        return self._release(max(self.kept_from, min(self.next_start, seen - self.window)))

    def finish(self) -> torch.Tensor:
        """The averaged logits of the segments that are left, once the video has ended."""
        seen = self.kept_from + len(self.kept[0])
        last = max(0, seen - self.window)
        if last > self.next_start - self.stride:  # not run already, as a regular one
            self._run([last], min(self.window, seen))
        return self._release(seen)

    @torch.no_grad()
    def _run(self, starts: list[int], length: int) -> None:
        visual, audio, total, number = self.kept
        first = torch.tensor(starts, device=visual.device) - self.kept_from
        for rows in (first[:, None] + torch.arange(length, device=visual.device)).split(_WINDOWS_PER_CALL):
            logits = self.model.localize(visual[rows], audio[rows]).logits.float()
            total.index_add_(0, rows.flatten(), logits.flatten(0, 1))
            number.index_add_(0, rows.flatten(), torch.ones_like(logits[..., :1]).flatten(0, 1))

    def _release(self, end: int) -> torch.Tensor:
        count = end - self.kept_from
        total, number = self.kept[2][:count], self.kept[3][:count]
        self.kept_from, self.kept = end, [tensor[count:] for tensor in self.kept]
        return (total / number).cpu()


class ZeroShotAudioVisualEventLocalizationPipeline(_VideoPipeline):
    """Finds events that are only named, with AudioCLIP and no training.

    ```python
    >>> localizer = pipeline("zero-shot-audio-visual-event-localization", model="path/to/converted-audioclip")
    >>> localizer("clip.mp4", candidate_labels=["dog bark", "church bell"])["events"]
    ```

    For each second and label, the audio-text and image-text probabilities (softmax over the labels) are combined to
    their geometric mean. Sight and sound agree with probability `sigmoid(scale * (cos(audio, image) - threshold))`,
    with AudioCLIP's own audio-image scale; what remains is background. The labels' probabilities times that of
    agreement, and background last, are decoded and returned exactly as by the trained localizer.

    AudioCLIP's similarities are trained to rank, not to be read as they are: set `agreement_threshold` on a few videos
    of your own.
    """

    _forward_options = ("progress", "candidate_labels", "hypothesis_template")
    _postprocess_options = (
        "min_event_segments",
        "decoder",
        "top_k",
        "candidate_labels",
        "hypothesis_template",
        "agreement_threshold",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        images = self.processor.image_processor
        video_processor = AVEClipVideoProcessor(
            **{name: getattr(images, name) for name in _PICTURE_OPTIONS if getattr(images, name, None) is not None}
        )
        self._segmenter = AVEClipProcessor(self.processor.feature_extractor, video_processor)
        self._label_embeds: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    @property
    def segmenter(self) -> AVEClipProcessor:
        return self._segmenter

    def __call__(self, inputs: Any, candidate_labels: list[str] | str | None = None, **kwargs: Any) -> Any:
        """Localize.

        Args:
            inputs: As for [`AudioVisualEventLocalizationPipeline`].
            candidate_labels (`list[str]` or `str`): Labels, or one string of them separated by commas.
            hypothesis_template (`str`, *optional*, defaults to `"{}"`): Sentence around a label; AudioCLIP was trained
                on bare labels.
            agreement_threshold (`float`, *optional*, defaults to 0.0): Audio-image cosine at which sight and sound
                agree as likely as not.
            decoder, min_event_segments, top_k, num_frames_per_segment, frame_tolerance, progress, batch_size:
                As for [`AudioVisualEventLocalizationPipeline`]; `min_event_segments` is 3 by default.

        Returns:
            `{"segments": [...], "events": [...]}`, or a list or iterator of them.

        Raises:
            ValueError: Labels or a template that cannot be used, or a file that cannot be read.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = parse_labels(candidate_labels)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        template = kwargs.get("hypothesis_template")
        if template is not None and (not isinstance(template, str) or template.count("{}") != 1):
            raise ValueError(f"`hypothesis_template` must hold one {{}} for the label, got {template!r}.")
        if kwargs.get("candidate_labels") is not None:
            kwargs["candidate_labels"] = parse_labels(kwargs["candidate_labels"])
        return super()._sanitize_parameters(**kwargs)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        candidate_labels: list[str] | None = None,
        hypothesis_template: str = "{}",
        progress: Callable[[str, int, int], None] | bool = False,
    ) -> dict[str, Any]:
        if candidate_labels is None:
            raise ValueError(
                "Pass `candidate_labels`, the events to look for, for example ['dog bark', 'church bell']."
            )
        self._embed_labels(candidate_labels, hypothesis_template)
        segments = model_inputs["segment_mask"]
        frames = model_inputs["frame_mask"] & segments.unsqueeze(-1)
        image = encode_frames(
            lambda part: self.model.vision_model(part).image_embeds,
            model_inputs["pixel_values"],
            frames,
            _sources_in_batch(model_inputs),
            self._normalize,
        )
        sound = model_inputs["input_values"][segments]
        audio = encode_in_chunks(lambda part: self.model.audio_model(part).audio_embeds, sound)
        _tell(progress, model_inputs["info"])
        return {
            "image": image,
            "audio": place_segments(audio, segments),
            "segment_mask": segments,
            "info": model_inputs["info"],
            "is_last": model_inputs["is_last"],
        }

    @torch.no_grad()
    def _embed_labels(self, labels: list[str], template: str) -> torch.Tensor:
        """Unit embeddings `(num_labels, D)` of the labels, kept over calls."""
        key = (tuple(labels), template)
        if key not in self._label_embeds:
            texts = [template.replace("{}", label) for label in labels]
            inputs = self.processor(text=texts, return_tensors="pt").to(self.device)
            embeds = self.model.get_text_features(**inputs).pooler_output
            self._label_embeds[key] = nn.functional.normalize(embeds.float(), dim=-1).cpu()
            if len(self._label_embeds) > _CACHED_LABEL_SETS:
                self._label_embeds.popitem(last=False)
        return self._label_embeds[key]

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        candidate_labels: list[str] | None = None,
        hypothesis_template: str = "{}",
        agreement_threshold: float = 0.0,
        min_event_segments: int = 3,
        decoder: str = "merge",
        top_k: int | None = None,
    ) -> dict[str, Any]:
        info = model_outputs[-1]["info"]
        names = [*candidate_labels, BACKGROUND_LABEL]
        if info["missing"]:
            probabilities = _all_background(info["total"], len(names))
        else:
            text = self._embed_labels(candidate_labels, hypothesis_template)
            embeds = [_real_segments(model_outputs, name).float() for name in ("image", "audio")]
            image, audio = (nn.functional.normalize(embed, dim=-1) for embed in embeds)
            probabilities = self._probabilities(image, audio, text, agreement_threshold).double().numpy()
        decoding = {"decoder": decoder, "min_event_segments": min_event_segments}
        return self._finish(probabilities, names, info, top_k, **decoding)

    def _probabilities(
        self, image: torch.Tensor, audio: torch.Tensor, text: torch.Tensor, threshold: float
    ) -> torch.Tensor:
        """`(num_segments, num_labels + 1)`: each label, then background; rows sum to 1."""
        from .modeling_audioclip import MAX_LOGIT_SCALE, MIN_LOGIT_SCALE  # loaded with the model; localizers need none

        scales = (self.model.logit_scale, self.model.logit_scale_at, self.model.logit_scale_ai)
        image_text, audio_text, audio_image = (
            scale.detach().float().exp().clamp(MIN_LOGIT_SCALE, MAX_LOGIT_SCALE).cpu() for scale in scales
        )
        by_image = (image_text * image @ text.T).log_softmax(dim=-1)
        by_audio = (audio_text * audio @ text.T).log_softmax(dim=-1)
        labels = ((by_image + by_audio) / 2).softmax(dim=-1)
        agreement = torch.sigmoid(audio_image * ((image * audio).sum(dim=-1, keepdim=True) - threshold))
        return torch.cat([labels * agreement, 1 - agreement], dim=-1)


class VideoSource:
    """One input of the pipeline: iterate over its segments once; what is known about it grows on the way.

    Attributes:
        name (`str`): For messages.
        num_segments (`int`): As the file declares it; the segments that come may be fewer or more.
        duration (`float`): Seconds read so far.
        missing (`str`, *optional*): `"audio"` or `"video"` when the file lacks that track.
    """

    def __init__(self, name: str, segments: Iterable[Segment] = (), duration: float = 0.0) -> None:
        self.name, self.segments, self.duration = name, segments, duration
        self.num_segments, self.missing = 0, None

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)


class FileSource(VideoSource):
    """A file, opened at the first segment and read in one pass."""

    def __init__(self, file: Any, options: ReadOptions) -> None:
        super().__init__(source_name(file))
        self.file, self.options = file, options

    def __iter__(self) -> Iterator[Segment]:
        with open_container(self.file) as container:
            recording = Recording(container, self.name)
            self.num_segments = num_segments_for(recording.duration_seconds, self.options.segment_seconds)
            if recording.audio is None or recording.video is None:
                self.missing = "video" if recording.video is None else "audio"
                logger.warning(
                    f"{self.name} has no {self.missing} track, so it holds no audio-visual event: all background."
                )
            options = self.options
            if self.missing:  # read for its length only
                options = replace(options, num_frames_per_segment=1, size=(2, 2))
            reader = SegmentReader(recording, options)
            for segment in reader:
                self.duration = reader.duration_seconds
                yield segment
            self.duration = reader.duration_seconds


def open_source(
    inputs: Any, processor: AVEClipProcessor, num_frames_per_segment: int, segment_seconds: float
) -> VideoSource:
    """Prepare a file, or decoded arrays, for streaming.

    Args:
        inputs: A path, bytes, file object or URL; or `{"frames", "frame_rate", "audio", "sampling_rate"}`.
        processor ([`AVEClipProcessor`]): Gives the sampling rate, and cuts decoded arrays.
        num_frames_per_segment (`int`), segment_seconds (`float`): The time grid.

    Raises:
        ValueError: Something else, or a dictionary with other keys.
    """
    if isinstance(inputs, dict):
        return _open_arrays(inputs, processor, num_frames_per_segment, segment_seconds)
    if not is_file(inputs):
        raise ValueError(
            f"Got a {type(inputs).__name__} as video. Pass a path, bytes, a binary file object or a URL, or decoded "
            'frames as {"frames": array, "frame_rate": 25, "audio": waveform, "sampling_rate": 44100}.'
        )
    options = ReadOptions(
        sampling_rate=processor.feature_extractor.sampling_rate,
        num_frames_per_segment=num_frames_per_segment,
        segment_seconds=segment_seconds,
    )
    return FileSource(inputs, options)


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
    source = VideoSource("decoded video", segments, _duration(inputs, len(segments) * seconds))
    if inputs.get("audio") is None:
        source.missing = "audio"
        logger.warning("The decoded video has no `audio`, so it holds no audio-visual event: all background.")
    return source


def _duration(inputs: dict[str, Any], grid_seconds: float) -> float:
    """Length of a decoded video in seconds; that of its whole segments where no rate says more."""
    lengths = [(inputs["frames"], inputs.get("frame_rate")), (inputs.get("audio"), inputs.get("sampling_rate"))]
    seconds = [np.shape(values)[axis] / rate for axis, (values, rate) in zip((0, -1), lengths) if rate]
    return min(grid_seconds, max(seconds, default=grid_seconds))


def find_frame_sources(pixels: torch.Tensor, frame_mask: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Decide which frames of a block are near-identical to the last one that is encoded.

    Args:
        pixels (`torch.Tensor` of shape `(1, num_segments, num_frames, 3, height, width)`): uint8, on the CPU.
        frame_mask (`torch.BoolTensor` of shape `(1, num_segments, num_frames)`): Which frames are real.
        tolerance (`float`): Largest mean absolute difference, in grey levels.

    Returns:
        `torch.LongTensor` like `frame_mask`: for each real frame the number of the frame whose encoding it takes.
    """
    sources = torch.arange(frame_mask.numel())
    pictures, encoded = pixels.flatten(0, 2).numpy(), None  # numpy: torch's threads belong to the model
    for number in frame_mask.flatten().nonzero()[:, 0].tolist():
        if encoded is None or _difference(pictures[number], pictures[encoded]) > tolerance:
            encoded = number
        sources[number] = encoded
    return sources.view(frame_mask.shape)


def _difference(picture: np.ndarray, other: np.ndarray) -> float:
    larger, smaller = np.maximum(picture, other), np.minimum(picture, other)  # as bytes: no wider copies
    return float(np.mean(larger - smaller))


def _sources_in_batch(model_inputs: dict[str, Any]) -> torch.Tensor | None:
    """Frame numbers of each block, counted on over the blocks of a batch."""
    sources = model_inputs.get("frame_sources")
    if sources is None:
        return None
    first = torch.arange(len(sources), device=sources.device) * sources[0].numel()
    return sources + first.view(-1, 1, 1)


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Iterate over items that a thread makes, one ahead of the reader.

    An error in the making is raised where its item would have come; closing this iterator stops the thread.
    """
    buffer: queue.Queue = queue.Queue(maxsize=1)
    is_closed = threading.Event()

    def put(item: Any, error: BaseException | None, is_end: bool) -> None:
        while not is_closed.is_set():
            try:
                return buffer.put((item, error, is_end), timeout=0.05)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item, None, False)
                if is_closed.is_set():
                    break
            put(None, None, True)
        except BaseException as error:  # the reader's to handle
            put(None, error, True)
        finally:
            items.close()

    thread = threading.Thread(target=make, name="ave-clip-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = buffer.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item
    finally:
        is_closed.set()
        thread.join()


class _ProgressBar:
    """A tqdm bar per video."""

    def __init__(self) -> None:
        self.bar, self.name, self.done = None, None, 0

    def __call__(self, name: str, done: int, total: int) -> None:
        if self.bar is None or name != self.name:
            self.close()
            self.bar, self.name, self.done = logging.tqdm(total=total, desc=name, unit="s"), name, 0
        self.bar.update(done - self.done)  # `bar.n` is no number where bars are switched off
        self.done = done
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
    for name in ("overlap", "agreement_threshold", "frame_tolerance"):
        value = options.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"`{name}` is a number, got {value!r}.")
    if options.get("frame_tolerance", 0.0) < 0:
        raise ValueError(
            "`frame_tolerance` is a mean difference of grey levels, 0 or more (None: each frame is encoded); got "
            f"{options['frame_tolerance']}."
        )
    if not 0 <= options.get("overlap", 0.0) < 1:
        raise ValueError(
            f"`overlap` is the share of a window that the next one repeats, in [0, 1); got {options['overlap']}."
        )
    progress = options.get("progress", False)
    if not isinstance(progress, bool) and not callable(progress):
        raise ValueError(f"`progress` is True or a function of (name, segments done, segments), got {progress!r}.")


def parse_labels(labels: Sequence[str] | str) -> list[str]:
    """Candidate labels as a list; one string holds several, separated by commas.

    Raises:
        ValueError: No label, an empty or repeated one, or one called "background".
    """
    parsed = labels.split(",") if isinstance(labels, str) else labels
    if (
        not isinstance(parsed, (list, tuple))
        or not parsed
        or not all(isinstance(label, str) and label.strip() for label in parsed)
    ):
        raise ValueError(f"`candidate_labels` must be one or more texts, got {labels!r}.")
    parsed = [label.strip() for label in parsed]
    if len(set(parsed)) < len(parsed):
        raise ValueError(f"`candidate_labels` holds a label twice: {parsed}.")
    if BACKGROUND_LABEL in parsed:
        raise ValueError(f"{BACKGROUND_LABEL!r} is added by itself; leave it out of `candidate_labels` {parsed}.")
    return parsed


def _tell(progress: Callable[[str, int, int], None] | bool, infos: dict[str, Any] | list[dict[str, Any]]) -> None:
    if progress:
        for info in infos if isinstance(infos, list) else [infos]:
            progress(info["name"], info["done"], info["total"])


def _all_background(num_segments: int, num_labels: int) -> np.ndarray:
    return np.eye(num_labels)[[num_labels - 1] * num_segments]


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


__all__ = ["AudioVisualEventLocalizationPipeline", "ZeroShotAudioVisualEventLocalizationPipeline"]
