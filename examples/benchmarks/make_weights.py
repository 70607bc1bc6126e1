"""Makes a full-size AudioCLIP with pseudo-random weights: the model of the speed tables and of the parity tests.

The released weights cannot be shipped with this package. These replace them where only speed and numerical agreement
matter: each tensor is a function of its name in the original checkpoint, its shape and a seed, so the model can be
reproduced exactly. The rules keep the activations of a deep random network in range in evaluation mode: rows of
convolutions and linear layers are centred over their inputs, so that different inputs give clearly different
embeddings, and the batch norm statistics have the right order of magnitude. Such a model recognizes nothing.

    python examples/benchmarks/make_weights.py audioclip-pseudo
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ave_clip import AudioCLIPConfig, AudioCLIPModel
from ave_clip.checkpoints.convert import original_name
from ave_clip.programs import program

SEED = 1234
# The rule of an attention block of the audio tower by the end of its name: (offset, scale); others are small biases.
ATTENTION_BLOCK = {"bn.bias": (0.5, 0.5), "bn.weight": (1.0, 0.1)}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="Folder of the model.")
    parser.add_argument("--seed", type=int, default=SEED)
    return parser.parse_args(argv)


def fill(name: str, shape: Sequence[int], seed: int = SEED) -> np.ndarray:
    """Returns the tensor with that name in the original checkpoint: float32, or int64 for counters.

    Raises:
        KeyError: if no rule matches the name.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    # The legacy generator: its streams are the same in all versions of numpy.
    noise = np.random.RandomState(np.frombuffer(digest[:16], dtype="<u4")).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return np.full(shape, 1000, dtype=np.int64)
    return np.asarray(_values(name, noise), dtype=np.float32).reshape(shape)


def _values(name: str, noise: np.ndarray) -> np.ndarray:
    special = _special_values(name, noise)
    if special is not None:
        return special
    leaf, ndim = name.rsplit(".", 1)[-1], noise.ndim
    if leaf == "running_mean":
        return 0.1 * noise
    if leaf == "running_var":  # the spectrogram is in decibels; the image stem sees normalized pixels
        return np.exp(0.2 * noise) * {"audio.bn1.running_var": 60.0, "visual.bn1.running_var": 0.5}.get(name, 1.0)
    if name.startswith("audio.") and ".att" in name:
        return _attention_block(name, noise)
    if leaf == "weight" and ndim == 4:
        return _centred(noise, np.sqrt(2.0 / np.prod(noise.shape[1:])))
    if leaf == "weight" and ndim == 1:  # the last batch norm of a residual branch is small, as after training
        is_last = name.endswith("bn3.weight") and ".layer" in name
        return 0.4 * (1.0 + 0.2 * noise) if is_last else 1.0 + 0.1 * noise
    if leaf in ("weight", "in_proj_weight") and ndim == 2:
        return _centred(noise, 1.0 / np.sqrt(noise.shape[1]))
    if leaf in ("bias", "in_proj_bias"):
        return 0.05 * noise
    raise KeyError(f"No rule for {name!r} of shape {noise.shape}.")


def _special_values(name: str, noise: np.ndarray) -> np.ndarray | None:
    """Returns tensors with a rule of their own."""
    if name == "audio.window":  # Blackman-Harris, periodic
        angle = 2.0 * np.pi * np.arange(len(noise)) / len(noise)
        return 0.35875 - 0.48829 * np.cos(angle) + 0.14128 * np.cos(2 * angle) - 0.01168 * np.cos(3 * angle)
    if name == "audio.fbsp.m":
        order = 0.05 + 0.25 * np.abs(noise)
        order[::97] = 0.0  # the untrained default
        order[50::211] = -0.05  # negative orders must also work
        return order
    if name == "audio.fbsp.fb":
        return np.abs(1.0 + 0.1 * noise) + 0.05
    if name == "audio.fbsp.fc":
        return np.arange(len(noise)) + 0.3 * noise
    if name in ("logit_scale", "logit_scale_ai", "logit_scale_at"):
        return np.log(50.0) + 0.5 * noise
    if name in ("visual.attnpool.q_proj.weight", "visual.attnpool.k_proj.weight"):
        return _centred(noise, 1.5 / np.sqrt(noise.shape[1]))
    if name == "text_projection":  # stored (in, out)
        return noise / np.sqrt(noise.shape[0])
    scales = {
        "token_embedding.weight": 0.05,
        "positional_embedding": 0.01,
        "visual.attnpool.positional_embedding": 0.1,
        "audio.fbsp.bias": 0.0,
    }
    return scales[name] * noise if name in scales else None


def _attention_block(name: str, noise: np.ndarray) -> np.ndarray:
    if name.endswith("conv_depth.weight"):
        return (1.0 + noise) / np.sqrt(np.prod(noise.shape[1:]))
    if name.endswith("conv_point.weight"):
        return _centred(noise, 1.0 / np.sqrt(noise.shape[1]))
    ending = ".".join(name.rsplit(".", 2)[-2:])
    offset, scale = ATTENTION_BLOCK.get(ending, (0.0, 0.1))
    return offset + scale * noise


def _centred(noise: np.ndarray, deviation: float) -> np.ndarray:
    axes = tuple(range(1, noise.ndim))
    return (noise - noise.mean(axis=axes, keepdims=True)) * deviation


def build_model(config: AudioCLIPConfig | None = None, seed: int = SEED) -> AudioCLIPModel:
    """Returns AudioCLIP with these weights in evaluation mode. Default: full size."""
    model = AudioCLIPModel(config or AudioCLIPConfig())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            source, part = original_name(name)
            shape = list(tensor.shape)
            if source == "text_projection":
                values = torch.from_numpy(fill(source, shape[::-1], seed)).t()
            elif part is not None:  # the original stores query, key and value in one tensor
                values = torch.from_numpy(fill(source, [3 * shape[0], *shape[1:]], seed)).chunk(3)[part]
            else:
                values = torch.from_numpy(fill(source, shape, seed))
            tensor.copy_(values)
    return model.eval()


def main(argv: Sequence[str] | None = None) -> AudioCLIPModel:
    args = parse_args(argv)
    model = build_model(seed=args.seed)
    model.save_pretrained(args.output_dir)
    return model


if __name__ == "__main__":
    with program():
        main()
