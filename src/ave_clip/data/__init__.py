"""Data sets of audio-visual events: AVE as it lies on disk, and your own videos in the same form.

    load_ave(folder or zip) -> rows of {video, category, labels, ...} -> decoded on access through the processor

Names are loaded when first used, so that `import ave_clip.data` costs nothing.
"""

import importlib

_HOME_OF = {
    "AVE_CATEGORIES": "categories",
    "BACKGROUND": "categories",
    "AVE": "ave",
    "AVEConfig": "ave",
    "load_ave": "ave",
    "AnnotationError": "annotations",
    "generate_synthetic_ave": "synthetic",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
