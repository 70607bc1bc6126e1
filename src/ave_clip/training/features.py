"""Stage 2's features on disk: one folder per split, shards in safetensors, a manifest that says how they were made.

```
features/train/manifest.json            what made them, and which rows each shard holds
features/train/shard-00000.safetensors  rows, labels, segment_mask, image_features, audio_features
```
Every file appears under its final name only when it is whole, so a run that was killed goes on where it stopped:
shards that stand are not made again. A shard remembers the settings that made it, each of its clips and a checksum of
each row, so shards of two encoders or settings never end up in one store, a clip that was replaced touches its own
shard only, and damage is found when a row is read.

Shapes: R rows of a shard, T segments, P picture locations, D feature width.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..data.annotations import IGNORED_LABEL
from ..data.collation import collate_rows
from ..files import atomic_file
from .arguments import write_json

logger = logging.get_logger(__name__)

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 2
# One entry: safetensors writes several in an order that changes from run to run.
METADATA_KEY = "ave_clip"
MAX_LISTED = 8


class SplitError(ValueError):
    """A split is missing, empty, unreadable or without labels."""


class FeatureStoreError(ValueError):
    """A feature store is missing, incomplete, damaged, or was made by something else than what asks for it."""


def encoder_fingerprint(towers: Mapping[str, torch.nn.Module]) -> str:
    """Hash the weights, buffers and configurations of the encoders, so that features can be traced to what made them.

    Args:
        towers (`Mapping[str, torch.nn.Module]`): The encoders by name.

    Returns:
        `str`: 16 hexadecimal digits; the same for equal encoders, wherever they were loaded from.
    """
    digest = hashlib.sha256()
    for tower_name, tower in sorted(towers.items()):
        digest.update(json.dumps(_own_settings(getattr(tower, "config", None)), sort_keys=True).encode())
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(f"{tower_name}.{name}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


class FeatureWriter:
    """Writes the shards of one split; the processes of one run may write different shards of the same folder.

    Args:
        folder (`str` or `os.PathLike`): Folder of the split; made when missing.
        settings (`Mapping[str, Any]`): Everything that changes the features or what their labels mean:
            `encoder_fingerprint`, `visual_feature_type`, `num_frames_per_segment`, `segment_seconds`, `dtype`,
            `id2label` and whatever else a reader must know. Shards made with others are refused.
        clips (`Mapping[int, str]`): All rows of the split, in order, with what identifies each one's video and
            labels.
        rows_per_shard (`int`): Rows of a shard.
        made_with (`Mapping[str, Any]`, *optional*): Versions and the like, kept with each shard and not compared.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Mapping[str, Any],
        clips: Mapping[int, str],
        rows_per_shard: int = 64,
        made_with: Mapping[str, Any] | None = None,
    ):
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1, got {rows_per_shard}.")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.clips = {int(row): identity for row, identity in clips.items()}
        self.made_with = dict(made_with or {})
        rows = list(self.clips)
        self.shards = [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def plan(self, retry_failed: bool = False, update: bool = False, verify: bool = False) -> list[int]:
        """Numbers of the shards that are to be made: those that are missing or damaged, and those asked for.

        Args:
            retry_failed (`bool`): Also shards that hold rows which could not be read.
            update (`bool`): Also shards whose clips changed since.
            verify (`bool`): Read every shard and compare its checksums.

        Raises:
            FeatureStoreError: where a shard was made with other settings, or, without `update`, of other clips.
        """
        states = {shard: self.state(shard, verify) for shard in range(len(self.shards))}
        wanted = {"missing", "damaged"} | ({"failed"} if retry_failed else set()) | ({"changed"} if update else set())
        changed = [shard for shard, state in states.items() if state == "changed"]
        if changed and not update:
            rows = [row for shard in changed for row in self._changed_rows(shard)]
            raise FeatureStoreError(
                f"{self.folder}: {len(changed)} of {len(states)} shards were made from other clips or labels; rows "
                f"{_shorten(rows)} differ. Was a video replaced, an annotation corrected, --rows_per_shard or "
                "--max_clips changed, or is it another data set? Pass --update to make these shards again, or write "
                "to another folder."
            )
        return [shard for shard, state in states.items() if state in wanted]

    def state(self, shard: int, verify: bool = False) -> str:
        """How a shard stands: `"done"`, `"failed"` (rows could not be read), `"changed"`, `"damaged"`, `"missing"`.

        Args:
            shard (`int`): Its number.
            verify (`bool`): Read it and compare its checksums.

        Raises:
            FeatureStoreError: where it was made with other settings.
        """
        if not self.path(shard).exists():
            return "missing"
        try:
            found = _read_metadata(self.path(shard))
            if verify:
                _verify_shard(self.path(shard))
        except FeatureStoreError as error:
            logger.warning(f"This shard is made again: {error}")
            return "damaged"
        self._check_settings(self.path(shard), found["settings"])
        if self._changed_rows(shard):
            return "changed"
        return "failed" if found["failed"] else "done"

    def write(
        self, shard: int, clips: Sequence[Mapping[str, torch.Tensor]], failed: Mapping[int, str] | None = None
    ) -> None:
        """Write one shard atomically.

        Args:
            shard (`int`): Its number.
            clips (`Sequence[Mapping[str, torch.Tensor]]`): Its rows that could be read, each with `row` (scalar),
                `labels` `(T,)`, `image_features` `(T, P, D)` or `(T, D)` and `audio_features` `(T, D)`.
            failed (`Mapping[int, str]`, *optional*): Its rows that could not be read, with the reason.

        Raises:
            FeatureStoreError: where it cannot be written, for example on a full disk; nothing half-written stays.
        """
        batch = collate_clips(clips) if clips else {}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in batch.items()}
        content = {
            "settings": self.settings,
            "clips": {row: self.clips[row] for row in self.shards[shard]},
            "failed": dict(failed or {}),
            "checksums": [_checksum({name: tensors[name][index] for name in tensors}) for index in range(len(clips))],
            "made_with": self.made_with,
        }
        try:
            with atomic_file(self.path(shard)) as partial:
                save_file(tensors, partial, metadata={METADATA_KEY: json.dumps(content)})
                _finish_file(partial)
        except (OSError, SafetensorError) as error:
            size = sum(tensor.nbytes for tensor in tensors.values())
            raise self._no_room(self.path(shard), size, error) from error

    def remove_leftovers(self) -> None:
        """Delete what a killed run left half-written. Call it before anything is written, in one process."""
        for pattern in (".shard-*", f".{MANIFEST_FILE}-*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def withdraw_manifest(self) -> None:
        """Take the manifest away, so that nobody reads the store while shards that it lists are made again."""
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)

    def finish(self, split: str, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the manifest, once every shard stands.

        Args:
            split (`str`): Name of the split.
            model (`Mapping[str, Any]`, *optional*): Name, revision and configuration of the encoder.

        Returns:
            `dict[str, Any]`: the manifest; `failed` maps the rows that could not be read to the reason.

        Raises:
            FeatureStoreError: where a shard is missing or lacks a row without a reason.
        """
        shards, failed, made_with, labelled = [], {}, [], 0
        content = hashlib.sha256()
        for number, wanted in enumerate(self.shards):
            state = self.state(number)
            if state not in ("done", "failed"):
                raise FeatureStoreError(f"{self.path(number)} is {state}: run the extraction again to make it.")
            found = _read_metadata(self.path(number))
            rows, labelled_rows = _shard_rows(self.path(number))
            lost = set(wanted) - set(rows) - set(found["failed"])
            if lost:
                raise FeatureStoreError(f"{self.path(number)} lacks rows {sorted(lost)}: delete it and run again.")
            shards.append({"file": self.path(number).name, "rows": rows})
            content.update(json.dumps([rows, found["checksums"]]).encode())
            failed |= found["failed"]
            labelled += labelled_rows
            if found["made_with"] not in made_with:
                made_with.append(found["made_with"])
        manifest = {"format_version": FORMAT_VERSION, "split": split, "model": dict(model or {}), **self.settings}
        manifest |= {"num_labelled_rows": labelled, "made_with": made_with, "failed": failed, "shards": shards}
        manifest["content"] = content.hexdigest()[:16]  # of features and labels
        try:
            write_json(self.folder / MANIFEST_FILE, manifest)
        except OSError as error:
            raise self._no_room(self.folder / MANIFEST_FILE, 0, error) from error
        return manifest

    def _changed_rows(self, shard: int) -> list[int]:
        """Rows of a shard that are not what it holds; one that could not be read then may have changed."""
        found = _read_metadata(self.path(shard))
        wanted = {row: self.clips[row] for row in self.shards[shard]}
        rows = {*wanted, *found["clips"]}
        differing = (row for row in rows if wanted.get(row) != found["clips"].get(row))
        return sorted(row for row in differing if not (row in wanted and row in found["failed"]))

    def _check_settings(self, path: Path, found: Mapping[str, Any]) -> None:
        differences = _differences(found, self.settings)
        if differences:
            raise FeatureStoreError(
                f"{path} was made with other settings or by another encoder: {differences}. Write to another folder, "
                f"or delete {self.folder} first."
            )

    def _no_room(self, path: Path, size: int, error: Exception) -> FeatureStoreError:
        free = shutil.disk_usage(self.folder).free / 1e6
        return FeatureStoreError(
            f"{path} could not be written ({error}); it needs {size / 1e6:.1f} MB, {free:.1f} MB are free. The shards "
            "that stand are whole. Make room and run the extraction again: it goes on where it stopped."
        )


class FeatureStore(Dataset):
    """Reads one split of features lazily, one row at a time, and checks each row's checksum.

    A shard is open only while a row of it is read: pages of mapped files would otherwise count as this process's
    memory until every shard is in it. So memory does not grow with the number of clips, and a store travels to
    workers.

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
        self.manifest = _read_manifest(path)
        shards = self.manifest["shards"]
        self._places = [(shard["file"], index) for shard in shards for index in range(len(shard["rows"]))]
        self.rows = [row for shard in shards for row in shard["rows"]]

    @property
    def failed(self) -> dict[int, str]:
        """Rows that could not be read, and why."""
        return {int(row): reason for row, reason in self.manifest["failed"].items()}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one row: `row` (its number, a scalar), `labels` and `segment_mask` `(T,)`, and both features.

        T is the clip's own number of segments.

        Raises:
            FeatureStoreError: where its shard is missing, damaged or not the one of the manifest.
        """
        file, position = self._places[index]
        clip, checksum = _read_row(self.folder / file, position)
        if int(clip["rows"]) != self.rows[index]:
            raise FeatureStoreError(
                f"{self.folder / file} was made again since {MANIFEST_FILE} was written: row {int(clip['rows'])} is "
                f"in the place of row {self.rows[index]}. Let the extraction finish; it renews the manifest."
            )
        if _checksum(clip) != checksum:
            raise _damaged(self.folder / file, f"row {self.rows[index]} does not have its checksum")
        length = int(clip["segment_mask"].sum())  # a shard's clips are padded to the longest of them
        return {"row": clip.pop("rows"), **{name: value[:length] for name, value in clip.items()}}

    def check_encoder(self, fingerprint: str) -> None:
        """Make sure that an encoder is the one that made these features.

        Args:
            fingerprint (`str`): Result of `encoder_fingerprint`.

        Raises:
            FeatureStoreError: where it is another one.
        """
        found, model = self.manifest["encoder_fingerprint"], self.manifest.get("model", {})
        if found != fingerprint:
            name = f"{model.get('name', 'of unknown name')}, revision {model.get('revision') or 'unknown'}"
            raise FeatureStoreError(
                f"The features in {self.folder} were made by another encoder ({name}, fingerprint {found}) than the "
                f"one given (fingerprint {fingerprint}). Pass the encoder of stage 2, or extract the features again "
                "with this one."
            )

    def check_settings(self, **expected: Any) -> None:
        """Make sure that the features were made as their reader expects.

        Args:
            expected: Entries of the manifest, for example `visual_feature_type`, `num_frames_per_segment`,
                `segment_seconds`, `image_feature_size`, `audio_feature_size`, `id2label`.

        Raises:
            FeatureStoreError: where one differs; the message has both values.
        """
        expected = json.loads(json.dumps(expected))
        differences = _differences({name: self.manifest.get(name) for name in expected}, expected)
        if differences:
            raise FeatureStoreError(
                f"The features in {self.folder} are not what the localizer expects: {differences} (first what is "
                "there, then what is expected). Change the localizer's settings, or extract the features again."
            )

    def check_labels(self) -> None:
        """Make sure that there is something to learn from.

        Raises:
            FeatureStoreError: where no row has a label.
        """
        if not self.manifest["num_labelled_rows"]:
            raise FeatureStoreError(
                f"{self.folder} has no labels: of {len(self)} rows ({len(self.manifest['failed'])} more could not be "
                "read) none has a labelled segment. Extract the features again from data with annotations."
            )


def collate_clips(clips: Sequence[Mapping[str, Any]], video_level: bool = False) -> dict[str, torch.Tensor]:
    """Batch clips of `FeatureStore` or `ClipReader` by `collate_rows`; unreadable ones (with an `error`) are left out.

    Args:
        clips (`Sequence[Mapping[str, Any]]`): Rows.
        video_level (`bool`): Whether `labels` are the classes of whole clips.

    Raises:
        SplitError: where no clip could be read.
    """
    readable = [clip for clip in clips if "error" not in clip]
    for clip in clips:
        if "error" in clip:
            logger.warning_once(f"Row {int(clip['row'])} is left out, it could not be read: {clip['error']}")
    if not readable:
        raise SplitError(f"None of {len(clips)} clips could be read. The first: {clips[0]['error']}")
    return collate_rows(readable, video_level)


def _own_settings(config: PreTrainedConfig | None) -> dict[str, Any]:
    """The fields of a tower's configuration, without those that every configuration of transformers has."""
    if config is None:
        return {}
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = {field.name for field in dataclasses.fields(config)} - common
    return {name: getattr(config, name) for name in names}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)


def _shorten(rows: Sequence[int]) -> str:
    listed = ", ".join(map(str, rows[:MAX_LISTED]))
    return f"[{listed}]" if len(rows) <= MAX_LISTED else f"[{listed}, ... {len(rows)} in all]"


def _damaged(path: Path, reason: object) -> FeatureStoreError:
    return FeatureStoreError(
        f"{path} is missing or damaged ({reason}). Run the extraction again with --verify: it makes damaged shards "
        "anew, and only those."
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FeatureStoreError(
            f"{path} is damaged ({error}). Run the extraction again: it is written anew."
        ) from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise FeatureStoreError(
            f"{path} has format {found}; this version of ave-clip reads {FORMAT_VERSION}. Extract the features again."
        )
    return manifest


def _read_metadata(path: Path) -> dict[str, Any]:
    """What a shard remembers; `clips` and `failed` by row number."""
    try:
        with safe_open(path, "pt") as shard:
            metadata = shard.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    content = json.loads(metadata.get(METADATA_KEY, '{"settings": {"format": "of another version"}}'))
    for name in ("clips", "failed"):
        content[name] = {int(row): text for row, text in content.get(name, {}).items()}
    return content


def _read_row(path: Path, position: int) -> tuple[dict[str, torch.Tensor], int]:
    """One row of a shard and the checksum that it should have."""
    try:
        with safe_open(path, "pt") as shard:
            checksum = json.loads(shard.metadata()[METADATA_KEY])["checksums"][position]
            return {name: shard.get_slice(name)[position] for name in shard.keys()}, checksum  # noqa: SIM118
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _verify_shard(path: Path) -> None:
    for position in range(len(_read_metadata(path).get("checksums", ()))):
        clip, checksum = _read_row(path, position)
        if _checksum(clip) != checksum:
            raise _damaged(path, f"its row number {position} does not have its checksum")


def _checksum(clip: Mapping[str, torch.Tensor]) -> int:
    checksum = 0
    for name in sorted(clip):
        checksum = zlib.crc32(clip[name].contiguous().reshape(-1).view(torch.uint8).numpy(), checksum)
    return checksum


def _shard_rows(path: Path) -> tuple[list[int], int]:
    """Rows of a shard, and how many have a label."""
    with safe_open(path, "pt") as shard:
        if "rows" not in shard.keys():  # noqa: SIM118
            return [], 0
        labelled = (shard.get_tensor("labels") != IGNORED_LABEL).any(dim=1)
        return shard.get_tensor("rows").tolist(), int(labelled.sum())


def _finish_file(path: Path) -> None:
    """Give a file of safetensors, which only its owner may read, the usual permissions, and have it on the disk.

    Without the latter, a power cut right after the renaming could leave an empty shard.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
