"""ave-clip: audio-visual event localization, from a video file to the event of every second.

The path of a video through the package (all in `core`):

    video_io ──> segments ──> feature_extraction_audioclip ─┐
    (PyAV)       (time grid)  video_processing_ave_clip ────┴─> processing_ave_clip
        ──> modeling_ave_clip ──> events ──> pipeline_ave_clip, `ave-clip localize`
            (towers: modeling_clip_resnet, modeling_esresnext)

Importing the package registers its models with transformers: with `AutoConfig`, `AutoModel`,
`AutoModelForVideoClassification`, `AutoProcessor`, `AutoFeatureExtractor` and `AutoVideoProcessor`, and as the
pipelines "audio-visual-event-localization" and "zero-shot-audio-visual-event-localization".
"""

import importlib
from typing import Any

from .registration import DEFAULT_CHECKPOINT, is_command_line, register
from .short_names import MODULES, register_short_names

__version__ = "0.1.0"

_HOMES = {
    "AVEClipConfig": "core.configuration_ave_clip",
    "AVEClipForLocalization": "core.modeling_ave_clip",
    "AVEClipMiniConfig": "core.configuration_ave_clip_mini",
    "AVEClipMiniForLocalization": "core.modeling_ave_clip_mini",
    "AVEClipProcessor": "core.processing_ave_clip",
    "AVEClipVideoProcessor": "core.video_processing_ave_clip",
    "AudioVisualEncoderConfig": "core.configuration_audio_visual_encoder",
    "AudioVisualEncoderModel": "core.modeling_audio_visual_encoder",
    "AudioVisualEncoderProcessor": "core.processing_audio_visual_encoder",
    "AudioCLIPConfig": "core.configuration_audioclip",
    "AudioCLIPFeatureExtractor": "core.feature_extraction_audioclip",
    "AudioCLIPModel": "core.modeling_audioclip",
    "AudioCLIPProcessor": "core.processing_audioclip",
    "AudioVisualEventLocalizationPipeline": "core.pipeline_ave_clip",
    "ZeroShotAudioVisualEventLocalizationPipeline": "core.pipeline_zero_shot",
    "export_for_hub": "checkpoints.hub_export",
    "export_onnx": "checkpoints.onnx_export",
    "plot_timeline": "outputs.timeline",
    "write_overlay": "outputs.overlay",
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *MODULES})


register_short_names()
if not is_command_line():
    register()

__all__ = ["DEFAULT_CHECKPOINT", *sorted(_HOMES), "__version__"]
