"""Fixtures that all tests share."""

import os
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from transformers.utils import logging

from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from tests.helpers.models import TINY_FOLDER, tiny_localizer, tiny_processor

# A shell lets programs in the background ignore SIGINT, and `nohup` SIGHUP. Processes that the tests start would
# inherit that, and could not be stopped.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def localizer() -> AVEClipForLocalization:
    return tiny_localizer()


@pytest.fixture
def processor() -> AVEClipProcessor:
    return tiny_processor()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """Folder of a saved tiny localizer and its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_localizer().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory) -> Path:
    """Folder of `ave-clip-tiny` exported to ONNX: once for all workers of pytest-xdist, because it takes long."""
    from ave_clip.checkpoints.onnx_export import export_onnx

    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if is_worker else base) / "tiny-onnx"
    with FileLock(folder.with_suffix(".lock")):
        return folder if folder.is_dir() else export_onnx(TINY_FOLDER, folder)  # written in one atomic step


@pytest.fixture
def progress_bars():
    """transformers' progress bars switched on, and afterwards as they were before."""
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()
