"""How the stages hand their models on: AudioCLIP (pretrained or from a configuration) -> localizer on its towers."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from ..configuration_audioclip import AudioCLIPConfig
from ..configuration_ave_clip import AVEClipConfig
from ..feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ..modeling_audioclip import AudioCLIPModel
from ..modeling_ave_clip import AVEClipForLocalization
from ..processing_ave_clip import AVEClipProcessor
from ..video_processing_ave_clip import AVEClipVideoProcessor
from .features import encoder_fingerprint

TOWERS = ("vision_model", "audio_model")


class CheckpointError(ValueError):
    """A checkpoint of a training run cannot be written or read back."""


def load_audioclip(source: str | os.PathLike) -> AudioCLIPModel:
    """Load AudioCLIP from a checkpoint, or make an untrained one from a configuration file.

    Args:
        source (`str` or `os.PathLike`): Checkpoint folder or Hub id; or the path of a `.json` configuration, whose
            weights are then drawn at random (set the seed first).
    """
    if Path(source).suffix == ".json":
        return AudioCLIPModel(AudioCLIPConfig.from_json_file(source))
    return AudioCLIPModel.from_pretrained(source)


def load_feature_extractor(source: str | os.PathLike, config: AudioCLIPConfig) -> AudioCLIPFeatureExtractor:
    """Load a checkpoint's feature extractor; a `.json` configuration gets one at its sampling rate."""
    if Path(source).suffix == ".json":
        return AudioCLIPFeatureExtractor(sampling_rate=config.audio_config.sampling_rate)
    return AudioCLIPFeatureExtractor.from_pretrained(source)


def build_processor(
    config: AudioCLIPConfig,
    feature_extractor: AudioCLIPFeatureExtractor,
    num_frames_per_segment: int,
    segment_seconds: float = 1.0,
    localizer: AVEClipConfig | None = None,
) -> AVEClipProcessor:
    """Make the processor that feeds AudioCLIP's towers from video files.

    Args:
        config (`AudioCLIPConfig`): Says how large pictures are.
        feature_extractor (`AudioCLIPFeatureExtractor`): For the sound.
        num_frames_per_segment (`int`): Frames of each segment.
        segment_seconds (`float`): Length of a segment.
        localizer (`AVEClipConfig`, *optional*): Gives the names of the classes and the default of post-processing.
    """
    side = config.vision_config.image_size
    video_processor = AVEClipVideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        num_frames_per_segment=num_frames_per_segment,
        segment_seconds=segment_seconds,
    )
    decoding = {}
    if localizer is not None:
        decoding = {"id2label": localizer.id2label, "min_event_segments": localizer.min_event_segments}
    return AVEClipProcessor(feature_extractor=feature_extractor, video_processor=video_processor, **decoding)


def load_encoder(source: str | os.PathLike) -> AudioCLIPModel | AVEClipForLocalization:
    """Load a checkpoint that holds AudioCLIP's image and audio towers: AudioCLIP itself, or a localizer."""
    if AutoConfig.from_pretrained(source).model_type == AVEClipConfig.model_type:
        return AVEClipForLocalization.from_pretrained(source)
    return AudioCLIPModel.from_pretrained(source)


def audioclip_config(encoder: AudioCLIPModel | AVEClipForLocalization) -> AudioCLIPConfig:
    """The configuration of an encoder's towers."""
    return getattr(encoder.config, "audioclip_config", encoder.config)


def check_towers(encoder: AudioCLIPModel | AVEClipForLocalization) -> None:
    """Make sure that there are an image and an audio tower.

    Raises:
        CheckpointError: for a localizer of features alone.
    """
    if not all(hasattr(encoder, tower) for tower in TOWERS):
        raise CheckpointError(
            "This checkpoint has no image and audio tower (it was trained on features of another kind). Pass an "
            "AudioCLIP or a localizer on its towers; measure this one on features of its kind (--h5_dir)."
        )


def build_localizer(
    encoder: AudioCLIPModel | AVEClipForLocalization,
    id2label: Mapping[int, str],
    overrides: Mapping[str, Any] | None = None,
) -> AVEClipForLocalization:
    """Put an untrained localizer on AudioCLIP's towers, which are frozen.

    Args:
        encoder (`AudioCLIPModel` or `AVEClipForLocalization`): Its image and audio towers are copied.
        id2label (`Mapping[int, str]`): Names of the classes, background last.
        overrides (`Mapping[str, Any]`, *optional*): Further fields of `AVEClipConfig`.

    Raises:
        CheckpointError: where the encoder is a localizer without towers, or one without is asked for.
    """
    check_towers(encoder)
    names = {int(index): label for index, label in id2label.items()}
    towers = audioclip_config(encoder).to_dict()
    towers.pop("_name_or_path", None)  # a place on this machine
    config = AVEClipConfig(audioclip_config=towers, id2label=names, **(overrides or {}))
    if not config.use_encoders:
        raise CheckpointError("use_encoders=False asks for a localizer without towers: those learn from --h5_dir.")
    localizer = AVEClipForLocalization(config)
    for tower in TOWERS:
        getattr(localizer, tower).load_state_dict(getattr(encoder, tower).state_dict())
    localizer.freeze_encoders()
    return localizer


def towers_fingerprint(encoder: AudioCLIPModel | AVEClipForLocalization) -> str:
    """Hash of both towers' weights: the same for AudioCLIP and for a localizer that was built on it.

    Raises:
        CheckpointError: where the localizer has no towers.
    """
    check_towers(encoder)
    return encoder_fingerprint({tower: getattr(encoder, tower) for tower in TOWERS})


def save_checkpoint(folder: str | os.PathLike, localizer: AVEClipForLocalization, processor: Any = None) -> None:
    """Write a localizer and its processor; whatever fails, the files that were there before stay whole.

    Args:
        folder (`str` or `os.PathLike`): Made when missing; other files in it are left alone.
        localizer (`AVEClipForLocalization`): The model without wrapping.
        processor (`AVEClipProcessor`, *optional*): That feeds it.

    Raises:
        CheckpointError: where it cannot be written, as on a full disk.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for leftover in target.glob(".checkpoint-*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=target, ignore_cleanup_errors=True) as partial:
            localizer.save_pretrained(partial)
            if processor is not None:
                processor.save_pretrained(partial)
            for path in Path(partial).iterdir():
                os.replace(path, target / path.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The model could not be written to {target} ({error}). What was there before is whole. Free space "
            "and go on with --resume."
        ) from error


def load_trained_weights(localizer: AVEClipForLocalization, folder: str | os.PathLike) -> None:
    """Bring back the weights that `save_checkpoint` wrote into the same localizer.

    Args:
        localizer (`AVEClipForLocalization`): The model without wrapping.
        folder (`str` or `os.PathLike`): The checkpoint.

    Raises:
        CheckpointError: where it is missing, damaged, or of another localizer.
    """
    path = Path(folder) / SAFE_WEIGHTS_NAME
    try:
        localizer.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}, the best localizer of this run, is missing, damaged or of another one ({error}). Train again "
            "with --overwrite."
        ) from error
