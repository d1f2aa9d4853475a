"""Batches of fixed shapes and packed attention are the plain step, only faster. On a GPU, CUDA graphs too."""

import copy

import pytest
import torch
from conftest import tiny_network, tiny_rows

from dialogue_summarization import experiments, fast, models


def gradients(model, batch):
    model.network.zero_grad()
    loss = model.network(**batch).loss
    loss.backward()
    return loss.item(), [weight.grad.clone() for weight in model.network.parameters() if weight.grad is not None]


def encoded(model, count):
    return [
        model.family.encode(row["dialogue"] * (1 + n % 3), row["summary"]) for n, row in enumerate(tiny_rows(count))
    ]


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
def test_fixed_batches_have_the_loss_and_gradients_of_plain_ones(tiny, method):
    model = models.load(tiny)
    network = models.adapt(model.network, experiments.method(method)).train()
    model = models.Model(network, model.tokenizer, model.family)
    rows = encoded(model, 5)
    loss, expected = gradients(model, model.family.collate(rows))
    if model.family.fixed_attention:
        fast.base_of(network).set_attn_implementation(fast.PACKED)
    batch = model.family.fixed(rows, batch_size=8)
    fixed_loss, found = gradients(model, batch)
    assert fixed_loss == pytest.approx(loss, abs=1e-5)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_fixed_batches_come_in_few_shapes(tiny):
    family = models.load(tiny).family
    rows = [family.encode(row["dialogue"], row["summary"]) for row in tiny_rows(30)]
    shapes = {
        tuple(
            tuple(value.shape) for value in family.fixed(rows[start : start + 7], 8).values() if torch.is_tensor(value)
        )
        for start in range(20)
    }
    assert len(shapes) == 1


def test_plain_batches_after_packing_are_attended_to_as_before(tiny_models, tiny_data):
    from conftest import tiny_experiment

    model = models.load(tiny_experiment(tiny_models["llama"], tiny_data))
    batch = model.family.collate(encoded(model, 4))
    with torch.no_grad():
        before = model.network(**batch).logits
        model.network.set_attn_implementation(fast.PACKED)
        torch.testing.assert_close(model.network(**batch).logits, before)


def test_blocks_finds_every_block_of_both_families():
    assert [type(block).__name__ for block in fast.blocks(tiny_network("t5"))] == ["T5Block"] * 4
    assert [type(block).__name__ for block in fast.blocks(tiny_network("llama"))] == ["LlamaDecoderLayer"] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card: CUDA_VISIBLE_DEVICES=0 pytest -k graphs")
def test_graphs_replay_the_same_gradients(tiny):
    model = models.load(tiny)
    network = model.network.to("cuda").train()
    rows = encoded(model, 16)
    if model.family.fixed_attention:
        network.set_attn_implementation(fast.PACKED)

    def step(inputs, items):
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(**inputs).loss
        loss.backward()
        return loss.detach()

    graphs = fast.StepGraphs(step, network)
    for start in (0, 2, 4, 6, 8):
        batch = model.family.fixed(rows[start : start + 8], 8)
        batch = {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}
        network.zero_grad()
        loss = step(dict(batch), None)
        expected = [weight.grad.clone() for weight in network.parameters()]
        network.zero_grad()
        assert graphs(batch, torch.tensor(1.0, device="cuda")).item() == pytest.approx(loss.item(), abs=1e-3)
        for weight, theirs in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(weight.grad, theirs, atol=1e-3, rtol=1e-2)
    assert len(graphs._graphs) == 1


def test_t5_prepared_has_the_loss_and_gradients_of_plain_steps():
    """Its attention kernel apart, which is a card's: see test_biased_attention."""
    network = models.adapt(tiny_network("t5"), experiments.method("lora-balanced")).train()
    for name, weight in network.named_parameters():
        if "lora_B" in name:  # 0 at first, which would hide what A does
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = copy.deepcopy(network)
    fast.prepare(network, None)
    assert any(module._compiled_call_impl for module in network.modules())
    chosen = torch.Generator().manual_seed(0)
    for tokens in (32, 48):
        ids = torch.randint(5, 90, (4, tokens), generator=chosen)
        seen = torch.arange(tokens) < torch.tensor([tokens, 20, 9, 3])[:, None]
        batch = {
            "input_ids": ids,
            "attention_mask": seen,
            "decoder_input_ids": ids[:, :16],
            "labels": ids[:, 1:17].contiguous(),
        }
        losses, slopes = [], []
        for one in (network, plain):
            one.zero_grad()
            loss = one(**batch, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
            slopes.append([weight.grad for weight in one.parameters() if weight.requires_grad])
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        for ours, theirs in zip(*slopes, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with fast.eager(network):
        assert not any(module._compiled_call_impl for module in network.modules())
    assert any(module._compiled_call_impl for module in network.modules())
