"""Attention within each sequence of packed rows, with T5's learned position bias: Triton kernels for training.

PyTorch's fast kernels give no gradient of a bias that all sequences of a batch share, so that T5 writes and reads its
scores, (heads, queries, keys) per sequence, in fp32 half a dozen times. Here a block of scores stays in registers:
forwards as in FlashAttention (Dao et al. 2022, arXiv 2205.14135, algorithm 1), backwards computed again (algorithm 4)
by one kernel for queries, one for keys and values, and one for the bias, whose gradient is summed over the sequences in
a fixed order.

A program serves one head, the second index of its grid. Its sequence has `q_len` queries from `q_start` in their row,
and `k_len` keys from `k_start` in theirs; `q_pos` and `k_pos` are positions in the sequence. The row has `tokens`
queries, and no sequence more than `max_k` keys. Tensors are (1, tokens, heads, head size), contiguous.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries and keys per block of scores
HASHES = tl.constexpr(2**32)  # dropout drops pairs whose hash is below DROP_BELOW
NO_QUERY = tl.constexpr(1e30)  # the log-sum-exp of a query that is not there: its probabilities are 0
PARTS = 8  # the gradient of the bias is summed over so many parts of the sequences, a program each
FORWARD = {"num_warps": 4, "num_stages": 1}  # the fastest on an H200 for FLAN-T5-base
BACKWARD_QUERIES = {"num_warps": 4, "num_stages": 3}
BACKWARD_KEYS = {"num_warps": 4, "num_stages": 1}
BACKWARD_BIAS = {"num_warps": 8, "num_stages": 3}


@triton.jit
def _start_and_length(cu_seqlens, sequence):
    start = tl.load(cu_seqlens + sequence)
    return start, tl.load(cu_seqlens + sequence + 1) - start


@triton.jit
def _pointers(x, start, pos, SIZE: tl.constexpr):
    """(BLOCK, SIZE), to the head's vectors at positions `pos` of a sequence."""
    row = (start + pos) * tl.num_programs(1) + tl.program_id(1)
    return x + row[:, None] * SIZE + tl.arange(0, SIZE)[None, :]


@triton.jit
def _load(x, start, pos, length, SIZE: tl.constexpr):
    """The head's vectors (BLOCK, SIZE), 0 behind the sequence's end."""
    return tl.load(_pointers(x, start, pos, SIZE), mask=(pos < length)[:, None], other=0)


@triton.jit
def _store(x, values, start, pos, length, SIZE: tl.constexpr):
    tl.store(_pointers(x, start, pos, SIZE), values.to(x.dtype.element_ty), mask=(pos < length)[:, None])


@triton.jit
def _load_per_query(x, q_start, q_pos, q_len, tokens, OTHER: tl.constexpr):
    """Numbers (BLOCK) of the head's queries, from (heads, tokens); OTHER behind the sequence's end."""
    return tl.load(x + tl.program_id(1) * tokens + q_start + q_pos, mask=q_pos < q_len, other=OTHER)


@triton.jit
def _kept_by_dropout(seed, q_index, k_pos, tokens, max_k, DROP_BELOW: tl.constexpr):
    """Whether dropout keeps a pair, by a hash of its number: lowbias32 (github.com/skeeto/hash-prospector).

    Philox, as PyTorch has it, would take longer than all else here. `q_index` counts through the row.
    """
    number = ((tl.program_id(1) * tokens + q_index) * max_k + k_pos).to(tl.uint32) + tl.load(seed).to(tl.uint32)
    number = (number ^ (number >> 16)) * 0x7FEB352D
    number = (number ^ (number >> 15)) * 0x846CA68B
    return number >= DROP_BELOW


@triton.jit
def _scores(rows, columns, bias, q_pos, k_pos, k_len, max_k, CAUSAL: tl.constexpr, BIASED: tl.constexpr):
    """A block of scores with bias; -1e30 where there is no key, or none that may be read.

    Its rows are queries and its columns keys, with q_pos (BLOCK, 1) and k_pos (1, BLOCK); or the other way round.
    """
    readable = (k_pos < k_len) & (k_pos <= q_pos) if CAUSAL else k_pos < k_len
    scores = tl.dot(rows, tl.trans(columns), input_precision="ieee")
    if BIASED:  # max_k is a multiple of BLOCK, so that no mask is needed, which would have it read number by number
        scores += tl.load(bias + (tl.program_id(1) * max_k + q_pos) * max_k + k_pos).to(tl.float32)
    return tl.where(readable, scores, -1e30)


@triton.jit
def _forward(
    q_, k_, v_, bias, seed, cu_seqlens_q, cu_seqlens_k, out_, lse_, tokens, max_k,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, DROP_BELOW: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The output, and each query's log-sum-exp of scores."""
    q_start, q_len = _start_and_length(cu_seqlens_q, tl.program_id(2))
    k_start, k_len = _start_and_length(cu_seqlens_k, tl.program_id(2))
    first_q = tl.program_id(0) * BLOCK
    if first_q >= q_len:
        return
    q_pos = first_q + tl.arange(0, BLOCK)
    q = _load(q_, q_start, q_pos, q_len, SIZE)
    highest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, SIZE], tl.float32)
    k_end = tl.minimum(k_len, first_q + BLOCK) if CAUSAL else k_len
    for first_k in range(0, k_end, BLOCK):
        k_pos = first_k + tl.arange(0, BLOCK)
        k = _load(k_, k_start, k_pos, k_len, SIZE)
        v = _load(v_, k_start, k_pos, k_len, SIZE)
        scores = _scores(q, k, bias, q_pos[:, None], k_pos[None, :], k_len, max_k, CAUSAL, BIASED)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        rescale = tl.exp(highest - higher)
        total = total * rescale + tl.sum(weights, 1)
        if DROP_BELOW > 0:
            kept = _kept_by_dropout(seed, q_start + q_pos[:, None], k_pos[None, :], tokens, max_k, DROP_BELOW)
            weights = tl.where(kept, weights, 0.0)
        out = out * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = higher
    total = tl.maximum(total, 1.0)  # 0 where there are no keys
    _store(out_, out / (total * (1 - DROP_BELOW / HASHES))[:, None], q_start, q_pos, q_len, SIZE)
    tl.store(lse_ + tl.program_id(1) * tokens + q_start + q_pos, highest + tl.log(total), mask=q_pos < q_len)


@triton.jit
def _probabilities_and_dscores(
    rows, columns, drows, dcolumns, bias, seed, lse, delta, q_start, q_pos, k_pos, k_len, tokens, max_k,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, DROP_BELOW: tl.constexpr,
):  # fmt: skip
    """A block of probabilities after dropout, and the gradient of its scores.

    Rows and columns as in `_scores`. `drows` and `dcolumns` are the output's gradient for queries, and values for keys.
    """
    probabilities = tl.exp(_scores(rows, columns, bias, q_pos, k_pos, k_len, max_k, CAUSAL, BIASED) - lse)
    dprobabilities = tl.dot(drows, tl.trans(dcolumns), input_precision="ieee")
    dropped = probabilities
    if DROP_BELOW > 0:
        kept = _kept_by_dropout(seed, q_start + q_pos, k_pos, tokens, max_k, DROP_BELOW)
        dropped = tl.where(kept, probabilities / (1 - DROP_BELOW / HASHES), 0.0)
        dprobabilities = tl.where(kept, dprobabilities / (1 - DROP_BELOW / HASHES), 0.0)
    return dropped, probabilities * (dprobabilities - delta)


@triton.jit
def _backward_queries(
    q_, k_, v_, bias, seed, cu_seqlens_q, cu_seqlens_k, out_, lse_, dout_, delta_, dq_, tokens, max_k,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, DROP_BELOW: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradient of queries; and delta, the sum of output times its gradient per query, for the other two kernels."""
    q_start, q_len = _start_and_length(cu_seqlens_q, tl.program_id(2))
    k_start, k_len = _start_and_length(cu_seqlens_k, tl.program_id(2))
    first_q = tl.program_id(0) * BLOCK
    if first_q >= q_len:
        return
    q_pos = first_q + tl.arange(0, BLOCK)
    q = _load(q_, q_start, q_pos, q_len, SIZE)
    dout = _load(dout_, q_start, q_pos, q_len, SIZE)
    delta = tl.sum(dout.to(tl.float32) * _load(out_, q_start, q_pos, q_len, SIZE).to(tl.float32), 1)
    tl.store(delta_ + tl.program_id(1) * tokens + q_start + q_pos, delta, mask=q_pos < q_len)
    lse = _load_per_query(lse_, q_start, q_pos, q_len, tokens, NO_QUERY)
    dq = tl.zeros([BLOCK, SIZE], tl.float32)
    k_end = tl.minimum(k_len, first_q + BLOCK) if CAUSAL else k_len
    for first_k in range(0, k_end, BLOCK):
        k_pos = first_k + tl.arange(0, BLOCK)
        k = _load(k_, k_start, k_pos, k_len, SIZE)
        v = _load(v_, k_start, k_pos, k_len, SIZE)
        _, dscores = _probabilities_and_dscores(
            q, k, dout, v, bias, seed, lse[:, None], delta[:, None], q_start, q_pos[:, None], k_pos[None, :],
            k_len, tokens, max_k, CAUSAL, BIASED, DROP_BELOW,
        )  # fmt: skip
        dq += tl.dot(dscores.to(k.dtype), k, input_precision="ieee")
    _store(dq_, dq, q_start, q_pos, q_len, SIZE)


@triton.jit
def _backward_keys(
    q_, k_, v_, bias, seed, cu_seqlens_q, cu_seqlens_k, lse_, dout_, delta_, dk_, dv_, tokens, max_k,
    CAUSAL: tl.constexpr, BIASED: tl.constexpr, DROP_BELOW: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values; rows of its blocks are keys, or blocks would have to be transposed."""
    q_start, q_len = _start_and_length(cu_seqlens_q, tl.program_id(2))
    k_start, k_len = _start_and_length(cu_seqlens_k, tl.program_id(2))
    first_k = tl.program_id(0) * BLOCK
    if first_k >= k_len:
        return
    k_pos = first_k + tl.arange(0, BLOCK)
    k = _load(k_, k_start, k_pos, k_len, SIZE)
    v = _load(v_, k_start, k_pos, k_len, SIZE)
    dk = tl.zeros([BLOCK, SIZE], tl.float32)
    dv = tl.zeros([BLOCK, SIZE], tl.float32)
    for first_q in range(first_k if CAUSAL else 0, q_len, BLOCK):
        q_pos = first_q + tl.arange(0, BLOCK)
        q = _load(q_, q_start, q_pos, q_len, SIZE)
        dout = _load(dout_, q_start, q_pos, q_len, SIZE)
        lse = _load_per_query(lse_, q_start, q_pos, q_len, tokens, NO_QUERY)[None, :]
        delta = _load_per_query(delta_, q_start, q_pos, q_len, tokens, 0)[None, :]
        dropped, dscores = _probabilities_and_dscores(
            k, q, v, dout, bias, seed, lse, delta, q_start, q_pos[None, :], k_pos[:, None],
            k_len, tokens, max_k, CAUSAL, BIASED, DROP_BELOW,
        )  # fmt: skip
        dv += tl.dot(dropped.to(dout.dtype), dout, input_precision="ieee")
        dk += tl.dot(dscores.to(q.dtype), q, input_precision="ieee")
    _store(dk_, dk, k_start, k_pos, k_len, SIZE)
    _store(dv_, dv, k_start, k_pos, k_len, SIZE)


@triton.jit
def _backward_bias(
    q_, k_, v_, bias, seed, cu_seqlens, lse_, dout_, delta_, dbias_, sequences, tokens, max_k,
    CAUSAL: tl.constexpr, DROP_BELOW: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the bias, (PARTS, heads, max_k, max_k), summed over each part of the sequences."""
    blocks, part = max_k // BLOCK, tl.program_id(2)
    first_q, first_k = tl.program_id(0) // blocks * BLOCK, tl.program_id(0) % blocks * BLOCK
    q_pos, k_pos = first_q + tl.arange(0, BLOCK), first_k + tl.arange(0, BLOCK)
    dbias = tl.zeros([BLOCK, BLOCK], tl.float32)
    if CAUSAL:
        sequences = tl.where(first_k > first_q, 0, sequences)
    for sequence in range(part, sequences, PARTS):
        start, length = _start_and_length(cu_seqlens, sequence)
        if tl.maximum(first_q, first_k) < length:
            _, dscores = _probabilities_and_dscores(
                _load(q_, start, q_pos, length, SIZE), _load(k_, start, k_pos, length, SIZE),
                _load(dout_, start, q_pos, length, SIZE), _load(v_, start, k_pos, length, SIZE), bias, seed,
                _load_per_query(lse_, start, q_pos, length, tokens, NO_QUERY)[:, None],
                _load_per_query(delta_, start, q_pos, length, tokens, 0)[:, None],
                start, q_pos[:, None], k_pos[None, :], length, tokens, max_k, CAUSAL, True, DROP_BELOW,
            )  # fmt: skip
            dbias += dscores
    row = (part * tl.num_programs(1) + tl.program_id(1)) * max_k + q_pos
    tl.store(dbias_ + row[:, None] * max_k + k_pos[None, :], dbias)


class T5Attention(torch.autograd.Function):
    """softmax(q kᵀ + bias) v within each sequence, with dropout of the probabilities; (1, tokens, heads, head size).

    Args, of `apply`:
        q, k, v: (1, tokens, heads, head size); the head size is a power of 2, at least 16.
        bias: (1, heads, max_k, max_k); empty in cross-attention.
        cu_seqlens_q, cu_seqlens_k: int32, (sequences + 1,): sequence i is tokens cu_seqlens[i] to cu_seqlens[i + 1].
            Queries of a sequence without keys read 0.
        max_q, max_k: No sequence has more queries or keys; with a bias both are the same, a multiple of BLOCK.
        causal: Whether a query reads only itself and what is before it.
        dropout: The probability of dropping a pair.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal, dropout):
        ctx.bias_dtype, bias = bias.dtype, bias.to(q.dtype)  # as autocast rounds it, and half to read
        q, k, v, bias = (tensor.contiguous() for tensor in (q, k, v, bias))
        _, tokens, heads, size = q.shape
        sequences = len(cu_seqlens_q) - 1
        ctx.grids = [(triton.cdiv(longest, BLOCK), heads, sequences) for longest in (max_q, max_k)]
        ctx.sizes = (tokens, max_k)
        ctx.constants = {"CAUSAL": causal, "DROP_BELOW": int(dropout * 2**32), "BLOCK": BLOCK, "SIZE": size}
        seed = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=q.device)
        out, lse = torch.empty_like(q), q.new_empty((heads, tokens), dtype=torch.float32)
        inputs, ctx.biased = (q, k, v, bias, seed, cu_seqlens_q, cu_seqlens_k), bias.numel() > 0
        _forward[ctx.grids[0]](*inputs, out, lse, *ctx.sizes, BIASED=ctx.biased, **ctx.constants, **FORWARD)
        ctx.save_for_backward(*inputs, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        *inputs, out, lse = ctx.saved_tensors
        (q, k, v, bias, _, cu_seqlens, _), dout = inputs, dout.contiguous()
        dq, dk, dv, delta = (torch.empty_like(tensor) for tensor in (q, k, v, lse))
        constants, (rows, columns) = ctx.constants | {"BIASED": ctx.biased}, ctx.grids
        _backward_queries[rows](*inputs, out, lse, dout, delta, dq, *ctx.sizes, **constants, **BACKWARD_QUERIES)
        _backward_keys[columns](*inputs, lse, dout, delta, dk, dv, *ctx.sizes, **constants, **BACKWARD_KEYS)
        dbias = None
        if ctx.biased and ctx.needs_input_grad[3]:
            parts = q.new_empty((PARTS, *bias.shape[1:]), dtype=torch.float32)
            grid, sequences = (rows[0] * columns[0], q.shape[2], PARTS), len(cu_seqlens) - 1
            arguments = (*inputs[:6], lse, dout, delta, parts, sequences, *ctx.sizes)
            _backward_bias[grid](*arguments, **ctx.constants, PARTS=PARTS, **BACKWARD_BIAS)
            dbias = parts.sum(dim=0, keepdim=True).to(ctx.bias_dtype)
        return dq, dk, dv, dbias, *[None] * 6
