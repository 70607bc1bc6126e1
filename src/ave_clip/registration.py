"""Makes this package's classes known to transformers, each when transformers' own registry of its kind is loaded.

Registering takes the classes themselves, and those need torch, torchvision and much of transformers: seconds and
hundreds of MB that `ave-clip --help` or reading annotations have no use for. So `register` waits for the import of
transformers' registries, and adds to each of them right after it was loaded.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "assets" / "ave-clip-tiny")


def _register_configs(registry: ModuleType) -> None:
    from .configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig
    from .configuration_ave_clip import AVEClipConfig, AVEClipOnnxConfig

    for config in (AudioCLIPVisionConfig, AudioCLIPAudioConfig, AudioCLIPConfig, AVEClipConfig, AVEClipOnnxConfig):
        registry.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models(registry: ModuleType) -> None:
    from .modeling_audioclip import AudioCLIPModel
    from .modeling_ave_clip import AVEClipForLocalization
    from .modeling_clip_resnet import AudioCLIPVisionModel
    from .modeling_esresnext import AudioCLIPAudioModel
    from .onnx_model import AVEClipOnnxForLocalization

    for model in (AudioCLIPVisionModel, AudioCLIPAudioModel, AudioCLIPModel):
        registry.AutoModel.register(model.config_class, model, exist_ok=True)
    for localizer in (AVEClipForLocalization, AVEClipOnnxForLocalization):
        registry.AutoModelForVideoClassification.register(localizer.config_class, localizer, exist_ok=True)


def _register_feature_extractors(registry: ModuleType) -> None:
    from .configuration_audioclip import AudioCLIPConfig
    from .configuration_ave_clip import AVEClipConfig
    from .feature_extraction_audioclip import AudioCLIPFeatureExtractor

    for config in (AudioCLIPConfig, AVEClipConfig):
        registry.AutoFeatureExtractor.register(config, AudioCLIPFeatureExtractor, exist_ok=True)


def _register_video_processors(registry: ModuleType) -> None:
    from .configuration_ave_clip import AVEClipConfig
    from .video_processing_ave_clip import AVEClipVideoProcessor

    registry.AutoVideoProcessor.register(AVEClipConfig, AVEClipVideoProcessor, exist_ok=True)


def _register_processors(registry: ModuleType) -> None:
    from .configuration_audioclip import AudioCLIPConfig
    from .configuration_ave_clip import AVEClipConfig, AVEClipOnnxConfig
    from .processing_audioclip import AudioCLIPProcessor
    from .processing_ave_clip import AVEClipProcessor

    registry.AutoProcessor.register(AudioCLIPConfig, AudioCLIPProcessor, exist_ok=True)
    for config in (AVEClipConfig, AVEClipOnnxConfig):
        registry.AutoProcessor.register(config, AVEClipProcessor, exist_ok=True)


def _register_pipelines(pipelines: ModuleType) -> None:
    from transformers import AutoModel, AutoModelForVideoClassification

    from .pipeline_ave_clip import AudioVisualEventLocalizationPipeline, ZeroShotAudioVisualEventLocalizationPipeline

    pipelines.PIPELINE_REGISTRY.register_pipeline(
        "audio-visual-event-localization",
        pipeline_class=AudioVisualEventLocalizationPipeline,
        pt_model=AutoModelForVideoClassification,
        default={"model": (DEFAULT_CHECKPOINT, "main")},
        type="multimodal",
    )
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        "zero-shot-audio-visual-event-localization",
        pipeline_class=ZeroShotAudioVisualEventLocalizationPipeline,
        pt_model=AutoModel,
        type="multimodal",
    )


_STEPS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractors,
    "transformers.models.auto.video_processing_auto": _register_video_processors,
    "transformers.models.auto.processing_auto": _register_processors,
    "transformers.pipelines": _register_pipelines,
}


class _Registrar(importlib.abc.MetaPathFinder):
    """Runs each step once its registry is loaded and no module of transformers or of this package is half imported.

    (Importing a model loads registries on the way, whose steps would need that very model.)
    """

    def __init__(self) -> None:
        self.waiting = [name for name in _STEPS if name in sys.modules]
        self.importing = 0  # modules that are half imported, in any thread
        self.lock = threading.RLock()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(("transformers.", f"{__package__}.")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _WatchedLoader(spec.loader, self)
        return spec

    def started(self) -> None:
        with self.lock:
            self.importing += 1

    def ended(self, loaded: str | None) -> None:
        """Count a module that is complete (or, `None`, has failed); whoever ends the last one runs the steps."""
        with self.lock:
            self.importing -= 1
            if loaded in _STEPS:
                self.waiting.append(loaded)
        self.run_steps()

    def run_steps(self) -> None:
        while True:
            with self.lock:
                if self.importing or not self.waiting:
                    return
                name = self.waiting.pop(0)
            _STEPS[name](sys.modules[name])


class _WatchedLoader(importlib.abc.Loader):
    """A module's own loader that tells the registrar when the module is complete."""

    def __init__(self, loader: importlib.abc.Loader, registrar: _Registrar) -> None:
        self.loader = loader
        self.registrar = registrar

    def __getattr__(self, name: str) -> Any:  # `python -m ave_clip` and inspect ask loaders for more
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.registrar.started()
        loaded = None
        try:
            self.loader.exec_module(module)
            loaded = module.__name__
        finally:
            self.registrar.ended(loaded)


def register() -> None:
    """Add our classes to the registries that are loaded, and to the others as soon as they will be."""
    registrar = _Registrar()
    sys.meta_path.insert(0, registrar)
    registrar.run_steps()
