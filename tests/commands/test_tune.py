"""`study tune`: each rate is the run that `--set` makes, scored on validation; what is said of the best one."""

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from helpers import tiny_experiment

from dialogue_summarization import data, experiments, generation, runs, study
from dialogue_summarization.commands import cli, tune
from dialogue_summarization.errors import TrainingDiverged
from dialogue_summarization.experiments import METHODS, Generation
from dialogue_summarization.rouge import score_dialogues


@pytest.fixture
def tiny(tiny_models, tiny_data, register):
    beams = Generation(max_new_tokens=12, num_beams=2)
    return register(tiny_experiment(tiny_models["llama"], tiny_data, generation=beams))


def command(folder, *more, rates="2e-2,1e-3"):
    return cli.main(["tune", "tiny", "lora-balanced", "--learning-rate", rates, "--outputs", str(folder), *more])


def test_rates_are_scored_on_validation_and_the_best_needs_no_second_training(tiny, tmp_path, monkeypatch, capsys):
    assert command(tmp_path) == 0
    said = capsys.readouterr().out
    assert "study tiny --runs lora-balanced" in said and "4 validation dialogues" in said
    table = pd.read_csv(tmp_path / "tiny" / "tune-lora-balanced.csv")
    assert list(table["learning rate"]) == [0.001, 0.02] and (table["over the best"] == "best").sum() == 1
    assert matplotlib.image.imread(tmp_path / "tiny" / "tune-lora-balanced.png").std() > 0

    monkeypatch.setattr(study, "make_trainer", None)  # from here on nothing is trained
    assert command(tmp_path) == 0 and capsys.readouterr().out.partition("Best on")[2] == said.partition("Best on")[2]
    changed = experiments.experiment("tiny", settings=["lora-balanced.learning_rate=0.001"])
    run = study.run(changed, METHODS["lora-balanced"], outputs=tmp_path)
    assert run.config.settings["learning_rate"] == 0.001 and not list(run.folder.glob("checkpoint*"))
    validation = data.load(tiny)["validation"]
    greedy = Generation(max_new_tokens=12)
    texts = generation.summarize(study.load_run(run), list(validation["dialogue"]), greedy, progress=False)
    own = score_dialogues(texts, validation["summaries"])
    kept = pd.read_csv(run.folder / "validation.csv")
    np.testing.assert_allclose(kept, own, atol=1e-6)
    assert table["ROUGE-1"][0].startswith(f"{own['rouge1'].mean():.3f} [")
    (run.folder / "validation.csv").unlink()
    assert command(tmp_path) == 0  # of a finished run too
    np.testing.assert_allclose(pd.read_csv(run.folder / "validation.csv"), own, atol=1e-6)


def test_a_rate_that_diverges_is_said_and_the_others_are_compared(tiny, tmp_path, monkeypatch, capsys):
    usual = tune.train_and_score

    def train_and_score(trainer, checkpoint=None):
        if trainer.settings.learning_rate > 0.01:
            raise TrainingDiverged("The loss is nan at step 3.")
        return usual(trainer, checkpoint)

    monkeypatch.setattr(tune, "train_and_score", train_and_score)
    assert command(tmp_path) == 0
    said = capsys.readouterr().out
    assert "nan at step 3" in said and ": 0.001." in said and "--set lora-balanced.learning_rate=0.001" in said
    assert command(tmp_path / "other", rates="0.1,0.2") == 1
    assert "diverged at every rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "zero-shot", "--learning-rate", "1e-3,1e-4"], "trains nothing"),
        (["tiny", "full", "--learning-rate", "1e-3"], "two rates or more"),
        (["tiny", "full", "--learning-rate", "1e-3,0.001"], "two rates or more"),
        (["tiny", "full", "--learning-rate", "1e-3,fast"], "learning_rate=fast: allowed is a number"),
        (["tiny", "fill", "--learning-rate", "1e-3,1e-4"], "no run 'fill'"),
        (["tony", "full", "--learning-rate", "1e-3,1e-4"], "no experiment 'tony'"),
        (["tiny", "full", "--learning-rate", "1e-3,1e-4", "--set", "full.learning_rate=1"], "given twice"),
    ],
)
def test_mistakes_are_said_before_any_work(tiny, arguments, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "load", None)
    assert cli.main(["tune", *arguments, "--outputs", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def scores(**means):
    """Tables of 40 dialogues whose scores spread by 0.1 around a mean, the same way for each rate."""
    spread = np.random.default_rng(0).normal(scale=0.1, size=40)
    noise = {rate: np.random.default_rng(int(rate)).permutation(np.linspace(-0.03, 0.03, 40)) for rate in means}
    return {
        float(rate) * 1e-4: pd.DataFrame({name: mean + spread + noise[rate] for name in tune.MEASURES})
        for rate, mean in means.items()
    }


@pytest.mark.parametrize(
    ("means", "best", "said", "unsaid"),
    [
        ({"1": 0.3, "2": 0.5, "4": 0.2}, 2e-4, "more than noise", "lie beyond"),
        ({"1": 0.3, "2": 0.5, "4": 0.501}, 4e-4, "Within noise of it: 0.0002.", "more than noise"),
        (
            {"1": 0.3, "2": 0.5, "4": 0.9},
            4e-4,
            "It is the highest that was tried: a better one may lie beyond.",
            "lowest",
        ),
        ({"1": 0.9, "2": 0.5}, 1e-4, "lowest that was tried: a better one may lie beyond. Try 5e-05", "noise of"),
    ],
)
def test_what_is_said_of_the_best(means, best, said, unsaid):
    rate, text = tune.verdict(made := scores(**means), sorted(made))
    assert rate == pytest.approx(best) and said in text and unsaid not in text


def test_few_dialogues_tell_nothing_apart():
    made = {rate: table.head(9) for rate, table in scores(**{"1": 0.1, "2": 0.9}).items()}
    assert "Within noise of it: 0.0001" in tune.verdict(made, sorted(made))[1]
    table = tune.results(scores(**{"1": 0.3, "2": 0.5}))
    assert table["over the best"].tolist()[1] == "best" and table["over the best"].iloc[0].startswith("-0.")


def test_an_interrupted_tuning_goes_on(tiny, tmp_path, monkeypatch):
    usual, calls = tune.train_and_score, []

    def train_and_score(trainer, checkpoint=None):
        calls.append(trainer.settings.learning_rate)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return usual(trainer, checkpoint)

    monkeypatch.setattr(tune, "train_and_score", train_and_score)
    assert command(tmp_path) == 130 and command(tmp_path) == 0
    assert calls == [0.001, 0.02, 0.02]
    assert not runs.collect("tiny", tmp_path)  # test was not touched
