"""Composite encoders, and localizers on them, exported with their code and loaded where ave-clip is missing."""

import json
import os

import pytest

from ave_clip.checkpoints.hub_export import export_for_hub
from ave_clip.core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ave_clip.training.checkpoints import build_localizer, load_encoder, load_processor, towers_fingerprint
from tests.checkpoints.test_hub_export import WITHOUT_PACKAGE
from tests.helpers.encoders import SAVERS
from tests.helpers.fresh import run_fresh
from tests.helpers.media import write_recording
from tests.helpers.models import TINY_LOCALIZER, tiny_config

USE = """
import json, sys
from transformers import pipeline
video, *folders = sys.argv[1:]
results = {}
for folder in folders:
    localizer = pipeline(model=folder, device="cpu", trust_remote_code=True)
    options = {"candidate_labels": ["bark", "church bell"]} if "zero-shot" in localizer.task else {}
    results[folder] = localizer(video, decoder="none", **options)
assert not [name for name in sys.modules if name.partition(".")[0] == "ave_clip"]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def encoder_folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    pairs = {"texts": ("siglip", "clap"), "classes": ("vit", "ave-clip-mini")}
    made = {}
    for name, (vision, audio) in pairs.items():
        towers = [SAVERS[tower](root / tower) if tower in SAVERS else tower for tower in (vision, audio)]
        made[name] = str(root / name)
        AudioVisualEncoderModel.from_towers(*towers).save_pretrained(made[name])
        AudioVisualEncoderProcessor.from_towers(*towers).save_pretrained(made[name])
    return made


def test_exports_run_without_the_package_as_with_it(encoder_folders, tmp_path):
    from transformers import pipeline

    video = str(write_recording(tmp_path / "clip.mp4", 3.0))
    encoder = load_encoder(encoder_folders["texts"])
    localizer = build_localizer(encoder, tiny_config().id2label, TINY_LOCALIZER)
    assert towers_fingerprint(localizer) == towers_fingerprint(encoder)
    assert towers_fingerprint(encoder) != towers_fingerprint(load_encoder(encoder_folders["classes"]))
    localizer.save_pretrained(tmp_path / "localizer")
    load_processor(encoder_folders["texts"], encoder, 1, localizer=localizer.config).save_pretrained(
        tmp_path / "localizer"
    )
    sources = {**encoder_folders, "localizer": str(tmp_path / "localizer"), "mini": "ave-clip-mini"}
    exported = {name: str(export_for_hub(source, tmp_path / f"exported-{name}")) for name, source in sources.items()}
    assert {"LICENSE", "NOTICE"} <= {path.name for path in (tmp_path / "exported-mini").iterdir()}
    card = (tmp_path / "exported-texts" / "README.md").read_text()
    assert "(`siglip`)" in card and "trust_remote_code=True" in card
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    result = run_fresh(WITHOUT_PACKAGE + USE, video, *exported.values(), environment=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout.splitlines()[-1])
    for name, folder in exported.items():
        task = (
            "audio-visual-event-localization"
            if name in ("localizer", "mini")
            else "zero-shot-audio-visual-event-localization"
        )
        options = {} if name in ("localizer", "mini") else {"candidate_labels": ["bark", "church bell"]}
        expected = pipeline(task, model=sources[name], device="cpu")(video, decoder="none", **options)
        got = results[folder]
        assert [part["label"] for part in got["segments"]] == [part["label"] for part in expected["segments"]]
        scores = [[part["score"] for part in one["segments"]] for one in (got, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
