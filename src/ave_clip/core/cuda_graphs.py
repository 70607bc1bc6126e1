"""Small batches of a tower as CUDA graphs: the kernels of a call are recorded once, and started together from then on.

At batches below about 40 a GPU waits for the CPU, which starts hundreds of kernels one by one.
"""

from collections.abc import Callable
from typing import Any

import torch

# A batch runs in the smallest graph that it fits in; the rows behind it keep the values of earlier batches.
GRAPH_SIZES = (10, 20, 40)
WARM_UP_CALLS = 3


class GraphedCalls:
    """Calls a function of one batch; small batches on a CUDA device run as a recorded graph.

    The function must compute each row on its own, and without asking the device for a value. Graphs belong to the
    weights that the function used when they were recorded.

    Args:
        function (`Callable`): Maps a batch `(number, ...)` to a tensor or a tuple of tensors with as many rows.
    """

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        self.function = function
        self.graphs: dict[tuple, tuple[torch.Tensor, Any, Callable[[], None]]] = {}
        self._pool: Any = None

    def __call__(self, items: torch.Tensor) -> Any:
        """Returns what the function returns."""
        size = next((size for size in GRAPH_SIZES if size >= len(items)), None)
        if size is None or not self._is_recordable(items):
            return self.function(items)
        key = size, items.shape[1:], items.dtype, items.stride(), items.device
        if key not in self.graphs:
            # A tensor that is made in inference mode could not be written to outside of it later.
            with torch.inference_mode(False), torch.no_grad():
                shape = (size, *items.shape[1:])
                batch = torch.empty_strided(shape, items.stride(), dtype=items.dtype, device=items.device).zero_()
                self.graphs[key] = (batch, *self._record(batch))
        batch, outputs, replay = self.graphs[key]
        batch[: len(items)].copy_(items)
        replay()
        # Copies: the next call writes to the same memory.
        if isinstance(outputs, torch.Tensor):
            return outputs[: len(items)].clone()
        return tuple(output[: len(items)].clone() for output in outputs)

    def _is_recordable(self, items: torch.Tensor) -> bool:
        is_dense = len(items) > 0 and items.stride(0) == items[0].numel()
        return items.is_cuda and is_dense and not torch.cuda.is_current_stream_capturing()

    def _record(self, batch: torch.Tensor) -> tuple[Any, Callable[[], None]]:
        """Returns the outputs of the graph, and a function that computes them from the current content of `batch`."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        side_stream = torch.cuda.Stream(batch.device)
        side_stream.wait_stream(torch.cuda.current_stream(batch.device))
        # In these calls the libraries choose their algorithms, which cannot be recorded.
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP_CALLS):
                self.function(batch)
        torch.cuda.current_stream(batch.device).wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile, such as the one that resizes the next frames.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self.function(batch)
        return outputs, graph.replay


__all__ = ["GraphedCalls"]
