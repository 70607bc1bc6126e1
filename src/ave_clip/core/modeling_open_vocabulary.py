"""The head of a localizer with an open vocabulary: segments are compared with embeddings of label texts.

Shapes: B batch, T segments, d hidden size, L labels, E width of the label embeddings.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .categories import BACKGROUND_LABEL, MULTI_LABEL, labels_with_background
from .configuration_ave_clip import AVEClipConfig
from .label_space import LabelSpace

INITIAL_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of CLIP


class AVEClipLabelClassifier(nn.Module):
    """Scores labels by the scaled cosine of their text embeddings with a projection of each segment, and "other".

    The projection is a sum: of the visual vector and of the audio vector. Where the encoder's image or audio features
    are in the space of its texts, it begins as the identity. An untrained head then makes the encoder's own
    comparison, and training starts from what the encoder knows of labels that are not trained. Only where neither
    feature is in that space, the output of the last BiLSTM is projected, too: it fits the trained labels better, but
    moves background towards labels that are not trained.

    "Other" is a learned score of the last BiLSTM. With one label per segment it is the logit of background; with
    several, it is subtracted from each label's score.

    `label_embeddings` `(L, E)` are those of the labels in `id2label`; they are saved, but not trained.
    """

    label_embeddings: torch.Tensor

    def __init__(self, config: AVEClipConfig, visual_size: int, audio_size: int) -> None:
        super().__init__()
        size = config.label_embedding_size
        assert size is not None  # the configuration has an open vocabulary
        self.is_multi_label = config.problem_type == MULTI_LABEL
        self.visual_projection = nn.Linear(visual_size, size, bias=False)
        self.audio_projection = nn.Linear(audio_size, size, bias=False)
        is_text_space = size in (visual_size, audio_size, visual_size + audio_size)
        self.projection = None if is_text_space else nn.Linear(config.hidden_size, size)
        self.other = nn.Linear(config.hidden_size, 1)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.register_buffer("label_embeddings", torch.zeros(len(LabelSpace.of(config).event_names), size))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initializes the weights as the docstring of the class says; label embeddings are zero until they are set."""
        init.constant_(self.logit_scale, math.log(INITIAL_SCALE))
        init.zeros_(self.label_embeddings)
        size, visual = self.visual_projection.weight.shape
        if size == visual + self.audio_projection.in_features:  # texts of what is seen and of what is heard, in a row
            init.copy_(self.visual_projection.weight, torch.eye(size, visual))
            init.copy_(self.audio_projection.weight, torch.eye(size)[:, visual:])
            return
        for projection in (self.visual_projection, self.audio_projection):
            if projection.in_features == size:
                init.eye_(projection.weight)

    def forward(self, hidden: torch.Tensor, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Computes the logits.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_segments, hidden_size)`): Output of the last BiLSTM.
            visual (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Visual vectors.
            audio (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Audio vectors.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_segments, num_labels)`: background last, if it is a class.
        """
        # Of length 1, so that neither modality outweighs the other.
        visual, audio = nn.functional.normalize(visual, dim=-1), nn.functional.normalize(audio, dim=-1)
        segments = self.visual_projection(visual) + self.audio_projection(audio)
        if self.projection is not None:
            segments = segments + self.projection(hidden)
        labels = nn.functional.normalize(self.label_embeddings, dim=-1)
        cosines = nn.functional.normalize(segments, dim=-1) @ labels.T  # (B, T, L)
        scores, other = cosines * self.logit_scale.exp().clamp(max=MAX_SCALE), self.other(hidden)
        return scores - other if self.is_multi_label else torch.cat([scores, other], dim=-1)


class OpenVocabularyMixin:
    """The part of [`AVEClipForLocalization`] that sets the labels of an open vocabulary.

    A class of its own, so that the class of the localizer contains the steps of the paper only.
    """

    config: AVEClipConfig
    category_head: Any
    # Embeds labels that `set_labels` gets without embeddings: takes a list of texts, returns `(L, E)`.
    label_encoder: Callable[[Sequence[str]], torch.Tensor] | None = None

    @property
    def takes_labels(self) -> bool:
        """Whether `set_labels` can replace the labels."""
        return self.config.label_embedding_size is not None

    def set_labels(self, labels: Sequence[str], embeddings: torch.Tensor | None = None) -> None:
        """Sets the labels to find, also ones that were not trained.

        Args:
            labels (`Sequence[str]`): Names of the events, without background.
            embeddings (`torch.Tensor` of shape `(num_labels, label_embedding_size)`, *optional*):
                Their text embeddings, by the encoder of the training ([`LabelEncoder`]). Without them, present labels
                keep theirs, and others are embedded by `label_encoder`, which a caller may set.

        Raises:
            ValueError: If the classes of this localizer are fixed, there is no label or one is given twice, a label
                is unknown and there is no `label_encoder`, or the embeddings have a wrong shape or are not finite.
        """
        size = self.config.label_embedding_size
        if size is None:
            raise ValueError(
                "This localizer scores fixed classes. Labels can be set if it was trained with "
                "AVEClipConfig(label_embedding_size=...): train_localizer.py --open_vocabulary."
            )
        if isinstance(labels, str) or not labels:
            raise ValueError(f"Pass at least one label, as a list of texts; got {labels!r}.")
        if BACKGROUND_LABEL in labels:
            raise ValueError(f"{BACKGROUND_LABEL!r} is added by itself; leave it out of the labels {list(labels)}.")
        is_multi_label = self.config.problem_type == MULTI_LABEL
        id2label = dict(enumerate(labels)) if is_multi_label else labels_with_background(labels)
        embeddings = self._embeddings_of(labels) if embeddings is None else torch.as_tensor(embeddings)
        if embeddings.shape != (len(labels), size):
            raise ValueError(
                f"The embeddings of {len(labels)} labels must have the shape {(len(labels), size)}, got "
                f"{tuple(embeddings.shape)}. Embed the labels with the encoder that the localizer was trained with."
            )
        if not embeddings.isfinite().all() or not embeddings.any(dim=-1).all():
            raise ValueError("Label embeddings must be finite, and none of them zero.")
        self.config.id2label = id2label  # checks that no label is given twice
        classifier = self.category_head.classifier
        classifier.label_embeddings = embeddings.to(classifier.label_embeddings, copy=True)

    def _embeddings_of(self, labels: Sequence[str]) -> torch.Tensor:
        own = self.category_head.classifier.label_embeddings
        known = {name: index for index, name in enumerate(LabelSpace.of(self.config).event_names)}
        unknown = [label for label in labels if label not in known]
        if not unknown:
            return own[[known[label] for label in labels]]
        if self.label_encoder is None:
            raise ValueError(
                f"This localizer has no embedding of the label {unknown[0]!r}, only of {list(known)}. Pass "
                "`embeddings`, or set `label_encoder` (in pipelines `label_encoder=`, on the command line "
                "--label-encoder) to the encoder of its training, which has a text tower."
            )
        return self.label_encoder(labels)

    def _check_has_labels(self) -> None:
        """Raises `ValueError` if the labels of an open vocabulary have no embeddings yet."""
        if self.takes_labels and not self.category_head.classifier.label_embeddings.any():
            raise ValueError(
                "The labels of this localizer have no embeddings yet. Call `model.set_labels(names, embeddings)`."
            )


__all__ = ["AVEClipLabelClassifier", "OpenVocabularyMixin"]
