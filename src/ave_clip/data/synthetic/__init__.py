"""Synthetic audio-visual clips with labels that are exact by construction."""

from .clips import generate_synthetic_ave
from .long_videos import generate_overlapping_videos

__all__ = ["generate_overlapping_videos", "generate_synthetic_ave"]
