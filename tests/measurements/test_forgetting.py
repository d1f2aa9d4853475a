"""Losses on passages against transformers' own, and what a model forgets of itself: nothing."""

import pandas as pd
import pytest
import torch
from helpers import tiny_experiment

from dialogue_summarization import experiments, models, study
from dialogue_summarization.errors import ConfigurationError
from measurements import __main__ as command
from measurements import forgetting

TEXTS = ["Ann waits for Ben at the station.", "The train is late again."]


def test_the_passages_are_whole_and_none_is_there_twice():
    passages = pd.read_csv(forgetting.PASSAGES)
    assert len(passages) == 286 and passages["text"].is_unique and passages["source"].nunique() == 5
    assert passages["text"].str.split().str.len().between(40, 150).all()
    assert not passages["text"].str.contains('["“”]').any()


def test_a_model_agrees_with_itself_and_its_loss_is_transformers_own(tiny_models, tiny_data):
    bundle = models.load_model(tiny_experiment(tiny_models["llama"], tiny_data))
    measured = forgetting.measure(bundle, bundle, TEXTS)
    assert (measured["agreement"] == 1).all() and measured["divergence"].abs().max() < 1e-6
    for text, loss, tokens in zip(TEXTS, measured["loss"], measured["tokens"], strict=True):
        ids = bundle.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        assert loss == pytest.approx(bundle.model(ids, labels=ids).loss.item(), abs=1e-5)
        assert tokens == ids.shape[1] - 1


def test_a_divergence_by_hand(tiny_models, tiny_data):
    """Of every token a + b where the other gives p and q: the sum of p (log p - log a), in that direction."""
    bundle, other = (models.load_model(tiny_experiment(tiny_models["llama"], tiny_data)) for _ in range(2))
    torch.manual_seed(0)
    for weight in bundle.model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    [row] = forgetting.measure(bundle, other, TEXTS[:1]).to_dict("records")
    ids = bundle.tokenizer(TEXTS[0], return_tensors="pt", add_special_tokens=False)["input_ids"]
    ours, theirs = (one.model(ids).logits[0, :-1].double().softmax(-1) for one in (bundle, other))
    assert row["divergence"] == pytest.approx((theirs * (theirs / ours).log()).sum(-1).mean().item(), rel=1e-3)
    assert row["agreement"] == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).double().mean().item())


def test_an_intruder_is_a_large_direction_that_was_not_there(tiny_models, tiny_data):
    base = models.load_model(tiny_experiment(tiny_models["llama"], tiny_data)).model
    trained = models.load_model(tiny_experiment(tiny_models["llama"], tiny_data)).model
    assert forgetting.count_intruders(trained, base) == 0
    trained.model.layers[0].self_attn.q_proj.weight.data *= 3  # the same directions
    assert forgetting.count_intruders(trained, base) == 0
    weight = trained.model.layers[1].self_attn.o_proj.weight
    left, values, right = torch.linalg.svd(weight.data)
    torch.manual_seed(0)
    mixed = torch.randn(len(left))  # near none of the 32: a cosine of 0.5 would be 2.8 standard deviations
    weight.data += 100 * values[0] * torch.outer(mixed / mixed.norm(), right[0])
    assert (left.T @ (mixed / mixed.norm())).abs().max() < forgetting.ALIKE
    assert forgetting.count_intruders(trained, base) == 1 / 8  # of four projections in each of two layers


def test_runs_are_measured_beside_the_base(tiny_models, tiny_data, tmp_path, monkeypatch):
    passages = tmp_path / "passages.csv"
    pd.DataFrame({"source": "here", "text": TEXTS}).to_csv(passages, index=False)
    monkeypatch.setattr(forgetting, "PASSAGES", passages)
    experiment = tiny_experiment(tiny_models["llama"], tiny_data)
    made = [study.run(experiment, experiments.method(name), outputs=tmp_path) for name in ("full", "lora-balanced")]
    assert command.main(["forgetting", str(tmp_path / "out"), *(str(run.folder) for run in made)]) == 0
    table = pd.read_csv(tmp_path / "out" / "forgetting.csv")
    assert list(table["passage"]) == [0, 1] * 3
    assert list(pd.read_csv(tmp_path / "out" / "intruders.csv")["run"]) == ["full", "lora-balanced"]
    assert list(table["run"]) == ["zero-shot"] * 2 + ["full"] * 2 + ["lora-balanced"] * 2
    assert (table.loc[table["run"] == "zero-shot", "agreement"] == 1).all()
    assert table.loc[table["run"] == "full", "divergence"].min() > 0
    with pytest.raises(ConfigurationError, match="does not continue texts"):
        t5 = models.load_model(tiny_experiment(tiny_models["t5"], tiny_data))
        forgetting.measure(t5, t5, TEXTS)


@pytest.mark.parametrize("experiment", ["quickstart", "smollm2-dialogsum"])
def test_the_table_says_what_the_record_holds(experiment):
    table, rows = forgetting.table(experiment), forgetting.load(experiment)
    assert list(table.index) == ["zero-shot", "full", "lora-balanced"]
    losses = {name: rows.loc[rows["run"] == name, "loss"].mean() for name in table.index}
    for name in table.index:
        assert table.loc[name, "loss"].startswith(f"{losses[name]:.3f} [")
        assert float(table.loc[name, "forgotten"].split()[0]) == pytest.approx(
            losses[name] - losses["zero-shot"], abs=1e-3
        )
    assert table.loc["zero-shot", "agreement"] == "1.000 [1.000, 1.000]"
