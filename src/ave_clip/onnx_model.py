"""A localizer that was exported to ONNX, run by ONNX Runtime or OpenVINO instead of torch.

It takes the place of [`AVEClipForLocalization`] in the pipeline and in code that calls `encode`, `attend` and
`localize`, or the model itself, for inference.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import cached_file, logging

from .configuration_ave_clip import AVEClipConfig, AVEClipOnnxConfig
from .modeling_ave_clip import (
    AVEClipLocalizationOutput,
    encode_frames,
    encode_in_chunks,
    place_segments,
    real_items,
)

logger = logging.get_logger(__name__)

# File of each graph, with its inputs and outputs.
GRAPHS = {
    "vision": (("pixel_values",), ("image_features",)),
    "audio": (("input_values",), ("audio_features",)),
    "attention": (("image_features", "audio_features"), ("visual", "weights")),
    "temporal": (("visual", "audio_features"), ("logits", "event_logits")),
}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
BACKENDS = tuple(EXTRAS)


def graph_names(config: AVEClipConfig) -> list[str]:
    """The graphs that an export of such a localizer has."""
    attends = config.visual_feature_type != "pooled" or config.normalize_features
    return ["temporal", *(["attention"] if attends else []), *(["vision", "audio"] if config.use_encoders else [])]


class AVEClipOnnxForLocalization(nn.Module):
    """The exported localizer; holds no weights that torch knows of, and runs on the CPU.

    Args:
        config ([`AVEClipOnnxConfig`]): As exported.
        files (`Mapping[str, str]`): Path of each graph.
        backend (`str`): `"onnxruntime"` or `"openvino"`; a graph is loaded when it is first needed.

    Raises:
        ValueError: for another backend.
    """

    config_class = AVEClipOnnxConfig
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    device = torch.device("cpu")
    dtype = torch.float32
    generation_config = None

    def __init__(self, config: AVEClipOnnxConfig, files: Mapping[str, str], backend: str = BACKENDS[0]) -> None:
        super().__init__()
        self.config, self.files = config, dict(files)
        self._choose(backend)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        config: AVEClipOnnxConfig | None = None,
        backend: str = BACKENDS[0],
        **kwargs: Any,
    ) -> "AVEClipOnnxForLocalization":
        """Load an export from a folder or the Hub.

        Args:
            source (`str` or `os.PathLike`): What `ave-clip export MODEL OUT --format onnx` wrote.
            config ([`AVEClipOnnxConfig`], *optional*): Instead of the one that lies there.
            backend (`str`): See above.
            kwargs: `revision`, `token`, `cache_dir` and the like; a `dtype` other than float32 is refused.

        Raises:
            ValueError: for another dtype.
            OSError: where a graph is missing.
        """
        if kwargs.get("dtype") not in (None, "auto", torch.float32, "float32"):
            raise ValueError(
                f"ONNX graphs are float32, got dtype={kwargs['dtype']}. Leave it out, or load with torch."
            )
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
        config = config or cls.config_class.from_pretrained(source, **hub)
        names = graph_names(config)
        return cls(config, {name: cached_file(str(source), f"{name}.onnx", **hub) for name in names}, backend)

    def use_backend(self, backend: str) -> None:
        """Choose what runs the graphs.

        Raises:
            ValueError: for a backend that is not one of `BACKENDS`.
            ImportError: where it is not installed.
        """
        self._choose(backend)
        _import_backend(backend)

    def _choose(self, backend: str) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"An exported localizer runs on one of {list(BACKENDS)}, got backend={backend!r}.")
        self.backend = backend
        self._sessions: dict[str, Callable] = {}

    def can_generate(self) -> bool:
        return False

    def encode(
        self,
        pixel_values: torch.Tensor,
        input_values: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        frame_sources: torch.Tensor | None = None,
        prepare_pixels: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `AVEClipForLocalization.encode`."""
        frames, segments = real_items(pixel_values, frame_mask, segment_mask)
        image = encode_frames(
            lambda part: self.run_graph("vision", part)[0], pixel_values, frames, frame_sources, prepare_pixels
        )
        audio = encode_in_chunks(lambda part: self.run_graph("audio", part)[0], input_values[segments])
        return image, place_segments(audio, segments)

    def attend(self, image_features: torch.Tensor, audio_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `AVEClipForLocalization.attend`."""
        if "attention" not in self.files:  # one location, which attention leaves as it is
            return image_features, image_features.new_ones(*image_features.shape[:2], 1)
        if image_features.dim() == 3 and self.config.visual_feature_type != "pooled":
            image_features = image_features.unsqueeze(2)
        return tuple(self.run_graph("attention", image_features, audio_features))

    def localize(self, visual: torch.Tensor, audio_features: torch.Tensor) -> AVEClipLocalizationOutput:
        """As `AVEClipForLocalization.localize`, for segments that are all real."""
        logits, *event_logits = self.run_graph("temporal", visual, audio_features)
        return AVEClipLocalizationOutput(logits=logits, event_logits=event_logits[0] if event_logits else None)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
    ) -> AVEClipLocalizationOutput:
        """As `AVEClipForLocalization.forward`, for segments that are all real, without loss.

        Raises:
            ValueError: where a segment is padding.
        """
        if segment_mask is not None and not segment_mask.all():
            raise ValueError("ONNX graphs know no padding: pass videos of one length, or one at a time.")
        if pixel_values is not None:
            image_features, audio_features = self.encode(pixel_values, input_values, frame_mask)
        return self.localize(self.attend(image_features, audio_features)[0], audio_features)

    def run_graph(self, graph: str, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run one graph by name, loading it first where needed; `onnx_export` lists inputs and outputs.

        Raises:
            ValueError: where the export has no such graph.
        """
        if graph not in self.files:
            raise ValueError(f"This export holds the graphs {sorted(self.files)}, not {graph!r}.")
        if graph not in self._sessions:
            self._sessions[graph] = _LOADERS[self.backend](self.files[graph])
        return [torch.from_numpy(output) for output in self._sessions[graph](*(value.numpy() for value in inputs))]


def _import_backend(backend: str) -> Any:
    try:
        if backend == "openvino":
            import openvino

            return openvino
        import onnxruntime

        return onnxruntime
    except ImportError:
        raise ImportError(
            f"{backend} is not installed: pip install 'ave-clip[{EXTRAS[backend]}]' or pip install {backend}."
        ) from None


def _load_onnxruntime(path: str) -> Callable:
    onnxruntime = _import_backend("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs)))


@functools.cache
def _openvino_core() -> Any:
    """One for the whole process, never freed.

    Its CPU plugin puts the stack on which this thread handles signals into memory of its own and frees that with the
    last reference, from whichever thread that is; the next signal with a handler (a child that ends, once a DataLoader
    had workers) then kills the process.
    """
    return _import_backend("openvino").Core()


def _load_openvino(path: str) -> Callable:
    # Without the hint OpenVINO computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = _openvino_core().compile_model(Path(path), "CPU", settings)

    def run(*inputs):
        results = compiled(list(inputs))
        return [results[output].copy() for output in compiled.outputs]

    return run


_LOADERS = {"onnxruntime": _load_onnxruntime, "openvino": _load_openvino}

__all__ = ["AVEClipOnnxForLocalization"]
