"""T5's attention kernel against plain arithmetic in double precision; on the CPU by Triton's interpreter."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with PyTorch for Linux alone")

from dialogue_summarization.acceleration import t5_attention
from dialogue_summarization.acceleration.t5_attention import T5Attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 64 if DEVICE == "cuda" else 16  # the interpreter is slow
QUARTER = BLOCK // 4  # of a block: the lengths below are in it
PROMPTS, SUMMARIES = (5, 1, 0, 11, 2), (2, 5, 1, 0, 2)  # the last fill up; one prompt and one summary are empty
KINDS = {"encoder": (PROMPTS, PROMPTS), "decoder": (SUMMARIES, SUMMARIES), "across": (SUMMARIES, PROMPTS)}
HEADS, SIZE = 2, 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(t5_attention, "BLOCK", BLOCK)
    monkeypatch.setattr(t5_attention, "PARTS", 2)  # fewer than sequences
    torch.use_deterministic_algorithms(True, warn_only=True)  # NaN is then where nothing was written
    yield
    torch.use_deterministic_algorithms(False)


def tensors(kind):
    """Queries, keys, values and bias, and what stands behind them in a call but for dropout."""
    torch.manual_seed(0)
    lengths = [[QUARTER * length - (length > 2) for length in each] for each in KINDS[kind]]
    cu_seqlens = [torch.tensor([0, *each]).cumsum(0).to(torch.int32).to(DEVICE) for each in lengths]
    longest = [-(-max(each) // BLOCK) * BLOCK for each in lengths]
    q, k, v = (torch.randn(1, sum(lengths[row]), HEADS, SIZE) for row in (0, 1, 1))
    bias = torch.randn((0,) if kind == "across" else (1, HEADS, longest[0], longest[0]))
    return [part.to(DEVICE).requires_grad_() for part in (q, k, v, bias)], [*cu_seqlens, *longest, kind == "decoder"]


def plain(q, k, v, bias, cu_seqlens_q, cu_seqlens_k, _, max_k, causal, kept, dropout):
    q, k, v, bias = (part.double() for part in (q, k, v, bias))
    outputs = []
    sequences = zip(itertools.pairwise(cu_seqlens_q), itertools.pairwise(cu_seqlens_k), strict=True)
    for (start, end), (first, last) in sequences:
        scores = torch.einsum("qhd,khd->hqk", q[0, start:end], k[0, first:last])
        if bias.numel():
            scores = scores + bias[0, :, : end - start, : last - first]
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        probabilities = scores.softmax(-1) * kept[:, start:end, : last - first] / (1 - dropout)
        outputs.append(torch.einsum("hqk,khd->qhd", probabilities, v[0, first:last]))
    return torch.cat(outputs)[None]


def kept_by(seed, shape, dropout):
    """Which pairs dropout keeps: the hash in NumPy."""
    number = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number = (number ^ number >> np.uint32(shift)) * np.uint32(factor)
    return torch.from_numpy(number >= int(dropout * 2**32)).view(shape).to(DEVICE)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_plain_attention(kind, dropout):
    inputs, others = tensors(kind)
    torch.manual_seed(5)
    output = T5Attention.apply(*inputs, *others, dropout)
    torch.manual_seed(5)
    seed = int(torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=DEVICE))
    kept = kept_by(seed, (HEADS, output.shape[1], others[3]), dropout)
    assert kept.double().mean().item() == pytest.approx(1 - dropout, abs=0.02)
    expected = plain(*inputs, *others, kept, dropout)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-4)
    inputs = inputs[: 3 if kind == "across" else 4]
    slope = torch.randn_like(output)
    gradients = torch.autograd.grad(output, inputs, slope)
    wanted = torch.autograd.grad(expected, inputs, slope.double())
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_each_call_drops_other_pairs():
    inputs, others = tensors("across")
    first, second = (T5Attention.apply(*inputs, *others, 0.2) for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.skipif(DEVICE == "cpu", reason="numbers of 16 bits are not those of a GPU in the interpreter")
@pytest.mark.parametrize("kind", KINDS)
def test_16_bits_are_as_exact_as_rounding_them(kind):
    (*parts, bias), others = tensors(kind)
    halves = [part.detach().bfloat16().requires_grad_() for part in parts]
    output = T5Attention.apply(*halves, bias, *others, 0.0)
    expected = plain(*halves, bias, *others, torch.ones(HEADS, output.shape[1], others[3], device=DEVICE), 0.0)
    inputs = halves if kind == "across" else [*halves, bias]
    slope = torch.randn_like(output)
    gradients = torch.autograd.grad(output, inputs, slope)
    wanted = torch.autograd.grad(expected, inputs, slope.double())
    for ours, theirs in zip((output, *gradients), (expected, *wanted), strict=True):
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()
