"""The pipeline `"zero-shot-audio-visual-event-localization"`: events by their names alone, with any encoder."""

import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .categories import BACKGROUND_LABEL
from .concepts import ConceptMatch, ConceptTable
from .encoders import encoder_for
from .encoding import chunk_size, encode_frames, encode_in_chunks, place_segments
from .events import BOTH, DEFAULT_DECODER, HEARD, SEEN, SENSES
from .label_encoder import embed_texts
from .label_space import LabelSpace
from .modeling_audio_visual_encoder import AudioVisualEncoderModel
from .pipeline_ave_clip import AudioVisualEventLocalizationPipeline, sources_in_batch
from .pipeline_base import (
    VideoPipeline,
    parse_labels,
    real_segments,
    report_progress,
)
from .processing_audio_visual_encoder import AudioVisualEncoderProcessor, options_of
from .processing_ave_clip import AVEClipProcessor
from .senses import add_senses, unknown_senses
from .tasks import LOCALIZATION_TASK, ZERO_SHOT_TASK
from .video_processing_ave_clip import AVEClipVideoProcessor
from .zero_shot import OTHER_LABEL, LabelScores, combine, score_classes, score_texts

logger = logging.get_logger(__name__)

CACHED_LABEL_SETS = 64
DEFAULT_MIN_EVENT_SEGMENTS = 3
NO_LABELS = "Pass `candidate_labels`, the events to look for, for example ['dog bark', 'church bell']."
TEXT_OPTIONS = ("hypothesis_template", "agreement_threshold")  # for models that compare embeddings


class ZeroShotAudioVisualEventLocalizationPipeline(VideoPipeline):
    """Finds events by their names alone, without training.

    ```python
    >>> localizer = pipeline("zero-shot-audio-visual-event-localization")
    >>> localizer("clip.mp4", candidate_labels=["dog bark", "church bell"])["events"]
    >>> localizer = pipeline(
    ...     "zero-shot-audio-visual-event-localization",
    ...     vision_model="google/siglip2-base-patch16-224",
    ...     audio_model="laion/clap-htsat-unfused",
    ... )
    ```

    `model` is an encoder of images and audio: an AudioCLIP, a PE-AV, or a composite that
    [`AudioVisualEncoderModel.from_towers`] made. `vision_model` and `audio_model` join two encoders by their ids. The
    default is `ave-clip-mini`, which has an event head of its own and runs as in
    [`AudioVisualEventLocalizationPipeline`].

    For each segment and label, an encoder gives the probability that the label is seen, and that it is heard: a
    sigmoid if the model has a bias (SigLIP, PE-AV), else a softmax over the labels and "other" (CLIP, CLAP,
    AudioCLIP), or the classes of a classifier that mean the label. Audio and image agree with probability
    `sigmoid(scale * (cos(audio, image) - threshold))` if the encoder has one space for both (AudioCLIP, PE-AV), else
    with the sum over the labels of the products of both probabilities. The labels share the probability of agreement
    in proportion to the geometric mean of both senses; the remainder is background. PE-AV also embeds the frames and
    audio of a segment together: `both` is then the probability that this joint embedding shows the label, and replaces
    the geometric mean.

    Encoders are trained to rank similarities, so their absolute values mean little: choose `agreement_threshold` on a
    few videos of your own.
    """

    _model_types = ("audioclip", "ave_clip_mini", "audio_visual_encoder", "pe_audio_video")
    _wanted_model = (
        f'the pipeline "{ZERO_SHOT_TASK}" runs "ave-clip-mini" or an encoder ("audioclip" from `ave-clip convert`, '
        f'PE-AV, or two joined). A localizer with its own labels runs in "{LOCALIZATION_TASK}".'
    )
    # Runs models that score labels themselves.
    _localizer: AudioVisualEventLocalizationPipeline | None = None
    _forward_options = ("progress", "candidate_labels", "hypothesis_template")
    _postprocess_options = (
        "min_event_segments",
        "decoder",
        "top_k",
        "candidate_labels",
        "hypothesis_template",
        "agreement_threshold",
    )

    def __init__(
        self, *args: Any, vision_model: str | None = None, audio_model: str | None = None, **kwargs: Any
    ) -> None:
        if vision_model is not None or audio_model is not None:
            if vision_model is None or audio_model is None:
                raise ValueError(
                    f"Got vision_model={vision_model!r} and audio_model={audio_model!r}; both are needed. Pass one "
                    "model that encodes images and audio as `model`."
                )
            # `pipeline` has loaded its small default model, for which there is no use.
            args = ()
            dtype = getattr(kwargs.get("model"), "dtype", None) if kwargs.get("dtype") is None else kwargs["dtype"]
            kwargs["model"] = AudioVisualEncoderModel.from_towers(vision_model, audio_model, dtype=dtype)
            kwargs["processor"] = AudioVisualEncoderProcessor.from_towers(vision_model, audio_model)
        super().__init__(*args, **kwargs)
        self.has_windows = getattr(self.model, "takes_labels", False)
        if self.has_windows:
            self._localizer = AudioVisualEventLocalizationPipeline(
                self.model,
                processor=self.processor,
                task=self.task,
                on_error=self.on_error,
                batch_size=self._batch_size,
            )
            self._segmenter = self.processor
            return
        self._encoder = encoder_for(self.model)
        self._segmenter = self._build_segmenter()
        self._label_embeds: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._table = self._concepts()

    @classmethod
    def check_model_type(cls, config: Any) -> None:
        """Raise `ValueError` for the configuration of a model that this pipeline cannot run."""
        if getattr(config, "label_embedding_size", None) is None:  # a localizer with an open vocabulary runs, too
            super().check_model_type(config)

    def _build_segmenter(self) -> AVEClipProcessor:
        """The processor that reads videos; made from the parts of the processor of a single model."""
        # Not by its class: an export's processor and pipeline may come from two copies of one module.
        if hasattr(self.processor, "prepare_windows"):
            return self.processor
        parts = [getattr(self.processor, name, None) for name in ("image_processor", "video_processor")]
        images = parts[0] if parts[0] is not None else parts[1]
        return AVEClipProcessor(
            self.processor.feature_extractor,
            AVEClipVideoProcessor(**options_of(images, self.model.config)),
            audio_window_seconds=self._encoder.window_seconds,
            audio_options=self._encoder.extractor_options(self.model.config),
        )

    def _concepts(self) -> ConceptTable | None:
        """The table that finds the classes of labels; `None` if both encoders take texts."""
        towers = {sense: self._encoder.tower(sense) for sense in (HEARD, SEEN)}
        names = [[] if tower.takes_texts else tower.classes(sense) for sense, tower in towers.items()]
        return ConceptTable(self.model.config.concepts, *names) if any(names) else None

    @property
    def segmenter(self) -> AVEClipProcessor:
        return self._segmenter

    def __call__(self, inputs: Any, candidate_labels: list[str] | str | None = None, **kwargs: Any) -> Any:
        """Localizes the given events in one or more videos.

        Args:
            inputs: As in [`AudioVisualEventLocalizationPipeline`].
            candidate_labels (`list[str]` or `str`): Labels, or one string of labels separated by commas.
            hypothesis_template (`str`, *optional*): Sentence around a label, with `{}` in its place; by default the
                one that each encoder was trained with: `"a photo of {}"` and `"the sound of {}"` for CLIP and CLAP,
                the label alone for AudioCLIP and PE-AV.
            agreement_threshold (`float`, *optional*, defaults to 0.0): Similarity of audio and image at which they
                agree with probability 0.5; for encoders with one space for both.
            decoder, min_event_segments, top_k, num_frames_per_segment, frame_tolerance, audio_track,
                max_download_bytes, max_download_seconds, progress, batch_size, on_error:
                As in [`AudioVisualEventLocalizationPipeline`]; `min_event_segments` is 3 by default, except with
                `ave-clip-mini`.
            overlap, num_segments, return_heatmaps: As there, for `ave-clip-mini` only, which takes neither
                `hypothesis_template` nor `agreement_threshold`.

        Returns:
            `{"segments": [...], "events": [...]}`, or a list or iterator of them. Each segment and event has `start`,
            `end`, `label`, `score`, and `heard`, `seen` and `both`: the probability that its label is heard, seen, and
            an audio-visual event; `None` for background and where that cannot be told.

        Raises:
            ValueError: If the labels or the template cannot be used, or a file cannot be read.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = parse_labels(candidate_labels)
        if self._localizer is None:
            return super().__call__(inputs, **kwargs)
        return self._localizer(inputs, **self._localizer_options(kwargs))

    def _localizer_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Returns the options of a call for a model that scores labels itself."""
        options = {**self._preprocess_params, **self._forward_params, **self._postprocess_params, **given}
        if options.get("candidate_labels") is None:
            raise ValueError(NO_LABELS)
        self._check_text_options(options)
        return {name: value for name, value in options.items() if name not in TEXT_OPTIONS}

    def stream(
        self, video: Any, live: bool = False, live_timeout: float | None = None, **kwargs: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Localizes one video while it is read: see [`AudioVisualEventLocalizationPipeline.stream`].

        Encoders score each segment on its own, without windows; for them only live videos are streamed.

        Raises:
            ValueError: As in a call; or without `live`, if the model is an encoder.
        """
        if kwargs.get("candidate_labels") is not None:
            kwargs["candidate_labels"] = parse_labels(kwargs["candidate_labels"])
        if self._localizer is not None:
            yield from self._localizer.stream(video, live, live_timeout, **self._localizer_options(kwargs))
            return
        if not live:
            raise ValueError("Encoders stream live videos only: pass live=True, or call the pipeline.")
        yield from self._stream_live(video, live_timeout, kwargs)

    def _live_scores(
        self, postprocess: dict[str, Any]
    ) -> tuple[LabelSpace, Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray | None]], dict[str, Any]]:
        labels = postprocess.get("candidate_labels")
        if labels is None:
            raise ValueError(NO_LABELS)

        def score(output: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
            template, threshold = postprocess.get("hypothesis_template"), postprocess.get("agreement_threshold")
            scores = self._score(self._evidence_of([output]), labels, template, threshold)
            return scores.probabilities.double().numpy(), scores.senses.numpy()

        decoding = {
            "decoder": postprocess.get("decoder", DEFAULT_DECODER),
            "min_event_segments": postprocess.get("min_event_segments", DEFAULT_MIN_EVENT_SEGMENTS),
        }
        return LabelSpace((*labels, BACKGROUND_LABEL)), score, decoding

    def _evidence_of(self, outputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        senses = SENSES if self._encoder.is_joint else (HEARD, SEEN)
        return {sense: real_segments(outputs, sense) for sense in senses}

    def check_options(self) -> None:
        """Raises `ValueError` if the labels and options that the pipeline was created with cannot be used.

        A call checks them, too, but only when it has a video.
        """
        options: dict[str, Any] = {**self._forward_params, **self._postprocess_params}
        labels = options.get("candidate_labels")
        if labels is None:
            raise ValueError(NO_LABELS)
        if self._localizer is None:
            for sense in (HEARD, SEEN):
                self._prepare_labels(labels, sense, options.get("hypothesis_template"))
        else:
            self._check_text_options(options)
            self._localizer._look_for(labels)

    def _check_text_options(self, options: dict[str, Any]) -> None:
        """Raises `ValueError` for options that a model with its own event head cannot use."""
        for name in TEXT_OPTIONS:
            if options.get(name) is not None:
                raise ValueError(
                    f"`{name}` is an option for an AudioCLIP or another encoder. A {self.model.config.model_type!r} "
                    "has no text encoder and learned when audio and image agree: leave it out."
                )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        template = kwargs.get("hypothesis_template")
        if template is not None and (not isinstance(template, str) or template.count("{}") != 1):
            raise ValueError(f"`hypothesis_template` must contain one {{}} for the label, got {template!r}.")
        if kwargs.get("candidate_labels") is not None:
            kwargs["candidate_labels"] = parse_labels(kwargs["candidate_labels"])
        return super()._sanitize_parameters(**kwargs)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        candidate_labels: list[str] | None = None,
        hypothesis_template: str | None = None,
        progress: Callable[[str, int, int], None] | bool = False,
    ) -> dict[str, Any]:
        if candidate_labels is None:
            raise ValueError(NO_LABELS)
        senses = SENSES if self._encoder.is_joint else (HEARD, SEEN)
        for sense in senses:  # labels that cannot be used are an error before anything is encoded
            self._prepare_labels(candidate_labels, sense, hypothesis_template)
        evidence = self._joint_evidence(model_inputs) if self._encoder.is_joint else self._evidence(model_inputs)
        report_progress(progress, model_inputs["info"])
        passed_on = {name: model_inputs[name] for name in ("segment_mask", "info", "is_last")}
        return {**evidence, **passed_on}

    def _evidence(self, model_inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What is heard and what is seen in each segment: each `(B, T, D or C)`."""
        segments = model_inputs["segment_mask"]
        image = encode_frames(
            lambda frames: self._encoder.image(frames).evidence,
            model_inputs["pixel_values"],
            model_inputs["frame_mask"] & segments.unsqueeze(-1),
            sources_in_batch(model_inputs),
            self._normalize,
        )
        waveforms = model_inputs["input_values"][segments]
        audio = encode_in_chunks(lambda windows: self._encoder.audio(windows).evidence, waveforms)
        return {SEEN: image, HEARD: place_segments(audio, segments)}

    def _joint_evidence(self, model_inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What is heard, seen, and both in each segment, whose frames are one video: each `(B, T, D)`."""
        segments = model_inputs["segment_mask"]
        names = ("pixel_values", "frame_mask", "input_values")
        items = [model_inputs[name][segments] for name in names]
        num_segments = len(items[0])
        if num_segments == 0:  # a blank segment gives the shape, as in `encode_in_chunks`
            items = [item.new_zeros(1, *item.shape[1:]) for item in items]
        all_frames = items[0].flatten(0, 1)
        num_parts = math.ceil(len(all_frames) / chunk_size(all_frames))  # a limited number of frames at a time
        embeds = []
        for frames, mask, windows in zip(*(item.tensor_split(num_parts) for item in items)):
            pixels = self._normalize(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            embeds.append(self._encoder.embed_jointly(pixels, mask, windows))
        joined = {sense: torch.cat([part[sense] for part in embeds])[:num_segments] for sense in SENSES}
        return {sense: place_segments(values, segments) for sense, values in joined.items()}

    def _prepare_labels(self, labels: Sequence[str], sense: str, template: str | None) -> Any:
        """What evidence of one sense, or of both, is compared with: embeddings of the labels and "other", or classes.

        The latest sets of labels are cached across calls.
        """
        tower = self._encoder.tower(sense)
        if not tower.takes_texts:
            matches = [self._match(label) for label in labels]
            return [match.audio_classes if sense == HEARD else match.image_classes for match in matches]
        template = template or tower.templates[sense]
        texts = tuple(template.replace("{}", label) for label in (*labels, OTHER_LABEL))
        key = (self._space_of(sense), texts)
        if key not in self._label_embeds:
            self._label_embeds[key] = embed_texts(texts, sense, tower, self.processor)
            if len(self._label_embeds) > CACHED_LABEL_SETS:
                self._label_embeds.popitem(last=False)
        return self._label_embeds[key]

    def _match(self, label: str) -> ConceptMatch:
        assert self._table is not None  # asked for only where a tower is a classifier
        try:
            match = self._table.match(label)
        except ValueError:
            if not any(self._encoder.tower(sense).takes_texts for sense in (HEARD, SEEN)):
                raise
            return ConceptMatch(label, label, (), ())  # the sense that takes texts judges it alone
        if match.is_by_words:
            logger.warning_once(self._table.note(match))
        return match

    def _space_of(self, sense: str) -> str:
        """Both senses of an AudioCLIP have one space of texts, so that each label is embedded once."""
        return SEEN if self._encoder.has_one_text_space else sense

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        candidate_labels: Sequence[str] = (),  # `_forward` requires them
        hypothesis_template: str | None = None,
        agreement_threshold: float | None = None,
        min_event_segments: int = DEFAULT_MIN_EVENT_SEGMENTS,
        decoder: str = DEFAULT_DECODER,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        info = model_outputs[-1]["info"]
        space = LabelSpace((*candidate_labels, BACKGROUND_LABEL))
        if info["missing"]:
            probabilities = space.background(info["total"])
            senses = unknown_senses(info["total"], len(candidate_labels))
        else:
            evidence = self._evidence_of(model_outputs)
            scores = self._score(evidence, candidate_labels, hypothesis_template, agreement_threshold)
            probabilities, senses = scores.probabilities.double().numpy(), scores.senses.numpy()
        decoding = {"decoder": decoder, "min_event_segments": min_event_segments}
        result = self._finish(probabilities, space, info, top_k, **decoding)
        add_senses(result, senses, space.names)
        return result

    def _score(
        self, evidence: dict[str, torch.Tensor], labels: Sequence[str], template: str | None, threshold: float | None
    ) -> LabelScores:
        scores = {}
        for sense, values in evidence.items():
            tower, targets = self._encoder.tower(sense), self._prepare_labels(labels, sense, template)
            if tower.takes_texts:
                scores[sense] = score_texts(values.cpu(), targets, tower.similarity(sense))
            else:
                scores[sense] = score_classes(values.cpu(), targets, tower.is_multi_label(sense))
        similarity = self._encoder.agreement()
        if similarity is None:
            if threshold is not None:
                raise ValueError(
                    f"agreement_threshold={threshold} needs an encoder with one space for images and audio, such as "
                    "AudioCLIP or PE-AV. Leave it out."
                )
            return combine(scores[HEARD], scores[SEEN])
        similar = similarity.of_pairs(evidence[HEARD].float().cpu(), evidence[SEEN].float().cpu())
        logits = similar - similarity.scale * (threshold or 0.0) + (similarity.bias or 0.0)
        return combine(scores[HEARD], scores[SEEN], logits.sigmoid(), scores.get(BOTH))


__all__ = ["ZeroShotAudioVisualEventLocalizationPipeline"]
