"""CUDA graphs replay the gradients of plain steps."""

import pytest
import torch
from helpers import tiny_model, tiny_rows

from dialogue_summarization.acceleration.attention import set_attention
from dialogue_summarization.acceleration.cuda_graphs import StepGraphs
from dialogue_summarization.acceleration.packing import attention_for, collate_packed
from dialogue_summarization.models import load_model


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0 pytest -k graphs")
def test_graphs_replay_the_same_gradients(tiny, family_name):
    bundle = load_model(tiny)
    own = tiny_model("t5", bundle.model.config.vocab_size, d_kv=16)  # its kernel takes heads of 16 or more
    model = (own if family_name == "t5" else bundle.model).to("cuda").train()
    rows = [
        bundle.family.encode(row["dialogue"] * (1 + number % 3), row["summary"])
        for number, row in enumerate(tiny_rows(16))
    ]
    set_attention(model, attention_for(model))

    def step(inputs, num_items):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        return loss.detach()

    graphs = StepGraphs(step, model)
    for start in (0, 2, 4, 6, 8):
        batch = collate_packed(bundle.family, model.config.model_type, rows[start : start + 8], 8)
        batch = {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}
        model.zero_grad()
        loss = step(dict(batch), None)
        expected = [weight.grad.clone() for weight in model.parameters()]
        model.zero_grad()
        assert graphs(batch, torch.tensor(1.0, device="cuda")).item() == pytest.approx(loss.item(), abs=1e-3)
        for weight, theirs in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(weight.grad, theirs, atol=1e-3, rtol=1e-2)
    assert len(graphs.graphs) == 1
