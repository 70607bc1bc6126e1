"""HDR pictures (PQ, HLG) are tone mapped by the method in `tone_mapping.py`; SDR pictures stay as they are."""

import logging
from fractions import Fraction

import av
import numpy as np
import pytest

from ave_clip.core.tone_mapping import (
    HLG,
    PQ,
    hlg_to_scene_light,
    luminance_to_pq,
    map_luminance,
    pq_to_luminance,
    tone_map,
)
from ave_clip.core.video_io import read_video

BT709, BT2020 = 1, 9
BT2020_NCL, YCGCO, SMPTE2085, BT2020_CL, CHROMA_NCL, CHROMA_CL, ICTCP = 9, 8, 11, 10, 12, 13, 14
FFV1 = ("clip.mkv", "ffv1", "yuv420p10le")


def write_grey(path, codec, pixel_format, code, *, transfer, matrix=BT2020_NCL, primaries=BT2020, color_range=1):
    """A clip of one grey: `code` is the 10-bit luma; chroma is neutral."""
    with av.open(str(path), "w") as container:
        options = {"libx265": {"x265-params": "log-level=none:qp=4"}, "libsvtav1": {"crf": "10", "preset": "12"}}
        stream = container.add_stream(codec, rate=5, options=options.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixel_format
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, primaries
        context.colorspace, context.color_range = matrix, color_range
        for number in range(5):
            frame = av.VideoFrame(64, 64, pixel_format)
            for plane, value in zip(frame.planes, (code, 512, 512)):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            frame.color_trc, frame.color_primaries = transfer, primaries
            frame.colorspace, frame.color_range = matrix, color_range
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grey(path) -> int:
    picture = read_video(path, num_frames_per_segment=1).frames[0][0]
    assert np.ptp(picture.astype(int)) <= 2
    return int(np.median(picture))


# --- values that are known from elsewhere ---


@pytest.mark.parametrize(
    ("signal", "luminance"), [(0.0, 0.0), (0.508078, 100.0), (0.580689, 203.0), (0.751827, 1000.0), (1.0, 10000.0)]
)
def test_pq_has_the_values_of_bt2408(signal, luminance):
    """Table 1 of BT.2408: 58 % PQ is the reference white of 203 cd/m2, 75 % is 1000 cd/m2."""
    assert pq_to_luminance(signal) == pytest.approx(luminance, rel=1e-4, abs=1e-6)
    assert luminance_to_pq(luminance) == pytest.approx(signal, abs=1e-5)


def test_hlg_has_the_values_of_bt2100_and_bt2408():
    np.testing.assert_allclose(hlg_to_scene_light([0.0, 0.5, 0.75, 1.0]), [0, 1 / 12, 0.26496, 1], rtol=0, atol=1e-5)
    # BT.2408: 75 % HLG is 203 cd/m2 on a display of 1000.
    assert 1000 * hlg_to_scene_light(0.75) ** 1.2 == pytest.approx(203, abs=0.2)


def test_the_curve_keeps_dark_and_middle_tones_and_ends_at_sdr_white():
    light = np.array([0.0, 0.1, 10, 50, 88])
    np.testing.assert_allclose(map_luminance(light), light, rtol=1e-3)
    assert map_luminance(1000.0) == pytest.approx(203)
    assert map_luminance(4000.0) == pytest.approx(203)
    # BT.2390's spline by hand: E1 = 0.77237, KS = 0.65856 and T = 1/3 give E2 = 0.73865 of the PQ peak.
    assert map_luminance(203.0) == pytest.approx(float(pq_to_luminance(0.73865 * 0.751827)), rel=1e-3)
    assert (np.diff(map_luminance(np.linspace(0, 1000, 2000))) > 0).all()


@pytest.mark.parametrize(("transfer", "signal"), [(PQ, 0.508078), (HLG, 0.629623)])
def test_a_grey_of_100_nits_is_the_same_in_both_systems(transfer, signal):
    """HLG's signal for 100 cd/m2: (100 / 1000) ** (1 / 1.2) of scene light through BT.2100's OETF."""
    pixels = np.full((1, 1, 3), round(signal * 65535), np.uint16)
    expected = 255 * (99.36 / 203) ** (1 / 2.4)
    np.testing.assert_allclose(tone_map(pixels, transfer, BT2020), expected, rtol=0, atol=1)


def test_primaries_of_bt2020_become_those_of_bt709():
    """BT.2087: a BT.709 red of 50 cd/m2 is (0.6274, 0.0691, 0.0164) of it in BT.2020."""
    light = 50 * np.array([0.6274, 0.0691, 0.0164])
    pixels = np.round(65535 * luminance_to_pq(light)).astype(np.uint16)[None, None]
    red = 255 * (50 / 203) ** (1 / 2.4)
    np.testing.assert_allclose(tone_map(pixels, PQ, BT2020)[0, 0], [red, 0, 0], rtol=0, atol=3)


# --- files ---


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [FFV1, ("clip.mp4", "libx265", "yuv420p10le"), ("clip.mp4", "libsvtav1", "yuv420p10le")],
)
@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("color_range", [1, 2])
def test_hdr_files_are_tone_mapped(tmp_path, name, codec, pixel_format, transfer, color_range):
    signal = 0.580689 if transfer == PQ else 0.75  # 203 cd/m2
    code = round(64 + 876 * signal) if color_range == 1 else round(1023 * signal)
    path = write_grey(tmp_path / name, codec, pixel_format, code, transfer=transfer, color_range=color_range)
    assert grey(path) == pytest.approx(255 * (159.04 / 203) ** (1 / 2.4), abs=3)


def test_sdr_in_the_same_container_is_not_touched(tmp_path):
    path = write_grey(tmp_path / FFV1[0], *FFV1[1:], 64 + 438, transfer=BT709, matrix=BT709, primaries=BT709)
    assert grey(path) == pytest.approx(127, abs=1)


@pytest.mark.parametrize("matrix", [YCGCO, BT2020_CL, SMPTE2085, CHROMA_NCL, CHROMA_CL, ICTCP])
@pytest.mark.parametrize("transfer", [BT709, PQ])
def test_matrices_that_swscale_has_not_are_read_with_the_usual_one(tmp_path, caplog, matrix, transfer):
    code = 64 + 438 if transfer == BT709 else round(64 + 876 * 0.580689)
    path = write_grey(tmp_path / FFV1[0], *FFV1[1:], code, transfer=transfer, matrix=matrix)
    with caplog.at_level(logging.WARNING):
        assert grey(path) == pytest.approx(128 if transfer == BT709 else 230, abs=3)
    assert [record.getMessage().count("colour matrix") for record in caplog.records] == [1]
