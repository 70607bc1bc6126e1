"""Sounds of the synthetic data set: one function per class, and the background noise.

Every function takes a random generator, which determines the instance (pitch, tempo, detuning, timbre), and the times
of the samples, and returns a mono waveform of any level. Each sound is audible in every second, so that one segment is
enough to recognize the class.
"""

from __future__ import annotations

import numpy as np

TWO_PI = np.float32(2 * np.pi)


def _fraction(cycles: np.ndarray) -> np.ndarray:
    """Returns the fractional part of a phase in cycles as float32; over 10 s, the phase itself needs float64."""
    return (cycles - np.floor(cycles)).astype(np.float32)


def _sine(cycles: np.ndarray) -> np.ndarray:
    return np.sin(TWO_PI * _fraction(cycles))


def _since_beat(rng: np.random.Generator, times: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the seconds since the last beat of a regular rhythm with a random phase, and the number of that beat."""
    beats = times * rate + rng.uniform()
    return _fraction(beats) / np.float32(rate), np.floor(beats).astype(np.int64)


def _attack(since: np.ndarray, seconds: float = 0.004) -> np.ndarray:
    return np.minimum(since / np.float32(seconds), 1)


def _noise_band(rng: np.random.Generator, times: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns noise between two frequencies (Hz) with edges of a fifth of an octave and a standard deviation of 1."""
    step = times[1] - times[0]
    spectrum = np.fft.rfft(rng.standard_normal(len(times), dtype=np.float32))
    frequencies = np.maximum(np.fft.rfftfreq(len(times), step), 1e-3)
    distance = np.maximum(np.log2(low / frequencies), np.log2(frequencies / high))
    noise = np.fft.irfft(spectrum * np.clip(1 - 5 * distance, 0, 1), len(times)).astype(np.float32)
    return noise / max(float(noise.std()), 1e-6)


def gong(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Struck metal: inharmonic partials that decay, one or two strokes per second."""
    pitch = rng.uniform(170, 260)
    since, _ = _since_beat(rng, times, rng.uniform(1.4, 2.1))
    signal = np.zeros(len(times), np.float32)
    for number, ratio in enumerate((1, 1.52, 2.27, 2.93, 3.76)):
        decay = np.exp(-since * np.float32(2.0 + 0.8 * number))
        signal += decay * _sine(times * pitch * ratio * rng.uniform(0.98, 1.02)) / np.float32(1 + 0.45 * number)
    return signal * _attack(since)


def siren(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """A harmonic tone that glides up and down over more than an octave, two to three times per second."""
    rate, depth, centre = rng.uniform(2.0, 3.0), rng.uniform(0.55, 0.8), rng.uniform(750, 1050)
    pitch = centre * np.exp2(depth * np.sin(2 * np.pi * (times * rate + rng.uniform())))
    cycles = np.cumsum(pitch) * (times[1] - times[0])
    return _sine(cycles) + 0.5 * _sine(2 * cycles) + 0.25 * _sine(3 * cycles)


def marble(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Short bright pings of one high pitch, in a fast regular rhythm."""
    pitch = rng.uniform(3200, 4800)
    since, _ = _since_beat(rng, times, rng.uniform(5.0, 7.5))
    ping = _sine(times * pitch) + 0.6 * _sine(times * pitch * 1.47)
    return ping * np.exp(-since * np.float32(rng.uniform(30, 45))) * _attack(since, 0.002)


def crate(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """A rattle: mid-band noise in about ten bursts per second."""
    noise = _noise_band(rng, times, rng.uniform(800, 1000), rng.uniform(2000, 2600))
    return noise * (0.5 + 0.5 * _sine(times * rng.uniform(9, 12) + rng.uniform())) ** 3


def whistle(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """One high sustained sine tone with a slight vibrato."""
    rate = rng.uniform(5, 7)
    vibrato = 0.012 / rate * np.sin(2 * np.pi * (times * rate + rng.uniform()))
    return _sine(rng.uniform(1700, 2500) * (times + vibrato))


def frog(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Croaks: trains of low pulses with one formant, about three croaks per second."""
    since, _ = _since_beat(rng, times, rng.uniform(42, 60))
    ring = np.sin(TWO_PI * np.float32(rng.uniform(480, 680)) * since) * np.exp(-since * np.float32(130))
    croak = np.clip(1.5 + 3 * _sine(times * rng.uniform(2.4, 3.4) + rng.uniform()), 0, 1)
    return ring * croak


def organ(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """A sustained chord of three slightly detuned harmonic tones."""
    pitch = rng.uniform(210, 320)
    signal = np.zeros(len(times), np.float32)
    for ratio in (1, (1.2, 1.25)[rng.integers(2)], 1.5):
        tone = times * (pitch * ratio * rng.uniform(0.997, 1.003)) + rng.uniform()
        signal += _sine(tone) + 0.6 * _sine(2 * tone) + 0.4 * _sine(4 * tone)
    return signal


def fan(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Swishes: high hissing noise that swells two or three times per second."""
    noise = _noise_band(rng, times, rng.uniform(4000, 4800), rng.uniform(8000, 10000))
    return noise * (0.6 + 0.4 * _sine(times * rng.uniform(2, 3) + rng.uniform())) ** 2


def comet(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Falling chirps over three octaves, three to four per second."""
    rate, top, ratio = rng.uniform(3, 4.2), rng.uniform(3600, 4800), rng.uniform(0.09, 0.13)
    since, _ = _since_beat(rng, times, rate)
    progress = since * np.float32(rate)
    cycles = top / rate * (np.exp(progress * np.log(ratio)) - 1) / np.log(ratio)
    return _sine(cycles) * _attack(since) * np.sqrt(1 - progress)


def drummer(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Deep drum strokes whose pitch drops, every second one with a snare."""
    since, beat = _since_beat(rng, times, rng.uniform(3.2, 4.4))
    low = rng.uniform(50, 65)
    cycles = low * since + rng.uniform(3.0, 4.0) * (1 - np.exp(-since * np.float32(30)))
    kick = np.sin(TWO_PI * cycles.astype(np.float32)) * np.exp(-since * np.float32(11)) * _attack(since)
    snare = _noise_band(rng, times, 1500, 6000) * np.exp(-since * np.float32(45)) * (beat % 2 == 1)
    return kick + np.float32(0.3) * snare


def kite(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Slow rising glides with harmonics, a little more than one per second."""
    rate, bottom, ratio = rng.uniform(1.2, 1.7), rng.uniform(300, 400), rng.uniform(3.5, 5.0)
    since, _ = _since_beat(rng, times, rate)
    progress = since.astype(np.float64) * rate
    cycles = bottom / rate * (np.exp(progress * np.log(ratio)) - 1) / np.log(ratio)
    glide = _sine(cycles) + 0.5 * _sine(2 * cycles) + 0.35 * _sine(3 * cycles) + 0.25 * _sine(4 * cycles)
    return glide * _attack(since, 0.02) * np.minimum((1 - progress) * 20, 1).astype(np.float32)


def top(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """A low buzzing sawtooth with a flutter of six to nine beats per second."""
    saw = 2 * _fraction(times * rng.uniform(85, 130)) - 1
    return saw * (0.65 + 0.35 * _sine(times * rng.uniform(6, 9) + rng.uniform()))


def ember(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Crackling: about thirty sharp clicks per second at random times, loud and soft."""
    step = times[1] - times[0]
    clicks = np.zeros(len(times), np.float32)
    number = max(1, int(rng.uniform(26, 40) * len(times) * step))
    clicks[rng.integers(len(times), size=number)] = rng.lognormal(0, 0.5, number)
    tail = np.arange(int(0.012 / step)) * step
    kernel = rng.standard_normal(len(tail)) * np.exp(-tail * rng.uniform(350, 500))
    size = len(times) + len(tail)
    return np.fft.irfft(np.fft.rfft(clicks, size) * np.fft.rfft(kernel, size), size)[: len(times)].astype(np.float32)


def harp(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Fast plucked notes of a five-tone scale."""
    since, note = _since_beat(rng, times, rng.uniform(7, 9))
    steps = np.array([0, 2, 4, 7, 9, 12, 14, 16])
    order = rng.permutation(len(steps))
    pitch = rng.uniform(480, 640) * np.exp2(steps[order][note % len(steps)] / 12)
    cycles = pitch * since
    pluck = _sine(cycles) + 0.5 * _sine(2 * cycles) + 0.3 * _sine(3 * cycles)
    return pluck * np.exp(-since * np.float32(14)) * _attack(since)


def moth(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Robot beeps: a square wave that jumps between two pitches, with a gap after each beep."""
    since, beep = _since_beat(rng, times, rate := rng.uniform(4.5, 6.5))
    pitch = rng.uniform(620, 760) * np.where(beep % 2 == 0, 1.0, rng.uniform(1.4, 1.55))
    square = np.sign(_sine(pitch * since))
    return square * (since * np.float32(rate) < 0.7)


def tide(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Surf: low rushing noise that swells about once per second."""
    noise = _noise_band(rng, times, rng.uniform(180, 240), rng.uniform(650, 850))
    return noise * (0.7 + 0.3 * _sine(times * rng.uniform(0.8, 1.2) + rng.uniform()))


def background_sound(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Returns coloured noise and, in half of the clips, a hum as of mains power, with a standard deviation of 1."""
    step = times[1] - times[0]
    spectrum = np.fft.rfft(rng.standard_normal(len(times), dtype=np.float32))
    frequencies = np.maximum(np.fft.rfftfreq(len(times), step), 40)
    noise = np.fft.irfft(spectrum * (frequencies / 1000) ** -rng.uniform(0.0, 1.0), len(times)).astype(np.float32)
    noise /= noise.std()
    if rng.uniform() < 0.5:
        hum = times * rng.uniform(48, 62)
        noise += np.float32(rng.uniform(0.3, 1.0)) * (_sine(hum) + 0.5 * _sine(2 * hum))
    return noise / noise.std()
