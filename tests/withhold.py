"""Take out of executed notebooks the texts of a data set that may not stand in this repository.

`python tests/withhold.py FOLDER DATASET TARGET` writes the notebooks of a folder to another, with at most three test
dialogues of the data set in all of them.
"""

import html
import sys
from pathlib import Path

import datasets
import nbformat

from dialogue_summarization import data

KEPT = 3
NOTICE = (
    "*The executed study. Of DialogSum (Chen et al. 2021, CC BY-NC-SA 4.0) it shows three test dialogues; other texts "
    "of the data set are withheld.*"
)


def texts(splits: datasets.DatasetDict) -> dict[str, list[str]]:
    """The dialogue and references of each dialogue, by its id, which names the split."""
    return {row["id"]: [row["dialogue"], *row["summaries"]] for rows in splits.values() for row in rows}


def forms(text: str) -> set[str]:
    """A text as it is written in outputs: plain, in HTML, with its lines broken there."""
    escaped = {html.escape(text), html.escape(text, quote=False)}
    return {text, *escaped, *(form.replace("\n", "<br>") for form in escaped)}


def written(notebook: nbformat.NotebookNode) -> str:
    """All that the outputs say."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(part for output in outputs for part in _parts(output).values())


def found(notebook: nbformat.NotebookNode, known: dict[str, list[str]]) -> dict[str, int]:
    """Which dialogues the outputs show a text of, and where they first do. Models copy a line now and then."""
    said = written(notebook)
    places = {}
    for name, several in known.items():
        hits = [said.find(form) for text in several for form in forms(text) if form in said]
        if hits:
            places[name] = min(hits)
    return places


def withhold(notebook: nbformat.NotebookNode, known: dict[str, list[str]], kept: set[str]) -> None:
    """Put ids in the place of texts, and leave out a training summary's tokens and the machine's warnings."""
    hidden = [(name, text) for name in found(notebook, known) if name not in kept for text in known[name]]
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell.outputs = outputs
        tokens = '"label": pair["labels"]' in cell.source
        for output in outputs:
            for kind, said in _parts(output).items():
                if tokens:
                    said = "(the tokens of a training summary, withheld)"
                for name, text in hidden:
                    for form in forms(text):
                        said = said.replace(form, f"(text of {name}, withheld)")
                if output.output_type == "stream":
                    output.text = said
                else:
                    output.data[kind] = said


def _parts(output: nbformat.NotebookNode) -> dict[str, str]:
    if output.output_type == "stream":
        return {"text": output.text}
    return {kind: said for kind, said in output.get("data", {}).items() if kind.startswith("text/")}


def main(folder: Path, dataset: str, target: Path) -> None:
    """Choose what is kept: the sample of the first notebook, then the first examples of the last."""
    known = texts(data.load_source(dataset))
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))}
    order = [sorted(places, key=places.get) for places in (found(book, known) for book in notebooks.values())]
    test = [name for name in dict.fromkeys([order[0][0], *order[-1]]) if name.startswith("test_")]
    target.mkdir(parents=True, exist_ok=True)
    for name, notebook in notebooks.items():
        withhold(notebook, known, set(test[:KEPT]))
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(NOTICE, id="notice"))
        nbformat.write(notebook, target / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
