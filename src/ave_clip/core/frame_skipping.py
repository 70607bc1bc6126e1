"""Which frames of a video need not be decoded: those that no segment shows and no other frame is predicted from.

H.264 and HEVC mark frames that no other one needs (most B-frames). Without them the others come out the same, bit by
bit. What a segment shows follows from the time stamps alone, before anything is decoded.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .segments import TIME_TOLERANCE_SECONDS

# Times are compared with this much to spare, so that rounding never decides whether a frame is left out.
MARGIN_SECONDS = 100 * TIME_TOLERANCE_SECONDS
# So many of the last time stamps are kept. Codecs store a frame at most 16 packets before its turn in display order.
MAX_TIMES = 64
# Types of supplements (SEI) that say nothing about how frames are decoded, turned or coloured: timing, subtitles, the
# encoder's name, checksums.
HARMLESS_SUPPLEMENTS = {1, 4, 5, 132}
# Of the decoder configuration in mp4 and others; H.264 and HEVC with start codes have none.
MIN_CONFIGURATION_BYTES = {"h264": 7, "hevc": 23}
CONFIGURATION_VERSION = 1
ONE_TEMPORAL_LAYER = 1


@dataclass(order=True)
class SkippedFrame:
    """A frame that was not decoded.

    Attributes:
        time: Time at which it is displayed, in seconds.
        duration: Duration in ticks of the stream's time base; 0 if unknown.
    """

    time: float
    duration: int


@dataclass(frozen=True)
class NalFormat:
    """How the NAL units of a stream are stored, and which of them belong to a frame that no other one needs.

    Attributes:
        length_bytes: Number of bytes of the length before each unit.
        header_bytes: Number of bytes of a unit's header.
        slices: First bytes of slices of frames that no other frame is predicted from.
        supplements: First bytes of supplements.
        delimiters: First bytes of units without content.
    """

    length_bytes: int
    header_bytes: int
    slices: frozenset[int]
    supplements: frozenset[int]
    delimiters: frozenset[int]

    def is_unreferenced(self, packet: Any) -> bool:
        """Whether a packet (`av.Packet`) contains nothing but a frame that no other frame is predicted from."""
        data, position, num_slices = memoryview(packet), 0, 0
        while position < len(data):
            start = position + self.length_bytes
            position = start + int.from_bytes(data[position:start], "big")
            content = start + self.header_bytes
            if not content < position <= len(data):  # damaged
                return False
            if data[start] in self.slices:
                num_slices += 1
            elif data[start] in self.supplements:
                if data[content] not in HARMLESS_SUPPLEMENTS:
                    return False
            elif data[start] not in self.delimiters:
                return False
        return num_slices > 0 and not packet.has_sidedata("new_extradata")


def nal_format(stream: Any) -> NalFormat | None:
    """Returns how a stream stores its NAL units; `None` if it is of another codec, or stored without their lengths."""
    context = stream.codec_context
    extradata: bytes = context.extradata or b""
    if len(extradata) < MIN_CONFIGURATION_BYTES.get(context.name, math.inf) or extradata[0] != CONFIGURATION_VERSION:
        return None
    if context.name == "h264":  # header: 1 bit 0, 2 bits importance for other frames, 5 bits type
        return NalFormat((extradata[4] & 3) + 1, 1, frozenset({1}), frozenset({6}), frozenset({9}))
    if extradata[21] >> 3 & 7 != ONE_TEMPORAL_LAYER:  # frames of a higher layer may need an unreferenced one
        return None
    unreferenced = frozenset(2 * kind for kind in range(0, 16, 2))  # header: 1 bit 0, 6 bits type, 9 bits layer
    return NalFormat((extradata[21] & 3) + 1, 2, unreferenced, frozenset({78, 80}), frozenset({70}))


class FrameSkipper:
    """Decides for each packet of a stream, in order of decoding, whether its frame need not be decoded.

    A frame is left out if one with a later time stamp is displayed when the next frame is wanted, so it never depends
    on packets that have not come yet.

    Args:
        units (`NalFormat`): Result of `nal_format`.
        next_wanted (`Callable`): Returns the first time at or after a time, in seconds, at which a frame is wanted.
        reorder_depth (`int`): By how many frames the decoder expects to return frames late, so that it can sort them.
    """

    def __init__(self, units: NalFormat, next_wanted: Callable[[float], float], reorder_depth: int):
        self._units = units
        self._next_wanted = next_wanted
        self._reorder_depth = reorder_depth
        self._times: list[float] = []  # of the last packets, ascending
        self._first_time: float | None = None  # of the first packet
        self._decoded_time: float | None = None  # of the last decoded frame
        self._has_skipped = False
        self._is_over = False

    def can_skip(self, packet: Any, time: float) -> bool:
        """Whether a packet's frame, displayed from `time` on, need not be decoded."""
        if self._is_over or packet.is_discard or packet.is_corrupt:
            return False
        # Decoders leave out a frame before the first one if it needs others before it.
        self._first_time = time if self._first_time is None else self._first_time
        if time < self._first_time:
            return False
        insort(self._times, time)
        if len(self._times) > MAX_TIMES:
            del self._times[: MAX_TIMES // 2]
        later = bisect_right(self._times, time + MARGIN_SECONDS)
        if later == len(self._times):
            return False
        # The first decoded frame tells whether the video is interlaced.
        is_covered = self._times[later] <= self._next_wanted(time - MARGIN_SECONDS) - MARGIN_SECONDS
        can_skip = is_covered and self._decoded_time is not None and self._units.is_unreferenced(packet)
        self._has_skipped |= can_skip
        return can_skip

    def is_wrong(self, decoded: list[tuple[float | None, Any]], reorder_depth: int) -> bool:
        """Whether frames that were skipped may have been needed; no more are skipped then, nor in such a video.

        Args:
            decoded (`list[tuple[float | None, av.VideoFrame]]`): The next decoded frames, with their times.
            reorder_depth (`int`): As above, after that.
        """
        # A field may be skipped without the other one, and a decoder that finds that it must sort more frames than it
        # expected has lost one of them: another one than without skipping. Where skipped frames come among others is
        # known only if all have time stamps, in the order in which they are displayed.
        self._is_over |= reorder_depth != self._reorder_depth
        for time, frame in decoded:
            previous, self._decoded_time = self._decoded_time, time
            is_in_order = time is not None and (previous is None or time >= previous)
            self._is_over |= frame.interlaced_frame or not is_in_order
        return self._is_over and self._has_skipped
