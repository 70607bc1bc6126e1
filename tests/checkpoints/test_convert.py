"""Conversion of checkpoints in the original's layout; tiny towers unless a test is about the released sizes."""

import functools
import gzip
import hashlib
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ave_clip.checkpoints import convert as convert_module
from ave_clip.checkpoints.clip_bpe import (
    BPE_FILE_NAME,
    VOCAB_SIZE,
    VocabularyError,
    find_bpe_file,
    read_clip_tokenizer,
)
from ave_clip.checkpoints.convert import ConversionError, convert_audioclip, original_name, recognise_checkpoint
from ave_clip.core.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig
from ave_clip.core.modeling_audioclip import AudioCLIPModel
from ave_clip.core.modeling_esresnext import AudioCLIPAudioModel
from tests.helpers.ave_files import PeakMemory
from tests.helpers.models import TINY_AUDIO, TINY_TEXT, TINY_VISION

SHARED = Path(os.environ.get("AVE_CLIP_SHARED", Path(__file__).parents[2].parent / "shared"))
FIXTURES = SHARED / "fixtures" / "audioclip"
TEXT = {**TINY_TEXT, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 77}
TEXT.update(bos_token_id=VOCAB_SIZE - 2, eos_token_id=VOCAB_SIZE - 1)


def original_layout(model: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict of `model` under the original's names: the opposite of the conversion."""
    state, thirds = {}, {}
    for name, tensor in model.state_dict().items():
        source, part = original_name(prefix + name)
        if part is not None:
            thirds.setdefault(source, {})[part] = tensor
        else:
            state[source] = tensor.t().contiguous() if source == "text_projection" else tensor
    state |= {source: torch.cat([parts[0], parts[1], parts[2]]) for source, parts in thirds.items()}
    if any(name.startswith("audio.") for name in state):
        state["audio.fbsp.bias"] = torch.empty(0)
    return {name.removeprefix("audio.") if prefix else name: tensor for name, tensor in state.items()}


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and statistic its own value, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory) -> Path:
    """A vocabulary of CLIP's form, with other merges."""
    pairs = itertools.product(bytes_to_unicode().values(), repeat=2)
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in itertools.islice(pairs, VOCAB_SIZE - 514))]
    path = tmp_path_factory.mktemp("bpe") / BPE_FILE_NAME
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.fixture
def tiny_release(monkeypatch) -> functools.partial:
    """Let the converter expect tiny towers instead of the released sizes."""
    config = functools.partial(
        AudioCLIPConfig, text_config=TEXT, vision_config=TINY_VISION, audio_config=TINY_AUDIO, projection_dim=24
    )
    audio_config = functools.partial(AudioCLIPAudioConfig, **{**TINY_AUDIO, "projection_dim": 24})

    def tiny_audio_config(projection_dim):
        return AudioCLIPAudioConfig(**{**audio_config.keywords, "projection_dim": projection_dim})

    monkeypatch.setattr(convert_module, "AudioCLIPConfig", config)
    monkeypatch.setattr(convert_module, "AudioCLIPAudioConfig", tiny_audio_config)
    return config


@pytest.fixture
def model(tiny_release) -> AudioCLIPModel:
    return randomize(AudioCLIPModel(tiny_release()))


@pytest.fixture
def checkpoint(model, tmp_path) -> Path:
    path = tmp_path / "AudioCLIP.pt"
    torch.save(original_layout(model), path)
    return path


def test_key_table_gives_exactly_the_original_names_and_shapes():
    spec_file = FIXTURES / "state_dict_spec.json"
    if not spec_file.is_file():
        pytest.skip(f"AVE_CLIP_SHARED holds no fixtures: no {spec_file}")
    with torch.device("meta"):
        state = original_layout(AudioCLIPModel(AudioCLIPConfig()))
    expected = {name: tuple(entry["shape"]) for name, entry in json.loads(spec_file.read_text()).items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_converted_folder_contains_the_same_weights_and_loads_by_auto_classes(model, checkpoint, bpe_file, tmp_path):
    report = convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert type(loaded) is AudioCLIPModel
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.model_max_length == 77
    assert processor.feature_extractor.sampling_rate == 44100
    assert report.kind == "audioclip" and report.release is None
    assert report.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    assert report.dropped_keys == ["audio.fbsp.bias"]
    assert report.num_tensors == len(model.state_dict())


def test_release_is_named_by_its_digest(checkpoint, bpe_file, tmp_path, monkeypatch):
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    monkeypatch.setitem(convert_module.RELEASES, digest, "AudioCLIP-Full-Training.pt")
    report = convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    assert report.release == "AudioCLIP-Full-Training.pt"
    assert "AudioCLIP-Full-Training.pt (audioclip" in report.summary()


def test_bfloat16_leaves_the_spectrogram_at_float32(model, checkpoint, bpe_file, tmp_path):
    convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file, dtype="bfloat16")
    loaded = AudioCLIPModel.from_pretrained(tmp_path / "out")
    assert loaded.vision_model.conv1.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.audio_model.fbsp.fc, model.audio_model.fbsp.fc)


def test_weights_too_large_for_float16_are_refused(checkpoint, tmp_path):
    state = torch.load(checkpoint)
    state["audio.bn1.running_var"][2] = 70000.0
    torch.save(state, checkpoint)
    message = r"values up to 70000, which are too large for torch\.float16: .* bfloat16 or float32"
    with pytest.raises(ConversionError, match=message):
        convert_audioclip(checkpoint, tmp_path / "out", text=False, dtype="float16")
    assert not (tmp_path / "out").exists()
    convert_audioclip(checkpoint, tmp_path / "out", text=False, dtype="bfloat16")
    loaded = AudioCLIPModel.from_pretrained(tmp_path / "out")
    assert loaded.audio_model.bn1.running_var[2].item() == pytest.approx(70000, rel=0.01)


def test_no_text_leaves_out_the_text_tower_and_needs_no_vocabulary(model, checkpoint, tmp_path):
    report = convert_audioclip(checkpoint, tmp_path / "out", text=False)
    loaded = AudioCLIPModel.from_pretrained(tmp_path / "out")
    assert loaded.config.towers == ("vision", "audio")
    assert set(model.state_dict()) - set(loaded.state_dict()) == {
        name for name in model.state_dict() if name.startswith(("text_model.", "logit_scale_at"))
    } | {"logit_scale"}
    assert report.unexpected_keys == [] and "token_embedding.weight" in report.dropped_keys
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "out").sampling_rate == 44100
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").crop_size["height"] == 224
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(audio=torch.zeros(500), images=torch.zeros(3, 50, 50), sampling_rate=44100, return_tensors="pt")
    assert inputs["input_values"].shape == (1, 500) and inputs["pixel_values"].shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match="without its text tower"):
        processor(text="church bell")


def test_clip_file_gives_image_and_text_towers(tiny_release, bpe_file, tmp_path):
    model = randomize(AudioCLIPModel(tiny_release(towers=("text", "vision"))))
    torch.save(original_layout(model), tmp_path / "CLIP.pt")
    report = convert_audioclip(tmp_path / "CLIP.pt", tmp_path / "out", bpe=bpe_file)
    loaded = AudioCLIPModel.from_pretrained(tmp_path / "out")
    assert report.kind == "clip" and loaded.config.towers == ("text", "vision")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="no audio tower"):
        loaded(input_values=torch.zeros(1, 1000))


def test_esresnext_file_gives_the_audio_tower_with_its_classes(tiny_release, tmp_path):
    model = randomize(AudioCLIPAudioModel(AudioCLIPAudioConfig(**{**TINY_AUDIO, "projection_dim": 527})))
    torch.save(original_layout(model, prefix="audio_model."), tmp_path / "ESRNXFBSP.pt")
    report = convert_audioclip(tmp_path / "ESRNXFBSP.pt", tmp_path / "out")
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert report.kind == "esresnext" and type(loaded) is AudioCLIPAudioModel
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded(torch.zeros(2, 2000)).audio_embeds.shape == (2, 527)
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "out").amplitude == "int16"


def test_older_files_may_lack_the_window_and_the_batch_counters(model, checkpoint, bpe_file, tmp_path):
    state = torch.load(checkpoint)
    lacking = ["audio.window", "audio.fbsp.bias", "visual.bn1.num_batches_tracked"]
    for name in lacking:
        del state[name]
    torch.save(state, checkpoint)
    report = convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    assert sorted(report.missing_keys) == ["audio.window", "visual.bn1.num_batches_tracked"]
    fresh = AudioCLIPModel(model.config)
    loaded = AudioCLIPModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.audio_model.fbsp.window, fresh.audio_model.fbsp.window)


def test_unknown_keys_are_reported_and_ignored(checkpoint, bpe_file, tmp_path):
    torch.save({**torch.load(checkpoint), "epoch": torch.tensor(3)}, checkpoint)
    report = convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    assert report.unexpected_keys == ["epoch"]
    assert "ignored: epoch" in report.summary()


def change(name, value):
    return lambda state: {**state, name: value(state[name])}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda state: {k: v for k, v in state.items() if k != "visual.layer1.0.conv1.weight"},
            "1 tensors are missing: visual.layer1.0.conv1.weight",
        ),
        (change("audio.fc.weight", lambda value: value[:-1]), r"audio.fc.weight has shape \(23, 256\), expected \(24"),
        (change("audio.fc.bias", lambda value: value.long()), "audio.fc.bias is torch.int64"),
        (change("visual.bn1.weight", lambda value: value * float("nan")), "visual.bn1.weight contains NaN"),
        (lambda state: {f"module.{k}": v for k, v in state.items()}, "not a checkpoint of AudioCLIP"),
        (lambda state: {"weight": torch.zeros(3)}, "not a checkpoint of AudioCLIP: its keys are weight"),
        (lambda state: {"state_dict": state, "epoch": 3}, "not a flat state dict"),
        (lambda state: [torch.zeros(3)], "contains list"),
    ],
)
def test_unfit_checkpoints_are_refused_and_leave_nothing(damage, message, checkpoint, bpe_file, tmp_path):
    torch.save(damage(torch.load(checkpoint)), checkpoint)
    with pytest.raises(ConversionError, match=message):
        convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_released_sizes_are_demanded(model, checkpoint, bpe_file, tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConversionError, match=r"tensors do not fit: .*has shape .*expected .*tensors are missing"):
        convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    assert not (tmp_path / "out").exists()


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_file_with_code_is_refused_and_the_code_not_run(tmp_path):
    torch.save({"visual.conv1.weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps({"visual.conv1.weight": Payload(tmp_path / "ran")}))
    for name in ("evil.pt", "evil.pickle"):
        with pytest.raises(ConversionError, match="was refused"):
            convert_audioclip(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 1, 1000, 0.5, 0.99])
def test_truncated_file_is_refused(keep, checkpoint, tmp_path):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ConversionError, match=r"cannot be read|was refused"):
        convert_audioclip(checkpoint, tmp_path / "out", text=False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02.", "pop from empty list"),
        (b"\x80\x02X\x01", "unpack requires"),
        (b"\x80\x02}}K\x01s.", "unhashable"),
    ],
)
def test_damaged_pickle_is_refused_however_it_fails(data, reason, tmp_path):
    (tmp_path / "damaged.pt").write_bytes(data)
    with pytest.raises(ConversionError, match=f"damaged.pt (cannot be read|was refused).*{reason}"):
        convert_audioclip(tmp_path / "damaged.pt", tmp_path / "out", text=False)


def test_storage_that_is_lost_in_the_old_format_is_refused(checkpoint, tmp_path):
    torch.save({"a": torch.zeros(3)}, checkpoint, _use_new_zipfile_serialization=False)
    data = checkpoint.read_bytes()
    key = re.findall(rb"\d{8,}", data)[-1]
    start = data.rfind(key)
    checkpoint.write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
    with pytest.raises(ConversionError, match="cannot be read"):
        convert_audioclip(checkpoint, tmp_path / "out", text=False)


def test_torchscript_archive_is_refused(tmp_path):
    with pytest.warns(FutureWarning):
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "script.pt")
    with pytest.raises(ConversionError, match="TorchScript"):
        convert_audioclip(tmp_path / "script.pt", tmp_path / "out")


def test_old_format_without_zip_is_read(model, checkpoint, bpe_file, tmp_path):
    torch.save(torch.load(checkpoint), checkpoint, _use_new_zipfile_serialization=False)
    convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    loaded = AudioCLIPModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.vision_model.conv1.weight, model.vision_model.conv1.weight)


def test_absent_file_unknown_dtype_and_taken_folder_are_refused(checkpoint, tmp_path):
    with pytest.raises(ConversionError, match="There is no file"):
        convert_audioclip(tmp_path / "absent.pt", tmp_path / "out")
    with pytest.raises(ConversionError, match="float32, float16, bfloat16, got int8"):
        convert_audioclip(checkpoint, tmp_path / "out", dtype="int8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConversionError, match="exists already"):
        convert_audioclip(checkpoint, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_empty_output_folder_is_used(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    convert_audioclip(checkpoint, tmp_path / "out", text=False)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_interrupted_conversion_leaves_nothing(checkpoint, bpe_file, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "_verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_audioclip(checkpoint, tmp_path / "out", bpe=bpe_file)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_verification_notices_a_wrong_tensor(checkpoint, tmp_path, monkeypatch):
    save_file = convert_module.save_file

    def save_wrong(tensors, *args, **kwargs):
        save_file({**tensors, "audio_model.fc.bias": tensors["audio_model.fc.bias"] + 1}, *args, **kwargs)

    monkeypatch.setattr(convert_module, "save_file", save_wrong)
    with pytest.raises(ConversionError, match=r"audio_model\.fc\.bias differs"):
        convert_audioclip(checkpoint, tmp_path / "out", text=False)
    assert not (tmp_path / "out").exists()


def test_vocabulary_is_taken_from_beside_the_checkpoint_or_a_package(bpe_file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "packages")
    (tmp_path / "packages" / "open_clip").mkdir(parents=True)
    (tmp_path / "packages" / "open_clip" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (tmp_path / "packages" / "open_clip" / BPE_FILE_NAME).write_bytes(bpe_file.read_bytes())
    path, source = find_bpe_file(None, tmp_path)
    assert path.parent.name == "open_clip" and source == "the installed package open_clip"
    (tmp_path / BPE_FILE_NAME).write_bytes(bpe_file.read_bytes())
    assert find_bpe_file(None, tmp_path)[0] == tmp_path / BPE_FILE_NAME
    assert find_bpe_file(bpe_file, tmp_path)[0] == bpe_file


def test_absent_vocabulary_is_refused_with_the_ways_out(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("ave_clip.checkpoints.clip_bpe.BPE_PACKAGES", ())
    with pytest.raises(VocabularyError, match=r"--bpe.*ave-clip\[convert\].*--no-text"):
        convert_audioclip(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"\xff\xfe\x00", "damaged"),
        (lambda data: gzip.compress(b"#version\na b\n"), "is not CLIP's vocabulary"),
        (lambda data: gzip.compress(gzip.decompress(data).replace(b"! !", b"! unknown")), "is not CLIP's vocabulary"),
        (lambda data: gzip.compress(gzip.decompress(data).replace(b"! !", b"! ! !")), "is not CLIP's vocabulary"),
    ],
)
def test_wrong_vocabulary_is_refused(damage, message, bpe_file, tmp_path):
    (tmp_path / "wrong.gz").write_bytes(damage(bpe_file.read_bytes()))
    with pytest.raises(VocabularyError, match=message):
        read_clip_tokenizer(tmp_path / "wrong.gz")


def test_unpacked_vocabulary_reads_the_same(bpe_file, tmp_path):
    (tmp_path / "bpe.txt").write_bytes(gzip.decompress(bpe_file.read_bytes()))
    texts = ["church bell", "Aa! 123"]
    unpacked, packed = read_clip_tokenizer(tmp_path / "bpe.txt"), read_clip_tokenizer(bpe_file)
    assert unpacked(texts)["input_ids"] == packed(texts)["input_ids"]
    assert unpacked("")["input_ids"] == [VOCAB_SIZE - 2, VOCAB_SIZE - 1]


def test_recognise_checkpoint_tells_the_kinds_apart():
    audio = {"audio.conv1.weight": None, "visual.conv1.weight": None}
    assert recognise_checkpoint(audio) == "audioclip"
    assert recognise_checkpoint({"visual.conv1.weight": None, "token_embedding.weight": None}) == "clip"
    assert recognise_checkpoint({"fbsp.fc": None, "att5.conv_depth.weight": None}) == "esresnext"


def test_token_ids_equal_the_original_tokenizers():
    if not (FIXTURES / "outputs.npz").is_file():
        pytest.skip(f"AVE_CLIP_SHARED holds no fixtures: no {FIXTURES}")
    try:
        bpe_file, _ = find_bpe_file(os.environ.get("CLIP_BPE"), FIXTURES)
    except VocabularyError:
        pytest.skip("no package that ships CLIP's vocabulary (open_clip or clip), and CLIP_BPE is not set")
    numpy = pytest.importorskip("numpy")
    expected = numpy.load(FIXTURES / "outputs.npz")["tokens"]
    texts = [", ".join(labels) for labels in json.loads((FIXTURES / "meta.json").read_text())["texts"]]
    ids = read_clip_tokenizer(bpe_file)(texts)["input_ids"]
    repaired = [index for index, row in enumerate(ids) if row != expected[index][expected[index] != 0].tolist()]
    assert [texts[index] for index in repaired] == [
        text for text in texts if "“" in text
    ]  # the original repairs quotes


MEMORY_SCRIPT = """
import resource, sys
from ave_clip.checkpoints.convert import convert_audioclip
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert_audioclip(sys.argv[1], sys.argv[2], text=False)
print(before, peak())
"""


@pytest.mark.slow
def test_released_size_is_converted_within_two_and_a_half_times_its_size(tmp_path):
    torch.manual_seed(0)
    model = AudioCLIPModel(AudioCLIPConfig())
    torch.save(original_layout(model), tmp_path / "full.pt")
    size = (tmp_path / "full.pt").stat().st_size
    assert len(torch.load(tmp_path / "full.pt", mmap=True)) == 861
    script = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path / "full.pt"), str(tmp_path / "out")]
    before, after = map(int, subprocess.run(script, check=True, capture_output=True, text=True).stdout.split())
    assert after - before < 1.5 * size  # beyond what importing torch and transformers takes
    loaded = AudioCLIPModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.audio_model.layer4[0].conv2.weight, model.audio_model.layer4[0].conv2.weight)


def test_zip_bombs_are_refused_by_the_sizes_that_they_declare(checkpoint, tmp_path):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        target.writestr("archive/data/bomb", bytes(100 * 2**20))
    with pytest.raises(ConversionError, match=r"would decompress from .* to 1\d\d MB, but PyTorch's files are not"):
        convert_audioclip(bomb, tmp_path / "out", text=False)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_declares_more_than_it_contains_is_refused(model, tmp_path):
    state = original_layout(model)
    state["audio.fc.weight"] = torch.zeros(1).expand(2**20, 2**20)
    torch.save(state, tmp_path / "large.pt")
    with pytest.raises(ConversionError, match=r"audio\.fc\.weight of shape 1048576, 1048576 declares more numbers"):
        convert_audioclip(tmp_path / "large.pt", tmp_path / "out", text=False)


def test_a_vocabulary_that_unpacks_to_more_is_not_unpacked(tmp_path):
    (tmp_path / "bpe.gz").write_bytes(gzip.compress(bytes(100 * 2**20)))
    with PeakMemory() as peak, pytest.raises(VocabularyError, match="more than 16 MB"):
        read_clip_tokenizer(tmp_path / "bpe.gz")
    assert peak.megabytes < 60
