"""Short, stable names of the modules in the documentation: `ave_clip.formats` is `ave_clip.outputs.formats`.

They work as attributes of the package and in import statements. Both return the module itself and not a copy.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

MODULES = {
    "data": "data",
    "events": "core.events",
    "formats": "outputs.formats",
    "metrics": "training.metrics",
    "overlay": "outputs.overlay",
    "timeline": "outputs.timeline",
    "video_io": "core.video_io",
}


class _ShortNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `MODULES` by their short names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __package__ or MODULES.get(name, name) == name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(f".{MODULES[spec.name.rpartition('.')[2]]}", __package__)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restores what the import system changed; the module has already been executed under its own name."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def register_short_names() -> None:
    """Makes the short names importable."""
    sys.meta_path.append(_ShortNames())
