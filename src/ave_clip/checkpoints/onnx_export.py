"""Exports a localizer as ONNX graphs, for ONNX Runtime, OpenVINO and other programs that read ONNX.

    ave-clip export MODEL ave-clip-onnx --format onnx
    pipeline("audio-visual-event-localization", model="ave-clip-onnx", backend="openvino")

| file | from | to |
|---|---|---|
| `vision.onnx` | `pixel_values (frames, 3, height, width)` | `image_features (frames, locations, width)` |
| `audio.onnx` | `input_values (segments, samples of one segment)`, or what the tower takes | `audio_features` |
| `attention.onnx` | `image_features (batch, segments, locations, width)`, `audio_features` | `visual`, `weights` |
| `temporal.onnx` | `visual`, `audio_features (batch, segments, width)` | `logits`, `event_logits` |

The numbers of frames, videos and segments are dynamic; `weights` are those of AGVA. The folder also contains
`config.json` and `processor_config.json`.

- The graphs of `ave-clip-mini` contain the labels that the model looks for when it is exported; its `temporal.onnx`
  also gives `heard`, `seen` and `both`.
- Some towers of transformers (CLAP) fix the number of items when they are traced. Their graph takes one item.
"""

import copy
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..core.builtin_checkpoints import find_checkpoint
from ..core.modeling_ave_clip import AVEClipForLocalization
from ..core.modeling_ave_clip_mini import AVEClipMiniForLocalization
from ..core.modeling_layers import AVEClipBidirectionalLSTM
from ..core.modeling_log_mel import FFT_SIZE, WINDOW_SAMPLES, LogMelPatches
from ..core.processing_ave_clip import AVEClipProcessor
from ..core.segments import samples_per_segment
from ..files import check_replaceable, new_folder
from .onnx_model import GRAPHS, ONNX_MODELS, graph_names

Localizer = AVEClipForLocalization | AVEClipMiniForLocalization
LOCALIZERS = {model.config_class.model_type: model for model in (AVEClipForLocalization, AVEClipMiniForLocalization)}
MAX_DYNAMIC = 2**15
# torch.export unrolls an LSTM or GRU over the example's segments; as one operator it becomes ONNX's own.
_LIBRARY = torch.library.Library("ave_clip_onnx", "DEF")
for _kind in ("bilstm", "bigru"):
    _LIBRARY.define(
        f"{_kind}(Tensor features, Tensor weights, Tensor recurrent, Tensor biases, int hidden_size) -> Tensor"
    )

# torch.export of older versions cannot prove the sizes of blocks for every number of segments.
MINIMUM_TORCH = "2.11"


def export_onnx(
    model: Localizer | str | os.PathLike,
    folder: str | os.PathLike,
    processor: AVEClipProcessor | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a localizer's graphs, configuration and processor.

    Args:
        model ([`AVEClipForLocalization`], [`AVEClipMiniForLocalization`] or `str`): The localizer in float32, or its
            folder, Hub id or built-in name.
        folder (`str` or `os.PathLike`): Folder to write, in one atomic step.
        processor ([`AVEClipProcessor`], *optional*): Default: the processor saved with the model.
        overwrite (`bool`): Whether to replace an existing folder.

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: if `onnx` or `onnxscript` is not installed, or torch is older than `MINIMUM_TORCH`.
        ValueError: if the model is not a localizer with torch weights, its weights are not float32, it has a boundary
            head, or its encoder cannot be exported.
        FolderInUseError: if the folder exists; with `overwrite`, if it is not a checkpoint or contains the model or
            the working directory.
    """
    source: Any = None if isinstance(model, Localizer) else find_checkpoint(model)
    if overwrite:
        check_replaceable(folder, CONFIG_NAME, "checkpoint", *(() if source is None else (source,)))
    _check_packages()
    if source is not None:
        config = _checked_config(source)
        if processor is None and _has_encoders(config):  # without encoders it takes features, which need no processor
            processor = AVEClipProcessor.from_pretrained(source)
        model = LOCALIZERS[config.model_type].from_pretrained(source, dtype=torch.float32)
    assert isinstance(model, Localizer)
    if model.dtype != torch.float32:
        raise ValueError(f"The model is {model.dtype}; ONNX graphs are float32. Load it with dtype=torch.float32.")
    if getattr(model.config, "boundary_regression", False):
        raise ValueError(
            "A localizer with boundary_regression=True cannot be exported to ONNX yet. Run it with torch, or train "
            "one without the boundary head."
        )
    if processor is None and not hasattr(model.config, "audioclip_config") and _has_encoders(model.config):
        raise ValueError("Pass `processor`, too: it defines the inputs of this model's encoder.")
    model = copy.deepcopy(model).cpu().eval()
    _replace_layers(model)
    if isinstance(model, AVEClipMiniForLocalization):
        model._classes(model.device)  # made before, the classes of its labels are constants of the graphs
    with new_folder(folder, overwrite=overwrite) as partial:
        for name, (function, inputs, dynamic) in _graphs(model, processor).items():
            _export_graph(partial / f"{name}.onnx", name, _Graph(model, function), inputs, dynamic)
        content = model.config.to_dict()
        content.pop("model_type")
        ONNX_MODELS[model.config.model_type].config_class(**content).save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
    return Path(folder)


def _checked_config(source: str | os.PathLike) -> Any:
    config = AutoConfig.from_pretrained(source)
    if config.model_type not in LOCALIZERS:
        raise ValueError(
            f"{source} is a model of type {config.model_type!r}. Export a localizer ({', '.join(LOCALIZERS)})."
        )
    return config


def _has_encoders(config: PreTrainedConfig) -> bool:
    return getattr(config, "use_encoders", True)  # ave-clip-mini always has them


def _tower_inputs(model: Localizer, processor: AVEClipProcessor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two frames and two windows of audio, as the towers take them."""
    if isinstance(model, AVEClipForLocalization) and not model.config.is_composite:
        towers = model.config.encoder_config
        side, samples = towers.vision_config.image_size, towers.audio_config.sampling_rate
        if processor is not None:
            samples = samples_per_segment(samples, processor.video_processor.segment_seconds)
        return torch.zeros(2, 3, side, side), torch.zeros(2, samples)
    assert processor is not None  # `export_onnx` requires it
    frame = processor.video_processor.frame_transform()(np.zeros((64, 64, 3), dtype=np.uint8))
    silence = [np.zeros(processor.window_samples, dtype=np.float32)] * 2
    return torch.zeros(2, 3, *frame.shape[:2]), torch.from_numpy(processor.prepare_windows(silence))


class _Graph(nn.Module):
    """One function of a model as a module, since torch.onnx exports modules."""

    def __init__(self, model: Localizer, function: Callable) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self.model, *inputs)


def _see(model: Localizer, pixel_values: torch.Tensor) -> torch.Tensor:
    return model._frame_features(pixel_values)


def _hear(model: Localizer, input_values: torch.Tensor) -> torch.Tensor:
    return model._audio_features(input_values)


def _attend(model: Localizer, image_features: torch.Tensor, audio_features: torch.Tensor) -> tuple:
    return model.attend(image_features, audio_features)


def _localize(model: Localizer, visual: torch.Tensor, audio_features: torch.Tensor) -> tuple:
    output = model.localize(visual, audio_features)
    _, outputs = GRAPHS["temporal"]
    return tuple(output[name] for name in outputs if output.get(name) is not None)


def _graphs(
    model: Localizer, processor: AVEClipProcessor | None
) -> dict[str, tuple[Callable, tuple[torch.Tensor, ...], Sequence[str]]]:
    """Returns function, example inputs and dynamic dimensions of each graph of this model."""
    config = model.config
    batch, segments = 2, 13  # any numbers but 1, which torch.export would treat as fixed
    if isinstance(model, AVEClipMiniForLocalization):
        image_size, audio_size = (
            config.image_config.hidden_size,
            model.audio_model.classifier.get_parameter("weight").shape[-1],
        )
        visual_size, is_map = image_size, True
    else:
        image_size, audio_size = config.resolved_image_feature_size, config.resolved_audio_feature_size
        visual_size, is_map = model.video_lstm.get_buffer("weights").shape[-1], config.visual_feature_type != "pooled"
    audio = torch.zeros(batch, segments, audio_size)
    image = torch.zeros(batch, segments, *((49,) if is_map else ()), image_size)
    graphs = {
        "temporal": (_localize, (torch.zeros(batch, segments, visual_size), audio), ("batch", "segments")),
        "attention": (_attend, (image, audio), ("batch", "segments", "locations")),
    }
    if _has_encoders(config):
        pixels, windows = _tower_inputs(model, processor)
        graphs |= {"vision": (_see, (pixels,), ("frames",)), "audio": (_hear, (windows,), ("segments",))}
    return {name: graphs[name] for name in graph_names(config)}


def _export_graph(
    path: Path, name: str, graph: "_Graph", inputs: tuple[torch.Tensor, ...], dynamic: Sequence[str]
) -> None:
    dimensions = [torch.export.Dim(label, min=1, max=MAX_DYNAMIC) for label in dynamic]
    # `function` takes any number of inputs, so their shapes come as one tuple.
    shapes = tuple(dict(enumerate(dimensions[: value.dim() - 1])) for value in inputs)
    program = _trace(graph, name, inputs, (shapes,))
    if isinstance(program.model.graph.inputs[0].shape[0], int):  # the tower's code fixed the number of items
        program = _trace(graph, name, tuple(value[:1] for value in inputs), None)
    program.save(path)


def _trace(graph: "_Graph", name: str, inputs: tuple[torch.Tensor, ...], dynamic_shapes: Any) -> Any:
    input_names, output_names = GRAPHS[name]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        try:
            return torch.onnx.export(
                graph,
                inputs,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=_translations(),
                verbose=False,
                input_names=list(input_names),
                output_names=list(output_names),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            encoder = getattr(graph.model.config, "encoder_config", None)
            if name not in ("vision", "audio") or encoder is None:
                raise
            tower = getattr(encoder, "heard_config" if name == "audio" else "vision_config", encoder)
            raise ValueError(
                f"The encoder {tower.model_type!r} cannot be exported to ONNX by this version of torch "
                f"({torch.__version__}). A localizer without its encoder, which takes features, can: "
                "AVEClipConfig(use_encoders=False)."
            ) from error


def _replace_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, AVEClipBidirectionalLSTM):
            setattr(module, name, _OnnxLSTM(child.lstm))
        elif isinstance(child, nn.GRU):
            setattr(module, name, _OnnxGRU(child))
        elif isinstance(child, LogMelPatches):
            setattr(module, name, _OnnxLogMelPatches())
        else:
            _replace_layers(child)


class _OnnxRecurrent(nn.Module):
    """The weights of a bidirectional layer in ONNX's order: of each direction, the gates in `gate_order`."""

    gate_order: tuple[int, ...]

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.hidden_size = layer.hidden_size
        weights, biases = (
            [self._reordered(layer, f"{what}_{kind}_l0") for kind in ("ih", "hh")] for what in ("weight", "bias")
        )
        self.weights, self.recurrent = map(nn.Buffer, weights)
        self.biases = nn.Buffer(torch.cat(biases, dim=1))  # (2 directions, 2 * gates * hidden)

    def _reordered(self, layer: nn.RNNBase, name: str) -> torch.Tensor:
        gates = (getattr(layer, name + suffix).detach().chunk(len(self.gate_order)) for suffix in ("", "_reverse"))
        return torch.stack([torch.cat([parts[index] for index in self.gate_order]) for parts in gates])

    @property
    def _arguments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        return self.weights, self.recurrent, self.biases, self.hidden_size


class _OnnxLSTM(_OnnxRecurrent):
    """Replaces [`AVEClipBidirectionalLSTM`] in an export."""

    gate_order = (0, 3, 1, 2)  # torch: input, forget, cell, output; ONNX: input, output, forget, cell

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ops.ave_clip_onnx.bilstm(features, *self._arguments)


class _OnnxGRU(_OnnxRecurrent):
    """Replaces [`~torch.nn.GRU`] in an export."""

    gate_order = (1, 0, 2)  # torch: reset, update, new; ONNX: update, reset, new

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.ops.ave_clip_onnx.bigru(features, *self._arguments), None


class _OnnxLogMelPatches(LogMelPatches):
    """[`LogMelPatches`] with the Fourier transform as a matrix product: OpenVINO cannot read the operator for it."""

    def __init__(self) -> None:
        super().__init__()
        # Frames are shorter than the transform, which pads them with zeros at their end.
        turns = torch.outer(torch.arange(WINDOW_SAMPLES), torch.arange(FFT_SIZE // 2 + 1)) % FFT_SIZE
        angles = turns.double() * (2 * math.pi / FFT_SIZE)
        self.register_buffer("real", angles.cos().float(), persistent=False)
        self.register_buffer("imaginary", angles.sin().float(), persistent=False)

    def magnitudes(self, frames: torch.Tensor) -> torch.Tensor:
        return ((frames @ self.real).square() + (frames @ self.imaginary).square()).sqrt()


def _recurrent_shape(features, weights, recurrent, biases, hidden_size):
    return features.new_empty(*features.shape[:2], 2 * hidden_size)


for _kind in ("bilstm", "bigru"):
    torch.library.register_fake(f"ave_clip_onnx::{_kind}", _recurrent_shape, lib=_LIBRARY)


def _translations() -> dict[Callable, Callable]:
    """Returns the operators that torch.onnx cannot translate by itself, with their ONNX translations."""
    from onnx_ir import Shape
    from onnxscript import opset20 as op

    def bilstm(features, weights, recurrent, biases, hidden_size):
        states, _, _ = op.LSTM(
            op.Transpose(features, perm=[1, 0, 2]),
            *(weights, recurrent, biases),
            direction="bidirectional",
            hidden_size=hidden_size,
        )
        return joined(states)

    def bigru(features, weights, recurrent, biases, hidden_size):
        states, _ = op.GRU(
            op.Transpose(features, perm=[1, 0, 2]),
            *(weights, recurrent, biases),
            direction="bidirectional",
            hidden_size=hidden_size,
            linear_before_reset=1,  # as torch: the reset gate is applied to the product with its bias
        )
        return joined(states)

    def joined(states):  # (T, 2, B, hidden)
        return op.Reshape(op.Transpose(states, perm=[2, 0, 1, 3]), op.Constant(value_ints=[0, 0, -1]))

    def is_all_true(values):
        return op.Cast(op.ReduceMin(op.Cast(values, to=6), keepdims=0), to=9)  # as int32, then bool

    def adaptive_max_pool2d(features, output_size):
        batch, channels, *size = features.shape
        for axis, bins in enumerate(output_size, start=2):
            length = size[axis - 2]
            edges = [(index * length // bins, -(-(index + 1) * length // bins)) for index in range(bins)]
            axes = op.Constant(value_ints=[axis])
            parts = [
                op.Slice(features, op.Constant(value_ints=[start]), op.Constant(value_ints=[end]), axes)
                for start, end in edges
            ]
            features = op.Concat(*(op.ReduceMax(part, axes, keepdims=1) for part in parts), axis=axis)
            size[axis - 2] = bins
            features.shape = Shape([batch, channels, *size])
        return features, op.Cast(features, to=7)  # the second output replaces the indices, which are not used

    return {
        torch.ops.ave_clip_onnx.bilstm.default: bilstm,
        torch.ops.ave_clip_onnx.bigru.default: bigru,
        torch.ops.aten._is_all_true.default: is_all_true,
        torch.ops.aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    }


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Exporting to ONNX needs {error.name}: pip install 'ave-clip[onnx]'.") from None
    if Version(torch.__version__) < Version(MINIMUM_TORCH):
        raise ImportError(
            f"Exporting to ONNX needs torch {MINIMUM_TORCH} or later, got {torch.__version__}: "
            "pip install 'ave-clip[onnx]'."
        )


__all__ = ["export_onnx"]
