"""Tiny configurations and models that all tests share."""

from pathlib import Path

import torch

import ave_clip
from ave_clip.core.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig
from ave_clip.core.configuration_ave_clip import AVEClipConfig
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from ave_clip.core.video_processing_ave_clip import AVEClipVideoProcessor

ASSETS = Path(ave_clip.__file__).parent / "assets"
MINI_FOLDER, TINY_FOLDER = ASSETS / "ave-clip-mini", ASSETS / "ave-clip-tiny"
# The clip of `ave-clip-tiny`: "Mossy frog" from 2 to 7 s.
SYNTHETIC_SAMPLE = ASSETS / "synthetic_sample.mp4"
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
    "input_dropout": 0.0,
    # All blocks of the paper, most of which the default network does without.
    "input_layer_norm": False,
    "gated_branches": False,
    "attention_domains": "both",
    "use_refiner": True,
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


def tiny_processor(num_frames_per_segment: int = 2, **decoding) -> AVEClipProcessor:
    size = TINY_VISION["image_size"]
    video_processor = AVEClipVideoProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        num_frames_per_segment=num_frames_per_segment,
    )
    extractor = AudioCLIPFeatureExtractor(sampling_rate=TINY_AUDIO["sampling_rate"])
    return AVEClipProcessor(extractor, video_processor, **{"id2label": tiny_config().id2label, **decoding})
