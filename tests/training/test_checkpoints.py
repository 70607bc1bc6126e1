"""A checkpoint is replaced as a whole or not at all, and read back into the same localizer."""

import pytest
import torch

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.training.checkpoints import CheckpointError, load_trained_weights, save_checkpoint


def localizer(seed=0, hidden_size=8):
    torch.manual_seed(seed)
    sizes = {"image_feature_size": 4, "audio_feature_size": 4, "hidden_size": hidden_size, "agva_hidden_size": 8}
    return AVEClipForLocalization(AVEClipConfig(use_encoders=False, **sizes))


def test_the_weights_come_back(tmp_path):
    first, second = localizer(0), localizer(1)
    save_checkpoint(tmp_path, first)
    load_trained_weights(second, tmp_path)
    for name, tensor in second.state_dict().items():
        torch.testing.assert_close(tensor, first.state_dict()[name], rtol=0, atol=0)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, localizer(0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save = AVEClipForLocalization.save_pretrained

    def fail(self, folder):
        save(self, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AVEClipForLocalization, "save_pretrained", fail)
    with pytest.raises(CheckpointError, match=r"No space left on device\)\. The previous files are kept"):
        save_checkpoint(tmp_path, localizer(1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "results.json").write_text("{}")
    save_checkpoint(tmp_path, localizer())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"state", "results.json", "config.json", "model.safetensors"}


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
def test_a_lost_or_damaged_checkpoint_is_named(tmp_path, damage):
    save_checkpoint(tmp_path, localizer())
    damage(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors, the best localizer of this run"):
        load_trained_weights(localizer(), tmp_path)


def test_a_checkpoint_of_another_localizer_is_refused(tmp_path):
    save_checkpoint(tmp_path, localizer(hidden_size=4))
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_trained_weights(localizer(), tmp_path)
