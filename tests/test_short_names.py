"""The modules that documents mention have short names, as attributes and in import statements."""

import importlib

import pytest

import ave_clip
from ave_clip.short_names import MODULES
from tests.helpers.fresh import run_fresh


@pytest.mark.parametrize("name", MODULES)
def test_a_short_name_is_the_module_itself(name):
    module = importlib.import_module(f"ave_clip.{MODULES[name]}")
    assert getattr(ave_clip, name) is module is importlib.import_module(f"ave_clip.{name}")
    assert module.__spec__.name == module.__name__ == f"ave_clip.{MODULES[name]}"
    assert name in dir(ave_clip)


def test_short_names_need_no_import_of_their_own():
    script = """
import ave_clip
print(ave_clip.data.load_ave.__name__, ave_clip.formats.format_srt.__name__, list(ave_clip.events.DECODERS)[0])
from ave_clip.timeline import plot_timeline
import ave_clip.overlay as overlay
print(plot_timeline.__name__, overlay.write_overlay.__name__)
"""
    result = run_fresh(script)
    names = ["load_ave", "format_srt", "merge", "plot_timeline", "write_overlay"]
    assert result.stdout.split() == names, result.stderr


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(ave_clip, "nonsense")  # noqa: B009 (the attribute is what is tested)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ave_clip.nonsense")
