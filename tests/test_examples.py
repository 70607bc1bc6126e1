"""Each stage script runs two steps on a few synthetic clips, and hands on exactly what the next one needs."""

import json
import sys
from pathlib import Path

import pytest

from ave_clip.data import generate_synthetic_ave

EXAMPLES = Path(__file__).parents[1] / "examples"
AUDIOCLIP = {
    "model_type": "audioclip",
    "projection_dim": 16,
    "text_config": {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "vision_config": {"image_size": 32, "width": 4, "depths": [1, 1, 1, 1], "num_attention_heads": 4},
    "audio_config": {
        "sampling_rate": 8000,
        "n_fft": 64,
        "hop_length": 100,
        "win_length": 64,
        "width": 4,
        "depths": [1, 1, 1, 1],
        "groups": 1,
        "width_per_group": 16,
    },
}
LOCALIZER = ["hidden_size=8", "agva_hidden_size=8", "agva_attention_size=4", "dropout=0.0", "min_event_segments=1"]


@pytest.fixture(scope="module")
def scripts():
    """The stage scripts as modules."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import extract_features
        import finetune_audioclip
        import train_localizer
        import train_tiny
    finally:
        sys.path.remove(str(EXAMPLES))
    return {
        "stage1": finetune_audioclip,
        "stage2": extract_features,
        "stage3": train_localizer,
        "tiny": train_tiny,
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    generate_synthetic_ave(folder / "clips", num_videos=10, seed=5, num_workers=0, splits=(0.6, 0.2, 0.2))
    (folder / "audioclip.json").write_text(json.dumps(AUDIOCLIP))
    return folder


@pytest.fixture(scope="module")
def stage1(scripts, work):
    arguments = ["--cpu", "--model", work / "audioclip.json", "--data_dir", work / "clips", "--batch_size", "8"]
    arguments += ["--output_dir", work / "stage1", "--num_epochs", "2", "--max_steps", "2", "--learning_rate", "1e-3"]
    arguments += [
        "--num_frames_per_segment",
        "2",
        "--shift_pixels",
        "2",
        "--picture_gain",
        "0.2",
        "--max_shift",
        "0.5",
    ]
    return scripts["stage1"].main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def stage2(scripts, work, stage1):
    return scripts["stage2"].main(stage2_arguments(work))


@pytest.fixture(scope="module")
def stage3(scripts, work, stage2):
    return scripts["stage3"].main(stage3_arguments(work, "--output_dir", str(work / "localizer")))


def stage2_arguments(work, *more):
    arguments = ["--cpu", "--model", work / "stage1", "--data_dir", work / "clips", "--output_dir", work / "features"]
    arguments += ["--num_frames_per_segment", "2", "--dtype", "float32", "--rows_per_shard", "4", *more]
    return [str(argument) for argument in arguments]


def stage3_arguments(work, *more):
    arguments = ["--cpu", "--model", str(work / "stage1"), "--features_dir", str(work / "features")]
    arguments += ["--num_epochs", "2", "--max_steps", "2", "--batch_size", "2", "--localizer", *LOCALIZER]
    return [*arguments, *more]


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3", "tiny"])
def test_every_script_explains_itself(scripts, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        scripts[name].main(["--help"])
    assert stopped.value.code == 0
    assert scripts[name].__doc__.splitlines()[0] in capsys.readouterr().out
