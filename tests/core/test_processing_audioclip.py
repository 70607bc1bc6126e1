"""AudioCLIPProcessor: its parts, label texts, any batch sizes."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import AutoProcessor, CLIPImageProcessor, CLIPTokenizer

from ave_clip.core.configuration_audioclip import AudioCLIPConfig
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.modeling_audioclip import AudioCLIPModel
from ave_clip.core.processing_audioclip import AudioCLIPProcessor
from tests.helpers.models import TINY_AUDIO, TINY_TEXT, TINY_VISION


@pytest.fixture(scope="module")
def processor() -> AudioCLIPProcessor:
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77
    )
    image_processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return AudioCLIPProcessor(image_processor, AudioCLIPFeatureExtractor(sampling_rate=8000), tokenizer)


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (70, 90, 3), dtype=np.uint8)) for _ in range(count)]


def clips(count: int) -> list[np.ndarray]:
    return [0.1 * np.random.default_rng(index).standard_normal(3000 + 100 * index) for index in range(count)]


def test_lists_of_labels_are_joined_by_comma_and_space(processor):
    joined = processor(text=[["dog", "bark"], ["church bell"]])
    assert joined["input_ids"] == processor.tokenizer(["dog, bark", "church bell"], padding=True)["input_ids"]
    assert processor(text=["dog, bark", ["church bell"]])["input_ids"] == joined["input_ids"]
    assert processor(text="dog")["input_ids"] == processor.tokenizer("dog")["input_ids"]


def test_each_part_prepares_its_modality(processor):
    inputs = processor(images=pictures(2), text="cat", audio=clips(3), sampling_rate=8000, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 64, 64)
    assert inputs["input_values"].shape == (3, 3200)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (1, 5)
    expected = processor.image_processor(pictures(2), return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)


@torch.no_grad()
def test_inputs_of_any_batch_sizes_fit_the_model(processor):
    tokens = len(processor.tokenizer)
    text = {**TINY_TEXT, "vocab_size": tokens, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    config = AudioCLIPConfig(text_config=text, vision_config=TINY_VISION, audio_config=TINY_AUDIO, projection_dim=24)
    torch.manual_seed(0)
    model = AudioCLIPModel(config).eval()
    outputs = model(
        **processor(
            images=pictures(2),
            text=[["dog", "bark"], "cat", "bell"],
            audio=clips(4),
            sampling_rate=8000,
            return_tensors="pt",
        )
    )
    assert outputs.logits_per_audio_image.shape == (4, 2)
    assert outputs.logits_per_audio_text.shape == (4, 3)
    assert outputs.logits_per_image_text.shape == (2, 3)


def test_long_texts_are_cut_only_when_asked(processor):
    text = "a" * 100
    assert len(processor(text=text)["input_ids"]) == 102
    cut = processor(text=text, text_kwargs={"truncation": True, "max_length": 77})["input_ids"]
    assert len(cut) == 77 and cut[-1] == processor.tokenizer.eos_token_id


@pytest.mark.parametrize("text", [[["dog", 3]], [None], [[]], [["a", ["b"]]]])
def test_texts_of_another_form_are_refused(text, processor):
    with pytest.raises(ValueError, match=r"Each text must be a string or a list of strings"):
        processor(text=text)


def test_an_empty_list_of_texts_is_refused(processor):
    with pytest.raises(ValueError, match="empty list of texts, expected at least one"):
        processor(text=[])


def test_a_number_instead_of_a_text_is_refused(processor):
    with pytest.raises(ValueError, match="Expected a text or a list of texts, got 3"):
        processor(text=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_floating_dtype_and_with_gradients_are_read(dtype, processor):
    batch = torch.from_numpy(clips(1)[0]).to(dtype)
    expected = (batch.float() * 32768).round()
    for audio in (batch, batch.clone().requires_grad_(), [batch.clone().requires_grad_(), batch]):
        values = processor(audio=audio, sampling_rate=8000, return_tensors="pt")["input_values"]
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, expected.expand_as(values))
    with pytest.raises(ValueError, match="Got int16 audio"):
        processor(audio=(batch * 100).to(torch.int16), sampling_rate=8000)


def test_nothing_to_prepare_is_refused(processor):
    with pytest.raises(ValueError):
        processor()


def test_another_sampling_rate_is_refused(processor):
    with pytest.raises(ValueError, match=r"Got audio at 44100 Hz.*expects 8000 Hz"):
        processor(audio=clips(1), sampling_rate=44100)


def test_saving_and_loading_gives_the_same_inputs(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    options = {"text": [["dog", "bark"]], "images": pictures(1), "audio": clips(1), "sampling_rate": 8000}
    expected = processor(**options, return_tensors="pt")
    for loaded in (AudioCLIPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is AudioCLIPProcessor
        inputs = loaded(**options, return_tensors="pt")
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[key], expected[key]) for key in expected)


def test_processor_without_tokenizer_is_saved_and_loaded(processor, tmp_path):
    silent = AudioCLIPProcessor(processor.image_processor, processor.feature_extractor)
    silent.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
    options = {"images": pictures(1), "audio": clips(2), "sampling_rate": 8000, "return_tensors": "pt"}
    expected = processor(**options)
    loaded = [AudioCLIPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)]
    for each in (silent, *loaded, copy.deepcopy(silent), pickle.loads(pickle.dumps(silent))):
        assert type(each) is AudioCLIPProcessor and not hasattr(each, "tokenizer")
        assert each.model_input_names == ["pixel_values", "input_values"] and "tokenizer: " not in repr(each)
        inputs = each(**options)
        assert inputs.keys() == {"pixel_values", "input_values"}
        assert all(torch.equal(inputs[key], expected[key]) for key in inputs)
        with pytest.raises(ValueError, match=r"converted without its text tower.*ave-clip convert"):
            each(text="dog", **options)
        with pytest.raises(ValueError, match="has no tokenizer"):
            each.decode([1])


def test_tokenizer_can_be_given_to_a_folder_without_one(processor, tmp_path):
    AudioCLIPProcessor(processor.image_processor, processor.feature_extractor).save_pretrained(tmp_path)
    loaded = AudioCLIPProcessor.from_pretrained(tmp_path, tokenizer=processor.tokenizer)
    assert loaded(text="dog")["input_ids"] == processor(text="dog")["input_ids"]
    loaded.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again(text="dog")["input_ids"] == processor(text="dog")["input_ids"]
