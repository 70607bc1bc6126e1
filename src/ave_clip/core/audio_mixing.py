"""Mixes audio of any channel layout to mono, without losing a channel.

FFmpeg's mix is used if it keeps every channel but the low-frequency ones (mono, stereo, 5.1, 7.1 ...). FFmpeg has no
mix for ambisonic and user-defined layouts, and leaves channels out of some large ones (7.1.4, 22.2, hexadecagonal): a
simple rule is used for these, see `mixing_weights`. Channels that cancel each other out are not mixed, see
`MonoMixer`.
"""

import functools
from typing import Any

import numpy as np

# Maximum number of channels that libswresample converts.
MAX_CHANNELS = 64
MAX_PLANES = 7
LOW_FREQUENCY_CHANNELS = {"LFE", "LFE2"}
# Length of the blocks in which cancellation is detected: unrelated tones cancel by chance for shorter times only.
BLOCK_SECONDS = 0.5
# A mix has cancelled out if its energy is below this fraction (-20 dB) of the energy that unrelated channels would
# give. 199 parts of 200 are then out of phase, which does not occur in recordings with a centre, however wide.
CANCELLATION_RATIO = 0.01
# Weight, in this comparison, of a channel that the mix leaves out (low frequencies): it is used if all other channels
# are silent.
SILENT_WEIGHT = 1e-3
CROSSFADE_SECONDS = 0.01


def take_channel_names(codec_context: Any) -> tuple[str, ...]:
    """Returns the names of the channels that a container declares, in order, and makes decoding them safe.

    Args:
        codec_context (`av.AudioCodecContext`): Codec of a stream that was not decoded or inspected before.

    Returns:
        `tuple[str, ...]`: FFmpeg's names such as `"FL"`; `"NONE"` for an unknown position.
    """
    from av import AudioLayout

    # PyAV up to 18.1 copies layouts bit by bit. In layouts of custom order (most `chan` atoms of mov, caf) the copies
    # share one list of channels, and each of them frees it, which crashes the process. So this first copy keeps the
    # list, and the decoder gets a layout without a list, which its frames inherit.
    layout = codec_context.layout
    names = tuple(channel.name for channel in layout.channels)
    # 22.2 has FFmpeg's positions in FFmpeg's order: layouts whose channels follow it need no list.
    positions = iter(channel.name for channel in AudioLayout("22.2").channels)
    needs_list = " channels (" in layout.name and not all(name in positions for name in names)
    if names:  # an empty stream has no names
        codec_context.layout = AudioLayout(f"{len(names)} channels" if needs_list else layout.name)
    return names


def mixing_weights(layout: str, names: tuple[str, ...], sample_format: str) -> np.ndarray:
    """Returns the weight of each channel in the mono mix.

    Args:
        layout (`str`): FFmpeg's name of the frames' layout.
        names (`tuple[str, ...]`): The channels, in order. If the layout is unspecified, they may come from the
            container.
        sample_format (`str`): `"flt"` or `"dbl"`.

    Returns:
        `np.ndarray` of shape `(num_channels,)`: FFmpeg's weights if they leave out low-frequency channels only. Else,
        for an ambisonic recording, the omnidirectional channel W, in equal parts with the mean of the channels that
        are not ambisonic; for any other layout, the mean of all channels but the low-frequency ones.
    """
    weights = _ffmpeg_weights(layout, names, sample_format)
    is_bass = np.array([name in LOW_FREQUENCY_CHANNELS for name in names])
    if weights is not None and (weights[~is_bass] > 0).all():
        return weights
    if "AMBI0" in names:
        is_field = np.array([name.startswith("AMBI") for name in names])
        first = np.array([name == "AMBI0" for name in names])
        return first.astype(float) if is_field.all() else (first + ~is_field / (~is_field).sum()) / 2
    return np.full(len(names), 1 / len(names)) if is_bass.all() else ~is_bass / (~is_bass).sum()


@functools.lru_cache(maxsize=64)
def _ffmpeg_weights(layout: str, names: tuple[str, ...], sample_format: str) -> np.ndarray | None:
    """Measures FFmpeg's weights by mixing one sample of each channel alone; `None` if it cannot mix the layout."""
    import av
    from av.filter import Graph

    rate = 48000
    source = {"sample_rate": str(rate), "sample_fmt": sample_format, "channel_layout": layout}
    one_each: np.ndarray = np.eye(len(names), dtype=np.float32 if sample_format == "flt" else np.float64)
    graph = Graph()
    try:
        nodes = [graph.add("abuffer", **source, time_base=f"1/{rate}")]
        if layout == f"{len(names)} channels" and "NONE" not in names:
            channels = "|".join(str(index) for index in range(len(names)))
            nodes.append(graph.add("channelmap", map=channels, channel_layout="+".join(names)))
        # By default FFmpeg adds channels of float samples with weights that sum to more than 1 (stereo: 1.41).
        nodes.append(graph.add("aresample", rematrix_maxval="1"))
        nodes.append(graph.add("aformat", sample_fmts=sample_format, channel_layouts="mono"))
        graph.link_nodes(*nodes, graph.add("abuffersink")).configure()
        frame = av.AudioFrame.from_ndarray(one_each.reshape(1, -1), format=sample_format, layout=layout)
        frame.sample_rate = rate
        graph.push(frame)
        graph.push(None)
        return graph.pull().to_ndarray()[0]
    except (av.FFmpegError, ValueError):
        return None


class MonoMixer:
    """Resamples decoded audio of one format and mixes it to mono.

    While channels cancel each other out (stereo with one channel inverted), the loudest channel replaces the mix.

    Args:
        frame (`av.AudioFrame`): The first frame; the following frames have its format, layout and rate.
        channel_names (`tuple[str, ...]`): Names from the container, used if the frames name no channels.
        sampling_rate (`int`): Samples per second of the mix.

    Attributes:
        has_cancelled: Whether channels have cancelled each other out so far.
    """

    def __init__(self, frame: Any, channel_names: tuple[str, ...], sampling_rate: int):
        from av import AudioResampler

        self.has_cancelled = False
        self._num_channels = frame.layout.nb_channels
        # Samples of 8 bytes are mixed in double precision, as FFmpeg does.
        self._format = "dbl" if frame.format.bytes == 8 else "flt"
        # Planar samples: most decoders give these, and at the right rate the resampler then has nothing to do. PyAV 18
        # counts planes up to a null pointer, which 8 planes or more do not have: it crashes.
        self._is_planar = self._num_channels <= MAX_PLANES
        self._resampler = AudioResampler(self._format + "p" * self._is_planar, None, sampling_rate)
        self._block_samples = round(BLOCK_SECONDS * sampling_rate)
        self._crossfade_samples = round(CROSSFADE_SECONDS * sampling_rate)
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0
        self._weights: np.ndarray | None = None  # of the block before
        names = tuple(channel.name for channel in frame.layout.channels)
        if set(names) == {"NONE"} and len(names) == len(channel_names):
            names = channel_names
        self._mix = np.ones(1) if len(names) == 1 else mixing_weights(frame.layout.name, names, self._format)

    def push(self, frame: Any | None) -> list[np.ndarray]:
        """Returns the mono samples `(num_samples,)`, float32, that are ready; after `None`, all remaining ones."""
        for resampled in self._resampler.resample(frame):
            if resampled is None:  # PyAV's answer to the end of audio that it did not have to change
                continue
            samples = resampled.to_ndarray()
            samples = samples if self._is_planar else samples.reshape(-1, self._num_channels).T
            self._waiting.append(samples)  # (num_channels, num_samples)
            self._num_waiting += samples.shape[1]
        if not self._num_waiting or (frame is not None and not self._is_block_full):
            return []
        channels = np.concatenate(self._waiting, axis=1)
        self._waiting, self._num_waiting = [], 0
        if self._num_channels == 1:  # its mix is the channel itself, which nothing can cancel out
            return [channels[0].astype(np.float32)]
        size = self._block_samples
        # The remaining samples are part of the last block; alone they would be too short for the decision.
        starts = range(0, max(1, channels.shape[1] - size + 1), size)
        ends = [*starts[1:], channels.shape[1]]
        return [self._mix_block(channels[:, start:end]) for start, end in zip(starts, ends)]

    @property
    def _is_block_full(self) -> bool:
        return self._num_waiting >= self._block_samples

    def _mix_block(self, channels: np.ndarray) -> np.ndarray:
        """Mixes one block `(num_channels, num_samples)` to mono."""
        mix = _weighted_sum(self._mix, channels)
        weights = self._mix
        energies = np.square(channels, dtype=np.float64).sum(axis=1)
        unrelated = np.square(np.maximum(self._mix, SILENT_WEIGHT)) @ energies
        if np.square(mix, dtype=np.float64).sum() < CANCELLATION_RATIO * unrelated:
            self.has_cancelled = True
            weights = np.zeros(len(channels))
            weights[energies.argmax()] = 1
            mix = _weighted_sum(weights, channels)
        before, self._weights = self._weights, weights
        if before is not None and (before != weights).any():
            length = min(self._crossfade_samples, len(mix))
            rise = np.linspace(0, 1, length)
            mix[:length] = rise * mix[:length] + (1 - rise) * _weighted_sum(before, channels[:, :length])
        return mix.astype(np.float32)


def _weighted_sum(weights: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Returns the weighted sum of the channels, added one by one in the samples' precision as FFmpeg does."""
    total = np.zeros(channels.shape[1], channels.dtype)
    for weight, channel in zip(np.asarray(weights, channels.dtype), channels):
        if weight:
            total += weight * channel
    return total
