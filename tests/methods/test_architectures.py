"""Each architecture runs from training to scores."""

import pytest
from helpers import ARCHITECTURES, fit, save_tiny, tiny_experiment

from dialogue_summarization import data, models, study
from dialogue_summarization.experiments import METHODS, method
from dialogue_summarization.generation import summarize
from dialogue_summarization.rouge import score_dialogues
from dialogue_summarization.training import encode_split


@pytest.fixture
def made(architecture, tmp_path, tiny_data):
    """A tiny model of an architecture, in an experiment."""
    return tiny_experiment(save_tiny(architecture, tmp_path / "base"), tiny_data)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_makes_a_whole_run(made, tmp_path):
    run = study.run(made, METHODS["full"], outputs=tmp_path)
    losses = run.log["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0] and 0 <= run.metrics["rougeL"] <= 1
    assert len(run.predictions) == 5 and run.weights.name == "model"


@pytest.mark.parametrize("name", ["lora-all-linear", "prefix-tuning", "last-2-blocks"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_trains_saves_reloads_writes_and_scores(made, name, tmp_path):
    splits, bundle, chosen = data.load(made), models.load_model(made), method(name)
    rows = encode_split(splits["train"], bundle.family)
    bundle, losses = fit(bundle, chosen, rows, made.settings_for(chosen))
    # A prefix hardly steers a random model in 8 steps.
    assert losses[-1] < losses[0] or name == "prefix-tuning"
    dialogues, references = splits["test"]["dialogue"], splits["test"]["summaries"]
    texts = summarize(bundle, dialogues, made.generation, progress=False)
    models.save(bundle, tmp_path / "saved", made.model)
    assert (tmp_path / "saved" / "adapter_config.json").exists() == bool(chosen.peft)
    reloaded = models.load_model(made, tmp_path / "saved")
    assert summarize(reloaded, dialogues, made.generation, progress=False) == texts and len(texts) == 5
    assert 0 <= score_dialogues(texts, references)["rougeL"].mean() <= 1
