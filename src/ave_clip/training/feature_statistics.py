"""Mean and standard deviation of cached features over the training clips, for localizers with `normalize_features`."""

import torch

from ..core.modeling_ave_clip import AVEClipForLocalization
from .sampling import item_rng
from .splits import Clips

MAX_CLIPS = 512
STATISTICS_KEY = 0x57A75  # makes the choice of clips independent of the order of the epochs
# Lower bound of a feature's standard deviation, as a fraction of the common one of all features: a feature that is
# almost constant would otherwise become noise with unit variance.
SMALLEST_DEVIATION = 0.05


class FeatureStatistics:
    """Accumulates mean and standard deviation of each feature, clip by clip in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, features: torch.Tensor) -> None:
        """Adds features `(..., width)`."""
        vectors = features.flatten(0, -2).double()
        self.count += len(vectors)
        self.total = self.total + vectors.sum(dim=0)
        self.squares = self.squares + vectors.square().sum(dim=0)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and standard deviation, each `(width,)`; the latter is 1 if all features are constant."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0)
        common = variance.mean().sqrt()
        # Below the rounding error of the sums: constant features.
        if common <= 1e-9 * mean.abs().max():
            return mean.float(), torch.ones_like(mean).float()
        return mean.float(), variance.sqrt().clamp(min=SMALLEST_DEVIATION * common).float()


def fit_feature_norms(localizer: AVEClipForLocalization, clips: Clips, seed: int) -> None:
    """Sets the statistics of a localizer with `normalize_features`, from a seeded sample of the training clips.

    Args:
        localizer (`AVEClipForLocalization`): Untrained localizer; not changed without `normalize_features`.
        clips (`Dataset`): Rows with `image_features` and `audio_features`.
        seed (`int`): Seed of the sample.

    Raises:
        ValueError: if the clips are not cached features, or contain a number that is not finite.
    """
    image_norm, audio_norm = localizer.image_norm, localizer.audio_norm
    if image_norm is None or audio_norm is None:
        return
    norms = {"image_features": image_norm, "audio_features": audio_norm}
    statistics = {name: FeatureStatistics() for name in norms}
    for index in item_rng(seed, STATISTICS_KEY).permutation(len(clips))[:MAX_CLIPS]:
        clip = clips[int(index)]
        if not norms.keys() <= clip.keys():
            raise ValueError(
                "normalize_features needs cached features: extract them (stage 2) and pass --features_dir, or set "
                "normalize_features=false."
            )
        for name, statistic in statistics.items():
            if not clip[name].isfinite().all():
                raise ValueError(
                    f"Row {int(clip['row'])} has {name} that are not finite. Extract its features again, or leave it "
                    "out of the training split."
                )
            statistic.add(clip[name])
    for name, norm in norms.items():
        mean, deviation = statistics[name].result()
        norm.mean.copy_(mean)
        norm.spread.copy_(deviation)
