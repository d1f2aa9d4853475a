"""Writing over a cache of fixed size, for decoder-only models; on a CUDA card by graphs.

The cache is not copied as it grows, and the pass that adds a token is launched once instead of thousands of times.
Measured in GPU_OPTIMIZATION_GUIDE.md.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from . import fast

WARM_UP_PASSES = 2  # of `generate` before its graph is captured: over the prompt, and the first over one token


@contextlib.contextmanager
def attention(network: PreTrainedModel, implementation: str) -> Iterator[None]:
    """With another attention implementation."""
    own = network.config._attn_implementation
    network.set_attn_implementation(implementation)
    try:
        yield
    finally:
        network.set_attn_implementation(own)


class _BeamLayer(StaticLayer):
    """A cache of fixed size whose tensors stay where they are, as a graph needs it, in the precision of attention.

    Beams of a dialogue share its prompt: only what was written after it changes places with them.
    """

    def __init__(self, max_cache_len: int, prompt_length: int, dtype: torch.dtype) -> None:
        super().__init__(max_cache_len)
        self._prompt_length, self._dtype = prompt_length, dtype

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Transformers', rounded before it is stored: attention would round at every step what is stored in fp32."""
        return super().update(key_states.to(self._dtype), value_states.to(self._dtype), *args, **kwargs)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Transformers', in place."""
        for cache in (self.keys, self.values):
            written = cache[:, :, self._prompt_length :]
            written.copy_(written.index_select(0, beam_idx))


def static_cache(network: PreTrainedModel, prompt_length: int, new_tokens: int, dtype: torch.dtype) -> StaticCache:
    """A cache for `generate` of a decoder-only model, of fixed size: prompt and new tokens."""
    length = prompt_length + new_tokens
    cache = StaticCache(config=network.config, max_cache_len=length)
    cache.layers = [_BeamLayer(length, prompt_length, dtype) for _ in cache.layers]
    return cache


@contextlib.contextmanager
def graphed_decoding(network: PreTrainedModel) -> Iterator[None]:
    """Within it one call of `generate` with a `static_cache` replays a CUDA graph for each new token.

    All that decides which token comes next, beams included, stays with `generate`.
    """
    eager_forward, own, passes = network.forward, network.__dict__.get("forward"), itertools.count()
    graph, static, output = torch.cuda.CUDAGraph(), {}, None

    @functools.wraps(eager_forward)  # generate reads its arguments: without logits_to_keep it computes every position's
    def forward(**inputs: Any) -> Any:
        nonlocal static, output
        if next(passes) < WARM_UP_PASSES:
            return eager_forward(**inputs)
        if output is None:
            static = fast.held(inputs)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = eager_forward(**static)
        fast.refill(static, inputs)
        graph.replay()
        return output

    network.forward = forward
    try:
        yield
    finally:
        del network.forward
        if own is not None:  # accelerate's, while the model trains
            network.forward = own
