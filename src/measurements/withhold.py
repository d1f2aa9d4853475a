"""Take out of executed notebooks the texts of a data set that may not stand in this repository.

`python -m measurements withhold FOLDER DATASET TARGET` writes the notebooks of a folder to another, with at most three
test dialogues of the data set in all of them.
"""

import html
from pathlib import Path

import datasets
import nbformat

from dialogue_summarization import data

KEPT = 3
TOKENS = ("Only drawing: a box for each token", "ids[-6:]")  # in the code of cells whose outputs are left out
NOTICE = (
    "*The executed study. Of DialogSum (Chen et al. 2021, CC BY-NC-SA 4.0) it shows three test dialogues; other texts "
    "of the data set are withheld.*"
)


def withhold_folder(folder: str, dataset: str, target: str) -> None:
    """What is kept are the sample of the first notebook, then the first examples of the last."""
    texts = texts_by_id(data.load_source(dataset))
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in sorted(Path(folder).glob("*.ipynb"))}
    shown = [sorted(places, key=places.get) for places in (shown_ids(book, texts) for book in notebooks.values())]
    test = [name for name in dict.fromkeys([shown[0][0], *shown[-1]]) if name.startswith("test_")]
    Path(target).mkdir(parents=True, exist_ok=True)
    for name, notebook in notebooks.items():
        withhold(notebook, texts, set(test[:KEPT]))
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(NOTICE, id="notice"))
        nbformat.write(notebook, Path(target) / name)


def texts_by_id(splits: datasets.DatasetDict) -> dict[str, list[str]]:
    """The dialogue and references of each dialogue, by its id, which names the split."""
    return {row["id"]: [row["dialogue"], *row["summaries"]] for rows in splits.values() for row in rows}


def shown_ids(notebook: nbformat.NotebookNode, texts: dict[str, list[str]]) -> dict[str, int]:
    """Which dialogues the outputs show a text of, and where they first do. Models copy a line now and then."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "\n".join(part for output in outputs for part in _parts(output).values())
    places = {}
    for name, several in texts.items():
        if hits := [shown.find(form) for text in several for form in _forms(text) if form in shown]:
            places[name] = min(hits)
    return places


def withhold(notebook: nbformat.NotebookNode, texts: dict[str, list[str]], kept: set[str]) -> None:
    """Put ids in the place of texts, and leave out the cells that show tokens of a dialogue, and warnings."""
    names = [name for name in shown_ids(notebook, texts) if name not in kept]
    hidden = {form: name for name in names for text in texts[name] for form in _forms(text)}
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        shows_tokens = any(mark in cell.source for mark in TOKENS)
        cell.outputs = [] if shows_tokens else [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            for kind, text in _parts(output).items():
                for form, name in hidden.items():
                    text = text.replace(form, f"(text of {name}, withheld)")
                (output if output.output_type == "stream" else output.data)[kind] = text


def _forms(text: str) -> list[str]:
    """A text as it is written in outputs: plain, in HTML, with its lines broken there."""
    escaped = [html.escape(text), html.escape(text, quote=False)]
    return [text, *escaped, *(form.replace("\n", "<br>") for form in escaped)]


def _parts(output: nbformat.NotebookNode) -> dict[str, str]:
    parts = {"text": output.text} if output.output_type == "stream" else output.get("data", {})
    return {kind: text for kind, text in parts.items() if kind.startswith("text")}
