"""Composite encoders of transformers' real classes, tiny and with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

from ave_clip.core import encoders
from ave_clip.core.encoders import HEARD, SEEN, ClassifierEncoder, Encoder, encoder_class, encoder_for
from ave_clip.core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ave_clip.core.towers import concepts_for, same_classes
from tests.helpers.encoders import AUDIO_CLASSES, IMAGE_CLASSES, SAVERS
from tests.helpers.fresh import run_fresh

MINI = "ave-clip-mini"
# Image tower, audio tower, and the sizes of an image, of a location, of all locations, and of a window.
PAIRS = {
    ("clip", "clap"): (12, 16, 16, 12),
    ("siglip", "clap"): (16, 16, 16, 12),
    ("siglip2", "clap"): (16, 16, 16, 12),
    ("pe-av", None): (16, 16, 1, 16),
    ("clip", "pe-a-frame"): (12, 16, 16, 16),
    ("vit", "ast"): (16, 16, 16, 16),
    ("siglip", "ast"): (16, 16, 16, 16),
    ("vit", "clap"): (16, 16, 16, 12),
    ("clip", MINI): (12, 16, 16, 1024),
    (MINI, None): (1280, 1280, 49, 1024),
}
needs_timm = pytest.mark.skipif(not encoders.importlib.util.find_spec("timm"), reason="PE-AV needs timm")
pairs = pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=needs_timm if "pe-av" in pair else ()) for pair in PAIRS], ids=str
)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A function that gives the folder of a tiny tower, which is made when it is first asked for."""
    folders = {MINI: MINI, None: None}

    def get(name: str | None) -> str | None:
        if name not in folders:
            folders[name] = SAVERS[name](tmp_path_factory.mktemp("towers") / name)
        return folders[name]

    return get


@pytest.fixture(scope="module")
def joined(tower):
    """A function that gives the encoder and the processor of a pair."""
    made = {}

    def get(pair: tuple[str, str | None]) -> tuple[AudioVisualEncoderModel, AudioVisualEncoderProcessor]:
        if pair not in made:
            sources = [tower(name) for name in pair]
            made[pair] = (
                AudioVisualEncoderModel.from_towers(*sources),
                AudioVisualEncoderProcessor.from_towers(*sources),
            )
        return made[pair]

    return get


def inputs_of(processor: AudioVisualEncoderProcessor, seconds: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames `(3, 3, side, side)` and audio windows of a noisy clip."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (seconds, 40, 60, 3), dtype=np.uint8)
    rate = processor.feature_extractor.sampling_rate
    audio = generator.normal(0, 0.1, seconds * rate).astype(np.float32)
    batch = processor(videos=frames, audio=audio, sampling_rate=rate, num_frames_per_segment=1, return_tensors="pt")
    return batch["pixel_values"][0, :, 0], batch["input_values"][0]


def without_dtypes(config: dict) -> dict:
    """A configuration without the dtypes, which loading also sets in the configurations inside those of the towers."""
    return {
        name: without_dtypes(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "dtype"
    }


@pairs
def test_two_models_become_one_encoder_and_one_folder(pair, joined, tmp_path):
    model, processor = joined(pair)
    image_size, map_size, locations, audio_size = PAIRS[pair]
    pixels, audio = inputs_of(processor)
    with torch.no_grad():
        output = model(pixels, audio)
        features = model.get_image_features(pixels)
    assert output.image_embeds.shape == (3, image_size) and output.audio_embeds.shape == (3, audio_size)
    assert features.last_hidden_state.shape == (3, locations, map_size)
    config = model.config
    assert (config.image_feature_size, config.image_map_size) == (image_size, map_size)
    assert (config.num_image_locations, config.audio_feature_size) == (locations, audio_size)
    assert config.sampling_rate == processor.feature_extractor.sampling_rate
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AudioVisualEncoderModel.from_pretrained(tmp_path)
    again = AudioVisualEncoderProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert {**without_dtypes(loaded.config.to_dict()), "_name_or_path": ""} == without_dtypes(model.config.to_dict())
    for first, second in zip(inputs_of(again), (pixels, audio)):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    with torch.no_grad():
        for value, expected in zip(loaded(pixels, audio).values(), output.values()):
            torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pairs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_give_finite_features(pair, dtype, joined, tmp_path):
    model, processor = joined(pair)
    model.save_pretrained(tmp_path)
    half = AudioVisualEncoderModel.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        output = half(*inputs_of(processor))
    for value in output.values():
        assert value.dtype == dtype and value.isfinite().all()
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


LOAD = """
import sys, torch
import ave_clip
from transformers import AutoModel, AutoProcessor
inputs = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "AudioVisualEncoderProcessor", type(processor)
    with torch.no_grad():
        torch.save(dict(model(*inputs[folder])), f"{folder}/output.pt")
"""


def test_saved_encoders_give_the_same_in_a_fresh_process(joined, tmp_path):
    inputs, expected = {}, {}
    chosen = [("clip", "clap"), ("siglip2", "clap"), ("vit", "ast"), (MINI, None)]
    chosen += [("pe-av", None)] if encoders.importlib.util.find_spec("timm") else []
    for pair in chosen:
        model, processor = joined(pair)
        folder = str(tmp_path / "-".join(filter(None, pair)))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        inputs[folder] = inputs_of(processor)
        with torch.no_grad():
            expected[folder] = model(*inputs[folder])
    torch.save(inputs, tmp_path / "inputs.pt")
    result = run_fresh(LOAD, tmp_path / "inputs.pt", *inputs)
    assert result.returncode == 0, result.stderr
    for folder, output in expected.items():
        for name, value in torch.load(f"{folder}/output.pt").items():
            torch.testing.assert_close(value, output[name], rtol=0, atol=0)


@needs_timm
def test_pe_av_compares_as_its_own_forward_does_where_that_works(joined):
    model, processor = joined(("pe-av", None))
    pixels, audio = inputs_of(processor)
    tokens = processor.tokenize(["dog bark", "church bell", "horn"], HEARD, padding=True)
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    encoder = encoder_for(model)
    with torch.no_grad():  # as many texts as clips: with other numbers it fails
        expected = model.vision_model(pixel_values_videos=pixels.unsqueeze(1), input_values=audio, **tokens)
        image, sound = encoder.image(pixels).pooled, encoder.audio(audio).pooled
        for sense, embeds, logits in (
            (HEARD, sound, expected.logits_audio_text),
            (SEEN, image, expected.logits_video_text),
        ):
            similarity = encoder.similarity(sense)
            actual = similarity(embeds, encoder.text(tokens, sense)) + similarity.bias
            torch.testing.assert_close(actual, logits)
        agreement = encoder.agreement()
        torch.testing.assert_close(agreement(sound, image) + agreement.bias, expected.logits_audio_video)


def test_pe_a_frame_averages_the_frames_of_a_window(joined):
    model, processor = joined(("clip", "pe-a-frame"))
    audio = inputs_of(processor)[1]
    with torch.no_grad():
        frames = model.audio_model.get_audio_embeds(audio)
        assert type(model.audio_model).__name__ == "PeAudioFrameLevelModel" and frames.shape[1] > 1
        torch.testing.assert_close(model(input_values=audio).audio_embeds, frames.mean(dim=1))


def test_siglip2_sees_the_patches_that_its_own_processor_makes(joined, tower):
    from PIL import Image
    from transformers import AutoImageProcessor

    model, processor = joined(("siglip2", "clap"))
    side = processor.video_processor.size["height"]
    picture = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    pixels = processor(videos=picture[None], num_frames_per_segment=1, return_tensors="pt")["pixel_values"][0, 0]
    own = AutoImageProcessor.from_pretrained(tower("siglip2"))(Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
        expected = model.vision_model.get_image_features(**own).pooler_output
        torch.testing.assert_close(model(pixel_values=pixels).image_embeds, expected, rtol=1e-4, atol=1e-5)


def test_clap_treats_all_windows_of_a_batch_alike(joined):
    """Its feature extractor would mark a random window as longer than the others."""
    model, processor = joined(("clip", "clap"))
    assert processor.audio_options == {"truncation": "rand_trunc"}
    window = np.random.default_rng(0).normal(0, 0.1, processor.window_samples).astype(np.float32)
    prepared = torch.from_numpy(processor.prepare_windows([window] * 5))
    with torch.no_grad():
        embeds = model(input_values=prepared).audio_embeds
    torch.testing.assert_close(embeds, embeds[:1].expand_as(embeds))


def test_windows_reach_into_the_neighbouring_seconds(joined, tower):
    _, processor = joined(("vit", "ast"))
    assert processor.window_seconds == 3.0
    rate = processor.feature_extractor.sampling_rate
    audio = np.zeros(6 * rate, dtype=np.float32)
    audio[4 * rate :] = 0.5 * np.sin(np.arange(2 * rate))
    frames = np.zeros((6, 16, 16, 3), dtype=np.uint8)
    options = {"num_frames_per_segment": 1, "return_tensors": "pt"}
    values = processor(videos=frames, audio=audio, sampling_rate=rate, **options)["input_values"][0]
    is_silent = [bool((row == values[1]).all()) for row in values]
    assert is_silent[1:] == [True, True, False, False, False]  # the fourth window ends a second after its segment
    short = AudioVisualEncoderProcessor.from_towers(tower("vit"), tower("ast"), audio_window_seconds=1.0)
    assert short.window_samples == rate
    with pytest.raises(ValueError, match="at least the length of a segment"):
        AudioVisualEncoderProcessor.from_towers(tower("vit"), tower("ast"), audio_window_seconds=0.5)
    with pytest.raises(ValueError, match="at most the 4 s"):
        AudioVisualEncoderProcessor.from_towers(tower("vit"), tower("clap"), audio_window_seconds=5.0)


def test_texts_have_the_space_of_their_tower(joined):
    model, processor = joined(("siglip", "ast"))
    tokens = processor.tokenize(["dog", "bell"], SEEN, padding="max_length", max_length=64)
    tokens = {"input_ids": tokens["input_ids"]}
    assert model.get_text_features(SEEN, **tokens).pooler_output.shape == (2, 16)
    with pytest.raises(ValueError, match="heard is a classifier"):
        model.get_text_features(HEARD, **tokens)
    with pytest.raises(ValueError, match="got 'smelled'"):
        model.get_text_features("smelled", **tokens)
    with pytest.raises(ValueError, match="no tokenizer for what is heard"):
        joined(("vit", "ast"))[1].tokenize(["dog"], HEARD)
    with pytest.raises(ValueError, match="Nothing to encode"):
        model()


def test_a_missing_package_is_named(monkeypatch, tower):
    folder = tower("pe-av") if encoders.importlib.util.find_spec("timm") else pytest.skip("needs timm to be made")
    find = encoders.importlib.util.find_spec
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(ImportError, match=r"'pe_audio_video' needs timm.*pip install timm"):
        AudioVisualEncoderModel.from_towers(folder)


def test_a_model_that_encodes_no_images_is_named(tower):
    with pytest.raises(ValueError, match="neither an image nor a video processor"):
        AudioVisualEncoderModel.from_towers(tower("clap"), tower("clap"))


def test_models_without_a_class_of_their_own_are_found_by_their_architecture():
    assert encoder_class(BertConfig()) is Encoder
    assert encoder_class(BertConfig(architectures=["BertForImageClassification"])) is ClassifierEncoder


def test_concepts_are_renamed_to_the_classes_of_other_classifiers():
    rows = {row["name"]: row for row in concepts_for(AUDIO_CLASSES, IMAGE_CLASSES)}
    assert rows["Church bell"]["audio_tags"] == "Church bell"
    assert rows["Church bell"]["image_classes"] == "church, church building"
    assert rows["Bark"]["audio_tags"] == "Bark" and "golden retriever" in rows["Bark"]["image_classes"]
    assert "Accordion" not in rows
    own = ["tench", "church", "crane", "crane"]
    assert same_classes(own, ["tench, Tinca", "church, kirk", "crane, bird", "crane, machine"])[3] == "crane, machine"
    assert same_classes(own, ["kirk", "Church"]) == [None, "Church", None, None]


def test_the_guide_lists_every_kind_of_encoder():
    guide = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    assert {name for name in encoders.ENCODERS if f"| `{name}` |" not in guide} == {"audio_visual_encoder"}
