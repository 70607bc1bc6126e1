"""Training with an open vocabulary: embeddings of the label texts, and classes that are held out of training.

The embeddings are stored beside the features of stage 2, in `label_embeddings.safetensors`, so that stage 3 and the
evaluation need no text tower.

T segments, C classes, E width of an embedding.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers.utils import logging

from ..core.label_space import LabelSpace
from ..core.losses import IGNORED_LABEL
from ..core.modeling_ave_clip import AVEClipForLocalization
from ..files import atomic_file
from .clip_windows import labels_of, read_clip_window, truth_of
from .features import FeatureStoreError
from .splits import Clips, LabelledClips

if TYPE_CHECKING:
    import datasets

logger = logging.get_logger(__name__)

LABEL_FILE = "label_embeddings.safetensors"
_METADATA = "ave_clip"


def save_label_embeddings(
    folder: str | os.PathLike, names: Sequence[str], embeddings: torch.Tensor, encoder_fingerprint: str
) -> None:
    """Writes embeddings `(C, E)` of the class names beside the features of an encoder."""
    content = {"names": list(names), "encoder_fingerprint": encoder_fingerprint}
    with atomic_file(Path(folder) / LABEL_FILE) as partial:
        save_file({"label_embeddings": embeddings}, partial, metadata={_METADATA: json.dumps(content)})


def load_label_embeddings(folder: str | os.PathLike, names: Sequence[str], encoder_fingerprint: str) -> torch.Tensor:
    """Reads the embeddings `(C, E)` of classes beside features.

    Raises:
        FeatureStoreError: if there are none, a class is not among them, or they are of another encoder than the
            features.
    """
    path = Path(folder) / LABEL_FILE
    if not path.exists():
        raise FeatureStoreError(
            f"{folder} has no {LABEL_FILE}: its encoder has no text tower, or the features were made by an earlier "
            "version. An open vocabulary needs an encoder that takes texts (AudioCLIP with its tokenizer, PE-AV, or a "
            "composite such as SigLIP and CLAP); run extract_features.py with it."
        )
    try:
        with safe_open(path, "pt") as file:
            content = json.loads(file.metadata()[_METADATA])
            embeddings = file.get_tensor("label_embeddings")
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise FeatureStoreError(
            f"{path} is damaged ({error}). Run extract_features.py again: it rewrites it."
        ) from error
    if content["encoder_fingerprint"] != encoder_fingerprint:
        raise FeatureStoreError(
            f"{path} was made by another encoder (fingerprint {content['encoder_fingerprint']}) than the features "
            f"(fingerprint {encoder_fingerprint}). Run extract_features.py again."
        )
    missing = [name for name in names if name not in content["names"]]
    if missing:
        raise FeatureStoreError(f"{path} has no embedding of the class {missing[0]!r}, only of {content['names']}.")
    return embeddings[[content["names"].index(name) for name in names]]


def unseen_of_data(splits: Mapping[str, "datasets.Dataset"]) -> list[str] | None:
    """Returns the classes that a data set calls unseen (OV-AVEBench); `None` if it does not tell.

    Raises:
        ValueError: if videos of a class are partly seen and partly unseen.
    """
    features = next(iter(splits.values())).features
    if "seen" not in features:
        return None
    names = features["category"].names
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for rows in splits.values():
        for row in rows.select_columns(["category", "seen"]).with_format(None):
            if row["category"] is not None and row["seen"] is not None:
                found[row["seen"]].add(row["category"])
    both = found[True] & found[False]
    if both:
        raise ValueError(f"The class {names[min(both)]!r} is called seen for some videos and unseen for others.")
    return [names[label] for label in sorted(found[False])]


def check_unseen(unseen: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes that are held out of training, in the order of `names`.

    Raises:
        ValueError: if one is not among the classes of the data set, or none is left to train.
    """
    unknown = [name for name in unseen if name not in names]
    if unknown:
        raise ValueError(f"--unseen_labels names {unknown[0]!r}, but the classes of the data set are {list(names)}.")
    if set(unseen) >= set(names):
        raise ValueError("All classes of the data set are unseen, so there is nothing to train on.")
    return tuple(name for name in names if name in unseen)


@dataclass
class Vocabulary:
    """The classes of a training with an open vocabulary.

    Args:
        names (`tuple[str, ...]`): All event classes of the data set.
        embeddings (`torch.Tensor` of shape `(C, E)`): Embeddings of their names.
        unseen (`tuple[str, ...]`): Those that are held out of training and of the choice of the best epoch.
    """

    names: tuple[str, ...]
    embeddings: torch.Tensor
    unseen: tuple[str, ...] = ()

    @property
    def seen(self) -> tuple[str, ...]:
        """The classes that are trained."""
        return tuple(name for name in self.names if name not in self.unseen)

    def use_seen(self, model: AVEClipForLocalization) -> None:
        """Gives a localizer the trained classes alone: others must not even be wrong answers."""
        places = [self.names.index(name) for name in self.seen]
        model.set_labels(self.seen, self.embeddings[places])
        model.config.trained_labels = self.seen

    def use_all(self, model: AVEClipForLocalization) -> None:
        """Gives a localizer all classes of the data set."""
        model.set_labels(self.names, self.embeddings)

    @contextmanager
    def all_labels(self, model: AVEClipForLocalization) -> Iterator[None]:
        """Context in which a localizer has all classes, such as for saving; then it has the trained ones again."""
        self.use_all(model)
        try:
            yield
        finally:
            self.use_seen(model)

    def seen_clips(self, clips: Clips, split: str) -> "SeenClips":
        """Returns the clips without events of unseen classes; the number of the others is logged.

        Raises:
            ValueError: if no clip is left.
        """
        rest = SeenClips(clips, self.names, self.unseen)
        left_out = len(clips) - len(rest)
        if not len(rest):
            raise ValueError(
                f"All {len(clips)} clips of the {split} split have events of the unseen classes {list(self.unseen)}."
            )
        if left_out:
            logger.warning(
                f"{split}: {left_out} of {len(clips)} clips have events of unseen classes and are left out."
            )
        return rest


class SeenClips(Dataset):
    """The clips without any event of an unseen class, with labels of the seen classes only.

    Args:
        clips (`LabelledClips`): All clips of a split.
        names (`Sequence[str]`): The event classes of their labels.
        unseen (`Sequence[str]`): Some of them.
    """

    def __init__(self, clips: Any, names: Sequence[str], unseen: Sequence[str]):
        self.clips: LabelledClips = clips
        held_out = {index for index, name in enumerate(names) if name in unseen}
        self.columns = [index for index in range(len(names)) if index not in held_out]
        facts = list(truth_of(clips).values())  # in the order of the rows
        if len(facts) != len(clips):
            raise ValueError("These clips have no annotated events, by which unseen classes are recognized.")
        events = ({event["label"] for event in fact["events"] or ()} for fact in facts)
        self.places = [place for place, labels in enumerate(events) if not labels & held_out]
        # Index of each class among the seen ones; background, which is last, stays last.
        self.index = torch.full((len(names) + 1,), IGNORED_LABEL)
        self.index[[*self.columns, len(names)]] = torch.arange(len(self.columns) + 1)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> list[int] | None:
        """Number of segments of each clip."""
        lengths = self.clips.lengths
        return None if lengths is None else [lengths[place] for place in self.places]

    @property
    def truth(self) -> dict[int, dict[str, Any]]:
        """The truth of each row, with the indices of the seen classes."""
        rows = list(truth_of(self.clips).items())
        found = {}
        for row, fact in (rows[place] for place in self.places):
            events = fact["events"]
            if events is not None:
                events = [{**event, "label": int(self.index[event["label"]])} for event in events]
            found[row] = {**fact, "events": events}
        return found

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._seen(self.clips[self.places[index]])

    def labels_of(self, index: int) -> torch.Tensor:
        """Returns the labels of a clip without reading its features or its video."""
        return self._labels(labels_of(self.clips, self.places[index]), "labels")

    def window(self, index: int, first: int = 0, length: int | None = None) -> dict[str, Any]:
        """Returns a window of a clip."""
        return self._seen(read_clip_window(self.clips, self.places[index], first, length))

    def _seen(self, clip: Mapping[str, Any]) -> dict[str, Any]:
        changed = {name: self._labels(clip[name], name) for name in ("labels", "video_label") if name in clip}
        return {**clip, **changed}

    def _labels(self, labels: Any, name: str) -> torch.Tensor:
        labels = torch.as_tensor(labels, dtype=torch.long)
        if labels.dim() == (2 if name == "labels" else 1):  # 0 or 1 per class
            return labels[..., self.columns]
        known = labels != IGNORED_LABEL
        return torch.where(known, self.index[labels.where(known, torch.zeros_like(labels))], labels)


def set_data_labels(model: AVEClipForLocalization, names: Sequence[str], folder: str | os.PathLike | None) -> None:
    """Gives a localizer with an open vocabulary the classes of a data set, also ones that were not trained.

    Args:
        model (`AVEClipForLocalization`): The localizer.
        names (`Sequence[str]`): The event classes of the data set.
        folder (`str` or `os.PathLike`, *optional*): Features of stage 2, whose embeddings are used for all classes.
            Without it, only classes that the localizer has are possible, unless it has a `label_encoder`.

    Raises:
        ValueError: if a class has no embedding.
    """
    if list(names) == list(LabelSpace.of(model.config).event_names):
        return
    embeddings = None
    if folder is not None and (Path(folder) / LABEL_FILE).exists():
        from .checkpoints import towers_fingerprint

        embeddings = load_label_embeddings(folder, names, towers_fingerprint(model))
    model.set_labels(names, embeddings)
