"""Data sets of audio-visual events: AVE, other published data sets and your own videos, all with the same columns.

    open_dataset(path) -> rows of {video, category, labels, ...} -> decode_videos(..., processor) -> tensors

Names are loaded on first use.
"""

import importlib
from typing import Any

_HOME_OF = {
    "AVE": "ave",
    "AVEConfig": "ave",
    "check_videos": "ave",
    "load_ave": "ave",
    "AnnotationError": "annotations",
    "ClipAugmentation": "augmentation",
    "MissingVideoError": "builder",
    "event_features": "builder",
    "AVE_CATEGORIES": "categories",
    "BACKGROUND_LABEL": "categories",
    "label_names": "categories",
    "collate_rows": "collation",
    "EventVideos": "custom",
    "load_ov_avebench": "custom",
    "load_unav100": "custom",
    "load_videos": "custom",
    "decode_videos": "decoding",
    "open_video": "decoding",
    "open_dataset": "opening",
    "to_parquet": "export",
    "to_videofolder": "export",
    "to_webdataset": "export",
    "AVEFeatures": "features",
    "H5FileError": "h5",
    "load_ave_features": "features",
    "generate_overlapping_videos": "synthetic",
    "generate_synthetic_ave": "synthetic",
}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
