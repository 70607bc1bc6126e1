"""Fixtures that all tests share."""

import signal

import pytest
from transformers.utils import logging

from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from tests.helpers.models import tiny_localizer, tiny_processor

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


@pytest.fixture
def progress_bars():
    """transformers' progress bars switched on, and afterwards as they were before."""
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()
