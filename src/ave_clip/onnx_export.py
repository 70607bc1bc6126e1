"""A localizer as ONNX graphs, for ONNX Runtime, OpenVINO and whatever else reads ONNX.

    ave-clip export MODEL ave-clip-onnx --format onnx
    pipeline("audio-visual-event-localization", model="ave-clip-onnx", backend="openvino")

| file | from | to |
|---|---|---|
| `vision.onnx` | `pixel_values (frames, 3, height, width)` | `image_features (frames, locations, width)` |
| `audio.onnx` | `input_values (segments, samples of one segment)` | `audio_features (segments, width)` |
| `attention.onnx` | `image_features (batch, segments, locations, width)`, `audio_features` | `visual`, `weights` |
| `temporal.onnx` | `visual`, `audio_features (batch, segments, width)` | `logits`, `event_logits` |

Frames, batch and segments are dynamic; `weights` are those of AGVA. `config.json` and
`processor_config.json` lie beside the graphs.
"""

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME

from .configuration_ave_clip import AVEClipConfig, AVEClipOnnxConfig
from .files import check_replaceable, new_folder
from .modeling_ave_clip import AVEClipBidirectionalLSTM, AVEClipForLocalization
from .onnx_model import GRAPHS, graph_names
from .processing_ave_clip import AVEClipProcessor
from .segments import samples_per_segment

MAX_DYNAMIC = 2**15
# torch.export unrolls an LSTM over the segments it sees; as one operator it becomes ONNX's LSTM, of any length.
_LIBRARY = torch.library.Library("ave_clip_onnx", "DEF")
_LIBRARY.define("bilstm(Tensor features, Tensor weights, Tensor recurrent, Tensor biases, int hidden_size) -> Tensor")


def export_onnx(
    model: AVEClipForLocalization | str | os.PathLike,
    folder: str | os.PathLike,
    processor: AVEClipProcessor | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a localizer's graphs, configuration and processor.

    Args:
        model ([`AVEClipForLocalization`] or `str`): The localizer in float32, or where `from_pretrained` finds it.
        folder (`str` or `os.PathLike`): Where to write; appears when it is whole.
        processor ([`AVEClipProcessor`], *optional*): By default the one that lies with the model.
        overwrite (`bool`): Whether to replace a folder that is there.

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: where `onnx` or `onnxscript` is not installed.
        ValueError: for a model that is no localizer of torch weights, or whose weights are not float32.
        FolderInUseError: where the folder exists; with `overwrite`, where it is no earlier checkpoint or holds the
            model or the working directory.
    """
    _check_packages()
    is_loaded = isinstance(model, AVEClipForLocalization)
    if overwrite:
        check_replaceable(folder, CONFIG_NAME, "checkpoint", *(() if is_loaded else (model,)))
    if not is_loaded:
        config = _checked_config(model)
        if processor is None and config.use_encoders:  # else there is nothing that it could read for
            processor = AVEClipProcessor.from_pretrained(model)
        model = AVEClipForLocalization.from_pretrained(model, dtype=torch.float32)
    if model.dtype != torch.float32:
        raise ValueError(f"The model is {model.dtype}; ONNX graphs are float32. Load it with dtype=torch.float32.")
    model = copy.deepcopy(model).cpu().eval()
    _replace_lstms(model)
    with new_folder(folder, overwrite=overwrite) as partial:
        for name, (function, inputs, dynamic) in _graphs(model, _samples(model.config, processor)).items():
            _export_graph(partial / f"{name}.onnx", name, _Graph(model, function), inputs, dynamic)
        content = model.config.to_dict()
        content.pop("model_type")
        AVEClipOnnxConfig(**content).save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
    return Path(folder)


def _checked_config(source: str | os.PathLike) -> AVEClipConfig:
    config = AutoConfig.from_pretrained(source)
    if config.model_type != AVEClipConfig.model_type:
        raise ValueError(
            f"{source} is a model of type {config.model_type!r}. Export a localizer ({AVEClipConfig.model_type})."
        )
    return config


def _samples(config: AVEClipConfig, processor: AVEClipProcessor | None) -> int:
    """Samples of a segment; of one second where there is no processor to say."""
    rate = config.audioclip_config.audio_config.sampling_rate
    return rate if processor is None else samples_per_segment(rate, processor.video_processor.segment_seconds)


class _Graph(nn.Module):
    """One function of a model as a module, as torch.onnx wants it."""

    def __init__(self, model: AVEClipForLocalization, function: Callable) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self.model, *inputs)


def _see(model: AVEClipForLocalization, pixel_values: torch.Tensor) -> torch.Tensor:
    return model._frame_features(pixel_values)


def _hear(model: AVEClipForLocalization, input_values: torch.Tensor) -> torch.Tensor:
    return model.audio_model(input_values).audio_embeds


def _attend(model: AVEClipForLocalization, image_features: torch.Tensor, audio_features: torch.Tensor) -> tuple:
    return model.attend(image_features, audio_features)


def _localize(model: AVEClipForLocalization, visual: torch.Tensor, audio_features: torch.Tensor) -> tuple:
    output = model.localize(visual, audio_features)
    return (output.logits,) if output.event_logits is None else (output.logits, output.event_logits)


def _graphs(
    model: AVEClipForLocalization, samples: int
) -> dict[str, tuple[Callable, tuple[torch.Tensor, ...], Sequence[str]]]:
    """Function, example inputs and dynamic dimensions of each graph of this model."""
    config, towers = model.config, model.config.audioclip_config
    batch, segments = 2, 13  # any that are not 1, which torch.export takes for fixed
    audio = torch.zeros(batch, segments, config.resolved_audio_feature_size)
    visual_size = model.video_lstm.weights.shape[-1]
    locations = () if config.visual_feature_type == "pooled" else (49,)
    image = torch.zeros(batch, segments, *locations, config.resolved_image_feature_size)
    side = towers.vision_config.image_size
    graphs = {
        "temporal": (_localize, (torch.zeros(batch, segments, visual_size), audio), ("batch", "segments")),
        "attention": (_attend, (image, audio), ("batch", "segments", "locations")),
        "vision": (_see, (torch.zeros(batch, 3, side, side),), ("frames",)),
        "audio": (_hear, (torch.zeros(batch, samples),), ("segments",)),
    }
    return {name: graphs[name] for name in graph_names(config)}


def _export_graph(
    path: Path, name: str, graph: nn.Module, inputs: tuple[torch.Tensor, ...], dynamic: Sequence[str]
) -> None:
    dimensions = [torch.export.Dim(label, min=1, max=MAX_DYNAMIC) for label in dynamic]
    # `function` takes any number of inputs, so their shapes come as one tuple.
    shapes = tuple(dict(enumerate(dimensions[: value.dim() - 1])) for value in inputs)
    names = {"input_names": GRAPHS[name][0], "output_names": GRAPHS[name][1]}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        program = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            dynamic_shapes=(shapes,),
            custom_translation_table=_translations(),
            verbose=False,
            **{key: list(value) for key, value in names.items()},
        )
        program.save(path)


def _replace_lstms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, AVEClipBidirectionalLSTM):
            setattr(module, name, _OnnxLSTM(child.lstm))
        else:
            _replace_lstms(child)


class _OnnxLSTM(nn.Module):
    """Stands for [`AVEClipBidirectionalLSTM`] in an export, its weights in ONNX's order."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.hidden_size = lstm.hidden_size
        self.weights, self.recurrent = (nn.Buffer(_in_onnx_order(lstm, f"weight_{kind}_l0")) for kind in ("ih", "hh"))
        biases = [_in_onnx_order(lstm, f"bias_{kind}_l0") for kind in ("ih", "hh")]
        self.biases = nn.Buffer(torch.cat(biases, dim=1))  # (2 directions, 8 * hidden)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ops.ave_clip_onnx.bilstm(features, self.weights, self.recurrent, self.biases, self.hidden_size)


def _in_onnx_order(lstm: nn.LSTM, name: str) -> torch.Tensor:
    """Both directions; torch has the gates input, forget, cell, output, ONNX input, output, forget, cell."""
    directions = (getattr(lstm, name + suffix).detach().chunk(4) for suffix in ("", "_reverse"))
    return torch.stack([torch.cat([i, o, f, c]) for i, f, c, o in directions])


@torch.library.register_fake("ave_clip_onnx::bilstm", lib=_LIBRARY)
def _bilstm_shape(features, weights, recurrent, biases, hidden_size):
    return features.new_empty(*features.shape[:2], 2 * hidden_size)


def _translations() -> dict[Callable, Callable]:
    """What torch.onnx cannot translate by itself."""
    from onnx_ir import Shape
    from onnxscript import opset20 as op

    def bilstm(features, weights, recurrent, biases, hidden_size):
        states, _, _ = op.LSTM(
            op.Transpose(features, perm=[1, 0, 2]),
            *(weights, recurrent, biases),
            direction="bidirectional",
            hidden_size=hidden_size,
        )  # (T, 2, B, hidden)
        return op.Reshape(op.Transpose(states, perm=[2, 0, 1, 3]), op.Constant(value_ints=[0, 0, -1]))

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
        return features, op.Cast(features, to=7)  # the second, which nobody reads, stands for the indices

    return {
        torch.ops.ave_clip_onnx.bilstm.default: bilstm,
        torch.ops.aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    }


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Exporting to ONNX needs {error.name}: pip install 'ave-clip[onnx]'.") from None


__all__ = ["export_onnx"]
