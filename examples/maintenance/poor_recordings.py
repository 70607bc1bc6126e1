"""Copies clips with quieter and more compressed audio, similar to users' recordings.

The synthetic clips are all loud and have AAC audio of one bit rate. A model trained only on them finds no event in a
recording that is 26 dB quieter, or whose codec replaces quiet parts with digital silence.
"""

import os
import shutil
from functools import partial
from pathlib import Path

import av
import numpy as np

from ave_clip.data.source import SPLIT_FILES
from ave_clip.data.storage import VIDEO_FOLDER
from ave_clip.files import new_folder
from ave_clip.programs import process_pool

POOR_SHARE = 0.6  # fraction of clips that are changed
SMALLEST_GAIN = -36.0  # dB; the gain is uniform from here to 0
CODECS = (("aac", 48_000), ("aac", 96_000), ("libmp3lame", 64_000), ("libmp3lame", 128_000), ("flac", None))


def make_poor_recordings(
    source: Path, target: Path, seed: int, splits: tuple[str, ...] = ("train", "validation")
) -> None:
    """Copies a data set in AVE's layout, with the audio of some clips made quieter and encoded again.

    Args:
        source (`Path`): The data set.
        target (`Path`): The new folder.
        seed (`int`): Decides which clips are changed, and how.
        splits (`tuple[str, ...]`): Splits with changed clips. The other clips are copied unchanged.
    """
    lists = [(source / SPLIT_FILES[split]).read_text(encoding="utf-8").splitlines() for split in splits]
    names = [f"{row.split('&')[1]}.mp4" for rows in lists for row in rows]
    with new_folder(target, overwrite=False) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        convert = partial(_make_poor, source / VIDEO_FOLDER, folder / VIDEO_FOLDER, seed)
        with process_pool(os.cpu_count() or 1) as pool:
            list(pool.map(convert, range(len(names)), names, chunksize=16))


def _make_poor(source: Path, target: Path, seed: int, index: int, name: str) -> None:
    """Chooses a clip's gain and codec at random, and writes the clip with them."""
    rng = np.random.default_rng([seed, index])
    gain, (codec, bit_rate) = rng.uniform(SMALLEST_GAIN, 0), CODECS[rng.integers(len(CODECS))]
    if rng.uniform() < POOR_SHARE:
        change_sound(source / name, target / name, gain, codec, bit_rate)


def change_sound(source: Path, target: Path, gain: float, codec: str, bit_rate: int | None) -> None:
    """Writes a video with unchanged frames, and with its audio amplified by `gain` (dB) and encoded by `codec`."""
    with av.open(str(source)) as recorded, av.open(str(target), "w", format="mp4") as container:
        pictures, sound = recorded.streams.video[0], recorded.streams.audio[0]
        copied = container.add_stream_from_template(pictures)
        encoder = container.add_stream(codec, rate=sound.rate, layout=sound.layout.name)
        if bit_rate:
            encoder.bit_rate = bit_rate
        for packet in recorded.demux(pictures, sound):
            if packet.stream is sound:
                for frame in packet.decode():
                    quieter = av.AudioFrame.from_ndarray(
                        frame.to_ndarray() * np.float32(10 ** (gain / 20)), frame.format.name, frame.layout.name
                    )
                    quieter.sample_rate, quieter.pts, quieter.time_base = frame.sample_rate, frame.pts, frame.time_base
                    container.mux(encoder.encode(quieter))
            elif packet.dts is not None:  # the last packet is empty
                packet.stream = copied
                container.mux(packet)
        container.mux(encoder.encode(None))
