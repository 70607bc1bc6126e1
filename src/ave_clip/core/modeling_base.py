"""Base class of the models: checked loading, aligned weights, fast inference; batch norm for checkpointing."""

import errno
import itertools
import pickle
from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .builtin_checkpoints import LoadsBuiltinNames
from .fast_path import HasFastPath

ALIGNMENT_BYTES = 64  # alignment of memory that torch allocates on the CPU

# Default of those fields of a `ModelOutput` that a model always sets. `ModelOutput` requires that every field but the
# first has the default None; as `Any` it can be the default of a field that is declared as a tensor.
ALWAYS_SET: Any = None


class AlignedPreTrainedModel(LoadsBuiltinNames, HasFastPath, PreTrainedModel):
    """[`PreTrainedModel`] with aligned weights after `from_pretrained`, and optional fast inference.

    Loaded weights are views into the memory-mapped file and may start at any address. Matrix products choose their
    kernels by the alignment, so the same weights could give results that differ in the last bit.
    """

    config_class: type[PreTrainedConfig]
    input_modalities: tuple[str, ...]  # transformers' models give tuples, too, although it declares a list

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As [`~transformers.PreTrainedModel.from_pretrained`], but missing weights are an error.

        Raises:
            OSError: If a weights file cannot be read, or weights are missing that the checkpoint's own configuration
                requires. Layers that only the arguments require (a head for other labels with
                `ignore_mismatched_sizes=True`, another window) are newly initialized, with transformers' warning.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except (SafetensorError, EOFError, pickle.UnpicklingError) as error:
            raise _damaged(pretrained_model_name_or_path, error) from error
        except (OSError, RuntimeError) as error:
            # For a damaged zip file torch raises a RuntimeError of its reader, or seeks to an invalid position.
            if "PytorchStreamReader" not in str(error) and getattr(error, "errno", None) != errno.EINVAL:
                raise
            raise _damaged(pretrained_model_name_or_path, error) from error
        cls._check_missing(pretrained_model_name_or_path, info["missing_keys"], kwargs)
        align_weights(model)
        return (model, info) if wants_info else model

    @classmethod
    def _check_missing(cls, source: Any, missing: Iterable[str], options: dict[str, Any]) -> None:
        """Raises `OSError` if weights are missing for layers of the checkpoint's own configuration."""
        if not missing or source is None:  # without a source the caller passed the weights and knows them
            return
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        origin = {name: options[name] for name in names if name in options}
        own_config = cls.config_class.from_pretrained(source, **origin)
        with torch.device("meta"):
            expected = cls(own_config).state_dict()
        absent = sorted(expected.keys() & set(missing))
        if absent:
            raise OSError(
                f"{len(absent)} of the {len(expected)} weights that {cls.__name__} needs are missing in {source}, "
                f"among them {', '.join(absent[:3])}. The file is damaged or belongs to another model: download or "
                "save it again."
            )

    def optimize_for_inference(
        self, dtype: torch.dtype | str | None = None, compile: bool = False, cuda_graphs: bool = False
    ) -> "AlignedPreTrainedModel":
        """
        Makes the image and audio towers faster in evaluation mode without gradients.

        Each tower then runs a private copy of its convolutions with batch normalization folded in, in channels-last
        memory. The weights of the model are not modified: `state_dict`, `save_pretrained`, `parameters` and copies of
        the model do not contain the copy. It is created at once (in training mode: at the first use), dropped by
        `train()` and whenever weights change, move or are loaded, and created again at the next use. Only after
        writing into the `.data` of a weight, which torch does not record, call this method again. Training,
        gradients, autocast, `output_hidden_states`, `output_attentions`, `torch.compile` and `torch.export` of the
        model itself use the original layers. Forward hooks inside a tower are not called.

        The copy takes memory (0.2 GB in float32, 0.1 GB in bfloat16 for AudioCLIP; 30 MB for ave-clip-mini). The text
        tower and the localizer are not changed.

        Args:
            dtype (`torch.dtype` or `str`, *optional*): Dtype of the convolutions, for example `"bfloat16"`; by default
                that of the weights, with results that differ by rounding only. The spectrogram is always computed in
                float32, and the outputs keep their dtype.
            compile (`bool`): Whether to compile the convolutions with `torch.compile` as well. This needs a C++
                compiler and half a minute per new input shape. On CPUs the fused kernels used without it are as fast.
            cuda_graphs (`bool`): Whether to run batches of up to 40 items as CUDA graphs, which saves the time to
                start each kernel and takes memory for each size of batch. No effect on other devices. Not with
                `compile`. This was written without a GPU and has not been run on one yet;
                `examples/benchmarks/gpu.py` does.

        Returns:
            The model itself.

        Raises:
            ValueError: If the dtype is not a floating one, if `compile` and `cuda_graphs` are given together, or if
                layers were replaced (by adapters, for example).
        """
        # Imported here because the models work without this file. Checkpoints with custom code contain it anyway:
        # transformers copies every file that is imported anywhere.
        from .fast_towers import optimize_towers

        optimize_towers(self, dtype, compile, cuda_graphs)
        return self

    def undo_inference_optimization(self) -> "AlignedPreTrainedModel":
        """Restores the original towers and frees the copies. Returns the model itself."""
        if self.is_optimized_for_inference:
            from .fast_towers import undo_optimization

            undo_optimization(self)
        return self

    @property
    def is_optimized_for_inference(self) -> bool:
        """Whether `optimize_for_inference` was called and not undone."""
        return any(getattr(module, "fast_path", None) is not None for module in self.modules())


class RecomputableBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that ignores the second forward pass of gradient checkpointing in its running statistics."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalizes `(B, C, h, w)` as [`~torch.nn.BatchNorm2d`] does."""
        # torch has no public test for a running backward pass; torch.utils.checkpoint uses this one, too.
        if self.training and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            # Pass the statistics anyway: checkpointing compares the tensors that both passes save for the gradient.
            statistics = (self.running_mean, self.running_var)
            return nn.functional.batch_norm(
                hidden_states, *statistics, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps
            )
        return super().forward(hidden_states)


def _damaged(source: Any, error: Exception) -> OSError:
    # torch's own message advises loading such a pickle with weights_only=False, which would run any code in it.
    is_pickle = isinstance(error, pickle.UnpicklingError)
    reason = "a pickle that contains more than tensors" if is_pickle else str(error).split("\n")[0] or "it is empty"
    return OSError(
        f"The weights of {source} cannot be read ({reason}). The file is damaged or incomplete: download or save it "
        "again."
    )


def align_weights(model: nn.Module) -> None:
    """Copies the parameters and buffers on the CPU whose address is not a multiple of 64 bytes."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        plain = type(tensor.data) is torch.Tensor and tensor.device.type == "cpu"
        if plain and tensor.data_ptr() % ALIGNMENT_BYTES:
            tensor.data = tensor.data.clone()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN needs the weights in one chunk of memory; no effect on CPUs


__all__ = ["ALWAYS_SET", "AlignedPreTrainedModel", "RecomputableBatchNorm2d", "align_weights"]
