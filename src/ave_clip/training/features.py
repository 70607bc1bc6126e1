"""The features of stage 2 on disk: one folder per split, with safetensors shards and a manifest.

```
features/train/manifest.json            settings, encoder, and the rows of each shard, with their events and durations
features/train/shard-00000.safetensors  rows, labels, segment_mask, image_features, audio_features
```
All files are written atomically, so a run that was killed resumes: complete shards are not made again. Each shard
stores its settings, the identity of its clips and a checksum per row. Shards of two encoders or settings therefore
never end up in one store, replacing a clip affects only its own shard, and damage is detected when a row is read.

Shapes: T segments, P image locations, D feature width.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..core.categories import MULTI_LABEL, SINGLE_LABEL
from ..data.collation import collate_rows
from ..files import atomic_file, remove_leftovers_in
from .arguments import write_json
from .feature_shards import (
    LONG_SEGMENTS,
    METADATA_KEY,
    FeatureStoreError,
    as_bytes,
    checksum,
    describe_shard,
    finish_file,
    plan_shards,
    read_labels,
    read_metadata,
    read_row,
    verify_shard,
    write_long_row,
)

logger = logging.get_logger(__name__)

MANIFEST_FILE = "manifest.json"
# Earlier versions of this package cannot read labels of several events at once.
FORMAT_VERSIONS = {SINGLE_LABEL: 2, MULTI_LABEL: 3}
MAX_LISTED = 8


class SplitError(ValueError):
    """A split is missing, empty, unreadable or without labels."""


def encoder_fingerprint(towers: Mapping[str, torch.nn.Module | Mapping[str, torch.Tensor]]) -> str:
    """Returns a hash of the weights, buffers and configurations of encoders, to identify the encoder of features.

    Args:
        towers (`Mapping[str, torch.nn.Module]`): The encoders by name; or tensors by name, for a part of an encoder.

    Returns:
        `str`: 16 hexadecimal digits; the same for equal encoders from any source.
    """
    digest = hashlib.sha256()
    for tower_name, tower in sorted(towers.items()):
        digest.update(json.dumps(_own_settings(getattr(tower, "config", None)), sort_keys=True).encode())
        state = tower.state_dict() if isinstance(tower, torch.nn.Module) else tower
        for name, tensor in sorted(state.items()):
            digest.update(f"{tower_name}.{name}:{tuple(tensor.shape)}".encode())
            digest.update(as_bytes(tensor.detach().cpu()))
    return digest.hexdigest()[:16]


class FeatureWriter:
    """Writes the shards of one split. The processes of one run can write different shards of the same folder.

    Args:
        folder (`str` or `os.PathLike`): Folder of the split; created if missing.
        settings (`Mapping[str, Any]`): Everything that determines the features and the meaning of their labels:
            `encoder_fingerprint`, `visual_feature_type`, `num_frames_per_segment`, `segment_seconds`, `dtype`,
            `id2label`, `problem_type` and anything else a reader must know. Shards with other settings are rejected.
        clips (`Mapping[int, str]`): All rows of the split, in order, with the identity of each row's video and
            labels.
        rows_per_shard (`int`): Rows per shard, of videos that are not long.
        made_with (`Mapping[str, Any]`, *optional*): Versions and so on, stored with each shard but not compared.
        lengths (`Mapping[int, int]`, *optional*): Number of segments of each row. Rows of more than `LONG_SEGMENTS`
            have a shard each, which is written with `write_long`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Mapping[str, Any],
        clips: Mapping[int, str],
        rows_per_shard: int = 64,
        made_with: Mapping[str, Any] | None = None,
        lengths: Mapping[int, int] | None = None,
    ):
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1, got {rows_per_shard}.")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.clips = {int(row): identity for row, identity in clips.items()}
        self.made_with = dict(made_with or {})
        self.lengths = {row: (lengths or {}).get(row, 1) for row in self.clips}
        self.shards = plan_shards(self.lengths, rows_per_shard)

    def path(self, shard: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def is_long(self, shard: int) -> bool:
        """Whether a shard is that of one long row."""
        return self.lengths[self.shards[shard][0]] > LONG_SEGMENTS

    def plan(self, retry_failed: bool = False, update: bool = False, verify: bool = False) -> list[int]:
        """Returns the numbers of the shards to make: those that are missing or damaged, and those requested.

        Args:
            retry_failed (`bool`): Include shards with rows that could not be read.
            update (`bool`): Include shards whose clips have changed.
            verify (`bool`): Read each shard and compare its checksums.

        Raises:
            FeatureStoreError: if a shard was made with other settings or, without `update`, from other clips.
        """
        states = {shard: self.state(shard, verify) for shard in range(len(self.shards))}
        wanted = {"missing", "damaged"} | ({"failed"} if retry_failed else set()) | ({"changed"} if update else set())
        changed = [shard for shard, state in states.items() if state == "changed"]
        if changed and not update:
            rows = [row for shard in changed for row in self._changed_rows(shard)]
            raise FeatureStoreError(
                f"{self.folder}: {len(changed)} of {len(states)} shards were made from other clips or labels; rows "
                f"{_shorten(rows)} differ. Was a video replaced, an annotation corrected, --rows_per_shard or "
                "--max_clips changed, or is it another data set? Pass --update to make these shards again, or choose "
                "another folder."
            )
        return [shard for shard, state in states.items() if state in wanted]

    def state(self, shard: int, verify: bool = False) -> str:
        """Returns `"done"`, `"failed"` (some rows are unreadable), `"changed"`, `"damaged"` or `"missing"`.

        Args:
            shard (`int`): Number of the shard.
            verify (`bool`): Read the shard and compare its checksums.

        Raises:
            FeatureStoreError: if it was made with other settings.
        """
        if not self.path(shard).exists():
            return "missing"
        try:
            found = read_metadata(self.path(shard))
            if verify:
                verify_shard(self.path(shard))
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
        """Writes one shard atomically.

        Args:
            shard (`int`): Number of the shard.
            clips (`Sequence[Mapping[str, torch.Tensor]]`): Its readable rows, each with `row` (scalar),
                `labels` `(T,)` or `(T, C)`, `image_features` `(T, P, D)` or `(T, D)`, `audio_features` `(T, D)` and,
                if known, `events` and `duration` of [`~ave_clip.data.load_videos`].
            failed (`Mapping[int, str]`, *optional*): The reason for each row that could not be read.

        Raises:
            FeatureStoreError: if it cannot be written, for example because the disk is full; no partial file remains.
        """
        batch = collate_clips(clips) if clips else {}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in batch.items()}
        content = self._content(shard, clips, failed or {})
        checksums = [checksum({name: tensors[name][index] for name in tensors}) for index in range(len(clips))]
        size = sum(tensor.nbytes for tensor in tensors.values())
        metadata = {METADATA_KEY: json.dumps({**content, "checksums": checksums})}
        self._save(shard, size, lambda path: save_file(tensors, path, metadata=metadata))

    def write_long(self, shard: int, clip: Mapping[str, Any], blocks: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Writes the shard of one long row atomically, while its features are computed.

        Args:
            shard (`int`): Number of the shard.
            clip (`Mapping[str, Any]`): The row, with `row`, `labels` and, as in `write`, `events` and `duration`.
            blocks (`Iterable[Mapping[str, torch.Tensor]]`): `image_features` and `audio_features` of `BLOCK_SEGMENTS`
                segments each; the last block has the remaining ones. If the iterator raises an error, it is passed
                on and no file remains.

        Raises:
            FeatureStoreError: if it cannot be written, for example because the disk is full; no partial file remains.
        """
        row, content = int(clip["row"]), self._content(shard, [clip], {})
        self._save(shard, 0, lambda path: write_long_row(path, row, clip["labels"], blocks, content))

    def _content(self, shard: int, clips: Sequence[Mapping[str, Any]], failed: Mapping[int, str]) -> dict[str, Any]:
        """Returns the metadata of a shard."""
        content = {
            "settings": self.settings,
            "clips": {row: self.clips[row] for row in self.shards[shard]},
            "failed": dict(failed),
            "made_with": self.made_with,
        }
        if clips and "events" in clips[0]:
            content["events"] = [
                clip["events"] and [[event["label"], event["start"], event["end"]] for event in clip["events"]]
                for clip in clips
            ]
            content["durations"] = [clip["duration"] for clip in clips]
        if clips and "seen" in clips[0]:
            content["seen"] = [clip["seen"] for clip in clips]
        return content

    def _save(self, shard: int, size: int, write: Callable[[Path], object]) -> None:
        try:
            with atomic_file(self.path(shard)) as partial:
                write(partial)
                finish_file(partial)
        except (OSError, SafetensorError) as error:
            raise self._no_room(self.path(shard), size, error) from error

    def remove_leftovers(self) -> None:
        """Deletes partial files of a killed run. Call it in one process, before any shard is written."""
        remove_leftovers_in(self.folder)

    def withdraw_manifest(self) -> None:
        """Deletes the manifest, so that the store cannot be read while its shards are made again."""
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)

    def finish(self, split: str, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Writes the manifest, when all shards are complete.

        Args:
            split (`str`): Name of the split.
            model (`Mapping[str, Any]`, *optional*): Name, revision and configuration of the encoder.

        Returns:
            `dict[str, Any]`: the manifest; its `failed` has the reason for each row that could not be read.

        Raises:
            FeatureStoreError: if a shard is missing, or a row is missing in it without a reason.
        """
        shards, failed, made_with, labelled = [], {}, [], 0
        content = hashlib.sha256()
        for number, wanted in enumerate(self.shards):
            state = self.state(number)
            if state not in ("done", "failed"):
                raise FeatureStoreError(f"{self.path(number)} is {state}: run the extraction again to make it.")
            found = read_metadata(self.path(number))
            facts = describe_shard(self.path(number))
            rows = facts["rows"]
            lost = set(wanted) - set(rows) - set(found["failed"])
            if lost:
                raise FeatureStoreError(
                    f"Rows {sorted(lost)} are missing in {self.path(number)}: delete it and run again."
                )
            names = ("rows", "lengths", "events", "durations", *(["seen"] if "seen" in facts else []))
            known = {name: facts[name] for name in names}
            shards.append({"file": self.path(number).name, **known})
            content.update(json.dumps([rows, facts["checksums"]]).encode())
            failed |= found["failed"]
            labelled += facts["labelled"]
            if found["made_with"] not in made_with:
                made_with.append(found["made_with"])
        version = FORMAT_VERSIONS[self.settings.get("problem_type", SINGLE_LABEL)]
        manifest = {"format_version": version, "split": split, "model": dict(model or {}), **self.settings}
        manifest |= {"num_labelled_rows": labelled, "made_with": made_with, "failed": failed, "shards": shards}
        manifest["content"] = content.hexdigest()[:16]  # of features and labels
        try:
            write_json(self.folder / MANIFEST_FILE, manifest)
        except OSError as error:
            raise self._no_room(self.folder / MANIFEST_FILE, 0, error) from error
        return manifest

    def _changed_rows(self, shard: int) -> list[int]:
        """Returns the rows whose clips differ from those in the shard, except rows that could not be read then."""
        found = read_metadata(self.path(shard))
        wanted = {row: self.clips[row] for row in self.shards[shard]}
        rows = {*wanted, *found["clips"]}
        differing = (row for row in rows if wanted.get(row) != found["clips"].get(row))
        return sorted(row for row in differing if not (row in wanted and row in found["failed"]))

    def _check_settings(self, path: Path, found: Mapping[str, Any]) -> None:
        # Earlier versions did not store it.
        default = {"problem_type": SINGLE_LABEL} if "problem_type" in self.settings else {}
        differences = _differences({**default, **found}, self.settings)
        if differences:
            raise FeatureStoreError(
                f"{path} was made with other settings or by another encoder: {differences}. Choose another folder, "
                f"or delete {self.folder} first."
            )

    def _no_room(self, path: Path, size: int, error: Exception) -> FeatureStoreError:
        free = shutil.disk_usage(self.folder).free / 1e6
        return FeatureStoreError(
            f"{path} could not be written ({error}); it needs {size / 1e6:.1f} MB, {free:.1f} MB are free. All other "
            "shards are complete. Free space and run the extraction again: it resumes."
        )


class FeatureStore(Dataset):
    """Reads the features of one split lazily, one row at a time, and verifies the checksum of each row.

    A shard is only open while one of its rows is read: otherwise the pages of mapped files would count as memory of
    this process until all shards are in it. Memory therefore does not grow with the number of clips, and a store can
    be pickled for data loading processes.

    Args:
        folder (`str` or `os.PathLike`): Folder written by `FeatureWriter`.

    Raises:
        FeatureStoreError: if the folder does not contain a complete store.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        path = self.folder / MANIFEST_FILE
        if not path.exists():
            raise FeatureStoreError(
                f"{self.folder} contains no {MANIFEST_FILE}: it is not a feature folder, or the extraction did not "
                "finish. Run examples/extract_features.py again; it resumes."
            )
        self.manifest = _read_manifest(path)
        shards = self.manifest["shards"]
        self._places = [(shard["file"], index) for shard in shards for index in range(len(shard["rows"]))]
        self.rows = [row for shard in shards for row in shard["rows"]]

    @property
    def problem_type(self) -> str:
        """Either "single_label", or "multi_label" for several events at once."""
        return self.manifest.get("problem_type", SINGLE_LABEL)

    @property
    def failed(self) -> dict[int, str]:
        """The reason for each row that could not be read."""
        return {int(row): reason for row, reason in self.manifest["failed"].items()}

    @cached_property
    def _facts(self) -> list[dict[str, Any]]:
        # Manifests of earlier versions contain the rows only.
        shards = self.manifest["shards"]
        return [s if "lengths" in s else describe_shard(self.folder / s["file"]) for s in shards]

    @cached_property
    def lengths(self) -> list[int]:
        """Number of segments of each row."""
        return [length for facts in self._facts for length in facts["lengths"]]

    @property
    def truth(self) -> dict[int, dict[str, Any]]:
        """The annotated `events` (a list of `label`, `start` and `end`, or `None`) and the `duration` of each row.

        Also `seen`, whether the class of a video is trained, if the data set tells.
        """
        found: dict[int, dict[str, Any]] = {}
        for facts in self._facts:
            for row, events, duration in zip(facts["rows"], facts["events"], facts["durations"]):
                named = None if events is None else [dict(zip(("label", "start", "end"), event)) for event in events]
                found[row] = {"events": named, "duration": duration}
            for row, seen in zip(facts["rows"], facts.get("seen", ())):
                found[row]["seen"] = seen
        return found

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns one row: `row` (its number, a scalar), `labels`, `segment_mask` `(T,)`, and both features.

        T is the number of segments of this clip; `labels` are `(T,)`, or `(T, C)` for several events at once.

        Raises:
            FeatureStoreError: if its shard is missing, damaged or not the one in the manifest.
        """
        return self.window(index)

    def window(self, index: int, first: int = 0, length: int | None = None) -> dict[str, torch.Tensor]:
        """Returns a window of a row, in the form of `__getitem__`. Of a long row, only the window is read.

        Args:
            index (`int`): Position of the row.
            first (`int`): First segment of the window.
            length (`int`, *optional*): Number of segments. Default: all that follow.

        Raises:
            FeatureStoreError: as in `__getitem__`.
        """
        file, position = self._places[index]
        clip = read_row(self.folder / file, position, first, length)
        if int(clip["rows"]) != self.rows[index]:
            raise FeatureStoreError(
                f"{self.folder / file} was made again after {MANIFEST_FILE} was written: it has row "
                f"{int(clip['rows'])} instead of row {self.rows[index]}. Wait until the extraction has "
                "finished; it updates the manifest."
            )
        return {"row": clip.pop("rows"), **clip}

    def labels_of(self, index: int) -> torch.Tensor:
        """Returns the labels of a row, `(T,)` or `(T, C)`, without reading its features."""
        file, position = self._places[index]
        return read_labels(self.folder / file, position)[: self.lengths[index]]

    def check_encoder(self, fingerprint: str) -> None:
        """Checks that an encoder is the one that made these features.

        Args:
            fingerprint (`str`): Result of `encoder_fingerprint`.

        Raises:
            FeatureStoreError: if it is another one.
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
        """Checks that the features were made with the expected settings.

        Args:
            expected: Entries of the manifest, for example `visual_feature_type`, `num_frames_per_segment`,
                `segment_seconds`, `image_feature_size`, `audio_feature_size`, `id2label`.

        Raises:
            FeatureStoreError: if one differs; the message contains both values.
        """
        expected = json.loads(json.dumps(expected))
        found = {name: self.problem_type if name == "problem_type" else self.manifest.get(name) for name in expected}
        differences = _differences(found, expected)
        if differences:
            raise FeatureStoreError(
                f"The features in {self.folder} are not those that the localizer expects: {differences} ('there': the "
                "features, 'now': the localizer). Change the localizer's settings, or extract the features again."
            )

    def check_labels(self) -> None:
        """Checks that the split has labels.

        Raises:
            FeatureStoreError: if no row has a label.
        """
        if not self.manifest["num_labelled_rows"]:
            raise FeatureStoreError(
                f"{self.folder} has no labels: of {len(self)} rows ({len(self.manifest['failed'])} more could not be "
                "read) none has a labelled segment. Extract the features again from data with annotations."
            )


def collate_clips(clips: Sequence[Mapping[str, Any]], video_level: bool = False) -> dict[str, torch.Tensor]:
    """Batches clips of `FeatureStore` or `ClipReader` with `collate_rows`, without unreadable ones (with an `error`).

    Args:
        clips (`Sequence[Mapping[str, Any]]`): Rows.
        video_level (`bool`): Whether `labels` are the classes of whole clips.

    Raises:
        SplitError: if no clip could be read.
    """
    readable = [clip for clip in clips if "error" not in clip]
    for clip in clips:
        if "error" in clip:
            logger.warning_once(f"Row {int(clip['row'])} is left out because it could not be read: {clip['error']}")
    if not readable:
        raise SplitError(f"None of {len(clips)} clips could be read. The first: {clips[0]['error']}")
    return collate_rows(readable, video_level)


def _own_settings(config: PreTrainedConfig | None) -> dict[str, Any]:
    """Returns the fields of a tower's configuration, without those of every transformers configuration."""
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


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FeatureStoreError(
            f"{path} is damaged ({error}). Run the extraction again: it rewrites this file."
        ) from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found not in FORMAT_VERSIONS.values():
        raise FeatureStoreError(
            f"{path} has format {found}; this version of ave-clip reads {[*FORMAT_VERSIONS.values()]}. Extract the "
            "features again."
        )
    return manifest
