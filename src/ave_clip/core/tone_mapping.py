"""Converts HDR frames (PQ and HLG of ITU-R BT.2100) to SDR, by one fixed curve for all frames.

The method, in this order, with the constants of the recommendations:

1. R'G'B' to light on the display in cd/m2. PQ: its EOTF. HLG: its inverse OETF, then the OOTF of a display of
   1000 cd/m2 (system gamma 1.2).
2. The EETF of ITU-R BT.2390-8, section 5.4.1, on each of R, G and B: a display of 1000 cd/m2 to one of 203 cd/m2,
   the HDR reference white of ITU-R BT.2408. Up to 88 cd/m2 nothing changes, above it a Hermite spline rolls off.
3. The primaries of the file (BT.2020, or P3 if declared) to BT.709, in linear light; colours outside are clipped.
4. The inverse EOTF of ITU-R BT.1886 (gamma 2.4) for SDR video, to 8 bits.

SDR frames are not changed.
"""

import functools

import numpy as np

PEAK_LUMINANCE = 1000.0
SDR_WHITE_LUMINANCE = 203.0
# FFmpeg's numbers of the transfer functions and primaries (AVCOL_TRC_*, AVCOL_PRI_*).
PQ, HLG = 16, 18
BT709_PRIMARIES, DCI_P3_PRIMARIES, DISPLAY_P3_PRIMARIES = 1, 11, 12
# Number of entries per table. Tables of linear light are indexed by its square root: this gives finer steps in dark
# regions, where they are visible.
TABLE_SIZE = 2**16
ROWS_AT_ONCE = 64

# Chromaticities (x, y) of red, green and blue; the white point of all is D65.
_CHROMATICITIES = {
    "BT.2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "BT.709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
}
_WHITE = (0.3127, 0.3290)
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)


def is_hdr(transfer: int) -> bool:
    """Whether FFmpeg's number of a transfer function means PQ or HLG."""
    return transfer in (PQ, HLG)


def tone_map(image: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Converts an HDR frame to SDR.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`): uint16 R'G'B', 0 to 65535.
        transfer (`int`): `PQ` or `HLG`.
        primaries (`int`): FFmpeg's number; any but those of BT.709 and P3 is taken as BT.2020.

    Returns:
        `np.ndarray` of the same shape: uint8 R'G'B' of BT.709 and BT.1886.
    """
    out = np.empty(image.shape, np.uint8)
    for start in range(0, len(image), ROWS_AT_ONCE):  # a few rows at once stay in the processor's cache
        rows = slice(start, start + ROWS_AT_ONCE)
        out[rows] = _tone_map_rows(image[rows], transfer, primaries)
    return out


def _tone_map_rows(image: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    if transfer == PQ:
        light = _pq_table()[image]
    else:
        scene = _hlg_table()[image]
        luminance = scene @ _BT2020_LUMINANCE
        light = _eetf_table()[_square_root_index(scene * _ootf_table()[_square_root_index(luminance)][..., None])]
    matrix = _to_bt709(_primaries_name(primaries))
    return _sdr_table()[_square_root_index(light @ matrix.T)]


def _square_root_index(light: np.ndarray) -> np.ndarray:
    index = np.sqrt(np.clip(light, 0.0, 1.0)) * (TABLE_SIZE - 1)
    return (index + 0.5).astype(np.uint16)


def _steps() -> np.ndarray:
    return np.arange(TABLE_SIZE) / (TABLE_SIZE - 1)


def pq_to_luminance(signal: np.ndarray) -> np.ndarray:
    """EOTF of PQ (SMPTE ST 2084): signal in [0, 1] to cd/m2."""
    root = np.asarray(signal, np.float64) ** (32 / 2523)
    return 10000 * (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)


def luminance_to_pq(luminance: np.ndarray | float) -> np.ndarray:
    """The inverse of `pq_to_luminance`."""
    root = (np.asarray(luminance, np.float64) / 10000) ** (1305 / 8192)
    return ((3424 / 4096 + 2413 / 128 * root) / (1 + 2392 / 128 * root)) ** (2523 / 32)


def hlg_to_scene_light(signal: np.ndarray) -> np.ndarray:
    """Inverse OETF of HLG (ARIB STD-B67): signal in [0, 1] to scene light in [0, 1]."""
    signal = np.asarray(signal, np.float64)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def map_luminance(luminance: np.ndarray) -> np.ndarray:
    """EETF of BT.2390 from a display of 1000 cd/m2 to one of 203 cd/m2, both with a black level of 0."""
    peak = luminance_to_pq(PEAK_LUMINANCE)
    signal = np.minimum(luminance_to_pq(luminance) / peak, 1.0)
    target = luminance_to_pq(SDR_WHITE_LUMINANCE) / peak
    knee = 1.5 * target - 0.5
    t = np.maximum(signal - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * target
    return pq_to_luminance(np.where(signal < knee, signal, spline) * peak)


@functools.cache
def _pq_table() -> np.ndarray:
    """Table from a 16-bit PQ signal to SDR light in [0, 1]."""
    return (map_luminance(pq_to_luminance(_steps())) / SDR_WHITE_LUMINANCE).astype(np.float32)


@functools.cache
def _hlg_table() -> np.ndarray:
    return hlg_to_scene_light(_steps()).astype(np.float32)


@functools.cache
def _ootf_table() -> np.ndarray:
    """Table from the square root of a pixel's scene luminance to the ratio of its display light to its scene light."""
    return ((_steps() ** 2) ** (1.2 - 1)).astype(np.float32)


@functools.cache
def _eetf_table() -> np.ndarray:
    """Table from the square root of display light (1 is 1000 cd/m2) to SDR light."""
    return (map_luminance(_steps() ** 2 * PEAK_LUMINANCE) / SDR_WHITE_LUMINANCE).astype(np.float32)


@functools.cache
def _sdr_table() -> np.ndarray:
    """Table from the square root of SDR light to its 8-bit signal."""
    return np.round(255 * (_steps() ** 2) ** (1 / 2.4)).astype(np.uint8)


def _primaries_name(primaries: int) -> str:
    if primaries == BT709_PRIMARIES:
        return "BT.709"
    return "P3" if primaries in (DCI_P3_PRIMARIES, DISPLAY_P3_PRIMARIES) else "BT.2020"


@functools.cache
def _to_bt709(name: str) -> np.ndarray:
    """Returns the matrix from linear R, G, B of other primaries to those of BT.709."""
    return (np.linalg.inv(_to_xyz("BT.709")) @ _to_xyz(name)).astype(np.float32)


def _to_xyz(name: str) -> np.ndarray:
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in _CHROMATICITIES[name]]).T
    white = np.array([_WHITE[0] / _WHITE[1], 1, (1 - _WHITE[0] - _WHITE[1]) / _WHITE[1]])
    return columns * np.linalg.solve(columns, white)
