"""CUDA graphs: a training step, or a pass for one token, launches the GPU once instead of thousands of times."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

STEPS_BEFORE_CAPTURE = 2  # per shape of inputs: they run as usual, and compile


class CapturedCall:
    """`function(inputs)`, captured as a CUDA graph: later calls replay it with inputs of the same shapes.

    `options` are those of `torch.cuda.graph`. The output of a call is overwritten by the next one.
    """

    def __init__(self, function: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], **options: Any) -> None:
        self._inputs = {name: value.clone() if torch.is_tensor(value) else value for name, value in inputs.items()}
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # The data loader's threads may use the GPU meanwhile: "thread_local".
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local", **options):
            self._output = function(dict(self._inputs))

    def __call__(self, inputs: dict[str, Any]) -> Any:
        """Copy the inputs to where the graph reads them, and replay it."""
        for name, value in inputs.items():
            if torch.is_tensor(value):
                self._inputs[name].copy_(value, non_blocking=True)
        self._graph.replay()
        return self._output


class StepGraphs:
    """Captures `step(inputs, num_items) -> loss`, a forward and a backward pass, as one CUDA graph per shape of inputs.

    All graphs write gradients into the same buffers, to which `.grad` points after each call. They share one memory
    pool, in which the steps before a capture run too, so that it takes what the largest shape takes.
    """

    def __init__(self, step: Callable[[dict[str, Any], torch.Tensor], torch.Tensor], model: torch.nn.Module) -> None:
        self.graphs: dict[tuple, CapturedCall] = {}
        self._step = step
        self._trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._gradients: list[torch.Tensor] = []
        self._steps: Counter[tuple] = Counter()
        self._pool, self._stream = torch.cuda.MemPool(), _side_stream()  # a pool's memory belongs to a stream

    def __call__(self, inputs: dict[str, Any], num_items: torch.Tensor) -> torch.Tensor:
        """One step: as usual for a shape that is new, from its graph afterwards."""
        inputs = {**inputs, "num_items": num_items}
        shape = tuple((name, value.shape if torch.is_tensor(value) else value) for name, value in inputs.items())
        self._steps[shape] += 1
        if self._steps[shape] <= STEPS_BEFORE_CAPTURE:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
                loss = self._run(inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            return loss.clone()
        if shape not in self.graphs:
            self.graphs[shape] = CapturedCall(self._run, inputs, pool=self._pool.id, stream=self._stream)
        self._point_to_gradients()
        return self.graphs[shape](inputs).clone()

    def _run(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The step. Its gradients are copied into the buffers together: added, they would be one by one."""
        for weight in self._trained:
            weight.grad = None
        num_items = inputs.pop("num_items")
        loss = self._step(inputs, num_items)
        if not self._gradients:
            self._trained = [weight for weight in self._trained if weight.grad is not None]  # PEGASUS' positions
            self._gradients = [torch.empty_like(weight) for weight in self._trained]
        torch._foreach_copy_(self._gradients, [weight.grad for weight in self._trained])
        self._point_to_gradients()
        return loss

    def _point_to_gradients(self) -> None:
        for weight, gradient in zip(self._trained, self._gradients, strict=True):
            weight.grad = gradient


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all trainings of a process: cuBLAS keeps memory for each stream that it ever saw."""
    return torch.cuda.Stream()
