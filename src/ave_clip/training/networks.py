"""Networks that stage 3 can train on features alone, by name: AVE-CLIP without its towers, and its rivals.

A name may be followed by fields of the network's configuration: `ave-clip:input_dropout=0:use_refiner=true`.
"""

from collections.abc import Mapping
from typing import Any

from ..core.configuration_ave_clip import PRESETS, AVEClipConfig
from ..core.modeling_ave_clip import AVEClipForLocalization
from ..rivals import RIVALS, Rival, RivalConfig, build_rival
from .arguments import parse_overrides
from .clip_windows import clip_lengths
from .splits import FeatureSplits, H5Splits, SplitError

# Preset and title of each network of this package.
_AVE_CLIP = {
    "ave-clip": ("default", "AVE-CLIP, default"),
    "ave-clip-paper": ("paper", "AVE-CLIP, paper preset"),
}
NETWORKS: tuple[str, ...] = (*_AVE_CLIP, *RIVALS)


def parse_network(text: str) -> tuple[str, dict[str, Any]]:
    """Parses the name of a network and the fields behind it.

    Raises:
        ValueError: If there is no network of that name, or it does not have such a field.
    """
    name, *fields = text.split(":")
    return name, parse_overrides(fields, network_config(name))


def network_config(text: str) -> type[AVEClipConfig] | type[RivalConfig]:
    """Returns the class of a network's configuration.

    Raises:
        ValueError: If there is no network of that name.
    """
    name = text.partition(":")[0]
    if name not in NETWORKS:
        raise ValueError(f"There is no network {name!r}: choose one of {', '.join(NETWORKS)}.")
    return AVEClipConfig if name in _AVE_CLIP else RivalConfig


def network_title(text: str) -> str:
    """Returns the name of a network in tables."""
    name, _ = parse_network(text)
    title = _AVE_CLIP[name][1] if name in _AVE_CLIP else RIVALS[name].title
    return ", ".join([title, *text.split(":")[1:]])


def supports(text: str, supervision: str) -> bool:
    """Whether a network is defined for `"full"` or `"weak"` supervision.

    Raises:
        ValueError: If there is no network of that name, or it does not have such a field.
    """
    name, _ = parse_network(text)
    return name in _AVE_CLIP or supervision in RIVALS[name].settings


def build_network(
    text: str, source: FeatureSplits | H5Splits, overrides: Mapping[str, Any] | None = None
) -> AVEClipForLocalization | Rival:
    """Builds an untrained network for the sizes and classes of features.

    Args:
        text (`str`): A name of `NETWORKS`, and fields behind it.
        source (`FeatureSplits` or `H5Splits`): The features.
        overrides (`Mapping[str, Any]`, *optional*): Fields of its configuration.

    Raises:
        ValueError: If there is no network of that name, or it does not have such a field.
        SplitError: If there is no training split.
    """
    name, fields = parse_network(text)
    overrides = {**(overrides or {}), **fields}
    clips = source.open("train")
    if clips is None or not len(clips):
        raise SplitError("There is no train split, from which the sizes of the features are read.")
    clip = clips[0]
    image, audio = clip["image_features"], clip["audio_features"]
    options: dict[str, Any] = {"image_feature_size": image.shape[-1], "audio_feature_size": audio.shape[-1]}
    if name in _AVE_CLIP:
        preset, _ = _AVE_CLIP[name]
        options = {**PRESETS[preset], **source.overrides, **options, "use_encoders": False, **overrides}
        return AVEClipForLocalization(AVEClipConfig(id2label=source.id2label, **options))
    options["num_locations"] = 1 if image.dim() == 2 else image.shape[1:-1].numel()
    if "problem_type" in source.overrides:
        options["problem_type"] = source.overrides["problem_type"]
    if RIVALS[name].has_segment_weights:
        options["max_segments"] = max(clip_lengths(clips) or [len(audio)])
    return build_rival(name, RivalConfig(id2label=source.id2label, **{**options, **overrides}))
