"""Mean and spread of cached features over the training clips, for localizers with `normalize_features`."""

import torch
from torch.utils.data import Dataset

from ..modeling_ave_clip import AVEClipForLocalization
from .sampling import item_rng

MAX_CLIPS = 512
STATISTICS_KEY = 0x57A75  # keeps the choice of clips apart from the orders of the epochs
# A feature that hardly ever changes is not blown up further than to this share of the features' common spread.
SMALLEST_SPREAD = 0.05


class FeatureStatistics:
    """Mean and spread of each feature, gathered clip by clip in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.total: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def add(self, features: torch.Tensor) -> None:
        """Take in features `(..., width)`."""
        vectors = features.flatten(0, -2).double()
        self.count += len(vectors)
        self.total = self.total + vectors.sum(dim=0)
        self.squares = self.squares + vectors.square().sum(dim=0)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean `(width,)` and spread `(width,)`; the spread is 1 where no feature changes at all."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0)
        common = variance.mean().sqrt()
        if common <= 1e-9 * mean.abs().max():
            return mean.float(), torch.ones_like(mean).float()
        return mean.float(), variance.sqrt().clamp(min=SMALLEST_SPREAD * common).float()


def fit_feature_norms(localizer: AVEClipForLocalization, clips: Dataset, seed: int) -> None:
    """Fill in the statistics of a localizer with `normalize_features`, from a seeded choice of training clips.

    Args:
        localizer (`AVEClipForLocalization`): Untrained; without `normalize_features` nothing is done.
        clips (`Dataset`): Rows with `image_features` and `audio_features`.
        seed (`int`): Seed of the choice.

    Raises:
        ValueError: where the clips are no cached features, or a clip holds a number that is not finite.
    """
    if localizer.image_norm is None:
        return
    norms = {"image_features": localizer.image_norm, "audio_features": localizer.audio_norm}
    statistics = {name: FeatureStatistics() for name in norms}
    for index in item_rng(seed, STATISTICS_KEY).permutation(len(clips))[:MAX_CLIPS]:
        clip = clips[int(index)]
        if not norms.keys() <= clip.keys():
            raise ValueError(
                "normalize_features needs cached features: extract them (stage 2) and pass --features_dir, or leave "
                "normalize_features=false."
            )
        for name, statistic in statistics.items():
            if not clip[name].isfinite().all():
                raise ValueError(
                    f"Row {int(clip['row'])} has {name} that are not finite, so nothing can be learned from it. "
                    "Extract its features again, or leave it out of the training split."
                )
            statistic.add(clip[name])
    for name, norm in norms.items():
        mean, spread = statistics[name].result()
        norm.mean.copy_(mean)
        norm.spread.copy_(spread)
