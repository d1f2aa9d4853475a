"""Attention within each sequence of packed rows, in the form of transformers' `AttentionInterface`.

Importing the module registers two implementations, "packed" for decoder-only models and "biased" for T5. Batches that
are not packed, as in evaluation and generation, go to PyTorch's attention.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .packing import BIASED, PACKED

with contextlib.suppress(ImportError):  # Triton comes with PyTorch for Linux alone
    from .t5_attention import T5Attention


def set_attention(model: torch.nn.Module, name: str) -> None:
    """Switch a model, also inside an adapter, to one of the implementations registered here."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):  # T5's encoder and decoder have a configuration each
            module.set_attn_implementation(name)
        if name == BIASED and type(module).__name__ == "T5Attention":
            module.register_forward_pre_hook(_add_position_bias, with_kwargs=True)


def packed_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a row, bounded by `cu_seq_lens_q`; see `packing.pack_sequences`.

    `query` is (1, heads, tokens, head size), the output (1, tokens, heads, head size).
    """
    cu_seqlens, scale = kwargs.get("cu_seq_lens_q"), kwargs.get("scaling")
    batch, heads, tokens, size = query.shape
    if cu_seqlens is not None:
        return attend_to_packed(query, key, value, cu_seqlens, kwargs["max_length_q"], scale), None
    if tokens > 1 or attention_mask is None or heads == key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # Heads that share a key become positions, so that the cache is not copied for each of them.
    query = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    output = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scale)
    return output.reshape(batch, 1, heads, size), None


def attend_to_packed(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, scale: float | None
) -> Tensor:
    """`packed_attention` by FlashAttention, which knows bf16 and fp16 alone, on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (part.repeat_interleave(heads // key.shape[1], dim=1) for part in (key, value))
    dtype = torch.float16 if value.dtype == torch.float16 else torch.bfloat16
    query, key, value = (part.transpose(1, 2).squeeze(0).to(dtype) for part in (query, key, value))
    lengths = (cu_seqlens, cu_seqlens, max_length, max_length)
    return varlen_attn(query, key, value, *lengths, scale=scale, window_size=(-1, 0)).unsqueeze(0)


def biased_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """T5's attention within each sequence of packed rows, on a GPU: summary i reads itself and prompt i.

    `position_bias` is (1, heads, positions, positions), and empty in cross-attention.
    """
    if kwargs.get("prompt_cu_seqlens") is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    bias, dropout = kwargs["position_bias"], kwargs.get("dropout", 0.0)
    prompts = (kwargs["prompt_cu_seqlens"], kwargs["max_prompt_length"])
    summaries = (kwargs["summary_cu_seqlens"], kwargs["max_summary_length"])
    causal = module.is_decoder and bias.numel() > 0
    cu_seqlens_q, max_q = summaries if module.is_decoder else prompts
    cu_seqlens_k, max_k = summaries if causal else prompts
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return T5Attention.apply(query, key, value, bias, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal, dropout), None


def bias_by_distance(attention: torch.nn.Module, length: int) -> Tensor:
    """What T5's `compute_bias(length, length)` gives, (1, heads, length, length), looked up once per distance.

    T5's own looks up every pair of positions, and adding up the gradients of all takes longer than the optimizer's
    update. Here `values` has the bias of the distances 0, 1, ..., length - 1, -length, ..., -1. Repeated end to end and
    read in rows that are one shorter, it moves one to the right per row: entry (i, j) is that of the distance j - i.
    """
    distances = torch.arange(2 * length, device=attention.relative_attention_bias.weight.device)
    buckets = attention._relative_position_bucket(
        torch.where(distances < length, distances, distances - 2 * length),
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    values = attention.relative_attention_bias(buckets).t()
    repeated = values[:, None].expand(-1, length, -1).flatten(1)
    return repeated[:, :-length].unflatten(1, (length, 2 * length - 1))[None, ..., :length]


def _add_position_bias(attention: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Give T5 a bias for the positions of the longest sequence: its own would be for all pairs of tokens of the row."""
    if kwargs.get("prompt_cu_seqlens") is not None and kwargs.get("position_bias") is None:
        if attention.has_relative_attention_bias:
            length = kwargs["max_summary_length" if attention.is_decoder else "max_prompt_length"]
            kwargs["position_bias"] = bias_by_distance(attention, length)
        else:  # cross-attention
            kwargs["position_bias"] = args[0].new_empty(0)
    return args, kwargs


for name, implementation in ((PACKED, packed_attention), (BIASED, biased_attention)):
    AttentionInterface.register(name, implementation)
    AttentionMaskInterface.register(name, sdpa_mask)
