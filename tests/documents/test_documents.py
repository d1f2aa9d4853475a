"""README, guide and docs: tables come from the records, links lead somewhere, commands are known to the command line.

`python -m measurements documents` writes the tables anew; here they are only compared.
"""

import functools
import re
import shlex
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import SHARED

from dialogue_summarization import __version__, data, runs, settings
from dialogue_summarization.commands import cli
from dialogue_summarization.evaluation import results
from measurements import documents, front_page, tables, withhold

DOCUMENTS = (
    "README.md",
    "GPU_OPTIMIZATION_GUIDE.md",
    "data/README.md",
    "notebooks/README.md",
    *sorted(path.relative_to(data.ROOT).as_posix() for path in (data.ROOT / "docs").glob("*.md")),
)
ANEW = "run python -m measurements documents"
pytestmark = pytest.mark.usefixtures("read_once")


@pytest.fixture(scope="module", autouse=True)
def remembered():
    """What is read of a committed record, and the sizes of a model, are what they were before."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((runs, "read"), (tables, "model_dims")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


def needs_dialogsum(name):
    if name != "quickstart" and not (SHARED / "dialogsum").is_dir():
        pytest.skip("needs shared/dialogsum")


OF_DIALOGSUM = ("smollm2-dialogsum", "main-question", "trained-twice", "two-gpus-study", "choosing", "result")
OF_DIALOGSUM += ("needs", "presets")


@pytest.mark.parametrize("name", documents.BLOCKS)
def test_blocks_are_those_of_the_records(name):
    if name in OF_DIALOGSUM:
        needs_dialogsum(name)
    document, content = documents.BLOCKS[name]
    written = documents.pattern(name).search((data.ROOT / document).read_text("utf-8"))[0].strip("\n")
    assert written == content(), ANEW


def test_every_block_has_a_generator_and_stands_once():
    marks = [
        (mark, name)
        for name in DOCUMENTS
        for mark in re.findall(r"<!-- ([^/ ]\S*) -->", (data.ROOT / name).read_text("utf-8"))
    ]
    assert sorted(marks) == sorted((mark, document) for mark, (document, _) in documents.BLOCKS.items())


def test_the_readme_is_short_and_the_guide_too():
    readme, guide = (data.ROOT / name for name in DOCUMENTS[:2])
    assert len(readme.read_text("utf-8").splitlines()) <= 150 and readme.stat().st_size <= 9 * 1024
    assert guide.stat().st_size <= 15 * 1024


def test_the_example_is_one_of_our_own_dialogues_and_right():
    text = documents.pattern("example").search((data.ROOT / "README.md").read_text("utf-8"))[0]
    rows = pd.read_csv(data.ROOT / "data" / "test.csv")
    [shown] = (
        rows[rows["dialogue"].map(lambda dialogue: dialogue.replace("\n", "<br>") in text)]["id"].str[:-2].unique()
    )
    judged = pd.read_csv(documents.REFERENCE / "quickstart" / "judged.csv")
    judged = judged[(judged["run"] == "committed-adapter") & (judged["id"] == shown)]
    assert judged["right"].tolist() == [1, 1]
    assert rows[rows["id"] == f"{shown}_1"]["summary"].item() in text


def test_the_readmes_sentences_say_what_its_table_says():
    readme = (data.ROOT / "README.md").read_text("utf-8")
    rows = [row.split(" | ") for row in documents.pattern("result").search(readme)[0].splitlines() if "|" in row]
    full, lora = (next(row for row in rows if name in row[0]) for name in ("| full", "lora-balanced"))
    (score, _, steps, memory, size), (own_score, _, own_steps, own_memory, own_size) = (
        [float(cell.strip("| ")) for cell in row[2:]] for row in (full, lora)
    )
    assert "about as well as full fine-tuning" in readme and own_score == pytest.approx(score, abs=0.002)
    assert "25 % less memory" in readme and own_memory / memory == pytest.approx(0.75, abs=0.02)
    assert "70 times smaller" in readme and size / own_size == pytest.approx(70, abs=5)
    assert "only 5 % faster" in " ".join(readme.split()) and own_steps / steps == pytest.approx(0.95, abs=0.01)


def test_steps_alone_leave_compiling_and_saving_out():
    log = pd.DataFrame({"step": [10, 20, 20, 30, 40], "loss": [4, 3, np.nan, 2, 1], "seconds": [30, 31, 35, 36, 37]})
    run = SimpleNamespace(log=log)
    assert front_page.steady_seconds(run) == pytest.approx(4)  # 40 steps of 0.1 s; a validation and saving took 5 s


def test_memory_bars_are_the_measured_peaks():
    [axes] = front_page.memory_bars().axes
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    assert widths.sum(axis=0) == pytest.approx(
        [4.767557120, 3.247884288, 12.83013632, 10.021970944, 10.186368512, 7.640950272], abs=0.05
    )
    assert widths[:3, 0].sum() == pytest.approx(16 * 134_515_008 / 1e9, rel=1e-3) and (widths > 0).all()


@pytest.mark.parametrize("name", documents.DATASETS)
def test_result_files_are_those_of_the_records(name, tmp_path):
    needs_dialogsum(name)
    made, test = documents.reference(name)
    written = results.write(made, test, tmp_path)
    assert len(written) == 2
    for path in written:
        committed = documents.REFERENCE / name / path.name
        assert path.read_text("utf-8") == committed.read_text("utf-8"), ANEW


@pytest.mark.parametrize("path", documents.FIGURES, ids=lambda path: path.stem)
def test_figures_are_those_of_the_notebooks(path):
    assert path.read_bytes() == documents.drawn(*documents.FIGURES[path]), ANEW
    texts = [(data.ROOT / name).read_text("utf-8") for name in DOCUMENTS]
    assert any(f"{path.relative_to(data.ROOT).as_posix()})" in text for text in texts)


def test_of_dialogsum_three_test_dialogues_are_shown():
    folder = runs.OUTPUTS / "reference" / "smollm2-dialogsum" / "notebooks"
    notebooks = [nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))]
    assert len(notebooks) == 4 and all(withhold.NOTICE in notebook.cells[1].source for notebook in notebooks)
    needs_dialogsum("smollm2-dialogsum")
    texts = withhold.texts_by_id(data.load_source(str(SHARED / "dialogsum")))
    shown = {name for notebook in notebooks for name in withhold.shown_ids(notebook, texts)}
    assert len(shown) <= withhold.KEPT and all(name.startswith("test_") for name in shown)


def test_texts_are_withheld_in_whatever_form_they_are_shown(tiny_data, tmp_path):
    dialogues = data.load_source(str(tiny_data))["test"]["dialogue"]
    for number in range(2):
        cells = [
            nbformat.v4.new_code_cell(
                "shown", outputs=[
                    nbformat.v4.new_output("stream", name="stdout", text=f"before {dialogue} behind"),
                    nbformat.v4.new_output("stream", name="stderr", text="a warning"),
                    nbformat.v4.new_output("display_data", {"text/html": dialogue.replace("\n", "<br>")}),
                ],
            )
            for dialogue in dialogues
        ]  # fmt: skip
        picture = nbformat.v4.new_output("display_data", {"image/png": "a picture of tokens"})
        cells.append(nbformat.v4.new_code_cell("# Only drawing: a box for each token.", outputs=[picture]))
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{number}.ipynb")
    withhold.withhold_folder(str(tmp_path), str(tiny_data), str(tmp_path / "target"))
    written = (tmp_path / "target" / "1.ipynb").read_text("utf-8")
    assert (
        withhold.NOTICE in written
        and "a warning" not in written
        and "picture" not in written
        and "before (text of d_" in written
    )
    notebook = nbformat.read(tmp_path / "target" / "1.ipynb", as_version=4)
    assert withhold.shown_ids(notebook, withhold.texts_by_id(data.load_source(str(tiny_data)))) == {}


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


def test_there_are_documents():
    assert len(DOCUMENTS) >= 13


def test_how_to_cite_names_this_project():
    citation = yaml.safe_load((data.ROOT / "CITATION.cff").read_text("utf-8"))
    [author] = citation["authors"]
    assert author["name"] in (data.ROOT / "LICENSE").read_text("utf-8")
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "type"} <= citation.keys()
    entries = (data.ROOT / "docs" / "references.bib").read_text("utf-8").split("\n\n")
    [own] = [entry for entry in entries if entry.startswith("@software{dialogue_summarization,")]
    assert all(f"{{{said}}}" in own for said in (author["name"], citation["title"], citation["version"]))
    assert len(entries) >= 6 and all(re.match(r"@\w+\{\w+,\n.*\n\}$", entry.strip(), re.DOTALL) for entry in entries)


def commands_of(name):
    """The `study` commands in a document: of its blocks without a language, and of running text and tables."""
    text = (data.ROOT / name).read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0] for language, block in blocks if not language for line in block.splitlines()]
    lines += re.findall(r"`(uv run study[^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [line.strip().removeprefix("uv run ") for line in lines if line.strip().startswith("uv run study")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_are_known(name, capsys):
    for command in commands_of(name):
        arguments = shlex.split(command.partition(" ")[2])
        if arguments and arguments[-1] != "--help":
            with pytest.raises(SystemExit):
                cli.main([*arguments, "--no-such-option"])
            assert capsys.readouterr().err.endswith("error: unrecognized arguments: --no-such-option\n"), command


def test_there_are_commands():
    counts = [len(commands_of(name)) for name in DOCUMENTS]
    assert counts[0] >= 10 and counts[1] >= 8 and sum(counts) >= 30


def test_the_table_of_settings_is_what_the_program_allows():
    page = (data.ROOT / "docs" / "settings.md").read_text("utf-8").partition("## Choose")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert shown == {
        name: ", ".join(allowed) if isinstance(allowed[0], str) else f"{allowed[1]:g} to {allowed[2]:g}"
        for fields in settings.ALLOWED.values()
        for name, allowed in fields.items()
    }


def test_the_readmes_test_command_is_cis():
    command = "uv run pytest"
    assert f"`{command}`" in (data.ROOT / "README.md").read_text("utf-8")
    assert (data.ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == command
