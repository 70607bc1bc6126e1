"""Registers the models, processors and pipelines of this package with transformers."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .core.builtin_checkpoints import builtin_checkpoints, resolve_checkpoint
from .core.tasks import LOCALIZATION_TASK, ZERO_SHOT_TASK

DEFAULT_CHECKPOINT = builtin_checkpoints()["ave-clip-mini"]

_LOADING_OPTIONS = ("revision", "dtype", "device_map", "token", "cache_dir", "local_files_only")


@functools.cache
def register() -> None:
    """Registers everything with the Auto classes and `pipeline`, once per process. Imports torch and transformers."""
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForVideoClassification,
        AutoProcessor,
        AutoVideoProcessor,
        pipelines,
    )

    _register_models()
    _register_processors()
    _register_pipelines()
    for auto_class in (
        *(AutoConfig, AutoModel, AutoModelForVideoClassification),
        *(AutoFeatureExtractor, AutoVideoProcessor, AutoProcessor),
    ):
        _takes_builtin_names(auto_class)
    _adapt_pipeline_function(pipelines)


def _register_models() -> None:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForVideoClassification,
    )

    from .checkpoints.onnx_model import AVEClipMiniOnnxForLocalization, AVEClipOnnxForLocalization
    from .core.modeling_audio_visual_encoder import AudioVisualEncoderModel
    from .core.modeling_audioclip import AudioCLIPModel
    from .core.modeling_ave_clip import AVEClipForLocalization
    from .core.modeling_ave_clip_mini import AVEClipMiniForLocalization
    from .core.modeling_clip_resnet import AudioCLIPVisionModel
    from .core.modeling_efficientnet_lite import EfficientNetLiteForImageClassification
    from .core.modeling_esresnext import AudioCLIPAudioModel

    encoders = (AudioCLIPVisionModel, AudioCLIPAudioModel, AudioCLIPModel, AudioVisualEncoderModel)
    classifiers = (EfficientNetLiteForImageClassification,)
    exports = (AVEClipOnnxForLocalization, AVEClipMiniOnnxForLocalization)
    localizers = (AVEClipForLocalization, AVEClipMiniForLocalization, *exports)
    for model in (*encoders, *classifiers, *localizers):
        # pyrefly: ignore[missing-attribute]  (transformers sets `config_class` from the annotation of `config`)
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
    for model in (*encoders, *localizers):
        AutoModel.register(model.config_class, model, exist_ok=True)
    for model in classifiers:
        AutoModelForImageClassification.register(model.config_class, model, exist_ok=True)
    for model in localizers:
        AutoModelForVideoClassification.register(model.config_class, model, exist_ok=True)


def _register_processors() -> None:
    from transformers import AutoFeatureExtractor, AutoProcessor, AutoVideoProcessor

    from .core.configuration_audio_visual_encoder import AudioVisualEncoderConfig
    from .core.configuration_audioclip import AudioCLIPConfig
    from .core.configuration_ave_clip import AVEClipConfig, AVEClipOnnxConfig
    from .core.configuration_ave_clip_mini import AVEClipMiniConfig, AVEClipMiniOnnxConfig
    from .core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from .core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
    from .core.processing_audioclip import AudioCLIPProcessor
    from .core.processing_ave_clip import AVEClipProcessor
    from .core.video_processing_ave_clip import AVEClipVideoProcessor

    AutoFeatureExtractor.register(AudioCLIPConfig, AudioCLIPFeatureExtractor, exist_ok=True)
    AutoProcessor.register(AudioCLIPConfig, AudioCLIPProcessor, exist_ok=True)
    AutoProcessor.register(AudioVisualEncoderConfig, AudioVisualEncoderProcessor, exist_ok=True)
    AutoVideoProcessor.register(AudioVisualEncoderConfig, AVEClipVideoProcessor, exist_ok=True)
    for config in (AVEClipConfig, AVEClipMiniConfig):
        AutoFeatureExtractor.register(config, AudioCLIPFeatureExtractor, exist_ok=True)
        AutoVideoProcessor.register(config, AVEClipVideoProcessor, exist_ok=True)
        AutoProcessor.register(config, AVEClipProcessor, exist_ok=True)
    for config in (AVEClipOnnxConfig, AVEClipMiniOnnxConfig):
        AutoProcessor.register(config, AVEClipProcessor, exist_ok=True)


def _register_pipelines() -> None:
    from transformers import AutoModel, AutoModelForVideoClassification, pipelines

    from .core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
    from .core.pipeline_zero_shot import ZeroShotAudioVisualEventLocalizationPipeline

    pipelines.PIPELINE_REGISTRY.register_pipeline(
        LOCALIZATION_TASK,
        pipeline_class=AudioVisualEventLocalizationPipeline,
        pt_model=AutoModelForVideoClassification,
        default={"model": (DEFAULT_CHECKPOINT, "main")},
        type="multimodal",
    )
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        ZERO_SHOT_TASK,
        pipeline_class=ZeroShotAudioVisualEventLocalizationPipeline,
        pt_model=AutoModel,
        default={"model": (DEFAULT_CHECKPOINT, "main")},
        type="multimodal",
    )


def _takes_builtin_names(auto_class: type) -> None:
    """Makes an Auto class accept the names of built-in checkpoints; other names are passed on unchanged."""
    load = auto_class.from_pretrained.__func__

    @functools.wraps(load)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        return load(cls, resolve_checkpoint(pretrained_model_name_or_path), *args, **kwargs)

    auto_class.from_pretrained = classmethod(from_pretrained)


def _adapt_pipeline_function(pipelines: Any) -> None:
    """Makes `transformers.pipeline` accept built-in names.

    Before `pipeline` uses an Auto class, it looks the model up with three functions of its module. These functions are
    replaced and not `pipeline` itself, since the caller may have imported it before this package.
    """
    for name in ("resolve_revision", "find_adapter_config_file"):
        if hasattr(pipelines, name):
            setattr(pipelines, name, _with_folder(getattr(pipelines, name)))
    infer_task = pipelines.get_task

    @functools.wraps(infer_task)
    def get_task(model: str, *args: Any, **kwargs: Any) -> str:
        return LOCALIZATION_TASK if model in builtin_checkpoints() else infer_task(model, *args, **kwargs)

    pipelines.get_task = get_task
    _check_model_type_first(pipelines)


def _check_model_type_first(pipelines: Any) -> None:
    """Makes `pipeline` reject a model of the other task with one sentence, before transformers tries to load it."""
    from .core.encoders import check_packages
    from .core.modeling_audio_visual_encoder import load_tower

    load = pipelines.load_model

    @functools.wraps(load)
    def load_model(model: Any, *args: Any, config: Any = None, task: str | None = None, **kwargs: Any) -> Any:
        if config is not None and task in (LOCALIZATION_TASK, ZERO_SHOT_TASK):
            pipelines.PIPELINE_REGISTRY.supported_tasks[task]["impl"].check_model_type(config)
            check_packages(config)
            if config.model_type == "pe_audio_video" and isinstance(model, str):
                # transformers 5.24 would build its image tower with 2 outputs, see `restore_num_labels`.
                options = {name: kwargs[name] for name in _LOADING_OPTIONS if kwargs.get(name) is not None}
                model = load_tower(model, **options)
        return load(model, *args, config=config, task=task, **kwargs)

    pipelines.load_model = load_model


def _with_folder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of transformers so that it receives the folder of a built-in checkpoint instead of its name."""

    @functools.wraps(function)
    def with_folder(name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        return function(resolve_checkpoint(name_or_path), *args, **kwargs)

    return with_folder


def is_command_line() -> bool:
    """Whether this process is `ave-clip` or `python -m ave_clip`.

    The command line registers when it loads a model, so that `--help` does not wait for torch. In all other programs,
    `import ave_clip` alone registers the pipelines.
    """
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":  # the value of sys.argv[0] while Python imports the package of `python -m package`
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == __package__
    return Path(program).stem == "ave-clip"  # ave-clip.exe on Windows
