"""Attention with a learned bias on each pair of positions, T5's, in Triton: fast in training on a CUDA card.

PyTorch's fast kernels do not give the gradient of a bias that all dialogues of a batch share. Without them the scores,
(batch, heads, queries, keys), are written and read in fp32 half a dozen times. Here a block of them lives in registers:
forwards as in FlashAttention (Dao et al. 2022, arXiv 2205.14135, algorithm 1), backwards computed again (algorithm 4),
for queries, for keys and values, and for the bias, whose gradient is summed over the batch in a fixed order.

Sizes in what follows: `queries` and `keys` are numbers of tokens, `heads` those of a dialogue; a `head` is one of a
dialogue, counted through the batch. Tensors are (batch, tokens, heads, head size), contiguous.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries and keys of a block of scores
ALL = tl.constexpr(2**32)  # hashes; dropout drops those below LEAST
PARTS = 8  # of the batch, over which programs sum the gradient of the bias


@triton.jit
def _rows(start, head, tokens, heads, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """Offsets (BLOCK, SIZE) of a head's tokens from `start` on, and which of them there are."""
    token = start + tl.arange(0, BLOCK)
    row = (head // heads * tokens + token) * heads + head % heads
    return row[:, None] * SIZE + tl.arange(0, SIZE)[None, :], (token < tokens)[:, None]


@triton.jit
def _kept(seed, head, query, key, queries, keys, LEAST: tl.constexpr):
    """Where dropout keeps a pair: by a hash of its number, after lowbias32 (github.com/skeeto/hash-prospector).

    Philox, as PyTorch has it, would take longer than all else here.
    """
    number = ((head * queries + query[:, None]) * keys + key[None, :]).to(tl.uint32) + tl.load(seed).to(tl.uint32)
    number = (number ^ (number >> 16)) * 0x7FEB352D
    number = (number ^ (number >> 15)) * 0x846CA68B
    return number >= LEAST


@triton.jit
def _scores(q, k, bias, mask, head, query, key, queries, keys, heads, mask_batch, BY_QUERY: tl.constexpr):
    """A block of scores with bias; -1e30 where a pair is masked or not there."""
    there = (query[:, None] < queries) & (key[None, :] < keys)
    pair = (head % heads * queries + query[:, None]) * keys + key[None, :]
    found = tl.dot(q, tl.trans(k), input_precision="ieee") + tl.load(bias + pair, mask=there, other=0).to(tl.float32)
    mask += head // heads * mask_batch
    if BY_QUERY:
        seen = tl.load(mask + query[:, None] * keys + key[None, :], mask=there, other=0)
    else:
        seen = tl.load(mask + key, mask=key < keys, other=0)[None, :]
    return tl.where(there & (seen != 0), found, -1e30)


@triton.jit
def _forward(
    q_, k_, v_, bias, mask, seed, out_, total_, queries, keys, heads, mask_batch,
    BY_QUERY: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    query = start + tl.arange(0, BLOCK)
    offsets, there = _rows(start, head, queries, heads, BLOCK, SIZE)
    q = tl.load(q_ + offsets, mask=there, other=0)
    most = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, SIZE], tl.float32)
    for begin in range(0, keys, BLOCK):
        key = begin + tl.arange(0, BLOCK)
        others, present = _rows(begin, head, keys, heads, BLOCK, SIZE)
        k = tl.load(k_ + others, mask=present, other=0)
        v = tl.load(v_ + others, mask=present, other=0)
        scores = _scores(q, k, bias, mask, head, query, key, queries, keys, heads, mask_batch, BY_QUERY)
        higher = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp(scores - higher[:, None])
        before = tl.exp(most - higher)
        total = total * before + tl.sum(shares, 1)
        if LEAST > 0:
            shares = tl.where(_kept(seed, head, query, key, queries, keys, LEAST), shares, 0.0)
        out = out * before[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        most = higher
    out = out / (total * (1 - LEAST / ALL))[:, None]
    tl.store(out_ + offsets, out.to(out_.dtype.element_ty), mask=there)
    tl.store(total_ + head * queries + query, most + tl.log(total), mask=query < queries)


@triton.jit
def _shares(
    q, k, v, slope, bias, mask, seed, total, mean, head, query, key, queries, keys, heads, mask_batch,
    BY_QUERY: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """A block of what was multiplied with values, and the gradient of its scores."""
    scores = _scores(q, k, bias, mask, head, query, key, queries, keys, heads, mask_batch, BY_QUERY)
    shares = tl.exp(scores - total[:, None])
    slopes = tl.dot(slope, tl.trans(v), input_precision="ieee")
    used = shares
    if LEAST > 0:
        kept = _kept(seed, head, query, key, queries, keys, LEAST)
        used = tl.where(kept, shares / (1 - LEAST / ALL), 0.0)
        slopes = tl.where(kept, slopes / (1 - LEAST / ALL), 0.0)
    return used, shares * (slopes - mean[:, None])


@triton.jit
def _backward_queries(
    q_, k_, v_, bias, mask, seed, out_, total_, slope_, mean_, dq_, queries, keys, heads, mask_batch,
    BY_QUERY: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries; leaves the mean slope of each, which the other two need."""
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    query = start + tl.arange(0, BLOCK)
    offsets, there = _rows(start, head, queries, heads, BLOCK, SIZE)
    q = tl.load(q_ + offsets, mask=there, other=0)
    slope = tl.load(slope_ + offsets, mask=there, other=0)
    mean = tl.sum(slope.to(tl.float32) * tl.load(out_ + offsets, mask=there, other=0).to(tl.float32), 1)
    place = head * queries + query
    tl.store(mean_ + place, mean, mask=query < queries)
    total = tl.load(total_ + place, mask=query < queries, other=0)
    dq = tl.zeros([BLOCK, SIZE], tl.float32)
    for begin in range(0, keys, BLOCK):
        key = begin + tl.arange(0, BLOCK)
        others, present = _rows(begin, head, keys, heads, BLOCK, SIZE)
        k = tl.load(k_ + others, mask=present, other=0)
        v = tl.load(v_ + others, mask=present, other=0)
        _, ds = _shares(
            q, k, v, slope, bias, mask, seed, total, mean, head, query, key, queries, keys, heads, mask_batch,
            BY_QUERY, LEAST,
        )  # fmt: skip
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(dq_ + offsets, dq.to(dq_.dtype.element_ty), mask=there)


@triton.jit
def _backward_keys(
    q_, k_, v_, bias, mask, seed, total_, slope_, mean_, dk_, dv_, queries, keys, heads, mask_batch,
    BY_QUERY: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values."""
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    key = start + tl.arange(0, BLOCK)
    offsets, there = _rows(start, head, keys, heads, BLOCK, SIZE)
    k = tl.load(k_ + offsets, mask=there, other=0)
    v = tl.load(v_ + offsets, mask=there, other=0)
    dk = tl.zeros([BLOCK, SIZE], tl.float32)
    dv = tl.zeros([BLOCK, SIZE], tl.float32)
    for begin in range(0, queries, BLOCK):
        query = begin + tl.arange(0, BLOCK)
        others, present = _rows(begin, head, queries, heads, BLOCK, SIZE)
        q = tl.load(q_ + others, mask=present, other=0)
        slope = tl.load(slope_ + others, mask=present, other=0)
        place = head * queries + query
        total = tl.load(total_ + place, mask=query < queries, other=0)
        mean = tl.load(mean_ + place, mask=query < queries, other=0)
        used, ds = _shares(
            q, k, v, slope, bias, mask, seed, total, mean, head, query, key, queries, keys, heads, mask_batch,
            BY_QUERY, LEAST,
        )  # fmt: skip
        dv += tl.dot(tl.trans(used.to(slope.dtype)), slope, input_precision="ieee")
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
    tl.store(dk_ + offsets, dk.to(dk_.dtype.element_ty), mask=there)
    tl.store(dv_ + offsets, dv.to(dv_.dtype.element_ty), mask=there)


@triton.jit
def _backward_bias(
    q_, k_, v_, bias, mask, seed, total_, slope_, mean_, dbias_, batch, queries, keys, heads, mask_batch,
    BY_QUERY: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the bias (PARTS, heads, queries, keys), summed over each part of the batch."""
    blocks = tl.cdiv(keys, BLOCK)
    start, begin = tl.program_id(0) // blocks * BLOCK, tl.program_id(0) % blocks * BLOCK
    own, part = tl.program_id(1), tl.program_id(2)
    query, key = start + tl.arange(0, BLOCK), begin + tl.arange(0, BLOCK)
    dbias = tl.zeros([BLOCK, BLOCK], tl.float32)
    for dialogue in range(part, batch, PARTS):
        head = dialogue * heads + own
        offsets, there = _rows(start, head, queries, heads, BLOCK, SIZE)
        others, present = _rows(begin, head, keys, heads, BLOCK, SIZE)
        place = head * queries + query
        _, ds = _shares(
            tl.load(q_ + offsets, mask=there, other=0), tl.load(k_ + others, mask=present, other=0),
            tl.load(v_ + others, mask=present, other=0), tl.load(slope_ + offsets, mask=there, other=0),
            bias, mask, seed, tl.load(total_ + place, mask=query < queries, other=0),
            tl.load(mean_ + place, mask=query < queries, other=0), head, query, key, queries, keys, heads,
            mask_batch, BY_QUERY, LEAST,
        )  # fmt: skip
        dbias += ds
    pair = ((part * heads + own) * queries + query[:, None]) * keys + key[None, :]
    tl.store(dbias_ + pair, dbias, mask=(query[:, None] < queries) & (key[None, :] < keys))


class BiasedAttention(torch.autograd.Function):
    """softmax(q kᵀ + bias, where the mask is true) v, with dropout of the softmax.

    Args, of `apply`:
        q: (batch, queries, heads, head size); the head size is a power of 2, at least 16.
        k, v: (batch, keys, heads, head size).
        bias: (1, heads, queries, keys).
        mask: Booleans, (batch or 1, 1, queries or 1, keys): which keys are seen.
        chance: Of dropout.

    Returns:
        As q.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, mask, chance):
        ctx.bias_dtype, bias = bias.dtype, bias.to(q.dtype)  # half to read, and rounded as autocast rounds it
        q, k, v, bias, mask = (part.contiguous() for part in (q, k, v, bias, mask))
        batch, queries, heads, size = q.shape
        ctx.sizes = (queries, k.shape[1], heads, mask.stride(0) if len(mask) > 1 else 0)
        ctx.blocks = {"BY_QUERY": mask.shape[2] > 1, "LEAST": int(chance * 2**32), "BLOCK": BLOCK, "SIZE": size}
        seed = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=q.device)
        out, total = torch.empty_like(q), q.new_empty((batch, heads, queries), dtype=torch.float32)
        _forward[triton.cdiv(queries, BLOCK), batch * heads](
            q, k, v, bias, mask, seed, out, total, *ctx.sizes, **ctx.blocks
        )
        ctx.save_for_backward(q, k, v, bias, mask, seed, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        q, k, v, bias, mask, seed, out, total = ctx.saved_tensors
        (batch, queries, heads, _), keys, slope = q.shape, k.shape[1], slope.contiguous()
        dq, dk, dv, mean = (torch.empty_like(part) for part in (q, k, v, total))
        inputs, rows, columns = (q, k, v, bias, mask, seed), triton.cdiv(queries, BLOCK), triton.cdiv(keys, BLOCK)
        _backward_queries[rows, batch * heads](*inputs, out, total, slope, mean, dq, *ctx.sizes, **ctx.blocks)
        _backward_keys[columns, batch * heads](*inputs, total, slope, mean, dk, dv, *ctx.sizes, **ctx.blocks)
        dbias = None
        if ctx.needs_input_grad[3]:
            parts = q.new_empty((PARTS, heads, queries, keys), dtype=torch.float32)
            _backward_bias[rows * columns, heads, PARTS](
                *inputs, total, slope, mean, parts, batch, *ctx.sizes, **ctx.blocks, PARTS=PARTS
            )
            dbias = parts.sum(dim=0, keepdim=True).to(ctx.bias_dtype)
        return dq, dk, dv, dbias, None, None
