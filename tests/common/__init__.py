"""transformers' own common tests, run on the classes of this package.

Their files are not part of the transformers wheel and are not copied here. Unpack the source distribution
(`pip download --no-binary :all: --no-deps --no-build-isolation transformers`) and set `TRANSFORMERS_SOURCE` to its
folder; without it the tests of this folder are skipped.

A test module loads what it needs at its top:

    modeling = load_transformers_tests("test_modeling_common")
    class MyModelTest(modeling.ModelTesterMixin, unittest.TestCase): ...
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import transformers

PACKAGE = "transformers_tests"

# Modules that the common tests import but the source distribution leaves out, with what is needed of them.
_ABSENT_MODULES = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["BertModel"],
            "id2label": {0: "label"},
            "label2id": {"label": "0"},
            "problem_type": "regression",
        }
    },
}


def load_transformers_tests(name: str) -> ModuleType:
    """Import one of transformers' test modules, or skip the calling test module.

    Args:
        name (`str`): Module below transformers' `tests`, for example `"test_modeling_common"`.

    Returns:
        `ModuleType`: the module, with its mixins.
    """
    source = os.environ.get("TRANSFORMERS_SOURCE")
    if not source or not (Path(source) / "tests").is_dir():
        pytest.skip("TRANSFORMERS_SOURCE names no folder with transformers' tests", allow_module_level=True)
    if PACKAGE not in sys.modules:
        _make_package(Path(source) / "tests")
    with mock.patch("transformers.utils.direct_transformers_import", lambda *args, **kwargs: transformers):
        return importlib.import_module(f"{PACKAGE}.{name}")


def _make_package(folder: Path) -> None:
    """Make `folder` importable as a package, and stand in for the modules that it lacks."""
    sys.modules[PACKAGE] = _module(PACKAGE, folder)
    for name, contents in _ABSENT_MODULES.items():
        if (folder / f"{name.replace('.', '/')}.py").is_file():
            continue
        parent = f"{PACKAGE}.{name.split('.')[0]}"
        sys.modules.setdefault(parent, _module(parent, folder / name.split(".")[0]))
        sys.modules[f"{PACKAGE}.{name}"] = _module(f"{PACKAGE}.{name}", None, **contents)
    if not (folder.parent / "utils" / "fetch_hub_objects_for_ci.py").is_file():
        helper = _module("fetch_hub_objects_for_ci", None, url_to_local_path=lambda url, *args, **kwargs: url)
        sys.modules["fetch_hub_objects_for_ci"] = helper


def _module(name: str, folder: Path | None, **contents) -> ModuleType:
    module = ModuleType(name)
    if folder is not None:
        module.__path__ = [str(folder)]
    vars(module).update(contents)
    return module
