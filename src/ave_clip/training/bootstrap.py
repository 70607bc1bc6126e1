"""Bootstrap over videos: confidence intervals of a measure for another sample of as many videos."""

import numpy as np


def bootstrap_draws(num_videos: int, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Draws videos with replacement.

    Args:
        num_videos (`int`): Number of videos, in total and in each resample.
        num_resamples (`int`): Number of resamples.
        seed (`int`): Seed of the draw.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_videos)`, float64: how often each resample contains each video. Its
        product with counts per video gives the sums of each resample.
    """
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(num_videos, np.full(num_videos, 1 / num_videos), num_resamples)
    return draws.astype(np.float64)


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the central interval of the resampled values.

    Args:
        values (`np.ndarray` of shape `(num_resamples,)`): The measure of each resample; `nan` if undefined.
        confidence (`float`): Fraction of the values in the interval.

    Returns:
        `tuple[float, float]`: lower and upper end; `nan` if no resample has the measure.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(values, (tail, 1 - tail))
    return float(lower), float(upper)


def centered_interval(values: np.ndarray, measured: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the central interval of the resampled values, shifted so that their mean is the measured value.

    A mean over rare classes is higher in resamples, which have fewer different videos of each class, than in the whole
    set. Without the shift, an interval of mAP may not contain the measured value.

    Args:
        values (`np.ndarray` of shape `(num_resamples,)`): The measure of each resample, a fraction or `nan`.
        measured (`float`): The measure of the whole set.
        confidence (`float`): Fraction of the values in the interval.

    Returns:
        `tuple[float, float]`: lower and upper end in [0, 1]; `nan` if no resample has the measure.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    lower, upper = percentile_interval(known - known.mean() + measured, confidence)
    return max(0.0, lower), min(1.0, upper)
