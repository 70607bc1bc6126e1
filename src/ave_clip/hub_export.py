"""Checkpoints that carry their code: `trust_remote_code=True` loads them where ave-clip is not installed.

Ordinary saving writes no code. An export adds the modules of this package that the model, its processor and its
pipeline consist of, and says in the configuration files where each class is to be found.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import check_replaceable, new_folder

LOCALIZATION_TASK = "audio-visual-event-localization"
ZERO_SHOT_TASK = "zero-shot-audio-visual-event-localization"
REQUIREMENTS = '"transformers>=5.20,<6" torch torchvision torchaudio "av>=18"'
USAGE = """## Use without ave-clip

This repository holds the model's code, so that transformers alone can load it:

```bash
pip install {requirements}
```

```python
from transformers import pipeline

{call}
```

`trust_remote_code=True` runs the Python files of this repository on your machine: read them first, and pass
`revision=` with a commit's hash to keep to what you have read. Where ave-clip is installed, its own code is used.
"""
_CALL = re.compile(r'(pipeline\("[a-z-]+", model="[^"\n]*")\)')  # asked for wherever a checkpoint holds a pipeline
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
    """Write a checkpoint together with its code, processor, pipeline and card.

    Args:
        model (`str` or `os.PathLike`): Folder or Hub id of a localizer or an AudioCLIP.
        out (`str` or `os.PathLike`): Folder to make.
        repo_id (`str`, *optional*): Where it will be pushed, for the examples of the card; the folder's name when not
            given.
        overwrite (`bool`): Replace what is there.

    Returns:
        `Path`: The folder: [`~ave_clip.training.hub.push_folder`] uploads it as it is.

    Raises:
        FolderInUseError: if `out` exists and is not empty; with `overwrite`, if it is no earlier checkpoint or holds
            the model or the working directory.
        OSError: if there is no such model.
        ValueError: if the checkpoint is neither a localizer nor an AudioCLIP.
    """
    from transformers import AutoConfig
    from transformers.utils import CONFIG_NAME

    config = AutoConfig.from_pretrained(model)
    if config.model_type not in ("ave_clip", "audioclip"):
        raise ValueError(
            f"{model} is a model of type {config.model_type!r}. Export a localizer (ave_clip) or an AudioCLIP "
            "(audioclip)."
        )
    write = _write_localizer if config.model_type == "ave_clip" else _write_audioclip
    if overwrite:
        check_replaceable(out, CONFIG_NAME, "checkpoint", model)
    with new_folder(out, overwrite) as folder:
        task = write(model, folder)
        _write_card(model, folder, config.model_type, task, repo_id or Path(out).name)
    return Path(out)


def _write_localizer(source: str | os.PathLike, folder: Path) -> str | None:
    from .configuration_ave_clip import AVEClipConfig
    from .feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from .modeling_ave_clip import AVEClipForLocalization
    from .pipeline_ave_clip import AudioVisualEventLocalizationPipeline
    from .processing_ave_clip import AVEClipProcessor
    from .video_processing_ave_clip import AVEClipVideoProcessor

    classes = {
        AVEClipConfig: "AutoConfig",
        AVEClipForLocalization: "AutoModelForVideoClassification",
        AVEClipProcessor: "AutoProcessor",
        AVEClipVideoProcessor: "AutoVideoProcessor",
        AudioCLIPFeatureExtractor: "AutoFeatureExtractor",
    }
    model = AVEClipForLocalization.from_pretrained(source)
    model.config.auto_map = {"AutoModel": _reference(AVEClipForLocalization)}
    if not model.config.use_encoders:  # it takes features of other encoders, and no pipeline makes them
        _save(folder, classes, model, None, None)
        return None
    processor = AVEClipProcessor.from_pretrained(source)
    _add_pipeline(model.config, LOCALIZATION_TASK, AudioVisualEventLocalizationPipeline, classes[type(model)])
    _save(folder, classes, model, processor, AudioVisualEventLocalizationPipeline)
    return LOCALIZATION_TASK


def _write_audioclip(source: str | os.PathLike, folder: Path) -> str | None:
    from .configuration_audioclip import AudioCLIPConfig
    from .feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from .modeling_audioclip import AudioCLIPModel
    from .pipeline_ave_clip import ZeroShotAudioVisualEventLocalizationPipeline
    from .processing_audioclip import AudioCLIPProcessor

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
    except OSError:  # a trained encoder may come with a feature extractor alone
        processor = AudioCLIPFeatureExtractor.from_pretrained(source)
    pipeline = None
    if getattr(processor, "tokenizer", None) is not None and "text" in model.config.towers:
        pipeline = ZeroShotAudioVisualEventLocalizationPipeline
        _add_pipeline(model.config, ZERO_SHOT_TASK, pipeline, classes[AudioCLIPModel])
    _save(folder, classes, model, processor, pipeline)
    return ZERO_SHOT_TASK if pipeline else None


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
    """How a checkpoint names a class of its code: `module.Class`."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


@contextmanager
def _registered(classes: Mapping[type, str]) -> Iterator[None]:
    """Saving writes code while this lasts, and only then: transformers keeps what is registered on the class."""
    before = {cls: cls._auto_class for cls in classes}
    try:
        for cls, auto_class in classes.items():
            cls.register_for_auto_class(auto_class)
        yield
    finally:
        for cls, auto_class in before.items():
            cls._auto_class = auto_class


def _write_card(source: str | os.PathLike, folder: Path, model_type: str, task: str | None, name: str) -> None:
    """The checkpoint's own card, or one that only describes it, with how to load it without this package."""
    from huggingface_hub import ModelCard

    from .training.cards import write_audioclip_card, write_localizer_card

    own = _find_file(source, "README.md")
    if own is not None:
        (folder / "README.md").write_bytes(own.read_bytes())
    else:
        write = write_localizer_card if model_type == "ave_clip" else write_audioclip_card
        write(folder, {}, model_name=name, dataset_name="")
    results = _find_file(source, "results.json")
    if results is not None:
        (folder / "results.json").write_bytes(results.read_bytes())
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True)
    card.data.library_name = "transformers"
    card.data.tags = [*dict.fromkeys([*(card.data.tags or []), "custom_code"])]
    usage = USAGE.format(requirements=REQUIREMENTS, call=CALLS[task].format(model=name))
    card.text = _insert(_CALL.sub(r"\1, trust_remote_code=True)", card.text), usage)
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def _insert(text: str, usage: str) -> str:
    """Put the section before the training data, or at the end; in place of an earlier one."""
    text = re.sub(r"\n## Use without ave-clip\n.*?(?=\n## |\Z)", "\n", text, flags=re.DOTALL)
    before, heading, after = text.partition("\n## Training data\n")
    return f"{before.rstrip()}\n\n{usage}{heading}{after}" if heading else f"{text.rstrip()}\n\n{usage}"


def _find_file(source: str | os.PathLike, name: str) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
