"""A localizer exported to ONNX, run by ONNX Runtime or OpenVINO instead of torch.

For inference it replaces [`AVEClipForLocalization`] or [`AVEClipMiniForLocalization`], in the pipeline and in code
that calls the model, `encode`, `attend` or `localize`.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file, logging

from ..core.configuration_ave_clip import AVEClipConfig, AVEClipOnnxConfig
from ..core.configuration_ave_clip_mini import AVEClipMiniConfig, AVEClipMiniOnnxConfig
from ..core.encoding import encode_segments
from ..core.localization_output import AVEClipLocalizationOutput
from ..core.modeling_ave_clip_mini import AVEClipMiniOutput, AVEClipMiniSenses

logger = logging.get_logger(__name__)

# Inputs and outputs of each graph.
GRAPHS = {
    "vision": (("pixel_values",), ("image_features",)),
    "audio": (("input_values",), ("audio_features",)),
    "attention": (("image_features", "audio_features"), ("visual", "weights")),
    "temporal": (("visual", "audio_features"), ("logits", "event_logits", "heard", "seen", "both")),
}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
BACKENDS = tuple(EXTRAS)
ALIASES = {"onnx": "onnxruntime"}  # users often name the format instead of the runtime


def graph_names(config: PreTrainedConfig) -> list[str]:
    """Returns the names of the graphs that an export of this localizer contains."""
    if not isinstance(config, AVEClipConfig):
        return list(GRAPHS)
    attends = config.visual_feature_type != "pooled" or config.normalize_features or config.input_layer_norm
    return ["temporal", *(["attention"] if attends else []), *(["vision", "audio"] if config.use_encoders else [])]


class AVEClipOnnxForLocalization(nn.Module):
    """An exported localizer. It has no torch parameters and runs on the CPU.

    Args:
        config ([`AVEClipOnnxConfig`]): Configuration of the export.
        files (`Mapping[str, str]`): Path of each graph.
        backend (`str`): `"onnxruntime"` or `"openvino"`; a graph is loaded when it is first needed.

    Raises:
        ValueError: for another backend.
    """

    config_class: Any = AVEClipOnnxConfig
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    device = torch.device("cpu")
    dtype = torch.float32
    generation_config = None

    def __init__(self, config: Any, files: Mapping[str, str], backend: str = BACKENDS[0]) -> None:
        super().__init__()
        self.config, self.files = config, dict(files)
        self._choose(backend)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        config: Any = None,
        backend: str = BACKENDS[0],
        **kwargs: Any,
    ) -> "AVEClipOnnxForLocalization":
        """Loads an export from a folder or the Hub.

        Args:
            source (`str` or `os.PathLike`): Folder or Hub id of what `ave-clip export MODEL OUT --format onnx` wrote.
            config ([`AVEClipOnnxConfig`], *optional*): Replaces the configuration in `source`.
            backend (`str`): See above.
            kwargs: `revision`, `token`, `cache_dir` and `local_files_only`; a `dtype` other than float32 is refused.

        Raises:
            ValueError: for another dtype.
            OSError: if a graph is missing.
        """
        if kwargs.get("dtype") not in (None, "auto", torch.float32, "float32"):
            raise ValueError(
                f"ONNX graphs are float32, got dtype={kwargs['dtype']}. Leave it out, or load with torch."
            )
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
        config = config or cls.config_class.from_pretrained(source, **hub)
        names = graph_names(config)
        # pyrefly: ignore[bad-argument-type]  (`cached_file` raises if there is no file; `None` needs other options)
        return cls(config, {name: cached_file(str(source), f"{name}.onnx", **hub) for name in names}, backend)

    def use_backend(self, backend: str) -> None:
        """Chooses the backend that runs the graphs.

        Raises:
            ValueError: for a backend that is not one of `BACKENDS`.
            ImportError: if it is not installed.
        """
        self._choose(backend)
        _import_backend(self.backend)

    def _choose(self, backend: str) -> None:
        backend = ALIASES.get(backend, backend)
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
        """Same as `AVEClipForLocalization.encode`."""
        inputs = (pixel_values, input_values, frame_mask, segment_mask, frame_sources, prepare_pixels)
        return encode_segments(
            lambda frames: self.run_graph("vision", frames)[0],
            lambda waveforms: self.run_graph("audio", waveforms)[0],
            *inputs,
        )

    def attend(self, image_features: torch.Tensor, audio_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Same as `AVEClipForLocalization.attend`."""
        if "attention" not in self.files:  # there is one location, which attention does not change
            return image_features, image_features.new_ones(*image_features.shape[:2], 1)
        if image_features.dim() == 3 and getattr(self.config, "visual_feature_type", "dense") != "pooled":
            image_features = image_features.unsqueeze(2)
        visual, weights = self.run_graph("attention", image_features, audio_features)
        return visual, weights

    def localize(self, visual: torch.Tensor, audio_features: torch.Tensor) -> AVEClipLocalizationOutput:
        """Same as `AVEClipForLocalization.localize`, without padded segments."""
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
        """Same as `AVEClipForLocalization.forward`, without padded segments and without loss.

        Raises:
            ValueError: if a segment is padding, or an input is missing.
        """
        if segment_mask is not None and not segment_mask.all():
            raise ValueError("ONNX graphs do not support padding: pass videos of the same length, or one at a time.")
        if pixel_values is not None and input_values is not None:
            image_features, audio_features = self.encode(pixel_values, input_values, frame_mask)
        if image_features is None or audio_features is None:
            raise ValueError(
                "Both video and audio inputs are required: pass pixel_values and input_values, or image_features and "
                "audio_features."
            )
        return self.localize(self.attend(image_features, audio_features)[0], audio_features)

    def run_graph(self, graph: str, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Runs one graph by name, loading it when it is first needed; `GRAPHS` lists inputs and outputs.

        Raises:
            ValueError: if the export has no such graph.
        """
        if graph not in self.files:
            raise ValueError(f"This export contains the graphs {sorted(self.files)}, not {graph!r}.")
        if graph not in self._sessions:
            self._sessions[graph] = _LOADERS[self.backend](self.files[graph])
        return [torch.from_numpy(output) for output in self._sessions[graph](*(value.numpy() for value in inputs))]


class AVEClipMiniOnnxForLocalization(AVEClipOnnxForLocalization):
    """An export of [`AVEClipMiniForLocalization`], which looks for the labels that it was exported with."""

    config_class = AVEClipMiniOnnxConfig

    def localize(self, visual: torch.Tensor, audio_features: torch.Tensor) -> AVEClipMiniOutput:
        """Same as `AVEClipMiniForLocalization.localize`, without padded segments."""
        logits, event_logits, heard, seen, both = self.run_graph("temporal", visual, audio_features)
        return AVEClipMiniOutput(logits=logits, event_logits=event_logits, heard=heard, seen=seen, both=both)

    @property
    def senses(self) -> AVEClipMiniSenses:
        """As that of `AVEClipMiniForLocalization`."""
        return AVEClipMiniSenses(self)


# Classes of exports, by the type of the model that is exported.
ONNX_MODELS: dict[str, Any] = {
    AVEClipConfig.model_type: AVEClipOnnxForLocalization,
    AVEClipMiniConfig.model_type: AVEClipMiniOnnxForLocalization,
}


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

    def run(*inputs):
        return session.run(None, dict(zip(names, inputs)))

    return _one_at_a_time(run) if session.get_inputs()[0].shape[0] == 1 else run


def _one_at_a_time(run: Callable) -> Callable:
    """Runs a graph of a tower whose code takes a fixed number of items, which is one."""
    return lambda items: [np.concatenate(parts) for parts in zip(*(run(item[None]) for item in items))]


@functools.cache
def _openvino_core() -> Any:
    """Returns the OpenVINO core: one for the whole process, never freed.

    Its CPU plugin allocates the stack on which this thread handles signals, and frees it with the last reference to
    the core, in any thread. The next signal with a handler (for example the end of a DataLoader worker) would then
    kill the process.
    """
    return _import_backend("openvino").Core()


def _load_openvino(path: str) -> Callable:
    # Without the hint OpenVINO computes in bfloat16 if the processor supports it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = _openvino_core().compile_model(Path(path), "CPU", settings)

    def run(*inputs):
        results = compiled(list(inputs))
        return [results[output].copy() for output in compiled.outputs]

    first = compiled.inputs[0].partial_shape[0]
    return _one_at_a_time(run) if first.is_static and first.get_length() == 1 else run


_LOADERS = {"onnxruntime": _load_onnxruntime, "openvino": _load_openvino}

__all__ = ["AVEClipMiniOnnxForLocalization", "AVEClipOnnxForLocalization"]
