"""Exports checkpoints with their code, so that `trust_remote_code=True` loads them without ave-clip.

`save_pretrained` alone writes no code. An export adds the modules of this package that the model, its processor and
its pipeline need, and names the module of each class in the configuration files.
"""

import importlib.metadata
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.builtin_checkpoints import find_checkpoint
from ..core.tasks import LOCALIZATION_TASK, ZERO_SHOT_TASK
from ..files import check_replaceable, new_folder

NEEDED = ("torch", "torchvision", "torchaudio", "transformers", "av")  # packages that the modules in `core/` import
USAGE = """## Use without ave-clip

This repository contains the model's code, so that transformers alone can load it:

```bash
pip install {requirements}
```

```python
from transformers import pipeline

{call}
```

`trust_remote_code=True` runs the Python files of this repository on your machine: read them first, and pass
`revision=` with the hash of the commit that you have read. If ave-clip is installed, its own code is used instead.
"""
_CALL = re.compile(r'(pipeline\("[a-z-]+", model="[^"\n]*")\)')  # the calls of a card that need `trust_remote_code`
CALLS = {
    LOCALIZATION_TASK: 'localizer = pipeline(model="{model}", trust_remote_code=True)\n'
    'localizer("video.mp4")["events"]',
    ZERO_SHOT_TASK: 'localizer = pipeline(model="{model}", trust_remote_code=True)\n'
    'localizer("video.mp4", candidate_labels=["dog bark", "church bell"])["events"]',
    None: 'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{model}", trust_remote_code=True)',
}


def export_for_hub(
    model: str | os.PathLike, out: str | os.PathLike, *, repo_id: str | None = None, overwrite: bool = False
) -> Path:
    """Writes a checkpoint together with its code, processor, pipeline and card.

    Args:
        model (`str` or `os.PathLike`): Folder or Hub id of a localizer or an AudioCLIP.
        out (`str` or `os.PathLike`): Folder to create.
        repo_id (`str`, *optional*): Hub id that the examples in the card use. Default: the folder's name.
        overwrite (`bool`): Whether to replace an existing checkpoint in `out`.

    Returns:
        `Path`: The folder: [`~ave_clip.checkpoints.push.push_folder`] uploads it as it is.

    Raises:
        FolderInUseError: if `out` exists and is not empty; with `overwrite`, if it is not a checkpoint or contains
            the model or the working directory.
        OSError: if there is no such model.
        ValueError: if the checkpoint is neither a localizer nor an AudioCLIP.
    """
    from transformers import AutoConfig
    from transformers.utils import CONFIG_NAME

    model = find_checkpoint(model)  # so that its card and results are read from the folder, not from the Hub
    config = AutoConfig.from_pretrained(model)
    writers = {
        "ave_clip": _write_localizer,
        "audioclip": _write_audioclip,
        "audio_visual_encoder": _write_encoder,
        "ave_clip_mini": _write_mini,
    }
    if config.model_type not in writers:
        raise ValueError(
            f"{model} is a model of type {config.model_type!r}. Export a localizer (ave_clip or ave_clip_mini), an "
            "AudioCLIP (audioclip) or a composite encoder (audio_visual_encoder)."
        )
    write = writers[config.model_type]
    if overwrite:
        check_replaceable(out, CONFIG_NAME, "checkpoint", model)
    with new_folder(out, overwrite) as folder:
        task = write(model, folder)
        _write_card(model, folder, config.model_type, task, repo_id or Path(out).name)
    return Path(out)


def _write_localizer(source: str | os.PathLike, folder: Path) -> str | None:
    from ..core.modeling_ave_clip import AVEClipForLocalization

    model = AVEClipForLocalization.from_pretrained(source)
    # With features of other encoders as its input, it has no processor, and no pipeline computes them.
    return _save_localizer(model, source if model.config.use_encoders else None, folder)


def _write_mini(source: str | os.PathLike, folder: Path) -> str | None:
    from ..core.modeling_ave_clip_mini import AVEClipMiniForLocalization

    for name in ("LICENSE", "NOTICE"):  # the weights of its classifiers are those of others
        text = _find_file(source, name)
        if text is not None:
            (folder / name).write_bytes(text.read_bytes())
    return _save_localizer(AVEClipMiniForLocalization.from_pretrained(source), source, folder)


def _save_localizer(model: Any, processor_source: str | os.PathLike | None, folder: Path) -> str | None:
    """Writes a localizer with its code and, if it has a processor, with that and the pipeline."""
    from ..core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from ..core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
    from ..core.processing_ave_clip import AVEClipProcessor
    from ..core.video_processing_ave_clip import AVEClipVideoProcessor

    classes = {
        type(model.config): "AutoConfig",
        type(model): "AutoModelForVideoClassification",
        AVEClipProcessor: "AutoProcessor",
        AVEClipVideoProcessor: "AutoVideoProcessor",
        AudioCLIPFeatureExtractor: "AutoFeatureExtractor",
    }
    model.config.auto_map = {"AutoModel": _reference(type(model))}
    if processor_source is None:
        _save(folder, classes, model, None, None)
        return None
    processor = AVEClipProcessor.from_pretrained(processor_source)
    _add_pipeline(model.config, LOCALIZATION_TASK, AudioVisualEventLocalizationPipeline, classes[type(model)])
    _save(folder, classes, model, processor, AudioVisualEventLocalizationPipeline)
    return LOCALIZATION_TASK


def _write_audioclip(source: str | os.PathLike, folder: Path) -> str | None:
    from ..core.configuration_audioclip import AudioCLIPConfig
    from ..core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from ..core.modeling_audioclip import AudioCLIPModel
    from ..core.pipeline_zero_shot import ZeroShotAudioVisualEventLocalizationPipeline
    from ..core.processing_audioclip import AudioCLIPProcessor

    classes = {
        AudioCLIPConfig: "AutoConfig",
        AudioCLIPModel: "AutoModel",
        AudioCLIPProcessor: "AutoProcessor",
        AudioCLIPFeatureExtractor: "AutoFeatureExtractor",
    }
    model = AudioCLIPModel.from_pretrained(source)
    model.config.auto_map = None
    try:
        processor = AudioCLIPProcessor.from_pretrained(source)
    except OSError:  # a fine-tuned encoder may have only a feature extractor
        processor = AudioCLIPFeatureExtractor.from_pretrained(source)
    pipeline = None
    if getattr(processor, "tokenizer", None) is not None and "text" in model.config.towers:
        pipeline = ZeroShotAudioVisualEventLocalizationPipeline
        _add_pipeline(model.config, ZERO_SHOT_TASK, pipeline, classes[AudioCLIPModel])
    _save(folder, classes, model, processor, pipeline)
    return ZERO_SHOT_TASK if pipeline else None


def _write_encoder(source: str | os.PathLike, folder: Path) -> str | None:
    from ..core.configuration_audio_visual_encoder import AudioVisualEncoderConfig
    from ..core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from ..core.modeling_audio_visual_encoder import AudioVisualEncoderModel
    from ..core.pipeline_zero_shot import ZeroShotAudioVisualEventLocalizationPipeline
    from ..core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
    from ..core.video_processing_ave_clip import AVEClipVideoProcessor

    classes: dict[type, str] = {
        AudioVisualEncoderConfig: "AutoConfig",
        AudioVisualEncoderModel: "AutoModel",
        AudioVisualEncoderProcessor: "AutoProcessor",
        AVEClipVideoProcessor: "AutoVideoProcessor",
    }
    model = AudioVisualEncoderModel.from_pretrained(source)
    processor = AudioVisualEncoderProcessor.from_pretrained(source)
    if isinstance(processor.feature_extractor, AudioCLIPFeatureExtractor):
        classes[AudioCLIPFeatureExtractor] = "AutoFeatureExtractor"
    pipeline = ZeroShotAudioVisualEventLocalizationPipeline
    _add_pipeline(model.config, ZERO_SHOT_TASK, pipeline, classes[AudioVisualEncoderModel])
    _save(folder, classes, model, processor, pipeline)
    return ZERO_SHOT_TASK


def _add_pipeline(config: Any, task: str, pipeline: type, auto_class: str) -> None:
    config.custom_pipelines = {task: {"impl": _reference(pipeline), "pt": [auto_class], "type": "multimodal"}}


def _save(folder: Path, classes: Mapping[type, str], model: Any, processor: Any, pipeline: type | None) -> None:
    from transformers.dynamic_module_utils import custom_object_save

    with _registered(classes):
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
    if pipeline is not None:
        custom_object_save(pipeline, folder)


def _reference(cls: type) -> str:
    """Returns the name of a class in a checkpoint's configuration: `module.Class`."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


@contextmanager
def _registered(classes: Mapping[type, str]) -> Iterator[None]:
    """Makes `save_pretrained` write code in this context only: transformers stores the registration on the class."""
    before = {cls: cls._auto_class for cls in classes}
    try:
        for cls, auto_class in classes.items():
            cls.register_for_auto_class(auto_class)
        yield
    finally:
        for cls, auto_class in before.items():
            cls._auto_class = auto_class


def _write_card(source: str | os.PathLike, folder: Path, model_type: str, task: str | None, name: str) -> None:
    """Writes the checkpoint's card, or a new one without results, and adds how to load it without this package."""
    from huggingface_hub import ModelCard

    from .cards import write_audioclip_card, write_encoder_card, write_localizer_card

    own = _find_file(source, "README.md")
    if own is not None:
        (folder / "README.md").write_bytes(own.read_bytes())
    else:
        writers = {"ave_clip": write_localizer_card, "audioclip": write_audioclip_card}
        write = writers.get(model_type, write_encoder_card)
        write(folder, {}, model_name=name, dataset_name="")
    results = _find_file(source, "results.json")
    if results is not None:
        (folder / "results.json").write_bytes(results.read_bytes())
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True)
    card.data["library_name"] = "transformers"
    card.data["tags"] = [*dict.fromkeys([*(card.data.get("tags") or []), "custom_code"])]
    usage = USAGE.format(requirements=_requirements(), call=CALLS[task].format(model=name))
    card.text = _insert(_CALL.sub(r"\1, trust_remote_code=True)", card.text), usage)
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def _requirements() -> str:
    """Returns the exported code's dependencies as arguments of `pip install`, with this package's version bounds."""
    from packaging.requirements import Requirement

    declared = [Requirement(text) for text in importlib.metadata.requires("ave-clip") or ()]
    bounds = {entry.name: str(entry.specifier) for entry in declared if entry.marker is None}
    return " ".join(f'"{name}{bounds[name]}"' for name in NEEDED)


def _insert(text: str, usage: str) -> str:
    """Inserts the section before "Training data", or at the end, and removes an earlier version of it."""
    text = re.sub(r"\n## Use without ave-clip\n.*?(?=\n## |\Z)", "\n", text, flags=re.DOTALL)
    before, heading, after = text.partition("\n## Training data\n")
    return f"{before.rstrip()}\n\n{usage}{heading}{after}" if heading else f"{text.rstrip()}\n\n{usage}"


def _find_file(source: str | os.PathLike, name: str) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
