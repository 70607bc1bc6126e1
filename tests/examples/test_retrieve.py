"""The retrieval example: every direction across the senses, on files of each kind."""

import numpy as np
import pytest
import retrieve
import torch
from PIL import Image

from ave_clip import AudioCLIPModel
from tests.core.test_pipeline_zero_shot import save_tiny_audioclip
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
