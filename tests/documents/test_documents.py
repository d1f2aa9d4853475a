"""README, guide and docs: tables come from the records, links lead somewhere, commands are known to the command line.

`python -m measurements documents` writes the tables anew; here they are only compared.
"""

import re
import shlex

import nbformat
import pytest
import yaml
from helpers import SHARED

from dialogue_summarization import __version__, data, runs
from dialogue_summarization.commands import cli
from dialogue_summarization.evaluation import results
from measurements import documents, withhold

DOCUMENTS = (
    "README.md",
    "GPU_OPTIMIZATION_GUIDE.md",
    "data/README.md",
    "notebooks/README.md",
    *sorted(path.relative_to(data.ROOT).as_posix() for path in (data.ROOT / "docs").glob("*.md")),
)
ANEW = "run python -m measurements documents"


def needs_dialogsum(name):
    if name != "quickstart" and not (SHARED / "dialogsum").is_dir():
        pytest.skip("needs shared/dialogsum")


@pytest.mark.parametrize("name", documents.BLOCKS)
def test_blocks_are_those_of_the_records(name):
    if name in ("smollm2-dialogsum", "trained-twice", "two-gpus-study", "choosing"):
        needs_dialogsum(name)
    document, content = documents.BLOCKS[name]
    written = documents.pattern(name).search((data.ROOT / document).read_text("utf-8"))[0].strip("\n")
    assert written == content(), ANEW


def test_every_block_has_a_generator():
    marks = {
        mark for name in DOCUMENTS[:2] for mark in re.findall(r"<!-- (\S+) -->", (data.ROOT / name).read_text("utf-8"))
    }
    marks = {mark for mark in marks if not mark.startswith("/")}
    assert len(marks) >= 8 and marks <= set(documents.BLOCKS)


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
def test_the_guides_figures_are_those_of_the_notebooks(path):
    assert path.read_bytes() == documents.drawn(*documents.FIGURES[path]), ANEW
    guide = (data.ROOT / "GPU_OPTIMIZATION_GUIDE.md").read_text("utf-8")
    assert f"]({path.relative_to(data.ROOT).as_posix()})" in guide


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
    assert len(DOCUMENTS) >= 7


def test_how_to_cite_names_this_project():
    citation = yaml.safe_load((data.ROOT / "CITATION.cff").read_text("utf-8"))
    [author] = citation["authors"]
    assert author["name"] in (data.ROOT / "LICENSE").read_text("utf-8")
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "type"} <= citation.keys()
    bibtex = re.search(r"```bibtex\n(.*?)```", (data.ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
    assert all(f"{{{said}}}" in bibtex for said in (author["name"], citation["title"], citation["version"]))


def test_commands_are_known(capsys):
    text = (data.ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0] for language, block in blocks if not language for line in block.splitlines()]
    commands = [line.removeprefix("uv run ") for line in lines if "study" in line]
    assert len(commands) >= 8
    for command in commands:
        arguments = shlex.split(command.partition(" ")[2])
        if arguments and arguments[0] != "--help":
            with pytest.raises(SystemExit):
                cli.main([*arguments, "--no-such-option"])
            assert capsys.readouterr().err.endswith("error: unrecognized arguments: --no-such-option\n"), command
