"""What makes a training step faster on a CUDA card, and leaves it the same step. Measured in GPU_OPTIMIZATION_GUIDE.md.

- Compiled blocks: each transformer block is compiled by itself, and one compilation serves all of them. Of T5, whose
  blocks take minutes to compile for any shape, the parts for which it pays.
- Packed sequences, for decoder-only models and T5: the dialogues of a batch in one row, attention within each alone, no
  padding. T5's attention, which has a bias, is one kernel (module `biased_attention`).
- A CUDA graph of forward and backward pass for each shape: the card is launched once a step instead of thousands of
  times.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.fx.experimental._config
from peft.tuners.lora import LoraLayer
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED, BIASED = "packed", "biased"  # the attention implementations registered below
COMPILED_OF_T5 = ("T5LayerNorm", "T5LayerFF")
SEEN_BEFORE_CAPTURE = 2  # steps of a shape that run as usual, and compile, before its graph is captured


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a packed row, in the form of transformers' `AttentionInterface`.

    `query` is (1, heads, tokens, head size); sequence i is tokens `cu_seq_lens_q[i]` to `cu_seq_lens_q[i + 1]`. Batches
    that are not packed (evaluation, generation) go to PyTorch's attention as ever, those of one token by a shorter way:
    heads that share a key become positions, so that the cache is not copied for each of them.
    """
    if cu_seq_lens_q is None:
        batch, heads, tokens, size = query.shape
        if tokens == 1 and attention_mask is not None and heads > key.shape[1]:
            grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
            output = torch.nn.functional.scaled_dot_product_attention(
                grouped, key, value, attn_mask=attention_mask, scale=scaling
            )
            return output.reshape(batch, 1, heads, size), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if query.device.type != "cuda":
        return _one_by_one(query, key, value, cu_seq_lens_q, cu_seq_lens_q, scale=scaling, is_causal=True), None
    from torch.nn.attention.varlen import varlen_attn

    if key.shape[1] != query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    query, key, value = (part.transpose(1, 2).squeeze(0).to(torch.bfloat16) for part in (query, key, value))
    output = varlen_attn(
        query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0)
    )
    return output.unsqueeze(0), None


def biased_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    prompt_bounds: torch.Tensor | None = None,
    summary_bounds: torch.Tensor | None = None,
    prompt_longest: int | None = None,
    summary_longest: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """T5's attention within each sequence of packed rows, in the form of `AttentionInterface`.

    Prompts and summaries have a row each, with bounds as in `packed_attention`: summary i reads itself and prompt i.
    `position_bias` is that of `_bias_of_longest`. Batches that are not packed go to PyTorch's attention as ever.
    """
    if prompt_bounds is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, position_bias=position_bias, **kwargs,
        )  # fmt: skip
    prompts, summaries = (prompt_bounds, prompt_longest), (summary_bounds, summary_longest)
    causal = module.is_decoder and position_bias.numel() > 0  # without a bias it reads the prompts
    bounds, longest = summaries if module.is_decoder else prompts
    key_bounds, longest_key = summaries if causal else prompts
    if query.device.type != "cuda":
        bias = position_bias if position_bias.numel() else None
        if causal:
            bias = bias + torch.full((longest, longest), float("-inf")).triu(1)
        return _one_by_one(query, key, value, bounds, key_bounds, bias, dropout_p=dropout, scale=scaling), None
    from .biased_attention import BiasedAttention  # Triton is there where a card is

    parts = (part.transpose(1, 2) for part in (query, key, value))
    return BiasedAttention.apply(
        *parts, position_bias, bounds, key_bounds, longest, longest_key, causal, dropout
    ), None  # fmt: skip


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    bias: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, first:last], value[:, :, first:last],
            attn_mask=None if bias is None else bias[:, :, : end - start, : last - first], enable_gqa=True, **options,
        )
        for (start, end), (first, last) in zip(
            itertools.pairwise(bounds.tolist()), itertools.pairwise(key_bounds.tolist()), strict=True
        )
        if end > start
    ]  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _bias_of_longest(attention: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Have T5 make its bias, (1, heads, longest, longest), for the positions of a packed row's longest sequence alone.

    It would make one for every pair of tokens of the row; and across, where there is none, as many zeros. The first
    block makes it for all.
    """
    if kwargs.get("prompt_bounds") is not None and kwargs.get("position_bias") is None:
        if attention.has_relative_attention_bias:
            longest = kwargs["summary_longest" if attention.is_decoder else "prompt_longest"]
            kwargs["position_bias"] = bias_of_distances(attention, longest)
        else:
            kwargs["position_bias"] = args[0].new_empty(0)
    return args, kwargs


def bias_of_distances(attention: torch.nn.Module, tokens: int) -> torch.Tensor:
    """What `compute_bias(tokens, tokens)` gives, (1, heads, tokens, tokens), looked up once for each distance.

    T5's own looks up every pair, and adding up the gradients of 262,144 of them in a table of 32 rows takes longer than
    the update of all weights. Here they are added up along the diagonals: the numbers of distances 0, 1, ..., -2, -1,
    repeated row after row and read in rows that are one shorter, move one to the right each.
    """
    distances = torch.arange(2 * tokens, device=attention.relative_attention_bias.weight.device)
    buckets = attention._relative_position_bucket(
        torch.where(distances < tokens, distances, distances - 2 * tokens),
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    values = attention.relative_attention_bias(buckets).t()
    rows = values[:, None].expand(-1, tokens, -1).flatten(1)[:, :-tokens]
    return rows.unflatten(1, (tokens, 2 * tokens - 1))[None, ..., :tokens]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
AttentionInterface.register(BIASED, biased_attention)
AttentionMaskInterface.register(BIASED, sdpa_mask)


def blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The transformer blocks of a model, its adapter included."""
    names = {
        name
        for module in network.modules()
        if isinstance(module, PreTrainedModel)
        for name in module._no_split_modules or ()
    }
    return [module for module in network.modules() if type(module).__name__ in names]


def base_of(network: torch.nn.Module) -> PreTrainedModel:
    """The model inside an adapter, or the model itself."""
    return next(module for module in network.modules() if isinstance(module, PreTrainedModel))


def set_attention(network: torch.nn.Module, attention: str) -> None:
    """Have a model, its adapter included, attend as one of the implementations registered here, in place."""
    for module in network.modules():
        if isinstance(module, PreTrainedModel):  # T5's encoder and decoder have a configuration each
            module.set_attn_implementation(attention)
        if attention == BIASED and type(module).__name__ == "T5Attention":
            module.register_forward_pre_hook(_bias_of_longest, with_kwargs=True)


def prepare(network: torch.nn.Module, attention: str | None) -> None:
    """Set a model up for batches of fixed shapes: their attention, and what is compiled, in place."""
    if attention:
        set_attention(network, attention)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # or it would go on at the slow pace without a word
    torch.fx.experimental._config.use_duck_shape = False  # 64 dialogues of 64 tokens are not alike by being 64
    if attention == BIASED:
        for module in network.modules():
            if type(module).__name__ == "T5LayerNorm":
                module.register_forward_hook(_rounded)
            if type(module).__name__ in COMPILED_OF_T5:
                module.compile(dynamic=True)
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False  # to fp32, for autocast to cast it back
        return
    compiled = blocks(network)
    if attention is None:  # padded batches come in more shapes than packed ones
        for block in compiled:
            block.compile(dynamic=True)
        return
    for block in compiled:
        block.compile()  # adapters take minutes to compile for any shape
        block._compiled_call_impl = _for_any_length(block._compiled_call_impl)
    if any(weight.requires_grad for first in compiled[:1] for weight in first.parameters()):
        # The others get states that need a gradient, and a block is compiled anew for one that gets others.
        base_of(network).enable_input_require_grads()


def _for_any_length(call: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled block of which one compilation serves rows of any length: it would make one for the first row's too.

    Calls it with the tensors marked that have the row's length, (1, tokens, ...): hidden states and positions.
    """

    def marked(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for part in tree_leaves((hidden, args, kwargs)):
            if torch.is_tensor(part) and part.shape[:2] == hidden.shape[:2]:
                torch._dynamo.maybe_mark_dynamic(part, 1)
        return call(hidden, *args, **kwargs)

    return marked


def _rounded(norm: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """What a norm gives as autocast takes it: linear layers, which follow, would each make a copy of it."""
    kind = output.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output


@contextlib.contextmanager
def quick_zero_grad(network: torch.nn.Module) -> Iterator[None]:
    """Within it the network's `zero_grad` knows the trained weights: PyTorch's looks for all at every step."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]

    def zero_grad(set_to_none: bool = True) -> None:
        for weight in trained:
            weight.grad = None

    network.zero_grad = zero_grad
    try:
        yield
    finally:
        del network.zero_grad


@contextlib.contextmanager
def eager(network: torch.nn.Module) -> Iterator[None]:
    """Nothing compiled: for evaluation and generation, whose shapes change all the time."""
    compiled = [(module, module._compiled_call_impl) for module in network.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, implementation in compiled:
            module._compiled_call_impl = implementation


def held(inputs: dict[str, Any]) -> dict[str, Any]:
    """A copy of a pass's inputs, for a graph to read at every replay."""
    return {name: value.clone() if torch.is_tensor(value) else value for name, value in inputs.items()}


def refill(static: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Put the next inputs, of the same shapes, where a graph reads them."""
    for name, value in inputs.items():
        if torch.is_tensor(value):
            static[name].copy_(value, non_blocking=True)


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for every training of a process: cuBLAS keeps 64 MiB for each stream it ever saw (H200, torch 2.11)."""
    return torch.cuda.Stream()


class StepGraphs:
    """Captures `step(inputs, items) -> loss`, which runs forward and backward passes, as a CUDA graph for each shape.

    Gradients are written into buffers that all graphs share and `.grad` points to after each call. All shapes share one
    pool of memory, in which the steps before a capture run too: it takes what the largest shape takes.
    """

    def __init__(self, step: Callable[[dict[str, Any], torch.Tensor], torch.Tensor], network: torch.nn.Module) -> None:
        self._step = step
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self._gradients: list[torch.Tensor] = []
        self._seen: dict[tuple, int] = {}
        self._graphs: dict[tuple, tuple] = {}
        self._pool, self._stream = torch.cuda.MemPool(), _side_stream()  # a pool's memory belongs to a stream

    def __call__(self, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        """One step: as it is for a shape that is new, from its graph afterwards."""
        key = tuple(
            (name, tuple(value.shape) if torch.is_tensor(value) else value) for name, value in sorted(inputs.items())
        )
        if key not in self._graphs:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= SEEN_BEFORE_CAPTURE:
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
                    loss = self._run(inputs, items)
                torch.cuda.current_stream().wait_stream(self._stream)
                return loss.clone()
            self._graphs[key] = self._capture(inputs, items)
        graph, static, static_items, loss = self._graphs[key]
        refill(static, inputs)
        static_items.copy_(items)
        self._point_gradients()
        graph.replay()
        return loss.clone()

    def _run(self, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        """The step; its gradients end in the buffers. Adding to those would read and write them weight by weight."""
        for weight in self._weights:
            weight.grad = None
        loss = self._step(inputs, items)
        if not self._gradients:
            # PEGASUS' positions get none.
            self._weights = [weight for weight in self._weights if weight.grad is not None]
            self._gradients = [torch.empty_like(weight) for weight in self._weights]
        torch._foreach_copy_(self._gradients, [weight.grad for weight in self._weights])
        self._point_gradients()
        return loss

    def _capture(self, inputs: dict[str, Any], items: torch.Tensor) -> tuple:
        static, static_items, graph = held(inputs), items.clone(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(
            graph, pool=self._pool.id, stream=self._stream,
            capture_error_mode="thread_local",  # the data loader has threads
        ):  # fmt: skip
            loss = self._run(dict(static), static_items)
        return graph, static, static_items, loss

    def _point_gradients(self) -> None:
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
