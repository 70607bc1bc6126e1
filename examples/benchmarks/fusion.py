"""How fast the multi-window fusion and the refiner are, beside a loop over windows and blocks.

One call is forward and backward of both at batch 64, d = 256, ten segments. Two loops are timed: the reference
projects each block and keeps its d x d map, as the equations are written; "loop, projected once" shares the
projections of a window. Values and gradients are compared, and the peak memory of each is measured in a process of
its own.

    python examples/benchmarks/fusion.py --output fusion.json
"""

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import REFERENCE, finish, interleaved, own_peak_megabytes, parse, parser_for
from torch import nn

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.programs import program

NUM_SEGMENTS = 10
PACKAGE, LOOP = "package", "loop, projected once"


class BlockByBlockFusion(nn.Module):
    """The fusion with its own weights, one window and block after the other.

    Args:
        fusion (`nn.Module`): Whose weights to use.
        project_once (`bool`): Whether to project all segments of a window at once, rather than those of each block.
    """

    def __init__(self, fusion: nn.Module, project_once: bool = False) -> None:
        super().__init__()
        self.fusion, self.project_once = fusion, project_once

    def forward(self, features: torch.Tensor, lengths: None = None, output_attentions: bool = False) -> tuple:
        """As the fusion does, for rows without padding; no maps are returned."""
        windows = [self._window(features, number) for number in range(len(self.fusion.window_sizes))]
        return self.fusion.dropout(torch.cat(windows, dim=-1)), None, None

    def _window(self, features: torch.Tensor, number: int) -> torch.Tensor:
        window, length = self.fusion.window_sizes[number], features.shape[1]
        project = self.fusion.projections[number % len(self.fusion.projections)]
        starts = [block * window for block in range(max(1, length // window))]
        ends = [*starts[1:], length]
        whole = project(features) if self.project_once else None
        outputs = []
        for start, end in zip(starts, ends):
            parts = project(features[:, start:end]) if whole is None else (part[:, start:end] for part in whole)
            outputs.append(attend(*parts))
        fused = torch.cat(outputs, dim=1)
        if len(self.fusion.residuals):
            fused = fused + self.fusion.residuals[number % len(self.fusion.residuals)](features)
        return fused


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Computes equations 8 to 10 for one block `(batch, m, d)`."""
    size, width = query.shape[1:]
    temporal = (query @ key.transpose(1, 2) / width**0.5).softmax(dim=-1)
    feature = (key.transpose(1, 2) @ query / size**0.5).softmax(dim=-2)
    return temporal @ (value @ feature)


class FusionAndRefiner(nn.Module):
    """The measured module: both fusions of a localizer, one after the other."""

    def __init__(self, fusion: nn.Module, refiner: nn.Module) -> None:
        super().__init__()
        self.fusion, self.refiner = fusion, refiner

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.refiner(self.fusion(features)[0])[0]


def paper_network(**options: Any) -> AVEClipConfig:
    """Returns a configuration with all blocks of the paper and a residual connection around each fusion."""
    return AVEClipConfig.paper(use_encoders=False, fusion_residual=True, refiner_window_sizes=(10,), **options)


def variants(hidden_size: int) -> dict[str, FusionAndRefiner]:
    """Returns the implementations, all with the same weights."""
    torch.manual_seed(0)
    config = paper_network(visual_feature_type="pooled", hidden_size=hidden_size, dropout=0.0)
    localizer = AVEClipForLocalization(config)
    modules = localizer.fusion, localizer.refiner
    loops = {
        name: FusionAndRefiner(*(BlockByBlockFusion(module, once) for module in modules))
        for name, once in ((REFERENCE, False), (LOOP, True))
    }
    return {**loops, PACKAGE: FusionAndRefiner(*modules)}


def step_of(module: FusionAndRefiner, features: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Returns a function that runs forward and backward and returns output and gradients."""
    parameters = list(module.parameters())

    def step() -> tuple[torch.Tensor, ...]:
        output = module(features)
        return (output.detach(), *torch.autograd.grad(output.square().mean(), [features, *parameters]))

    return step


def random_features(args: argparse.Namespace) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(args.batch_size, NUM_SEGMENTS, 2 * args.hidden_size, generator=generator).requires_grad_()


def _peak_of(name: str, args: argparse.Namespace, answers: multiprocessing.Queue) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    step = step_of(variants(args.hidden_size)[name], random_features(args))
    before = own_peak_megabytes()
    for _ in range(3):
        step()
    answers.put(own_peak_megabytes() - before)


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Returns the megabytes by which three steps raise the peak memory of a new process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_peak_of, args=(name, args, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"The process that measures the memory of {name!r} ended with code {process.exitcode}.")
    return round(answers.get(), 1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_for(__doc__)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--hidden_size", type=int, default=256)
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    features = random_features(args)
    steps = {name: step_of(module, features) for name, module in variants(args.hidden_size).items()}
    expected, times, rows = steps[REFERENCE](), interleaved(steps, args.rounds), []
    reference_memory = peak_memory(REFERENCE, args)
    for name in (LOOP, PACKAGE):
        # Gradients are means over the batch and very small: each difference is relative to the largest entry.
        pairs = zip(steps[name](), expected)
        difference = max(
            ((own - other).abs().max() / other.abs().max().clamp(min=1e-12)).item() for own, other in pairs
        )
        rows.append(
            {
                "row": f"fusion and refiner, {name}, batch {args.batch_size}, d {args.hidden_size}",
                **times[name],
                "reference_milliseconds": times[REFERENCE]["milliseconds"],
                "max_relative_difference": float(f"{difference:.2e}"),
                "peak_memory_mb": peak_memory(name, args),
                "reference_peak_memory_mb": reference_memory,
            }
        )
    return finish(rows, args, argv)


if __name__ == "__main__":
    with program():
        main()
