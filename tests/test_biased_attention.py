"""T5's attention kernel against plain arithmetic in double precision; on the CPU by Triton's interpreter."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with PyTorch for Linux alone")

from dialogue_summarization.biased_attention import BiasedAttention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {  # batch, heads, queries, keys, head size
    "encoder": (9, 1, 160, 160, 16),
    "decoder": (2, 2, 70, 70, 32),
    "across": (3, 2, 32, 96, 16),
}


def tensors(name):
    """Queries, keys, values and bias, and a mask: of the future in the decoder, else of what is behind the end."""
    batch, heads, queries, keys, size = SHAPES[name]
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, tokens, heads, size) for tokens in (queries, keys, keys))
    bias = torch.randn(1, heads, queries, keys)
    if name == "decoder":
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool).tril()
    else:
        mask = torch.arange(keys) < torch.randint(3, keys, (batch, 1, 1, 1))
    return [part.to(DEVICE).requires_grad_() for part in (q, k, v, bias)], mask.to(DEVICE)


def plain(q, k, v, bias, mask, kept, chance):
    q, k, v = (part.double().transpose(1, 2) for part in (q, k, v))
    shares = (q @ k.transpose(2, 3) + bias.double()).masked_fill(~mask, float("-inf")).softmax(-1)
    return (shares * kept / (1 - chance) @ v).transpose(1, 2)


def kept_by(seed, shape, chance):
    """Which pairs dropout keeps: the hash in NumPy."""
    number = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number = (number ^ number >> np.uint32(shift)) * np.uint32(factor)
    return torch.from_numpy(number >= int(chance * 2**32)).view(shape).to(DEVICE)


@pytest.mark.parametrize("chance", [0.0, 0.2])
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_are_those_of_plain_attention(name, chance):
    inputs, mask = tensors(name)
    batch, heads, queries, keys, _ = SHAPES[name]
    torch.manual_seed(5)
    output = BiasedAttention.apply(*inputs, mask, chance)
    torch.manual_seed(5)
    seed = int(torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=DEVICE))
    kept = kept_by(seed, (batch, heads, queries, keys), chance)
    assert kept.double().mean().item() == pytest.approx(1 - chance, abs=0.02)
    expected = plain(*inputs, mask, kept, chance)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-4)
    slope = torch.randn_like(output)
    found = torch.autograd.grad(output, inputs, slope)
    wanted = torch.autograd.grad(expected, inputs, slope.double())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_each_call_drops_other_pairs():
    inputs, mask = tensors("across")
    first, second = (BiasedAttention.apply(*inputs, mask, 0.2) for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.skipif(DEVICE == "cpu", reason="numbers of 16 bits are not those of a card in the interpreter")
@pytest.mark.parametrize("name", SHAPES)
def test_16_bits_are_as_exact_as_rounding_them(name):
    (*parts, bias), mask = tensors(name)
    halves = [part.detach().bfloat16().requires_grad_() for part in parts]
    output = BiasedAttention.apply(*halves, bias, mask, 0.0)
    expected = plain(*halves, bias, mask, 1.0, 0.0)
    slope = torch.randn_like(output)
    found = torch.autograd.grad(output, (*halves, bias), slope)
    wanted = torch.autograd.grad(expected, (*halves, bias), slope.double())
    for ours, theirs in zip((output, *found), (expected, *wanted), strict=True):
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()
