"""What notebooks teach: the standard form learns what our trainer learns, tests by hand are ours, answers are true."""

import json
import re
import shutil

import nbformat
import pytest
import torch
from helpers import run_cells, trainer_of
from rouge_score import rouge_scorer

from dialogue_summarization import data, experiments, runs
from dialogue_summarization.evaluation import statistics
from dialogue_summarization.training import encode_split

REFERENCE = runs.OUTPUTS / "reference"


@pytest.fixture(scope="module", params=["llama", "t5"])
def asked(request, tiny_models, tiny_data):
    return {"MODEL": str(tiny_models[request.param]), "DATASET": str(tiny_data)}


def of_ours(asked, method, folder):
    """Our trainer of a method, and a batch of the first four training dialogues."""
    experiment = experiments.experiment("quickstart", model=asked["MODEL"], dataset=asked["DATASET"])
    method = experiments.method(method)
    trainer = trainer_of(experiment, experiment.settings_for(method), folder, method)
    rows = encode_split(data.load(experiment)["train"].take(4), trainer.bundle.family)
    return trainer, trainer.bundle.family.collate(list(rows))


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def test_the_standard_form_learns_what_our_trainer_learns(asked, tmp_path):
    names = run_cells("02_full_fine_tuning", "batch = collator(pairs)", **asked)
    theirs = names["model"].train()(**names["batch"]).loss
    theirs.backward()
    trainer, batch = of_ours(asked, "full", tmp_path)
    ours = trainer.compute_loss(trainer.model.train(), batch)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    expected = gradients(names["model"])
    assert expected.keys() == gradients(trainer.model).keys() and len(expected) > 10
    for name, gradient in gradients(trainer.model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_the_adapter_in_the_open_is_our_preset(asked, tmp_path):
    names = run_cells("03_lora", "model = get_peft_model", **asked)
    trainer, batch = of_ours(asked, "lora-balanced", tmp_path)
    for model in (names["model"], trainer.model):
        trainer.compute_loss(model.train(), dict(batch)).backward()
    ours, theirs = gradients(trainer.model), gradients(names["model"])
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_tests_by_hand_are_those_of_the_tables(tmp_path):
    for name in ("zero-shot", "full", "lora-balanced"):  # one seed each
        shutil.copytree(REFERENCE / "quickstart" / name / "seed-0", tmp_path / "quickstart" / name / "seed-0")
    names = run_cells("04_evaluation", "as_large.sum()", OUTPUTS=str(tmp_path))
    first, second = (names[name].scores("rougeL") for name in ("first", "second"))
    expected = statistics.compare(first, second)
    assert names["gap"].mean() == pytest.approx(expected.mean)
    assert [names["low"], names["high"]] == pytest.approx([expected.low, expected.high], abs=2e-3)
    assert names["p"] == pytest.approx(expected.p, abs=0.02)
    scores = names["scores"]
    assert scores["speakers swapped"]["rouge1"] > 0.9 * scores["references"]["rouge1"]  # ROUGE hardly sees it


def exercises(name):
    """The text of a notebook's exercises."""
    cells = nbformat.read(data.ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    return next(cell.source for cell in cells if cell.source.startswith("## Exercises"))


@pytest.mark.parametrize("path", sorted((data.ROOT / "notebooks").glob("0[1-6]_*.ipynb")), ids=lambda path: path.stem)
def test_two_exercises_have_answers_and_one_is_to_hand_in(path):
    parts = re.split(r"\n\*\*\d\.\*\* ", exercises(path.stem))[1:]
    assert ["<details>" in part for part in parts] == [True, True, False] and parts[2].startswith("*To hand in.*")


def test_answers_01():
    text = exercises("01_zero_shot")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2"], use_stemmer=True)
    scores = scorer.score("Ann returns the coat and gets money back", "The money returns Ann and gets coat back")
    assert scores["rouge1"].fmeasure == 1 and f"1 / 7 = {scores['rouge2'].fmeasure:.3f}" in text
    places = [f"smollm2-dialogsum/{place}" for place in ("earlier/zero-shot", "zero-shot")]
    earlier, now = (metrics(place, "config")["generation"] for place in places)
    assert (earlier["max_new_tokens"], now["max_new_tokens"]) == (80, 50)
    assert (earlier["length_penalty"], now["length_penalty"]) == (0.6, 1)
    before, after = (round(metrics(place)["rougeL"], 3) for place in places)
    assert f"{after:.3f} ROUGE-L" in text and f"it scored {before:.3f}" in text
    assert f"worth {after - before:.3f} ROUGE-L" in text


def metrics(run, name="metrics"):
    return json.loads((REFERENCE / run / "seed-0" / f"{name}.json").read_text("utf-8"))


def test_answers_02():
    text = exercises("02_full_fine_tuning")
    log = runs.read(REFERENCE / "quickstart" / "full" / "seed-0").log
    assert log["step"].max() == 32 and log.loc[log["learning_rate"].idxmax(), "step"] == 5 and "at step 5" in text
    losses = runs.read(REFERENCE / "smollm2-dialogsum" / "full" / "seed-0").log.dropna(subset="eval_loss")["eval_loss"]
    assert losses.tolist().index(losses.min()) == 1 and f"{losses.min():.3f}, against {losses.iloc[5]:.3f}" in text


def test_answers_03():
    text = exercises("03_lora")
    high, balanced, efficient = (
        metrics(f"smollm2-dialogsum/lora-{name}") for name in ("high-performance", "balanced", "efficient")
    )
    assert f"{high['trainable_parameters']:,} parameters, and {high['adapter_bytes'] / 1e6:.1f} MB" in text
    for run in (efficient, balanced):
        assert f"{run['train_samples_per_second']:,.0f}" in text and f"{run['train_seconds']:.0f} s" in text
