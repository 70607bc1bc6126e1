"""What an open container declares."""

from fractions import Fraction

import av
import numpy as np

from ave_clip.core.recording import Recording
from tests.helpers.models import ASSETS


def test_seconds_are_those_of_the_exact_fraction():
    rng = np.random.default_rng(0)
    with av.open(str(ASSETS / "sample.mp4")) as container:
        recording = Recording(container, "sample")
        for recording.time_zero in (Fraction(0), Fraction(-1, 3), Fraction(1001, 30000), Fraction(2**61 + 1, 90000)):
            for stream in recording.streams:
                for timestamp in rng.integers(-(2**62), 2**62, 50).tolist() + list(range(-5, 5)):
                    exact = float(timestamp * stream.time_base - recording.time_zero)
                    assert recording.seconds(timestamp, stream) == exact
