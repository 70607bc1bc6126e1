"""The pipeline `"audio-visual-event-localization"`: from a video of any length to its segments and events.

How videos are read is in `pipeline_base`. The localizer's temporal part runs over overlapping windows of
`num_segments`, whose logits are averaged.
"""

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .events import DEFAULT_DECODER
from .label_space import LabelSpace
from .live_events import CausalLogits
from .pipeline_base import (
    VideoPipeline,
    parse_labels,
    real_segments,
    report_progress,
)
from .senses import add_senses, unknown_senses
from .streaming import WindowLogits
from .tasks import LOCALIZATION_TASK, ZERO_SHOT_TASK

logger = logging.get_logger(__name__)


class AudioVisualEventLocalizationPipeline(VideoPipeline):
    """Finds the audio-visual event in each second of a video.

    ```python
    >>> import ave_clip
    >>> from transformers import pipeline

    >>> localizer = pipeline("audio-visual-event-localization")
    >>> localizer("clip.mp4")["events"]
    [{'start': 2.0, 'end': 7.0, 'label': 'Bark', 'score': 0.99, 'heard': 0.99, 'seen': 0.99, 'both': 0.99}]
    ```

    With `backend="onnxruntime"` (or `"onnx"`) or `"openvino"` it runs a model that `ave-clip export --format onnx`
    wrote. With `compile=True` the towers are compiled at the first video.

    Takes a path, bytes, a file object or an http(s) URL; a dictionary with decoded `frames`, their `frame_rate`,
    `audio` and its `sampling_rate`; a list of these (`batch_size=` blocks at once); or a generator, which is read
    as results are taken.

    A video without an audio track or without frames has no audio-visual event, by definition: all of it is reported
    as background, with a warning.
    """

    _model_types = ("ave_clip", "ave_clip_mini", "ave_clip_onnx", "ave_clip_mini_onnx")
    _wanted_model = (
        f'the pipeline "{LOCALIZATION_TASK}" runs localizers ("ave_clip"). An AudioCLIP runs in "{ZERO_SHOT_TASK}", '
        "with `candidate_labels` (on the command line: --labels)."
    )
    _own_labels: list[str] | None = None  # of a model whose labels can be set
    _forward_options = ("progress", "return_heatmaps", "candidate_labels")
    _postprocess_options = (
        *("min_event_segments", "decoder", "threshold", "top_k", "overlap", "num_segments", "return_heatmaps"),
        "candidate_labels",
    )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Localizes the events of one or more videos.

        Args:
            inputs: A video, a list or a generator, as described above.
            num_frames_per_segment (`int`, *optional*): Frames read per segment; by default the processor's value.
            num_segments (`int`, *optional*): Window of the temporal part; by default `max_segments` of the model
                configuration, or its longest window.
            frame_tolerance (`float`, *optional*): Lets near-identical neighboring frames share one encoding: a frame
                is not encoded if its mean absolute difference from the last encoded frame, in grey levels (0 to 255)
                after resizing, is at most this value. 0 shares exact repeats; off by default.
            audio_track (`int`, *optional*): Which audio track of a file is read, counted from 0; by default the
                track that the file marks as default, else FFmpeg's choice.
            max_download_bytes (`int`, *optional*, defaults to 4 GiB): Maximum number of bytes read from a URL or pipe.
            max_download_seconds (`float`, *optional*, defaults to 1800): Maximum total time to wait for the server of
                a URL, per video.
            decode_threads (`int` or `str`, *optional*, defaults to `"auto"`): As for `iter_segments`; results do not
                depend on it.
            overlap (`float`, *optional*, defaults to 0.5): Fraction of a window that the next one repeats.
            decoder (`str`, *optional*): See `AVEClipProcessor.post_process_localization`. By default `"viterbi"` for
                `ave-clip-mini` and models whose events may overlap, and `"merge"` for other models.
            threshold (`float`, *optional*): Probability from which a class is active, for models whose events may
                overlap; by default the value of the model configuration.
            min_event_segments (`int`, *optional*): Shortest event; by default the value of the model configuration.
            top_k (`int`, *optional*): Adds the k most probable labels to each segment, as `"top_k"`.
            candidate_labels (`list[str]` or `str`, *optional*): Labels to look for instead of the model's own, or one
                string of labels separated by commas; for models that accept any label, such as `ave-clip-mini`.
            return_heatmaps (`bool`, *optional*): Adds `"heatmaps"`: the weights of audio-guided visual attention over
                the frames of each segment, an array `(num_segments, rows, columns)` that sums to 1 per segment.
            progress (`bool` or `Callable`, *optional*): `True` for a bar, or a function called as
                `progress(name, segments_done, num_segments)` after each block.
            batch_size (`int`, *optional*): Blocks encoded at once.
            on_error (`str`, *optional*): `"raise"` ends the call at the first video that cannot be read; `"return"`
                gives such a video the result `{"segments": [], "events": [], "error": reason}` and goes on with the
                next one, without encoding blocks of different videos together. By default the pipeline's own
                setting, which is `"raise"` unless it was created with another.

        Returns:
            `{"segments": [...], "events": [...]}`, or a list (for a list) or iterator (for a generator) of them.
            `ave-clip-mini` adds `heard`, `seen` and `both` to each: the probability that the label is heard, seen,
            and an audio-visual event; `None` where that cannot be told.

        Raises:
            ValueError: If a file cannot be read, or an option is out of its range.
        """
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs.get("candidate_labels") is not None:
            kwargs["candidate_labels"] = parse_labels(kwargs["candidate_labels"])
            self._look_for(kwargs["candidate_labels"])  # a label that nothing is known of is told before reading
        return super()._sanitize_parameters(**kwargs)

    def _look_for(self, labels: list[str] | None) -> None:
        """Set the model's labels for one call; without any, those it was loaded with."""
        if not getattr(self.model, "takes_labels", False):
            if labels is not None:
                raise ValueError(
                    f"`candidate_labels`={labels} need a model that takes any label, as 'ave-clip-mini' does; this "
                    "one has fixed labels of its own. Leave the option out, or pass model='ave-clip-mini'."
                )
            return
        present = list(LabelSpace.of(self.model.config).event_names)
        if self._own_labels is None:
            self._own_labels = present
        wanted = self._own_labels if labels is None else labels
        if wanted != present:
            self.model.set_labels(wanted)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        return_heatmaps: bool = False,
        progress: Callable[[str, int, int], None] | bool = False,
        candidate_labels: list[str] | None = None,
    ) -> dict[str, Any]:
        self._look_for(candidate_labels)
        mask = model_inputs["segment_mask"]
        image_features, audio_features = self.model.encode(
            model_inputs["pixel_values"],
            model_inputs["input_values"],  # not cast: the spectrogram needs float32 even if the weights are bfloat16
            model_inputs["frame_mask"],
            mask,
            sources_in_batch(model_inputs),
            self._normalize,
        )
        output = {"audio": audio_features, "segment_mask": mask}
        if return_heatmaps or not hasattr(self.model, "average"):
            output["visual"], weights = self.model.attend(image_features, audio_features)
            if return_heatmaps:
                output["weights"] = weights
        else:  # the visual vectors of ave-clip-mini do not depend on its heat maps
            output["visual"] = self.model.average(image_features)
        report_progress(progress, model_inputs["info"])
        return {**output, "info": model_inputs["info"], "is_last": model_inputs["is_last"]}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        min_event_segments: int | None = None,
        decoder: str | None = None,
        overlap: float = 0.5,
        top_k: int | None = None,
        num_segments: int | None = None,
        return_heatmaps: bool = False,
        candidate_labels: list[str] | None = None,
        threshold: float | None = None,
    ) -> dict[str, Any]:
        self._look_for(candidate_labels)
        config, space = self.model.config, LabelSpace.of(self.model.config)
        info = model_outputs[-1]["info"]
        proposals = None
        if info["missing"]:
            probabilities = space.background(info["total"])
        else:
            windows = self._windows(self.model, num_segments, overlap)
            values = _all_logits(windows, model_outputs)
            probabilities = space.probabilities(values[:, : len(space.names)].double()).numpy()
            if windows.keeps_hidden:
                proposals = space.video_proposals(self.model, values[:, len(space.names) :])
        decoding = {
            "decoder": decoder or getattr(config, "decoder", None),
            "min_event_segments": config.min_event_segments if min_event_segments is None else min_event_segments,
            "threshold": threshold,
            "proposals": proposals,
        }
        result = self._finish(probabilities, space, info, top_k, **decoding)
        if hasattr(self.model, "senses"):
            if info["missing"]:  # background only, of which no sense tells anything
                senses = unknown_senses(info["total"], len(space.event_names))
            else:
                windows = self._windows(self.model.senses, num_segments, overlap)
                senses = _all_logits(windows, model_outputs).numpy()
            add_senses(result, senses, space.names)
        if return_heatmaps:
            result["heatmaps"] = None if info["missing"] else _heatmaps(model_outputs)
        return result

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Saves model and processor, the model with its own labels and not with those of the last call."""
        self._look_for(None)
        super().save_pretrained(save_directory, **kwargs)

    def _windows(self, localizer: Any, num_segments: int | None, overlap: float) -> WindowLogits:
        return WindowLogits(localizer, num_segments or self._longest_window, overlap)

    @property
    def _longest_window(self) -> int:
        return getattr(self.model.config, "max_segments", None) or max(self.model.config.window_sizes)

    def stream(
        self, video: Any, live: bool = False, live_timeout: float | None = None, **kwargs: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Localizes one video while it is still being read.

        With `live=True` also while it is still being written or sent: a pipe, standard input (`"-"`), a growing file,
        or an http, rtsp, udp or similar URL, in a container that is read forward only (MPEG-TS, Matroska, WebM, FLV,
        Ogg, fragmented MP4). A segment is yielded when both tracks have passed its end: it needs the frames after it
        that the codec stores out of order, usually less than one more segment. Encoders of longer audio windows wait
        for half a window more. The temporal part runs once per segment, over the window of up to `num_segments`
        segments that ends with it. Nothing is encoded twice, and memory does not grow.

        Args:
            video: As in a call; see `live_source.py` for live videos.
            live (`bool`): Whether the video is still being written.
            live_timeout (`float`, *optional*, defaults to 10): Seconds after which a file that has not grown has
                ended, and a silent sender counts as lost.
            kwargs: Options of a call. Without `live`, `decoder`, `min_event_segments` and `top_k` apply to the last
                result only. With it, `overlap`, `return_heatmaps` and the decoder `"single_event"` are refused.

        Yields:
            `{"segments": [...]}` with the segments whose scores are final, each with its most probable label; and at
            the end what a call returns: `{"segments": [...], "events": [...]}` of the whole video. With `live`,
            `{"segments": [...], "events": [...]}` for each segment with the events that are over now: usually as
            many segments after their end as the shortest event has, twice as many less one where the decoder could
            still move that end. Each event is yielded once; one that goes on for 600 segments is yielded then, with
            another one for its rest. The last result contains the events that were still open; it also comes before
            an error, `KeyboardInterrupt` included, is raised.

        Raises:
            ValueError: As in a call; for live videos also if a track is missing.
        """
        if live:
            yield from self._stream_live(video, live_timeout, kwargs)
            return
        if live_timeout is not None:
            raise ValueError(f"Got live_timeout={live_timeout!r} without live=True. Leave it out, or add live=True.")
        preprocess, forward, postprocess = self.stage_options(kwargs)
        self._look_for(postprocess.get("candidate_labels"))  # the windows have a score for each label
        windows = self._windows(self.model, postprocess.get("num_segments"), postprocess.get("overlap", 0.5))
        blocks, told = [], 0
        for block in self.preprocess(video, **preprocess):
            blocks.append(self.forward(block, **forward))
            logits = windows.add(real_segments(blocks[-1:], "visual"), real_segments(blocks[-1:], "audio"))
            if len(logits):
                yield {"segments": self._segments(logits, told, postprocess.get("threshold"))}
                told += len(logits)
        yield self.postprocess(blocks, **postprocess)

    def _live_scores(
        self, postprocess: dict[str, Any]
    ) -> tuple[LabelSpace, Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray | None]], dict[str, Any]]:
        self._look_for(postprocess.get("candidate_labels"))
        config, space = self.model.config, LabelSpace.of(self.model.config)
        if getattr(config, "boundary_regression", False):
            logger.warning(
                "Live events start and end with a segment: the boundary head of this localizer (boundary_regression), "
                "which predicts times between segments, needs the complete video."
            )
        windows = CausalLogits(self.model, postprocess.get("num_segments") or self._longest_window)

        def score(output: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
            logits, senses = windows.add(real_segments([output], "visual"), real_segments([output], "audio"))
            return space.probabilities(logits.double()).numpy(), senses

        default = "viterbi" if space.is_multi_label else DEFAULT_DECODER
        decoding = {
            "decoder": postprocess.get("decoder") or getattr(config, "decoder", None) or default,
            "min_event_segments": postprocess.get("min_event_segments") or config.min_event_segments,
            "threshold": postprocess.get("threshold"),
        }
        return space, score, decoding

    def _segments(self, logits: torch.Tensor, first: int, threshold: float | None) -> list[dict[str, Any]]:
        space = LabelSpace.of(self.model.config)
        seconds = self.segmenter.video_processor.segment_seconds
        probabilities = space.probabilities(logits[:, : len(space.names)].double()).numpy()
        segments, _ = space.find_events(probabilities, seconds, decoder="none", threshold=threshold)
        for segment in segments:
            segment["start"] += first * seconds
            segment["end"] += first * seconds
        return segments


def sources_in_batch(model_inputs: dict[str, Any]) -> torch.Tensor | None:
    """Returns frame numbers per block as numbers in the whole batch, which `encode_frames` expects."""
    sources = model_inputs.get("frame_sources")
    if sources is None:
        return None
    first = torch.arange(len(sources), device=sources.device) * sources[0].numel()
    return sources + first.view(-1, 1, 1)


def _all_logits(windows: WindowLogits, blocks: list[dict[str, Any]]) -> torch.Tensor:
    final = windows.add(real_segments(blocks, "visual"), real_segments(blocks, "audio"))
    return torch.cat([final, windows.finish()])


def _heatmaps(blocks: list[dict[str, Any]]) -> np.ndarray:
    weights = real_segments(blocks, "weights").float().numpy()  # (T, P)
    rows = math.isqrt(weights.shape[1])
    return weights.reshape(len(weights), rows, -1)


__all__ = ["AudioVisualEventLocalizationPipeline", "sources_in_batch"]
