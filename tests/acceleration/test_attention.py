"""Attention implementations: plain batches are attended to as before, T5's bias is its own."""

import pytest
import torch
from helpers import tiny_experiment, tiny_model, tiny_rows

from dialogue_summarization.acceleration.attention import bias_by_distance
from dialogue_summarization.acceleration.packing import PACKED
from dialogue_summarization.models import load_model


def test_plain_batches_after_packing_are_attended_to_as_before(tiny_models, tiny_data):
    bundle = load_model(tiny_experiment(tiny_models["llama"], tiny_data))
    rows = [
        bundle.family.encode(row["dialogue"] * (1 + number % 3), row["summary"])
        for number, row in enumerate(tiny_rows(4))
    ]
    batch = bundle.family.collate(rows)
    with torch.no_grad():
        before = bundle.model(**batch).logits
        bundle.model.set_attn_implementation(PACKED)
        torch.testing.assert_close(bundle.model(**batch).logits, before)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_t5_bias_by_distance_is_its_own(stack):
    attention = getattr(tiny_model("t5").double(), stack).block[0].layer[0].SelfAttention
    own, ours = attention.compute_bias(300, 300), bias_by_distance(attention, 300)
    assert torch.equal(ours, own)
    slope = torch.randn_like(own)
    weight = attention.relative_attention_bias.weight
    gradient, expected = (torch.autograd.grad(bias, weight, slope)[0] for bias in (ours, own))
    torch.testing.assert_close(gradient, expected)
