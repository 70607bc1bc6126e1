"""Stage 2's features on disk: one folder per split, shards in safetensors, a manifest that says how they were made.

```
features/train/manifest.json            what made them, and which rows each shard holds
features/train/shard-00000.safetensors  rows, labels, segment_mask, image_features, audio_features
```
Every file appears under its final name only when it is whole, so a run that was killed goes on where it stopped:
shards that stand are not made again. A shard remembers the fingerprint of what made it, so shards of two different
encoders, settings or data sets never end up in one store.

Shapes: R rows of a shard, T segments, P picture locations, D feature width.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from ..data.collation import collate_rows
from ..files import atomic_file
from .arguments import write_json

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1


class FeatureStoreError(ValueError):
    """A feature store is missing, incomplete, damaged, or was made by something else than what asks for it."""


def encoder_fingerprint(towers: Mapping[str, torch.nn.Module]) -> str:
    """Hash the weights and buffers of the encoders, so that features can be traced to what made them.

    Args:
        towers (`Mapping[str, torch.nn.Module]`): The encoders by name.

    Returns:
        `str`: 16 hexadecimal digits; the same for equal weights, wherever they were loaded from.
    """
    digest = hashlib.sha256()
    for tower_name, tower in sorted(towers.items()):
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(f"{tower_name}.{name}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


class FeatureWriter:
    """Writes the shards of one split; several processes may write different shards of the same folder.

    Args:
        folder (`str` or `os.PathLike`): Folder of the split; made when missing.
        description (`Mapping[str, Any]`): What makes the features: `encoder_fingerprint`, `clips_fingerprint`,
            `visual_feature_type`, `num_frames_per_segment`, `segment_seconds`, `dtype`, `id2label` and whatever else
            a reader must know.
        rows (`Sequence[int]`): All rows of the split, in order.
        rows_per_shard (`int`): Rows of a shard.
    """

    def __init__(
        self, folder: str | os.PathLike, description: Mapping[str, Any], rows: Sequence[int], rows_per_shard: int = 64
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.description = dict(description)
        rows = [int(row) for row in rows]
        self.shards = [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]

    @property
    def fingerprint(self) -> str:
        """Hash of the description and of how rows fall into shards."""
        content = json.dumps([FORMAT_VERSION, self.description, self.shards], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def is_done(self, shard: int) -> bool:
        """Tell whether a shard stands already.

        Raises:
            FeatureStoreError: where it was made by something else.
        """
        if not self.path(shard).exists():
            return False
        found = _shard_metadata(self.path(shard)).get("fingerprint")
        if found != self.fingerprint:
            raise FeatureStoreError(
                f"{self.path(shard)} was made from other clips or labels, with other settings or by another encoder "
                f"(fingerprint {found}, now {self.fingerprint}). Write to another folder, or delete "
                f"{self.folder} first."
            )
        return True

    def write(
        self, shard: int, clips: Sequence[Mapping[str, torch.Tensor]], failed: Mapping[int, str] | None = None
    ) -> None:
        """Write one shard atomically.

        Args:
            shard (`int`): Its number.
            clips (`Sequence[Mapping[str, torch.Tensor]]`): Its rows that could be read, each with `row` (scalar),
                `labels` `(T,)`, `image_features` `(T, P, D)` or `(T, D)` and `audio_features` `(T, D)`.
            failed (`Mapping[int, str]`, *optional*): Its rows that could not be read, with the reason.
        """
        metadata = {"fingerprint": self.fingerprint, "failed": json.dumps(dict(failed or {}))}
        batch = collate_clips(clips) if clips else {}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in batch.items()}
        with atomic_file(self.path(shard)) as partial:
            save_file(tensors, partial, metadata=metadata)

    def finish(self, split: str) -> dict[str, Any]:
        """Write the manifest, once every shard stands.

        Args:
            split (`str`): Name of the split.

        Returns:
            `dict[str, Any]`: the manifest; `failed` maps the rows that could not be read to the reason.

        Raises:
            FeatureStoreError: where a shard is missing or lacks a row without a reason.
        """
        shards, failed = [], {}
        for number, wanted in enumerate(self.shards):
            if not self.is_done(number):
                raise FeatureStoreError(f"{self.path(number)} is missing: run the extraction again to make it.")
            rows, reasons = _shard_rows(self.path(number))
            lost = set(wanted) - set(rows) - set(reasons)
            if lost:
                raise FeatureStoreError(f"{self.path(number)} lacks rows {sorted(lost)}: delete it and run again.")
            shards.append({"file": self.path(number).name, "rows": rows})
            failed |= reasons
        manifest = {"format_version": FORMAT_VERSION, "split": split, **self.description}
        manifest |= {"fingerprint": self.fingerprint, "failed": failed, "shards": shards}
        write_json(self.folder / MANIFEST_FILE, manifest)
        return manifest


class FeatureStore(Dataset):
    """Reads one split of features lazily, one row at a time; memory does not grow with the number of clips.

    Args:
        folder (`str` or `os.PathLike`): Folder that `FeatureWriter` filled.

    Raises:
        FeatureStoreError: where the folder holds no finished store.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        path = self.folder / MANIFEST_FILE
        if not path.exists():
            raise FeatureStoreError(
                f"{self.folder} holds no {MANIFEST_FILE}: either it is no feature folder, or the extraction did not "
                "finish. Run examples/extract_features.py again; it goes on where it stopped."
            )
        self.manifest = json.loads(path.read_text(encoding="utf-8"))
        if self.manifest.get("format_version") != FORMAT_VERSION:
            raise FeatureStoreError(
                f"{path} has format {self.manifest.get('format_version')}; this version of ave-clip reads "
                f"{FORMAT_VERSION}. Extract the features again."
            )
        shards = self.manifest["shards"]
        self._places = [(shard["file"], index) for shard in shards for index in range(len(shard["rows"]))]
        self.rows = [row for shard in shards for row in shard["rows"]]
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one row: `row` (its number, a scalar), `labels` and `segment_mask` `(T,)`, and both features."""
        file, position = self._places[index]
        shard = self._shard(file)
        clip = {name: shard.get_slice(name)[position] for name in shard.keys()}  # noqa: SIM118
        return {"row": clip.pop("rows"), **clip}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files do not travel to workers

    def check_encoder(self, fingerprint: str) -> None:
        """Make sure that an encoder is the one that made these features.

        Args:
            fingerprint (`str`): Result of `encoder_fingerprint`.

        Raises:
            FeatureStoreError: where it is another one.
        """
        if self.manifest["encoder_fingerprint"] != fingerprint:
            raise FeatureStoreError(
                f"The features in {self.folder} were made by another encoder (fingerprint "
                f"{self.manifest['encoder_fingerprint']}) than the one given ({fingerprint}). Pass the encoder of "
                "stage 2, or extract the features again with this one."
            )

    def _shard(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, "pt")
            except (OSError, SafetensorError) as error:
                raise FeatureStoreError(
                    f"{self.folder / file} is missing or damaged ({error}). Delete it and run the extraction again: "
                    "only this shard is made anew."
                ) from error
        return self._open[file]


def collate_clips(clips: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Batch clips of `FeatureStore` or `ClipReader` by `collate_rows`; unreadable ones (with an `error`) are left out.

    Raises:
        ValueError: where no clip could be read.
    """
    readable = [clip for clip in clips if "error" not in clip]
    if not readable:
        raise ValueError(f"None of {len(clips)} clips could be read. The first: {clips[0]['error']}")
    return collate_rows(readable)


def _shard_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as shard:
            return shard.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise FeatureStoreError(f"{path} is damaged ({error}). Delete it and run the extraction again.") from error


def _shard_rows(path: Path) -> tuple[list[int], dict[int, str]]:
    with safe_open(path, "pt") as shard:
        rows = shard.get_tensor("rows").tolist() if "rows" in shard.keys() else []  # noqa: SIM118
        failed = json.loads(shard.metadata()["failed"])
    return rows, {int(row): reason for row, reason in failed.items()}
