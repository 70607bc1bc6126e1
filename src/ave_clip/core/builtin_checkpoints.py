"""Names of the checkpoints that are part of the installed package: `from_pretrained("ave-clip-tiny")`.

Each folder of `assets` with a `config.json` is such a checkpoint. Its name is accepted like a folder or Hub id.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from .categories import BACKGROUND_LABEL
from .text import counted

# Does not exist for a copy of this module that was saved with a checkpoint: such a copy has no names.
_ASSETS = Path(__file__).resolve().parents[1] / "assets"


def builtin_checkpoints() -> dict[str, str]:
    """Returns the name and folder of each checkpoint in the package."""
    return {config.parent.name: str(config.parent) for config in sorted(_ASSETS.glob("*/config.json"))}


def resolve_checkpoint(name_or_path: Any) -> Any:
    """Returns the folder of a built-in checkpoint; anything else is returned unchanged.

    A folder of that name in the working directory has priority, as it has over a name on the Hub.

    >>> resolve_checkpoint("someone/on-the-hub")
    'someone/on-the-hub'
    """
    if not isinstance(name_or_path, (str, os.PathLike)) or os.path.isdir(name_or_path):
        return name_or_path
    return builtin_checkpoints().get(os.fspath(name_or_path), name_or_path)


def portable_name(name_or_path: Any) -> Any:
    """Returns the name of a built-in checkpoint that is given by its name or folder; anything else is unchanged.

    Its folder is another one in each installation, so records that several machines compare contain the name. A folder
    that only has the name of a built-in checkpoint gets `./` in front of it.

    >>> portable_name(builtin_checkpoints()["ave-clip-tiny"])
    'ave-clip-tiny'
    """
    source = resolve_checkpoint(name_or_path)
    if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(source):
        return name_or_path
    for name, folder in builtin_checkpoints().items():
        if os.path.samefile(source, folder):
            return name
    return os.path.join(os.curdir, source) if os.fspath(source) in builtin_checkpoints() else name_or_path


def find_checkpoint(name_or_path: Any) -> Any:
    """Same as `resolve_checkpoint`, but refuses at once what can be neither a folder nor a Hub id `owner/name`.

    transformers would ask the Hub for it first: offline that takes half a minute, and its message names the network.

    Raises:
        OSError: if there is no such folder, or it is a file.
    """
    source = resolve_checkpoint(name_or_path)
    if not isinstance(source, (str, os.PathLike)) or os.path.isdir(source):
        return source
    name = os.fspath(source)
    if os.path.exists(name):
        reason = "it is a file. Pass its folder"
    elif isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return source
    else:
        reason = f"there is no such folder in {Path.cwd()}" if not os.path.isabs(name) else "there is no such folder"
    builtin = ", ".join(builtin_checkpoints())
    raise OSError(
        f"cannot load the model {name}: {reason}; a Hub id has the form owner/name, and the built-in names are: "
        f"{builtin}."
    )


def limits_of(folder: str | os.PathLike) -> str:
    """Returns a sentence on the events that a saved localizer knows, for users who did not choose it themselves."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    events = [name for name in config["id2label"].values() if name != BACKGROUND_LABEL]
    examples = "; ".join(events[:4]) + ("; ..." if len(events) > 4 else "")
    if "concepts" in config:  # any label of its table of concepts can be asked for
        return f"{Path(folder).name} looks for {counted(len(events), 'event')} ({examples}) unless others are named."
    return f"{Path(folder).name} knows {counted(len(events), 'event')} only ({examples}); it cannot find others."


class LoadsBuiltinNames:
    """Mixin: `from_pretrained` also accepts the names of built-in checkpoints."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads from a folder, a Hub id, or a built-in name such as `"ave-clip-tiny"`."""
        loader: Any = super()  # of the class that this one is mixed into
        return loader.from_pretrained(resolve_checkpoint(pretrained_model_name_or_path), *args, **kwargs)


__all__ = [
    "LoadsBuiltinNames",
    "builtin_checkpoints",
    "find_checkpoint",
    "limits_of",
    "portable_name",
    "resolve_checkpoint",
]
