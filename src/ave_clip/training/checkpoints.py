"""Loads and saves the models that the stages pass on: encoders of images and audio, and localizers built on them."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from ..core.builtin_checkpoints import find_checkpoint
from ..core.configuration_audio_visual_encoder import AudioVisualEncoderConfig
from ..core.configuration_audioclip import AudioCLIPConfig
from ..core.configuration_ave_clip import AVEClipConfig
from ..core.encoders import encoder_for, shared_space_of
from ..core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ..core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ..core.modeling_audioclip import AudioCLIPModel
from ..core.modeling_ave_clip import AVEClipForLocalization
from ..core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ..core.processing_ave_clip import AVEClipProcessor
from ..core.video_processing_ave_clip import AVEClipVideoProcessor
from ..files import workshop_beside
from .features import encoder_fingerprint

TOWERS = ("vision_model", "audio_model")
# What a localizer can be built on.
EncoderModel = AudioCLIPModel | AudioVisualEncoderModel | AVEClipForLocalization
ENCODER_MODELS: dict[str, Any] = {
    model.config_class.model_type: model for model in (AudioCLIPModel, AudioVisualEncoderModel, AVEClipForLocalization)
}


class CheckpointError(ValueError):
    """A checkpoint of a training run cannot be written or loaded."""


def load_audioclip(source: str | os.PathLike) -> AudioCLIPModel:
    """Loads AudioCLIP from a checkpoint, or builds an untrained one from a configuration file.

    Args:
        source (`str` or `os.PathLike`): Checkpoint folder or Hub id; or the path of a `.json` configuration for
            random weights (set the seed first).
    """
    if Path(source).suffix == ".json":
        return AudioCLIPModel(AudioCLIPConfig.from_json_file(source))
    return AudioCLIPModel.from_pretrained(find_checkpoint(source))


def load_feature_extractor(source: str | os.PathLike, config: AudioCLIPConfig) -> AudioCLIPFeatureExtractor:
    """Loads the feature extractor of a checkpoint; for a `.json` configuration, builds one with its sampling rate."""
    if Path(source).suffix == ".json":
        return AudioCLIPFeatureExtractor(sampling_rate=config.audio_config.sampling_rate)
    return AudioCLIPFeatureExtractor.from_pretrained(source)


def processor_to_save(
    source: str | os.PathLike, encoder: AudioCLIPModel | AudioVisualEncoderModel
) -> AudioCLIPFeatureExtractor | AudioVisualEncoderProcessor:
    """Loads what is saved with an encoder besides its weights: AudioCLIP's feature extractor, or a processor.

    Args:
        source (`str` or `os.PathLike`): Where the encoder was loaded from.
        encoder (`AudioCLIPModel` or `AudioVisualEncoderModel`): The encoder.
    """
    if isinstance(encoder, AudioCLIPModel):
        return load_feature_extractor(source, encoder.config)
    return load_saved_processor(source)


def load_saved_processor(source: str | os.PathLike) -> Any:
    """Loads the processor that was saved with a composite or a localizer, or joins one for another model."""
    is_saved = AutoConfig.from_pretrained(find_checkpoint(source)).model_type in ENCODER_MODELS
    return (AutoProcessor.from_pretrained if is_saved else AudioVisualEncoderProcessor.from_towers)(os.fspath(source))


def build_processor(
    config: AudioCLIPConfig,
    feature_extractor: AudioCLIPFeatureExtractor,
    num_frames_per_segment: int,
    segment_seconds: float = 1.0,
    localizer: AVEClipConfig | None = None,
) -> AVEClipProcessor:
    """Builds the processor that reads video files for AudioCLIP's towers.

    Args:
        config (`AudioCLIPConfig`): Defines the size of the frames.
        feature_extractor (`AudioCLIPFeatureExtractor`): Processes the audio.
        num_frames_per_segment (`int`): Frames per segment.
        segment_seconds (`float`): Length of each segment.
        localizer (`AVEClipConfig`, *optional*): Defines the class names and the default post-processing.
    """
    side = config.vision_config.image_size
    video_processor = AVEClipVideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        num_frames_per_segment=num_frames_per_segment,
        segment_seconds=segment_seconds,
    )
    decoding = {} if localizer is None else decoding_options(localizer)
    return AVEClipProcessor(feature_extractor=feature_extractor, video_processor=video_processor, **decoding)


def decoding_options(localizer: AVEClipConfig) -> dict[str, Any]:
    """Returns the arguments of [`AVEClipProcessor`] that are fields of a localizer's configuration."""
    names = ("id2label", "min_event_segments", "problem_type", "event_threshold")
    return {name: getattr(localizer, name) for name in names}


def load_processor(
    source: str | os.PathLike,
    encoder: EncoderModel,
    num_frames_per_segment: int,
    segment_seconds: float = 1.0,
    localizer: AVEClipConfig | None = None,
) -> AVEClipProcessor:
    """Builds the processor that reads video files for an encoder, from what was saved with it.

    Args:
        source (`str` or `os.PathLike`): Where the encoder was loaded from.
        encoder (`AudioCLIPModel`, `AudioVisualEncoderModel` or `AVEClipForLocalization`): The encoder.
        num_frames_per_segment, segment_seconds, localizer: As in `build_processor`.
    """
    config = encoder_config(encoder)
    if isinstance(config, AudioCLIPConfig):
        extractor = load_feature_extractor(source, config)
        return build_processor(config, extractor, num_frames_per_segment, segment_seconds, localizer)
    saved = load_saved_processor(source)
    video_processor = copy.deepcopy(saved.video_processor)
    video_processor.num_frames_per_segment = num_frames_per_segment
    video_processor.segment_seconds = segment_seconds
    return AVEClipProcessor(
        saved.feature_extractor,
        video_processor,
        audio_window_seconds=saved.audio_window_seconds,
        audio_options=saved.audio_options,
        **({} if localizer is None else decoding_options(localizer)),
    )


def load_encoder(source: str | os.PathLike) -> EncoderModel:
    """Loads an encoder of images and audio: an AudioCLIP, a composite, or the encoder inside a localizer.

    Another model that encodes both, such as `ave-clip-mini` or PE-AV, becomes a composite of one tower.

    Raises:
        OSError: If there is no such model.
        ValueError: If the model does not encode both.
    """
    model = ENCODER_MODELS.get(AutoConfig.from_pretrained(find_checkpoint(source)).model_type)
    return AudioVisualEncoderModel.from_towers(os.fspath(source)) if model is None else model.from_pretrained(source)


def load_shared_encoder(source: str | os.PathLike) -> AudioCLIPModel | AudioVisualEncoderModel:
    """Loads an encoder with one space for images and audio, to train it or to compare images with audio.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id; or the path of AudioCLIP's `.json` configuration for random
            weights (set the seed first).

    Raises:
        ValueError: If images and audio have no shared space, or the model is a localizer.
    """
    if Path(source).suffix == ".json":
        return load_audioclip(source)
    config = AutoConfig.from_pretrained(find_checkpoint(source))
    if config.model_type == AVEClipConfig.model_type:
        raise ValueError(
            f"{source} is a localizer, which contains a frozen encoder without its texts and scales. Pass the encoder "
            "itself."
        )
    shared_space_of(config, str(source))
    encoder = load_encoder(source)
    assert not isinstance(encoder, AVEClipForLocalization)  # refused above
    return encoder


def encoder_config(encoder: EncoderModel) -> AudioCLIPConfig | AudioVisualEncoderConfig:
    """Returns the configuration of an encoder, also of one inside a localizer."""
    return encoder.config.encoder_config if isinstance(encoder, AVEClipForLocalization) else encoder.config


def encoder_parts(encoder: EncoderModel) -> dict[str, PreTrainedModel]:
    """Returns the modules that a localizer copies: AudioCLIP's two towers, or one composite."""
    if isinstance(encoder, AudioVisualEncoderModel):
        return {"encoder": encoder}
    names = ("encoder",) if hasattr(encoder, "encoder") else TOWERS
    return {name: getattr(encoder, name) for name in names if hasattr(encoder, name)}


def check_towers(encoder: EncoderModel) -> None:
    """Checks that an encoder has an image and an audio tower.

    Raises:
        CheckpointError: if it is a localizer without towers.
    """
    if not encoder_parts(encoder):
        raise CheckpointError(
            "This checkpoint has no image and audio towers (it was trained on features of another kind). Pass "
            "an encoder or a localizer with its towers; evaluate this one on features of its kind (--h5_dir)."
        )


def build_localizer(
    encoder: EncoderModel,
    id2label: Mapping[int, str],
    overrides: Mapping[str, Any] | None = None,
) -> AVEClipForLocalization:
    """Builds an untrained localizer with a copy of an encoder, which is frozen.

    Args:
        encoder (`AudioCLIPModel`, `AudioVisualEncoderModel` or `AVEClipForLocalization`): Its towers are copied,
            without what only texts need.
        id2label (`Mapping[int, str]`): Class names, background last.
        overrides (`Mapping[str, Any]`, *optional*): Further fields of `AVEClipConfig`.

    Raises:
        CheckpointError: if the encoder is a localizer without towers, or `overrides` ask for one.
    """
    check_towers(encoder)
    names = {int(index): label for index, label in id2label.items()}
    towers = encoder_config(encoder).to_dict()
    towers.pop("_name_or_path", None)  # a path on this machine
    config = AVEClipConfig(encoder_config=towers, id2label=names, **(overrides or {}))
    if not config.use_encoders:
        raise CheckpointError(
            "use_encoders=False asks for a localizer without towers, which can only be trained with --h5_dir."
        )
    localizer = AVEClipForLocalization(config)
    for name, part in encoder_parts(encoder).items():
        target, state = getattr(localizer, name), part.state_dict()
        target.load_state_dict({key: state[key] for key in target.state_dict()})
    localizer.freeze_encoders()
    return localizer


def towers_fingerprint(encoder: EncoderModel) -> str:
    """Returns a hash of an encoder's weights: the same for the encoder itself and for a localizer built on it.

    Raises:
        CheckpointError: if the localizer has no towers.
    """
    check_towers(encoder)
    parts = encoder_parts(encoder)
    if "encoder" not in parts:
        return encoder_fingerprint(parts)
    # Without what only texts need, which a localizer does not have.
    prefixes = tuple(f"{name}." for name in encoder_for(parts["encoder"]).text_names())
    state = parts["encoder"].state_dict()
    return encoder_fingerprint({"encoder": {n: value for n, value in state.items() if not n.startswith(prefixes)}})


def save_checkpoint(folder: str | os.PathLike, model: EncoderModel, processor: Any = None) -> None:
    """Saves a localizer or an encoder, and its processor. If it fails, the previous files are kept.

    Args:
        folder (`str` or `os.PathLike`): Created if missing; other files in it are not changed.
        model (`AVEClipForLocalization` or an encoder): The model without wrapping.
        processor (*optional*): Its processor or feature extractor.

    Raises:
        CheckpointError: if it cannot be written, for example because the disk is full.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with workshop_beside(target / "checkpoint") as partial:
            model.save_pretrained(partial)
            if processor is not None:
                processor.save_pretrained(partial)
            for path in partial.rglob("*"):  # each file by itself: a folder cannot replace one that is not empty
                if path.is_file():
                    place = target / path.relative_to(partial)
                    place.parent.mkdir(exist_ok=True)
                    os.replace(path, place)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The model could not be written to {target} ({error}). The previous files are kept. Free space and "
            "continue with --resume."
        ) from error


def load_trained_weights(localizer: AVEClipForLocalization, folder: str | os.PathLike) -> None:
    """Loads the weights that `save_checkpoint` wrote back into the same localizer.

    Args:
        localizer (`AVEClipForLocalization`): The model without wrapping.
        folder (`str` or `os.PathLike`): The checkpoint.

    Raises:
        CheckpointError: if it is missing, damaged, or of another localizer.
    """
    path = Path(folder) / SAFE_WEIGHTS_NAME
    try:
        localizer.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}, the best localizer of this run, is missing, damaged or of another model ({error}). Train "
            "again with --overwrite."
        ) from error
