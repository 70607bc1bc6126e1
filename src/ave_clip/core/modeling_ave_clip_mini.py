"""AVE-CLIP mini: events from the classes of an audio and an image classifier, for labels that need no training.

    input_values ── log-mel patches, MobileNetV1 ──> audio_features ── classifier ──> audio class scores
    pixel_values ── EfficientNet-lite ──> image_features (map) ── averaged, label classifier ──> image class scores
    both, per label ── evidence ──> event head ──> heard, seen, and both, per label and segment ──> logits

The label classifier is the image classifier's last layer, trained further on drawings, of which ImageNet has few.

The event head does not know the labels: it sees how strong a label is on both sides, how it ranks among the others,
and how it changes over time. So any label that the table of concepts connects with classes can be looked for.

Legend: B batch, T segments, K frames per segment, S samples per segment, P locations of the feature map, D width,
C labels with background, L labels without it, E numbers of evidence, N classes of a classifier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import MobileNetV1ForImageClassification
from transformers import initialization as init
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .categories import BACKGROUND_LABEL, IGNORED_LABEL, class_names, labels_with_background
from .concepts import ConceptMatch, ConceptTable
from .configuration_ave_clip_mini import AVEClipMiniConfig
from .encoding import encode_segments, zero_padding
from .fast_path import HasFastPath
from .localization_output import AVEClipLocalizationOutput
from .losses import segment_loss
from .modeling_base import ALWAYS_SET, AlignedPreTrainedModel
from .modeling_efficientnet_lite import EfficientNetLiteForImageClassification
from .modeling_log_mel import LogMelPatches

logger = logging.get_logger(__name__)

NUM_EVIDENCE = 17
# Logits are limited, so that the evidence of one label and of many have one range.
LOGIT_LIMIT = 9.0
# How far the logit of what is heard may be above the audio classifier's log-odds of the label: above the highest of
# the video, and above the highest of a segment and its neighbors. The first holds for what is seen, too.
CLEAREST_MARGIN, NEARBY_MARGIN = 4.5, 7.0
# Columns of the evidence: log-odds of a label's classes.
HEARD_COLUMN, SEEN_COLUMN = 0, 6
SILENCE_TAG = "Silence"


@dataclass
class AVEClipMiniOutput(AVEClipLocalizationOutput):
    """Output of [`AVEClipMiniForLocalization`]: [`AVEClipLocalizationOutput`] with the probabilities of each modality.

    Args:
        heard (`torch.FloatTensor` of shape `(batch_size, num_segments, num_labels - 1)`):
            Probability that the label is heard; NaN where the audio classifier has no class for it.
        seen (`torch.FloatTensor` of shape `(batch_size, num_segments, num_labels - 1)`):
            Probability that the label is seen; NaN where the image classifier has no class for it.
        both (`torch.FloatTensor` of shape `(batch_size, num_segments, num_labels - 1)`):
            Probability of the audio-visual event; NaN where either is not available.
    """

    heard: torch.Tensor = ALWAYS_SET
    seen: torch.Tensor = ALWAYS_SET
    both: torch.Tensor = ALWAYS_SET


class LabelClasses:
    """The classes of a list of labels as tensors."""

    def __init__(self, matches: Sequence[ConceptMatch], num_image_classes: int, device: torch.device) -> None:
        widest = max(1, *(len(match.audio_classes) for match in matches))
        # Several classes: the strongest counts, and a repetition changes nothing.
        rows = [(match.audio_classes or (0,)) for match in matches]
        padded = [(*row, *[row[0]] * (widest - len(row))) for row in rows]
        self.audio_classes = torch.tensor(padded, device=device)  # (L, classes)
        self.image_classes = torch.zeros(num_image_classes, len(matches), device=device)  # (N, L)
        for column, match in enumerate(matches):
            self.image_classes[list(match.image_classes), column] = 1
        self.can_hear = torch.tensor([bool(match.audio_classes) for match in matches], device=device)  # (L,)
        self.can_see = torch.tensor([bool(match.image_classes) for match in matches], device=device)


class AVEClipMiniAudioModel(HasFastPath, MobileNetV1ForImageClassification):
    """YAMNet's classifier: transformers' MobileNetV1 on log-mel patches."""

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        """Computes what is classified: patches `(number, num_frames, num_bands)` to `(number, width)`."""
        return self._compute(patches.unsqueeze(1))

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        return self.mobilenet_v1(images).pooler_output


class AVEClipMiniEventHead(nn.Module):
    """Classifies a label as heard, seen and both from its evidence over time, with the same weights for all labels."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(NUM_EVIDENCE))
        self.register_buffer("deviation", torch.ones(NUM_EVIDENCE))
        self.projection = nn.Linear(NUM_EVIDENCE, hidden_size)
        self.temporal = nn.GRU(hidden_size, hidden_size, batch_first=True, bidirectional=True)
        self.output = nn.Linear(3 * hidden_size, 3)

    def forward(self, evidence: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Scores each label independently.

        Args:
            evidence (`torch.Tensor` of shape `(batch_size, num_labels, num_segments, num_evidence)`).
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Segments before the padding.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels, num_segments, 3)`: logits of heard, seen, and both.
        """
        batch_size, num_labels, num_segments, _ = evidence.shape
        hidden = nn.functional.gelu(self.projection((evidence - self.mean) / self.deviation))
        flat = hidden.flatten(0, 1)  # (B * L, T, d)
        if lengths is None:
            temporal = self.temporal(flat)[0]
        else:
            packed = nn.utils.rnn.pack_padded_sequence(
                flat, lengths.clamp(min=1).cpu().repeat_interleave(num_labels), batch_first=True, enforce_sorted=False
            )
            temporal, _ = nn.utils.rnn.pad_packed_sequence(
                self.temporal(packed)[0], batch_first=True, total_length=num_segments
            )
        scores = self.output(torch.cat([flat, temporal], dim=-1))
        return scores.view(batch_size, num_labels, num_segments, 3)


class AVEClipMiniForLocalization(AlignedPreTrainedModel):
    """Localizer that predicts, per segment of a video, which label is both heard and seen, or background."""

    config_class = AVEClipMiniConfig
    base_model_prefix = "ave_clip_mini"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")

    def __init__(self, config: AVEClipMiniConfig) -> None:
        super().__init__(config)
        self.log_mel = LogMelPatches()
        self.audio_model = AVEClipMiniAudioModel(config.audio_config)
        self.image_model = EfficientNetLiteForImageClassification(config.image_config)
        audio_names, image_names = class_names(config.audio_config), class_names(config.image_config)
        self.label_classifier = nn.Linear(config.image_config.hidden_size, len(image_names))
        self.event_head = AVEClipMiniEventHead(config.event_hidden_size)
        self._table = ConceptTable(config.concepts, audio_names, image_names)
        self._silence = audio_names.index(SILENCE_TAG) if SILENCE_TAG in audio_names else 0
        self.set_labels(class_names(config)[:-1])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LogMelPatches):
            module.init_buffers()
        elif isinstance(module, AVEClipMiniEventHead):
            init.zeros_(module.mean)
            init.ones_(module.deviation)
        elif isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)

    @property
    def takes_labels(self) -> bool:
        """Whether `set_labels` can replace the labels."""
        return True

    def set_labels(self, labels: Sequence[str]) -> None:
        """Sets the labels to find: names or synonyms of concepts, or anything that [`ConceptTable`] matches.

        A label that is matched by single words only is warned of, once.

        Raises:
            ValueError: No label, one that matches nothing, one that is given twice, or two that mean the same.
        """
        if isinstance(labels, str) or not labels:
            raise ValueError(f"Pass at least one label, as a list of texts; got {labels!r}.")
        if BACKGROUND_LABEL in labels:
            raise ValueError(f"{BACKGROUND_LABEL!r} is added by itself; leave it out of the labels {list(labels)}.")
        if len(set(labels)) < len(labels):
            raise ValueError(f"A label is given twice: {list(labels)}.")
        matches = [self._table.match(label) for label in labels]
        _refuse_synonyms(matches)
        id2label = labels_with_background(labels)
        for note in filter(None, map(self._table.note, matches)):
            logger.warning_once(note)
        self.label_matches = matches
        self.config.id2label = id2label
        self.config.label2id = {label: index for index, label in id2label.items()}
        self._label_classes: dict[torch.device, LabelClasses] = {}

    def _classes(self, device: torch.device) -> LabelClasses:
        if device not in self._label_classes:
            self._label_classes[device] = LabelClasses(self.label_matches, self.config.image_config.num_labels, device)
        return self._label_classes[device]

    def encode(
        self,
        pixel_values: torch.Tensor,
        input_values: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        frame_sources: torch.Tensor | None = None,
        prepare_pixels: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs both classifiers up to their last layer, with the arguments of [`AVEClipForLocalization.encode`].

        Returns:
            `image_features` `(batch_size, num_segments, num_locations, width)`, the mean map of a segment's frames,
            and `audio_features` `(batch_size, num_segments, width)`, the mean over a segment's patches.
        """
        inputs = (pixel_values, input_values, frame_mask, segment_mask, frame_sources, prepare_pixels)
        return encode_segments(self._frame_features, self._audio_features, *inputs)

    def _frame_features(self, frames: torch.Tensor) -> torch.Tensor:
        return self.image_model.feature_map(frames.to(self.dtype)).flatten(2).transpose(1, 2)  # (frames, P, D)

    def _audio_features(self, waveforms: torch.Tensor) -> torch.Tensor:
        patches = self.log_mel(waveforms).to(self.dtype)  # (N, patches, frames, bands)
        embeds = self.audio_model.embed(patches.flatten(0, 1))
        return embeds.unflatten(0, patches.shape[:2]).mean(dim=1)

    def average(self, image_features: torch.Tensor) -> torch.Tensor:
        """Averages maps as `attend` does, without its activation maps, which cost a fifth of the image classifier."""
        return image_features if image_features.dim() == 3 else image_features.mean(dim=2)

    def attend(self, image_features: torch.Tensor, audio_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Averages the map, and computes where in it the heard labels are seen.

        Args:
            image_features (`torch.Tensor` of shape `(batch_size, num_segments, num_locations, width)`): Maps;
                `(batch_size, num_segments, width)` counts as one location.
            audio_features (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Audio features.

        Returns:
            `(batch_size, num_segments, width)` and class activation maps `(batch_size, num_segments, num_locations)`,
            the classes weighted by how probable their label is by ear; they sum to 1.
        """
        locations = image_features.unsqueeze(2) if image_features.dim() == 3 else image_features
        visual = self.average(image_features)
        if locations.shape[2] == 1:
            return visual, locations.new_ones(locations.shape[:3])
        classes = self._classes(visual.device)
        heard = self._audio_logits(audio_features)[0].sigmoid() * classes.can_hear  # (B, T, L)
        at_location = self.label_classifier(locations).float().softmax(dim=-1) @ classes.image_classes
        # Where nothing is active, all locations are equal. (Not by adding a small number: ONNX export drops that.)
        activation = (at_location * heard.unsqueeze(2)).sum(dim=-1).clamp(min=1e-30)  # (B, T, P)
        return visual, (activation / activation.sum(dim=-1, keepdim=True)).to(visual.dtype)

    def _audio_logits(self, audio_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logit of each label's strongest class `(B, T, L)`, and the logits of all classes `(B, T, N)`."""
        all_classes = self.audio_model.classifier(audio_features).float()
        index = self._classes(audio_features.device).audio_classes
        return all_classes[..., index].amax(dim=-1), all_classes

    def evidence(
        self,
        visual: torch.Tensor,
        audio_features: torch.Tensor,
        lengths: torch.Tensor | None = None,
        pictures: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Input of the event head per label: `(batch_size, num_labels, num_segments, num_evidence)`, float32.

        `pictures` are the probabilities of the image classes, if another classifier than the model's gave them.
        """
        classes = self._classes(visual.device)
        heard, sounds = self._audio_logits(audio_features)
        if pictures is None:
            pictures = self.label_classifier(visual).float().softmax(dim=-1)  # (B, T, N)
        seen = torch.logit(pictures @ classes.image_classes, eps=1e-6)  # (B, T, L): of a label's classes together
        real = _real_segments(visual, lengths)
        columns = [
            *_label_evidence(heard, audio_features, classes.can_hear, real),
            *_label_evidence(seen, visual, classes.can_see, real),
        ]
        entropy = -torch.special.entr(pictures).sum(dim=-1, keepdim=True)
        silence = sounds[..., self._silence].unsqueeze(-1)
        loudest = sounds.amax(dim=-1, keepdim=True)
        flags = [classes.can_hear.float().expand_as(heard), classes.can_see.float().expand_as(seen)]
        columns += [shared.expand_as(heard) for shared in (entropy, silence, loudest)] + flags
        return torch.stack(columns, dim=-1).transpose(1, 2)

    def localize(
        self,
        visual: torch.Tensor,
        audio_features: torch.Tensor,
        segment_mask: torch.Tensor | None = None,
    ) -> AVEClipMiniOutput:
        """Computes the scores of each segment from its visual and its audio vector.

        Args:
            visual (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Result of `attend`.
            audio_features (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Audio features.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*): Padding at the end.
        """
        lengths = None if segment_mask is None or bool(segment_mask.all()) else segment_mask.sum(dim=-1)
        evidence = self.evidence(visual, audio_features, lengths).to(self.dtype)
        scores = self.judge(evidence, lengths)
        events = self.event_scores(scores).transpose(1, 2)  # (B, T, L)
        heard, seen, _ = scores.transpose(1, 2).unbind(dim=-1)
        classes = self._classes(visual.device)
        unknown = float("nan")
        return AVEClipMiniOutput(
            # Odds of each label against background, whose logit is 0.
            logits=torch.cat([events, torch.zeros_like(events[..., :1])], dim=-1).to(visual.dtype),
            event_logits=events.logsumexp(dim=-1).to(visual.dtype),
            heard=heard.sigmoid().masked_fill(~classes.can_hear, unknown),
            seen=seen.sigmoid().masked_fill(~classes.can_see, unknown),
            both=events.sigmoid().masked_fill(~(classes.can_hear & classes.can_see), unknown),
        )

    def judge(self, evidence: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """The event head's logits of heard, seen, and both, with limits on what is heard and what is seen.

        The event head compares segments and labels, so it can call the least improbable label heard although the audio
        classifier clearly denies it: then a clear image finds an event in audio that does not fit. In the same way it
        can call a label seen that the image classifier denies.

        Args:
            evidence (`torch.Tensor` of shape `(batch_size, num_labels, num_segments, num_evidence)`): Of `evidence`.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Segments before the padding.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels, num_segments, 3)`, float32.
        """
        heard, seen, both = self.event_head(evidence, lengths).float().unbind(dim=-1)
        columns = evidence[..., [HEARD_COLUMN, SEEN_COLUMN]].float()  # (B, L, T, 2)
        if lengths is not None:
            real = _real_segments(columns[:, 0], lengths)  # (B, T, 1)
            columns = columns.masked_fill(~real.unsqueeze(1), -LOGIT_LIMIT)
        clearest = columns.amax(dim=2, keepdim=True) + CLEAREST_MARGIN
        limit = torch.minimum(clearest[..., 0], _nearby(columns[..., 0]) + NEARBY_MARGIN)
        heard, seen = torch.minimum(heard, limit), torch.minimum(seen, clearest[..., 1])
        return torch.stack([heard, seen, both], dim=-1)

    def event_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Combines the event head's three logits per label, `(B, L, T, 3)`, to the logit of an event, `(B, L, T)`."""
        heard, seen, both = scores.unbind(dim=-1)
        classes = self._classes(scores.device)
        can_hear, can_see = classes.can_hear[:, None], classes.can_see[:, None]  # (L, 1)
        # A label without classes in one modality is judged by the other alone. An event is never more probable than
        # its label being heard, or being seen: otherwise a clear image alone would outweigh audio that does not match,
        # and the reverse.
        both = torch.minimum(both, torch.minimum(heard, seen))
        return torch.where(can_hear & can_see, both, torch.where(can_hear, heard, seen))

    @property
    def senses(self) -> "AVEClipMiniSenses":
        """View of the model with which a pipeline averages `heard`, `seen` and `both` over overlapping windows."""
        return AVEClipMiniSenses(self)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> AVEClipMiniOutput:
        r"""
        Localize from raw input (`pixel_values` and `input_values`) or from features that `encode` gave.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_segments, num_frames, 3, height, width)`):
                Frames of each segment, `(value - 127) / 128`.
            input_values (`torch.FloatTensor` of shape `(batch_size, num_segments, num_samples)`):
                Audio of each segment at 16 kHz, in [-1, 1].
            image_features (`torch.FloatTensor` of shape `(batch_size, num_segments, num_locations, width)`):
                Maps of the image classifier, or `(batch_size, num_segments, width)`.
            audio_features (`torch.FloatTensor` of shape `(batch_size, num_segments, width)`):
                Embeddings of the audio classifier.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*):
                `False` where a frame is missing.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*):
                `False` where a row is padded at its end; never changes the other segments' scores.
            labels (`torch.LongTensor` of shape `(batch_size, num_segments)`, *optional*):
                A class per segment (-100: not counted).
            output_attentions (`bool`, *optional*):
                Whether to return `visual_attentions`.

        Raises:
            ValueError: Raw and cached input together or incomplete.
        """
        image, audio = self._features(
            pixel_values, input_values, image_features, audio_features, frame_mask, segment_mask
        )
        if segment_mask is not None:
            image, audio = zero_padding(image, segment_mask), zero_padding(audio, segment_mask)
        output = self.localize(self.average(image), audio, segment_mask)
        if output_attentions:
            output.visual_attentions = self.attend(image, audio)[1]
        if labels is not None:
            if segment_mask is not None:
                labels = labels.masked_fill(~segment_mask.bool(), IGNORED_LABEL)
            output.loss = output.category_loss = segment_loss(output.logits, labels)
        return output

    def _features(
        self,
        pixel_values: torch.Tensor | None,
        input_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        audio_features: torch.Tensor | None,
        frame_mask: torch.Tensor | None,
        segment_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the input of `forward` as image and audio features."""
        raw, cached = (pixel_values, input_values), (image_features, audio_features)
        given = [sum(value is not None for value in pair) for pair in (raw, cached)]
        if pixel_values is not None and input_values is not None and not given[1]:
            image, audio = self.encode(pixel_values, input_values, frame_mask, segment_mask)
        elif image_features is not None and audio_features is not None and not given[0]:
            image, audio = image_features, audio_features
        else:
            raise ValueError(
                "Both video and audio are required: pass pixel_values and input_values, or image_features and "
                f"audio_features; got {given[0]} of the first pair and {given[1]} of the second."
            )
        if image.dim() == 5:
            image = image.flatten(2, 3)  # (B, T, rows * columns, D)
        return image.to(self.dtype), audio.to(self.dtype)


class AVEClipMiniSenses:
    """A localizer whose logits are the concatenated `heard`, `seen` and `both` of another localizer."""

    def __init__(self, model: Any) -> None:  # the model or its export
        self.model, self.device = model, model.device
        self.config = SimpleNamespace(num_labels=3 * model.config.background_label_id)

    def localize(self, visual: torch.Tensor, audio_features: torch.Tensor) -> AVEClipMiniOutput:
        output = self.model.localize(visual, audio_features)
        return AVEClipMiniOutput(logits=torch.cat([output.heard, output.seen, output.both], dim=-1))


def _real_segments(features: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Returns a mask `(B or 1, T, 1)` of the segments that are not padding."""
    position = torch.arange(features.shape[1], device=features.device)
    if lengths is None:
        return torch.ones_like(position, dtype=torch.bool)[None, :, None]
    return (position < lengths.unsqueeze(-1).to(features.device)).unsqueeze(-1)


def _nearby(values: torch.Tensor) -> torch.Tensor:
    """Returns the highest value of each segment and its neighbors, `(B, L, T)`: sounds pause for a second, and a
    segment may begin in the middle of one."""
    # (Not by `max_pool1d`, for which torch.export would fix the number of segments.)
    around = nn.functional.pad(values, (1, 1), value=float("-inf"))
    return torch.maximum(torch.maximum(around[..., :-2], values), around[..., 2:])


def _label_evidence(
    logits: torch.Tensor, features: torch.Tensor, is_known: torch.Tensor, real: torch.Tensor
) -> list[torch.Tensor]:
    """Returns the evidence of one modality for each label: six numbers `(B, T, L)`, 0 without classes for the label.

    These are its logit, the logit of the best other label, their difference, the mean and the maximum over the video,
    and the similarity of the segment to those where the label is strongest.
    """
    logits = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    known = logits.masked_fill(~is_known, -LOGIT_LIMIT)
    # The best other label is the best of all, or for the best label itself the second. A single label has no other.
    best = torch.nn.functional.pad(known, (0, 1), value=-LOGIT_LIMIT).topk(2, dim=-1).values
    rival = torch.where(known >= best[..., :1], best[..., 1:], best[..., :1])
    count = real.sum(dim=1, keepdim=True)
    mean = (logits * real).sum(dim=1, keepdim=True) / count
    largest = logits.masked_fill(~real, -LOGIT_LIMIT).amax(dim=1, keepdim=True)
    unit = nn.functional.normalize(features.float(), dim=-1)  # (B, T, D)
    weights = logits.masked_fill(~real, float("-inf")).softmax(dim=1)  # (B, T, L)
    model = torch.einsum("btl,btd->bld", weights, unit)
    alike = torch.einsum("btd,bld->btl", unit, nn.functional.normalize(model, dim=-1))
    columns = (logits, rival, logits - rival, mean.expand_as(logits), largest.expand_as(logits), alike)
    return [column.masked_fill(~is_known, 0) for column in columns]


def _refuse_synonyms(matches: Sequence[ConceptMatch]) -> None:
    """Raises `ValueError` if two labels mean the same concept: they would share each event's probability."""
    known: dict[str, str] = {}
    for match in matches:
        if match.concept in known:
            raise ValueError(
                f"The labels {known[match.concept]!r} and {match.label!r} both mean {match.concept!r} here. Leave one "
                "of them out."
            )
        known[match.concept] = match.label


__all__ = ["AVEClipMiniForLocalization", "AVEClipMiniOutput"]
