"""README and guide: tables come from the records, links lead somewhere, commands are known to the command line.

`python tests/test_documents.py` writes the tables anew.
"""

import hashlib
import json
import math
import re
import shlex

import nbformat
import pandas as pd
import pytest
import withhold
import yaml
from conftest import SHARED
from PIL import Image

from dialogue_summarization import (
    __version__,
    cli,
    comparison,
    costs,
    data,
    experiments,
    figures,
    growth_report,
    headlines,
    measured,
    quantized,
    report,
    results,
    runs,
    scaling,
    shapes,
    significance,
    sweep_claims,
    sweep_figures,
    sweep_points,
    sweep_report,
    systems,
    throughput,
)
from dialogue_summarization.memory import GIB

DOCUMENTS = (
    "README.md", "GPU_OPTIMIZATION_GUIDE.md", "data/README.md", "notebooks/README.md",
    *sorted(path.relative_to(data.ROOT).as_posix() for path in (data.ROOT / "docs").glob("*.md")),
)  # fmt: skip


NAMES = ("quickstart", "smollm2-dialogsum")


def reference(name):
    """The committed records of an experiment, and the test split that they are of."""
    if name == "quickstart":
        test = data.load(experiments.experiment(name))["test"]
    elif (SHARED / "dialogsum").is_dir():
        test = data.load_source(str(SHARED / "dialogsum"))["test"]
    else:
        pytest.skip("needs shared/dialogsum")
    return runs.collect(name, "nowhere"), test


def table(name):
    """What the README shows of an experiment's records."""
    records, test = reference(name)
    rows = report.results(records, test).rename(index=lambda label: label.removesuffix(" (reference)"))
    parts = [report.to_markdown(rows), f"`{report.signature(test)}`", made([run.environment for run in records])]
    if name == "smollm2-dialogsum":
        parts.insert(1, f"Seed 0: {costs.in_a_sentence(records)}".replace(" (reference)", ""))
    return "\n\n".join(parts)


def flan_t5():
    """What was measured of FLAN-T5-base's shape, as a prediction for its study."""
    records = measured.records()
    found, by_heart, stable = (records[name] for name in ("t5-base-full-batch32", "t5-overfit-full", "t5-stable"))
    adapters = [records[name] for name in shapes.ENTRIES if name != by_heart["name"]]
    steps, losses = [one["steps"] for one in adapters], [one["loss"] for one in adapters]
    settings = experiments.EXPERIMENTS["flan-t5-base-dialogsum"].settings["full"]
    assert settings.batch_size == found["batch_size"]
    rate, peak = found["samples_per_second"], found["peak_memory_bytes"] / GIB
    cold = records["t5-base-full"]  # at batch 32 some was compiled already
    return (
        f"*Predicted*, from [FLAN-T5-base's shape with random weights](outputs/benchmarks/{found['name']}.json) on one "
        f"{found['device']}: `full` trains on {rate:,.0f} dialogues a second, so {settings.epochs:g} epochs of 12,460 "
        f"take {12_460 * settings.epochs / rate:.0f} s behind compiling ([{cold['warm_up_seconds']:.0f} s at batch "
        f"{cold['batch_size']}](outputs/benchmarks/{cold['name']}.json)), with {peak:.1f} GiB at the "
        f"peak. Writing summaries comes on top; how long T5 takes for it was not measured. It learns: "
        f"{by_heart['pairs']} pairs were known by heart after {by_heart['steps']:,} steps of every weight, with "
        f"ROUGE-1 {by_heart['rouge1']:.3f} ([record](outputs/benchmarks/{by_heart['name']}.json)). At the study's "
        f"rate, in batches of {stable['batch_size']}, its loss falls over {stable['steps']} steps from "
        f"{stable['first_tenth']:.2f} in the first tenth to {stable['last_tenth']:.2f} in the last, and goes on from a "
        f"checkpoint where it was: {stable['loss_before']:.3f} before, {stable['loss_after']:.3f} after "
        f"([record](outputs/benchmarks/{stable['name']}.json)). Adapters can do little for random weights that are "
        f"frozen, the output layer among them: after {min(steps):,} to {max(steps):,} steps on those "
        f"{by_heart['pairs']} pairs the presets' loss is {min(losses):.2f} to {max(losses):.2f}, as for a word out of "
        f"{math.exp(min(losses)):,.0f} or more, and ROUGE {max(one['rouge1'] for one in adapters):g} "
        f"([records](outputs/benchmarks/{adapters[0]['name']}.json))."
    )


def figure(name):
    """The figure below it."""
    made, test = reference(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "label", lambda run, **_: run.name)
        return figures.standings(comparison.everyone(made, test))


def held(document, name):
    """A block of a document, between its marks."""
    return block(name).search((data.ROOT / document).read_text("utf-8"))[0].strip("\n")


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_result_files_are_those_of_the_records(name, tmp_path):
    made, test = reference(name)
    assert held("README.md", name) == table(name), "run python tests/test_documents.py"
    for path in results.write(made, test, tmp_path):
        committed = runs.OUTPUTS / "reference" / name / path.name
        assert path.read_text("utf-8") == committed.read_text("utf-8"), "run python tests/test_documents.py"


def test_what_is_predicted_of_flan_t5_is_what_was_measured():
    assert held("README.md", "flan-t5-base") == flan_t5(), "run python tests/test_documents.py"


def test_what_training_twice_changes_is_what_the_records_say():
    assert held("docs/how_scores_are_made.md", "trained-twice") == trained_twice(), "run python tests/test_documents.py"


def test_of_dialogsum_three_test_dialogues_are_shown():
    folder = runs.OUTPUTS / "reference" / "smollm2-dialogsum" / "notebooks"
    notebooks = [nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))]
    assert len(notebooks) == 4 and all(withhold.NOTICE in notebook.cells[1].source for notebook in notebooks)
    if not (SHARED / "dialogsum").is_dir():
        pytest.skip("needs shared/dialogsum")
    known = withhold.texts(data.load_source(str(SHARED / "dialogsum")))
    shown = {name for notebook in notebooks for name in withhold.found(notebook, known)}
    assert len(shown) <= withhold.KEPT and all(name.startswith("test_") for name in shown)


def compared():
    """The training that was measured on two GPUs, beside one."""
    return scaling.comparisons(measured.records(measured.TWO_GPUS))


def made(records):
    """Where and when, and with which code."""
    known = [(one["date"][:10], one["device"], one["commit"]) for one in records]
    days, devices, commits = (" and ".join(sorted(set(values))) for values in zip(*known, strict=True))
    return f"Made on {days}, device: {devices} (commit {commits})."


def two_gpus():
    """A row and a sentence for each training on two GPUs."""
    found = compared()
    about = made([record for each in found for record in (each.one, each.share, each.several) if record])
    lines = "\n".join(f"- {line}" for line in scaling.sentences(found))
    return f"{report.to_markdown(scaling.measured(found))}\n\n{lines}\n\n{about}"


def of_one_key(records, others):
    """Each of the others behind the record that asks for the same."""
    pairs = [(one, other) for other in others for one in records if one.config.key == other.config.key]
    assert len(pairs) == len(others) > 0, "there is no record of the same key"
    return pairs


def two_gpus_study():
    """The study's runs by two GPUs, each below the same run by one, and the difference between the two."""
    by_one, test = reference("smollm2-dialogsum")
    by_two = runs.collect("smollm2-dialogsum", measured.TWO_GPUS)
    pairs = of_one_key(by_one, by_two)
    scores = [[report.dialogue_scores(run, test)["rouge1"] for run in (two, one)] for one, two in pairs]
    gaps = [significance.compare(*pair) for pair in scores]
    rows = pd.concat([report.results([run], test) for pair in pairs for run in pair])
    rows = rows[["ROUGE-1", "ROUGE-2", "ROUGE-L", "training s"]].rename(index=lambda name: name.partition(" (")[0])
    rows.insert(0, "GPUs", [run.environment.get("processes", 1) for pair in pairs for run in pair])
    rows["ROUGE-1 over one GPU"] = "–"
    corrected = [significance.holm([getattr(gap, name) for gap in gaps]) for name in ("p", "p_equivalent")]
    for place, (gap, *values) in enumerate(zip(gaps, *corrected, strict=True)):
        said = report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
        rows.iloc[2 * place + 1, -1] = f"{said}: {comparison.verdict(*values)}"
    about = "\n\n".join(made([run.environment for run in some]) for some in zip(*pairs, strict=True))
    return f"{report.to_markdown(rows)}\n\n`{report.signature(test)}`\n\n{about}"


def trained_twice():
    """The study's runs that were trained once more, and what `full` and `lora-balanced` are to each other by both."""
    now, test = reference("smollm2-dialogsum")
    pairs = of_one_key(now, runs.collect("repeats", runs.OUTPUTS / "reference" / "smollm2-dialogsum"))
    rows, both = [], {}
    for pair in pairs:
        scores = [report.dialogue_scores(run, test) for run in pair]
        row = {"run": pair[0].name, "seed": pair[0].config.seed}
        row["ROUGE-1"] = " → ".join(f"{one['rouge1'].mean():.3f}" for one in scores[::-1])
        for name in ("rouge1", "rouge2", "rougeL"):
            gap = significance.compare(*(one[name] for one in scores))
            row[f"{report.HEADINGS[name]} changed by"] = report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
        rows.append(row)
        both.setdefault(pair[0].name, []).append(sum(one["rouge1"].to_numpy() for one in scores) / 2)
    gap = significance.compare(both["lora-balanced"], both["full"])
    lines = [
        f"- {when}: {comparison.planned(systems.of_runs(some, test)).replace(' (reference)', '')}"
        for when, some in zip(("Now", "First"), map(list, zip(*pairs, strict=True)), strict=True)
    ]
    values = f"difference {gap.mean:.3f}, 95 % interval {gap.low:.3f} to {gap.high:.3f}, p {gap.p_equivalent:.3f}"
    lines.append(f"- Both together: {values.replace('-', '−')}.")
    about = "\n\n".join(made([run.environment for run in some]) for some in zip(*pairs, strict=True))
    table = report.to_markdown(pd.DataFrame(rows).set_index("run"))
    return "\n\n".join([table, "\n".join(lines), f"`{report.signature(test)}`", about])


def swept():
    """What the grid says of the literature's claims, and the methods' table."""
    grid, methods = (sweep_report.load(SWEEP, name) for name in ("grid", "methods"))
    tested = sweep_report.tested(SWEEP, "methods")
    claims = (sweep_claims.ten_times, sweep_claims.by_rank, sweep_claims.attention_or_mlp, sweep_claims.meets_full)
    lines = [sweep_claims.lowest_losses(grid), *(line for claim in claims for line in claim(grid))]
    lines.append(sweep_report.variants(tested)[-1])
    lines = "\n".join(f"- {line}" for line in lines)
    columns = ["rate", "seeds", "ROUGE-1", "ROUGE-2", "ROUGE-L", "over balanced", "verdict", "trained"]
    table = report.to_markdown(sweep_report.methods(tested, methods)[columns])
    left = [name for name in sweep_points.COMPARED if name not in {one.name for one in tested}]
    left = f"Not tested yet: {', '.join(left)}.\n\n" if left else ""
    about = f"`{report.signature(reference('smollm2-dialogsum')[1])}`"
    known = pd.concat([grid, methods])[["date", "device", "commit"]]
    return f"{lines}\n\n{table}\n\n{left}{about}\n\n{made(known.to_dict('records'))}"


def quantized_bases():
    """Bases in 8 and 4 bits beside fp32: writing, and under an adapter."""
    weights, points = measured.records()["weights"]["bytes"], sweep_report.load(SWEEP, "methods")
    tables = [report.to_markdown(table) for table in (quantized.writing(weights), quantized.training(points))]
    return "\n\n".join(tables)


GUIDE = {
    "benchmarks": lambda: report.to_markdown(throughput.table(measured.records())),
    "cards": lambda: report.to_markdown(measured.advice(measured.records())),
    "cards-packed": lambda: report.to_markdown(measured.advice(measured.records(), packed=True)),
    "tried": lambda: report.to_markdown(measured.tried()),
    "choosing": swept,
    "quantized": quantized_bases,
    "two-gpus": two_gpus,
    "two-gpus-study": two_gpus_study,
}
SWEEP = runs.OUTPUTS / "reference" / "smollm2-dialogsum" / "sweep"


@pytest.mark.parametrize("name", GUIDE)
def test_the_guides_tables_are_those_of_the_benchmarks(name):
    assert held("GPU_OPTIMIZATION_GUIDE.md", name) == GUIDE[name](), "run python tests/test_documents.py"


FIGURES = {  # what each is drawn from, and how
    measured.FOLDER / "growth.png": (lambda: measured.records()["growth"], growth_report.figure),
    measured.TWO_GPUS / "two-gpus.png": (compared, figures.several_gpus),
    SWEEP / "rates.png": (lambda: sweep_report.load(SWEEP, "grid"), sweep_figures.over_learning_rate),
    SWEEP / "ranks.png": (lambda: sweep_report.load(SWEEP, "grid"), sweep_figures.over_rank),
}


def drawn(source):
    """A hash over what a figure is drawn from."""
    if isinstance(source, pd.DataFrame):
        content = source.to_json()
    elif isinstance(source, dict):
        content = json.dumps(source)
    else:
        content = json.dumps([(each.name, each.several, each.one, each.predicted) for each in source])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_the_guides_figures_are_those_of_the_records(path):
    source, _ = FIGURES[path]
    assert Image.open(path).text["Source"] == drawn(source()), "run python tests/test_documents.py"
    guide = (data.ROOT / "GPU_OPTIMIZATION_GUIDE.md").read_text("utf-8")
    assert f"]({path.relative_to(data.ROOT).as_posix()})" in guide


def block(name):
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def anchors(path):
    """What the headings of a document are called in links, as GitHub has it."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = data.ROOT / document
    links = re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", path.read_text("utf-8"))
    for link, anchor in links:
        target = path.parent / link if link else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_how_to_cite_names_this_project():
    citation = yaml.safe_load((data.ROOT / "CITATION.cff").read_text("utf-8"))
    [author] = citation["authors"]
    assert author["name"] in (data.ROOT / "LICENSE").read_text("utf-8")
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "type"} <= citation.keys()
    bibtex = re.search(r"```bibtex\n(.*?)```", (data.ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
    assert all(f"{{{said}}}" in bibtex for said in (author["name"], citation["title"], citation["version"]))


def test_commands_are_known():
    text = (data.ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0] for language, block in blocks if not language for line in block.splitlines()]
    commands = [line.removeprefix("uv run ") for line in lines if "study" in line]
    assert len(commands) >= 8
    for command in commands:
        arguments = shlex.split(command.partition(" ")[2])
        if arguments and arguments[0] != "--help":
            assert cli._parser().parse_args(arguments).run


if __name__ == "__main__":
    runs.write_json(measured.FOLDER / "summary.json", headlines.summary())
    blocks = [("GPU_OPTIMIZATION_GUIDE.md", name, written()) for name, written in GUIDE.items()]
    for path, (source, draw) in FIGURES.items():
        draw(source()).savefig(path, dpi=110, metadata={"Source": drawn(source())})
    for name in NAMES:
        folder = runs.OUTPUTS / "reference" / name
        results.write(*reference(name), folder)
        figure(name).savefig(folder / "standings.png", dpi=110)
        blocks.append(("README.md", name, table(name)))
    blocks.append(("README.md", "flan-t5-base", flan_t5()))
    blocks.append(("docs/how_scores_are_made.md", "trained-twice", trained_twice()))
    for document, name, content in blocks:
        path = data.ROOT / document
        text = path.read_text("utf-8")
        path.write_text(block(name).sub(lambda _, new=content: f"\n{new}\n\n", text), encoding="utf-8", newline="\n")
