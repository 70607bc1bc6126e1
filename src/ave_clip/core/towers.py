"""Facts about towers: the sizes of their features, their commits, and the concepts that their classes stand for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from .builtin_checkpoints import builtin_checkpoints, resolve_checkpoint
from .concepts import RANGE, SEPARATOR, ConceptTable
from .encoders import Encoder
from .processing_ave_clip import AVEClipProcessor


@torch.no_grad()
def measure(seen: Encoder, heard: Encoder, processor: AVEClipProcessor) -> dict[str, Any]:
    """Encodes an empty image and a silent window, to learn the sizes of the features.

    Raises:
        ValueError: If a model does not encode them.
    """
    frame = processor.video_processor.frame_transform()(np.zeros((64, 64, 3), dtype=np.uint8))
    pixels = processor.video_processor.normalize_pixels(torch.from_numpy(frame).permute(2, 0, 1))[None]
    audio = torch.from_numpy(processor.prepare_windows([np.zeros(processor.window_samples, dtype=np.float32)]))
    results: list[Any] = []
    for what, encode, inputs in (("images", seen.image, pixels), ("audio", heard.audio, audio)):
        tower = seen if what == "images" else heard
        try:
            results.append(encode(inputs.to(tower.model.device)))
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"A model of the type {tower.model.config.model_type!r} does not encode {what} ({error}). It needs "
                f"`get_{what.removesuffix('s')}_features` or class `logits`; docs/encoders.md lists models that work."
            ) from error
    image, sound = results
    return {
        "image_feature_size": image.pooled.shape[-1],
        "image_map_size": image.locations.shape[-1],
        "num_image_locations": image.locations.shape[1],
        "audio_feature_size": sound.pooled.shape[-1],
    }


def commit_of(source: str, revision: str | None) -> str | None:
    """The commit of a model of the Hub; `None` for a folder."""
    return extract_commit_hash(cached_file(resolve_checkpoint(source), CONFIG_NAME, revision=revision), None)


def concepts_for(audio_names: Sequence[str], image_names: Sequence[str]) -> list[dict[str, str]]:
    """Rows of the built-in table of concepts, with the names of other classifiers' classes.

    Args:
        audio_names (`Sequence[str]`), image_names (`Sequence[str]`):
            Names of the classes in index order; none for a tower that takes texts.
    """
    folder = builtin_checkpoints().get("ave-clip-mini")
    if folder is None:  # this file is a copy that was saved with a checkpoint
        return []
    content = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))
    known = [list(content[part]["id2label"].values()) for part in ("audio_config", "image_config")]
    table = ConceptTable(content["concepts"], *known)
    renamed = [same_classes(names, others) for names, others in zip(known, (audio_names, image_names))]
    rows = []
    for row, concept in zip(content["concepts"], table.concepts):
        audio, image = (
            SEPARATOR.join(name for name in (mapping[index] for index in classes) if name)
            for mapping, classes in zip(renamed, (concept.audio_classes, concept.image_classes))
        )
        if audio or image:
            rows.append({**row, "audio_tags": audio, "image_classes": image})
    return rows


def same_classes(names: Sequence[str], others: Sequence[str]) -> list[str | None]:
    """For each class of one classifier, the name of the same class of another; `None` if it has none."""
    usable = [name if SEPARATOR not in name and RANGE not in name else None for name in others]
    first = [name.split(",")[0].strip().casefold() for name in others]
    own = [name.split(",")[0].strip().casefold() for name in names]
    agreeing = sum(name == other for name, other in zip(own, first))
    if len(names) == len(others) and agreeing > len(names) / 2:
        return usable  # one list of classes with other synonyms, such as ImageNet's: the order is the same
    exact = {name.casefold(): other for name, other in zip(others, usable)}
    by_first = dict(zip(first, usable))
    return [exact.get(name.casefold(), by_first.get(head)) for name, head in zip(names, own)]


__all__ = ["commit_of", "concepts_for", "measure", "same_classes"]
