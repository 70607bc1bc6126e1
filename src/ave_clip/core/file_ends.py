"""Tells from the bytes of a file whether its end is missing, for formats whose packets do not show it.

| format | what shows that the end is missing |
|---|---|
| flv, wmv | the file is shorter than its header declares |
| ts | it does not consist of whole packets of 188 bytes (192 or 204 in some recorders) |
| mpg, vob | the last packet is longer than what is left of the file |
| ogg | the last page is longer than what is left of the file |

FFmpeg reads the end of such a file as if it were the end of the recording.
"""

import os
import re
import struct
from typing import Any

# More than the largest packet of mpg (65,541 bytes) and the largest page of ogg (65,307).
TAIL_BYTES = 2**17
HEADER_BYTES = 2**16
TS_PACKET_BYTES = (188, 192, 204)
# ASF's "File Properties Object": GUID, its size, file id, file size, two numbers, two durations, preroll, flags.
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_IS_BROADCAST = 1


def declared_bytes(file: Any, format_names: set[str]) -> int | None:
    """Number of bytes that a file's header declares; `None` if it does not."""
    if not format_names & {"flv", "asf"}:
        return None
    header = _read(file, 0, HEADER_BYTES)
    if "flv" in format_names:
        # In the `onMetaData` tag: the field's name, type 0 (a number), and the number as a big-endian float64.
        match = re.search(rb"filesize\x00(.{8})", header, re.DOTALL)
        return int(struct.unpack(">d", match.group(1))[0]) if match else None
    start = header.find(ASF_PROPERTIES)
    if start < 0 or len(header) < start + 92:
        return None
    size, flags = struct.unpack_from("<Q", header, start + 40)[0], struct.unpack_from("<I", header, start + 88)[0]
    return None if flags & ASF_IS_BROADCAST else size


def ends_within_packet(file: Any, format_names: set[str]) -> bool:
    """Whether a transport stream, program stream or ogg file ends in the middle of a packet.

    Args:
        file (binary file object): It can seek, and is put back to its position.
        format_names (`set[str]`): FFmpeg's names of its format.
    """
    if not format_names & {"mpegts", "mpeg", "ogg"}:
        return False
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    if "mpegts" in format_names:
        return _has_part_of_ts_packet(_read(file, 0, HEADER_BYTES), size)
    tail = _read(file, max(0, size - TAIL_BYTES), TAIL_BYTES)
    return _ends_within_page(tail) if "ogg" in format_names else _ends_within_pack(tail)


def _read(file: Any, start: int, count: int) -> bytes:
    position = file.tell()
    file.seek(start)
    content = file.read(count)
    file.seek(position)
    return content


def _has_part_of_ts_packet(header: bytes, size: int) -> bool:
    for length in TS_PACKET_BYTES:
        for offset in (0, 4):  # where each packet has a time stamp of 4 bytes before it
            if len(header) >= 8 * length and all(header[offset + n * length] == 0x47 for n in range(8)):
                return size % length != 0
    return False


def _ends_within_page(tail: bytes) -> bool:
    start = tail.rfind(b"OggS\x00")
    if start < 0:
        return False
    table = tail[start + 27 : start + 27 + tail[start + 26]] if len(tail) > start + 26 else b""
    is_whole = len(tail) > start + 26 and len(table) == tail[start + 26]
    return not is_whole or start + 27 + len(table) + sum(table) > len(tail)


def _ends_within_pack(tail: bytes) -> bool:
    """Follows the packets from the last pack header on: start code, stream id, and from 0xBB on their length."""
    position = tail.rfind(b"\x00\x00\x01\xba")
    if position < 0:
        return False
    # MPEG-2's pack header says how many bytes of stuffing it ends with.
    is_mpeg2 = len(tail) > position + 13 and tail[position + 4] >> 6 == 1
    position += 14 + (tail[position + 13] & 7) if is_mpeg2 else 12
    while position + 6 <= len(tail) and tail[position : position + 3] == b"\x00\x00\x01":
        if tail[position + 3] < 0xBB:  # the end code
            return False
        position += 6 + int.from_bytes(tail[position + 4 : position + 6], "big")
    return position > len(tail)
