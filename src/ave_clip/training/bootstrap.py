"""Bootstrap over videos: how far a measure may move with another draw of as many videos."""

import numpy as np


def bootstrap_draws(num_videos: int, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Draw videos with replacement.

    Args:
        num_videos (`int`): Number of videos there are, and of videos in each resample.
        num_resamples (`int`): Number of resamples.
        seed (`int`): Seed of the draw.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_videos)`, float64: how often each video is in each resample. The
        sums of a resample are this times the videos' own counts.
    """
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(num_videos, np.full(num_videos, 1 / num_videos), num_resamples)
    return draws.astype(np.float64)


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The middle of the resampled values.

    Args:
        values (`np.ndarray` of shape `(num_resamples,)`): A measure of each resample; `nan` where it is undefined.
        confidence (`float`): Share of the values that lie inside.

    Returns:
        `tuple[float, float]`: lower and upper end; `nan` where no resample has the measure.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(values, (tail, 1 - tail))
    return float(lower), float(upper)
