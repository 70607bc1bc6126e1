"""Parameters, training speed and memory of networks on features, for `run_comparison.py`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from benchmarks.timing import REFERENCE, interleaved

from ave_clip.training.dropout import use_keyed_dropout
from ave_clip.training.features import collate_clips
from ave_clip.training.networks import build_network
from ave_clip.training.splits import FeatureSplits, H5Splits

Step = Callable[[], torch.Tensor]


def measure_costs(
    names: Sequence[str],
    splits: FeatureSplits | H5Splits,
    batch_size: int,
    overrides: Mapping[str, Any],
    rounds: int,
    cpu: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measures training steps (forward, backward, clipping, Adam) of networks on the same batch, in turns.

    Args:
        names (`Sequence[str]`): Networks; the first is the reference.
        splits (`FeatureSplits` or `H5Splits`): The features.
        batch_size (`int`): Clips per step.
        overrides (`Mapping[str, Any]`): Fields of the networks' configurations.
        rounds (`int`): Number of measured steps of each network, after one that is not counted.
        cpu (`bool`): Do not use a GPU.

    Returns:
        `dict[str, dict]`: by name, `parameters`, `training_clips_per_second`, `speed_ratio` (to the reference, median
        over the rounds) and `training_megabytes` (see `training_memory`).
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    clips = splits.open("train")
    is_weak = overrides.get("supervision") == "weak"
    rows = [clips[index] for index in itertools.islice(itertools.cycle(range(len(clips))), batch_size)]
    batch = {name: tensor.to(device) for name, tensor in collate_clips(rows, is_weak).items()}
    networks = {name: build_network(name, splits, overrides).to(device).train() for name in names}
    steps = {name: training_step(network, batch) for name, network in networks.items()}
    memory = {name: training_memory(networks[name], step) for name, step in steps.items()}
    timed = {name: finished(step, device) for name, step in steps.items()}
    timed[REFERENCE] = timed.pop(names[0])
    times = interleaved(timed, rounds)
    times[names[0]] = times.pop(REFERENCE)
    return {
        name: {
            "parameters": sum(parameter.numel() for parameter in networks[name].parameters()),
            "training_clips_per_second": round(1000 * batch_size / times[name]["milliseconds"], 1),
            "speed_ratio": times[name]["ratio"],
            "training_megabytes": round(memory[name] / 1e6, 1),
        }
        for name in names
    }


def training_step(network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Step:
    """Returns a function that runs one step on the batch and returns the loss."""
    dropout = use_keyed_dropout(network)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters)
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("rows", "first")}

    def step() -> torch.Tensor:
        dropout.set(0, 0, batch["rows"])
        loss = network(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def finished(step: Step, device: torch.device) -> Callable[[], object]:
    """Returns the step with a wait for the GPU, if there is one."""
    if device.type != "cuda":
        return step

    def step_and_wait() -> None:
        step()
        torch.cuda.synchronize()

    return step_and_wait


def training_memory(network: torch.nn.Module, step: Step) -> int:
    """Returns the bytes that a training step needs: the weights, their gradients, Adam's two averages, and all tensors
    that are kept from the forward to the backward pass.

    It is counted, not read from the system, so that it does not depend on the machine. The batch and what exists only
    within one operation are not counted.
    """
    weights = {parameter.untyped_storage().data_ptr(): parameter for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return 4 * sum(weight.nbytes for weight in weights.values()) + sum(kept.values())
