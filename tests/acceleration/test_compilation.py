"""Compiled layers are the plain ones, only faster; one compilation serves all."""

import copy
from functools import partialmethod

import pytest
import torch
from helpers import attend_without_a_gpu, tiny_experiment, tiny_model, tiny_rows
from torch.nn import functional as F

from dialogue_summarization import hardware
from dialogue_summarization.acceleration import attention
from dialogue_summarization.acceleration.compilation import (
    compilation_disabled,
    compile_model,
    fast_steps_available,
    has_virtual_tokens,
    supports_packing,
    transformer_layers,
)
from dialogue_summarization.acceleration.packing import PACKED, attention_for, collate_packed
from dialogue_summarization.experiments import method
from dialogue_summarization.generation import summarize
from dialogue_summarization.models import apply_method, load_model


def test_layers_of_both_families_are_all_there():
    assert [type(layer).__name__ for layer in transformer_layers(tiny_model("t5"))] == ["T5Block"] * 4
    assert [type(layer).__name__ for layer in transformer_layers(tiny_model("llama"))] == ["LlamaDecoderLayer"] * 2


@pytest.mark.parametrize(("has", "allowed"), [(True, True), (True, False), (False, True)])
def test_a_cpu_has_no_fast_steps(monkeypatch, has, allowed):
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: allowed)
    assert not fast_steps_available()


def test_virtual_tokens_are_neither_packed_nor_lost_to_checkpoints(tiny):
    model = load_model(tiny).model
    assert not has_virtual_tokens(model) and supports_packing(model)
    model = apply_method(model, method("prefix-tuning"))
    assert has_virtual_tokens(model) and not supports_packing(model)


def test_t5_compiled_has_the_loss_and_gradients_of_plain_steps(tiny_models, tiny_data, monkeypatch):
    """Its attention kernel apart, which is a GPU's: see test_t5_attention."""
    attend_without_a_gpu(monkeypatch)
    bundle = load_model(tiny_experiment(tiny_models["t5"], tiny_data))
    model = apply_method(bundle.model, method("lora-balanced")).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # 0 at first, which would hide what A does
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(model)
    compile_model(model, attention_for(model))
    assert any(module._compiled_call_impl for module in model.modules())
    for count in (5, 12):
        rows = [
            bundle.family.encode(row["dialogue"] * (1 + number % 3), row["summary"])
            for number, row in enumerate(tiny_rows(count))
        ]
        batch = collate_packed(bundle.family, "t5", rows, 12)
        assert batch["input_ids"].shape == (1, {5: 1024, 12: 2048}[count])
        losses, gradients = [], []
        for one, inputs in ((model, batch), (plain, bundle.family.collate(rows))):
            one.zero_grad()
            loss = one(**inputs).loss
            loss.backward()
            losses.append(loss.item())
            gradients.append([weight.grad for weight in one.parameters() if weight.requires_grad])
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with compilation_disabled(model):
        assert not any(module._compiled_call_impl for module in model.modules())
    assert any(module._compiled_call_impl for module in model.modules())


def test_summaries_are_generated_without_what_was_compiled(tiny):
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    bundle = load_model(tiny)
    for layer in transformer_layers(bundle.model):
        layer.compile(backend=refuse)
    texts = summarize(bundle, ["#Person1#: Hello."], tiny.generation, progress=False)
    assert texts == summarize(load_model(tiny), ["#Person1#: Hello."], tiny.generation, progress=False)
    assert all(layer._compiled_call_impl for layer in transformer_layers(bundle.model))


@pytest.mark.parametrize("name", ["full", "lora-balanced"])
def test_one_compilation_serves_all_layers_and_packed_rows_of_any_length(monkeypatch, name):
    def whole_row(query, key, value, cu_seqlens, max_length, scale):  # as a kernel it needs no lengths
        options = {"is_causal": True, "scale": scale, "enable_gqa": True}
        return F.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2)

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    graphs = []
    monkeypatch.setattr(attention, "attend_to_packed", whole_row)
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=count))
    model = apply_method(tiny_model("llama"), method(name)).train()
    compile_model(model, PACKED)
    for tokens in (64, 128, 192):
        positions = torch.arange(tokens)[None]
        batch = {
            "input_ids": positions,
            "position_ids": positions,
            "attention_mask": torch.zeros(1, 1, 1, 1),
            "cu_seq_lens_q": torch.tensor([0, tokens], dtype=torch.int32),
            "max_length_q": 2048,
            "use_cache": False,
        }
        model(**batch).logits.sum().backward()
    assert len(graphs) == 1
