"""Batches of few shapes have the loss and gradients of plain ones."""

from dataclasses import replace

import pytest
import torch
from helpers import attend_without_a_gpu, save_tiny, tiny_experiment, tiny_rows

from dialogue_summarization.acceleration.attention import set_attention
from dialogue_summarization.acceleration.packing import attention_for, collate_packed
from dialogue_summarization.experiments import method
from dialogue_summarization.models import apply_method, load_model
from dialogue_summarization.tokenization import IGNORE_INDEX


@pytest.fixture(params=["t5", "bart", "llama"])
def each(request, tmp_path, tiny_data):
    """A tiny model for each way in which a batch is made."""
    return load_model(tiny_experiment(save_tiny(request.param, tmp_path), tiny_data))


def gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("name", ["full", "lora-balanced"])
def test_packed_batches_have_the_loss_and_gradients_of_plain_ones(each, name, monkeypatch):
    attend_without_a_gpu(monkeypatch)
    model = apply_method(each.model, method(name)).train()
    bundle = replace(each, model=model)
    rows = [
        each.family.encode(row["dialogue"] * (1 + number % 3), row["summary"])
        for number, row in enumerate(tiny_rows(5))
    ]
    rows.append({"input_ids": rows[0]["input_ids"][:1], "labels": []})  # as several processes fill up their data
    loss, expected = gradients(model, bundle.family.collate(rows))
    if attention_for(model):
        set_attention(model, attention_for(model))
    batch = collate_packed(bundle.family, model.config.model_type, rows, batch_size=8)
    packed_loss, packed = gradients(model, batch)
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    assert len(packed) == len(expected) > 0
    for ours, theirs in zip(packed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_packed_batches_come_in_few_shapes(each):
    family, model_type = each.family, each.model.config.model_type
    rows = [family.encode(row["dialogue"], row["summary"]) for row in tiny_rows(30)]
    batches = [collate_packed(family, model_type, rows[start : start + 7], 8) for start in range(20)]
    shapes = {tuple(tuple(value.shape) for value in batch.values() if torch.is_tensor(value)) for batch in batches}
    assert len(shapes) == 1


@pytest.mark.parametrize("family_name", ["t5"], indirect=True)
@pytest.mark.parametrize("longest", [1, 40, 511, 700])
def test_a_packed_batch_has_every_pair_between_its_cu_seqlens(tiny, longest):
    family = load_model(tiny).family
    generator = torch.Generator().manual_seed(longest)
    lengths = torch.randint(1, longest + 1, (7, 2), generator=generator).tolist()
    rows = [{"input_ids": [5] * prompt, "labels": [*range(6, 5 + summary), 1]} for prompt, summary in lengths]
    batch = collate_packed(family, "t5", rows, 9)
    for name, multiple in (("prompt", 1024), ("summary", 512)):
        cu_seqlens = batch[f"{name}_cu_seqlens"]
        tokens = batch["input_ids" if name == "prompt" else "labels"].shape[1]
        assert cu_seqlens.dtype == torch.int32 and len(cu_seqlens) == 12
        assert (cu_seqlens[0], cu_seqlens[-1]) == (0, tokens)
        assert cu_seqlens.diff().min() >= 0 and cu_seqlens.diff().max() <= batch[f"max_{name}_length"]
        assert tokens % multiple == 0 and tokens < multiple + sum(length[name == "summary"] for length in lengths)
    ends = zip(batch["prompt_cu_seqlens"][1:], batch["summary_cu_seqlens"][1:], strict=True)
    start, first = 0, 0
    for row, (end, last) in zip(rows, ends, strict=False):
        own = family.collate([row])
        assert batch["input_ids"][0, start:end].tolist() == row["input_ids"]
        for name in ("decoder_input_ids", "labels"):
            assert batch[name][0, first:last].tolist() == own[name][0].tolist()
        start, first = end, last
    assert set(batch["labels"][0, first:].tolist()) <= {IGNORE_INDEX}


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_a_packed_row_has_every_pair_at_positions_from_0(tiny):
    family = load_model(tiny).family
    rows = [
        family.encode(row["dialogue"] * (1 + number % 3), row["summary"]) for number, row in enumerate(tiny_rows(5))
    ]
    batch = collate_packed(family, "llama", rows, 8)
    bounds = batch["cu_seq_lens_q"].tolist()
    assert len(bounds) == 10 and bounds[-1] == batch["input_ids"].shape[1]
    first = 0
    for row, start, end in zip(rows, bounds, bounds[1:], strict=False):
        assert batch["input_ids"][0, start:end].tolist() == [*row["input_ids"], *row["labels"]]
        assert batch["position_ids"][0, start:end].tolist() == list(range(end - start))
        last = first + len(row["labels"]) + 1
        assert batch["logits_to_keep"][first:last].tolist() == list(range(end - len(row["labels"]) - 1, end))
        assert batch["labels"][0, first:last].tolist() == [IGNORE_INDEX, *row["labels"]]
        first = last
    assert set(batch["labels"][0, first:].tolist()) == {IGNORE_INDEX}
