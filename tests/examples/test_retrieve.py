"""The retrieval example: every direction across the senses, on files of each kind."""

import numpy as np
import pytest
import retrieve
import torch
from PIL import Image

from ave_clip import AudioCLIPModel, AudioVisualEncoderModel, AudioVisualEncoderProcessor
from tests.core.test_pipeline_zero_shot import save_tiny_audioclip
from tests.helpers.encoders import SAVERS
from tests.helpers.media import write_recording


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    save_tiny_audioclip(folder / "model")
    for name, level in (("dark.png", 30), ("light.png", 220)):
        Image.fromarray(np.full((80, 90, 3), level, np.uint8)).save(folder / name)
    write_recording(folder / "tone.m4a", 1.0, picture=None)
    write_recording(folder / "film.mp4", 2.0)
    return folder


@pytest.mark.parametrize(
    ("query", "directions"),
    [
        ("bell", {"text -> picture": 3, "text -> sound": 2}),
        ("dark.png", {"picture -> sound": 2}),
        ("tone.m4a", {"sound -> picture": 3}),
        ("film.mp4", {"picture -> sound": 2, "sound -> picture": 3}),
    ],
)
def test_each_query_finds_the_other_senses(folder, query, directions, capsys):
    query = str(folder / query) if "." in query else query
    media = [str(folder / name) for name in ("dark.png", "light.png", "tone.m4a", "film.mp4")]
    results = retrieve.main(["--model", str(folder / "model"), "--query", query, "--device", "cpu", *media])
    assert {direction: len(ranked) for direction, ranked in results.items()} == directions
    for ranked in results.values():
        cosines = [cosine for _, cosine in ranked]
        assert cosines == sorted(cosines, reverse=True)
    assert "film.mp4" in capsys.readouterr().out


def test_cosines_are_those_of_the_models_own_forward(folder):
    media = [str(folder / "dark.png"), str(folder / "light.png")]
    results = retrieve.main(["--model", str(folder / "model"), "--query", "car", "--device", "cpu", *media])
    model = AudioCLIPModel.from_pretrained(folder / "model").eval()
    processor = retrieve.AudioCLIPProcessor.from_pretrained(folder / "model")
    with torch.no_grad():
        output = model(**processor(images=[Image.open(path) for path in media], text=["car"], return_tensors="pt"))
    expected = dict(zip(media, (output.image_embeds @ output.text_embeds[0]).tolist()))
    assert dict(results["text -> picture"]) == pytest.approx(expected, abs=1e-4)


def test_two_joined_models_are_searched_by_text_and_not_by_each_other(folder, tmp_path):
    sources = [SAVERS[name](tmp_path / name) for name in ("clip", "clap")]
    for part in (AudioVisualEncoderModel, AudioVisualEncoderProcessor):
        part.from_towers(*sources).save_pretrained(tmp_path / "joined")
    media = [str(folder / "light.png"), str(folder / "tone.m4a"), str(folder / "film.mp4")]
    options = ["--model", str(tmp_path / "joined"), "--device", "cpu", *media]
    results = retrieve.main(["--query", "bell", *options])
    assert {direction: len(ranked) for direction, ranked in results.items()} == {
        "text -> picture": 2,
        "text -> sound": 2,
    }
    model, processor = (
        part.from_pretrained(tmp_path / "joined") for part in (AudioVisualEncoderModel, AudioVisualEncoderProcessor)
    )
    pixels = processor(videos=np.full((1, 80, 90, 3), 220, np.uint8), return_tensors="pt")["pixel_values"][0, 0]
    with torch.no_grad():
        image = model.get_image_features(pixels).pooler_output
        text = model.get_text_features(**processor.tokenize(["a photo of bell"], "seen")).pooler_output
    expected = torch.cosine_similarity(image, text).item()
    assert dict(results["text -> picture"])[media[0]] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(
        ValueError, match="contains 'clip' for images and 'clap' for audio: there is no embedding space"
    ):
        retrieve.main(["--query", media[1], *options])
