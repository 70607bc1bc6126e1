"""Tiny configurations and models that all tests share."""

import pytest
import torch
from transformers.utils import logging

from ave_clip.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig
from ave_clip.configuration_ave_clip import AVEClipConfig
from ave_clip.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.modeling_ave_clip import AVEClipForLocalization
from ave_clip.processing_ave_clip import AVEClipProcessor
from ave_clip.video_processing_ave_clip import AVEClipVideoProcessor

TINY_VISION = {"image_size": 64, "width": 8, "depths": (1, 1, 1, 1), "num_attention_heads": 4, "projection_dim": 24}
TINY_AUDIO = {
    "sampling_rate": 8000,
    "n_fft": 128,
    "hop_length": 64,
    "win_length": 128,
    "width": 8,
    "depths": (1, 1, 1, 1),
    "groups": 2,
    "width_per_group": 32,
    "projection_dim": 24,
}
TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 24,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "bos_token_id": 97,
    "eos_token_id": 98,
}
TINY_LOCALIZER = {
    "hidden_size": 16,
    "agva_hidden_size": 16,
    "agva_attention_size": 8,
    "window_sizes": (10, 5, 3, 2),
    "dropout": 0.0,
}


def tiny_audioclip_config() -> AudioCLIPConfig:
    return AudioCLIPConfig(
        text_config=dict(TINY_TEXT),
        vision_config=AudioCLIPVisionConfig(**TINY_VISION),
        audio_config=AudioCLIPAudioConfig(**TINY_AUDIO),
        projection_dim=24,
    )


def tiny_config(**overrides) -> AVEClipConfig:
    labels = {0: "Bell", 1: "Bark", 2: "Clap", 3: "background"}
    values = {"audioclip_config": tiny_audioclip_config(), "id2label": labels, **TINY_LOCALIZER, **overrides}
    return AVEClipConfig(**values)


def tiny_localizer(seed: int = 0, **overrides) -> AVEClipForLocalization:
    torch.manual_seed(seed)
    return AVEClipForLocalization(tiny_config(**overrides)).eval()


@pytest.fixture
def localizer() -> AVEClipForLocalization:
    return tiny_localizer()


def tiny_processor(num_frames_per_segment: int = 2) -> AVEClipProcessor:
    size = TINY_VISION["image_size"]
    video_processor = AVEClipVideoProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        num_frames_per_segment=num_frames_per_segment,
    )
    extractor = AudioCLIPFeatureExtractor(sampling_rate=TINY_AUDIO["sampling_rate"])
    return AVEClipProcessor(extractor, video_processor, id2label=tiny_config().id2label)


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
