"""Repairs the time stamps of packets that jump, do not increase or are damaged, before anything is decoded.

The packets come in the order of the file. The line of a stream is the time at which its next packet is expected.
Packets that are not on their stream's line are treated as follows:

| the stamps | the repair |
|---|---|
| a few packets off the line, then the line goes on | their stamps are ignored: the packets follow the one before |
| a step that one stream makes alone, forward or back | taken out: the stream continues from its position before the step |
| a step back that all streams make (joined recordings) | taken out: the second recording follows the first |
| a step of more than 10 s forward that all streams make | taken out where the container's stamps may jump (mpegts, mpeg, ogg), where the stamps come back later, and beyond the declared end; else a real gap, which stays |
| a pause of one stream while another one goes on | stays: an image that does not change, audio that was switched off |
| up to 10 s forward | stays: a gap |
| many packets in a row with nearly the same stamp | ignored: the packets follow each other at the rate they had before |
| a stream that starts more than 10 s after all the others have ended | starts where they do |

What happens is decided from the packets that follow. So packets are read ahead, but only where a stamp does not fit, and
never more than `MAX_AHEAD_BYTES`. Each repair is one warning.
"""  # noqa: E501

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

# FFmpeg's own threshold (-dts_delta_threshold): a longer step is a jump of the clock and not a pause.
JUMP_SECONDS = 10.0
# Stamps that go back this far start over; frames that are stored out of order go back by less. Their stamps of
# decoding never go back, so less is enough where there are such.
RESTART_SECONDS = 1.0
DECODING_RESTART_SECONDS = 0.5
# A shared gap above this is damage in every container.
MAX_GAP_SECONDS = 86_400.0
# How far apart a file stores audio and video of the same time, in seconds of the recording.
SKEW_SECONDS = 5.0
# So many packets in a row may be off the line before that counts as a step.
MAX_OUTLIERS = 8
# Codecs store a frame at most this many packets before its turn in display order.
MAX_REORDERED = 16
# So many packets in a row with nearly the same stamp stand still. Muxers write that after a stamp that is too high. In
# mpegts only every 14th audio packet has a stamp; FFmpeg computes the stamps between them.
MIN_STUCK = {"video": 24, "audio": 64}
STUCK_SECONDS = 0.002
# So many packets after a damaged stamp FFmpeg may give computed stamps of decoding.
MAX_DECODED_AHEAD = 4
# How far is read ahead to decide.
MAX_AHEAD_BYTES = 2**26
MAX_AHEAD_PACKETS = 4096
MAX_AHEAD_PACKETS_AT_START = 512


@dataclass(eq=False, slots=True)
class _Stamped:
    packet: Any
    index: int  # of the stream
    pts: float | None  # seconds; that of decoding where there is no other
    dts: float | None
    duration: float  # seconds that the packet declares; 0 where it does not

    @property
    def stamp(self) -> float:
        """`pts` of a packet that has one. The others are left out before anything is compared."""
        assert self.pts is not None
        return self.pts


@dataclass(slots=True)
class _Line:
    """State of one stream: its last time stamp and the next expected one, in seconds after the repair."""

    kind: str
    has_begun: bool = False
    fixed_interval: float = 0.0  # of a codec whose packets all last equally long
    shift: float = 0.0  # what is added to the stamps of the file
    latest: float = -math.inf  # highest stamp since the start or the last change of `shift`
    end: float = 0.0  # where the next packet is expected
    dts: float | None = None
    interval: float = 0.0  # between two packets; 0 while not known
    longest: float = 0.0  # longest step forward so far
    begin: float = 0.0
    raw_dts: float | None = None  # last stamp of decoding in the file
    run_begin: float = 0.0  # stamp of decoding of the first packet after the last irregular step
    run_length: int = 0  # packets since then
    stuck_until: float | None = None  # highest of the stamps that stand still, as in the file
    stuck_step: float = 0.0
    earlier_shifts: set[float] = field(default_factory=set)

    @property
    def tolerance(self) -> float:
        """How far a packet may come after its expected time before the following ones are looked at.

        Wide for video, because packets are in the order of decoding: up to 16 of them come before their turn.
        """
        return min(JUMP_SECONDS, max(1.0 if self.kind == "video" else 0.1, 4 * self.interval))

    @property
    def backward_tolerance(self) -> float:
        return max(RESTART_SECONDS, 4 * self.interval)

    def is_back(self, stamped: _Stamped) -> bool:
        """Whether a packet's stamp is before those that came already."""
        before = self.latest - (stamped.stamp + self.shift)
        if before > self.backward_tolerance:
            return True
        if stamped.dts is None or self.dts is None or before <= DECODING_RESTART_SECONDS:
            return False
        return self.dts - (stamped.dts + self.shift) > DECODING_RESTART_SECONDS

    def accept(self, stamped: _Stamped) -> None:
        time = stamped.stamp + self.shift
        dts = None if stamped.dts is None else stamped.dts + self.shift
        if not self.has_begun:
            self.begin = time
        if self.latest > -math.inf:
            self.longest = max(self.longest, time - self.end)
        # In mp4 a packet's duration is the time until the next one, so before a gap it is no measure.
        if 0 < stamped.duration <= 1 and stamped.duration > self.interval / 8:
            self.interval = stamped.duration
        elif dts is not None and self.dts is not None and self.interval / 8 < dts - self.dts <= JUMP_SECONDS:
            self.interval = dts - self.dts
        if dts is not None and self.dts is not None and 0 < dts - self.dts < 2 * self.interval:
            self.run_length += 1
        elif dts is not None:
            self.run_begin, self.run_length = dts, 0
        self.latest = max(self.latest, time)
        self.dts, self.has_begun = dts, True
        self.end = max(self.end, time + self.interval) if self.latest > time else time + self.interval

    @property
    def mean_interval(self) -> float:
        """Interval without the rounding of a single packet's stamp, which would add up over many packets."""
        if self.fixed_interval or self.dts is None or self.run_length < MIN_STUCK["video"]:
            return self.interval
        mean = (self.dts - self.run_begin) / self.run_length
        return mean if abs(mean - self.interval) <= 0.1 * self.interval else self.interval

    def skip(self) -> None:
        """Moves the line on by one packet whose stamp is not used."""
        interval = self.mean_interval
        self.end += interval
        self.run_length += 1
        self.latest += interval
        if self.dts is not None:
            self.dts += interval

    def stand_still(self, packets: list[_Stamped]) -> bool:
        """Whether packets in a row, all with stamps of decoding, have nearly the same one."""
        stamps = [stamped.dts for stamped in packets if stamped.dts is not None]
        if self.kind == "audio":
            # How long the audio of a packet lasts is known. Not from the packets before: Vorbis has long and short
            # ones, 8 to 1 and more, in runs of any length.
            lasting = sum(self.fixed_interval or stamped.duration or self.interval for stamped in packets[:-1])
            return max(stamps) - min(stamps) < lasting / 4
        # Frames may follow each other quickly after a pause, but not like this.
        return all(0 <= after - before <= STUCK_SECONDS for before, after in itertools.pairwise(stamps))

    def move(self, shift: float) -> None:
        self.earlier_shifts.add(self.shift)
        self.shift = shift
        self.latest = -math.inf


def _nominal_interval(stream: Any) -> float:
    """Returns the seconds of audio per packet if the codec has a fixed packet size, else 0."""
    context = stream.codec_context
    if stream.type != "audio" or not context.frame_size or not context.sample_rate:
        return 0.0
    return context.frame_size / context.sample_rate


class TimeStamps:
    """The packets of a recording with repaired time stamps.

    Args:
        read (`Callable[[], av.Packet | None]`): Gives the next packet of the file, `None` at its end.
        streams (`list[av.stream.Stream]`): The streams that `read` gives packets of.
        warn (`Callable[[str], None]`): Told of each repair.
        may_jump (`bool`): Whether the container's time stamps may jump (FFmpeg's `TS_DISCONT`).
        declared_end (`float`, *optional*): Last time stamp in seconds that the container declares, if it does.
    """

    def __init__(
        self,
        read: Callable[[], Any | None],
        streams: list[Any],
        warn: Callable[[str], None],
        may_jump: bool,
        declared_end: float | None = None,
    ):
        self._read = read
        self._warn = warn
        self._may_jump = may_jump
        self._declared_end = declared_end
        self._lines = {}
        self._time_bases: dict[int, float] = {}  # making a fraction of each packet's would take long
        for stream in streams:
            interval = _nominal_interval(stream)
            self._lines[stream.index] = _Line(stream.type, interval=interval, fixed_interval=interval)
        self._ahead: deque[_Stamped] = deque()  # read but not yet given out, in the order of the file
        self._ahead_of: dict[int, deque[_Stamped]] = {index: deque() for index in self._lines}
        self._ahead_bytes = 0
        self._exhausted = False

    def next_packet(self) -> Any | None:
        """The next packet in the order of the file, `None` at its end."""
        if not self._ahead and not self._read_ahead():
            return None
        stamped = self._ahead.popleft()
        self._ahead_of[stamped.index].popleft()
        self._ahead_bytes -= stamped.packet.size
        self._set_duration(stamped)
        if stamped.pts is None:
            self._lines[stamped.index].skip()
        else:
            self._place(stamped)
        return stamped.packet

    def _set_duration(self, stamped: _Stamped) -> None:
        """Gives a frame its duration where neither it nor the frames that follow say when they are displayed.

        Program streams (mpeg) have one stamp per PES packet, which may contain any number of frames. FFmpeg computes
        the stamps between from the codec's frame rate, and leaves them out if the codec declares none.
        """
        line = self._lines[stamped.index]
        if line.kind != "video" or stamped.duration:
            return
        following = self._following(stamped.index)
        if stamped.pts is not None:
            if stamped.dts is None or next(following, stamped).pts is not None:
                return
            steps = (((later.dts - stamped.dts) / n) for n, later in enumerate(following, 2) if later.dts is not None)
            interval = next(steps, 0.0)
            # A longer one contains a jump or lost frames, which are repaired where the next stamp comes.
            if 0 < interval <= min(1.0, 1.5 * line.interval or 1.0):
                line.interval = interval
        stamped.duration = line.interval
        stamped.packet.duration = round(line.interval / float(stamped.packet.time_base))

    def start_times(self) -> dict[int, float]:
        """First time stamp of each stream in seconds, after the repair of the first packets.

        To be called before the first packet is taken. Streams that do not appear early in the file are left out.
        """
        starts = {}
        for index in self._lines:
            first = next(self._following(index, MAX_AHEAD_PACKETS_AT_START), None)
            if first is not None and first.pts is not None:
                self._repair_start(first)
                starts[index] = first.pts
        return starts

    def _read_ahead(self, max_packets: int = MAX_AHEAD_PACKETS) -> bool:
        """Reads one more packet; `False` at the end of the file or when enough is waiting."""
        if self._exhausted or len(self._ahead) >= max_packets or self._ahead_bytes > MAX_AHEAD_BYTES:
            return False
        packet = self._read()
        if packet is None:
            self._exhausted = True
            return False
        index = packet.stream.index
        base = self._time_bases.get(index)
        if base is None:
            base = self._time_bases[index] = float(packet.time_base)
        dts = None if packet.dts is None else packet.dts * base
        pts = dts if packet.pts is None else packet.pts * base
        stamped = _Stamped(packet, index, pts, dts, (packet.duration or 0) * base)
        self._ahead.append(stamped)
        self._ahead_of[stamped.index].append(stamped)
        self._ahead_bytes += packet.size
        return True

    def _following(self, index: int, max_packets: int = MAX_AHEAD_PACKETS) -> Iterator[_Stamped]:
        """The packets of a stream that come next, read as far as they are asked for."""
        waiting = self._ahead_of[index]
        position = 0
        while position < len(waiting) or self._read_ahead(max_packets):
            if position < len(waiting):
                yield waiting[position]
                position += 1

    def _next_stamped(self, index: int, count: int, max_packets: int = MAX_AHEAD_PACKETS) -> list[_Stamped]:
        """Up to `count` of the packets of a stream that come next and have a time stamp."""
        found = []
        for stamped in self._following(index, max_packets):
            if stamped.pts is not None:
                found.append(stamped)
                if len(found) == count:
                    break
        return found

    def _place(self, stamped: _Stamped) -> None:
        """Gives a packet its time, or none, and moves its stream's line on."""
        line = self._lines[stamped.index]
        if not line.has_begun:
            self._repair_start(stamped)
            self._begin(line, stamped)
        elif self._is_stuck(line, stamped):
            self._ignore(line, stamped)
        elif line.is_back(stamped) or stamped.stamp + line.shift > line.end + line.tolerance:
            num_before = self._num_before_pause(line, stamped)
            if num_before and self._stays_early(line, stamped, num_before):
                self._write(stamped, line.shift)
                return
            if num_before:  # the decoder puts it in its place
                self._ignore(line, stamped)
                return
            self._repair(line, stamped)
        if stamped.pts is None:
            line.skip()
            return
        line.accept(stamped)
        self._write(stamped, line.shift)

    @staticmethod
    def _ignore(line: _Line, stamped: _Stamped) -> None:
        """Removes a packet's stamps. Its decoded content then follows the previous content, by its duration."""
        stamped.pts = stamped.dts = stamped.packet.pts = stamped.packet.dts = None
        if line.interval:
            # In ticks from where it begins to where it ends, so that roundings do not add up.
            base, end = float(stamped.packet.time_base), line.end + line.mean_interval
            stamped.packet.duration = max(1, round(end / base) - round(line.end / base))

    @staticmethod
    def _write(stamped: _Stamped, shift: float) -> None:
        packet = stamped.packet
        if stamped.dts is not None and abs(stamped.dts - stamped.stamp) > JUMP_SECONDS:
            packet.dts = None  # FFmpeg computed it from other packets' stamps
        if shift:
            ticks = round(shift / float(packet.time_base))
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks

    # -- the beginning of a stream: nothing tells yet where its packets are expected

    def _repair_start(self, first: _Stamped) -> None:
        """Gives a stream's first packet the stamp that the following ones imply, where its own is far from them."""
        following = self._next_stamped(first.index, 3, MAX_AHEAD_PACKETS_AT_START)
        following = [stamped for stamped in following if stamped is not first][:2]
        if len(following) < 2:
            return
        near, far = sorted(stamped.stamp for stamped in following)
        duration = first.duration if 0 < first.duration <= 1 else 0.0
        tolerance = max(RESTART_SECONDS, 4 * (far - near))
        is_late = first.stamp - far > tolerance
        if not is_late and not (near - first.stamp > max(JUMP_SECONDS, tolerance) and self._starts_alone(first, near)):
            return
        self._warn(
            f"the first {self._lines[first.index].kind} packet has a time stamp that is off by "
            f"{first.stamp - near:+.2f} s. It is ignored."
        )
        first.pts = first.dts = near - duration
        first.packet.pts = first.packet.dts = round(first.stamp / float(first.packet.time_base))

    def _starts_alone(self, first: _Stamped, near: float) -> bool:
        """Whether no other stream has anything before the time at which this one goes on after its first packet."""
        others = [index for index in self._lines if index != first.index]
        starts = [self._next_stamped(index, 1, MAX_AHEAD_PACKETS_AT_START) for index in others]
        known = [start[0].stamp + self._lines[index].shift for index, start in zip(others, starts) if start]
        if not known:  # one frame and a long pause are a screen recording; audio does not begin like that
            return self._lines[first.index].kind == "audio"
        return all(start > near - JUMP_SECONDS for start in known)

    def _begin(self, line: _Line, first: _Stamped) -> None:
        """Lets a stream begin with the others if it would begin long after all that they have."""
        others = [(index, other) for index, other in self._lines.items() if other is not line and other.has_begun]
        if not others or first.stamp <= max(other.end for _, other in others) + JUMP_SECONDS:
            return
        coming = [item.stamp + other.shift for index, other in others for item in self._next_stamped(index, 1)]
        if any(time > first.stamp - JUMP_SECONDS for time in coming):
            return
        begin = min(other.begin for _, other in others)
        self._warn(
            f"the {line.kind} begins {first.stamp - begin:.2f} s late, where nothing else is. It is moved back."
        )
        line.move(begin - first.stamp)

    # -- later packets

    def _is_stuck(self, line: _Line, stamped: _Stamped) -> bool:
        """Whether the stream's stamps stand still, and with them that of this packet."""
        dts, before, line.raw_dts = stamped.dts, line.raw_dts, stamped.dts
        if dts is None or before is None or not line.interval:
            return False
        if line.stuck_until is not None:
            if dts <= line.stuck_until + 4 * line.stuck_step:
                line.stuck_until = max(line.stuck_until, dts)
                return True
            line.stuck_until = None
        elif -JUMP_SECONDS < dts - before < line.interval / 2:
            packets = [stamped, *self._next_stamped(stamped.index, MIN_STUCK[line.kind] - 1)]
            stamps = [item.dts for item in packets if item.dts is not None]
            if len(stamps) == len(packets) > 2 and line.stand_still(packets):
                self._begin_stuck(line, max(stamps))
                return True
        return False

    def _repair(self, line: _Line, stamped: _Stamped) -> None:
        """Repairs a packet that is not where it is expected: ignores its stamp, shifts the line, or keeps both."""
        time = stamped.stamp + line.shift
        others = [other for other in self._lines.values() if other is not line and other.has_begun]
        # A pause: another stream went on meanwhile.
        is_covered = time > line.end and any(other.end > time - line.tolerance for other in others)
        following = self._next_stamped(stamped.index, 2 if is_covered else MAX_OUTLIERS)
        num_outliers = self._count_outliers(line, time, following)
        if num_outliers:
            for outlier in [stamped, *following[: num_outliers - 1]]:
                self._ignore(line, outlier)
            packets = "packet has a time stamp" if num_outliers == 1 else f"{num_outliers} packets have time stamps"
            self._warn(f"at {line.end:.2f} s {line.kind} {packets} off by {time - line.end:+.2f} s. Ignored.")
            return
        if time > line.end and not is_covered and self._is_followed_by_stuck(line, stamped):
            self._ignore(line, stamped)
            return
        if not line.is_back(stamped) and (is_covered or time - line.end <= max(JUMP_SECONDS, 3 * line.interval)):
            return
        if not line.is_back(stamped) and self._is_pause(line, stamped):
            return
        if self._take_over_shift(line, stamped, others):
            return
        self._repair_step(line, stamped, following)

    def _is_followed_by_stuck(self, line: _Line, stamped: _Stamped) -> bool:
        """Whether the stamps after this packet stand still: muxers write that after a stamp that is too high."""
        count = MIN_STUCK[line.kind]
        # If a container has no stamps of decoding (mkv), FFmpeg computes a few from the previous frames.
        stuck = self._next_stamped(stamped.index, MAX_DECODED_AHEAD + count)[MAX_DECODED_AHEAD:]
        stamps = [item.dts for item in stuck if item.dts is not None]
        if len(stamps) < count or not line.stand_still(stuck):
            return False
        self._begin_stuck(line, max(stamps))
        return True

    def _begin_stuck(self, line: _Line, highest: float) -> None:
        line.stuck_until = highest
        line.stuck_step = line.interval if line.kind == "audio" else STUCK_SECONDS
        self._warn(f"from {line.end:.2f} s on the {line.kind} time stamps stand still. They are ignored.")

    def _num_before_pause(self, line: _Line, stamped: _Stamped) -> int:
        """Number of packets of a stream until its pause, if this packet is a frame from after the pause.

        Codecs store some frames before others that are displayed earlier (B-frames). 0 for any other packet.
        """
        time = stamped.stamp + line.shift
        if line.kind != "video" or time <= line.end:
            return 0
        following = [item.stamp + line.shift for item in self._next_stamped(stamped.index, MAX_OUTLIERS)]
        is_back = [after < time - line.tolerance for after in following]
        is_near = [abs(after - time) <= JUMP_SECONDS for after in following]
        if not any(is_back):
            return 0
        # Once the frames from before the pause have come, the stream stays behind it. Damaged stamps do not.
        num_last = is_back[::-1].index(True)
        if time - line.end > JUMP_SECONDS:
            is_sorted = all(back or near for back, near in zip(is_back, is_near))
            if not is_sorted or num_last < (1 if self._exhausted else 2):
                return 0
        return len(following) - num_last

    def _stays_early(self, line: _Line, stamped: _Stamped, num_before: int) -> bool:
        """Whether `_repair` will keep the pause that follows the packets stored after this frame."""
        time = stamped.stamp + line.shift
        others = [other for other in self._lines.values() if other is not line and other.has_begun]
        if time - line.end <= JUMP_SECONDS or any(other.end > time - line.tolerance for other in others):
            return True
        if any(other.shift != line.shift for other in others):  # they have made the step, and it was taken out
            return False
        if self._is_pause(line, stamped):
            return True
        if self._shared_step(line, time - line.end) is None or self._may_jump:
            return False
        return self._is_gap(line, stamped, self._next_stamped(stamped.index, 2), num_before)

    @staticmethod
    def _count_outliers(line: _Line, time: float, following: list[_Stamped]) -> int:
        """How many packets, this one included, are off the line before it goes on; 0 if it does not."""
        previous = time
        for count, stamped in enumerate(following, 1):
            next_time = stamped.stamp + line.shift
            if line.latest < time and next_time < previous - line.tolerance:  # came back from above
                return count if next_time >= line.latest - line.backward_tolerance else 0
            if line.latest > time and next_time > previous + line.tolerance:  # from below
                fits = line.latest - line.backward_tolerance <= next_time <= line.end + JUMP_SECONDS
                return count if fits else 0
            previous = next_time
        return 0

    def _is_pause(self, line: _Line, stamped: _Stamped) -> bool:
        """Whether another stream goes on until this packet's time while this one has no more packets.

        Up to 16 frames after a pause are stored before it, if they are needed to decode others (B-frames).
        """
        time = stamped.stamp + line.shift
        own = self._ahead_of[stamped.index]
        for index, other in self._lines.items():
            if other is line or not other.has_begun:
                continue
            end = other.end
            for item in self._following(index):
                if item.pts is None:
                    continue
                if len(own) >= MAX_REORDERED or item.stamp + other.shift > end + JUMP_SECONDS:
                    break
                end = max(end, item.stamp + other.shift)
                if end >= time - line.tolerance:
                    return True
            else:
                if not self._exhausted and len(own) < MAX_REORDERED:
                    return True
        return False

    def _take_over_shift(self, line: _Line, stamped: _Stamped, others: list[_Line]) -> bool:
        """Takes the shift of a stream that has already made the same step, or this stream's earlier shift."""
        for other in others:
            if other.shift != line.shift:
                time = stamped.stamp + other.shift
                if abs(time - line.end) <= JUMP_SECONDS or abs(time - other.end) <= JUMP_SECONDS / 2:
                    line.move(other.shift)
                    return True
        for shift in line.earlier_shifts:
            if abs(stamped.stamp + shift - line.end) <= RESTART_SECONDS:
                self._warn_of_step(line, stamped.stamp + line.shift - line.end)
                line.move(shift)
                return True
        return False

    def _repair_step(self, line: _Line, stamped: _Stamped, following: list[_Stamped]) -> None:
        step = stamped.stamp + line.shift - line.end
        joins = self._shared_step(line, step)
        if joins is None:
            shift = self._shift_to_go_on(line, stamped, following)
        elif step > 0 and not self._may_jump and self._is_gap(line, stamped, following):
            return
        else:
            # What follows begins where the last stream of what came before has ended. A step of another size is
            # damage of its own.
            own = self._shift_to_go_on(line, stamped, following)
            shift = max([own, *(join for join in joins if abs(join - own) <= JUMP_SECONDS)])
        self._warn_of_step(line, step)
        line.move(shift)

    def _shared_step(self, line: _Line, step: float) -> list[float] | None:
        """The shift with which each other stream that makes the step too would go on; `None` if there is none.

        A stream that has ended does not count.
        """
        joins, is_alone = [], False
        for index, other in self._lines.items():
            if other is line or not other.has_begun or other.end < line.end - SKEW_SECONDS:
                continue
            before = replace(other)  # goes on with the packets that come, while `other` waits for them
            for stamped in self._following(index):
                if stamped.pts is None:
                    continue
                time = stamped.stamp + before.shift
                if before.is_back(stamped) if step < 0 else time - before.end > step / 2:
                    joins.append(self._shift_to_go_on(before, stamped, []))
                    break
                before.accept(stamped)
                if before.end > line.end + SKEW_SECONDS:
                    is_alone = True
                    break
            else:
                is_alone = True
        return None if is_alone and not joins else joins

    def _is_gap(self, line: _Line, stamped: _Stamped, following: list[_Stamped], num_before: int = 0) -> bool:
        """Whether a shared step forward is a real gap, which stays. `num_before` packets still come before it."""
        time = stamped.stamp + line.shift
        if time - line.end > MAX_GAP_SECONDS:
            return False
        if self._declared_end is not None and time > self._declared_end + JUMP_SECONDS:
            return False
        if len(following) < 2 and self._exhausted and line.longest < RESTART_SECONDS and len(self._lines) == 1:
            return False  # the last packet after an even stream
        ahead = [later for later in self._following(stamped.index) if later.pts is not None][num_before:]
        if any(later.stamp + line.shift < time - JUMP_SECONDS for later in ahead):
            return False
        # Most muxers do not write stamps of decoding that go back: stamps that came back stand still instead.
        decoded = [later for later in ahead if later.dts is not None]
        count = MIN_STUCK[line.kind]
        windows = (decoded[start : start + count] for start in range(len(decoded) - count + 1))
        return not any(line.stand_still(window) for window in windows)

    @staticmethod
    def _shift_to_go_on(line: _Line, stamped: _Stamped, following: list[_Stamped]) -> float:
        """Returns what to add to the stamps so that the stream continues from its position before the step."""
        if line.dts is not None and stamped.dts is not None and line.interval:
            # Exact also among frames that are stored out of order; only where both kinds of stamps make the step.
            shift = line.dts + line.interval - stamped.dts
            if abs(shift - (line.end - stamped.stamp)) <= 1.0 + 4 * line.interval:
                return shift
        return line.end - min([stamped.stamp, *(item.stamp for item in following)])

    def _warn_of_step(self, line: _Line, step: float) -> None:
        self._warn(f"at {line.end:.2f} s the {line.kind} time stamps jump by {step:+.2f} s. The jump is taken out.")
