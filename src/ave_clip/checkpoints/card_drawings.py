"""Text drawings of networks in model cards, and the towers of composite encoders by name."""

from ..core.configuration_audio_visual_encoder import AudioVisualEncoderConfig
from ..core.configuration_audioclip import AudioCLIPConfig
from ..core.configuration_ave_clip import AVEClipConfig
from ..core.label_space import LabelSpace


def towers_of(config: AudioVisualEncoderConfig) -> dict[str, tuple[str | None, str | None, str]]:
    """Returns what each tower encodes, with its name, its commit and its type."""
    images = (config.vision_id, config.vision_revision, config.vision_config.model_type)
    if config.audio_config is None:
        return {"images and audio": images}
    return {"images": images, "audio": (config.audio_id, config.audio_revision, config.heard_config.model_type)}


def draw_localizer(config: AVEClipConfig, num_frames: int | None) -> str:
    windows = ", ".join(map(str, config.window_sizes))
    refiner_windows = config.refiner_window_sizes
    refined = (
        f"windows of {', '.join(map(str, refiner_windows))}" if refiner_windows else "one window over all segments"
    )
    if num_frames:
        lines = _draw_towers(config, num_frames)
    else:
        seen = f"locations x {config.resolved_image_feature_size} features of the frames"
        lines = [f"{seen:<45}1 vector of {config.resolved_audio_feature_size} features of the audio"]
    domains = {"both": "temporal and feature", "temporal": "temporal", "feature": "feature"}[config.attention_domains]
    steps = [
        "AGVA: the audio weights the locations",
        f"one BiLSTM for video, one for audio: {config.hidden_size} features each",
        f"MWTF: {domains} attention over windows of {windows} segments",
        "EGTA: event probabilities weight the segments" if config.use_event_attention else None,
        f"refiner: {refined}" if config.use_refiner else None,
        *_draw_decoding(config),
    ]
    for step in filter(None, steps):
        lines += ["                    v", f"  {step}"]
    return "\n".join(lines)


def _draw_decoding(config: AVEClipConfig) -> list[str]:
    if LabelSpace.of(config).is_multi_label:
        shortest = f"{config.min_event_segments} {'segment' if config.min_event_segments == 1 else 'segments'}"
        scores = f"{config.num_labels} class scores per segment, each with its own sigmoid"
        return [scores, f"for each class, events of at least {shortest} with start, end and score"]
    return [
        f"{config.num_labels} class scores per segment, background last",
        f"runs shorter than {config.min_event_segments} are merged: events with start, end and score",
    ]


def _draw_towers(config: AVEClipConfig, num_frames: int) -> list[str]:
    if config.is_composite:
        return _draw_composite(config, num_frames)
    vision, audio = config.encoder_config.vision_config, config.encoder_config.audio_config
    num_locations = 1 if config.visual_feature_type == "pooled" else vision.grid_size**2
    left = [
        f"{num_frames} frames per segment, {vision.image_size} x {vision.image_size}",
        "  | CLIP ResNet, mean over the frames",
        f"{num_locations} location{'s' * (num_locations > 1)} x {config.resolved_image_feature_size} features",
    ]
    right = [
        f"audio of the segment, {audio.sampling_rate} Hz",
        "  | spectrogram (fbsp), ESResNeXt",
        f"1 vector of {config.resolved_audio_feature_size} features",
    ]
    return [f"{seen:<45}{heard}" for seen, heard in zip(left, right)]


def _draw_composite(config: AVEClipConfig, num_frames: int) -> list[str]:
    encoder, kind = config.encoder_config, config.visual_feature_type
    num_locations = 1 if kind == "pooled" else encoder.num_image_locations
    image, audio = encoder.feature_sizes(kind)
    left = [
        f"{num_frames} frame{'s' * (num_frames > 1)} per segment",
        f"  | {encoder.vision_id or encoder.vision_config.model_type}",
        f"{num_locations} location{'s' * (num_locations > 1)} x {image} features",
    ]
    right = [
        f"{encoder.audio_window_seconds:g} s of audio, {encoder.sampling_rate} Hz",
        f"  | {encoder.audio_id or encoder.heard_config.model_type}",
        f"1 vector of {audio} features",
    ]
    return [f"{seen:<45}{heard}" for seen, heard in zip(left, right)]


def draw_audioclip(config: AudioCLIPConfig) -> str:
    inputs = {
        "vision": ("image", "CLIP ResNet, attention pool"),
        "audio": ("audio", "fbsp spectrogram, ESResNeXt, attention"),
        "text": ("text", "CLIP transformer"),
    }
    rows = [f"{kind:<8}-> {steps:<38} -> {config.projection_dim} numbers" for kind, steps in inputs.values()]
    rows = [row for row, tower in zip(rows, inputs) if tower in config.towers]
    corners = ["─┐", *["─┤"] * (len(rows) - 2), "─┴─> cosine x learned scale"][-len(rows) :]
    return "\n".join(row + corner for row, corner in zip(rows, corners))


__all__ = ["draw_audioclip", "draw_localizer", "towers_of"]
