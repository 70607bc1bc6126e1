"""What both pipelines share: their options, the blocks that a video is read in, and the form of the results.

A video is processed as a stream of blocks of a few segments. A thread decodes the next block while the model encodes
the current one, and of each block only one visual and one audio vector per segment is kept (a few kB per second).
Memory therefore does not grow with the frames of a long video.
"""

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .categories import BACKGROUND_LABEL
from .decode_threads import AUTO, check_decode_threads, is_child_process
from .events import DECODERS
from .label_encoder import LabelEncoder
from .label_space import LabelSpace
from .live_events import LiveEvents
from .live_source import DEFAULT_SILENT_SECONDS
from .processing_ave_clip import AVEClipProcessor
from .senses import add_senses
from .streaming import LiveSource, VideoSource, ahead, find_frame_sources, open_source, with_audio_windows
from .video_clip import Segment
from .video_processing_ave_clip import is_file

logger = logging.get_logger(__name__)

# Largest block: enough segments and frames for the towers to run at full speed, few enough that the next block is
# decoded in the meantime.
_BLOCK_SEGMENTS = 10
_BLOCK_FRAMES = 64
# The same for a GPU, which needs larger batches; and the largest frame that it resizes itself. A block of the largest
# frames has 256 MiB.
_GPU_BLOCK_SEGMENTS = 64
_GPU_BLOCK_FRAMES = 256
_GPU_MAX_FRAME_BYTES = 2**28 // _GPU_BLOCK_FRAMES
# The first block of a video is this many times smaller, so that the model starts early.
_FIRST_BLOCK_PART = 4
_AS_BYTES = {"do_rescale": False, "do_normalize": False}
# Options of a call that transformers takes itself and does not give to the stages: `batch_size` and `num_workers`.
_CALL_OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(ChunkPipeline.__call__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)


class VideoPipeline(ChunkPipeline):
    """Base of both pipelines: reads videos in blocks, checks options, and returns segments and events."""

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    _preprocess_options: tuple[str, ...] = (
        "num_frames_per_segment",
        "frame_tolerance",
        "audio_track",
        "max_download_bytes",
        "max_download_seconds",
        "decode_threads",
    )
    _forward_options: tuple[str, ...] = ("progress",)
    _postprocess_options: tuple[str, ...] = ("min_event_segments", "decoder", "top_k", "threshold")

    # Whether a temporal part runs over windows: it takes `overlap` and can return heat maps.
    has_windows = True

    # transformers declares base classes only, and None for a processor.
    model: Any
    processor: Any

    # `model_type` of the checkpoints that a pipeline runs, and the rest of the error message for any other.
    _model_types: tuple[str, ...] = ()
    _wanted_model = ""

    def __init__(
        self,
        *args: Any,
        backend: str | None = None,
        compile: bool = False,
        on_error: str = "raise",
        label_encoder: str | Callable[[Sequence[str]], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # transformers uses the tokenizer of any processor, and refuses batches if it has no padding token. Blocks have
        # no text and are padded already.
        self.tokenizer = None
        self.check_model_type(self.model.config)
        self.on_error = _check_on_error(on_error)
        if label_encoder is not None:
            self._set_label_encoder(label_encoder)
        if hasattr(self.model, "use_backend"):  # an exported model
            if compile:
                raise ValueError("compile=True needs torch weights, but this model is an ONNX export.")
            self.model.use_backend(backend or self.model.backend)
            self.device = self.model.device
        elif backend not in (None, "torch"):
            raise ValueError(
                f"backend={backend!r} runs exported models only, but this model has torch weights. Export it with "
                "`ave-clip export MODEL OUT --format onnx`, then pass model=OUT."
            )
        # A model that is optimized already stays as it is, and one of transformers' own classes cannot be.
        elif compile or not getattr(self.model, "is_optimized_for_inference", True):
            try:
                self.model.optimize_for_inference(compile=compile)
            except (AttributeError, ValueError, ImportError) as error:  # adapters, or a file that is not there
                logger.info(f"The model runs without fast inference: {error}")

    def _set_label_encoder(self, encoder: str | Callable[[Sequence[str]], torch.Tensor]) -> None:
        """Sets what embeds labels that a localizer with an open vocabulary does not have: a checkpoint or function."""
        if not hasattr(self.model, "label_encoder") or not self.model.takes_labels:
            raise ValueError(
                f"`label_encoder`={encoder!r} embeds labels for localizers with an open vocabulary, which this "
                f"{self.model.config.model_type!r} does not have. Leave it out."
            )
        self.model.label_encoder = LabelEncoder.from_pretrained(encoder) if isinstance(encoder, str) else encoder

    @classmethod
    def check_model_type(cls, config: Any) -> None:
        """Raise `ValueError` for the configuration of a model that this pipeline cannot run."""
        if config.model_type not in cls._model_types:
            raise ValueError(f"The model is of the type {config.model_type!r}, but {cls._wanted_model}")

    def check_options(self) -> None:
        """Raises `ValueError` if options that the pipeline was created with cannot be used with its model.

        Options that need no model are checked when the pipeline is created.
        """

    @property
    def resizes_on_device(self) -> bool:
        """Whether small frames are uploaded as they are and resized by the model's device.

        A GPU computes in float and rounds at the end, a CPU in whole numbers: pixels can differ by one grey level.
        """
        return self._prepares_on_gpu

    @property
    def _prepares_on_gpu(self) -> bool:
        return self.device.type == "cuda" and not is_child_process()  # a forked worker cannot use CUDA

    @property
    def segmenter(self) -> AVEClipProcessor:
        """The processor that cuts videos into segments and prepares their frames and audio."""
        return self.processor

    def __call__(self, inputs: Any, on_error: str | None = None, **kwargs: Any) -> Any:
        is_stream = isinstance(inputs, (tuple, Iterator)) and not is_file(inputs)
        if is_stream and not isinstance(inputs, GeneratorType):
            inputs = (item for item in inputs)  # transformers streams generators, and no other iterators
        if isinstance(inputs, list) and not inputs:
            return []
        # On a GPU transformers advises batches after ten calls, but each video is encoded in batches already.
        self.call_count = 0
        if _check_on_error(on_error or self.on_error) == "raise":
            return super().__call__(inputs, **kwargs)
        self.stage_options(kwargs)  # an invalid option is an error of the call, not of each video
        if isinstance(inputs, list):
            return [self._call_one(video, kwargs) for video in inputs]
        if is_stream:
            return (self._call_one(video, kwargs) for video in inputs)
        return self._call_one(inputs, kwargs)

    def _call_one(self, video: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The result of one video; if it cannot be read, an empty result with the reason as `"error"`."""
        self.call_count = 0
        try:
            return super().__call__(video, **options)
        except (ValueError, OSError) as error:
            logger.warning(str(error))
            return {"segments": [], "events": [], "error": str(error) or type(error).__name__}

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
        preprocess, forward, postprocess = ({name: given[name] for name in names if name in given} for names in stages)
        return preprocess, forward, postprocess

    def preprocess(
        self,
        inputs: Any,
        num_frames_per_segment: int | None = None,
        frame_tolerance: float | None = None,
        **reading: Any,
    ) -> Generator[dict[str, Any], None, None]:
        """Yields blocks of the model's input, all padded to the same size, with the facts that `postprocess` needs.

        A thread decodes the next block while the caller works on the current one.
        """
        count, source = self._open(inputs, num_frames_per_segment, reading)
        if isinstance(source, LiveSource):
            return ahead(self._live_blocks(source, count, frame_tolerance), source.stop)
        return ahead(self._blocks(source, count, frame_tolerance, self.block_segments(count)))

    def read_blocks(
        self, video: Any, num_frames_per_segment: int | None = None, **reading: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Yields the blocks of one video, read by the calling thread or process.

        For callers that read several videos at once and encode their blocks with `encode_together`. On a GPU these
        blocks are small and not padded, because many of them are joined. On a CPU they are those of a call.

        Args:
            video: As in a call.
            num_frames_per_segment (`int`, *optional*): As in a call.
            reading: `audio_track`, `max_download_bytes`, `max_download_seconds` and `decode_threads` of a call.
        """
        count, source = self._open(video, num_frames_per_segment, reading)
        is_gpu, size = self.device.type == "cuda", self.block_segments(count)
        if is_gpu:
            size = max(1, size // _FIRST_BLOCK_PART)
        return self._blocks(source, count, tolerance=None, size=size, is_padded=not is_gpu)

    def block_segments(self, num_frames_per_segment: int) -> int:
        """Returns the number of segments of a full block, which the towers encode at once."""
        is_gpu = self.device.type == "cuda"
        most_segments, most_frames = (
            (_GPU_BLOCK_SEGMENTS, _GPU_BLOCK_FRAMES) if is_gpu else (_BLOCK_SEGMENTS, _BLOCK_FRAMES)
        )
        return max(1, min(most_segments, most_frames // num_frames_per_segment))

    def _open(
        self, inputs: Any, num_frames_per_segment: int | None, reading: dict[str, Any]
    ) -> tuple[int, VideoSource]:
        """Returns the number of frames per segment, and the video to read."""
        count = num_frames_per_segment or self.segmenter.video_processor.num_frames_per_segment
        seconds = self.segmenter.video_processor.segment_seconds
        max_bytes = _GPU_MAX_FRAME_BYTES if self.resizes_on_device else 0
        return count, open_source(inputs, self.segmenter, count, seconds, max_bytes, **reading)

    def _blocks(
        self, source: VideoSource, count: int, tolerance: float | None, size: int, is_padded: bool = True
    ) -> Generator[dict[str, Any], None, None]:
        segments = self._segments_of(source)
        following, done = list(itertools.islice(segments, 1)), 0
        if source.missing:  # nothing to encode, but the file is read to its end to learn its length and its faults
            following, done = [], len(following) + sum(1 for _ in segments)
        # At least two segments: oneDNN needs another memory layout of the weights for a batch of one.
        first = min(size, max(2, size // _FIRST_BLOCK_PART))
        for num_segments in itertools.chain([first], itertools.repeat(size)):
            block = following + list(itertools.islice(segments, num_segments - 1))
            following = list(itertools.islice(segments, 1))
            done += len(block)
            info = {"name": source.name, "missing": source.missing, "done": done, "duration": source.duration}
            # The declared length may be too short; while segments follow, at least one more is expected.
            info["total"] = max(done + 1, source.num_segments) if following else done
            inputs = self._inputs(block, size if is_padded else max(1, len(block)), count, source, tolerance)
            yield {**inputs, "info": info, "is_last": not following}
            if not following:
                return

    def _live_blocks(
        self, source: VideoSource, count: int, tolerance: float | None
    ) -> Generator[dict[str, Any], None, None]:
        """Yields blocks of one segment each, without waiting for the next one."""
        for done, segment in enumerate(self._segments_of(source), start=1):
            info = {"name": source.name, "missing": None, "done": done, "duration": source.duration, "total": done + 1}
            yield {**self._inputs([segment], 1, count, source, tolerance), "info": info, "is_last": False}

    def _segments_of(self, source: VideoSource) -> Iterator[Segment]:
        if not self.segmenter.audio_window_seconds:
            return iter(source)
        return with_audio_windows(source, self.segmenter.window_samples)

    def _inputs(
        self, block: list[Segment], size: int, count: int, source: VideoSource, tolerance: float | None
    ) -> dict[str, torch.Tensor]:
        inputs = self._block(block, size, count, source.is_resized)
        if tolerance is not None:
            inputs["frame_sources"] = find_frame_sources(
                inputs["pixel_values"].cpu(), inputs["frame_mask"].cpu(), tolerance
            )
        return inputs

    def _block(self, block: list[Segment], size: int, count: int, is_resized: bool) -> dict[str, torch.Tensor]:
        video_processor = self.segmenter.video_processor
        # A video without audio or frames has no block to encode; silence gives the shape of the input.
        waveforms = [segment.waveform for segment in block] or [np.zeros(self.segmenter.window_samples, np.float32)]
        prepared = self.segmenter.prepare_windows(waveforms)
        input_values = np.zeros((1, size, *prepared.shape[1:]), dtype=np.float32)
        segment_mask = torch.zeros(1, size, dtype=torch.bool)
        if block:
            input_values[0, : len(block)] = prepared
            segment_mask[0, : len(block)] = True
        frames = [segment.frames for segment in block]
        frames += [np.zeros((0, 1, 1, 3), dtype=np.uint8)] * (size - len(block))
        # Frames stay uint8 until they are on the model's device: a quarter of the bytes to transfer.
        options = _AS_BYTES if is_resized else {**_AS_BYTES, "device": self.device}
        visual = video_processor.preprocess_segments(
            [frames], is_resized=is_resized, num_frames_per_segment=count, **options
        )
        visual["pixel_values"] = visual["pixel_values"].to(torch.uint8)
        tensors = {**visual, "input_values": torch.from_numpy(input_values), "segment_mask": segment_mask}
        if self._prepares_on_gpu:  # from pinned memory a GPU copies while it computes
            tensors = {name: part if part.is_cuda else part.pin_memory() for name, part in tensors.items()}
        return tensors

    def encode_together(self, blocks: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """Encodes blocks of any videos in the same tower batches.

        Args:
            blocks (`Sequence[dict]`): Blocks of `read_blocks`, of videos with both tracks.
            options: Options of the model's stage: the second result of `stage_options`.

        Returns:
            `list[dict]`: For each block what `forward` returns for it alone, up to rounding; `postprocess` takes the
            list of those of one video.
        """
        if len(blocks) == 1:
            return [self.forward(blocks[0], **options)]
        names = [name for name, value in blocks[0].items() if isinstance(value, torch.Tensor)]
        # One long block: the towers do not depend on which segments are neighbours.
        joined: dict[str, Any] = {
            name: torch.cat([self._ensure_tensor_on_device(block[name], self.device) for block in blocks], dim=1)
            for name in names
        }
        output = self.forward({**joined, "info": [block["info"] for block in blocks], "is_last": False}, **options)
        sizes = [block["segment_mask"].shape[1] for block in blocks]
        parts = {name: value.split(sizes, dim=1) for name, value in output.items() if isinstance(value, torch.Tensor)}
        return [
            {
                **{name: values[number] for name, values in parts.items()},
                "info": block["info"],
                "is_last": block["is_last"],
            }
            for number, block in enumerate(blocks)
        ]

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        """Moves tensors to a device, from pinned memory without waiting."""
        if isinstance(inputs, torch.Tensor):
            return inputs.to(device, non_blocking=inputs.device.type == "cpu" and inputs.is_pinned())
        return super()._ensure_tensor_on_device(inputs, device)

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.segmenter.video_processor.normalize_pixels(pixels).to(self.model.dtype)

    def _finish(
        self, probabilities: np.ndarray, space: LabelSpace, info: dict[str, Any], top_k: int | None, **decoding: Any
    ) -> dict[str, Any]:
        seconds = self.segmenter.video_processor.segment_seconds
        segments, events = space.find_events(probabilities, seconds, info["duration"], **decoding)
        _add_top_k(segments, probabilities, space, top_k)
        return {"segments": segments, "events": events}

    def stream(
        self, video: Any, live: bool = False, live_timeout: float | None = None, **kwargs: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Localizes one video while it is still being read."""
        raise NotImplementedError  # each pipeline has its own

    def _stream_live(
        self, video: Any, live_timeout: float | None, options: dict[str, Any]
    ) -> Generator[dict[str, Any], None, None]:
        """Yields what `stream(live=True)` does; see there."""
        for name in ("overlap", "return_heatmaps"):
            if options.get(name) is not None:
                raise ValueError(f"Got {name}={options[name]!r}, which a live video cannot have. Leave it out.")
        preprocess, forward, postprocess = self.stage_options(options)
        space, score, decoding = self._live_scores(postprocess)
        seconds = self.segmenter.video_processor.segment_seconds
        events = LiveEvents(space, seconds, **decoding)
        timeout = DEFAULT_SILENT_SECONDS if live_timeout is None else live_timeout
        done = 0
        try:
            with contextlib.closing(self.preprocess(video, **preprocess, live_timeout=timeout)) as blocks:
                for block in blocks:
                    output = self.forward(block, **forward)
                    probabilities, senses = score(output)
                    duration = output["info"]["duration"]
                    segments, _ = space.find_events(
                        probabilities, seconds, decoder="none", threshold=decoding.get("threshold")
                    )
                    _add_top_k(segments, probabilities, space, postprocess.get("top_k"))
                    if senses is not None:
                        add_senses({"segments": segments, "events": []}, senses, space.names)
                    for segment in segments:
                        segment["start"] += done * seconds
                        segment["end"] = min(segment["end"] + done * seconds, max(duration, segment["start"]))
                    done += len(segments)
                    yield {"segments": segments, "events": events.add(probabilities, senses, duration)}
        except GeneratorExit:
            raise
        except BaseException:  # a lost stream, or Ctrl-C: what is known is told before the error is raised
            yield {"segments": [], "events": events.finish()}
            raise
        yield {"segments": [], "events": events.finish()}

    def stage_options(self, options: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Returns the options of the three stages for one call: those given, else those of the pipeline."""
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        of_call = {name: options[name] for name in _CALL_OPTIONS if options.get(name) is not None}
        _check_options(of_call)
        given = self._sanitize_parameters(
            **{name: value for name, value in options.items() if name not in _CALL_OPTIONS}
        )
        return tuple({**default, **stage} for default, stage in zip(defaults, given))

    def _live_scores(
        self, postprocess: dict[str, Any]
    ) -> tuple[LabelSpace, Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray | None]], dict[str, Any]]:
        """Returns the labels; what scores the segments of a block, in order; and the options of [`LiveEvents`].

        The scores are probabilities `(N, C)` and, where the model tells, those of the senses `(N, 3, L)`.
        """
        raise NotImplementedError  # each pipeline has its own

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Saves model and processor, so that `pipeline(task, model=directory)` loads them again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class _ProgressBar:
    """One tqdm bar per video."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.name: str | None = None
        self.done = 0

    def __call__(self, name: str, done: int, total: int) -> None:
        if self.bar is None or name != self.name:
            self.close()
            self.bar, self.name, self.done = logging.tqdm(total=total, desc=name, unit="s"), name, 0
        self.bar.update(done - self.done)  # not `bar.n`: it is not a number when bars are disabled
        self.done = done
        if done >= total:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def _check_options(options: dict[str, Any]) -> None:
    check_decode_threads(options.get("decode_threads", AUTO))
    if options.get("decoder") not in (None, *DECODERS):
        raise ValueError(f"`decoder` must be one of {list(DECODERS)}, got {options['decoder']!r}.")
    for name in ("num_frames_per_segment", "num_segments", "min_event_segments", "top_k", "batch_size"):
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")
    for name in ("overlap", "agreement_threshold", "frame_tolerance"):
        value = options.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a number, got {value!r}.")
    if options.get("frame_tolerance", 0.0) < 0:
        raise ValueError(
            "`frame_tolerance` must be a mean difference of grey levels, 0 or more (None encodes each frame); got "
            f"{options['frame_tolerance']}."
        )
    if not 0 <= options.get("overlap", 0.0) < 1:
        raise ValueError(
            f"`overlap` must be the fraction of a window that the next one repeats, in [0, 1); got "
            f"{options['overlap']}."
        )
    progress = options.get("progress", False)
    if not isinstance(progress, bool) and not callable(progress):
        raise ValueError(
            f"`progress` must be True or a function of (name, segments_done, num_segments), got {progress!r}."
        )


def _check_on_error(on_error: str) -> str:
    if on_error not in ("raise", "return"):
        raise ValueError(f'`on_error` must be "raise" or "return", got {on_error!r}.')
    return on_error


def parse_labels(labels: Sequence[str] | str) -> list[str]:
    """Returns candidate labels as a list; one string contains several, separated by commas.

    Raises:
        ValueError: If there is no label, or a label is empty, repeated, or called "background".
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
        raise ValueError(f"`candidate_labels` contains a label twice: {parsed}.")
    if BACKGROUND_LABEL in parsed:
        raise ValueError(f"{BACKGROUND_LABEL!r} is added automatically; leave it out of `candidate_labels` {parsed}.")
    return parsed


def report_progress(
    progress: Callable[[str, int, int], None] | bool, infos: dict[str, Any] | list[dict[str, Any]]
) -> None:
    """Calls `progress` for the block, or for each block of a batch, that `infos` describes."""
    if callable(progress):
        for info in infos if isinstance(infos, list) else [infos]:
            progress(info["name"], info["done"], info["total"])


def _add_top_k(
    segments: list[dict[str, Any]], probabilities: np.ndarray, space: LabelSpace, top_k: int | None
) -> None:
    if not top_k:
        return
    for segment, row in zip(segments, probabilities):
        best = np.argsort(-row, kind="stable")[:top_k]
        segment["top_k"] = [{"label": space.names[index], "score": float(row[index])} for index in best]


def real_segments(blocks: list[dict[str, Any]], name: str) -> torch.Tensor:
    """The entries `name` of all blocks, joined and without padding."""
    return torch.cat([block[name][block["segment_mask"]] for block in blocks])


__all__ = ["VideoPipeline", "parse_labels", "real_segments", "report_progress"]
