"""ave-clip: audio-visual event localization, from a video file to the event of every second.

One video goes this way through the package:

    video_io ──> segments ──> feature_extraction_audioclip ─┐
    (PyAV)       (time grid)  video_processing_ave_clip ────┴─> processing_ave_clip
        ──> modeling_ave_clip ──> events ──> pipeline_ave_clip, `ave-clip localize`
            (towers: modeling_clip_resnet, modeling_esresnext)

Importing the package makes its models known to transformers: `AutoConfig`, `AutoModel`,
`AutoModelForVideoClassification`, `AutoProcessor`, `AutoFeatureExtractor`, `AutoVideoProcessor`, and the pipelines
"audio-visual-event-localization" and "zero-shot-audio-visual-event-localization". It loads no model code by itself:
every public name is imported when it is first used.
"""

import importlib
from typing import Any

from .registration import DEFAULT_CHECKPOINT, register

__version__ = "0.1.0"

_HOMES = {
    "AVEClipConfig": "configuration_ave_clip",
    "AVEClipForLocalization": "modeling_ave_clip",
    "AVEClipProcessor": "processing_ave_clip",
    "AVEClipVideoProcessor": "video_processing_ave_clip",
    "AudioCLIPConfig": "configuration_audioclip",
    "AudioCLIPFeatureExtractor": "feature_extraction_audioclip",
    "AudioCLIPModel": "modeling_audioclip",
    "AudioCLIPProcessor": "processing_audioclip",
    "AudioVisualEventLocalizationPipeline": "pipeline_ave_clip",
    "ZeroShotAudioVisualEventLocalizationPipeline": "pipeline_ave_clip",
    "export_for_hub": "hub_export",
    "export_onnx": "onnx_export",
    "plot_timeline": "timeline",
    "write_overlay": "overlay",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


register()

__all__ = ["DEFAULT_CHECKPOINT", *sorted(_HOMES), "__version__"]
