"""ave-clip: audio-visual event localization, from a video file to the event of every second.

One video goes this way through the package:

    video_io ──> segments ──> feature_extraction_audioclip ─┐
    (PyAV)       (time grid)  video_processing_ave_clip ────┴─> processing_ave_clip
        ──> modeling_ave_clip ──> events ──> pipeline_ave_clip, `ave-clip localize`
            (towers: modeling_clip_resnet, modeling_esresnext)

Importing the package makes its models known to transformers: `AutoConfig`, `AutoModel`,
`AutoModelForVideoClassification`, `AutoProcessor`, `AutoFeatureExtractor`, `AutoVideoProcessor`, and
the pipelines "audio-visual-event-localization" and "zero-shot-audio-visual-event-localization".
"""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig
from .configuration_ave_clip import AVEClipConfig
from .feature_extraction_audioclip import AudioCLIPFeatureExtractor
from .modeling_audioclip import AudioCLIPModel
from .modeling_ave_clip import AVEClipForLocalization
from .modeling_clip_resnet import AudioCLIPVisionModel
from .modeling_esresnext import AudioCLIPAudioModel
from .pipeline_ave_clip import AudioVisualEventLocalizationPipeline, ZeroShotAudioVisualEventLocalizationPipeline
from .processing_audioclip import AudioCLIPProcessor
from .processing_ave_clip import AVEClipProcessor
from .video_processing_ave_clip import AVEClipVideoProcessor

__version__ = "0.1.0"

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "assets" / "ave-clip-tiny")


def _register() -> None:
    for config in (AudioCLIPVisionConfig, AudioCLIPAudioConfig, AudioCLIPConfig, AVEClipConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(AudioCLIPVisionConfig, AudioCLIPVisionModel, exist_ok=True)
    AutoModel.register(AudioCLIPAudioConfig, AudioCLIPAudioModel, exist_ok=True)
    AutoModel.register(AudioCLIPConfig, AudioCLIPModel, exist_ok=True)
    AutoModelForVideoClassification.register(AVEClipConfig, AVEClipForLocalization, exist_ok=True)
    AutoFeatureExtractor.register(AudioCLIPConfig, AudioCLIPFeatureExtractor, exist_ok=True)
    AutoFeatureExtractor.register(AVEClipConfig, AudioCLIPFeatureExtractor, exist_ok=True)
    AutoVideoProcessor.register(AVEClipConfig, AVEClipVideoProcessor, exist_ok=True)
    AutoProcessor.register(AudioCLIPConfig, AudioCLIPProcessor, exist_ok=True)
    AutoProcessor.register(AVEClipConfig, AVEClipProcessor, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        "audio-visual-event-localization",
        pipeline_class=AudioVisualEventLocalizationPipeline,
        pt_model=AutoModelForVideoClassification,
        default={"model": (DEFAULT_CHECKPOINT, "main")},
        type="multimodal",
    )
    PIPELINE_REGISTRY.register_pipeline(
        "zero-shot-audio-visual-event-localization",
        pipeline_class=ZeroShotAudioVisualEventLocalizationPipeline,
        pt_model=AutoModel,
        type="multimodal",
    )


_register()

__all__ = [
    "AVEClipConfig",
    "AVEClipForLocalization",
    "AVEClipProcessor",
    "AVEClipVideoProcessor",
    "AudioCLIPConfig",
    "AudioCLIPFeatureExtractor",
    "AudioCLIPModel",
    "AudioCLIPProcessor",
    "AudioVisualEventLocalizationPipeline",
    "ZeroShotAudioVisualEventLocalizationPipeline",
    "__version__",
]
