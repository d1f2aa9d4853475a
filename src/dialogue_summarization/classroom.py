"""The notebooks for a class: no outputs, and exercises without their answers.

`python -m dialogue_summarization.classroom FOLDER` writes them; take a folder beside `notebooks/` in the clone.
"""

import argparse
import re
from pathlib import Path

import nbformat

from .data import ROOT

ANSWER = re.compile(r"\s*<details>.*?</details>", re.DOTALL)


def copy(folder: Path) -> list[Path]:
    """Write the notebooks into a folder and return their paths.

    Raises:
        FileExistsError: One of them is there already; nothing is written.
    """
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    targets = [folder / source.name for source in sources]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} is there already: name another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, targets, strict=True):
        notebook = nbformat.read(source, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            else:
                cell.source = ANSWER.sub("", cell.source)
        nbformat.write(notebook, target)
    return targets


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dialogue_summarization.classroom", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the copies go")
    try:
        print(*copy(parser.parse_args().folder), sep="\n")
    except OSError as error:
        parser.error(str(error))
