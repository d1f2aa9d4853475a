"""What tests of measurements share."""

import json

import nbformat
import pytest
from helpers import tiny_experiment

from dialogue_summarization import data, models
from measurements import tables


@pytest.fixture
def build(tiny_models, tiny_data):
    """`short_training.build` with tiny models, always whole."""

    def fresh(model, method):
        family = "t5" if model.startswith("t5") else "llama"
        return models.load_model(tiny_experiment(tiny_models[family], tiny_data))

    return fresh


@pytest.fixture
def write(tmp_path):
    """Records in a folder, as they are read."""

    def records(*entries):
        for entry in entries:
            (tmp_path / f"{entry['name']}.json").write_text(json.dumps(entry), encoding="utf-8")
        return tables.load(tmp_path)

    return records


def run_cells(name, until, **parameters):
    """What the code cells of a notebook define, run here with these parameters up to the cell that has a text."""
    notebook = nbformat.read(data.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names = {}
    for number, source in enumerate(cells[1:]):  # the first one installs
        exec(source, names)
        if number == 0:
            assert parameters.keys() <= names.keys()
            names.update(parameters)
        if until in source:
            return names
    raise AssertionError(f"no cell of {name} has {until!r}")


@pytest.fixture(scope="session")
def cells():
    return run_cells
