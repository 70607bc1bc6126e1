"""Frames of the synthetic data set: moving, textured shapes over varied backgrounds.

An object is drawn in a small square of pixels around it, for many frames at once. Shapes are (approximate) signed
distances in units of the object's radius, negative inside. Textures give the fraction of the second colour per pixel.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 192, 144
MARGIN = 48  # pixels of a scene beyond each edge of the frame, for panning
REACH = 1.4  # extent of the largest shape, in radii


@dataclass(frozen=True)
class Appearance:
    """Appearance of a class: names of a shape, a texture and a motion, and two colours as (hue, saturation, value)."""

    shape: str
    texture: str
    motion: str
    colour: tuple[float, float, float]
    second_colour: tuple[float, float, float]


# Shapes map (u, v, angle, radius, phase) to a signed distance. `phase`, in cycles, drives motion inside a shape.


def _polygon(angle: np.ndarray, radius: np.ndarray, corners: int, inner: float) -> np.ndarray:
    """Returns a star with `corners` points and inner radius `inner`; its edges are only approximately straight."""
    wedge = np.abs((angle * corners / (2 * np.pi)) % 1 - 0.5) * 2  # 1 at a point, 0 at a dent
    return radius - inner / (1 - (1 - inner) * wedge)


def _bars(u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    column = np.clip(np.floor((u + 1) * 2), 0, 3)
    height = 0.62 + 0.33 * np.sin(2 * np.pi * phase + 1.9 * column)
    inside = np.abs((u + 1) * 2 - column - 0.5) / 2 - 0.17
    return np.maximum(np.maximum(inside, v - 0.95), 0.95 - 2 * height - v)


def _blob(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    body = np.hypot(u / 1.15, (v - 0.2) / 0.72) - 1
    eyes = np.hypot(np.abs(u) - 0.6, v + 0.5) - 0.36
    return np.minimum(body * 0.8, eyes)


def _flame(u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    lick = u + 0.22 * np.sin(2 * np.pi * phase + 3 * v) * (1 - v) / 2
    width = 0.75 * np.sqrt(np.clip((v + 1.2) / 2.2, 0, 1)) * np.sqrt(np.clip(1 - ((v - 0.1) / 0.9).clip(0) ** 2, 0, 1))
    return np.maximum(np.abs(lick) - width, np.abs(v) - 1.15)


def _snowflake(u: np.ndarray, v: np.ndarray, angle: np.ndarray, radius: np.ndarray) -> np.ndarray:
    folded = (angle + np.pi / 6) % (np.pi / 3) - np.pi / 6
    along, across = radius * np.cos(folded), np.abs(radius * np.sin(folded))
    arm = np.maximum(across - 0.1, along - 1.15)
    twig = np.maximum(np.abs(along - 0.72 - across) - 0.1, across - 0.34)
    return np.minimum(np.minimum(arm, twig), radius - 0.3)


def _butterfly(u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    wing = np.abs(u) / (0.72 + 0.38 * np.cos(2 * np.pi * phase))
    upper = np.hypot((wing - 0.58) / 0.58, (v + 0.35) / 0.6) - 1
    lower = np.hypot((wing - 0.42) / 0.42, (v - 0.5) / 0.45) - 1
    return np.minimum(np.minimum(upper, lower) * 0.5, np.maximum(np.abs(u) - 0.09, np.abs(v) - 0.85))


def _distance(shape: str, u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    match shape:
        case "circle":
            return radius - 1
        case "ring":
            return np.abs(radius - 0.75) - 0.25
        case "star":
            return _polygon(angle, radius * 0.87, 5, 0.42)
        case "cross":
            x, y = np.abs(u), np.abs(v)
            return np.minimum(np.maximum(x - 0.34, y - 1.05), np.maximum(y - 0.34, x - 1.05))
        case "triangle":
            return np.maximum(v - 0.7, (np.abs(u) * 1.73 - v) / 2 - 0.5)
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.88
        case "kite":
            return np.abs(u) * 1.15 + np.abs(v + 0.15) * np.where(v < -0.15, 1.15, 0.8) - 0.95
        case "bars":
            return _bars(u, v, phase)
        case "sector":
            return np.maximum(np.hypot(u, v - 0.6) - 1.4, 0.62 * np.abs(u) + (v - 0.6) * 0.78)
        case "gear":
            teeth = 0.92 + 0.2 * np.clip(3 * np.cos(8 * angle), -1, 1)
            return np.maximum(radius - teeth, 0.38 - radius)
        case "blob":
            return _blob(u, v)
        case "flame":
            return _flame(u, v, phase)
        case "snowflake":
            return _snowflake(u, v, angle, radius)
        case "butterfly":
            return _butterfly(u, v, phase)
        case "wave":
            return np.maximum(np.abs(v - 0.34 * np.sin(4.5 * u + 2 * np.pi * phase)) - 0.3, np.abs(u) - 1.3)
    raise ValueError(f"Unknown shape {shape!r}.")


def _second_colour_fraction(texture: str, u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    match texture:
        case "plain":
            return np.zeros_like(u)
        case "stripes":
            return (np.sin(9 * v) > 0).astype(np.float32)
        case "columns":
            return (np.sin(11 * u) > 0).astype(np.float32)
        case "checker":
            return (np.sin(7 * u) * np.sin(7 * v) > 0).astype(np.float32)
        case "wheel":
            return (np.sin(4 * np.arctan2(v, u)) > 0).astype(np.float32)
        case "shine":
            return np.clip(1.1 - 2 * np.hypot(u + 0.35, v + 0.35), 0, 1)
        case "shade":
            return np.clip(0.5 + 0.55 * v, 0, 1)
        case "core":
            return np.clip(1.4 - 2.2 * np.hypot(u, v - 0.35), 0, 1)
        case "spots":
            return (np.hypot((2 * u + 0.5) % 1 - 0.5, (2 * v + 0.5) % 1 - 0.5) < 0.27).astype(np.float32)
    raise ValueError(f"Unknown texture {texture!r}.")


class Mover:
    """One instance of a class's object: its position, size and rotation over time.

    Args:
        appearance ([`Appearance`]): Appearance of the class.
        rng (`numpy.random.Generator`): Draws size, position, speed, phase and variations of the colours.
    """

    def __init__(self, appearance: Appearance, rng: np.random.Generator):
        self.appearance = appearance
        self.radius = rng.uniform(27, 38)  # pixels
        self.home = np.array([rng.uniform(0.34, 0.66) * WIDTH, rng.uniform(0.4, 0.6) * HEIGHT])
        self.tempo = rng.uniform(0.8, 1.25)
        self.phase = rng.uniform()
        self.turn = rng.uniform(-0.2, 0.2)
        self.side = rng.choice([-1.0, 1.0])
        self.shakes = rng.uniform(-1, 1, (64, 2))
        hue, saturation, value = rng.uniform(-0.02, 0.02), rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.05)
        self.colours = [
            np.array(colorsys.hsv_to_rgb((h + hue) % 1, s * saturation, min(v * value, 1)), np.float32) * 255
            for h, s, v in (appearance.colour, appearance.second_colour)
        ]

    def pose(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns centre x and y, radius (all in pixels), angle (radians) and inner phase (cycles) at each time."""
        x, y = np.full_like(times, self.home[0]), np.full_like(times, self.home[1])
        size, angle = np.full_like(times, self.radius), np.full_like(times, self.turn)
        cycles = times * self.tempo + self.phase
        wave = np.sin(2 * np.pi * cycles)
        match self.appearance.motion:
            case "zoom":
                size *= 1 + 0.16 * wave
            case "spin":
                angle += self.side * 2 * np.pi * 0.5 * cycles
            case "slow spin":
                angle += self.side * 2 * np.pi * 0.15 * cycles
            case "bounce":
                y += HEIGHT * (0.14 - 0.32 * np.abs(np.sin(np.pi * cycles)))
                x += WIDTH * 0.1 * np.sin(2 * np.pi * 0.37 * cycles)
            case "hop":
                y += HEIGHT * (0.1 - 0.2 * np.abs(wave))
            case "shake":
                jolt = self.shakes[np.floor(times * 12).astype(int) % len(self.shakes)]
                x, y = x + 5 * jolt[:, 0], y + 5 * jolt[:, 1]
                angle += 0.12 * jolt[:, 0]
            case "slide":
                x += WIDTH * 0.22 * (2 * np.abs(2 * ((cycles * 0.5) % 1) - 1) - 1)
            case "orbit":
                x += self.side * WIDTH * 0.16 * np.cos(np.pi * cycles)
                y += HEIGHT * 0.16 * np.sin(np.pi * cycles)
                angle += self.side * np.pi * cycles * 0.5
            case "swing":
                angle += 0.55 * wave
            case "sway":
                x += WIDTH * 0.12 * wave
                y += HEIGHT * 0.08 * np.sin(4 * np.pi * cycles)
                angle += 0.2 * wave
            case "drift":
                y += HEIGHT * 0.15 * np.sin(np.pi * cycles)
            case "beat":
                size *= 0.85 + 0.3 * np.exp(-4 * ((2 * cycles) % 1))
            case "flap":
                x += WIDTH * 0.14 * np.sin(np.pi * cycles)
                y += HEIGHT * 0.1 * np.sin(np.pi * 1.4 * cycles)
            case "still":
                pass
            case other:
                raise ValueError(f"Unknown motion {other!r}.")
        return x, y, size, angle, cycles * 1.5

    def draw(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws the object at the given times.

        Args:
            times (`numpy.ndarray` of shape `(num_frames,)`): Seconds.

        Returns:
            `tuple`: Colours, float32 `(num_frames, side, side, 3)` in [0, 255], opacities `(num_frames, side, side,
            1)`, and the upper left corners `(num_frames, 2)` as integer (x, y), which may be outside the frame.
        """
        x, y, size, angle, phase = (values.astype(np.float32) for values in self.pose(times))
        half = int(np.ceil(REACH * size.max()))
        corners = np.stack([np.rint(x) - half, np.rint(y) - half], axis=1).astype(int)
        grid = np.arange(2 * half + 1, dtype=np.float32)
        column = (grid + (corners[:, :1] - x[:, None]).astype(np.float32)) / size[:, None]
        row = (grid + (corners[:, 1:] - y[:, None]).astype(np.float32)) / size[:, None]
        cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        u = cosine * column[:, None, :] + sine * row[:, :, None]
        v = cosine * row[:, :, None] - sine * column[:, None, :]
        phase = phase[:, None, None]
        distance = _distance(self.appearance.shape, u, v, phase)
        fraction = _second_colour_fraction(self.appearance.texture, u, v, phase)[..., None]
        colours = self.colours[0] + fraction * (self.colours[1] - self.colours[0])
        colours *= np.where(distance > -0.07, np.float32(0.25), np.float32(1))[..., None]  # a dark outline
        opacity = np.clip(0.5 - distance * size[:, None, None], 0, 1)[..., None]
        return colours, opacity, corners


def draw_scene(rng: np.random.Generator) -> np.ndarray:
    """Draws a background larger than the frame: gradient, stripes, clouds or tiles, sometimes with small grey shapes.

    Returns:
        `numpy.ndarray` of shape `(HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN, 3)`: float32 in [0, 255].
    """
    height, width = HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN
    y, x = np.mgrid[:height, :width].astype(np.float32)
    direction = rng.uniform(0, 2 * np.pi)
    along = (np.cos(direction) * x + np.sin(direction) * y).astype(np.float32)
    match rng.integers(4):
        case 0:
            fraction = (along - along.min()) / np.ptp(along)
        case 1:
            fraction = 0.5 + 0.5 * np.sin(along * np.float32(2 * np.pi / rng.uniform(14, 50)))
        case 2:
            fraction = _clouds(rng, height, width)
        case _:
            tile = np.float32(rng.uniform(18, 40))
            fraction = 0.5 + 0.5 * np.sign(np.sin(x * np.pi / tile) * np.sin(y * np.pi / tile))
    hue = rng.uniform()
    ends = [
        colorsys.hsv_to_rgb((hue + shift) % 1, rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.85))
        for shift in (0, rng.uniform(-0.2, 0.2))
    ]
    first, second = (np.array(end, np.float32) * 255 for end in ends)
    scene = first + fraction[..., None].astype(np.float32) * (second - first)
    if rng.uniform() < 0.4:
        _strew(rng, scene)
    return scene


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns smooth random values in [0, 1]: coarse noise, interpolated."""
    cells = int(rng.integers(4, 14))
    coarse = rng.uniform(0, 1, (cells + 1, cells + 1)).astype(np.float32)
    row, column = np.linspace(0, cells - 1e-3, height), np.linspace(0, cells - 1e-3, width)
    top, left = row.astype(int), column.astype(int)
    down, right = (row - top)[:, None].astype(np.float32), (column - left)[None].astype(np.float32)
    upper = coarse[top][:, left] * (1 - right) + coarse[top][:, left + 1] * right
    lower = coarse[top + 1][:, left] * (1 - right) + coarse[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down


def _strew(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Draws a few small grey discs and squares into a scene as distractors."""
    height, width = scene.shape[:2]
    for _ in range(rng.integers(3, 9)):
        size = int(rng.integers(3, 8))
        x, y = int(rng.integers(size, width - size)), int(rng.integers(size, height - size))
        grid = np.arange(-size, size)
        inside = np.hypot(*np.meshgrid(grid, grid)) < size if rng.uniform() < 0.5 else np.ones((2 * size,) * 2, bool)
        scene[y - size : y + size, x - size : x + size][inside] = rng.uniform(40, 220)


class Scene:
    """A background, static or panning, with sensor noise.

    Args:
        rng (`numpy.random.Generator`): Draws the scene, its motion and the noise.
    """

    def __init__(self, rng: np.random.Generator):
        self.texture = draw_scene(rng)
        self.swing = rng.uniform(0.3, 1.0, 2) * (MARGIN - 1) if rng.uniform() < 0.55 else np.zeros(2)
        self.rate = rng.uniform(0.05, 0.2, 2)
        self.phase = rng.uniform(size=2)
        strength = rng.uniform(1.0, 5.0)
        self.noise = (rng.standard_normal((HEIGHT + 32, WIDTH + 32), dtype=np.float32) * strength)[..., None]
        self.rng = rng

    def frame(self, time: float) -> np.ndarray:
        """Returns a copy of the background at a time, float32 `(HEIGHT, WIDTH, 3)`, without noise."""
        position = MARGIN + self.swing * np.sin(2 * np.pi * (self.rate * time + self.phase))
        x, y = np.rint(position).astype(int)
        return self.texture[y : y + HEIGHT, x : x + WIDTH].copy()

    def expose(self, frame: np.ndarray) -> np.ndarray:
        """Returns a frame with sensor noise as uint8. It draws random numbers, so frames must come in order."""
        # A random crop of one noise image is much faster than new noise for every frame.
        x, y = self.rng.integers(33, size=2)
        noisy = frame + self.noise[y : y + HEIGHT, x : x + WIDTH]
        return np.clip(noisy, 0, 255).astype(np.uint8)


def paste(frame: np.ndarray, colours: np.ndarray, opacity: np.ndarray, corner: np.ndarray) -> None:
    """Draws an object over a frame in place; parts outside the frame are cropped."""
    x, y = int(corner[0]), int(corner[1])
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(colours.shape[1], WIDTH - x), min(colours.shape[0], HEIGHT - y)
    if right <= left or bottom <= top:
        return
    under = frame[y + top : y + bottom, x + left : x + right]
    under += opacity[top:bottom, left:right] * (colours[top:bottom, left:right] - under)
