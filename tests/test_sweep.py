"""Sweeps: rows as they are made, what is done is skipped, and a point is the run that `study` makes."""

from dataclasses import replace

import pandas as pd
import pytest
from conftest import tiny_experiment, write_jsonl

from dialogue_summarization import data, experiments, runs, study, sweep, sweep_points, sweep_records
from dialogue_summarization.experiments import ConfigurationError, method
from dialogue_summarization.sweep_points import Group, Point

RATES = (2e-3, 5e-2)


def points(name, epochs=4.0, seed=0):
    return [Point(method(name), rate, epochs, 0.5, seed) for rate in RATES]


@pytest.fixture(scope="module")
def experiment(tiny_models, tiny_data):
    return tiny_experiment(tiny_models["llama"], tiny_data)


@pytest.fixture(scope="module")
def shared(experiment, tiny_data):
    return sweep.material(experiment, str(tiny_data))


@pytest.fixture(scope="module")
def swept(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    group = Group("tiny", (*points("full"), *points("lora-balanced")), tested=True)
    assert sweep.run(group, shared, folder) == []
    return folder, group


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_sweep_writes_a_row_a_point(swept, shared):
    folder, _ = swept
    table = sweep_records.read(folder / "tiny.csv")
    assert list(table["method"]) == ["full", "full", "lora-balanced", "lora-balanced"]
    assert list(table["learning_rate"]) == [*RATES, *RATES]
    assert (table["steps"] == 4 * 2).all() and (table["train_dialogues"] == 8).all()
    assert (table["validation_dialogues"] == len(shared.splits["validation"])).all()
    assert table["rank"].fillna(0).tolist() == [0, 0, 16, 16] and table["targets"].dropna().unique() == ["attention"]
    assert (table["adapter_bytes"].notna() == (table["method"] == "lora-balanced")).all()
    assert (table["trainable_parameters"] == table["parameters"]).tolist() == [True, True, False, False]
    assert table["eval_loss"][1] < table["eval_loss"][0]
    assert not list(folder.rglob("*.safetensors"))


def test_what_is_done_is_skipped(swept, shared, monkeypatch):
    folder, group = swept
    before = files(folder)
    monkeypatch.setattr(study, "trainer_for", None)
    assert sweep.run(group, shared, folder) == []
    assert files(folder) == before


@pytest.mark.parametrize("name", ["full", "lora-balanced"])
def test_the_best_point_writes_what_the_study_would(swept, shared, experiment, tmp_path, name):
    folder, _ = swept
    table = sweep_records.read(folder / "tiny.csv")
    table = table[table["method"] == name]
    best = table.loc[table[["rouge1", "rouge2", "rougeL"]].mean(axis=1).idxmax()]
    tested = runs.read(folder / "tiny" / name / "share-0.5" / "seed-0")
    assert tested.config.key == best["key"] and tested.weights is None
    own = tmp_path / "data"
    own.mkdir()
    rows = {split: list(part) for split, part in data.load(experiment).items()}
    train = [row["id"] for row in shared.sample(0.5, 0)[0]["train"]]
    for split, several in rows.items():
        kept = [row for row in several if split != "train" or row["id"] in train]
        write_jsonl(own / f"{split}.jsonl", [{**row, "summary": row["summaries"]} for row in kept])
    settings = replace(
        experiment.settings_for(method(name)), learning_rate=best["learning_rate"], epochs=4, averaged_epochs=1,
        label_smoothing=0.1,
    )  # fmt: skip
    plain = study.run(
        replace(experiment, dataset=str(own), settings={name: settings}), method(name), outputs=tmp_path / "outputs"
    )
    assert plain.predictions["prediction"].tolist() == tested.predictions["prediction"].tolist()
    assert {key: plain.metrics[key] for key in ("rouge1", "rougeL")} == {
        key: tested.metrics[key] for key in ("rouge1", "rougeL")
    }
    pd.testing.assert_frame_equal(plain.likelihood, tested.likelihood)  # to four digits: the same weights


def test_an_interrupted_sweep_goes_on_and_gives_the_same(swept, shared, tmp_path, monkeypatch):
    folder, _ = swept
    group = Group("tiny", tuple(points("lora-balanced")), tested=True)
    append, made = sweep_records.append, []

    def interrupted(path, row):
        append(path, row)
        made.append(row)
        if len(made) == 2:  # both rates are done, the test is not
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep_records, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(group, shared, tmp_path)
    assert len(sweep_records.read(tmp_path / "tiny.csv")) == 2
    sweep.run(group, shared, tmp_path)
    assert len(made) == 2 and len(sweep_records.read(tmp_path / "tiny.csv")) == 2
    place = "tiny/lora-balanced/share-0.5/seed-0/predictions.csv"
    assert (tmp_path / place).read_bytes() == (folder / place).read_bytes()


def test_a_rate_at_which_training_diverges_is_a_row(shared, tmp_path):
    group = Group("wild", (Point(method("full"), 1e30, 2, 0.5), Point(method("full"), 1e-3, 1, 0.5)), tested=True)
    sweep.run(group, shared, tmp_path)
    table = sweep_records.read(tmp_path / "wild.csv")
    assert table["diverged"].tolist() == [1, 0] and table["rouge1"].isna().tolist() == [True, False]
    assert runs.read(tmp_path / "wild/full/share-0.5/seed-0").config.settings["learning_rate"] == 1e-3


def test_a_method_that_cannot_be_trained_here_is_named_and_the_others_are_made(shared, tmp_path):
    deep = Point(method("last-4-blocks"), 1e-3, 1, 0.5)
    group = Group("some", (deep, Point(method("full"), 1e-3, 1, 0.5)), tested=False)
    [line] = sweep.run(group, shared, tmp_path)
    assert "last-4-blocks" in line and "deeper model" in line
    assert sweep_records.read(tmp_path / "some.csv")["method"].tolist() == ["full"]
    assert not (tmp_path / "some").exists()


def test_parts_share_the_methods_and_one_file(swept, shared, tmp_path):
    _, group = swept
    small = Group("tiny", tuple(replace(point, epochs=1) for point in group.points), tested=False)
    for number in (2, 1):
        sweep.run(small, shared, tmp_path, part=(number, 2))
    assert sweep_records.read(tmp_path / "tiny.csv")["method"].tolist() == ["lora-balanced"] * 2 + ["full"] * 2


def test_samples_of_a_seed_lie_within_one_another(shared):
    whole = list(shared.splits["train"]["id"])
    small, large, other, every = (
        list(shared.sample(share, seed)[0]["train"]["id"]) for share, seed in ((0.25, 0), (0.5, 0), (0.5, 1), (1.0, 1))
    )
    assert set(small) < set(large) and large != other and every == whole
    assert large == sorted(large, key=whole.index) and (len(small), len(large)) == (4, 8)


def test_damaged_and_foreign_files_are_named(swept, shared, tmp_path):
    folder, group = swept
    good = (folder / "tiny.csv").read_text("utf-8")
    *first, last = good.splitlines()
    path = tmp_path / "tiny.csv"
    cases = {
        "cannot be read|columns": '"a\0',
        "no file of this sweep": "id,prediction\n1,2\n",
        "damaged .*half": good.replace("0.5,", "half,", 1),
        "is not filled in": "\n".join([*first, ",".join(last.split(",")[:5])]) + "\n",
        "there twice": good + last + "\n",
    }
    for message, text in cases.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(runs.RecordError, match=message) as raised:
            sweep.run(group, shared, tmp_path)
        assert str(path) in str(raised.value)
    path.write_text(good, encoding="utf-8")
    with pytest.raises(runs.RecordError, match="2 points of another sweep"):
        sweep.run(Group("tiny", tuple(points("full")), tested=False), shared, tmp_path)


def test_the_groups_are_what_they_say(tmp_path):
    chosen = experiments.experiment("smollm2-dialogsum")
    grid = sweep_points.group("grid", chosen, 12_460, tmp_path)
    plain = [point.lora for point in grid.points if point.lora.get("alpha") == 32]
    assert len(plain) == 5 * (2 * 3 + 2 * 4) and len(grid.points) == 70 + 6 + 5
    assert len({(one["rank"], one["targets"]) for one in plain}) == 20
    rates = {name: [point.learning_rate for point in sweep_points.group("methods", chosen, 12_460, tmp_path).points
                    if point.method.name == name] for name in sweep_points.COMPARED}  # fmt: skip
    assert all(len(several) == 3 and several[2] == pytest.approx(9 * several[0]) for several in rates.values())
    assert rates["lora-balanced"][1] == 2e-3 and rates["full"][1] == 1e-4 and rates["ia3"][1] == pytest.approx(1e-2)
    trained = {name for name, one in experiments.METHODS.items() if one.trains}
    assert trained - set(rates) == {"lora-efficient", "lora-high-performance"} and set(rates) <= trained
    for point in sweep_points.group("data", chosen, 12_460, tmp_path).points:
        assert point.epochs >= 3 and point.epochs * -(-round(point.share * 12_460) // 32) >= 100
        settings = point.experiment(chosen).settings_for(point.method)
        assert (settings.averaged_epochs, settings.label_smoothing, settings.select_by) == (0, 0.1, "loss")


def table_of(group, value):
    """Rows as a sweep would write them; `value` gives a point's validation loss, and ROUGE as a tenth less of it."""
    rows = []
    for number, point in enumerate(group.points):
        loss = value(point)
        row = dict.fromkeys(sweep_records.COLUMNS, 1.0) | dict.fromkeys(sweep_records.TEXTS, "x") | point.lora
        row |= {"key": f"{number:x}", "method": point.method.name, "learning_rate": point.learning_rate}
        row |= {"share": point.share, "seed": point.seed, "diverged": 0, "eval_loss": loss}
        row |= {name: 1 - loss / 10 for name in ("rouge1", "rouge2", "rougeL")}
        rows.append(row if point.lora else row | {"rank": None, "alpha": None, "targets": None})
    return pd.DataFrame(rows, columns=sweep_records.COLUMNS)


def test_repeats_are_of_the_best_points(tmp_path):
    chosen = experiments.experiment("smollm2-dialogsum")
    with pytest.raises(ConfigurationError, match=r"grid\.csv.*make the group grid first"):
        sweep_points.group("grid-repeats", chosen, 12_460, tmp_path)
    grid = sweep_points.group("grid", chosen, 12_460, tmp_path)
    runs.write_csv(tmp_path / "grid.csv", table_of(grid, lambda point: abs(point.learning_rate - 3e-3)))
    again = sweep_points.group("grid-repeats", chosen, 12_460, tmp_path).points
    assert {point.seed for point in again} == {1, 2}
    assert sorted({point.learning_rate for point in again if not point.lora}) == [3e-4, 1e-3, 3e-3]
    assert {point.learning_rate for point in again if point.lora.get("targets") == "MLP"} == {2e-3}
    methods = sweep_points.group("methods", chosen, 12_460, tmp_path)
    runs.write_csv(tmp_path / "methods.csv", table_of(
        methods, lambda point: 2 + point.learning_rate))  # fmt: skip
    again = sweep_points.group("methods-repeats", chosen, 12_460, tmp_path).points
    assert [point.method.name for point in again] == [
        name for name in ("full", "lora-balanced", "lora-all-linear", *sweep_points.VARIANTS) for _ in range(2)
    ]
    first = {point.method.name: point.learning_rate for point in reversed(methods.points)}
    assert all(point.learning_rate == first[point.method.name] for point in again)
