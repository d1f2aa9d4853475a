"""Tables of runs, on committed records and on records made by hand."""

import datasets
import pandas as pd
import pytest

from dialogue_summarization import data, experiments, figures, report, rouge, runs
from dialogue_summarization.errors import DataError
from dialogue_summarization.intervals import interval


def dialogues(texts):
    return datasets.Dataset.from_dict(
        {
            "id": [f"d_{number}" for number in range(len(texts))],
            "dialogue": texts,
            "summaries": [["Ann sells a <b>red</b> bike.", "Ben & Ann talk."]] * len(texts),
            "topic": [""] * len(texts),
        }
    )


def record(folder, name, texts, **metrics):
    """A run made by hand, with the settings and device of a committed one."""
    real = runs.read(runs.OUTPUTS / "reference" / "quickstart" / name / "seed-0")
    test = dialogues(texts)
    predictions = pd.DataFrame({"id": test["id"], "prediction": texts})
    scores = rouge.score_dialogues(texts, test["summaries"]).set_index(pd.Index(test["id"], name="id"))
    sizes = {"parameters": 134_515_008, "trainable_parameters": 134_515_008}
    return runs.Run(folder, real.config, real.environment, sizes | metrics, predictions, scores, pd.DataFrame())


@pytest.fixture(scope="module")
def quickstart():
    made = [run for run in runs.collect("quickstart", "nowhere") if run.config.seed == 0]
    return made, data.load(experiments.experiment("quickstart"))["test"]


def test_examples_are_best_median_and_worst(quickstart):
    made, test = quickstart
    chosen = report.best_median_worst(made[1])
    markup = report.texts_as_html(report.side_by_side(made, test, chosen, "rougeL").T)._repr_html_()
    assert [markup.count(f">{rule}</th>") for rule in ("best", "median", "worst")] == [1, 1, 1]
    assert markup.count("<tr") == 1 + 3 + len(made)  # a heading, id, dialogue, references, and each run
    order = made[1].scores["rougeL"].to_numpy().argsort(kind="stable")
    for place in (order[-1], order[0]):
        assert markup.count(f">{test[int(place)]['id']}</td>") == 1
        assert f"(ROUGE-L {made[1].scores['rougeL'].iloc[place]:.3f})" in markup


def test_texts_are_whole_and_escaped_with_their_line_breaks():
    table = pd.DataFrame({"run": ["<script>x</script>\n#B#: a & b", "word " * 100]})
    markup = report.texts_as_html(table)._repr_html_()
    assert "&lt;script&gt;x&lt;/script&gt;<br>#B#: a &amp; b" in markup and "<script>" not in markup
    assert "word " * 99 + "word" in markup and "..." not in markup


def test_results_are_means_with_intervals_over_dialogues(quickstart):
    made, test = quickstart
    table = report.results(made)
    assert list(table.index) == [report.display_name(run) for run in made] and len(made) == 3
    assert table["trainable parameters"].iloc[0] == "none" and table["training (s)"].iloc[0] == "–"
    assert table["peak memory (GB)"].iloc[1] == f"{made[1].metrics['peak_memory_bytes'] / 1e9:.1f}"
    for run, cell in zip(made, table["ROUGE-2"], strict=True):
        scores = rouge.score_dialogues(report.predictions(run, test), test["summaries"])["rouge2"]
        low, high = interval(scores)
        assert cell == f"{scores.mean():.3f} [{low:.3f}, {high:.3f}]"
        assert run.metrics["rouge2"] == pytest.approx(scores.mean(), abs=1e-6)


def test_a_run_is_called_by_its_method_and_seed(quickstart, tmp_path):
    (committed, _, lora), _ = quickstart
    own = record(tmp_path, "full", ["a"])
    assert report.display_name(committed) == "zero-shot (reference)" and report.display_name(own) == "full"
    assert report.display_name(lora) == "LoRA r16, q k v o: lora-balanced (reference)"
    titles = {name: report.title_of(name, experiments.method(name).peft) for name in ("lora-all-linear", "ia3", "dora")}
    assert titles["lora-all-linear"] == "LoRA r16, q k v o MLP: lora-all-linear" and titles["ia3"] == "ia3"


def test_summaries_of_other_dialogues_are_named(quickstart, tmp_path):
    _, test = quickstart
    with pytest.raises(DataError, match=f"1 summaries are not of these {len(test)} test dialogues"):
        report.predictions(record(tmp_path, "full", ["a"]), test)


def test_the_signature_says_how_many_references_and_dialogues(quickstart):
    said = report.signature(quickstart[1])
    assert "|refs:mean3|" in said and "|n:48|" in said and said.startswith("rouge_score:")


def test_memory_bars_are_in_gb_and_end_at_the_sum():
    parts = {"full": {"parameters": 5e8, "gradients": 5e8, "rest": 2e9}, "LoRA": {"parameters": 5e8, "gradients": 0}}
    [ax] = figures.memory_bars(parts).axes
    assert [text.get_text().strip() for text in ax.texts] == ["3.00 GB", "0.50 GB"]
    assert [bar.get_width() for bar in ax.containers[0]] == [0.5, 0.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["full", "LoRA"]


def test_a_run_is_looked_for_in_a_list_though_its_tables_have_no_truth_value():
    folder = runs.OUTPUTS / "reference" / "quickstart" / "full" / "seed-0"
    run = runs.read(folder)
    assert run in [run] and run not in [runs.read(folder)]
