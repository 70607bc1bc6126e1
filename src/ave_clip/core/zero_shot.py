"""From what encoders say about each segment to the probability of each label: heard, seen, and both.

Shapes: T segments, L labels, D width, C classes of a classifier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .similarity import Similarity

# Compared with each segment in addition to the labels, by models that were trained with a softmax.
OTHER_LABEL = "other"


@dataclass
class LabelScores:
    """Scores of all segments and labels; NaN where a classifier has no class for a label, so that it cannot tell.

    Args:
        probabilities (`torch.Tensor` of shape `(T, L + 1)`): Of each label and of background, the last; sum 1.
        heard (`torch.Tensor` of shape `(T, L)`): Probability that the label is heard.
        seen (`torch.Tensor` of shape `(T, L)`): Probability that the label is seen.
        both (`torch.Tensor` of shape `(T, L)`): Probability of the audio-visual event.
    """

    probabilities: torch.Tensor
    heard: torch.Tensor
    seen: torch.Tensor
    both: torch.Tensor

    @property
    def senses(self) -> torch.Tensor:
        """The last three side by side: `(T, 3, L)`."""
        return torch.stack([self.heard, self.seen, self.both], dim=1)


def score_texts(embeds: torch.Tensor, texts: torch.Tensor, similarity: Similarity) -> torch.Tensor:
    """Log-probability that each label is present, by an encoder that takes texts.

    Args:
        embeds (`torch.Tensor` of shape `(T, D)`): Embeddings of the segments.
        texts (`torch.Tensor` of shape `(L + 1, D)`): Embeddings of the labels, and of `OTHER_LABEL` as the last.
        similarity ([`Similarity`]): With a bias, each label is judged by itself (a sigmoid, as in training); without
            one the labels and "other" compete (a softmax).

    Returns:
        `torch.Tensor` of shape `(T, L)`.
    """
    logits = similarity(embeds.float(), texts.float())
    if similarity.bias is not None:
        return nn.functional.logsigmoid(logits + similarity.bias)[:, :-1]
    return logits.log_softmax(dim=-1)[:, :-1]


def score_classes(logits: torch.Tensor, label_classes: Sequence[Sequence[int]], is_multi_label: bool) -> torch.Tensor:
    """Log-probability that each label is present, by a classifier.

    Args:
        logits (`torch.Tensor` of shape `(T, C)`): Class scores of the segments.
        label_classes (`list[list[int]]`): For each label the classes that mean it; none if the classifier cannot tell.
        is_multi_label (`bool`): Whether several classes may be present: then the largest sigmoid counts, else the sum
            of the softmax.

    Returns:
        `torch.Tensor` of shape `(T, L)`: NaN where a label has no class.
    """
    scores = nn.functional.logsigmoid(logits.float()) if is_multi_label else logits.float().log_softmax(dim=-1)
    columns = []
    for classes in label_classes:
        chosen = scores[:, list(classes)]
        if not classes:
            columns.append(scores.new_full((len(scores),), float("nan")))
        else:
            columns.append(chosen.amax(dim=-1) if is_multi_label else chosen.logsumexp(dim=-1))
    return torch.stack(columns, dim=-1)


def combine(
    heard: torch.Tensor, seen: torch.Tensor, agreement: torch.Tensor | None = None, both: torch.Tensor | None = None
) -> LabelScores:
    """Combines what is heard and seen.

    The labels share the probability that audio and image agree, in proportion to the geometric mean of both senses; a
    label that one sense cannot judge is judged by the other alone. The remainder is background.

    Args:
        heard (`torch.Tensor` of shape `(T, L)`), seen (`torch.Tensor` of shape `(T, L)`):
            Log-probabilities of both senses.
        agreement (`torch.Tensor` of shape `(T,)`, *optional*):
            Probability that audio and image agree, from encoders with a shared space. By default the probability that
            both senses find one label: the sum of the products of their probabilities, at most 1.
        both (`torch.Tensor` of shape `(T, L)`, *optional*):
            Log-probabilities of an encoder that embeds audio and image together. They replace the geometric mean, and
            are returned as `both`; by default `both` is the label's part of the probability of agreement.
    """
    can_hear, can_see = ~heard.isnan(), ~seen.isnan()
    only_heard, only_seen = torch.where(can_hear, heard, seen), torch.where(can_see, seen, heard)
    shares = ((only_heard + only_seen) / 2 if both is None else both).softmax(dim=-1)
    if agreement is None:
        product = torch.where(can_hear & can_see, heard + seen, only_heard)
        agreement = product.exp().sum(dim=-1).clamp(max=1)
    labels = shares * agreement.unsqueeze(-1)
    return LabelScores(
        probabilities=torch.cat([labels, 1 - agreement.unsqueeze(-1)], dim=-1),
        heard=heard.exp(),
        seen=seen.exp(),
        both=labels.masked_fill(~(can_hear & can_see), float("nan")) if both is None else both.exp(),
    )


__all__ = ["OTHER_LABEL", "LabelScores", "combine", "score_classes", "score_texts"]
