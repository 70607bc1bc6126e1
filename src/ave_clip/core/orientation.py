"""Display matrices of frames: rotation and mirroring that a file asks players to apply."""

import math
from typing import Any

import numpy as np


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Signs of the upper left of a frame's display matrix, `(a, b, c, d)`: `x' = a x + c y`, `y' = b x + d y`."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV before 19 stumbles over kinds of side data that are new to it
        return {-90: (0, 1, -1, 0), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1)}.get(frame.rotation, (1, 0, 0, 1))
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
    return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0


def is_transposed(matrix: tuple[int, int, int, int]) -> bool:
    """Whether a display matrix swaps width and height."""
    return matrix[0] == 0


def displayed_size(frame: Any, matrix: tuple[int, int, int, int]) -> tuple[int, int]:
    """Height and width of a frame once its display matrix is applied."""
    return (frame.width, frame.height) if is_transposed(matrix) else (frame.height, frame.width)


def clockwise_degrees(matrix: tuple[int, int, int, int]) -> int:
    """Rotation of a display matrix: 0, 90, 180 or 270. A mirrored image is first mirrored left to right."""
    a, b, c, d = matrix
    mirrored = a * d - b * c < 0
    return round(math.degrees(math.atan2(-b, -a) if mirrored else math.atan2(b, a))) % 360


def turn_upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Applies a display matrix to an array `(height, width, 3)`."""
    a, b, c, d = matrix
    if is_transposed(matrix):
        image = image.swapaxes(0, 1)
    if a + c < 0:
        image = image[:, ::-1]
    if b + d < 0:
        image = image[::-1]
    return image
