"""What a sweep's records are made to say: on hand-made records whose answers are known."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from dialogue_summarization import data, experiments, runs, sweep_claims, sweep_figures, sweep_records, sweep_report
from dialogue_summarization.rouge import TYPES
from dialogue_summarization.sweep_points import EIGHTH, GRID_FULL_RATES, GRID_RATES, Point, group, lora

CHOSEN = experiments.experiment("smollm2-dialogsum")
FULL = experiments.method("full")


def row(point, loss, number):
    """A point's row with that validation loss, and ROUGE falling with it."""
    weights = {"attention": 115_200, "MLP": 190_080, "all linear": 305_280, "query and value": 57_600}
    found = dict.fromkeys(sweep_records.COLUMNS, 1.0) | dict.fromkeys(sweep_records.TEXTS, "x")
    found |= {"rank": None, "alpha": None, "targets": None, "trainable_parameters": 1e8, "parameters": 1e8} | point.lora
    if point.lora:
        found["trainable_parameters"] = point.lora["rank"] * weights[point.lora["targets"]]
    found |= {"key": f"{number:x}", "method": point.method.name, "learning_rate": point.learning_rate, "seconds": 30}
    found |= {"share": point.share, "seed": point.seed, "diverged": 0, "eval_loss": loss, "train_tokens": 45_000}
    return found | {name: 0.5 - loss / 20 for name in ("rouge1", "rouge2", "rougeL")}


def bowl(point, at, bottom, noise=0.0):
    """Loss over the rate: a parabola over its logarithm, so that the lowest point is known."""
    return bottom + 0.3 * np.log10(point.learning_rate / at) ** 2 + noise * point.seed


def grid(folder, best, seeds=(0, 1, 2), full=(2e-4, 1.5)):
    """Records of a grid: `best` gives a LoRA point's best rate and the loss there."""
    points = list(group("grid", CHOSEN, 12_460, folder).points)
    repeats = [
        Point(method, rate, 2, EIGHTH, seed)
        for method, rates in (
            (FULL, GRID_FULL_RATES), (lora(1, "all linear"), GRID_RATES), (lora(128, "all linear"), GRID_RATES),
            (lora(16, "attention"), GRID_RATES[1:2]), (lora(16, "MLP"), GRID_RATES[1:2]),
        )
        for rate in rates for seed in seeds if seed
    ]  # fmt: skip
    for name, several in (("grid", points), ("grid-repeats", repeats)):
        rows = [row(point, bowl(point, *(best(point) if point.lora else full), 0.001), number)
                for number, point in enumerate(several)]  # fmt: skip
        runs.write_csv(folder / f"{name}.csv", pd.DataFrame(rows, columns=sweep_records.COLUMNS))
    return sweep_report.load(folder, "grid")


def test_claims_that_hold_are_confirmed(tmp_path):
    def best(point):
        falls_short = 0.1 if point.lora["targets"] in ("attention", "query and value") else 0.0
        return 2e-3 * (1.2 if point.lora["rank"] == 1 else 1), 1.5 + falls_short

    table = grid(tmp_path, best)
    first, last = sweep_claims.ten_times(table)
    assert first == (
        "rank 1, all linear: lowest loss at a rate of 0.002, full's at 0.0003; in between, divided by full's, "
        "12 (interval 12 to 12, 3 seeds): about ten times, as claimed."
    )
    assert last.startswith("rank 128") and "full's, 10 (" in last and last.endswith("as claimed.")
    lines = sweep_claims.by_rank(table)
    assert "rank 1 to 128" in lines[0] and "factor of 0.83" in lines[0] and "hardly depends" in lines[0]
    assert "at rank 1 to " in lines[1] and "at rank 128, a factor of " in lines[1] and "(one seed" in lines[1]
    assert sweep_claims.lowest_losses(table).startswith("Lowest loss over all ranks and rates, one seed: ")
    [line] = sweep_claims.attention_or_mlp(table)
    assert "(1,843,200 weights) against rank 16, MLP (3,041,280 weights): difference in loss +0.100 (" in line
    assert line.endswith("attention falls short.")
    lines = sweep_claims.meets_full(table)
    assert len(lines) == 2 and all(line.endswith("they meet within 0.02.") for line in lines)


def test_claims_that_do_not_hold_are_refuted(tmp_path):
    def best(point):
        worse = 0.2 if point.lora["rank"] == 1 else 0.0
        return (5.5e-4 if point.lora["rank"] == 128 else 2.4e-3), 1.5 + worse - 0.05 * (
            point.lora["targets"] == "attention"
        )

    table = grid(tmp_path, best, full=(1.2e-3, 1.5))
    lines = sweep_claims.ten_times(table)
    assert "full's, 2 (" in lines[0] and lines[0].endswith("not about ten times.")
    assert "the end of those tried" in lines[1]  # 5e-4 is the lowest rate
    assert "the end of those tried" in sweep_claims.by_rank(table)[0]
    assert sweep_claims.attention_or_mlp(table)[0].endswith("attention does better.")
    assert sweep_claims.meets_full(table)[0].endswith("LoRA falls short.")
    shifted = table.assign(eval_loss=table["eval_loss"] + (table["rank"] == 1) * (0.004 * table["seed"] - 0.19))
    assert "perhaps by less than 0.02" in sweep_claims.meets_full(shifted)[0]
    attention, rising = table["targets"] == "attention", table.copy()
    rising.loc[attention, "eval_loss"] += 0.3
    rising.loc[attention & (rising["learning_rate"] > max(GRID_RATES)), "eval_loss"] = 1.74
    assert "another may change that" in sweep_claims.attention_or_mlp(rising)[0]


def test_one_seed_and_noise_leave_it_open(tmp_path):
    table = grid(tmp_path, lambda point: (2e-3, 1.5))
    alone = table[table["seed"] == 0]
    for lines in (sweep_claims.ten_times(alone), sweep_claims.by_rank(alone), sweep_claims.meets_full(alone)):
        assert lines == [sweep_claims.NO_GRID]
    noisy = table.copy()
    mlp = (noisy["targets"] == "MLP") & (noisy["seed"] > 0)
    noisy.loc[mlp, "eval_loss"] += noisy.loc[mlp, "seed"].map({1: -0.3, 2: 0.3})
    assert sweep_claims.attention_or_mlp(noisy)[0].endswith("the grid cannot tell.")


def test_the_interval_over_seeds_is_students():
    found = sweep_claims.over_seeds([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.3027, sd 1
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert format(sweep_claims.over_seeds([1.0]), ".1f") == "1.0 (one seed)"


def record(folder, name, seed, scores, train=3_115, rate=1e-3):
    """A test record as a sweep leaves it, with those scores of each dialogue."""
    folder.mkdir(parents=True)
    ids = [f"d_{number}" for number in range(len(scores))]
    config = json.loads((runs.OUTPUTS / "reference/quickstart/full/seed-0/config.json").read_text("utf-8"))
    config |= {"method": name, "seed": seed, "dialogues": {"train": train, "validation": 250, "test": len(scores)}}
    config["settings"]["learning_rate"] = rate
    runs.write_json(folder / "config.json", config)
    for file in ("environment", "metrics"):
        runs.write_json(folder / f"{file}.json", {"date": "2026-01-01", "device": "a card"})
    runs.write_csv(folder / "predictions.csv", pd.DataFrame({"id": ids, "prediction": "text"}))
    runs.write_csv(folder / "scores.csv", pd.DataFrame({"id": ids} | dict.fromkeys(TYPES, np.round(scores, 6))))


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    """Records of every group: dora is plain LoRA but for noise, pissa clearly better, rslora too noisy to tell."""
    folder = tmp_path_factory.mktemp("sweep")
    grid(folder, lambda point: (2e-3, 1.5))
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
    points = [Point(experiments.method(name), rate, 3, 0.25) for name in ("lora-balanced", "dora", "pissa", "rslora")
              for rate in (1e-3 / 3, 1e-3, 3e-3 if name != "pissa" else 1e-4)]  # fmt: skip
    rows = [row(point, 1.5, number) for number, point in enumerate(points)]
    runs.write_csv(folder / "methods.csv", pd.DataFrame(rows, columns=sweep_records.COLUMNS))
    for train, gap in ((125, 0.0), (12_460, 0.05)):
        for seed in (0, 1) if train < 12_460 else (0,):
            place = f"share-{train / 12_460:g}/seed-{seed}"
            record(folder / "data/full" / place, "full", seed, balanced + gap, train)
            noise = 0.05 * generator.standard_normal(300)
            record(folder / "data/lora-balanced" / place, "lora-balanced", seed, balanced + noise, train)
    return folder


def test_variants_are_held_against_plain_lora(sweep_folder):
    lines = sweep_report.variants(sweep_report.tested(sweep_folder, "methods"))
    dora, rslora, pissa, claim = lines
    assert dora.startswith("dora: ") and dora.endswith("within 2%.")
    assert rslora.endswith("the test dialogues cannot tell.") and pissa.endswith("further away than 2%.")
    assert "Of 3 variants 1 are shown to lie within 2% of plain LoRA and 1 beyond; of 1" in claim
    assert claim.endswith("The claim is refuted here. Not tested: lora-plus.")


def test_the_table_of_methods(sweep_folder):
    systems = sweep_report.tested(sweep_folder, "methods")
    table = sweep_report.methods(systems, sweep_report.load(sweep_folder, "methods"))
    assert table.index[0] == "pissa" and table.loc["pissa", "rate"] == ">0.001" and table.loc["dora", "rate"] == "0.001"
    assert table.loc["lora-balanced", ["seeds", "over balanced", "verdict"]].tolist() == [2, "–", "–"]
    assert table.loc["pissa", "verdict"] == "differ" and table.loc["rslora", "verdict"] == "not distinguishable"
    balanced = next(one for one in systems if one.name == "lora-balanced")
    assert balanced.mean.shape == (2, 300, 4)
    assert table.loc["lora-balanced", "ROUGE-L"].startswith(f"{balanced.score('rougeL'):.3f} [")


def test_full_and_lora_over_the_data(sweep_folder):
    systems = sweep_report.tested(sweep_folder, "data")
    few, many = sweep_report.data_gaps(systems)
    assert few.startswith("125 dialogues") and few.endswith("seeds: 2: the test dialogues cannot tell.")
    assert many.startswith("12,460 dialogues: full minus lora-balanced is +0.05") and many.endswith("full is ahead.")
    shares = sweep_report.shares(systems)
    assert len(shares) == 4 and (shares["rougeL_low"] < shares["rougeL"]).all()


def test_figures_show_what_the_records_hold(sweep_folder):
    table = sweep_report.load(sweep_folder, "grid")
    figure = sweep_figures.over_learning_rate(table)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["rank 1", "rank 4", "rank 16", "rank 64", "rank 128", "full"]
    drawn = figure.axes[0].containers[0].lines[0]
    rank_1 = table[(table["rank"] == 1) & (table["targets"] == "all linear") & (table["alpha"] == 32)]
    assert list(drawn.get_xdata()) == sorted(GRID_RATES)
    losses = rank_1.sort_values("learning_rate").groupby("seed")["eval_loss"].apply(list)
    assert list(drawn.get_ydata()) == losses[0] != losses[1]
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert [bar[1][1] for bar in bars] == pytest.approx(np.max(list(losses), axis=0).tolist())
    ranks = sweep_figures.over_rank(table)
    assert len(ranks.axes[0].containers) == 4 and [text.get_text() for text in ranks.axes[0].get_xticklabels()] == [
        "1", "4", "16", "64", "128"
    ]  # fmt: skip
    curve = sweep_figures.over_data(sweep_report.shares(sweep_report.tested(sweep_folder, "data")))
    drawn = [line.lines[0].get_xdata().tolist() for line in curve.axes[0].containers]
    assert [text.get_text() for text in curve.axes[0].get_xticklabels()] == ["125", "12,460"]
    assert np.log(drawn) == pytest.approx(np.log([[125, 12_460]] * 2), abs=0.05)


def test_a_damaged_record_is_named(sweep_folder, tmp_path):
    place = tmp_path / "data/full/share-1/seed-0"
    record(place, "full", 0, np.ones(4))
    (place / "scores.csv").write_text("id,rouge1\nd_0,1\n", encoding="utf-8")
    with pytest.raises(runs.RecordError, match=r"scores\.csv cannot be read"):
        sweep_report.tested(tmp_path, "data")


@pytest.mark.parametrize("made", [True, False])
def test_notebook_06_reads_whatever_records_there_are(sweep_folder, tmp_path, made):
    source, target = data.ROOT / "notebooks" / "06_lora_against_full.ipynb", tmp_path / "06.ipynb"
    line = [sys.executable, "-m", "papermill", source, target, "--cwd", source.parent, "-k", "python3"]
    done = subprocess.run(
        [*line, "-p", "RECORDS", str(sweep_folder if made else tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads(target.read_text("utf-8"))["cells"]
    shown = json.dumps([cell["outputs"] for cell in cells if cell["cell_type"] == "code"])
    assert '"stderr"' not in shown
    assert shown.count("image/png") == (3 if made else 0)
    assert ("The claim is refuted here." in shown) == made and (
        "make the groups grid and grid-repeats" in shown
    ) != made
