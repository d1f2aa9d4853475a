"""Batches of fixed shapes and packed attention are the plain step, only faster. On a GPU, CUDA graphs too."""

import copy
from functools import partialmethod

import pytest
import torch
from conftest import save_tiny, tiny_experiment, tiny_network, tiny_rows
from torch.nn import functional as F

from dialogue_summarization import experiments, fast, models, shapes
from dialogue_summarization.generation import summarize


@pytest.fixture(params=["t5", "bart", "llama"])
def each(request, tmp_path, tiny_data):
    """A tiny experiment for each way in which `fixed` makes a batch."""
    return tiny_experiment(save_tiny(request.param, tmp_path), tiny_data)


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
def test_fixed_batches_have_the_loss_and_gradients_of_plain_ones(each, method):
    model = models.load(each)
    network = models.adapt(model.network, experiments.method(method)).train()
    model = models.Model(network, model.tokenizer, model.family)
    rows = encoded(model, 5)
    rows.append({"input_ids": rows[0]["input_ids"][:1], "labels": []})  # as several processes fill up their data
    loss, expected = gradients(model, model.family.collate(rows))
    if model.family.fixed_attention:
        fast.set_attention(network, model.family.fixed_attention)
    batch = model.family.fixed(rows, batch_size=8)
    fixed_loss, found = gradients(model, batch)
    assert fixed_loss == pytest.approx(loss, abs=1e-5)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_fixed_batches_come_in_few_shapes(each):
    family = models.load(each).family
    rows = [family.encode(row["dialogue"], row["summary"]) for row in tiny_rows(30)]
    shapes = {
        tuple(
            tuple(value.shape) for value in family.fixed(rows[start : start + 7], 8).values() if torch.is_tensor(value)
        )
        for start in range(20)
    }
    assert len(shapes) == 1


def test_plain_batches_after_packing_are_attended_to_as_before(tiny_models, tiny_data):
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
def test_graphs_replay_the_same_gradients(tiny, family_name):
    model = models.load(tiny)
    own = tiny_network("t5", model.network.config.vocab_size, d_kv=16)  # its kernel takes heads of 16 or more
    network = (own if family_name == "t5" else model.network).to("cuda").train()
    rows = encoded(model, 16)
    fast.set_attention(network, model.family.fixed_attention)

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


def test_t5_prepared_has_the_loss_and_gradients_of_plain_steps(tiny_models, tiny_data):
    """Its attention kernel apart, which is a card's: see test_biased_attention."""
    model = models.load(tiny_experiment(tiny_models["t5"], tiny_data))
    network = models.adapt(model.network, experiments.method("lora-balanced")).train()
    for name, weight in network.named_parameters():
        if "lora_B" in name:  # 0 at first, which would hide what A does
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    shapes.without_dropout(network)
    plain = copy.deepcopy(network)
    fast.prepare(network, model.family.fixed_attention)
    assert any(module._compiled_call_impl for module in network.modules())
    for count in (5, 12):
        rows = encoded(model, count)
        batch = model.family.fixed(rows, 12)
        assert batch["input_ids"].shape == (1, {5: 1024, 12: 2048}[count])
        losses, slopes = [], []
        for one, inputs in ((network, batch), (plain, model.family.collate(rows))):
            one.zero_grad()
            loss = one(**inputs).loss
            loss.backward()
            losses.append(loss.item())
            slopes.append([weight.grad for weight in one.parameters() if weight.requires_grad])
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        for ours, theirs in zip(*slopes, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with fast.eager(network):
        assert not any(module._compiled_call_impl for module in network.modules())
    assert any(module._compiled_call_impl for module in network.modules())


def test_summaries_are_written_without_what_was_compiled(tiny):
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    model = models.load(tiny)
    for block in fast.blocks(model.network):
        block.compile(backend=refuse)
    texts = summarize(model, ["#Person1#: Hello."], tiny.generation, progress=False)
    assert texts == summarize(models.load(tiny), ["#Person1#: Hello."], tiny.generation, progress=False)
    assert all(block._compiled_call_impl for block in fast.blocks(model.network))


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_t5_bias_by_distance_is_its_own(stack):
    attention = getattr(tiny_network("t5").double(), stack).block[0].layer[0].SelfAttention
    own, ours = attention.compute_bias(300, 300), fast.bias_of_distances(attention, 300)
    assert torch.equal(ours, own)
    slope = torch.randn_like(own)
    table = attention.relative_attention_bias.weight
    found, wanted = (torch.autograd.grad(bias, table, slope)[0] for bias in (ours, own))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
def test_one_compilation_serves_all_blocks_and_packed_rows_of_any_length(monkeypatch, method):
    def whole_row(query, key, value, bounds, key_bounds, **options):  # as a card's kernel it needs no lengths
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options).transpose(1, 2)

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    graphs = []
    monkeypatch.setattr(fast, "_one_by_one", whole_row)
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=count))
    network = models.adapt(tiny_network("llama"), experiments.method(method)).train()
    fast.prepare(network, fast.PACKED)
    for tokens in (64, 128, 192):
        positions = torch.arange(tokens)[None]
        bounds = torch.tensor([0, tokens], dtype=torch.int32)
        network(
            input_ids=positions, position_ids=positions, attention_mask=torch.zeros(1, 1, 1, 1), cu_seq_lens_q=bounds,
            max_length_q=2048, use_cache=False,
        ).logits.sum().backward()  # fmt: skip
    assert len(graphs) == 1
