"""What the configurations share: a wrong value is a `ValueError`, and a misspelt name is told, not swallowed."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)

# What transformers itself passes to a configuration beside its fields.
_KNOWN_EXTRAS = ("num_labels", "torch_dtype", "attn_implementation", "auto_map", "custom_pipelines")


class InvalidConfigError(StrictDataclassError, ValueError):
    """A configuration value of a wrong type or out of its range."""


def strict_config(config_class: type[ConfigT]) -> type[ConfigT]:
    """As `huggingface_hub.dataclasses.strict`, whose errors are `ValueError`s here, and unknown names refused.

    transformers keeps unknown keyword arguments as attributes, so that a typo would silently make another network.
    """
    config_class = strict(config_class)
    initialise = config_class.__init__

    @wraps(initialise)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_misspelt(config_class, kwargs)
        try:
            initialise(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise InvalidConfigError(f"{config_class.__name__}: {error}") from error

    config_class.__init__ = __init__
    config_class.to_dict = _without_code(config_class.to_dict)
    return config_class


def _without_code(to_dict: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Leave out where an export holds its code, unless this very class came from there or is being exported.

    Else what was loaded from an export by this package and saved again would name files that are not beside it.
    """

    @wraps(to_dict)
    def wrapped(self: Any) -> dict[str, Any]:
        content = to_dict(self)
        if self._auto_class is None:
            for name in ("auto_map", "custom_pipelines"):
                content.pop(name, None)
        return content

    return wrapped


def refuse_misspelt(config_class: type[PreTrainedConfig], names: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a name that is none of the fields but close to one."""
    known = [field.name for field in fields(config_class)]
    for name in names:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and name not in _KNOWN_EXTRAS and close:
            raise ValueError(f"{config_class.__name__} has no field `{name}`. Did you mean `{close[0]}`?")


__all__ = ["InvalidConfigError", "strict_config"]
