"""What a sweep's records are made to say: on hand-made records whose answers are known."""

import json
from dataclasses import replace

import forked
import numpy as np
import pandas as pd
import papermill
import pytest

from dialogue_summarization import data, disk, experiments, runs
from dialogue_summarization.errors import RecordError
from dialogue_summarization.rouge import TYPES
from measurements.sweep import records, report
from measurements.sweep.report import (
    AT_END,
    ATTENTION_BEHIND,
    BATCH_GROWS,
    MEETS_FULL,
    RSLORA_BETTER,
    SAME_RATE,
    TEN_TIMES,
    VARIANTS_NEAR,
)
from measurements.sweep.trials import EIGHTH, GRID_FULL_RATES, GRID_RATES, Trial, grid_lora, search_space

CHOSEN = experiments.experiment("smollm2-dialogsum")
FULL = experiments.method("full")


def row(trial, loss, number):
    """A trial's row with that validation loss, and ROUGE falling with it."""
    weights = {"attention": 115_200, "MLP": 190_080, "all linear": 305_280, "query and value": 57_600}
    cells = dict.fromkeys(records.COLUMNS, 1.0) | dict.fromkeys(records.TEXTS, "x")
    cells |= {"rank": None, "alpha": None, "targets": None, "trainable_parameters": 1e8, "parameters": 1e8}
    cells |= trial.lora_columns
    if trial.lora_columns:
        cells["trainable_parameters"] = cells["rank"] * weights[cells["targets"]]
    cells |= {"key": f"{number:x}", "method": trial.method.name, "learning_rate": trial.learning_rate, "seconds": 30}
    cells |= {"share": trial.train_fraction, "seed": trial.seed, "diverged": 0, "eval_loss": loss}
    return cells | {"train_tokens": 45_000} | {name: 0.5 - loss / 20 for name in ("rouge1", "rouge2", "rougeL")}


def bowl(trial, at, bottom, noise=0.0):
    """Loss over the rate: a parabola over its logarithm, so that the lowest point is known."""
    return bottom + 0.3 * np.log10(trial.learning_rate / at) ** 2 + noise * trial.seed


def grid(folder, best, seeds=(0, 1, 2), full=(2e-4, 1.5)):
    """Records of a grid: `best` gives a LoRA trial's best rate and the loss there."""
    trials = list(search_space("grid", CHOSEN, 12_460, folder).trials)
    repeats = [
        Trial(method, rate, 2, EIGHTH, seed)
        for method, rates in (
            (FULL, GRID_FULL_RATES),
            (grid_lora(1, "all linear"), GRID_RATES),
            (grid_lora(128, "all linear"), GRID_RATES),
            (grid_lora(16, "attention"), GRID_RATES[1:2]),
            (grid_lora(16, "MLP"), GRID_RATES[1:2]),
        )
        for rate in rates
        for seed in seeds
        if seed
    ]
    for name, several in (("grid", trials), ("grid-repeats", repeats)):
        rows = [
            row(trial, bowl(trial, *(best(trial) if trial.lora_columns else full), 0.001), number)
            for number, trial in enumerate(several)
        ]
        disk.write_csv(folder / f"{name}.csv", pd.DataFrame(rows, columns=records.COLUMNS))
    return report.load(folder, "grid")


def test_claims_that_hold_are_confirmed(tmp_path):
    def best(trial):
        falls_short = 0.1 if trial.lora_columns["targets"] in ("attention", "query and value") else 0.0
        return 2e-3 * (1.2 if trial.lora_columns["rank"] == 1 else 1), 1.5 + falls_short

    table = report.claims(grid(tmp_path, best))
    first, last = table.loc[TEN_TIMES].to_dict("records")
    assert first["compared"] == (
        "rank 1, all linear (305,280 parameters, rate 0.002); full (45,000 summary tokens, rate 0.0003)"
    )
    assert (first["effect"], first["95 % interval"], first["verdict"]) == ("12", "12 to 12", "holds")
    assert last["compared"].startswith("rank 128") and (last["effect"], last["verdict"]) == ("10", "holds")
    fixed, doubled = table.loc[SAME_RATE].to_dict("records")
    assert fixed["compared"].startswith("rank 128") and "; rank 1, " in fixed["compared"]
    assert (fixed["effect"], fixed["verdict"]) == ("0.83", "holds")
    assert "rank 128, all linear, alpha 256" in doubled["compared"] and doubled["95 % interval"] == "one seed"
    assert doubled["verdict"].startswith("cannot tell")
    [attention] = table.loc[[ATTENTION_BEHIND]].to_dict("records")
    assert "(1,843,200 parameters, " in attention["compared"] and "MLP (3,041,280 parameters, " in attention["compared"]
    assert (attention["effect"], attention["verdict"]) == ("0.1", "holds")
    assert table.loc[MEETS_FULL, "verdict"].tolist() == ["holds", "holds"]


def test_claims_that_do_not_hold_are_refuted(tmp_path):
    def best(trial):
        worse = 0.2 if trial.lora_columns["rank"] == 1 else 0.0
        better = 0.05 * (trial.lora_columns["targets"] == "attention")
        return (5.5e-4 if trial.lora_columns["rank"] == 128 else 2.4e-3), 1.5 + worse - better

    records_of_grid = grid(tmp_path, best, full=(1.2e-3, 1.5))
    table = report.claims(records_of_grid)
    first, last = table.loc[TEN_TIMES].to_dict("records")
    assert (first["effect"], first["verdict"]) == ("2", "does not hold")
    assert last["verdict"] == AT_END  # 5e-4 is the lowest rate
    assert table.loc[SAME_RATE, "verdict"].iloc[0] == AT_END
    assert table.loc[ATTENTION_BEHIND, "verdict"] == "does not hold"
    assert table.loc[MEETS_FULL, "verdict"].iloc[0] == "does not hold"
    change = (records_of_grid["rank"] == 1) * (0.004 * records_of_grid["seed"] - 0.19)
    shifted = report.claims(records_of_grid.assign(eval_loss=records_of_grid["eval_loss"] + change))
    first = shifted.loc[MEETS_FULL].iloc[0]
    assert first["verdict"] == "cannot tell" and not first["95 % interval"].startswith("-")
    attention, rising = records_of_grid["targets"] == "attention", records_of_grid.copy()
    rising.loc[attention, "eval_loss"] += 0.3
    rising.loc[attention & (rising["learning_rate"] > max(GRID_RATES)), "eval_loss"] = 1.74
    assert report.claims(rising).loc[ATTENTION_BEHIND, "verdict"] == AT_END


def further(folder, value):
    """Records of `claims` and its repeats: `value` gives the loss of a method and seed at its best rate, the second."""
    trials = list(search_space("claims", CHOSEN, 12_460, folder).trials)
    rates = {name: [one.learning_rate for one in trials if one.method.name == name][:3] for name in names(trials)}
    again = [
        replace(one, seed=seed) for one in trials for seed in (1, 2) if one.learning_rate == rates[name_of(one)][1]
    ]
    again += [Trial(grid_lora(64, "all linear"), 2e-3, 2, EIGHTH, seed) for seed in (1, 2)]
    for name, several in (("claims", trials), ("claims-repeats", again)):
        rows = []
        for number, trial in enumerate(several):
            at = rates.get(name_of(trial), [0, 2e-3])[1]
            rows.append(row(trial, bowl(trial, at, value(name_of(trial), trial.seed)), number))
        disk.write_csv(folder / f"{name}.csv", pd.DataFrame(rows, columns=records.COLUMNS))
    return report.load(folder, "claims")


def name_of(trial):
    return trial.method.name


def names(trials):
    return dict.fromkeys(map(name_of, trials))


def test_layers_batches_and_rslora_are_compared_with_what_is_alike(tmp_path):
    losses = {"lora-r33-attention": 1.53, "lora-r20-mlp": 1.5, "lora-r64-all-linear-rslora": 1.48}
    losses |= {"full-batch-8": 1.4, "lora-r16-all-linear-batch-8": 1.41, "full-batch-128": 1.5}
    losses |= {"lora-r16-all-linear-batch-128": 1.56, "lora-r64-all-linear": 1.5}
    own = grid(tmp_path, lambda trial: (2e-3, 1.5))
    table = report.claims(own, further=further(tmp_path, lambda name, seed: losses[name] + 0.001 * seed))
    said = {(claim, line["compared"].split(" (")[0]): line for claim, line in table.iterrows()}
    attention = said[ATTENTION_BEHIND, "rank 33, attention"]
    assert (attention["effect"], attention["verdict"]) == ("0.03", "holds")
    assert attention["compared"].count("3,801,600 parameters") == 2
    rslora = said[RSLORA_BETTER, "rank 64, all linear, rsLoRA"]
    assert rslora["compared"].split("; ")[1].startswith("rank 64, all linear (")
    assert float(rslora["effect"]) == pytest.approx(-0.02, abs=2e-3) and rslora["verdict"] == "holds"
    small, large = (said[MEETS_FULL, f"rank 16, all linear, batch {size}"] for size in (8, 128))
    assert [(one["effect"], one["verdict"]) for one in (small, large)] == [("0.01", "holds"), ("0.06", "does not hold")]
    assert "; full, batch 8 (" in small["compared"] and "; full, batch 128 (" in large["compared"]
    grown = table.loc[BATCH_GROWS]
    assert (grown["compared"], grown["effect"], grown["verdict"]) == ("batch 128; batch 8", "0.05", "holds")
    noisy = further(tmp_path, lambda name, seed: losses[name] + 0.05 * seed * (name == "full-batch-128"))
    assert report.claims(own, further=noisy).loc[BATCH_GROWS, "verdict"] == "cannot tell"
    ends = further(tmp_path, lambda name, seed: losses[name])
    lowest = (ends["method"] == "full-batch-128") & (ends["learning_rate"] == 3e-5)
    ends.loc[lowest, "eval_loss"] = 1.0
    assert report.claims(own, further=ends).loc[BATCH_GROWS, "verdict"] == AT_END
    assert BATCH_GROWS not in report.claims(own).index


def test_one_seed_and_noise_leave_it_open(tmp_path):
    table = grid(tmp_path, lambda trial: (2e-3, 1.5))
    alone = report.claims(table[table["seed"] == 0])
    assert set(alone["95 % interval"]) <= {"one seed"} and TEN_TIMES not in alone.index
    assert MEETS_FULL not in alone.index and alone["verdict"].str.startswith("cannot tell").all()
    noisy = table.copy()
    mlp = (noisy["targets"] == "MLP") & (noisy["seed"] > 0)
    noisy.loc[mlp, "eval_loss"] += noisy.loc[mlp, "seed"].map({1: -0.3, 2: 0.3})
    assert report.claims(noisy).loc[ATTENTION_BEHIND, "verdict"] == "cannot tell"
    assert report.claims(table[:0]).empty


def test_the_interval_over_seeds_is_students():
    mean, low, high = report.over_seeds([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.3027, sd 1
    assert (mean, low, high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert report.over_seeds([1.0]).tolist() == [1.0, -np.inf, np.inf]


def record(folder, name, seed, scores, train=3_115, rate=1e-3):
    """A test record as a sweep leaves it, with those scores of each dialogue."""
    folder.mkdir(parents=True)
    ids = [f"d_{number}" for number in range(len(scores))]
    config = json.loads((runs.OUTPUTS / "reference/quickstart/full/seed-0/config.json").read_text("utf-8"))
    config |= {"method": name, "seed": seed, "dialogues": {"train": train, "validation": 250, "test": len(scores)}}
    config["settings"]["learning_rate"] = rate
    disk.write_json(folder / "config.json", config)
    disk.write_json(folder / "environment.json", {"date": "2026-01-01", "device": "a card"})
    disk.write_json(folder / "metrics.json", {"dialogues": len(scores)})
    disk.write_csv(folder / "predictions.csv", pd.DataFrame({"id": ids, "prediction": "text"}))
    disk.write_csv(folder / "scores.csv", pd.DataFrame({"id": ids} | dict.fromkeys(TYPES, np.round(scores, 6))))


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    """Records of every space: dora is plain LoRA but for noise, pissa clearly better, rslora too noisy to tell."""
    folder = tmp_path_factory.mktemp("sweep")
    grid(folder, lambda trial: (2e-3, 1.5))
    generator = np.random.default_rng(0)
    balanced = generator.uniform(0.2, 0.6, 300)
    for name, gap, noise in (
        ("lora-balanced", 0, 0),
        ("dora", 0.001, 0.01),
        ("pissa", 0.05, 0.01),
        ("rslora", 0.0, 0.2),
    ):
        scores = balanced + gap + noise * generator.standard_normal(300)
        record(folder / "methods" / name / "share-0.25" / "seed-0", name, 0, scores)
    record(folder / "methods-repeats/lora-balanced/share-0.25/seed-1", "lora-balanced", 1, balanced + 0.002)
    trials = [
        Trial(experiments.method(name), rate, 3, 0.25)
        for name in ("lora-balanced", "dora", "pissa", "rslora")
        for rate in (1e-3 / 3, 1e-3, 3e-3 if name != "pissa" else 1e-4)
    ]
    rows = [row(trial, 1.5, number) for number, trial in enumerate(trials)]
    disk.write_csv(folder / "methods.csv", pd.DataFrame(rows, columns=records.COLUMNS))
    for train, gap in ((125, 0.0), (12_460, 0.05)):
        for seed in (0, 1) if train < 12_460 else (0,):
            place = f"share-{train / 12_460:g}/seed-{seed}"
            record(folder / "data/full" / place, "full", seed, balanced + gap, train)
            noise = 0.05 * generator.standard_normal(300)
            record(folder / "data/lora-balanced" / place, "lora-balanced", seed, balanced + noise, train)
    return folder


def test_variants_are_held_against_plain_lora(sweep_folder):
    tested = report.load_tested(sweep_folder, "methods")
    table = report.claims(report.load(sweep_folder, "grid"), tested).loc[VARIANTS_NEAR].set_index("compared")
    assert table["verdict"].to_dict() == {"dora": "holds", "rslora": "cannot tell", "pissa": "does not hold"}


def test_the_table_of_methods(sweep_folder):
    tested = report.load_tested(sweep_folder, "methods")
    table = report.methods(tested, report.load(sweep_folder, "methods"))
    assert table.index[0] == "pissa" and table.loc["pissa", "rate"] == ">0.001" and table.loc["dora", "rate"] == "0.001"
    assert table.loc["lora-balanced", ["seeds", "over balanced", "verdict"]].tolist() == [2, "–", "–"]
    assert table.loc["pissa", "verdict"] == "differ" and table.loc["rslora", "verdict"] == "no significant difference"
    balanced = next(one for one in tested if one.name == "lora-balanced")
    assert balanced.f1.shape == (2, 300, 4)
    assert table.loc["lora-balanced", "ROUGE-L"].startswith(f"{balanced.score('rougeL'):.3f} [")


@pytest.fixture(scope="module")
def shown(sweep_folder, cells):
    """What the cells of notebook 06 make of the records."""
    return cells("06_lora_against_full", "statistics.holm", RECORDS=str(sweep_folder))


def test_full_and_lora_over_the_data(shown):
    table = shown["differences"]
    assert len(shown["tested"]) == 4 and list(shown["counts"]) == [125, 12_460] and list(table["seeds"]) == [2, 1]
    assert table["p (Holm)"][0] > 0.05 > table["p (Holm)"][1]
    assert table["full − lora-balanced"][1] == pytest.approx(0.05, abs=0.01)
    drawn = [line.lines[0].get_xdata().tolist() for line in shown["curve"].axes[0].containers]
    assert [text.get_text() for text in shown["curve"].axes[0].get_xticklabels()] == ["125", "12,460"]
    assert np.log(drawn) == pytest.approx(np.log([[125, 12_460]] * 2), abs=0.05)


def test_figures_show_what_the_records_hold(sweep_folder, shown):
    table, figure = report.load(sweep_folder, "grid"), shown["rates"]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [*(f"LoRA r{rank}, all linear layers" for rank in (1, 4, 16, 64, 128)), "full"]
    drawn = figure.axes[0].containers[0].lines[0]
    rank_1 = table[(table["rank"] == 1) & (table["targets"] == "all linear") & (table["alpha"] == 32)]
    assert list(drawn.get_xdata()) == sorted(GRID_RATES)
    losses = rank_1.sort_values("learning_rate").groupby("seed")["eval_loss"].apply(list)
    assert list(drawn.get_ydata()) == losses[0] != losses[1]
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert [bar[1][1] for bar in bars] == pytest.approx(np.max(list(losses), axis=0).tolist())
    ticks = [text.get_text() for text in shown["ranks"].axes[0].get_xticklabels()]
    assert len(shown["ranks"].axes[0].containers) == 4 and ticks == ["1", "4", "16", "64", "128"]


def test_a_damaged_record_is_named(sweep_folder, tmp_path):
    place = tmp_path / "data/full/share-1/seed-0"
    record(place, "full", 0, np.ones(4))
    (place / "scores.csv").write_text("id,rouge1\nd_0,1\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"cannot be read \(.*scores\.csv"):
        report.load_tested(tmp_path, "data")


@pytest.mark.parametrize("made", [True, False])
def test_notebook_06_reads_whatever_records_there_are(sweep_folder, tmp_path, made):
    source, target = data.ROOT / "notebooks" / "06_lora_against_full.ipynb", tmp_path / "06.ipynb"
    told = {"RECORDS": str(sweep_folder if made else tmp_path)}
    with forked.kernels():
        papermill.execute_notebook(
            str(source), str(target), told, kernel_name="python3", cwd=str(source.parent), progress_bar=False
        )
    cells = json.loads(target.read_text("utf-8"))["cells"]
    shown = json.dumps([cell["outputs"] for cell in cells if cell["cell_type"] == "code"])
    assert '"stderr"' not in shown
    assert shown.count("image/png") == (4 if made else 0)
    assert ("does not hold" in shown) == made
    assert ("No records: python -m measurements sweep grid" in shown) != made
