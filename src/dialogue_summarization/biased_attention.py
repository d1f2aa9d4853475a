"""Attention within each sequence of a packed row, with T5's learned bias, in Triton: fast in training on a CUDA card.

PyTorch's fast kernels do not give the gradient of a bias that all dialogues of a batch share. Without them the scores,
(heads, queries, keys) for each dialogue, are written and read in fp32 half a dozen times. Here a block of them lives in
registers: forwards as in FlashAttention (Dao et al. 2022, arXiv 2205.14135, algorithm 1), backwards computed again
(algorithm 4), for queries, for keys and values, and for the bias, whose gradient is summed over the sequences in a
fixed order.

A program serves one head: the second index of its grid. In what follows its sequence begins at `begin` in the row of
queries, at `others` in that of keys, and has `queries` and `keys` of them, among which `query` and `key` count;
`tokens` are all queries of the row, `longest` the most keys of a sequence. Tensors are (1, tokens, heads, head size),
contiguous.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries and keys of a block of scores
ALL = tl.constexpr(2**32)  # hashes; dropout drops those below LEAST
NEVER = tl.constexpr(1e30)  # the total of a query that is not there: its shares are 0
PARTS = 8  # of the sequences, over which programs sum the gradient of the bias
FORWARD, QUERIES, KEYS, BIAS = (
    {"num_warps": warps, "num_stages": stages} for warps, stages in ((4, 1), (4, 3), (4, 1), (8, 3))
)  # the fastest on an H200, at FLAN-T5-base's shape


@triton.jit
def _sequence(bounds, number):
    """Where a sequence begins, and its length."""
    begin = tl.load(bounds + number)
    return begin, tl.load(bounds + number + 1) - begin


@triton.jit
def _at(x, begin, token, SIZE: tl.constexpr):
    """Pointers (BLOCK, SIZE) to the head's tokens."""
    row = (begin + token) * tl.num_programs(1) + tl.program_id(1)
    return x + row[:, None] * SIZE + tl.arange(0, SIZE)[None, :]


@triton.jit
def _block(x, begin, token, length, SIZE: tl.constexpr):
    """The head's tokens (BLOCK, SIZE), 0 behind the sequence's end."""
    return tl.load(_at(x, begin, token, SIZE), mask=(token < length)[:, None], other=0)


@triton.jit
def _put(x, values, begin, token, length, SIZE: tl.constexpr):
    tl.store(_at(x, begin, token, SIZE), values.to(x.dtype.element_ty), mask=(token < length)[:, None])


@triton.jit
def _of_queries(x, begin, query, queries, tokens, BEHIND: tl.constexpr):
    """Numbers (BLOCK) of the head's queries, from (heads, tokens); BEHIND behind the sequence's end."""
    return tl.load(x + tl.program_id(1) * tokens + begin + query, mask=query < queries, other=BEHIND)


@triton.jit
def _kept(seed, query, key, tokens, longest, LEAST: tl.constexpr):
    """Where dropout keeps a pair: by a hash of its number, after lowbias32 (github.com/skeeto/hash-prospector).

    `query` counts through the row. Philox, as PyTorch has it, would take longer than all else here.
    """
    number = ((tl.program_id(1) * tokens + query) * longest + key).to(tl.uint32) + tl.load(seed).to(tl.uint32)
    number = (number ^ (number >> 16)) * 0x7FEB352D
    number = (number ^ (number >> 15)) * 0x846CA68B
    return number >= LEAST


@triton.jit
def _scores(left, right, bias, query, key, keys, longest, CAUSAL: tl.constexpr, BIASED: tl.constexpr):
    """A block of scores with bias; -1e30 where a key is not there, or not to be read.

    A row is a query or, as `left` is either, a key; `query` and `key` are one a column and the other a row of numbers.
    """
    there = key < keys
    if CAUSAL:
        there = there & (key <= query)
    scores = tl.dot(left, tl.trans(right), input_precision="ieee")
    if BIASED:  # its rows fill whole blocks: a mask would have its numbers read one by one
        scores += tl.load(bias + (tl.program_id(1) * longest + query) * longest + key).to(tl.float32)
    return tl.where(there, scores, -1e30)


@triton.jit
def _forward(
    q_, k_, v_, bias, seed, query_bounds, key_bounds, out_, total_, tokens, longest,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    begin, queries = _sequence(query_bounds, tl.program_id(2))
    others, keys = _sequence(key_bounds, tl.program_id(2))
    start = tl.program_id(0) * BLOCK
    if start >= queries:
        return
    query = start + tl.arange(0, BLOCK)
    q = _block(q_, begin, query, queries, SIZE)
    most = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, SIZE], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, start + BLOCK)
    for first in range(0, end, BLOCK):
        key = first + tl.arange(0, BLOCK)
        k = _block(k_, others, key, keys, SIZE)
        v = _block(v_, others, key, keys, SIZE)
        scores = _scores(q, k, bias, query[:, None], key[None, :], keys, longest, CAUSAL, BIASED)
        higher = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp(scores - higher[:, None])
        before = tl.exp(most - higher)
        total = total * before + tl.sum(shares, 1)
        if LEAST > 0:
            kept = _kept(seed, begin + query[:, None], key[None, :], tokens, longest, LEAST)
            shares = tl.where(kept, shares, 0.0)
        out = out * before[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        most = higher
    total = tl.maximum(total, 1.0)  # 0 where there are no keys: nothing is read then
    _put(out_, out / (total * (1 - LEAST / ALL))[:, None], begin, query, queries, SIZE)
    tl.store(total_ + tl.program_id(1) * tokens + begin + query, most + tl.log(total), mask=query < queries)


@triton.jit
def _shares(
    left, right, left_slope, right_slope, bias, seed, total, mean, begin, query, key, keys, tokens, longest,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """A block of what was multiplied with values, and the gradient of its scores.

    See `_scores`. With a query a row, `left` is queries and `right` keys, and so the gradient of the output and values.
    """
    shares = tl.exp(_scores(left, right, bias, query, key, keys, longest, CAUSAL, BIASED) - total)
    slopes = tl.dot(left_slope, tl.trans(right_slope), input_precision="ieee")
    used = shares
    if LEAST > 0:
        kept = _kept(seed, begin + query, key, tokens, longest, LEAST)
        used = tl.where(kept, shares / (1 - LEAST / ALL), 0.0)
        slopes = tl.where(kept, slopes / (1 - LEAST / ALL), 0.0)
    return used, shares * (slopes - mean)


@triton.jit
def _backward_queries(
    q_, k_, v_, bias, seed, query_bounds, key_bounds, out_, total_, slope_, mean_, dq_, tokens, longest,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries; leaves the mean slope of each, which the other two need."""
    begin, queries = _sequence(query_bounds, tl.program_id(2))
    others, keys = _sequence(key_bounds, tl.program_id(2))
    start = tl.program_id(0) * BLOCK
    if start >= queries:
        return
    query = start + tl.arange(0, BLOCK)
    q = _block(q_, begin, query, queries, SIZE)
    slope = _block(slope_, begin, query, queries, SIZE)
    mean = tl.sum(slope.to(tl.float32) * _block(out_, begin, query, queries, SIZE).to(tl.float32), 1)
    tl.store(mean_ + tl.program_id(1) * tokens + begin + query, mean, mask=query < queries)
    total = _of_queries(total_, begin, query, queries, tokens, NEVER)
    dq = tl.zeros([BLOCK, SIZE], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, start + BLOCK)
    for first in range(0, end, BLOCK):
        key = first + tl.arange(0, BLOCK)
        k = _block(k_, others, key, keys, SIZE)
        v = _block(v_, others, key, keys, SIZE)
        _, ds = _shares(
            q, k, slope, v, bias, seed, total[:, None], mean[:, None], begin, query[:, None], key[None, :],
            keys, tokens, longest, CAUSAL, BIASED, LEAST,
        )  # fmt: skip
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    _put(dq_, dq, begin, query, queries, SIZE)


@triton.jit
def _backward_keys(
    q_, k_, v_, bias, seed, query_bounds, key_bounds, total_, slope_, mean_, dk_, dv_, tokens, longest,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values; the rows of its blocks of scores are keys, or they had to be turned."""
    begin, queries = _sequence(query_bounds, tl.program_id(2))
    others, keys = _sequence(key_bounds, tl.program_id(2))
    start = tl.program_id(0) * BLOCK
    if start >= keys:
        return
    key = start + tl.arange(0, BLOCK)
    k = _block(k_, others, key, keys, SIZE)
    v = _block(v_, others, key, keys, SIZE)
    dk = tl.zeros([BLOCK, SIZE], tl.float32)
    dv = tl.zeros([BLOCK, SIZE], tl.float32)
    for first in range(start if CAUSAL else 0, queries, BLOCK):
        query = first + tl.arange(0, BLOCK)
        q = _block(q_, begin, query, queries, SIZE)
        slope = _block(slope_, begin, query, queries, SIZE)
        total = _of_queries(total_, begin, query, queries, tokens, NEVER)[None, :]
        mean = _of_queries(mean_, begin, query, queries, tokens, 0)[None, :]
        used, ds = _shares(
            k, q, v, slope, bias, seed, total, mean, begin, query[None, :], key[:, None],
            keys, tokens, longest, CAUSAL, BIASED, LEAST,
        )  # fmt: skip
        dv += tl.dot(used.to(slope.dtype), slope, input_precision="ieee")
        dk += tl.dot(ds.to(q.dtype), q, input_precision="ieee")
    _put(dk_, dk, others, key, keys, SIZE)
    _put(dv_, dv, others, key, keys, SIZE)


@triton.jit
def _backward_bias(
    q_, k_, v_, bias, seed, bounds, total_, slope_, mean_, dbias_, sequences, tokens, longest,
    CAUSAL: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the bias (PARTS, heads, longest, longest), summed over each part of the sequences."""
    blocks, part = longest // BLOCK, tl.program_id(2)
    start, first = tl.program_id(0) // blocks * BLOCK, tl.program_id(0) % blocks * BLOCK
    query, key = start + tl.arange(0, BLOCK), first + tl.arange(0, BLOCK)
    dbias = tl.zeros([BLOCK, BLOCK], tl.float32)
    if CAUSAL:
        sequences = tl.where(first > start, 0, sequences)
    for number in range(part, sequences, PARTS):
        begin, length = _sequence(bounds, number)
        if tl.maximum(start, first) < length:
            _, ds = _shares(
                _block(q_, begin, query, length, SIZE), _block(k_, begin, key, length, SIZE),
                _block(slope_, begin, query, length, SIZE), _block(v_, begin, key, length, SIZE), bias, seed,
                _of_queries(total_, begin, query, length, tokens, NEVER)[:, None],
                _of_queries(mean_, begin, query, length, tokens, 0)[:, None],
                begin, query[:, None], key[None, :], length, tokens, longest, CAUSAL, True, LEAST,
            )  # fmt: skip
            dbias += ds
    row = (part * tl.num_programs(1) + tl.program_id(1)) * longest + query
    tl.store(dbias_ + row[:, None] * longest + key[None, :], dbias)


class BiasedAttention(torch.autograd.Function):
    """softmax(q kᵀ + bias) v within each sequence, with dropout of the softmax.

    Args, of `apply`:
        q: (1, tokens, heads, head size); the head size is a power of 2, at least 16.
        k, v: The same, or another number of tokens where queries read other sequences than their own.
        bias: (1, heads, longest, longest), of two positions in a sequence; empty where there is none.
        query_bounds, key_bounds: int32, (sequences + 1,): sequence i is tokens `bounds[i]` to `bounds[i + 1]`; from 0
            to the last token. The queries of a sequence without keys read 0.
        longest_queries, longest_keys: No sequence has more tokens; with a bias both are `longest`, a multiple of BLOCK.
        causal: Whether a query reads itself and what is before it alone.
        chance: Of dropout.

    Returns:
        As q.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, query_bounds, key_bounds, longest_queries, longest_keys, causal, chance):
        ctx.bias_dtype, bias = bias.dtype, bias.to(q.dtype)  # half to read, and rounded as autocast rounds it
        q, k, v, bias = (part.contiguous() for part in (q, k, v, bias))
        _, tokens, heads, size = q.shape
        ctx.grids = [
            (triton.cdiv(longest, BLOCK), heads, len(query_bounds) - 1) for longest in (longest_queries, longest_keys)
        ]
        ctx.sizes = (tokens, longest_keys)
        ctx.blocks = {"CAUSAL": causal, "LEAST": int(chance * 2**32), "BLOCK": BLOCK, "SIZE": size}
        seed = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=q.device)
        out, total = torch.empty_like(q), q.new_empty((heads, tokens), dtype=torch.float32)
        inputs, ctx.biased = (q, k, v, bias, seed, query_bounds, key_bounds), bias.numel() > 0
        _forward[ctx.grids[0]](*inputs, out, total, *ctx.sizes, BIASED=ctx.biased, **ctx.blocks, **FORWARD)
        ctx.save_for_backward(*inputs, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        *inputs, out, total = ctx.saved_tensors
        (q, k, v, bias, _, bounds, _), slope = inputs, slope.contiguous()
        dq, dk, dv, mean = (torch.empty_like(part) for part in (q, k, v, total))
        blocks, (rows, columns) = ctx.blocks | {"BIASED": ctx.biased}, ctx.grids
        _backward_queries[rows](*inputs, out, total, slope, mean, dq, *ctx.sizes, **blocks, **QUERIES)
        _backward_keys[columns](*inputs, total, slope, mean, dk, dv, *ctx.sizes, **blocks, **KEYS)
        dbias = None
        if ctx.biased and ctx.needs_input_grad[3]:
            parts = q.new_empty((PARTS, *bias.shape[1:]), dtype=torch.float32)
            _backward_bias[rows[0] * columns[0], q.shape[2], PARTS](
                *inputs[:6], total, slope, mean, parts, len(bounds) - 1, *ctx.sizes, **ctx.blocks, PARTS=PARTS, **BIAS
            )
            dbias = parts.sum(dim=0, keepdim=True).to(ctx.bias_dtype)
        return dq, dk, dv, dbias, *[None] * 6
