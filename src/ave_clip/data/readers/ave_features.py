"""Reader of AVE's published features in h5 files."""

from ..features import load_ave_features
from ..h5 import AUDIO_FILE, VISUAL_FILE
from .base import DataSetReader

READER = DataSetReader(
    name="ave_features",
    summary=f"AVE's published features: a folder with {AUDIO_FILE} and {VISUAL_FILE}",
    recognizes=lambda path: (path / AUDIO_FILE).is_file() and (path / VISUAL_FILE).is_file(),
    load=load_ave_features,
    options=("name", "num_segments", "annotations_dir", "audio_file", "visual_file"),
)
