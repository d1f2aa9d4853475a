"""README and guide: tables come from the records, links lead somewhere, commands are known to the command line.

`python tests/test_documents.py` writes the tables anew.
"""

import re
import shlex

import nbformat
import pytest
import withhold
from conftest import SHARED

from dialogue_summarization import (
    benchmark,
    cli,
    comparison,
    data,
    experiments,
    figures,
    report,
    results,
    runs,
    study,
    systems,
)

DOCUMENTS = (
    "README.md", "GPU_OPTIMIZATION_GUIDE.md", "data/README.md", "docs/from_the_course_lab.md", "notebooks/README.md",
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
    made, test = reference(name)
    made = [run for run in made if run.config.seed == 0]
    results_table = report.results(made, test).rename(index=lambda label: label.removesuffix(" (reference)"))
    device, date = made[0].environment["device"], made[0].date
    about = f"`{report.signature(test)}`\n\nMade on {date}, device: {device} ({made[0].environment['system']})."
    return f"{report.to_markdown(results_table)}\n\n{about}"


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


def test_of_dialogsum_three_test_dialogues_are_shown():
    folder = runs.OUTPUTS / "reference" / "smollm2-dialogsum" / "notebooks"
    notebooks = [nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))]
    assert len(notebooks) == 4 and all(withhold.NOTICE in notebook.cells[1].source for notebook in notebooks)
    if not (SHARED / "dialogsum").is_dir():
        pytest.skip("needs shared/dialogsum")
    known = withhold.texts(data.load_source(str(SHARED / "dialogsum")))
    shown = {name for notebook in notebooks for name in withhold.found(notebook, known)}
    assert len(shown) <= withhold.KEPT and all(name.startswith("test_") for name in shown)


def test_the_guides_table_is_that_of_the_benchmarks():
    assert held("GPU_OPTIMIZATION_GUIDE.md", "benchmarks") == report.to_markdown(benchmark.table())


def block(name):
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = data.ROOT / document
    links = re.findall(r"\]\((?!https?://)([^)#]*)", path.read_text("utf-8"))
    assert [link for link in links if link and not (path.parent / link).exists()] == []


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


def test_the_snippet_in_the_readme_is_of_this_interface(tiny, monkeypatch, capsys, tmp_path):
    code = re.search(r"```python\n(.*?)```", (data.ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
    monkeypatch.setitem(experiments.EXPERIMENTS, "quickstart", tiny)
    monkeypatch.setattr(study.run, "__kwdefaults__", {"outputs": tmp_path, "force": False})
    exec(code, {})
    assert "lora-balanced" in capsys.readouterr().out


if __name__ == "__main__":
    blocks = [("GPU_OPTIMIZATION_GUIDE.md", "benchmarks", report.to_markdown(benchmark.table()))]
    for name in NAMES:
        folder = runs.OUTPUTS / "reference" / name
        results.write(*reference(name), folder)
        figure(name).savefig(folder / "standings.png", dpi=110)
        blocks.append(("README.md", name, table(name)))
    for document, name, content in blocks:
        path = data.ROOT / document
        text = path.read_text("utf-8")
        path.write_text(block(name).sub(lambda _, new=content: f"\n{new}\n\n", text), encoding="utf-8", newline="\n")
