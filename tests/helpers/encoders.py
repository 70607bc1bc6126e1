"""Tiny encoders of transformers' real classes, with random weights, saved with their processors as on the Hub."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AddedToken,
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioFrameLevelModel,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.pe_video.video_processing_pe_video import PeVideoVideoProcessor

SIDE = 16
BLOCKS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SQUARE = {"height": SIDE, "width": SIDE}
AUDIO_CLASSES = ["Speech", "Bark", "Church bell", "Car"]
IMAGE_CLASSES = ["church, church building", "golden retriever", "street sign"]


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single letters with marks for beginning and end."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz ", start=4)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **{name: AddedToken(mark) for name, mark in marks.items()}
    )


def save_all(folder: Path, *parts) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def save_clip(folder: Path) -> str:
    config = CLIPConfig(
        text_config={**BLOCKS, **VOCABULARY, "max_position_embeddings": 64},
        vision_config={**BLOCKS, "image_size": SIDE, "patch_size": 4},
        projection_dim=12,
    )
    torch.manual_seed(0)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return save_all(folder, CLIPModel(config), images, letters_tokenizer())


def save_siglip(folder: Path) -> str:
    config = SiglipConfig(
        text_config={**BLOCKS, **VOCABULARY, "max_position_embeddings": 64},
        vision_config={**BLOCKS, "image_size": SIDE, "patch_size": 4},
    )
    torch.manual_seed(1)
    return save_all(folder, SiglipModel(config), SiglipImageProcessor(size=SQUARE), letters_tokenizer())


def save_siglip2(folder: Path) -> str:
    """SigLIP2 for images of any shape."""
    config = Siglip2Config(
        text_config={**BLOCKS, **VOCABULARY, "max_position_embeddings": 64},
        vision_config={**BLOCKS, "num_patches": 16, "patch_size": 4},
    )
    torch.manual_seed(2)
    images = Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
    return save_all(folder, Siglip2Model(config), images, letters_tokenizer())


def save_clap(folder: Path) -> str:
    config = ClapConfig(
        text_config={**BLOCKS, **VOCABULARY, "max_position_embeddings": 70, "projection_dim": 12},
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "window_size": 4,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "projection_dim": 12,
        },
        projection_dim=12,
    )
    torch.manual_seed(3)
    extractor = ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=320, max_length_s=4, fft_window_size=512, frequency_max=4000
    )
    return save_all(folder, ClapModel(config), extractor, letters_tokenizer())


def pe_parts() -> tuple[dict, dict, dict]:
    """Configurations of PE's text model, audio encoder and video encoder."""
    blocks = {**BLOCKS, "head_dim": 8}
    text = {"model_type": "modernbert", **BLOCKS, **VOCABULARY, "max_position_embeddings": 64}
    dac = {"downsampling_ratios": [4, 8], "encoder_hidden_size": 4, "codebook_dim": 4, "hidden_size": 16}
    vision = {"architecture": "vit_pe_core_tiny_patch16_384", "num_labels": 12, "num_classes": 12}
    vision["model_args"] = {
        "img_size": 32,
        "embed_dim": 32,
        "patch_size": 8,
        "depth": 1,
        "num_heads": 2,
        "global_pool": "map",
    }
    return text, {**blocks, "dac_config": {"model_type": "dac", **dac}}, {**blocks, "vision_config": vision}


def save_pe_audio_video(folder: Path) -> str:
    text, audio, video = pe_parts()
    joint = {**BLOCKS, "head_dim": 8, "audio_config": audio, "video_config": video}
    joint["audio_config"]["model_type"], joint["video_config"]["model_type"] = "pe_audio_encoder", "pe_video_encoder"
    config = PeAudioVideoConfig(text_config=text, audio_video_config=joint)
    torch.manual_seed(4)
    model = PeAudioVideoModel(config)
    for name, parameter in model.named_parameters():
        if "logit" in name:  # untrained, all are 0, so that nothing would depend on the input
            torch.nn.init.constant_(parameter, 2.0 if "scale" in name else -1.0)
    extractor = PeAudioFeatureExtractor(sampling_rate=8000, hop_length=32)
    frames = PeVideoVideoProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return save_all(folder, model, extractor, frames, letters_tokenizer())


def save_pe_audio_frames(folder: Path) -> str:
    text, audio, _ = pe_parts()
    torch.manual_seed(5)
    model = PeAudioFrameLevelModel(PeAudioConfig(text_config=text, audio_config=audio))
    return save_all(folder, model, PeAudioFeatureExtractor(sampling_rate=8000, hop_length=32), letters_tokenizer())


def save_ast(folder: Path) -> str:
    config = ASTConfig(
        **BLOCKS, patch_size=4, frequency_stride=4, time_stride=4, max_length=320, num_mel_bins=16,
        id2label=dict(enumerate(AUDIO_CLASSES)),
    )  # fmt: skip
    torch.manual_seed(6)
    extractor = ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=16, max_length=320)
    return save_all(folder, ASTForAudioClassification(config), extractor)


def save_vit(folder: Path) -> str:
    config = ViTConfig(**BLOCKS, image_size=SIDE, patch_size=4, id2label=dict(enumerate(IMAGE_CLASSES)))
    torch.manual_seed(7)
    return save_all(folder, ViTForImageClassification(config), ViTImageProcessor(size=SQUARE))


SAVERS = {
    "clip": save_clip,
    "siglip": save_siglip,
    "siglip2": save_siglip2,
    "clap": save_clap,
    "pe-av": save_pe_audio_video,
    "pe-a-frame": save_pe_audio_frames,
    "ast": save_ast,
    "vit": save_vit,
}
