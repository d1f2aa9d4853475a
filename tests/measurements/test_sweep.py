"""Sweeps: rows as they are made, what is done is skipped, and a trial is the run that `study` makes."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
from helpers import tiny_experiment, write_jsonl

from dialogue_summarization import data, disk, experiments, models, runs, study
from dialogue_summarization.errors import ConfigurationError, RecordError
from dialogue_summarization.experiments import method
from dialogue_summarization.methods.table import FURTHER_METHODS
from measurements.sweep import records, run, trials
from measurements.sweep.trials import SearchSpace, Trial

RATES = (2e-3, 5e-2)


def some_trials(name, epochs=4.0, seed=0):
    return [Trial(method(name), rate, epochs, 0.5, seed) for rate in RATES]


@pytest.fixture(scope="module")
def experiment(tiny_models, tiny_data):
    return tiny_experiment(tiny_models["llama"], tiny_data)


@pytest.fixture(scope="module")
def common(experiment, tiny_data):
    """The experiment and its splits, as a sweep loads them."""
    return run.load(experiment, str(tiny_data))


@pytest.fixture(scope="module")
def swept(common, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    space = SearchSpace("tiny", (*some_trials("full"), *some_trials("lora-balanced")), tested=True)
    assert run.run(space, common, folder) == []
    return folder, space


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_sweep_writes_a_row_per_trial(swept, common):
    folder, _ = swept
    table = records.read(folder / "tiny.csv")
    assert list(table["method"]) == ["full", "full", "lora-balanced", "lora-balanced"]
    assert list(table["learning_rate"]) == [*RATES, *RATES]
    assert (table["steps"] == 4 * 2).all() and (table["train_dialogues"] == 8).all()
    assert (table["validation_dialogues"] == len(common.splits["validation"])).all()
    assert table["rank"].fillna(0).tolist() == [0, 0, 16, 16] and table["targets"].dropna().unique() == ["attention"]
    assert (table["adapter_bytes"].notna() == (table["method"] == "lora-balanced")).all()
    assert (table["trainable_parameters"] == table["parameters"]).tolist() == [True, True, False, False]
    assert table["eval_loss"][1] < table["eval_loss"][0]
    assert not list(folder.rglob("*.safetensors"))


def test_what_is_done_is_skipped(swept, common, monkeypatch):
    folder, space = swept
    before = files(folder)
    monkeypatch.setattr(study, "make_trainer", None)
    assert run.run(space, common, folder) == []
    assert files(folder) == before


@pytest.mark.parametrize("name", ["full", "lora-balanced"])
def test_the_best_trial_generates_what_the_study_would(swept, common, experiment, tmp_path, name):
    folder, _ = swept
    table = records.read(folder / "tiny.csv")
    table = table[table["method"] == name]
    best = table.loc[table[["rouge1", "rouge2", "rougeL"]].mean(axis=1).idxmax()]
    tested = runs.read(folder / "tiny" / name / "share-0.5" / "seed-0")
    assert tested.config.key == best["key"] and tested.weights is None
    own = tmp_path / "data"
    own.mkdir()
    rows = {split: list(part) for split, part in data.load(experiment).items()}
    train = [row["id"] for row in run.sample(common.splits, 0.5, 0)["train"]]
    for split, several in rows.items():
        kept = [row for row in several if split != "train" or row["id"] in train]
        write_jsonl(own / f"{split}.jsonl", [{**row, "summary": row["summaries"]} for row in kept])
    settings = replace(
        experiment.settings_for(method(name)),
        learning_rate=best["learning_rate"],
        epochs=4,
        averaged_epochs=1,
        label_smoothing=0.1,
    )
    plain = study.run(
        replace(experiment, dataset=str(own), settings={name: settings}), method(name), outputs=tmp_path / "outputs"
    )
    assert plain.predictions["prediction"].tolist() == tested.predictions["prediction"].tolist()
    assert {key: plain.metrics[key] for key in ("rouge1", "rougeL")} == {
        key: tested.metrics[key] for key in ("rouge1", "rougeL")
    }
    ours, theirs = (one.log["loss"].dropna().tolist() for one in (plain, tested))
    assert ours == pytest.approx(theirs, abs=1e-4)  # the same weights


def test_an_interrupted_sweep_goes_on_and_gives_the_same(swept, common, tmp_path, monkeypatch):
    folder, _ = swept
    space = SearchSpace("tiny", tuple(some_trials("lora-balanced")), tested=True)
    append, made = records.append, []

    def interrupted(path, row):
        append(path, row)
        made.append(row)
        if len(made) == 2:  # both rates are done, the test is not
            raise KeyboardInterrupt

    monkeypatch.setattr(records, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run(space, common, tmp_path)
    assert len(records.read(tmp_path / "tiny.csv")) == 2
    run.run(space, common, tmp_path)
    assert len(made) == 2 and len(records.read(tmp_path / "tiny.csv")) == 2
    place = "tiny/lora-balanced/share-0.5/seed-0/predictions.csv"
    assert (tmp_path / place).read_bytes() == (folder / place).read_bytes()


def test_a_rate_at_which_training_diverges_is_a_row(common, tmp_path):
    space = SearchSpace("wild", (Trial(method("full"), 1e30, 2, 0.5), Trial(method("full"), 1e-3, 1, 0.5)), tested=True)
    run.run(space, common, tmp_path)
    table = records.read(tmp_path / "wild.csv")
    assert table["diverged"].tolist() == [1, 0] and table["rouge1"].isna().tolist() == [True, False]
    assert runs.read(tmp_path / "wild/full/share-0.5/seed-0").config.settings["learning_rate"] == 1e-3


def test_a_method_that_cannot_be_trained_here_is_named_and_the_others_are_made(common, tmp_path):
    deep = Trial(method("last-4-blocks"), 1e-3, 1, 0.5)
    space = SearchSpace("some", (deep, Trial(method("full"), 1e-3, 1, 0.5)), tested=False)
    [line] = run.run(space, common, tmp_path)
    assert "last-4-blocks" in line and "deeper model" in line
    assert records.read(tmp_path / "some.csv")["method"].tolist() == ["full"]
    assert not (tmp_path / "some").exists()


def test_parts_share_the_methods_and_one_file(swept, common, tmp_path):
    _, space = swept
    small = SearchSpace("tiny", tuple(replace(trial, epochs=1) for trial in space.trials), tested=False)
    for number in (2, 1):
        run.run(small, common, tmp_path, part=(number, 2))
    assert records.read(tmp_path / "tiny.csv")["method"].tolist() == ["lora-balanced"] * 2 + ["full"] * 2


def test_samples_of_a_seed_lie_within_one_another(common):
    splits = common.splits
    whole = list(splits["train"]["id"])
    small, large, other, every = (
        list(run.sample(splits, fraction, seed)["train"]["id"])
        for fraction, seed in ((0.25, 0), (0.5, 0), (0.5, 1), (1.0, 1))
    )
    assert set(small) < set(large) and large != other and every == whole
    assert large == sorted(large, key=whole.index) and (len(small), len(large)) == (4, 8)


def test_damaged_and_foreign_files_are_named(swept, common, tmp_path):
    folder, space = swept
    good = (folder / "tiny.csv").read_text("utf-8")
    *first, last = good.splitlines()
    path = tmp_path / "tiny.csv"
    cases = {
        "damaged|columns": '"a\0',
        "no file of this sweep": "id,prediction\n1,2\n",
        "damaged.*half": good.replace("0.5,", "half,", 1),
        "is not filled in": "\n".join([*first, ",".join(last.split(",")[:5])]) + "\n",
        "there twice": good + last + "\n",
    }
    for message, text in cases.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RecordError, match=message) as raised:
            run.run(space, common, tmp_path)
        assert str(path) in str(raised.value)
    path.write_text(good, encoding="utf-8")
    with pytest.raises(RecordError, match="2 trials of another sweep"):
        run.run(SearchSpace("tiny", tuple(some_trials("full")), tested=False), common, tmp_path)


def test_the_spaces_are_what_they_say(tmp_path):
    chosen = experiments.experiment("smollm2-dialogsum")
    grid = trials.search_space("grid", chosen, 12_460, tmp_path)
    plain = [trial.lora_columns for trial in grid.trials if trial.lora_columns.get("alpha") == 32]
    assert len(plain) == 5 * (2 * 3 + 2 * 4) and len(grid.trials) == 70 + 8 + 5
    assert len({(one["rank"], one["targets"]) for one in plain}) == 20
    tried = trials.search_space("methods", chosen, 12_460, tmp_path).trials
    rates = {name: [one.learning_rate for one in tried if one.method.name == name] for name in trials.COMPARED}
    assert all(len(several) == 3 and several[2] == pytest.approx(9 * several[0]) for several in rates.values())
    assert rates["lora-balanced"][1] == 2e-3 and rates["full"][1] == 1e-4 and rates["ia3"][1] == pytest.approx(1e-2)
    trained = {name for name, one in {**experiments.METHODS, **FURTHER_METHODS}.items() if one.is_trained}
    assert trained - set(rates) == {"lora-efficient", "lora-high-performance"} and set(rates) <= trained
    for trial in trials.search_space("data", chosen, 12_460, tmp_path).trials:
        assert trial.epochs >= 3 and trial.epochs * -(-round(trial.train_fraction * 12_460) // 32) >= 100
        settings = trial.experiment(chosen).settings_for(trial.method)
        assert (settings.averaged_epochs, settings.label_smoothing, settings.select_by) == (0, 0.1, "loss")


def test_claims_compare_what_is_alike(tmp_path):
    chosen = experiments.experiment("smollm2-dialogsum")
    space = trials.search_space("claims", chosen, 12_460, tmp_path)
    assert not space.tested
    own = {trial.method.name: trial for trial in space.trials}
    model = models.load_model(chosen).model
    sizes = {
        name: models.count_parameters(models.apply_method(copy.deepcopy(model), own[name].method))
        for name in ("lora-r33-attention", "lora-r20-mlp")
    }
    assert {size["trainable_parameters"] for size in sizes.values()} == {3_801_600}
    rslora, plain = own["lora-r64-all-linear-rslora"].method.peft, trials.grid_lora(64, "all linear").peft
    assert {**plain, "use_rslora": True} == rslora
    for name, trial in own.items():
        size = int(name.rpartition("-")[2]) if "-batch-" in name else 32
        assert trial.experiment(chosen).settings_for(trial.method).batch_size == size
    assert {name for name in own if "-batch-" in name} == {
        f"{name}-batch-{size}" for name in ("full", "lora-r16-all-linear") for size in (8, 128)
    }
    for name in ("grid", "claims"):
        tried = trials.search_space(name, chosen, 12_460, tmp_path)
        disk.write_csv(tmp_path / f"{name}.csv", table_of(tried, lambda trial: abs(trial.learning_rate - 2e-3)))
    again = trials.search_space("claims-repeats", chosen, 12_460, tmp_path).trials
    assert sorted((one.method.name, one.seed) for one in again) == sorted(
        (name, seed) for name in {*own, "lora-r64-all-linear"} for seed in (1, 2)
    )
    assert {one.learning_rate for one in again if one.method.peft} == {2e-3}
    assert {one.batch_size for one in again if "-batch-" in one.method.name} == {8, 128}


def table_of(space, value):
    """Rows as a sweep would write them; `value` gives a trial's validation loss, and ROUGE as a tenth less of it."""
    rows = []
    for number, trial in enumerate(space.trials):
        loss = value(trial)
        row = dict.fromkeys(records.COLUMNS, 1.0) | dict.fromkeys(records.TEXTS, "x") | trial.lora_columns
        row |= {"key": f"{number:x}", "method": trial.method.name, "learning_rate": trial.learning_rate}
        row |= {"share": trial.train_fraction, "seed": trial.seed, "diverged": 0, "eval_loss": loss}
        row |= {name: 1 - loss / 10 for name in ("rouge1", "rouge2", "rougeL")}
        rows.append(row if trial.lora_columns else row | {"rank": None, "alpha": None, "targets": None})
    return pd.DataFrame(rows, columns=records.COLUMNS)


def test_repeats_are_of_the_best_trials(tmp_path):
    chosen = experiments.experiment("smollm2-dialogsum")
    with pytest.raises(ConfigurationError, match=r"grid\.csv.*make the search space grid first"):
        trials.search_space("grid-repeats", chosen, 12_460, tmp_path)
    grid = trials.search_space("grid", chosen, 12_460, tmp_path)
    disk.write_csv(tmp_path / "grid.csv", table_of(grid, lambda trial: abs(trial.learning_rate - 3e-3)))
    again = trials.search_space("grid-repeats", chosen, 12_460, tmp_path).trials
    assert {trial.seed for trial in again} == {1, 2}
    assert sorted({trial.learning_rate for trial in again if not trial.lora_columns}) == [3e-4, 1e-3, 3e-3]
    assert {trial.learning_rate for trial in again if trial.lora_columns.get("targets") == "MLP"} == {2e-3}
    methods = trials.search_space("methods", chosen, 12_460, tmp_path)
    disk.write_csv(tmp_path / "methods.csv", table_of(methods, lambda trial: 2 + trial.learning_rate))
    again = trials.search_space("methods-repeats", chosen, 12_460, tmp_path).trials
    assert [trial.method.name for trial in again] == [
        name for name in ("full", "lora-balanced", "lora-all-linear", *trials.VARIANTS) for _ in range(2)
    ]
    first = {trial.method.name: trial.learning_rate for trial in reversed(methods.trials)}
    assert all(trial.learning_rate == first[trial.method.name] for trial in again)
