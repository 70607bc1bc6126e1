"""Checks of all configurations: wrong values, misspelt names and absurd sizes raise `ValueError`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from transformers import PreTrainedConfig

from .builtin_checkpoints import LoadsBuiltinNames

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)

# Type of a field with a nested configuration, as in `SubConfig[AudioCLIPConfig]`. At runtime it is what the
# constructor accepts (and `strict` checks) before it makes a configuration of it. For type checkers the field is that
# configuration, and `Any` lets them accept the other values when it is set.
if TYPE_CHECKING:
    SubConfig: TypeAlias = ConfigT | Any
else:

    class SubConfig:
        def __class_getitem__(cls, config_class: type[PreTrainedConfig]) -> Any:
            return dict | PreTrainedConfig | None


# Keyword arguments that transformers passes to a configuration in addition to its fields.
_KNOWN_EXTRAS = ("num_labels", "torch_dtype", "attn_implementation", "auto_map", "custom_pipelines")


# Far above every real model, and far below what could exhaust a machine: larger numbers come from damaged or hostile
# files and are refused before any memory is taken.
MAX_SIZE = 2**20  # of one whole number: a width, a number of layers, a sampling rate
MAX_WEIGHTS = 2**32  # of a model by its sizes: 16 GiB in float32


class InvalidConfigError(StrictDataclassError, ValueError):
    """A configuration value of a wrong type or out of its range."""


class CheckedConfig(LoadsBuiltinNames, PreTrainedConfig):
    """[`PreTrainedConfig`] that checks arguments of `from_pretrained` as it checks those of the constructor."""

    # transformers declares the objects that it makes of the classes given here.
    sub_configs_defaults: ClassVar[dict[str, Any]]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As [`~transformers.PreTrainedConfig.from_dict`], but fields in `kwargs` are passed to the constructor.

        transformers sets them as attributes after it, which bypasses every check that compares two fields.
        """
        config_dict = {**config_dict}
        # "dtype" stays in `kwargs`: it may be "auto", which transformers resolves.
        for name in {field.name for field in fields(cls)} & kwargs.keys() - {"dtype"}:
            value, saved = kwargs.pop(name), config_dict.get(name)
            is_part = name in cls.sub_configs_defaults and isinstance(value, dict) and isinstance(saved, dict)
            config_dict[name] = {**saved, **value} if is_part else value
        return super().from_dict(config_dict, **kwargs)

    def count_weights(self) -> int:
        """Returns the approximate number of weights, computed from the sizes alone."""
        raise NotImplementedError  # each subclass knows its network

    def check_size(self) -> None:
        """Raises `ValueError` if the sizes are implausibly large."""
        check_whole_numbers(self)
        number = self.count_weights()
        if number > MAX_WEIGHTS:
            raise ValueError(
                f"A model of these sizes would have about {number:.1e} weights, more than the {MAX_WEIGHTS:.1e} that "
                "are accepted. Check the configuration file: it may be damaged."
            )


def check_whole_numbers(config: PreTrainedConfig) -> None:
    """Raises `ValueError` if a field, or an element of a list in a field, is larger than `MAX_SIZE`."""
    for field in fields(config):
        value = getattr(config, field.name)
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) > MAX_SIZE or any(isinstance(number, int) and number > MAX_SIZE for number in values):
            shown = value if isinstance(value, int) else str(value)[:80]
            raise ValueError(f"`{field.name}`={shown} is too large; at most {MAX_SIZE} is accepted.")


def strict_config(config_class: type[ConfigT]) -> type[ConfigT]:
    """As `huggingface_hub.dataclasses.strict`, but errors are `ValueError`s and misspelt names are refused.

    transformers keeps unknown keyword arguments as attributes: a typo would silently create another network.
    """
    strict_class: Any = strict(config_class)  # `Any`, because type checkers refuse to replace methods
    initialize = strict_class.__init__

    @wraps(initialize)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_misspelt(strict_class, kwargs)
        try:
            initialize(self, *args, **kwargs)
        except StrictDataclassError as error:
            # `strict` wraps the error of a `validate_*` method in one that only adds the name of the method.
            reason = error.__cause__ if isinstance(error, StrictDataclassClassValidationError) else error
            raise InvalidConfigError(f"{strict_class.__name__}: {reason}") from error

    set_checked = strict_class.__setattr__

    @wraps(set_checked)
    def __setattr__(self, name: str, value: Any) -> None:
        try:
            set_checked(self, name, value)
        except StrictDataclassError as error:
            if isinstance(error, ValueError):
                raise
            raise InvalidConfigError(f"{strict_class.__name__}: {error}") from error

    strict_class.__init__, strict_class.__setattr__ = __init__, __setattr__
    strict_class.to_dict = _without_code(strict_class.to_dict)
    return strict_class


def _without_code(to_dict: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Wraps `to_dict` to omit the location of custom code, except in a class that has custom code itself.

    Otherwise a configuration that this package loaded from an export and saved again would name Python files that are
    not saved with it.
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
    """Raises `ValueError` for a name that is not a field but similar to one."""
    known = [field.name for field in fields(config_class)]
    for name in names:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and name not in _KNOWN_EXTRAS and close:
            raise ValueError(f"{config_class.__name__} has no field `{name}`. Did you mean `{close[0]}`?")


__all__ = ["CheckedConfig", "InvalidConfigError", "SubConfig", "check_whole_numbers", "strict_config"]
